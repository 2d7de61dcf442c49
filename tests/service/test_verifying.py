"""Verification between processes: what both ends say of it, and what is sent after a cut."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from flexmigrate.image.file import Image
from flexmigrate.migration.comparison.digests import image_digest
from support.images import MIB, random_image, sparse_image
from support.operator import ask, status, wait_until
from support.relay import Relay
from support.servers import Servers, wait_until_some

# So large that what sockets hold when a connection is cut, some MiB, is a small part of it.
LARGE = 256 * MIB


def journal(image: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(image.with_name(f"{image.name}.handover").read_text())
    return found


def digest_of(path: Path) -> str:
    image = Image.open(str(path), read_only=True)
    try:
        return image_digest(image)
    finally:
        image.close()


def enlarge(servers: Servers) -> None:
    random_image(servers.image, LARGE)
    sparse_image(servers.copy, LARGE, iter(()))


class TestTheDigest:
    def test_is_in_both_journals_and_logs_and_can_be_made_of_the_copy(
        self, servers: Servers
    ) -> None:
        source, destination = servers.serve(), servers.listen()
        servers.start_mirroring()
        servers.complete(source, destination)
        digest = digest_of(servers.copy)
        assert journal(servers.image)["digest"] == journal(servers.copy)["digest"] == digest
        source.wait_for(f"verified: full, {4 * MIB} bytes were compared and equal, {digest}")
        destination.wait_for(f"{4 * MIB} bytes were compared and equal, {digest}")

    @pytest.mark.parametrize("rule", ["off", "dirty"])
    def test_is_not_made_where_not_all_was_compared(self, servers: Servers, rule: str) -> None:
        source, destination = servers.serve(), servers.listen()
        servers.start_mirroring("--verify", rule)
        servers.complete(source, destination)
        assert journal(servers.image)["digest"] == journal(servers.copy)["digest"] == ""
        source.wait_for(f"verified: {rule}, 0 bytes")

    def test_the_plain_handover_says_that_nothing_was_verified(self, servers: Servers) -> None:
        source, destination = servers.serve(), servers.listen()
        servers.start_mirroring("--handover", "plain")
        servers.complete(source, destination)
        source.wait_for("not verified")
        source.wait_for("verified: unable")


class TestAfterALostConnection:
    def test_little_more_is_sent_than_what_was_missing(self, servers: Servers) -> None:
        enlarge(servers)
        source, destination = servers.serve(), servers.listen()
        with Relay("127.0.0.1", int(servers.place[3])) as relay:
            cut = LARGE * 9 // 10
            relay.cut_after(cut)
            servers.send_to("127.0.0.1", relay.port)
            servers.start_mirroring()
            servers.complete(source, destination)
            assert relay.connections == 2
            # What the relay had sent and the destination not yet read is lost with the connection:
            # some MiB on a quick machine, more on a busy one.
            lost = destination.wait_for(re.compile(r"what it sent \((\d+) bytes\) doesn\'t count"))
            assert int(lost[1]) > LARGE // 2
            assert relay.forwarded - cut < LARGE - int(lost[1]) + LARGE * 2 // 100
        assert journal(servers.copy)["digest"] == digest_of(servers.image)

    def test_with_verify_off_all_is_sent_again(self, servers: Servers) -> None:
        enlarge(servers)
        source, destination = servers.serve(), servers.listen()
        with Relay("127.0.0.1", int(servers.place[3])) as relay:
            relay.cut_after(LARGE * 9 // 10)
            servers.send_to("127.0.0.1", relay.port)
            servers.start_mirroring("--verify", "off")
            servers.complete(source, destination)
            assert relay.forwarded > LARGE * 18 // 10

    def test_a_restarted_destination_whose_file_was_changed_is_found_out(
        self, servers: Servers
    ) -> None:
        enlarge(servers)
        source, destination = servers.serve(), servers.listen()
        port = int(servers.place[3])
        servers.start_mirroring("--max-bps", str(16 * MIB))
        wait_until_some(servers.destination_sock)
        wait_until(servers.source_sock, migration_phase="copying")
        while int(status(servers.destination_sock)["covered_bytes"]) < LARGE // 4:
            pass
        destination.send(signal.SIGKILL)
        destination.expect_exit(-signal.SIGKILL)
        with servers.copy.open("r+b") as copy:
            copy.seek(MIB + 123)
            copy.write(b"changed behind its back")
            copy.seek(LARGE - MIB)
            copy.write(b"\1" * 4096)
        again = servers.listen(port=port)
        ask(servers.source_sock, "mirror_max_bps", "0")
        servers.complete(source, again)
        source.wait_for("comparing it")
        assert journal(servers.copy)["digest"] == digest_of(servers.image)

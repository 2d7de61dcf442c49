"""``mirror`` and what goes with it, as an operator sees them: answers, limits, status, the copy."""

from __future__ import annotations

import re
import socket
import time
from pathlib import Path

import pytest

from support.images import BLOCK, MIB, allocated, assert_same, random_image, sparse_image
from support.operator import ask, status, wait_until
from support.processes import flexmigrate
from support.raw_nbd import RawClient
from support.relay import Relay
from support.servers import SIZE, SLOWLY, Servers, stop

EXACT = 0.05  # by how much a rate may miss its limit


def at_rest_of(seen: dict[str, str]) -> dict[str, str]:
    """Return what *seen* says of no migration, no moment, and no machine.

    How often requests came while they were looked for depends on how busy the machine is.
    """
    assert int(seen["poll_hits"]) >= 0
    assert int(seen["poll_misses"]) >= 0
    left_out = ("last_", "poll_", "filesystem", "holes")
    return {key: value for key, value in seen.items() if not key.startswith(left_out)}


class TestTheAnswer:
    def test_nobody_listens_there(self, servers: Servers, port: int) -> None:
        servers.serve()
        servers.send_to("127.0.0.1", port)
        refused = servers.mirror()
        assert refused.returncode == 1
        assert refused.stderr.startswith(b"Mirror failed to connect: ")
        assert b"refused" in refused.stderr
        assert status(servers.source_sock)["is_mirroring"] == "false"

    def test_the_destination_does_not_let_the_source_in(self, servers: Servers) -> None:
        servers.serve()
        servers.listen("127.0.0.2")
        refused = servers.mirror()
        assert refused.returncode == 1
        assert refused.stderr.startswith(b"Mirror was rejected: ")
        assert b"127.0.0.1 is refused: the access list doesn't allow it" in refused.stderr
        refused = servers.mirror("--handover", "plain")
        assert b"the access list doesn't allow it" in refused.stderr

    def test_the_destination_has_another_sender(self, servers: Servers) -> None:
        servers.serve()
        destination = servers.listen()
        first = servers.client(destination)
        refused = servers.mirror().stderr
        assert re.match(
            rb"Mirror was rejected: .*: a sender is connected already: 127\.0\.0\.1:\d+, since 20",
            refused,
        )
        assert first.flush() == 0

    @pytest.mark.parametrize("size", [SIZE - 512, SIZE + 512])
    @pytest.mark.parametrize("words", [(), ("--handover", "plain")])
    @pytest.mark.parametrize("style", [(), ("--oldstyle",)])
    def test_the_sizes_differ(
        self, servers: Servers, size: int, words: tuple[str, ...], style: tuple[str, ...]
    ) -> None:
        servers.serve()
        random_image(servers.copy, size)
        destination = servers.listen(*style)
        refused = servers.mirror(*words)
        assert refused.returncode == 1
        text = f"the destination has {size} bytes, the image {SIZE}\n"
        assert refused.stderr.decode() == f"Remote size does not match local size: {text}"
        wait_until(servers.destination_sock, listening_phase="waiting", num_clients="0")
        # It ends in good order, which is nothing to be alarmed by.
        assert "lost:" not in destination.story()
        assert " error " not in destination.story()

    def test_what_is_no_nbd_server(self, servers: Servers) -> None:
        servers.serve()
        with socket.create_server(("127.0.0.1", 0)) as other:
            servers.send_to("127.0.0.1", other.getsockname()[1])
            asked = servers.children.flexmigrate(
                "mirror", *servers.place, "--sock", str(servers.source_sock)
            )
            sock, _ = other.accept()
            sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            asked.expect_exit(1)
            asked.wait_for("Mirror was rejected")
            sock.close()

    def test_a_second_one_while_one_runs(self, servers: Servers) -> None:
        source = servers.serve()
        destination = servers.listen()
        servers.start_mirroring_slowly()
        for _ in range(2):
            refused = servers.mirror()
            assert (refused.returncode, refused.stderr) == (1, b"mirror already running\n")
        ask(servers.source_sock, "mirror_max_bps", "0")
        servers.complete(source, destination)

    @pytest.mark.parametrize("command", ["break", "mirror-max-bps 1", "converge wait"])
    def test_what_needs_one_that_runs(self, servers: Servers, command: str) -> None:
        servers.serve()
        refused = flexmigrate(*command.split(), "--sock", str(servers.source_sock))
        assert (refused.returncode, refused.stderr) == (1, b"Not mirroring\n")


class TestWhereItGoes:
    @pytest.mark.parametrize("style", [(), ("--oldstyle",)])
    @pytest.mark.parametrize("host", ["127.0.0.1", "::1", "/"])
    def test_each_kind_of_address_and_handshake(
        self, servers: Servers, host: str, style: tuple[str, ...]
    ) -> None:
        source = servers.serve(*style)
        path = servers.folder / "in"
        place = ("-l", str(path)) if host == "/" else ("-l", host, "-p", "0")
        destination = servers.start("listen", *place, "-f", str(servers.copy), *style)
        address, port = destination.listening()
        servers.send_to(address, port)
        if host == "/":
            servers.place = ("-l", str(path))
        servers.start_mirroring()
        servers.complete(source, destination)

    def test_the_local_address_can_be_chosen(self, servers: Servers) -> None:
        source = servers.serve()
        destination = servers.listen("127.0.0.2")
        for local, answer in (
            ("127.0.0.3", b"Mirror was rejected: "),
            ("192.0.2.1", b"Mirror failed to connect: "),
        ):
            assert servers.mirror("--bind", local).stderr.startswith(answer)
        servers.start_mirroring("--bind", "127.0.0.2")
        servers.complete(source, destination)


class TestBreak:
    def test_the_source_serves_as_if_nothing_had_happened_and_can_be_asked_again(
        self, servers: Servers
    ) -> None:
        source = servers.serve()
        client = servers.client(source)
        destination = servers.listen()
        for _ in range(3):
            servers.start_mirroring_slowly("--unlink")
            assert client.write(MIB, b"b" * BLOCK) == 0
            broken = flexmigrate("break", "--sock", str(servers.source_sock))
            assert (broken.returncode, broken.stdout) == (0, b"mirror stopped\n")
            seen = status(servers.source_sock)
            assert seen["is_mirroring"] == "false"
            assert "broken" in seen["last_migration"]
            left = {key: value for key, value in seen.items() if key.startswith("migration_")}
            assert left == {"migration_state": "ended"}
            assert client.read(MIB, BLOCK) == b"b" * BLOCK
            assert client.flush() == 0
            wait_until(servers.destination_sock, listening_phase="waiting")
        assert servers.image.exists()
        servers.start_mirroring()
        servers.complete(source, destination)

    def test_a_new_client_is_let_in_after_it(self, servers: Servers) -> None:
        source = servers.serve()
        servers.listen()
        servers.start_mirroring_slowly()
        ask(servers.source_sock, "break")
        client = servers.client(source)
        assert client.write(0, b"n" * BLOCK) == 0
        stop(source)


@pytest.mark.alone
class TestTheLimit:
    """Measured at the network, not by what the source says of itself."""

    def rate(self, relay: Relay, seconds: float, limit: int) -> float:
        """Return how fast bytes come, measured over so many seconds at the limit."""
        relay.wait_for_bytes(relay.forwarded + 1)  # measure from one piece to another
        start, began = relay.forwarded, time.monotonic()
        relay.wait_for_bytes(start + int(seconds * limit))
        return (relay.forwarded - start) / (time.monotonic() - began)

    def test_it_is_kept_exactly_and_can_be_changed_while_it_runs(self, servers: Servers) -> None:
        random_image(servers.image, 32 * MIB)
        random_image(servers.copy, 32 * MIB, seed=2)
        source, destination = servers.serve(), servers.listen()
        with Relay("127.0.0.1", int(servers.place[3])) as relay:
            servers.send_to("127.0.0.1", relay.port)
            servers.start_mirroring("--max-bps", "2M")
            relay.wait_for_bytes(MIB)
            assert self.rate(relay, 2.5, 2 * MIB) == pytest.approx(2 * MIB, rel=EXACT)
            assert status(servers.source_sock)["migration_speed_limit"] == str(2 * MIB)

            changed = flexmigrate("mirror-max-bps", "4M", "--sock", str(servers.source_sock))
            assert (changed.returncode, changed.stdout) == (0, b"updated\n")
            relay.wait_for_bytes(relay.forwarded + MIB)
            assert self.rate(relay, 2.5, 4 * MIB) == pytest.approx(4 * MIB, rel=EXACT)
            assert status(servers.source_sock)["migration_speed_limit"] == str(4 * MIB)

            changed = flexmigrate("mirror-max-bps", "0", "--sock", str(servers.source_sock))
            assert changed.returncode == 0
            servers.complete(source, destination)

    def test_one_that_is_lifted_is_not_waited_for_any_more(self, servers: Servers) -> None:
        source, destination = servers.serve(), servers.listen()
        servers.start_mirroring("--max-bps", "4K")  # a quarter of an hour
        wait_until(servers.source_sock, migration_phase="copying")
        began = time.monotonic()
        assert ask(servers.source_sock, "mirror_max_bps", "0") == (0, "updated")
        servers.complete(source, destination)
        assert time.monotonic() - began < 300

    def test_a_slow_one_can_be_broken_off_at_once(self, servers: Servers) -> None:
        source = servers.serve()
        servers.listen()
        servers.start_mirroring("--max-bps", "1")
        began = time.monotonic()
        assert ask(servers.source_sock, "break") == (0, "mirror stopped")
        assert time.monotonic() - began < 300  # not the hours that it would take
        stop(source)


class TestTheStatus:
    def test_before_during_and_after(self, servers: Servers) -> None:
        source = servers.serve()
        servers.client(source)
        at_rest = {
            "pid": str(source.pid),
            "size": str(SIZE),
            "has_control": "true",
            "clients_allowed": "true",
            "num_clients": "1",
            "num_exports": "1",
            "is_mirroring": "false",
        }
        assert at_rest_of(wait_until(servers.source_sock, num_clients="1")) == at_rest
        servers.listen()
        servers.start_mirroring_slowly()
        seen = status(servers.source_sock)
        assert {**at_rest, "is_mirroring": "true"}.items() <= seen.items()
        assert seen["migration_phase"] == "copying"
        assert (seen["migration_pass"], seen["migration_attempt"]) == ("1", "1")
        assert seen["migration_speed_limit"] == SLOWLY[1]
        sent, left = int(seen["migration_bytes_sent"]), int(seen["migration_bytes_left"])
        assert 0 < sent < SIZE
        assert 0 < left < SIZE
        assert sent + left <= SIZE
        assert int(seen["migration_duration"]) < 20
        assert 0 < int(seen["migration_speed"]) < 100 * MIB
        assert "migration_error" not in seen
        ask(servers.source_sock, "break")
        after = status(servers.source_sock)
        assert after["last_migration"].startswith("broken")
        assert after["last_migration_verdict"] == "broken"
        assert at_rest_of(after) == {**at_rest, "migration_state": "ended"}

    def test_of_an_attempt_that_failed(self, servers: Servers) -> None:
        servers.serve()
        servers.listen()
        with Relay("127.0.0.1", int(servers.place[3])) as relay:
            servers.send_to("127.0.0.1", relay.port)
            servers.start_mirroring_slowly()
            relay.cut()
            seen = wait_until(servers.source_sock, migration_phase="waiting")
            assert seen["is_mirroring"] == "true"
            assert seen["migration_attempt"] == "1"
            assert seen["migration_error"]
            seen = wait_until(servers.source_sock, migration_phase="copying")
            assert seen["migration_attempt"] == "2"
            assert seen["migration_error"]
            ask(servers.source_sock, "break")


class TestTheCopy:
    def test_a_sparse_image_stays_as_sparse_and_what_was_there_is_gone(
        self, servers: Servers
    ) -> None:
        size = 64 * MIB
        extents = [(k * 8 * MIB + 4096 * k, 256 * 1024) for k in range(8)]
        servers.image.unlink()
        sparse_image(servers.image, size, iter(extents))
        random_image(servers.copy, size, seed=3)
        source, destination = servers.serve(), servers.listen()
        servers.start_mirroring()
        servers.complete(source, destination)
        assert allocated(servers.copy) <= allocated(servers.image) + 8 * BLOCK

    def test_an_image_that_is_one_hole(self, servers: Servers) -> None:
        servers.image.unlink()
        sparse_image(servers.image, 64 * MIB, iter(()))
        random_image(servers.copy, 64 * MIB)
        source, destination = servers.serve(), servers.listen()
        servers.start_mirroring()
        servers.complete(source, destination)
        # One block may hold the attribute that says who owns it.
        assert allocated(servers.copy) <= BLOCK

    def test_the_bytes_behind_the_last_sector_come_too(self, servers: Servers) -> None:
        for image in (servers.image, servers.copy):
            with image.open("ab") as file:
                file.write(image.name[:1].encode() * 100)
        source, destination = servers.serve(), servers.listen()
        servers.start_mirroring()
        source.expect_exit(0)
        destination.expect_exit(0)
        assert_same(servers.image, servers.copy)
        assert servers.copy.stat().st_size == SIZE + 100

    def test_of_a_read_only_server(self, servers: Servers) -> None:
        source, destination = servers.serve("--read-only"), servers.listen()
        servers.start_mirroring()
        servers.complete(source, destination)

    def test_what_clients_do_meanwhile_is_in_it(self, servers: Servers) -> None:
        source, destination = servers.serve(), servers.listen()
        clients = [servers.client(source) for _ in range(4)]
        servers.start_mirroring_slowly()
        for number, client in enumerate(clients):
            for offset in range(number * BLOCK, SIZE, 64 * BLOCK):
                assert client.write(offset, bytes([number + 1]) * BLOCK) == 0
        ask(servers.source_sock, "mirror_max_bps", "0")
        servers.complete(source, destination)
        assert servers.copy.read_bytes()[: 4 * BLOCK] == b"".join(
            bytes([number + 1]) * BLOCK for number in range(4)
        )

    def test_the_summary_in_the_log(self, servers: Servers) -> None:
        source, destination = servers.serve(), servers.listen()
        servers.start_mirroring()
        servers.complete(source, destination)
        passes = r"(?:1 pass|\d+ passes)"
        source.wait_for(rf"complete: {SIZE} bytes in {passes}, [\d.]+ s, .*; 1 attempt$")
        destination.wait_for(f"migration complete: {re.escape(str(servers.copy))} is here")


class TestADestinationThatMakesNoProgress:
    IMPATIENT = {"FLEXNBD_MS_REQUEST_LIMIT_SECS": "2"}

    def test_is_given_up_after_the_limit_and_tried_again(self, servers: Servers) -> None:
        source, destination = servers.serve(env=self.IMPATIENT), servers.listen()
        with Relay("127.0.0.1", int(servers.place[3])) as relay:
            servers.send_to("127.0.0.1", relay.port)
            servers.start_mirroring("--max-bps", str(2 * MIB))
            relay.wait_for_bytes(MIB)
            relay.stall()
            stalled = time.monotonic()
            source.wait_for("attempt 1 failed: the destination made no progress for [2-9] s")
            assert time.monotonic() - stalled > 1.5
            relay.resume()
            ask(servers.source_sock, "mirror_max_bps", "0")
            servers.complete(source, destination)
            assert relay.connections == 2

    def test_for_less_than_that_is_waited_for(self, servers: Servers) -> None:
        source, destination = servers.serve(), servers.listen()
        client = servers.client(source)
        with Relay("127.0.0.1", int(servers.place[3])) as relay:
            servers.send_to("127.0.0.1", relay.port)
            servers.start_mirroring("--max-bps", str(2 * MIB))
            relay.wait_for_bytes(MIB)
            relay.stall()
            for _ in range(100):  # clients don't notice
                assert client.write(0, b"s" * BLOCK) == 0
            relay.resume()
            ask(servers.source_sock, "mirror_max_bps", "0")
            servers.complete(source, destination)
            assert relay.connections == 1


def test_the_copy_can_be_sent_on(servers: Servers) -> None:
    """The destination serves as a source does: clients, an operator, a migration to a third."""
    source = servers.serve()
    path = servers.folder / "nbd"
    middle = servers.listen("--rebind-addr", str(path))
    servers.start_mirroring()
    source.expect_exit(0)
    wait_until(servers.destination_sock, listening_phase="serving")
    client = RawClient.to(str(path), 0)
    assert client.write(0, b"m" * BLOCK) == 0

    last = Path(servers.folder / "last")
    random_image(last, SIZE, seed=9)
    destination = servers.start("listen", "-l", "127.0.0.1", "-p", "0", "-f", str(last))
    address, port = destination.listening()
    sent = flexmigrate(
        *("mirror", "-l", address, "-p", str(port), "-s", str(servers.destination_sock), "-u")
    )
    assert sent.returncode == 0, sent
    client.expect_end()
    client.close()
    middle.expect_exit(0)
    destination.expect_exit(0)
    assert not servers.copy.exists()
    expected = random_image(servers.folder / "expected", SIZE)
    with expected.open("r+b") as file:
        file.write(b"m" * BLOCK)
    assert_same(last, expected)

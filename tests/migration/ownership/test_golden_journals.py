"""Journals that version 0.1.0 wrote while migrations ran are read by this version.

``journals/`` has them as they stood beside the images, for a migration without settings and for one
with many. A source that was in doubt when it was upgraded finds its destination by them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from flexmigrate.control.grammar import parse_mirror
from flexmigrate.errors import CommandError
from flexmigrate.migration.ownership.journal import Record, decode, encode, load_copy
from flexmigrate.migration.request import (
    Action,
    ConvergeConfig,
    HandoverRule,
    MirrorRequest,
    VerifyRule,
)
from flexmigrate.net.address import Address
from flexmigrate.wire.handover import State
from support.images import MIB, blank_image
from support.processes import flexmigrate

JOURNALS = Path(__file__).parent / "journals"
DESTINATION = Address("127.0.0.1", 24002)

REQUESTS = {
    "source-usual": MirrorRequest(DESTINATION, max_bps=65536, handover=HandoverRule.SESSION),
    "source-many-settings": MirrorRequest(
        DESTINATION,
        action=Action.UNLINK,
        max_bps=65536,
        connections=2,
        drop_cache=True,
        handover=HandoverRule.SESSION,
        allow_old_peers=True,
        verify=VerifyRule.DIRTY,
        report="/var/lib/report.json",
        converge=ConvergeConfig("force", max_downtime=0.05, max_park=2.0, timeout=30.0),
    ),
}


def read(name: str) -> Record:
    return load_copy(str(JOURNALS / f"{name}.json"))


@pytest.mark.parametrize("name", REQUESTS)
def test_a_source_s(name: str) -> None:
    record = read(name)
    assert record.state is State.SENDING
    assert (record.attempt, record.size) == (1, 4 * MIB)
    assert record.unlink is (REQUESTS[name].action is Action.UNLINK)
    assert (record.address, record.peer) == ("127.0.0.1:24002", "vm:/srv/copy.img")
    assert len(record.secret) == 32
    assert any(record.secret)
    assert parse_mirror(list(record.mirror[1:])) == REQUESTS[name]


def test_a_destination_s() -> None:
    record, source = read("destination"), read("source-usual")
    assert record.state is State.RECEIVING
    assert record.session == source.session
    assert record.awaited_at == ("127.0.0.1:24002",)
    assert record.mirror == ()
    assert any(record.commit_digest)
    assert any(record.retract_digest)
    assert not record.read_only


@pytest.mark.parametrize("name", [*REQUESTS, "destination"])
def test_what_is_written_again_is_the_same_to_every_version(name: str) -> None:
    assert decode(encode(read(name))) == read(name)
    assert encode(read(name)) == (JOURNALS / f"{name}.json").read_bytes()


def test_a_setting_that_is_not_known_is_named() -> None:
    lines = [*read("source-usual").mirror, "compress=zstd"]
    with pytest.raises(CommandError, match="compress"):
        parse_mirror(lines[1:])


def test_a_server_refuses_a_journal_with_such_a_setting(tmp_path: Path) -> None:
    image = blank_image(tmp_path / "disk", 4 * MIB)
    usual = read("source-usual")
    later = replace(usual, state=State.COMMITTED, file="", mirror=(*usual.mirror, "compress=zstd"))
    journal = Path(f"{image}.handover")
    journal.write_bytes(encode(later))
    journal.chmod(0o600)
    done = flexmigrate("serve", "--addr", "127.0.0.1", "--port", "0", "--file", str(image))
    said = done.stderr.decode()
    assert done.returncode == 1
    assert "its journal doesn't say how its destination is reached" in said
    assert "compress" in said
    assert "Traceback" not in said
    assert journal.read_bytes() == encode(later)

"""The judge of a storm, judged: it finds what must not be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from storm.judging import Ends, Violation
from storm.plans import Plan, plan
from storm.weather import Storm
from support.images import BLOCK, random_image
from support.processes import Children, flexmigrate
from support.record import Record, content
from support.servers import Servers, servers_in

WRITTEN, ELSEWHERE = 5, 9  # blocks


@pytest.fixture
def servers(tmp_path: Path, children: Children) -> Iterator[Servers]:
    """An image with one write in it, which has been migrated."""
    with servers_in(tmp_path, children) as pair:
        source, destination = pair.serve(), pair.listen()
        assert pair.client(source).write(WRITTEN * BLOCK, content(1, 1, WRITTEN)) == 0
        pair.start_mirroring("--handover", "session")
        pair.complete(source, destination)
        yield pair


@pytest.fixture
def record(servers: Servers) -> Record:
    """What the client knows that wrote it."""
    original = random_image(servers.folder / "original", servers.image.stat().st_size)
    record = Record(1, original)
    record.sent(1, WRITTEN)
    record.done(1, WRITTEN)
    return record


def judge(servers: Servers, record: Record, children: Children) -> Path:
    return Ends(servers.image, servers.copy).judge(record, children, plain=False)


def test_it_is_content_with_what_is_right(
    servers: Servers, record: Record, children: Children
) -> None:
    assert judge(servers, record, children) == servers.copy


@pytest.mark.parametrize("block", [WRITTEN, ELSEWHERE])
def test_a_broken_byte_is_found(
    block: int, servers: Servers, record: Record, children: Children
) -> None:
    with servers.copy.open("r+b") as file:
        file.seek(block * BLOCK + 4000)
        byte = file.read(1)[0]
        file.seek(block * BLOCK + 4000)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(Violation, match=f"block {block}, "):
        judge(servers, record, children)


def test_a_lost_write_is_found(servers: Servers, record: Record, children: Children) -> None:
    record.sent(2, ELSEWHERE)
    record.done(2, ELSEWHERE)
    with pytest.raises(Violation, match=f"block {ELSEWHERE}, "):
        judge(servers, record, children)


def test_two_owners_are_found(servers: Servers, record: Record, children: Children) -> None:
    assert flexmigrate("take", "--yes", str(servers.image)).returncode == 0
    with pytest.raises(Violation, match="whose answers"):
        judge(servers, record, children)


def test_no_owner_is_found(servers: Servers, record: Record, children: Children) -> None:
    assert flexmigrate("release", "--yes", str(servers.copy)).returncode == 0
    with pytest.raises(Violation, match="whose answers"):
        judge(servers, record, children)


def test_a_canonical_image_that_is_gone_is_missed(
    servers: Servers, record: Record, children: Children
) -> None:
    servers.copy.unlink()
    with pytest.raises(Violation, match="there is no such file"):
        judge(servers, record, children)


def test_another_image_that_is_served_is_found(
    servers: Servers, record: Record, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = Ends(servers.image, servers.copy)
    monkeypatch.setattr(ends, "canonical", lambda plain: servers.image)
    with pytest.raises(Violation, match=r"and .*copy is served"):
        ends.judge(record, children, plain=False)


def test_a_client_finds_two_servers(tmp_path: Path, children: Children) -> None:
    with Storm(calm(), tmp_path, children) as storm:
        for end in (storm.source, storm.destination):
            end.role = "serve"
            end.start().listening()
        with pytest.raises(Violation, match="both ends serve"):
            storm.dial()


def calm() -> Plan:
    """Return a plan that needs nothing of the machine."""
    return next(each for each in map(plan, range(100)) if not each.full and not each.bad)


def test_a_seed_gives_the_same_plan() -> None:
    assert [str(plan(seed)) for seed in range(50)] == [str(plan(seed)) for seed in range(50)]

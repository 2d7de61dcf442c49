"""Where a record can't be written, because the disk is full or can't be written to: both operators
read which file it is about and why, once, and nobody reads a traceback.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest

from flexmigrate.log.failures import Repeated
from support.images import MIB, blank_image
from support.operator import ask, wait_until
from support.privileges import needs_root, small_filesystem
from support.processes import Child, flexmigrate
from support.servers import SIZE, SLOWLY, Servers, stop

NO_ROOM = "No space left on device"


def fill(folder: Path) -> Path:
    """Let nothing more be written there."""
    ballast = folder / "ballast"
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return ballast


def assert_no_traceback(*processes: Child) -> None:
    for each in processes:
        assert not any("Traceback" in line for line in each.lines), each.story()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of its own, with room for an image and a little."""
    with small_filesystem(tmp_path / "small", SIZE + MIB) as there:
        yield there.folder


@needs_root
class TestTheDestination:
    def test_the_source_is_told_which_file_and_why_and_each_says_it_once(
        self, servers: Servers, small: Path
    ) -> None:
        servers.copy = small / "copy"
        servers.copy.write_bytes(bytes(SIZE))
        source, destination = servers.serve(), servers.listen()
        ballast = fill(small)
        servers.start_mirroring()
        told = f"what is sent can't be recorded: {servers.copy}.handover: {NO_ROOM}"
        source.wait_for(f"attempt 1 failed: at the destination, .*{told}")
        destination.wait_for(f"cannot keep to what was negotiated: {told}")
        source.wait_for("attempt 5 failed as the 3 before")
        in_full = [line for line in source.lines if NO_ROOM in line]
        assert len(in_full) == 2, source.story()  # as it was sent, and from then on refused
        destination.wait_for("warn .* is refused: what is sent can't be recorded")
        refusals = [line for line in destination.lines if " is refused: " in line]
        assert len(refusals) == 1, destination.story()
        found = wait_until(servers.source_sock, is_mirroring="true")
        assert NO_ROOM in urllib.parse.unquote(found["migration_error"])
        ballast.unlink()
        source.expect_exit(0)
        destination.expect_exit(0)
        assert_no_traceback(source, destination)

    def test_it_is_told_when_it_was_to_prepare(self, servers: Servers, small: Path) -> None:
        servers.copy = small / "copy"
        servers.copy.write_bytes(bytes(SIZE))
        source, destination = servers.serve(), servers.listen()
        servers.start_mirroring_slowly()
        ballast = fill(small)
        assert ask(servers.source_sock, "mirror_max_bps", "0") == (0, "updated")
        source.wait_for(f"did not prepare: {servers.copy}.handover: {NO_ROOM}")
        destination.wait_for(f"not prepared: {servers.copy}.handover: {NO_ROOM}")
        ballast.unlink()
        source.expect_exit(0)
        destination.expect_exit(0)
        assert_no_traceback(source, destination)

    def test_it_does_not_start_where_it_could_record_nothing(
        self, servers: Servers, small: Path
    ) -> None:
        copy = small / "copy"
        copy.write_bytes(bytes(SIZE))
        fill(small)
        before = sorted(os.listdir(small))
        server = servers.start("listen", "-l", "127.0.0.1", "-p", "0", "-f", str(copy))
        server.expect_exit(1)
        server.wait_for(f"can't write the journal {copy}.handover: {NO_ROOM}")
        assert sorted(os.listdir(small)) == before
        assert_no_traceback(server)


@needs_root
class TestTheSource:
    def test_the_answer_to_mirror_says_so(self, servers: Servers, small: Path) -> None:
        servers.image = Path(shutil.copy(servers.image, small / "image"))
        source, destination = servers.serve(), servers.listen()
        fill(small)
        answer = servers.mirror()
        assert answer.returncode == 1
        assert f"{servers.image}.handover: {NO_ROOM}".encode() in answer.stderr
        stop(source)
        stop(destination, 1)
        assert_no_traceback(source, destination)

    def test_one_that_can_not_be_committed_goes_on_and_says_why(
        self, servers: Servers, small: Path
    ) -> None:
        servers.image = Path(shutil.copy(servers.image, small / "image"))
        source, destination = servers.serve(), servers.listen()
        servers.start_mirroring(*SLOWLY)
        wait_until(servers.source_sock, migration_phase="copying")
        ballast = fill(small)
        assert ask(servers.source_sock, "mirror_max_bps", "0") == (0, "updated")
        source.wait_for(f"{servers.image}.handover: {NO_ROOM}")
        ballast.unlink()
        source.expect_exit(0)
        destination.expect_exit(0)
        assert_no_traceback(source, destination)

    def test_a_report_that_finds_no_room_is_told_of(self, servers: Servers, small: Path) -> None:
        source, destination = servers.serve(), servers.listen()
        report = small / "report.html"
        servers.start_mirroring(*SLOWLY, "--report", str(report))
        wait_until(servers.source_sock, migration_phase="copying")
        fill(small)
        assert ask(servers.source_sock, "mirror_max_bps", "0") == (0, "updated")
        source.wait_for(f"the report can't be written: {report}: {NO_ROOM}")
        servers.complete(source, destination)
        assert sorted(os.listdir(small)) == ["ballast"]
        assert_no_traceback(source, destination)


@needs_root
def test_what_is_settled_by_hand_is_told_too(small: Path) -> None:
    image = blank_image(small / "image", SIZE)
    fill(small)
    for command in ("take", "release"):
        done = flexmigrate(command, "--yes", str(image))
        assert done.returncode == 1
        assert f"{image}.handover".encode() in done.stderr
        assert NO_ROOM.encode() in done.stderr
        assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("length", [240, 250, 255])
def test_a_name_that_leaves_no_room_for_records(servers: Servers, length: int) -> None:
    servers.copy = blank_image(servers.folder / ("x" * length), SIZE)
    done = servers.start("listen", "-l", "127.0.0.1", "-p", "0", "-f", str(servers.copy))
    if length == 240:
        done.listening()
        return
    done.expect_exit(1)
    done.wait_for("File name too long")
    assert_no_traceback(done)


def test_what_is_repeated_is_counted() -> None:
    said = Repeated()
    seen = [(said.is_news(text), said.is_due, said.times) for text in ("a",) * 9 + ("b", "a")]
    assert [each for each in seen if each[1]] == [
        *((True, True, 1), (False, True, 2), (False, True, 4), (False, True, 8)),
        *((True, True, 1), (True, True, 1)),
    ]

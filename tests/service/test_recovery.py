"""Migrations that are hit in the middle, while somebody writes; afterwards nothing is missing.

The writer is the verifying one: it holds the servers to every answer that they gave, sends again
what was not answered, and its journal is compared with the image that is left in the end.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.images import BLOCK, MIB, allocated, assert_same, filesystem_image, random_image
from support.operator import ask, wait_until
from support.privileges import needs_root, small_filesystem
from support.processes import Child, Children, run
from support.relay import Relay
from support.servers import SIZE, Servers, stop

ACKNOWLEDGED = re.compile(r"acknowledged (\d+)")


class Writer:
    """The verifying writer as a child, with its journal."""

    def __init__(self, servers: Servers, server: Child, original: Path, *more: str) -> None:
        self.journal = servers.folder / "journal"
        self.original = original
        self._children: Children = servers.children
        address, port = server.listening()
        self.process = self._start("write", address, str(port), "--depth", "4", *more)

    def _start(self, command: str, *words: str) -> Child:
        return self._children.python(
            *("-m", "support.verifying_writer", command, *words),
            *("--journal", str(self.journal), "--original", str(self.original)),
        )

    def goes_on(self) -> None:
        """Wait until more has been acknowledged than at the time of the call."""
        said = [int(match[1]) for line in self.process.lines if (match := ACKNOWLEDGED.match(line))]
        self.process.wait_for(rf"acknowledged {(said or [0])[-1] + 250}$")

    def finish(self) -> None:
        """End the writer, which flushes, and is content."""
        self.process.send(signal.SIGTERM)
        self.process.expect_exit(0)
        self.process.wait_for("^verified ")

    def is_satisfied_with(self, image: Path) -> None:
        """Compare a whole image with what was acknowledged."""
        self._start("verify", "--image", str(image)).expect_exit(0)


@pytest.fixture
def original(servers: Servers) -> Path:
    """Return a copy of the source's image, as it is before anybody writes."""
    return Path(shutil.copy(servers.image, servers.folder / "original"))


def free_the_limit(servers: Servers) -> None:
    assert ask(servers.source_sock, "mirror_max_bps", "0") == (0, "updated")


def rebind_to(source: Child) -> tuple[str, str]:
    """Return the option for a destination that is to serve where the source does."""
    return ("--rebind-port", str(source.listening()[1]))


class TestKilled:
    def test_the_source_is_started_again_and_told_again(
        self, servers: Servers, original: Path
    ) -> None:
        source = servers.serve()
        port = source.listening()[1]
        destination = servers.listen(*rebind_to(source))
        writer = Writer(servers, source, original)
        writer.goes_on()
        servers.start_mirroring_slowly("--unlink")
        source.send(signal.SIGKILL)
        source.wait()
        wait_until(servers.destination_sock, listening_phase="waiting", covered_bytes="0")
        assert servers.marker.exists()
        writer.is_satisfied_with(servers.image)  # it has not lost a write by that

        source = servers.serve(port=port)
        writer.goes_on()
        servers.start_mirroring("--unlink")
        source.expect_exit(0)
        writer.goes_on()
        writer.finish()
        stop(destination)
        assert not servers.image.exists()
        assert not servers.marker.exists()
        writer.is_satisfied_with(servers.copy)

    def test_the_destination_is_started_again_and_the_source_finds_it(
        self, servers: Servers, original: Path
    ) -> None:
        source = servers.serve()
        destination = servers.listen(*rebind_to(source))
        port = int(servers.place[3])
        writer = Writer(servers, source, original)
        writer.goes_on()
        servers.start_mirroring_slowly()
        destination.send(signal.SIGKILL)
        destination.wait()
        writer.goes_on()  # clients don't notice
        assert servers.marker.exists()

        destination = servers.listen(*rebind_to(source), port=port)
        free_the_limit(servers)
        source.expect_exit(0)
        writer.goes_on()
        writer.finish()
        stop(destination)
        assert not servers.marker.exists()
        writer.is_satisfied_with(servers.copy)

    def test_the_writer_takes_nobody_with_it(self, servers: Servers, original: Path) -> None:
        source = servers.serve()
        destination = servers.listen()
        writer = Writer(servers, source, original)
        writer.goes_on()
        servers.start_mirroring_slowly()
        writer.process.send(signal.SIGKILL)
        writer.process.wait()
        free_the_limit(servers)
        servers.complete(source, destination)
        writer.is_satisfied_with(servers.copy)


class TestTheConnection:
    def test_is_cut_again_and_again(self, servers: Servers, original: Path) -> None:
        source = servers.serve()
        destination = servers.listen(*rebind_to(source))
        writer = Writer(servers, source, original)
        writer.goes_on()
        with Relay("127.0.0.1", int(servers.place[3])) as relay:
            servers.send_to("127.0.0.1", relay.port)
            servers.start_mirroring()
            for attempt, part in ((1, SIZE // 8), (2, SIZE // 2), (3, SIZE)):
                relay.wait_for_connection(attempt)
                relay.cut_after(part)
                relay.wait_for_connection(attempt + 1)
            source.expect_exit(0)
        writer.goes_on()
        writer.finish()
        stop(destination)
        writer.is_satisfied_with(servers.copy)

    def test_is_cut_when_the_last_answer_is_due(self, servers: Servers, original: Path) -> None:
        """Without a session, the destination has all of it, but the source doesn't know: both say
        so, none lies.
        """
        source = servers.serve()
        destination = servers.listen()
        with Relay("127.0.0.1", int(servers.place[3])) as relay:
            servers.send_to("127.0.0.1", relay.port)
            relay.keep_the_end_secret()
            servers.start_mirroring("--handover", "plain")
            destination.expect_exit(0)
            relay.cut()
            source.expect_exit(1)
            source.wait_for("did not confirm that it took over")
        servers.is_copied()
        assert_same(servers.copy, original)


class TestAFullDisk:
    @needs_root
    def test_at_the_destination_until_there_is_room_again(
        self, servers: Servers, original: Path
    ) -> None:
        source = servers.serve()
        writer = Writer(servers, source, original)
        writer.goes_on()
        with small_filesystem(servers.folder / "small", SIZE // 2) as small:
            servers.copy = small.folder / "copy"
            servers.copy.touch()
            os.truncate(servers.copy, SIZE)
            destination = servers.listen(*rebind_to(source))
            servers.start_mirroring("--unlink")
            seen = wait_until(servers.source_sock, migration_phase="waiting")
            assert "No%20space%20left" in seen["migration_error"]
            writer.goes_on()
            assert (small.folder / "copy.INCOMPLETE").exists()
            assert servers.image.exists()

            small.resize(4 * SIZE)
            source.expect_exit(0)
            writer.goes_on()
            writer.finish()
            stop(destination)
            assert not (small.folder / "copy.INCOMPLETE").exists()
            writer.is_satisfied_with(servers.copy)

    @needs_root
    def test_at_the_source_is_the_clients_trouble_until_it_is_to_be_given_away(
        self, servers: Servers
    ) -> None:
        with small_filesystem(servers.folder / "small", 2 * MIB) as small:
            ballast = random_image(small.folder / "ballast", 64 * 1024)
            servers.image = small.folder / "image"
            servers.image.touch()
            os.truncate(servers.image, SIZE)
            source, destination = servers.serve(), servers.listen()
            client = servers.client(source)
            errors = [client.write(at, b"f" * MIB) for at in range(0, SIZE, MIB)]
            assert errors[0] == 0
            assert errors[-1] == 28  # ENOSPC
            assert client.read(0, MIB) == b"f" * MIB
            # Nobody would know afterwards that it was given away: there is no room for a journal.
            for handover in ("auto", "plain"):
                refused = servers.mirror("--handover", handover)
                assert refused.returncode == 1
                assert b"No space left on device" in refused.stderr
            assert client.read(0, MIB) == b"f" * MIB
            ballast.unlink()
            servers.start_mirroring()
            source.expect_exit(0)
            destination.expect_exit(0)
            assert_same(servers.image, servers.copy)


class Filesystem:
    """An image with a filesystem in it, and a file of that to which the writer keeps.

    :ivar blocks: a file with the numbers of that file's blocks.
    :ivar original: the image before anybody wrote to it, and how much of it was *allocated*.
    """

    def __init__(self, servers: Servers) -> None:
        contents = servers.folder / "contents"
        contents.mkdir()
        for number in range(40):
            random_image(contents / f"file{number}", 50_000 + 5000 * number, seed=number)
        database = random_image(contents / "database", 4 * MIB, seed=100)
        servers.image.unlink()
        filesystem_image(servers.image, 48 * MIB, contents)
        random_image(servers.copy, 48 * MIB, seed=4)
        wanted = set(blocks_of(database))
        found = [n for n, block in enumerate(blocks_of(servers.image)) if block in wanted]
        assert len(found) == len(wanted)
        self.blocks = servers.folder / "blocks"
        self.blocks.write_text("\n".join(map(str, found)))
        self.original = sparse_copy(servers.image, servers.folder / "original")
        self.allocated = allocated(servers.image)


def blocks_of(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield block


def sparse_copy(image: Path, copy: Path) -> Path:
    subprocess.run(["cp", "--sparse=always", str(image), str(copy)], check=True)
    return copy


def assert_clean(image: Path) -> None:
    """Have the filesystem checked, whole."""
    found = shutil.which("e2fsck", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    assert found is not None
    checked = run(found, "-f", "-n", str(image))
    assert checked.returncode == 0, checked


class TestAFilesystemMovesBeneathItsWriter:
    """The main job, whole."""

    def test_to_the_same_address(self, servers: Servers) -> None:
        filesystem = Filesystem(servers)
        source = servers.serve()
        destination = servers.listen(*rebind_to(source))
        writer = Writer(servers, source, filesystem.original, "--blocks", str(filesystem.blocks))
        writer.goes_on()
        servers.start_mirroring("--max-bps", "8M", "--unlink")
        source.expect_exit(0)
        writer.goes_on()
        writer.finish()
        stop(destination)
        assert not servers.image.exists()
        writer.is_satisfied_with(servers.copy)
        assert allocated(servers.copy) <= filesystem.allocated + MIB
        assert_clean(servers.copy)

    def test_and_a_supervisor_starts_the_next_server(self, servers: Servers) -> None:
        filesystem = Filesystem(servers)
        source = servers.serve()
        port = source.listening()[1]
        destination = servers.listen()
        writer = Writer(servers, source, filesystem.original, "--blocks", str(filesystem.blocks))
        writer.goes_on()
        servers.start_mirroring("--max-bps", "8M")
        servers.complete(source, destination)  # nobody serves now: both have to be equal
        servers.image = servers.copy
        server = servers.serve(port=port)
        writer.goes_on()
        writer.finish()
        stop(server)
        writer.is_satisfied_with(servers.copy)
        assert_clean(servers.copy)

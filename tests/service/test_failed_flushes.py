"""A flush that failed isn't forgotten: by a server, by a destination, by the next process."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.faulty_filesystem import FaultyFilesystem, faulty_filesystem
from support.images import MIB, assert_same, random_image
from support.operator import status, wait_until
from support.privileges import FailingDevice, failing_device, needs_root
from support.processes import Child
from support.programs import Programs
from support.raw_nbd import FUA, WRITE
from support.servers import SIZE, Servers, stop

pytestmark = needs_root

EIO = errno.EIO


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have what is kept of devices in a folder of the test's own."""
    monkeypatch.setenv("FLEXMIGRATE_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state" / "devices"


@pytest.fixture
def device(tmp_path: Path) -> Iterator[FailingDevice]:
    """Make a device that has room for half an image."""
    with failing_device(tmp_path / "small", SIZE, room=SIZE // 2) as made:
        yield made


@pytest.fixture
def lazy(tmp_path: Path) -> Iterator[FaultyFilesystem]:
    """Mount a FUSE filesystem with write-back, and a file on it."""
    with faulty_filesystem(tmp_path / "mounted", write_back=True) as mounted:
        (mounted.folder / "disk").touch()
        os.truncate(mounted.folder / "disk", SIZE)
        yield mounted


def serve(servers: Servers, path: Path, *more: str) -> Child:
    """Serve another image than that of the others."""
    servers.image = path
    return servers.serve(*more)


@contextlib.contextmanager
def held_in_memory(path: Path) -> Iterator[None]:
    """Be somebody else who uses a page of a file, while the body runs."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ) as mapped:
        assert mapped[0] is not None
        yield


class TestAServer:
    def test_answers_every_later_flush_of_anybody_with_the_error(
        self, servers: Servers, device: FailingDevice
    ) -> None:
        server = serve(servers, device.path, "--metrics", "127.0.0.1:0")
        one, other = servers.client(server), servers.client(server)
        for at in range(0, SIZE, MIB):
            assert (one if at % (2 * MIB) else other).write(at, b"x" * MIB) == 0
        assert status(servers.source_sock).get("flush_failed") is None
        assert one.flush() == EIO
        device.mend()
        for client in (other, one, servers.client(server)):
            assert client.flush() == EIO
            cookie = client.send(WRITE, 0, 512, b"y" * 512, flags=FUA)
            assert (reply := client.reply()).cookie == cookie
            assert reply.error == EIO
            assert client.read(512, 512) == b"x" * 512
            assert client.write(0, b"x" * 512) == 0
        assert "%20EIO:%20" in status(servers.source_sock)["flush_failed"]
        place = server.wait_for(r"metrics at (\S+)")[1]
        with urllib.request.urlopen(f"http://{place}/metrics") as answer:
            assert 'flexmigrate_export_flush_failed{export=""} 1.0' in answer.read().decode()
        said = [line for line in server.lines if "every flush fails" in line]
        assert len(said) == 1
        assert " error " in said[0]
        # What it can't promise isn't a good end.
        stop(server, 1)

    def test_real_clients_are_told(self, servers: Servers, device: FailingDevice) -> None:
        server = serve(servers, device.path)
        host, port = server.listening()
        script = """
import nbd, sys
a, b = nbd.NBD(), nbd.NBD()
for h in (a, b): h.connect_uri(sys.argv[1])
size = a.get_size()
for at in range(0, size, 1 << 20): a.pwrite(b"x" * (1 << 20), at)
def flush(h):
    try: h.flush()
    except nbd.Error as error: return error.errno
print(*(flush(each) for each in (a, b, a, b)))
"""
        assert Programs().python(script, f"nbd://{host}:{port}").split() == ["EIO"] * 4
        stop(server, 1)

    def test_the_next_one_serves_what_the_disk_has(
        self, servers: Servers, lazy: FaultyFilesystem
    ) -> None:
        disk = lazy.folder / "disk"
        server = serve(servers, disk)
        client = servers.client(server)
        assert client.write(0, b"a" * 4096) == 0
        assert client.flush() == 0
        lazy.fail("write", "disk")
        assert client.write(0, b"b" * 4096) == 0
        assert client.flush() == EIO
        lazy.clear()
        client.close()
        stop(server, 1)
        assert disk.read_bytes()[:1] == b"b"
        server = serve(servers, disk)
        server.wait_for("the page cache was emptied")
        client = servers.client(server)
        assert client.read(0, 4096) == b"a" * 4096
        assert client.write(0, b"c" * 4096) == 0
        assert client.flush() == 0
        assert status(servers.source_sock).get("flush_failed") is None
        client.close()
        stop(server)
        server = serve(servers, disk)
        stop(server)
        assert not any("flush" in line for line in server.lines)

    def test_it_is_not_served_where_that_can_not_be(
        self, servers: Servers, lazy: FaultyFilesystem
    ) -> None:
        server = serve(servers, lazy.folder / "disk")
        client = servers.client(server)
        assert client.write(0, b"b" * 4096) == 0
        lazy.fail("fsync", "disk")
        assert client.flush() == EIO
        client.close()
        stop(server, 1)
        # Somebody has mapped it, and uses it.
        with held_in_memory(servers.image):
            words = ("serve", "-l", "127.0.0.1", "-p", "0", "-f", str(servers.image))
            for command in (words, (*words, "--read-only")):
                refused = servers.start(*command)
                refused.expect_exit(1)
                refused.wait_for("can't be emptied: end whatever else uses")
        servers.serve().wait_for("the page cache was emptied")

    def test_what_clients_see_can_be_saved_by_a_migration(
        self, servers: Servers, lazy: FaultyFilesystem
    ) -> None:
        content = random_image(servers.folder / "content", SIZE, seed=9).read_bytes()
        server = serve(servers, lazy.folder / "disk")
        client = servers.client(server)
        lazy.fail("write", "disk")
        for at in range(0, SIZE, MIB):
            assert client.write(at, content[at : at + MIB]) == 0
        assert client.flush() == EIO
        destination = servers.listen()
        servers.start_mirroring("--drop-cache")
        server.expect_exit(0)
        destination.expect_exit(0)
        assert servers.copy.read_bytes() == content
        server.wait_for("a flush of the source's image had failed")


class TestADestination:
    def receive(self, servers: Servers, path: Path, *more: str) -> tuple[Child, Child]:
        """Have something sent to *path*, until the disk fails."""
        source = servers.serve()
        servers.copy = path
        destination = servers.listen()
        servers.start_mirroring(*more)
        wait_until(servers.source_sock, migration_phase="waiting")
        return source, destination

    @pytest.mark.parametrize("verify", ["full", "dirty", "off"])
    def test_a_device_has_all_of_it_in_the_end(
        self, servers: Servers, device: FailingDevice, verify: str
    ) -> None:
        source, destination = self.receive(servers, device.path, "--verify", verify)
        # It has no clients: to migrate away what they see is no advice for it.
        destination.wait_for("error .*a flush failed .*doesn't count.* Mend the disk")
        assert not any("every flush fails" in line for line in destination.lines)
        device.mend()
        source.expect_exit(0)
        destination.expect_exit(0)
        assert_same(servers.image, device.backing)

    @pytest.mark.parametrize("operation", ["write", "fsync"])
    @pytest.mark.parametrize("handover", ["session", "plain"])
    def test_so_has_a_file(
        self, servers: Servers, lazy: FaultyFilesystem, operation: str, handover: str
    ) -> None:
        lazy.fail(operation, "disk")
        source, destination = self.receive(servers, lazy.folder / "disk", "--handover", handover)
        error = status(servers.source_sock)["migration_error"]
        assert "Input/output%20error" in error
        lazy.clear()
        source.expect_exit(0)
        destination.expect_exit(0)
        assert_same(servers.image, lazy.beneath / "disk")

    def test_one_that_is_started_again_remembers(
        self, servers: Servers, lazy: FaultyFilesystem
    ) -> None:
        lazy.fail("write", "disk")
        source, destination = self.receive(servers, lazy.folder / "disk")
        stop(destination, 1)
        lazy.clear()
        place = servers.place
        destination = servers.listen(port=int(place[-1]))
        source.expect_exit(0)
        destination.wait_for("the page cache was emptied")
        destination.expect_exit(0)
        assert_same(servers.image, lazy.beneath / "disk")

    def test_where_the_cache_can_not_be_emptied_all_is_sent_again(
        self, servers: Servers, lazy: FaultyFilesystem
    ) -> None:
        lazy.fail("write", "disk")
        source, destination = self.receive(servers, lazy.folder / "disk")
        with held_in_memory(lazy.folder / "disk"):
            destination.wait_for("everything has to be sent again")
            lazy.clear()
            source.expect_exit(0)
            destination.expect_exit(0)
        assert_same(servers.image, lazy.beneath / "disk")

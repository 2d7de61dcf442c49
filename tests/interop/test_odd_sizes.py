"""Images whose size is no multiple of anything: every byte is served, and migrated, or the
operator is told that it can't be.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from support.images import BLOCK, MIB, assert_same, blank_image, random_image, sparse_image
from support.operator import status
from support.processes import Child
from support.programs import Programs, wait_until_it_listens
from support.raw_nbd import TRIM, WRITE_ZEROES
from support.servers import Servers, stop

SIZES = (1, 511, 1000, MIB + 700)
ODD = 2 * MIB + 1000
TAIL = ODD % 512


def give(servers: Servers, size: int) -> None:
    """Let both ends have *size* bytes."""
    random_image(servers.image, size)
    servers.copy.unlink()
    blank_image(servers.copy, size)


def uri_of(server: Child) -> str:
    host, port = server.listening()
    return f"nbd://{host}:{port}"


class TestServing:
    @pytest.mark.parametrize("size", SIZES)
    def test_all_of_it_is_there(self, servers: Servers, size: int) -> None:
        give(servers, size)
        content = servers.image.read_bytes()
        client = servers.client(servers.serve())
        assert client.size == size
        assert status(servers.source_sock)["size"] == str(size)
        assert client.read(0, size) == content
        assert client.read(size - 1, 1) == content[-1:]

    def test_requests_end_at_the_last_byte_and_not_behind_it(self, servers: Servers) -> None:
        give(servers, ODD)
        server = servers.serve()
        client = servers.client(server)
        assert client.write(ODD - 3, b"end") == 0
        assert client.read(ODD - TAIL, TAIL)[-3:] == b"end"
        assert client.write(ODD - 3, b"beyond") == errno.ENOSPC
        assert client.call(WRITE_ZEROES, ODD - 2, 2) == 0
        assert client.read(ODD - 3, 3) == b"e\0\0"
        assert client.call(WRITE_ZEROES, ODD - 2, 3) == errno.ENOSPC
        assert client.call(TRIM, ODD - 1, 1) == 0
        assert client.call(TRIM, ODD - 1, 2) == errno.EINVAL
        stop(server)
        assert servers.image.stat().st_size == ODD

    def test_oldstyle_has_whole_sectors_only_and_the_operator_is_told(
        self, servers: Servers
    ) -> None:
        give(servers, ODD)
        server = servers.serve("--oldstyle")
        client = servers.client(server)
        assert client.size == ODD - TAIL
        assert client.read(0, client.size) == servers.image.read_bytes()[:-TAIL]
        server.wait_for(rf"warn .*its last {TAIL} bytes are not accessible")


class TestOthers:
    def test_nbdinfo(self, programs: Programs, servers: Servers) -> None:
        servers.image.unlink()
        sparse_image(servers.image, ODD, iter([(0, BLOCK)]))
        uri = uri_of(servers.serve())
        assert int(programs.run("nbdinfo", "--size", uri)) == ODD
        *_, last = programs.run("nbdinfo", "--map", uri).splitlines()
        offset, length, kind = last.split()[:3]
        assert (int(offset) + int(length), kind) == (ODD, "3")

    def test_nbdcopy_both_ways(self, programs: Programs, servers: Servers, tmp_path: Path) -> None:
        give(servers, ODD)
        uri = uri_of(servers.serve())
        programs.run("nbdcopy", uri, str(tmp_path / "from"))
        assert_same(servers.image, tmp_path / "from")
        other = random_image(tmp_path / "to", ODD, seed=9)
        programs.run("nbdcopy", str(other), uri)
        assert_same(servers.image, other)

    def test_qemu_img(self, programs: Programs, servers: Servers, tmp_path: Path) -> None:
        """It counts in sectors, and takes zeroes for what isn't there."""
        give(servers, ODD)
        uri = uri_of(servers.serve())
        programs.run("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, str(tmp_path / "from"))
        copied = (tmp_path / "from").read_bytes()
        assert copied[:ODD] == servers.image.read_bytes()
        assert not any(copied[ODD:])

    def test_fio(self, programs: Programs, servers: Servers) -> None:
        give(servers, ODD)
        server = servers.serve()
        words = ("--ioengine=nbd", f"--uri={uri_of(server)}", "--rw=randrw", "--bs=1-8192")
        more = ("--bs_unaligned=1", f"--size={ODD}", "--io_size=4M", "--verify=crc32c")
        no_file = "--verify_state_save=0"  # else it writes one where the tests are started
        programs.run("fio", "--name=odd", *words, *more, "--iodepth=8", "--norandommap=0", no_file)
        stop(server)
        assert servers.image.stat().st_size == ODD


class TestMigrating:
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("handover", ["session", "plain"])
    def test_every_byte_arrives(self, servers: Servers, size: int, handover: str) -> None:
        give(servers, size)
        source, destination = servers.serve(), servers.listen()
        servers.start_mirroring("--handover", handover, "--unlink")
        source.expect_exit(0)
        destination.expect_exit(0)
        assert not servers.image.exists()
        expected = random_image(servers.folder / "expected", size)
        assert_same(expected, servers.copy)

    def test_a_hole_at_the_end(self, servers: Servers) -> None:
        servers.image.unlink()
        sparse_image(servers.image, ODD, iter([(BLOCK, BLOCK)]))
        random_image(servers.copy, ODD, seed=3)
        source, destination = servers.serve(), servers.listen()
        client = servers.client(source)
        assert client.write(ODD - TAIL - 1, b"x") == 0
        servers.start_mirroring()
        servers.complete(source, destination)

    def test_to_a_server_of_exactly_that_size(
        self, programs: Programs, servers: Servers, port: int
    ) -> None:
        give(servers, ODD)
        source = servers.serve()
        path = programs.path("nbdkit")
        place = ("-f", "-i", "127.0.0.1", "-p", str(port))
        nbdkit = servers.children.start(path, *place, "file", str(servers.copy))
        wait_until_it_listens(nbdkit, port)
        servers.send_to("127.0.0.1", port)
        servers.start_mirroring("--handover", "plain")
        source.expect_exit(0)
        assert_same(servers.image, servers.copy)

    def test_from_a_client_that_copies(self, programs: Programs, servers: Servers) -> None:
        give(servers, ODD)
        destination = servers.listen()
        programs.run("nbdcopy", str(servers.image), uri_of(destination))
        destination.expect_exit(0)
        assert_same(servers.image, servers.copy)

    def test_a_server_that_counts_in_sectors_is_refused(
        self, programs: Programs, servers: Servers, port: int
    ) -> None:
        give(servers, ODD)
        source = servers.serve()
        path = programs.path("qemu-nbd")
        place = ("-t", "-f", "raw", "-b", "127.0.0.1", "-p", str(port))
        qemu = servers.children.start(path, *place, str(servers.copy))
        wait_until_it_listens(qemu, port)
        servers.send_to("127.0.0.1", port)
        assert servers.mirror("--handover", "plain").returncode == 1
        source.wait_for("it counts in sectors of 512 bytes, which the image doesn't fill")

    def test_an_older_size_of_ours_is_refused(self, servers: Servers) -> None:
        give(servers, ODD)
        os.truncate(servers.copy, ODD - TAIL)
        source = servers.serve()
        servers.listen()
        assert servers.mirror().returncode == 1
        source.wait_for(f"the destination has {ODD - TAIL} bytes, the image {ODD}")

    def test_to_an_oldstyle_server_of_ours(self, servers: Servers) -> None:
        give(servers, ODD)
        destination = servers.start(
            *("listen", "--addr", "127.0.0.1", "--port", "0", "--file", str(servers.copy)),
            "--oldstyle",
        )
        destination.expect_exit(1)
        assert f"its last {TAIL} bytes could not be received" in destination.story()

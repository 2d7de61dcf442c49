"""Clients that others have written, against ``serve``: each does what it is for."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from support.images import BLOCK, MIB, assert_same, random_image, sparse_image
from support.programs import Programs, Served
from support.servers import SIZE, Servers, stop

EXTENTS = [(0, MIB), (2 * MIB, 64 * 1024), (SIZE - BLOCK, BLOCK)]


def make_sparse(image: Path) -> None:
    image.unlink()
    sparse_image(image, SIZE, iter(EXTENTS))


class TestQemu:
    def test_info(self, programs: Programs, served: Served) -> None:
        said = json.loads(
            programs.run("qemu-img", "info", "--output=json", "-f", "raw", served.uri)
        )
        assert said["virtual-size"] == SIZE

    def test_convert_from_us(self, programs: Programs, served: Served, tmp_path: Path) -> None:
        copy = tmp_path / "converted"
        programs.run("qemu-img", "convert", "-f", "raw", "-O", "raw", served.uri, str(copy))
        assert_same(served.image, copy)

    def test_convert_to_us(self, programs: Programs, served: Served, tmp_path: Path) -> None:
        other = random_image(tmp_path / "other", SIZE, seed=7)
        programs.run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", str(other), served.uri)
        assert_same(served.image, other)

    def test_compare(self, programs: Programs, served: Served, tmp_path: Path) -> None:
        words = ("compare", "-f", "raw", "-F", "raw", served.uri)
        # Another file, since qemu-img would lock the image itself.
        other = random_image(tmp_path / "other", SIZE)
        assert "identical" in programs.run("qemu-img", *words, str(other))
        with other.open("r+b") as file:
            file.seek(SIZE - 1)
            (last,) = file.read(1)
            file.seek(SIZE - 1)
            file.write(bytes([last ^ 1]))
        programs.run("qemu-img", *words, str(other), status=1)

    def test_map(self, programs: Programs, servers: Servers) -> None:
        make_sparse(servers.image)
        served = Served(servers, "tcp")
        said = json.loads(programs.run("qemu-img", "map", "--output=json", "-f", "raw", served.uri))
        data = [(each["start"], each["length"]) for each in said if each["data"]]
        assert data == EXTENTS
        assert all(each["zero"] for each in said if not each["data"])

    def test_io(self, programs: Programs, served: Served) -> None:
        before = served.image.read_bytes()
        commands = (
            *("write -P 0x11 0 1M", "read -P 0x11 0 1M", "write -z 64k 128k", "read -P 0 64k 128k"),
            *("discard 512k 256k", "write -P 0x22 1000 24", "read -P 0x22 1000 24"),
            *("aio_write -P 0x33 2M 1M", "aio_flush", "read -P 0x33 2M 1M", "flush"),
        )
        said = programs.run(
            "qemu-io",
            "-f",
            "raw",
            *(word for each in commands for word in ("-c", each)),
            served.uri,
        )
        assert "error" not in said.lower()
        assert "failed" not in said.lower()
        expected = bytearray(before)
        expected[:MIB] = b"\x11" * MIB
        expected[1000:1024] = b"\x22" * 24
        expected[64 * 1024 : 192 * 1024] = bytes(128 * 1024)
        expected[2 * MIB : 3 * MIB] = b"\x33" * MIB
        found = bytearray(served.image.read_bytes())
        # What was discarded may be anything.
        found[512 * 1024 : 768 * 1024] = expected[512 * 1024 : 768 * 1024]
        assert found == expected

    def test_io_beyond_the_end(self, programs: Programs, served: Served) -> None:
        said = programs.run(
            *("qemu-io", "-f", "raw", "-c", f"read {SIZE - 512} 1024", served.uri), status=None
        )
        assert "read" not in said or "error" in said.lower() or "failed" in said.lower()

    def test_a_list_of_exports(self, programs: Programs, newstyle: Served) -> None:
        place = ("-k", newstyle.host) if not newstyle.port else ("-p", str(newstyle.port))
        said = programs.run("qemu-nbd", "--list", *place)
        assert "exports available: 1" in said
        assert f"size:  {SIZE}" in said
        assert "base:allocation" in said

    def test_a_named_export(self, programs: Programs, servers: Servers) -> None:
        server = servers.serve("--export", "vm7")
        port = server.listening()[1]
        for name in ("/vm7", ""):
            programs.run("qemu-img", "info", "-f", "raw", f"nbd://127.0.0.1:{port}{name}")
        programs.run("qemu-img", "info", "-f", "raw", f"nbd://127.0.0.1:{port}/x", status=1)
        assert "export: 'vm7'" in programs.run("qemu-nbd", "--list", "-p", str(port))
        stop(server)


class TestLibnbd:
    def test_info(self, programs: Programs, served: Served) -> None:
        said = json.loads(programs.run("nbdinfo", "--json", served.uri))
        (export,) = said["exports"]
        assert export["export-size"] == SIZE
        assert not export["is_read_only"]
        for ability in ("flush", "fua", "trim", "zero"):
            assert export[f"can_{ability}"], ability
        assert said["protocol"] == (
            "oldstyle" if "oldstyle" in served.process.argv[-1] else "newstyle-fixed"
        )

    def test_info_about_a_read_only_export(self, programs: Programs, servers: Servers) -> None:
        port = servers.serve("--read-only").listening()[1]
        programs.run("nbdinfo", "--is", "readonly", f"nbd://127.0.0.1:{port}")
        programs.run("nbdinfo", "--can", "trim", f"nbd://127.0.0.1:{port}", status=2)

    def test_a_list_of_exports(self, programs: Programs, newstyle: Served) -> None:
        said = json.loads(programs.run("nbdinfo", "--list", "--json", newstyle.uri))
        assert [(each["export-name"], each["export-size"]) for each in said["exports"]] == [
            ("", SIZE)
        ]

    def test_map(self, programs: Programs, servers: Servers) -> None:
        make_sparse(servers.image)
        served = Served(servers, "unix")
        said = json.loads(programs.run("nbdinfo", "--map", "--json", served.uri))
        assert [(each["offset"], each["length"]) for each in said if not each["type"]] == EXTENTS
        assert {each["type"] for each in said} == {0, 3}  # data; hole that reads as zeroes

    def test_copy_from_us(self, programs: Programs, served: Served, tmp_path: Path) -> None:
        copy = tmp_path / "copied"
        programs.run("nbdcopy", served.uri, str(copy))
        assert_same(served.image, copy)

    def test_copy_to_us(self, programs: Programs, served: Served, tmp_path: Path) -> None:
        other = sparse_image(tmp_path / "other", SIZE, iter(EXTENTS), seed=8)
        programs.run("nbdcopy", "--flush", str(other), served.uri)
        assert_same(served.image, other)

    def test_copy_over_many_connections(
        self, programs: Programs, newstyle: Served, tmp_path: Path
    ) -> None:
        other = random_image(tmp_path / "other", SIZE, seed=9)
        programs.run("nbdcopy", "--connections=8", "--requests=64", str(other), newstyle.uri)
        copy = tmp_path / "copied"
        programs.run("nbdcopy", "--connections=8", newstyle.uri, str(copy))
        assert_same(other, copy)

    def test_by_hand(self, programs: Programs, served: Served) -> None:
        said = programs.python(SHELL, served.uri)
        assert said == "well\n"
        assert served.image.read_bytes()[:BLOCK] == b"\x5a" * BLOCK

    def test_what_is_negotiated(self, programs: Programs, newstyle: Served) -> None:
        assert programs.python(NEGOTIATED, newstyle.uri) == "well\n"


# All that libnbd can ask for, synchronously and many at a time; our mistakes would be its errors.
SHELL = f"""
import errno, sys, nbd
h = nbd.NBD()
h.connect_uri(sys.argv[1])
assert h.get_size() == {SIZE}
h.pwrite(b"\\x5a" * 4096, 0, nbd.CMD_FLAG_FUA)
assert h.pread(4096, 0) == b"\\x5a" * 4096
h.zero(4096, 8192)
assert h.pread(4096, 8192) == bytes(4096)
h.trim(4096, 16384, nbd.CMD_FLAG_FUA)
h.flush()
cookies, buffers = [], []
for k in range(64):
    buffers.append(nbd.Buffer(16384))
    cookies.append(h.aio_pread(buffers[-1], k * 16384))
while cookies:
    h.poll(-1)
    cookies = [c for c in cookies if not h.aio_command_completed(c)]
assert buffers[0].to_bytearray()[:4096] == b"\\x5a" * 4096
h.set_strict_mode(0)
for call, number in (
    (lambda: h.pread(512, {SIZE}), "EINVAL"),
    (lambda: h.pwrite(bytes(512), {SIZE}), "ENOSPC"),
    (lambda: h.pread(512, 2**63), "EINVAL"),
    (lambda: h.zero(4096, {SIZE} - 512), "ENOSPC"),
):
    try:
        call()
    except nbd.Error as error:
        assert error.errno == number, (error, number)
    else:
        raise SystemExit("no error where there was to be " + number)
assert len(h.pread(512, 0)) == 512
h.shutdown()
print("well")
"""

NEGOTIATED = """
import sys, nbd
h = nbd.NBD()
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri(sys.argv[1])
assert h.get_structured_replies_negotiated()
assert h.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
assert h.can_multi_conn() and h.can_df() and h.can_cache() and h.can_fast_zero()
assert h.get_block_size(nbd.SIZE_MINIMUM) == 1
assert h.get_block_size(nbd.SIZE_MAXIMUM) >= 2**25
extents = []
h.block_status(h.get_size(), 0, lambda name, at, entries, error: extents.extend(entries))
assert sum(extents[::2]) == h.get_size()
chunks = []
h.pread_structured(2**20, 0, lambda data, at, kind, error: chunks.append((at, len(data))))
assert sum(length for _, length in chunks) == 2**20
h.cache(2**20, 0)
h.shutdown()
print("well")
"""


class TestNbdClient:
    def test_a_list_of_exports(self, programs: Programs, servers: Servers) -> None:
        port = servers.serve("--export", "vm7").listening()[1]
        assert "vm7" in programs.run("nbd-client", "-l", "127.0.0.1", str(port)).splitlines()[-1]


class TestFio:
    def test_writes_and_verifies(self, programs: Programs, served: Served, tmp_path: Path) -> None:
        if "nbd" not in programs.run("fio", "--enghelp").split():
            pytest.skip("this fio has no nbd engine")
        done = subprocess.run(
            [
                *(programs.path("fio"), "--name=verify", "--ioengine=nbd", f"--uri={served.uri}"),
                *("--rw=randwrite", "--bsrange=512-64k", "--blockalign=512", f"--size={SIZE}"),
                *("--iodepth=16", "--verify=crc32c", "--verify_fatal=1", "--output-format=json"),
                *("--end_fsync=1", "--output=report"),
            ],
            capture_output=True,
            cwd=tmp_path,  # where it keeps its state
            timeout=60,
        )
        assert done.returncode == 0, done
        (job,) = json.loads((tmp_path / "report").read_text())["jobs"]
        assert job["error"] == 0
        assert job["write"]["total_ios"] > 100
        assert job["read"]["io_bytes"] > 0

"""The locks on an image: we see QEMU and its tools, and they see us."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from flexmigrate.errors import ImageError
from flexmigrate.image import locks
from flexmigrate.image.file import Image
from flexmigrate.image.opening import try_opening
from support.images import MIB, random_image
from support.privileges import block_device, needs_root
from support.processes import Child, Children, run

needs_qemu = pytest.mark.skipif(
    shutil.which("qemu-nbd") is None or shutil.which("qemu-io") is None,
    reason="there is no qemu-utils",
)


@pytest.fixture(params=["file", "device"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """An image in a file, and on a device."""
    path = random_image(tmp_path / "disk.img", MIB)
    if request.param == "file":
        yield path
        return
    if os.geteuid():
        pytest.skip("only root can make a device")
    with block_device(path) as device:
        yield device


@contextlib.contextmanager
def opened(image: Path, *, read_only: bool = False) -> Iterator[Image]:
    found = Image.open(str(image), read_only=read_only)
    try:
        yield found
    finally:
        found.close()


def qemu_nbd(children: Children, image: Path, tmp_path: Path, *more: str) -> Child:
    """Start qemu-nbd on the image, and wait until it has it."""
    socket, pid = tmp_path / "qemu.sock", tmp_path / "qemu.pid"
    child = children.start(
        *("qemu-nbd", "-f", "raw", "-k", str(socket), "--pid-file", str(pid), "-t", *more),
        str(image),
    )
    while not pid.exists():  # it makes it once it listens
        assert child.running, child.story()
        os.sched_yield()
    return child


def qemu_io(image: Path, *more: str) -> subprocess.CompletedProcess[bytes]:
    return run("qemu-io", "-f", "raw", *more, "-c", "read 0 512", str(image))


@needs_qemu
class TestTheyAreSeen:
    def test_by_who_would_write(self, image: Path, tmp_path: Path, children: Children) -> None:
        server = qemu_nbd(children, image, tmp_path)
        for read_only in (False, True):
            with pytest.raises(ImageError, match="in use by QEMU, or by another program") as error:
                Image.open(str(image), read_only=read_only)
            assert f"process {server.pid}, qemu-nbd" in str(error.value)
            with pytest.raises(ImageError, match="in use by QEMU"):
                try_opening(str(image), read_only=read_only)
        server.end()
        with opened(image):
            pass

    def test_but_not_by_readers_among_themselves(
        self, image: Path, tmp_path: Path, children: Children
    ) -> None:
        qemu_nbd(children, image, tmp_path, "--read-only")
        with opened(image, read_only=True), opened(image, read_only=True):
            try_opening(str(image), read_only=True)


@needs_qemu
class TestTheySeeUs:
    def test_who_would_write(self, image: Path) -> None:
        with opened(image):
            found = qemu_io(image)
            assert found.returncode, found
            assert b"Is another process using the image" in found.stderr + found.stdout
            assert run("qemu-img", "info", "-U", str(image)).returncode == 0
        assert qemu_io(image).returncode == 0

    def test_and_may_read_what_is_served_to_be_read(self, image: Path) -> None:
        with opened(image, read_only=True):
            assert qemu_io(image, "-r").returncode == 0
            assert run("qemu-img", "info", str(image)).returncode == 0
            assert qemu_io(image).returncode


@needs_root
@needs_qemu
def test_a_guest_that_runs(tmp_path: Path, children: Children) -> None:
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("there is no qemu-system-x86_64")
    image, pid = random_image(tmp_path / "disk.img", MIB), tmp_path / "pid"
    guest = children.start(
        *("qemu-system-x86_64", "-display", "none", "-S", "-nodefaults", "-pidfile", str(pid)),
        *("-drive", f"file={image},format=raw,if=virtio"),
    )
    while not pid.exists():
        assert guest.running, guest.story()
        os.sched_yield()
    for words in ("serve", "listen"):
        server = children.flexmigrate(words, "-l", "127.0.0.1", "-p", "0", "-f", str(image))
        server.expect_exit(1)
        server.wait_for(f"in use by QEMU.*process {guest.pid}, qemu-system")
    assert not Path(f"{image}.INCOMPLETE").exists()


def test_two_of_ours(image: Path) -> None:
    with opened(image), pytest.raises(ImageError, match="in use by another server"):
        Image.open(str(image), read_only=True)
    with opened(image, read_only=True), pytest.raises(ImageError, match="by another server"):
        Image.open(str(image))


def test_where_there_are_no_such_locks_it_is_told_and_that_is_all(image: Path) -> None:
    with mock.patch.object(locks, "ofd", side_effect=OSError(95, "Operation not supported")):
        with opened(image) as found:
            assert found.unlocked == "Operation not supported"
        try_opening(str(image), read_only=False)
    with opened(image) as found:
        assert found.unlocked is None


def test_a_lock_on_the_very_bytes(image: Path) -> None:
    with open(image, "r+b") as other:
        no_proc = mock.patch.object(locks, "holders", side_effect=FileNotFoundError)
        for byte, kinds in ((101, (False, True)), (103, (False, True)), (201, (False,))):
            asked = struct.pack("hhqqi0q", fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0)
            fcntl.fcntl(other, fcntl.F_OFD_SETLK, asked)
            for read_only in (False, True):
                if read_only in kinds:
                    with pytest.raises(ImageError, match="in use by QEMU"):
                        Image.open(str(image), read_only=read_only)
                    with no_proc, pytest.raises(ImageError, match="in use by QEMU"):
                        Image.open(str(image), read_only=read_only)
                else:
                    with opened(image, read_only=read_only):
                        pass
            free = struct.pack("hhqqi0q", fcntl.F_UNLCK, os.SEEK_SET, byte, 1, 0)
            fcntl.fcntl(other, fcntl.F_OFD_SETLK, free)

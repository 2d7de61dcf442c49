"""Requirements of tests beyond a user's rights; tests are skipped where they aren't met."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can do this")

# In front of a command: root, but bound by the permissions of files as everybody else.
BOUND_BY_PERMISSIONS = (
    ("setpriv", "--bounding-set", "-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
)


def _must(*argv: str) -> str:
    """Run a program that may not be there, or not be allowed; skip the test if so."""
    program = shutil.which(argv[0], path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if program is None:
        pytest.skip(f"there is no {argv[0]}")
    done = subprocess.run([program, *argv[1:]], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{' '.join(argv)}: {done.stderr.strip()}")
    return done.stdout.strip()


class Link:
    """Two network namespaces, ``near`` and ``far``, with a link between them that can be cut.

    :cvar NEAR: address of the one.
    :cvar FAR: address of the other.
    """

    NEAR, FAR = "192.0.2.1", "192.0.2.2"

    def __init__(self) -> None:
        self._names = {
            end: f"fm-{os.getpid()}-{secrets.token_hex(3)}-{end}" for end in ("near", "far")
        }

    def within(self, end: str) -> tuple[str, ...]:
        """Return what stands in front of a command that is to run in ``near`` or ``far``."""
        return ("ip", "netns", "exec", self._names[end])

    def make(self) -> None:
        """Make them; skip the test where that can't be done."""
        near, far = self._names.values()
        for name in (near, far):
            _must("ip", "netns", "add", name)
            _must("ip", "-n", name, "link", "set", "lo", "up")
        _must("ip", "-n", near, "link", "add", "v", "type", "veth", "peer", "v", "netns", far)
        for name, address in ((near, self.NEAR), (far, self.FAR)):
            _must("ip", "-n", name, "address", "add", f"{address}/24", "dev", "v")
            _must("ip", "-n", name, "link", "set", "v", "up")

    def cut(self) -> None:
        """Let nothing pass any more, and tell nobody at the far end."""
        _must("ip", "-n", self._names["near"], "link", "set", "v", "down")

    def restore(self) -> None:
        """Let all pass again."""
        _must("ip", "-n", self._names["near"], "link", "set", "v", "up")

    def remove(self) -> None:
        """Remove what there is of them."""
        for name in self._names.values():
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@contextlib.contextmanager
def linked_namespaces() -> Iterator[Link]:
    """Give two network namespaces, while the body runs."""
    link = Link()
    try:
        link.make()
        yield link
    finally:
        link.remove()


@contextlib.contextmanager
def block_device(image: Path, *, offset: int = 0, size: int = 0) -> Iterator[Path]:
    """Make a block device of *image*, while the body runs.

    :param offset: bytes, where it begins.
    :param size: bytes; 0: up to the end.
    """
    limits = (f"--offset={offset}", *((f"--sizelimit={size}",) if size else ()))
    device = Path(_must("losetup", "--find", "--show", *limits, str(image)))
    # The next device will have the same name, and none of this one's past.
    journal = Path(f"{device}.handover")
    try:
        journal.unlink(missing_ok=True)
        yield device
    finally:
        journal.unlink(missing_ok=True)
        _must("losetup", "--detach", str(device))


class SmallFilesystem:
    """A filesystem of its own, of a size that can be changed.

    :ivar folder: where it is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def resize(self, size: int) -> None:
        """Make it *size* bytes large."""
        _must("mount", "-o", f"remount,size={size}", str(self.folder))


@contextlib.contextmanager
def small_filesystem(folder: Path, size: int) -> Iterator[SmallFilesystem]:
    """Mount a filesystem of *size* bytes on *folder*, while the body runs."""
    folder.mkdir()
    _must("mount", "-t", "tmpfs", "-o", f"size={size}", "flexmigrate-test", str(folder))
    try:
        yield SmallFilesystem(folder)
    finally:
        _must("umount", "--lazy", str(folder))


@contextlib.contextmanager
def mounted(*arguments: str | Path) -> Iterator[Path]:
    """Mount what the *arguments* of mount(8) say, on a new folder, while the body runs."""
    with tempfile.TemporaryDirectory(prefix="flexmigrate-mounted-") as folder:
        _must("mount", *map(str, arguments), folder)
        try:
            yield Path(folder)
        finally:
            _must("umount", "--lazy", folder)


_FILESYSTEM_SIZE = 320 * 1024 * 1024
"""Bytes, as much as XFS wants to have."""


@contextlib.contextmanager
def filesystem_in_a_file(path: Path, kind: str) -> Iterator[Path]:
    """Mount a new filesystem of this *kind*, which is in the file *path*, while the body runs;
    skip where it can't be made.

    Yields the folder.
    """
    with path.open("wb") as file:
        file.truncate(_FILESYSTEM_SIZE)
    _must(f"mkfs.{kind}", "-q", str(path))
    with mounted("-o", "loop", path) as folder:
        yield folder


@dataclass(frozen=True)
class FailingDevice:
    """A block device that can't be written, until there is room for it.

    :ivar path: of the device.
    :ivar backing: the file that has what is really on it.
    """

    path: Path
    backing: Path
    room: SmallFilesystem

    def mend(self) -> None:
        """Let everything fit."""
        self.room.resize(2 * self.backing.stat().st_size + (16 << 20))


@contextlib.contextmanager
def failing_device(folder: Path, size: int, *, room: int) -> Iterator[FailingDevice]:
    """Make a block device of *size* bytes on a sparse file, whose filesystem has *room* for so many
    of them, while the body runs: what is written beyond fails with EIO, once it is written back.
    """
    with small_filesystem(folder, room) as small:
        backing = folder / "backing"
        with backing.open("wb") as file:
            file.truncate(size)
        with block_device(backing) as device:
            yield FailingDevice(device, backing, small)

"""What tests need of the machine beyond a user's rights, and skip where it isn't given."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
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


@contextlib.contextmanager
def block_device(image: Path) -> Iterator[Path]:
    """Make a block device of *image*, while the body runs."""
    device = Path(_must("losetup", "--find", "--show", str(image)))
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

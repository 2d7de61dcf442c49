"""The filesystem that a file is on, and whether what it tells of holes can be believed.

``lseek(SEEK_HOLE)`` is answered by the filesystem, and not all of them know what is in the page
cache and not on the disk yet: FUSE hands the question to its daemon, which has not been given the
dirty pages; ZFS, up to 2.1.13 and 2.2.1, called them a hole for a moment (openzfs issues 11900 and
15526). Whoever takes such a hole for zeroes loses data, and finds both copies equal if that is how
they are compared. So a hole is believed only where the filesystem's code is known, and a probe
agrees (``probe.py``).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flexmigrate.image.kernel import calls as linux

# By the number that statfs(2) tells (linux/magic.h; those of bcachefs and XFS are in their own
# sources): its name, and why it is known to tell dirty pages from holes.
KNOWN: Final = {
    0xEF53: ("ext4", "it knows blocks whose allocation is delayed, and looks into the page cache"),
    0x58465342: ("xfs", "it knows delayed and copied extents, and looks into the page cache"),
    0x9123683E: ("btrfs", "it looks for delayed allocations before it calls something a hole"),
    0x01021994: ("tmpfs", "the page cache is all that there is"),
    0xF2F52010: ("f2fs", "it reserves a block for each page that is written, and looks there"),
    0xCA451A4E: ("bcachefs", "it looks into the page cache before it calls something a hole"),
}

OVERLAYFS: Final = 0x794C7630

# Of those that aren't, the ones that people have: why what they tell is not believed.
DOUBTED: Final = {
    0x65735546: "its daemon doesn't know what the kernel has not written back",
    0x2FC12FC1: "some of its releases take data that was just written for a hole",
    0x6969: "its server decides, on whatever it has",
    0xFF534D42: "its server decides, on whatever it has",
    0xFE534D42: "its server decides, on whatever it has",
    0x01021997: "its server decides, on whatever it has",
    OVERLAYFS: "what lies beneath it decides, and can't be seen",
}

_NOT_KNOWN = "it is not known to tell them from what isn't written yet"


@dataclass(frozen=True, slots=True)
class Filesystem:
    """See the module.

    :ivar name: for people, as mount(8) has it.
    :ivar magic: the number of its kind, as statfs(2) has it; None where that can't be told.
    :ivar is_read_only: nobody on this host can write to it, by whatever mount; so no page of its
        files is dirty.
    """

    name: str
    magic: int | None
    is_read_only: bool = False

    @property
    def is_local(self) -> bool:
        """Whether a write that fits into the page cache is done there, and nobody beyond this
        kernel is asked: where the filesystem is known, and on overlayfs, which mostly lies above
        such a one.
        """
        return self.magic in KNOWN or self.magic == OVERLAYFS

    @property
    def doubt(self) -> str:
        """Why what it tells of holes is not believed; empty where its code is known to be right."""
        if self.magic in KNOWN:
            return ""
        return DOUBTED.get(self.magic, _NOT_KNOWN) if self.magic is not None else _NOT_KNOWN


def filesystem_of(fd: int) -> Filesystem:
    """Return the filesystem of an open file."""
    magic = linux.filesystem_magic(fd)
    name = KNOWN[magic][0] if magic in KNOWN else "an unknown filesystem"
    is_read_only = False
    with contextlib.suppress(OSError, StopIteration, ValueError):
        name, is_read_only = _mounted(_mount_id(fd))
    return Filesystem(name, magic, is_read_only)


def _mount_id(fd: int) -> str:
    """Return by which mount the file was opened (proc(5), fdinfo)."""
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith("mnt_id:"))


def _mounted(mount_id: str) -> tuple[str, bool]:
    """Return a mount's kind of filesystem, and whether that is read-only (proc(5), mountinfo).

    The filesystem's own options stand last. Those of the mount tell only what may be done by it.
    """
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        words = line.decode(errors="replace").split()
        if words[0] == mount_id:
            at = words.index("-")
            return words[at + 1], "ro" in words[at + 3].split(",")
    raise ValueError(f"no mount has the id {mount_id}")

"""The decision how far an image's filesystem is trusted, made when the image is opened."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from flexmigrate.image.extents import AllData, Extents, ToldExtents
from flexmigrate.image.filesystems import Filesystem, filesystem_of
from flexmigrate.image.probe import Probed, probe


@dataclass(frozen=True, slots=True)
class Trust:
    """See the module.

    :ivar filesystem: its name, for people.
    :ivar holes: what it tells of holes is believed. Else all is data: everything is read, sent and
        compared, and zeroes are written although there might be a hole.
    :ivar zeroes: what fallocate(2) says to have zeroed is taken to be zero. Else zeroes are
        written.
    :ivar doubt: why holes aren't believed; empty if they are.
    """

    filesystem: str
    holes: bool
    zeroes: bool
    doubt: str = ""

    def extents(self, fd: int) -> Extents:
        """Return who is asked about holes in the file *fd*."""
        return ToldExtents.of(fd) if self.holes else AllData()


BLOCK_DEVICE = Trust("a block device", False, True, "it has none")
"""A block device is all data. Its zeroes are the kernel's affair: BLKZEROOUT, which fallocate(2)
comes to, zeroes or fails (``blkdev_issue_zeroout``); what a device says of discarded blocks isn't
relied on."""


# open(2): we may not make a file there. The filesystem itself is not full, and not broken.
_NOT_ALLOWED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def trust_in(fd: int, folder: str, *, read_only: bool = False) -> Trust:
    """Decide about the file *fd*, which is in *folder*.

    :param read_only: nothing is going to be written to it by this opening.
    """
    filesystem = filesystem_of(fd)
    if filesystem.is_read_only and not filesystem.doubt:
        # Nothing is dirty, and nothing can be written that a probe would need.
        return Trust(filesystem.name, True, True)
    try:
        found = probe(folder, os.fstat(fd).st_dev)
    except OSError as error:
        if read_only and error.errno in _NOT_ALLOWED and not filesystem.doubt:
            # Its code is known, and sees what others have written, too. A wrong hole couldn't make
            # us leave out a write: there are none.
            return Trust(filesystem.name, True, True)
        return judge(filesystem, os.strerror(error.errno or 0))
    return judge(filesystem, found)


def judge(filesystem: Filesystem, found: Probed | str) -> Trust:
    """Decide by what is known of the filesystem, and by what a probe has found.

    :param found: or why none could be made.
    """
    doubt = filesystem.doubt
    if isinstance(found, str):
        # Where fallocate(2) is known, no probe is needed to believe it.
        zeroes = not doubt
        doubt = doubt or f"no probe could be made beside the image: {found}"
        return Trust(filesystem.name, False, zeroes, doubt)
    if not found.knows_dirty:
        doubt = "a probe shows that it takes what isn't written back yet for a hole"
    return Trust(filesystem.name, not doubt, found.zeroes, doubt)

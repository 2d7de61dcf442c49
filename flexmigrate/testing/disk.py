"""A machine's disk in memory, which keeps in a crash what it has to, and of the rest what it likes.

What processes see is one thing, what is on stable storage another. An fsync brings one file's bytes
to the other side, or one folder's names. When the machine fails, whatever was not brought there is
lost or kept, each piece by itself:

* each sector of each write: a sector is written wholly or not at all, and a write that is no whole
  sector up to any of its bytes;
* each name that came, went, or was given to another file, in any combination: this is less than
  today's filesystems promise, and all that POSIX does.

A process that dies takes nothing with it but its descriptors and locks.

It may also be a disk that can't be written for a while, below a page cache that forgets that, as
Linux's does: see ``SimulatedDisk.forgets`` and ``SimulatedDisk.lose``.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import stat
from collections.abc import Callable, Iterator

from flexmigrate.errors import ImageError
from flexmigrate.image.disk import Disk
from flexmigrate.image.file import Image
from flexmigrate.image.filesystems import Filesystem
from flexmigrate.image.flush_failure import Boot
from flexmigrate.image.kernel import calls as linux
from flexmigrate.image.probe import Probed
from flexmigrate.testing.file import SimulatedFile
from flexmigrate.testing.image import SimulatedImage

_KEEP: dict[str, Callable[[random.Random], bool]] = {
    "nothing": lambda draw: False,
    "everything": lambda draw: True,
    "anything": lambda draw: draw.random() < 0.5,
}

FATES = tuple(_KEEP)
"""What a crash of the machine may keep of what was not synced; with ``anything`` it is drawn."""


class Died(BaseException):
    """The process that made a call is dead: nothing of it goes on.

    No Exception: what answers errors must not answer this.
    """


# A name that came, and what it leads to; or that went.
_Change = tuple[str, "SimulatedFile | None"]


class SimulatedDisk:
    """The disk of one machine, whose processes come and go.

    :ivar before: called before each call that a process makes, with the process's mount, the call's
        name, and the path that it is about. It may raise OSError, and then nothing has happened;
        or let the process die.
    :ivar may_wait: asked whether a call of an image that must not wait for the disk would have to.
    :ivar touched: called with the bytes of an image that are about to be read or written: the
        call's name, where they begin, how many they are, and what is written. Returns whether a
        write is really done: a disk that lies only says so.
    :ivar forgets: whether a call that is to bring bytes to the disk, and fails because ``before``
        raises OSError, forgets them: the page cache goes on to hold them, as if they were on the
        disk, and the next such call says that all is well.
    :ivar filesystem: the one that is on it: the name, and the number that tells what is known.
    :ivar probed: what a probe beside an image finds; a text if none can be made, and why.
    :ivar hides_dirty: the filesystem lies about holes: a block is data only if what was synced of
        it is. An image that is opened on a filesystem that is known, and whose probe agrees, is
        misled by that; whether that may happen is the code's to decide (``image/trust.py``).
    :ivar keeps_cached: whether the page cache can't be emptied, because somebody else uses it, say.
    """

    def __init__(self) -> None:
        self.before: Callable[[Mount, str, str], object] = lambda mount, call, path: None
        self.may_wait: Callable[[str], bool] = lambda call: False
        self.touched: Callable[[str, int, int, bytes], bool] = lambda *which: True
        self.forgets = False
        self.filesystem = Filesystem("ext4", linux.EXT4_MAGIC)
        self.probed: Probed | str = Probed(knows_dirty=True, zeroes=True)
        self.hides_dirty = False
        self.keeps_cached = False
        self._boots = 1
        self._inodes = itertools.count(1)
        self._names: dict[str, SimulatedFile] = {}
        self._stable: dict[str, SimulatedFile] = {}
        # By what was done together: a name that is given away goes as the other comes.
        self._unsynced: list[list[_Change]] = []

    def put(self, path: str, data: bytes) -> None:
        """Let there be a file, as if it had always been there."""
        self._names[path] = self._stable[path] = SimulatedFile(next(self._inodes), data)

    def find(self, path: str) -> bytes | None:
        """Return what is in the file at *path* for whoever looks at it now; None: there is none."""
        file = self._names.get(path)
        return None if file is None else bytes(file.seen)

    def find_after_failure(self, path: str) -> bytes | None:
        """Return what would surely be left in the file at *path* if the machine failed now and kept
        nothing that it need not; None: there might be none.
        """
        file = self._stable.get(path)
        return None if file is None else bytes(file.stable)

    def attribute(self, path: str, name: str, *, after_failure: bool = False) -> bytes | None:
        """Return an extended attribute of the file at *path*, as `find` and `find_after_failure`
        return its bytes; None without one.
        """
        file = (self._stable if after_failure else self._names).get(path)
        if file is None:
            return None
        return (file.stable_attributes if after_failure else file.attributes).get(name)

    @property
    def is_synced(self) -> bool:
        """Whether nothing would be lost if the machine failed."""
        return not self._unsynced and all(file.is_synced for file in self._names.values())

    def move(self, path: str, to: str) -> None:
        """Let somebody else rename a file, durably; what had the name *to* is gone."""
        file = self.named(path)
        for names in (self._names, self._stable):
            names.pop(path, None)
            names[to] = file

    def remove(self, path: str) -> None:
        """Let somebody else remove a file, durably."""
        self.named(path).links = 0
        for names in (self._names, self._stable):
            names.pop(path, None)

    def truncate(self, path: str, size: int) -> None:
        """Let somebody else cut a file, durably."""
        file = self.named(path)
        file.cut(size)
        file.sync()

    @property
    def has_lost(self) -> bool:
        """Whether the page cache holds what nobody will write to the disk: see ``lose``."""
        return any(file.has_lost for file in self._names.values())

    def flip(self, path: str, offset: int) -> None:
        """Let one bit be another in the file at *path*, durably, and tell nobody."""
        file = self.named(path)
        for held in (file.seen, file.stable):
            if offset < len(held):
                held[offset] ^= 1

    def lose(self, path: str, number: int = errno.EIO) -> None:
        """Let the kernel try to write back what isn't durable of the file at *path*, fail, and
        forget it: it is in the page cache only, as if it were on the disk. Whoever has the file
        open is told *number* once, by its next flush or writing back; so is who opens it next, if
        nobody has been told by then.
        """
        self.named(path).lose(number)

    def evict(self, path: str) -> None:
        """Let the page cache give back the memory that holds the file at *path*, as it may at any
        time: what was lost isn't seen any more.
        """
        self.named(path).evict()

    def names(self, *, after_failure: bool = False) -> frozenset[str]:
        """Return all names that are there now; or that would surely be after a failure."""
        return frozenset(self._stable if after_failure else self._names)

    def copy(self) -> SimulatedDisk:
        """Return another disk that is as this one is now, and is used by no process."""
        copies: dict[SimulatedFile, SimulatedFile] = {}

        def copied(names: dict[str, SimulatedFile]) -> dict[str, SimulatedFile]:
            return {path: copy_of(file) for path, file in names.items()}

        def copy_of(file: SimulatedFile) -> SimulatedFile:
            if file not in copies:
                copies[file] = file.copy()
            return copies[file]

        other = SimulatedDisk()
        other.forgets = self.forgets
        other.filesystem, other.probed = self.filesystem, self.probed
        other.hides_dirty = self.hides_dirty
        other.keeps_cached = self.keeps_cached
        other._boots = self._boots
        other._inodes = itertools.count(next(self._inodes))
        other._names = copied(self._names)
        other._stable = copied(self._stable)
        other._unsynced = [
            [(path, file and copy_of(file)) for path, file in together]
            for together in self._unsynced
        ]
        return other

    @property
    def boot(self) -> Boot:
        """Return what tells the time since the machine was started from all before."""
        return Boot(self._boots.to_bytes(16, "big"), 0)

    def mount(self) -> Mount:
        """Return the disk as a new process has it."""
        return Mount(self)

    def fail(self, fate: str, draw: random.Random) -> None:
        """The machine has failed, and its processes are dead: keep what has to be kept, and of the
        rest what *fate*, one of ``FATES``, says.
        """
        keep = _KEEP[fate]
        self._boots += 1
        for together in self._unsynced:
            if keep(draw):
                self._change(self._stable, together)
        self._unsynced = []
        self._names = dict(self._stable)
        for file in set(self._names.values()):
            file.user = None
            file.fail(keep, draw)

    # What processes do to it

    def named(self, path: str) -> SimulatedFile:
        """Return the file at *path*, or raise FileNotFoundError."""
        try:
            return self._names[path]
        except KeyError:
            raise _error(errno.ENOENT, path) from None

    def create(self, path: str) -> SimulatedFile:
        """Let there be a new file."""
        file = SimulatedFile(next(self._inodes))
        self.change([(path, file)])
        return file

    def change(self, together: list[_Change]) -> None:
        """Change names."""
        self._change(self._names, together)
        self._unsynced.append(together)

    @staticmethod
    def _change(names: dict[str, SimulatedFile], together: list[_Change]) -> None:
        for path, file in together:
            if file is None:
                names.pop(path, None)
            else:
                names[path] = file

    def sync_names(self, folder: str) -> None:
        """Make durable what became of the names in *folder*."""
        waiting = self._unsynced
        self._unsynced = []
        for together in waiting:
            if any(os.path.dirname(path) == folder for path, _ in together):
                self._change(self._stable, together)
            else:
                self._unsynced.append(together)


class Mount(Disk):
    """The disk as one process has it: see :class:`flexmigrate.image.disk.Disk`.

    :ivar alive: whether the process is.
    """

    def __init__(self, disk: SimulatedDisk) -> None:
        self.alive = True
        self._disk = disk
        self._numbers = itertools.count(3)
        # A folder is there by its path alone.
        self._open: dict[int, tuple[SimulatedFile | str, list[int]]] = {}
        self._locked: list[SimulatedFile] = []

    def die(self) -> None:
        """The process is dead: its locks are free, and no call of its has an effect any more."""
        self.alive = False
        for file in self._locked:
            if file.user is self:
                file.user = None

    def _begin(self, call: str, path: str) -> None:
        if self.alive:
            self._disk.before(self, call, path)
        if not self.alive:
            raise Died

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        self._begin("open", path)
        found: SimulatedFile | str = path
        if not flags & os.O_DIRECTORY:
            try:
                found = file = self._disk.named(path)
            except FileNotFoundError:
                if not flags & os.O_CREAT:
                    raise
                found = file = self._disk.create(path)
            else:
                if flags & os.O_CREAT and flags & os.O_EXCL:
                    raise _error(errno.EEXIST, path)
            if flags & os.O_TRUNC and file.seen:
                file.cut(0)
        number = next(self._numbers)
        self._open[number] = (found, [0])
        return number

    def _file(self, fd: int) -> tuple[SimulatedFile, list[int]]:
        file, position = self._open[fd]
        if isinstance(file, str):
            raise _error(errno.EISDIR, file)
        return file, position

    def read(self, fd: int, length: int, /) -> bytes:
        self._begin("read", "")
        file, position = self._file(fd)
        data = bytes(file.seen[position[0] : position[0] + length])
        position[0] += len(data)
        return data

    def write(self, fd: int, data: bytes, /) -> int:
        self._begin("write", "")
        file, position = self._file(fd)
        file.write(position[0], bytes(data))
        position[0] += len(data)
        return len(data)

    def fsync(self, fd: int) -> None:
        file, _ = self._open[fd]
        if isinstance(file, str):
            self._begin("fsync folder", file)
            self._disk.sync_names(file)
        else:
            with self.forgetting(file):
                self._begin("fsync", "")
            file.sync()

    def close(self, fd: int) -> None:
        self._open.pop(fd, None)

    def replace(self, old: str, new: str) -> None:
        self._begin("replace", new)
        file = self._disk.named(old)
        self._disk.change([(old, None), (new, file)])

    def unlink(self, path: str) -> None:
        self._begin("unlink", path)
        self._disk.named(path).links = 0
        self._disk.change([(path, None)])

    def stat(self, path: str) -> os.stat_result:
        self._begin("stat", path)
        return _status(self._disk.named(path))

    def lstat(self, path: str) -> os.stat_result:
        return self.stat(path)

    def fstat(self, fd: int) -> os.stat_result:
        self._begin("fstat", "")
        return _status(self._file(fd)[0])

    def getxattr(self, path: str, attribute: str, /) -> bytes:
        self._begin("getxattr", path)
        try:
            return self._disk.named(path).attributes[attribute]
        except KeyError:
            raise _error(errno.ENODATA, path) from None

    def setxattr(self, fd: int, attribute: str, value: bytes, /) -> None:
        self._begin("setxattr", "")
        self._file(fd)[0].attributes[attribute] = value

    def removexattr(self, fd: int, attribute: str, /) -> None:
        self._begin("removexattr", "")
        if self._file(fd)[0].attributes.pop(attribute, None) is None:
            raise _error(errno.ENODATA, "")

    # The image

    def open_image(self, path: str, *, read_only: bool = False) -> Image:
        """As :meth:`flexmigrate.image.file.Image.open`."""
        try:
            fd = self.open(path, os.O_RDONLY if read_only else os.O_RDWR)
        except OSError as error:
            raise ImageError(f"cannot open the image {path}: {error.strerror}") from error
        file, _ = self._file(fd)
        if file.user is not None:
            raise ImageError(f"the image {path} is in use by another server")
        file.user = self
        self._locked.append(file)
        return SimulatedImage(self, path, fd, file, read_only=read_only)

    def unlock(self, file: SimulatedFile) -> None:
        """Let another have the image that is in *file*."""
        file.user = None
        self._locked.remove(file)

    @property
    def filesystem(self) -> Filesystem:
        """See :class:`SimulatedDisk`."""
        return self._disk.filesystem

    @property
    def probed(self) -> Probed | str:
        """See :class:`SimulatedDisk`."""
        return self._disk.probed

    @property
    def hides_dirty(self) -> bool:
        """See :class:`SimulatedDisk`."""
        return self._disk.hides_dirty

    def may_wait(self, call: str) -> bool:
        """Return whether *call* must not be made at once, because it could wait for the disk."""
        return self._disk.may_wait(call)

    def touches(self, call: str, offset: int, length: int, data: bytes = b"") -> bool:
        """Tell of the bytes of an image that a call is about; see ``SimulatedDisk.touched``."""
        return self._disk.touched(call, offset, length, data)

    def begin_image_call(self, call: str, path: str) -> None:
        """Tell of a call that an image is about to make."""
        self._begin(call, path)

    @property
    def boot(self) -> Boot:
        """See ``SimulatedDisk.boot``."""
        return self._disk.boot

    @property
    def keeps_cached(self) -> bool:
        """See ``SimulatedDisk.keeps_cached``."""
        return self._disk.keeps_cached

    @contextlib.contextmanager
    def forgetting(self, file: SimulatedFile) -> Iterator[None]:
        """If the body fails, forget the part of *file* that isn't durable, if the disk is one that
        does.
        """
        try:
            yield
        except OSError as error:
            if self._disk.forgets:
                file.lose(error.errno or errno.EIO)
            raise


def _status(file: SimulatedFile) -> os.stat_result:
    size = len(file.seen)
    return os.stat_result((stat.S_IFREG | 0o644, file.inode, 1, file.links, 0, 0, size, 0, 0, 0))


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)

"""The place of a benchmark: a folder on a real disk, with an image and its content.

A `Stage` makes all of it and leaves nothing behind. It does not know what is measured.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from bench.certificates import issue
from bench.processes import MIB, pins

# In memory or over a network: what is measured there says nothing of a disk's page cache.
NOT_DISKS = frozenset({"tmpfs", "ramfs", "nfs", "nfs4", "fuse"})


class Unmeasured(Exception):
    """This can't be measured here, or with this server; the text says why."""


@dataclass(frozen=True)
class Scale:
    """The size and the duration of a benchmark.

    :ivar seconds: that one measurement takes.
    :ivar size: bytes of the image.
    """

    seconds: float
    size: int


class Stage:
    """The folder of one run; a context manager that removes it.

    :ivar image: dense, and in the page cache whenever a measurement begins.
    :ivar sockets: a folder for UNIX sockets.
    :ivar payload: as large as a quarter of the image, to be copied into it.
    :ivar certificates: a folder in the layout that all these servers and clients share.
    :ivar kind: of the filesystem that it is on.
    :param parent: where to make the folder; None: where temporary files are kept, on a disk.
    :raises Unmeasured: if there is no such place
    """

    def __init__(self, scale: Scale, parent: Path | None = None, *, pinned: bool = True) -> None:
        self.scale = scale
        parent = parent or _on_a_disk()
        self.kind = filesystem(parent)
        self.folder = Path(tempfile.mkdtemp(prefix="flexmigrate-bench-", dir=parent))
        # A UNIX socket's path can have 107 bytes (unix(7)), however long the folder's is.
        self.sockets = Path(tempfile.mkdtemp(prefix="flexmigrate-bench-", dir="/tmp"))
        self.server_pin, self.client_pin = pins(pinned)
        self.image = self.folder / "image"
        self.payload = self.folder / "payload"
        self.certificates = self.folder / "certificates"

    def __enter__(self) -> Stage:
        try:
            issue(self.certificates)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        shutil.rmtree(self.folder)
        shutil.rmtree(self.sockets)

    def make_image(self) -> None:
        """Write the image and the payload."""
        dense(self.image, self.scale.size)
        dense(self.payload, self.scale.size // 4)


def _on_a_disk() -> Path:
    """Return a folder for temporary files that is on a disk."""
    places = [Path(place) for place in (tempfile.gettempdir(), "/var/tmp", os.getcwd())]
    for place in places:
        if place.is_dir() and filesystem(place) not in NOT_DISKS:
            return place
    raise Unmeasured(f"none of {', '.join(map(str, places))} is on a disk: choose a --folder")


def dense(path: Path, size: int) -> None:
    """Make a file of *size* bytes without a hole or a block of zeroes, on the disk and in cache."""
    with path.open("wb") as file:
        extend(file.fileno(), 0, size)


def extend(descriptor: int, offset: int, length: int) -> None:
    """Write random bytes there, the same piece over and over, and flush them."""
    piece = memoryview(random.Random(1).randbytes(min(length, MIB)))
    end = offset + length
    while offset < end:
        offset += os.pwrite(descriptor, piece[: end - offset], offset)
    os.fsync(descriptor)


def warm(path: Path) -> None:
    """Flush the file and bring it wholly into the page cache.

    It is dropped from there first: the folios in which the kernel keeps it, and with them what a
    write costs, depend on who wrote it last and how; so each server finds what reading ahead made.
    """
    chill(path)
    buffer = bytearray(MIB)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def warm_data(path: Path) -> None:
    """Do so with a file that has holes, which are not read."""
    buffer = bytearray(MIB)
    with path.open("rb", buffering=0) as file:
        os.fsync(file.fileno())
        size = os.fstat(file.fileno()).st_size
        start = _next_data(file.fileno(), 0, size)
        while start < size:
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            while start < end:
                start += os.preadv(file.fileno(), [memoryview(buffer)[: end - start]], start)
            start = _next_data(file.fileno(), end, size)


def _next_data(descriptor: int, offset: int, size: int) -> int:
    """Return where the next data is, *size* if there is none."""
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:  # lseek(2): there is no data from there on
            raise
        return size


def chill(path: Path, offset: int = 0, length: int = 0) -> None:
    """Flush the file and drop that part of it (length 0: to its end) from the page cache.

    Nobody else's pages are touched.
    """
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), offset, length, os.POSIX_FADV_DONTNEED)


def filesystem(path: Path) -> str:
    """Return the type of the filesystem that *path* is on, as in proc(5), mounts."""
    here = os.stat(path).st_dev
    found = "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mounted, kind, *_ = line.split(" ")
        with contextlib.suppress(OSError):
            if os.stat(mounted.replace(r"\040", " ")).st_dev == here:
                found = kind
    return found

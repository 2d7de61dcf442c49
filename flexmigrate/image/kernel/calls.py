"""The calls of the kernel that Python's ``os`` does not have, with their numbers.

What is here knows argument types and error numbers, and nothing of images. All of it is Linux's.
The calls release the interpreter's lock while they run, as those of ``os`` do, and raise
``OSError``.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct

# From linux/falloc.h, as fallocate(2) has them.
FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_ZERO_RANGE = 0x10

# Says that it can't be done on this filesystem, by this kernel, or to this kind of file.
FALLOCATE_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV})

# From linux/fs.h: the ioctls 94, 97, 104, 114 and 119 of its group 0x12.
BLKROGET = 0x125E
BLKFLSBUF = 0x1261
BLKSSZGET = 0x1268
BLKGETSIZE64 = 0x80081272
BLKDISCARD = 0x1277

# From linux/stat.h, as statx(2) has them: a mask, and where in struct statx the mask of what was
# found, the size and the birth time stand, in bytes.
STATX_SIZE = 0x200
STATX_BTIME = 0x800
_STATX_LENGTH = 256
_STATX_MASK_AT = 0
_STATX_SIZE_AT = 40
_STATX_BTIME_AT = 80

# From fcntl.h.
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_STATX_DONT_SYNC = 0x4000

# From linux/magic.h, as statfs(2) has it.
TMPFS_MAGIC = 0x01021994
EXT4_MAGIC = 0xEF53

# From linux/fs.h, as sync_file_range(2) has them.
SYNC_FILE_RANGE_WAIT_BEFORE = 1
SYNC_FILE_RANGE_WRITE = 2

# From asm-generic/mman-common.h, as madvise(2) has them.
MADV_COLD = 20
MADV_POPULATE_READ = 22

# From asm-generic/unistd.h; glibc has no function for it. (Machines that count otherwise have no
# call of this number, or one that refuses these arguments.)
_CACHESTAT = 451

PAGE = mmap.PAGESIZE

_libc = ctypes.CDLL(None, use_errno=True)
# glibc's plain fallocate has 32-bit offsets on 32-bit machines; musl has only one, with 64 bits.
_fallocate = getattr(_libc, "fallocate64", None) or _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_sync_file_range = _libc.sync_file_range
_sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_fstatfs = _libc.fstatfs
_fstatfs.argtypes = (ctypes.c_int, ctypes.c_void_p)
_statx = getattr(_libc, "statx", None)  # glibc 2.28, musl 1.2.5
_mmap = getattr(_libc, "mmap64", None) or _libc.mmap
_mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
)
_mmap.restype = ctypes.c_void_p
_munmap = _libc.munmap
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_mincore = _libc.mincore
_mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
_madvise = _libc.madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
# A function of its own: others call syscall(2) with other arguments.
_cachestat = ctypes.CFUNCTYPE(
    *(ctypes.c_long, ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint),
    use_errno=True,
)(("syscall", _libc))

_MAP_FAILED = ctypes.c_void_p(-1).value


def _last_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Change the storage of a range, in bytes, as *mode* says (fallocate(2)).

    A signal doesn't end it early, as it doesn't end the calls of ``os``.
    """
    while _fallocate(fd, mode, offset, length) != 0:
        error = _last_error()
        if error.errno != errno.EINTR:
            raise error


def sync_file_range(fd: int, offset: int, length: int, flags: int) -> None:
    """Have a range, in bytes, written to the disk as *flags* say; length 0: to the file's end.

    It makes nothing durable: neither the disk's own cache nor metadata is written
    (sync_file_range(2)).
    """
    if _sync_file_range(fd, offset, length, flags) != 0:
        raise _last_error()


def birth_time(path: str) -> int | None:
    """Return when the file at *path* was made, in nanoseconds since 1970; None where that can't be
    told, because there is no such file or because its filesystem doesn't know (statx(2)).
    """
    found = ctypes.create_string_buffer(_STATX_LENGTH)
    if _statx is None or _statx(_AT_FDCWD, os.fsencode(path), 0, STATX_BTIME, found) != 0:
        return None
    (mask,) = struct.unpack_from("=I", found, _STATX_MASK_AT)
    seconds, nanoseconds = struct.unpack_from("=qI", found, _STATX_BTIME_AT)
    return int(seconds * 10**9 + nanoseconds) if mask & STATX_BTIME else None


def known_size(fd: int) -> int:
    """Return the size of a file, in bytes, as this host knows it: a network filesystem is not asked
    (statx(2), ``AT_STATX_DONT_SYNC``).
    """
    found = ctypes.create_string_buffer(_STATX_LENGTH)
    flags = _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC
    if _statx is None or _statx(fd, b"", flags, STATX_SIZE, found) != 0:
        return os.fstat(fd).st_size
    (size,) = struct.unpack_from("=Q", found, _STATX_SIZE_AT)
    return int(size)


def is_tmpfs(fd: int) -> bool:
    """Tell whether *fd* is a file in memory; False also where that can't be told."""
    return filesystem_magic(fd) == TMPFS_MAGIC


def is_ext4(fd: int) -> bool:
    """Tell whether *fd* is a file on ext2, ext3 or ext4; False also where that can't be told."""
    return filesystem_magic(fd) == EXT4_MAGIC


def filesystem_magic(fd: int) -> int | None:
    """Return the number of a file's kind of filesystem (statfs(2)), None where it can't be told."""
    # struct statfs has at most 120 bytes, and on every machine but s390 begins with a long that is
    # the type; on s390 this is something else, which costs speed and nothing else. Of a long with
    # 32 bits, the highest is not a sign.
    answer = (ctypes.c_long * 64)()
    if _fstatfs(fd, ctypes.byref(answer)) != 0:
        return None
    return int(answer[0]) & 0xFFFFFFFF


def discard(fd: int, offset: int, length: int) -> None:
    """Tell a block device that it may forget a range; it need not read as zeroes afterwards."""
    fcntl.ioctl(fd, BLKDISCARD, struct.pack("=QQ", offset, length))


def flush_buffers(fd: int) -> None:
    """Write what the page cache has of a block device, and let it go (BLKFLSBUF, for root)."""
    fcntl.ioctl(fd, BLKFLSBUF, 0)


def device_size(fd: int) -> int:
    """Return the size that a block device has now, in bytes."""
    answer = fcntl.ioctl(fd, BLKGETSIZE64, bytes(8))
    return int(struct.unpack("=Q", answer)[0])


def logical_block_size(fd: int) -> int:
    """Return the alignment, in bytes, that a block device demands of fallocate(2) and discards."""
    answer = fcntl.ioctl(fd, BLKSSZGET, bytes(4))
    return int(struct.unpack("=I", answer)[0])


def is_read_only_device(fd: int) -> bool:
    """Tell whether a block device refuses writes, although it could be opened for them."""
    return struct.unpack("=I", fcntl.ioctl(fd, BLKROGET, bytes(4))) != (0,)


def map_file(fd: int, length: int, offset: int = 0) -> int:
    """Map *length* bytes for reading, from *offset*, a page's first; return where they are."""
    address = _mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, fd, offset)
    if address is None or address == _MAP_FAILED:
        raise _last_error()
    return int(address)


def unmap(address: int, length: int) -> None:
    """Undo :func:`map_file`."""
    if _munmap(address, length) != 0:
        raise _last_error()


def pages_in_core(address: int, length: int) -> bytes:
    """Return one byte a page of a mapping, 1 where the page is in memory (mincore(2)).

    :param address: a page's first byte.
    """
    vector = ctypes.create_string_buffer(-(-length // PAGE))
    if _mincore(address, length, vector) != 0:
        raise _last_error()
    return vector.raw


def populate(address: int, length: int) -> None:
    """Have pages of a mapping there without touching them; one that can't be had is an ``EFAULT``,
    and no signal (madvise(2), ``MADV_POPULATE_READ``, Linux 5.14).
    """
    if _madvise(address, length, MADV_POPULATE_READ) != 0:
        raise _last_error()


def make_cold(address: int, length: int) -> None:
    """Tell that pages of a mapping may be the first to go when memory is short (madvise(2),
    ``MADV_COLD``). Where that is a part of a folio, the kernel splits it.
    """
    if _madvise(address, length, MADV_COLD) != 0:
        raise _last_error()


def cached(fd: int, offset: int, length: int) -> tuple[int, int]:
    """Return how many pages of a file's range are in the page cache, and how many of these are not
    on the disk, or on their way there (cachestat(2), Linux 6.5).
    """
    wanted = struct.pack("=QQ", offset, length)
    found = ctypes.create_string_buffer(40)
    if _cachestat(_CACHESTAT, fd, wanted, found, 0) != 0:
        raise _last_error()
    pages, dirty, on_their_way = struct.unpack_from("=QQQ", found)
    return pages, dirty + on_their_way

"""Reads of a file by io_uring(7): many begin with one call of the kernel, none of them waits, and
none needs a thread.

Only what is needed for that is here: short reads, each into a slot of memory of the ring's own.
Nothing of reactors: whoever has a ring waits until its descriptor is readable, looks what is
``completed``, takes the bytes, and gives the slots back.

The rings are memory that is shared with the kernel. What either side puts there, it puts there
before it moves the tail behind it; Python has no barrier to say so with. On x86 none is needed, and
elsewhere :class:`Ring` refuses to be made.

Layouts and numbers: linux/io_uring.h, as io_uring_setup(2) and io_uring_enter(2) have them.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
from struct import Struct

SLOTS = 64
"""Reads that can be under way, a power of two: more than an SSD does side by side. More completions
than that can't come up, so that the ring of those never overflows."""

SLOT_SIZE = 64 * 1024
"""The longest read, in bytes."""

_SETUP = 425
_ENTER = 426
_MACHINES = ("x86_64", "AMD64", "i686")

# IORING_FEAT_SINGLE_MMAP: one mapping has both rings; IORING_FEAT_RW_CUR_POS came with the opcode
# for reading without a vector.
_NEEDED = 1 << 0 | 1 << 3

_OFF_RINGS = 0
_OFF_ENTRIES = 0x10000000
_OP_READ = 22
_ENTRY_SIZE = 64
_COMPLETION_SIZE = 16

# struct io_uring_params: entries of both rings, then eight words, then two structs of offsets.
_PARAMETERS = Struct("=10I 10I 10I")
# struct io_uring_sqe, as far as it isn't 0: opcode, flags, ioprio, fd, offset, address, length,
# rw_flags, user_data.
_ENTRY = Struct("=BBHiQQIIQ")
# struct io_uring_cqe: user_data, result, flags.
_COMPLETION = Struct("=QiI")

_WORD = 4
_WRAP = 0xFFFFFFFF

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


class Ring:
    """Room for SLOTS reads.

    A read is named by the slot that it was given. Slots are taken by ``prepare``, and are free
    again after ``release``.

    :ivar fd: readable while there is something that was completed.
    :raises OSError: the kernel has no io_uring (``ENOSYS``), or this process may not use it
        (``EPERM``), or this machine is none for it (``ENOTSUP``; see the module).
    """

    def __init__(self) -> None:
        if platform.machine() not in _MACHINES:
            raise OSError(errno.ENOTSUP, f"io_uring is not used on {platform.machine()}")
        parameters = ctypes.create_string_buffer(_PARAMETERS.size)
        self.fd = _checked(_syscall(_SETUP, ctypes.c_uint(SLOTS), parameters))
        try:
            self._map(_PARAMETERS.unpack(parameters.raw))
        except BaseException:
            os.close(self.fd)
            raise
        self._free = list(range(SLOTS))
        self._tail = 0  # of the entries, as far as they are written
        self._begun = 0  # as far as the kernel has them
        self._head = 0  # of the completions

    def _map(self, parameters: tuple[int, ...]) -> None:
        entries, completions, features = parameters[0], parameters[1], parameters[5]
        if features & _NEEDED != _NEEDED or entries != SLOTS:
            raise OSError(errno.ENOTSUP, "io_uring of Linux before 5.6")
        _, tail, _, _, _, _, array = parameters[10:17]
        done_head, done_tail, _, _, _, done_at = parameters[20:26]
        size = max(array + entries * _WORD, done_at + completions * _COMPLETION_SIZE)
        shared = mmap.MAP_SHARED | mmap.MAP_POPULATE
        self._rings = mmap.mmap(self.fd, size, shared, offset=_OFF_RINGS)
        self._entries = mmap.mmap(self.fd, entries * _ENTRY_SIZE, shared, offset=_OFF_ENTRIES)
        self._words = memoryview(self._rings)[: size // _WORD * _WORD].cast("I")
        for index in range(entries):
            self._words[array // _WORD + index] = index
        self._tail_word = tail // _WORD
        self._done_head_word, self._done_tail_word = done_head // _WORD, done_tail // _WORD
        self._done_at, self._done_mask = done_at, completions - 1
        self._memory = mmap.mmap(-1, SLOTS * SLOT_SIZE)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))

    @property
    def in_use(self) -> int:
        """How many slots are taken."""
        return SLOTS - len(self._free)

    def prepare(self, fd: int, offset: int, length: int) -> int:
        """Take a slot for a read of *length* bytes, at most SLOT_SIZE, which ``begin`` begins; -1
        where none is free.
        """
        if not self._free:
            return -1
        slot = self._free.pop()
        _ENTRY.pack_into(
            self._entries,
            (self._tail & (SLOTS - 1)) * _ENTRY_SIZE,
            *(_OP_READ, 0, 0, fd, offset, self._address + slot * SLOT_SIZE, length, 0, slot),
        )
        self._tail += 1
        return slot

    def begin(self) -> int:
        """Give the kernel what was prepared. Return how many of it, the last ones, it did not take:
        their slots are to be released, and somebody else has to read them.
        """
        wanted = self._tail - self._begun
        self._words[self._tail_word] = self._tail & _WRAP
        taken = _syscall(_ENTER, self.fd, ctypes.c_uint(wanted), 0, 0, None, 0)
        self._begun += max(taken, 0)
        if self._begun != self._tail:
            # It looks at the tail in the call alone, so what it left can be taken back.
            self._tail = self._begun
            self._words[self._tail_word] = self._tail & _WRAP
        return int(wanted - max(taken, 0))

    def completed(self) -> list[tuple[int, int]]:
        """Return (slot, result) of the reads that have ended, each once: how many bytes were read,
        or an error's number below 0.
        """
        ended = []
        head, tail = self._head, self._words[self._done_tail_word]
        while head != tail:
            at = self._done_at + (head & self._done_mask) * _COMPLETION_SIZE
            slot, result, _ = _COMPLETION.unpack_from(self._rings, at)
            ended.append((slot, result))
            head = (head + 1) & _WRAP
        self._head = self._words[self._done_head_word] = head
        return ended

    def take(self, slot: int, length: int) -> bytes:
        """Return the first *length* bytes of a slot."""
        at = slot * SLOT_SIZE
        return self._memory[at : at + length]

    def release(self, slot: int) -> None:
        """Have a slot be free, whose read has ended or was never begun."""
        self._free.append(slot)

    def close(self) -> None:
        """Give all back; nothing may be under way."""
        assert not self.in_use, f"{self.in_use} reads are under way"
        self._words.release()
        self._rings.close()
        self._entries.close()
        os.close(self.fd)
        self.fd = -1

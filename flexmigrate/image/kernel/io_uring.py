"""Reads of a file by io_uring(7): many begin with one call of the kernel, none of them waits, and
none needs a thread.

Only what is needed for that is here: short reads, each into a slot of memory of the ring's own.
Nothing of reactors: whoever has a ring waits until its descriptor is readable, and looks what is
``completed``.

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
from collections.abc import Sequence
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

    A read is named by the slot that it was given by ``begin``, until ``completed`` tells of it.

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
        self._lengths = [0] * SLOTS  # that were asked for
        self._tail = 0  # of the entries
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
        """The number of slots that are taken."""
        return SLOTS - len(self._free)

    def begin(self, fd: int, reads: Sequence[tuple[int, int, int]]) -> list[int]:
        """Begin to read from the file *fd*, as many of *reads* as there is room for and the kernel
        takes; return the slots of these, the first ones.

        :param reads: something to name each by, its offset, and its length, at most SLOT_SIZE.
        """
        slots = []
        tail, free, lengths = self._tail, self._free, self._lengths
        for _, offset, length in reads[: len(free)]:
            slot = free.pop()
            _ENTRY.pack_into(
                self._entries,
                (tail & (SLOTS - 1)) * _ENTRY_SIZE,
                *(_OP_READ, 0, 0, fd, offset, self._address + slot * SLOT_SIZE, length, 0, slot),
            )
            lengths[slot] = length
            slots.append(slot)
            tail = (tail + 1) & _WRAP
        if slots:
            self._words[self._tail_word] = tail
            taken = max(_syscall(_ENTER, self.fd, ctypes.c_uint(len(slots)), 0, 0, None, 0), 0)
            # It looks at the tail in the call alone, so what it left can be taken back.
            self._tail = self._words[self._tail_word] = (self._tail + taken) & _WRAP
            free += slots[taken:]
            del slots[taken:]
        return slots

    def completed(self) -> list[tuple[int, bytes | None]]:
        """Return each read that has ended, once: its slot, which is free now, and the bytes, or
        None where these aren't all that it was to read.
        """
        ended: list[tuple[int, bytes | None]] = []
        head, tail = self._head, self._words[self._done_tail_word]
        memory, lengths = self._memory, self._lengths
        while head != tail:
            at = self._done_at + (head & self._done_mask) * _COMPLETION_SIZE
            slot, result, _ = _COMPLETION.unpack_from(self._rings, at)
            begin = slot * SLOT_SIZE
            is_whole = result == lengths[slot]
            ended.append((slot, memory[begin : begin + result] if is_whole else None))
            self._free.append(slot)
            head = (head + 1) & _WRAP
        self._head = self._words[self._done_head_word] = head
        return ended

    def close(self) -> None:
        """Give all back; nothing may be under way."""
        assert not self.in_use, f"{self.in_use} reads are under way"
        self._words.release()
        self._rings.close()
        self._entries.close()
        os.close(self.fd)
        self.fd = -1

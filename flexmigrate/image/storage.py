"""The interface between the storage of an image and the servers and migrations that use it.

A :class:`Storage` has two paths. ``fast`` does at once, on the reactor's thread, what needs no
waiting. Everything else is a method that returns a Deferred. A file (``file_storage.py``) and a
program's block device (``device_storage.py``) implement it; servers and migrations know nothing
else, so another kind of storage is one more class.

Offsets and lengths are in bytes, and were checked by the caller. Errors are ``OSError``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, Protocol, TypeAlias, TypeVar

from twisted.internet.defer import Deferred

from flexmigrate.image.exact import Readable
from flexmigrate.image.extents import Extent
from flexmigrate.image.flush_failure import FlushFailure
from flexmigrate.image.kernel.ring_reader import Wanted
from flexmigrate.image.pace import Pace
from flexmigrate.image.trust import Trust
from flexmigrate.net.sendable import FileSource

_P = ParamSpec("_P")
_T = TypeVar("_T")

Outcome: TypeAlias = bytes | OSError | None
"""The result of a short read: its bytes, None for a hole, or the error."""

Answer: TypeAlias = Callable[[list[tuple[Wanted, Outcome]]], object]
"""Called with the outcomes of some short reads."""

Sendable: TypeAlias = tuple[FileSource, list[Extent]]
"""A source that a range can be sent from without waiting, and the range's extents."""


class NotBegun(OSError):
    """A call was forgotten before anybody had begun it: nothing happened."""

    def __init__(self) -> None:
        super().__init__(errno.ECANCELED, "forgotten before it was begun")


class FastPath(Protocol):
    """The operations of a storage that never wait; they are called often.

    :ivar pace: told how long writes take; it decides whether ``may_block_write`` holds.
    """

    @property
    def pace(self) -> Pace: ...

    def try_read_into(self, view: memoryview, offset: int) -> bool:
        """Fill *view* and return True; or return False, and leave anything in it: then
        ``Storage.read_short`` gives the bytes or the error.
        """

    def is_hole(self, view: Readable, offset: int) -> bool:
        """Tell whether *view*, which was read at *offset*, is zeroes that lie in a hole."""

    def is_resident(self, offset: int, length: int) -> bool:
        """Tell whether a range is in memory; False if that isn't known."""

    def extent_at(self, offset: int) -> Extent:
        """Return what *offset* lies in, from there to its end.

        :raises OSError: it can't be looked up.
        """

    def may_block_write(self, offset: int, length: int) -> bool:
        """Tell whether ``write`` can't be called for a range, since it might wait; then
        ``Storage.write`` is.
        """

    def write(self, view: Readable, offset: int) -> None:
        """Write all of *view*.

        :raises OSError: as pwrite(2). Some of it may have been written by then.
        """


class BlockingReads(Protocol):
    """The reads of a storage that may wait, in a thread: the methods of ``file.Image``."""

    @property
    def size(self) -> int: ...

    @property
    def may_have_holes(self) -> bool: ...

    def read_into(self, view: memoryview, offset: int) -> None: ...

    def is_all_hole(self, offset: int, length: int) -> bool: ...

    def next_data(self, offset: int, end: int) -> int: ...

    def extents(self, offset: int, length: int) -> Iterator[Extent]: ...


class Storage(Protocol):
    """The bytes of one image; the module says more.

    All methods belong to the reactor's thread. A Deferred fails with an ``OSError``. *asker* is
    whoever may be forgotten (``forget``): a connection, or None.

    :ivar fast: does at once what needs no waiting.
    :ivar blocking: what a thread may read from; None where only Deferreds bring bytes. Such storage
        isn't compared.
    :ivar path: what it is called, in logs.
    :ivar real_path: the same, absolute and without links where it is a file.
    :ivar size: in bytes.
    :ivar read_only: it can't be changed.
    :ivar identity: (device, inode) of the file; None if it is none.
    :ivar trust: what is believed of the filesystem below it; None if it is on none.
    :ivar is_unlinkable: it is a file, whose name can be removed.
    :ivar is_closed: it was closed.
    :ivar cut: how it was once found to be shorter than it was; None if it never was.
    :ivar flush_failure: the failed flush since which what is read may not be what the disk has.
    :ivar other_names: how many names the file has besides one.
    :ivar pending: calls whose Deferred's callbacks haven't all run.
    :ivar holds_reads: what ``bring_in`` returns is in this process's memory until it was sent, and
        not in the page cache.
    """

    @property
    def fast(self) -> FastPath: ...

    @property
    def blocking(self) -> BlockingReads | None: ...

    @property
    def path(self) -> str: ...

    @property
    def real_path(self) -> str: ...

    @property
    def size(self) -> int: ...

    @property
    def read_only(self) -> bool: ...

    @property
    def identity(self) -> tuple[int, int] | None: ...

    @property
    def trust(self) -> Trust | None: ...

    @property
    def is_unlinkable(self) -> bool: ...

    @property
    def is_closed(self) -> bool: ...

    @property
    def cut(self) -> str | None: ...

    @property
    def flush_failure(self) -> FlushFailure | None: ...

    @property
    def other_names(self) -> int: ...

    @property
    def pending(self) -> int: ...

    @property
    def holds_reads(self) -> bool: ...

    # Reading

    def ready(self, offset: int, length: int, *, whole: bool) -> Sendable | None:
        """Return what a range can be sent from now, and its extents; None if that would wait.

        :param whole: whether all of it is to be told as data.
        :raises OSError: the extents can't be looked up.
        """

    def bring_in(
        self, offset: int, length: int, *, whole: bool, asker: object = None
    ) -> Deferred[Sendable]:
        """Do as ``ready``, having waited for the disk."""

    def read(self, offset: int, length: int) -> Deferred[bytes]:
        """Read a range."""

    def read_short(
        self, wanted: Sequence[Wanted], answer: Answer, *, whole: bool, asker: object = None
    ) -> None:
        """Read short ranges, in any order, and call *answer* until each has its outcome.

        :param whole: whether a hole is to be read as zeroes.
        """

    def extents(
        self, offset: int, length: int, limit: int, asker: object = None
    ) -> Deferred[list[Extent]]:
        """Return the first extents of a range: at least one, at most *limit*; ascending, merged,
        clipped.
        """

    def will_need(self, ranges: list[tuple[int, int]], asker: object = None) -> Deferred[None]:
        """Have the disk begin to read some (offset, length): advice."""

    def drop_cached(self, ranges: list[tuple[int, int]]) -> Deferred[None]:
        """Give back the memory that holds some (offset, length): advice."""

    # Changing

    def write(self, data: Readable, offset: int, asker: object = None) -> Deferred[None]:
        """Write all of *data*, which must stay as it is until the Deferred fires."""

    def zero(
        self,
        offset: int,
        length: int,
        *,
        may_punch: bool,
        fast_only: bool = False,
        asker: object = None,
    ) -> Deferred[None]:
        """Make a range read as zeroes.

        :param may_punch: its storage may be given back; else it stays, or is allocated.
        :param fast_only: fail with ``ENOTSUP`` where only writing zeroes would do.
        """

    def trim(self, offset: int, length: int, asker: object = None) -> Deferred[None]:
        """Give back the storage of a range, whose bytes are undefined from then on: advice."""

    def write_back(self) -> Deferred[None]:
        """Have the disk begin to write what was changed: nothing is durable by it. One call at a
        time.
        """

    def flush(self) -> Deferred[None]:
        """Make durable all that was done before this call."""

    # What it is called, and how large it is

    def size_fault(self) -> str | None:
        """Return why it hasn't the size any more that it had; None where it has. Never waits."""

    def grow(self) -> bool:
        """Have the size that somebody else has given it, if it is larger; return whether it is."""

    def name_fault(self) -> Deferred[str | None]:
        """Fire with why its name doesn't lead to it any more; None where it does."""

    def other_readers(self) -> Deferred[str | None]:
        """Fire with who else reads it, in words; None if nobody has said so."""

    def unlink(self) -> Deferred[None]:
        """Remove its name, durably; fails as ``file.Image.unlink`` raises."""

    # Calls of others', and the end

    def run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> Deferred[_T]:
        """Call *function* in a thread; the Deferred has its result or what it raised."""

    def forget(self, asker: object) -> None:
        """Let what *asker* waits for and nobody has begun fail with `NotBegun`; flushes, which
        everybody shares, go on.
        """

    def drained(self) -> Deferred[None]:
        """Fire once nothing is pending, which may be now: all callbacks have run by then.

        Calls that are made while this waits are waited for, too.
        """

    def close(self) -> Deferred[Any]:
        """Let go of everything; once nothing is pending, and nothing will be."""

"""Block devices that aren't files as ``Storage``.

This is the fence around somebody else's class: whatever it raises becomes an ``OSError``, and what
it returns is looked at before it is believed. There is no descriptor to send from, so what is read
is held in memory until it is sent; how much that may be is decided by whoever asks.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, ParamSpec, TypeVar

from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from flexmigrate.errors import ImageError
from flexmigrate.image.exact import Held, Readable
from flexmigrate.image.extents import Extent, merge
from flexmigrate.image.interfaces import IBlockDevice, IReadyBlockDevice
from flexmigrate.image.kernel.ring_reader import Wanted
from flexmigrate.image.pace import Pace
from flexmigrate.image.storage import Answer, FastPath, Sendable
from flexmigrate.image.thread_calls import SharedFlush, ThreadCalls

log = Logger()

_P = ParamSpec("_P")
_T = TypeVar("_T")

LONGEST = 32 * 1024 * 1024
"""Bytes that a device is asked for at a time (see ``IBlockDevice.read``): clients may ask for more.
Of what they write, it is given less."""


class NothingAtOnce:
    """The fast path of storage that does nothing at once (``storage.FastPath``).

    :param size: in bytes.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self.pace = Pace()  # which nobody looks at: no write is carried out here

    def try_read_into(self, view: memoryview, offset: int) -> bool:
        return False

    def is_hole(self, view: Readable, offset: int) -> bool:
        return False

    def is_resident(self, offset: int, length: int) -> bool:
        return False

    def extent_at(self, offset: int) -> Extent:
        """Nothing is known at once: all is data."""
        return Extent(offset, self._size - offset, True)

    def may_block_write(self, offset: int, length: int) -> bool:
        return True

    def write(self, view: Readable, offset: int) -> None:
        """Nobody may call this, as ``may_block_write`` says."""
        raise OSError(errno.EIO, "nothing can be written at once")


class ReadyDevice(NothingAtOnce):
    """The fast path of a device that can often answer at once.

    :param device: provides IReadyBlockDevice.
    :param path: what it is called, in logs.
    """

    def __init__(self, device: Any, size: int, path: str) -> None:
        super().__init__(size)
        self._device = device
        self._path = path

    def try_read_into(self, view: memoryview, offset: int) -> bool:
        try:
            return bool(self._device.try_read_into(view, offset))
        except OSError:
            return False
        except Exception:  # noqa: BLE001  # it is somebody else's code
            log.failure("{path} failed with an unexpected error", path=self._path)
            return False

    def may_block_write(self, offset: int, length: int) -> bool:
        try:
            return bool(self._device.may_block_write(offset, length))
        except Exception:  # noqa: BLE001  # it is somebody else's code
            log.failure("{path} failed with an unexpected error", path=self._path)
            return True

    def write(self, view: Readable, offset: int) -> None:
        try:
            self._device.write_now(view, offset)
        except OSError:
            raise
        except Exception as error:
            log.failure("{path} failed with an unexpected error", path=self._path)
            raise OSError(errno.EIO, f"a bug in the device: {error}") from error


class DeviceStorage:
    """A device's calls, as Deferreds that fail with OSError and nothing else; see ``Storage`` for
    what the methods do.

    Only ``run`` uses the threads: for what is done about the device, and not by it. A device is
    told at once of all that is asked for: nothing waits here that could be forgotten.

    :param device: provides IBlockDevice.
    :param path: what it is called, in logs.
    :raises ImageError: it doesn't provide that, or has no size that can be served.
    """

    blocking = None
    # There is no file: it has no name that could be removed, or lead elsewhere.
    identity = None
    trust = None
    is_unlinkable = False
    other_names = 0
    # It has the size that it says it has; what a failed flush means, it knows itself.
    cut = None
    flush_failure = None
    holds_reads = True

    def __init__(
        self, device: Any, path: str, reactor: IReactorFromThreads, pool: ThreadPool
    ) -> None:
        if not IBlockDevice.providedBy(device):
            raise ImageError(f"{path}: {device!r} does not provide IBlockDevice")
        if not isinstance(device.size, int) or device.size < 0:
            raise ImageError(f"{path}: {device.size!r} is not a size in bytes")
        self._device = device
        self.path = self.real_path = path
        self.size: int = device.size
        self.read_only = bool(device.read_only)
        self.is_closed = False
        self.fast: FastPath = (
            ReadyDevice(device, self.size, path)
            if IReadyBlockDevice.providedBy(device)
            else NothingAtOnce(self.size)
        )
        self._calls = ThreadCalls(reactor, pool)
        self._flushes = SharedFlush(self._calls, lambda: self._guarded(_nothing, device.flush))

    @property
    def pending(self) -> int:
        return self._calls.pending

    # Reading

    def ready(self, offset: int, length: int, *, whole: bool) -> Sendable | None:
        return None

    def read(self, offset: int, length: int) -> Deferred[bytes]:
        if length > LONGEST:
            return Deferred.fromCoroutine(self._read_long(offset, length))

        def check(data: Any) -> bytes:
            found = bytes(data)
            if len(found) != length:
                raise OSError(errno.EIO, f"{len(found)} bytes were read instead of {length}")
            return found

        return self._checked(check, self._device.read, offset, length)

    async def _read_long(self, offset: int, length: int) -> bytes:
        end = offset + length
        starts = range(offset, end, LONGEST)
        return b"".join([await self.read(at, min(LONGEST, end - at)) for at in starts])

    def write(self, data: Readable, offset: int, asker: object = None) -> Deferred[None]:
        return self._checked(_nothing, self._device.write, data, offset)

    def zero(
        self,
        offset: int,
        length: int,
        *,
        may_punch: bool,
        fast_only: bool = False,
        asker: object = None,
    ) -> Deferred[None]:
        return self._checked(
            _nothing, self._device.zero, offset, length, may_punch=may_punch, fast_only=fast_only
        )

    def trim(self, offset: int, length: int, asker: object = None) -> Deferred[None]:
        return self._checked(_nothing, self._device.trim, offset, length)

    def read_short(
        self, wanted: Sequence[Wanted], answer: Answer, *, whole: bool, asker: object = None
    ) -> None:
        for each in wanted:
            self._read_one(each, answer)

    def _read_one(self, wanted: Wanted, answer: Answer) -> None:
        reading: Deferred[Any] = self.read(wanted[1], wanted[2])
        reading.addErrback(lambda failure: failure.value)
        reading.addCallback(lambda outcome: answer([(wanted, outcome)]))
        reading.addErrback(
            lambda failure: log.failure("a short read failed with an unexpected error", failure)
        )

    def bring_in(
        self, offset: int, length: int, *, whole: bool, asker: object = None
    ) -> Deferred[Sendable]:
        def hold(data: bytes) -> Sendable:
            return Held(offset, data), [Extent(offset, length, True)]

        return self.read(offset, length).addCallback(hold)

    def extents(
        self, offset: int, length: int, limit: int, asker: object = None
    ) -> Deferred[list[Extent]]:
        return self._checked(None, self._walk, offset, length, limit)

    async def _walk(self, offset: int, length: int, limit: int) -> list[Extent]:
        device: Any = self._device
        found: list[Extent] = []
        position, end = offset, offset + length
        while position < end and len(found) < limit:
            told: Iterable[Extent] = await maybeDeferred(device.extents, position, end - position)
            more = [_clipped(each, end) for each in islice(told, limit)]
            for extent in more:
                if extent.offset != position or extent.length <= 0:
                    raise OSError(errno.EIO, f"its extents have a gap at {position}: {extent}")
                position = extent.end
            if not more:
                raise OSError(errno.EIO, f"it tells nothing of its extents at {position}")
            found = list(merge([*found, *more]))
        return found[:limit]

    def will_need(self, ranges: list[tuple[int, int]], asker: object = None) -> Deferred[None]:
        return succeed(None)

    def drop_cached(self, ranges: list[tuple[int, int]]) -> Deferred[None]:
        return succeed(None)

    def write_back(self) -> Deferred[None]:
        return succeed(None)

    def flush(self) -> Deferred[None]:
        return self._flushes.flush()

    # What it is called, and how large it is

    def size_fault(self) -> str | None:
        return None

    def grow(self) -> bool:
        return False

    def name_fault(self) -> Deferred[str | None]:
        return succeed(None)

    def other_readers(self) -> Deferred[str | None]:
        return succeed(None)

    def unlink(self) -> Deferred[None]:
        return fail(ImageError(f"{self.path} is no file and can't be unlinked"))

    # Calls of others', and the end

    def run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> Deferred[_T]:
        return self._calls.run_for(None, function, *args, **kwargs)

    def forget(self, asker: object) -> None:
        """Nothing waits here."""

    def drained(self) -> Deferred[None]:
        return self._calls.drained()

    def close(self) -> Deferred[Any]:
        self._calls.close()
        self.is_closed = True
        return maybeDeferred(self._device.close)

    # Somebody else's code

    def _checked(
        self,
        check: Callable[[Any], _T] | None,
        function: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Deferred[_T]:
        answer: Deferred[_T] = Deferred()
        self._calls.begun()
        self._guarded(check, function, *args, **kwargs).addBoth(self._calls.settle, answer)
        return answer

    def _guarded(
        self,
        check: Callable[[Any], _T] | None,
        function: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Deferred[_T]:
        """Call *function*, then *check* with its result; fail with OSError if at all."""
        work: Deferred[Any] = maybeDeferred(function, *args, **kwargs)
        if check is not None:
            work.addCallback(check)
        return work.addErrback(self._as_os_error)

    def _as_os_error(self, failure: Failure) -> Failure:
        if failure.check(OSError):
            return failure
        log.failure("{path} failed with an unexpected error", failure, path=self.path)
        return Failure(OSError(errno.EIO, f"a bug in the device: {failure.getErrorMessage()}"))


def _clipped(extent: Extent, end: int) -> Extent:
    return extent if extent.end <= end else Extent(extent.offset, end - extent.offset, extent.data)


def _nothing(_: object) -> None:
    """Turn a result that says nothing into None."""

"""Block devices that aren't files, as a server and a migration need them.

This is the fence around somebody else's class: whatever it raises becomes an ``OSError``, and what
it returns is looked at before it is believed. It has the two faces of a file: ``DeviceImage`` for
what is there at once, ``DeviceBackground`` for what takes its time. There is no descriptor to send
from, so what is read is held in memory until it is sent; how much that may be is decided by whoever
asks.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from flexmigrate.errors import ImageError
from flexmigrate.image.background import Answer, Background
from flexmigrate.image.exact import Held, Readable
from flexmigrate.image.extents import Extent, merge
from flexmigrate.image.file import Image
from flexmigrate.image.interfaces import IBlockDevice, IReadyBlockDevice
from flexmigrate.image.kernel.ring_reader import Wanted
from flexmigrate.image.pace import Pace
from flexmigrate.net.sendable import FileSource

log = Logger()

_T = TypeVar("_T")

LONGEST = 32 * 1024 * 1024
"""Bytes that a device is asked for at a time (see ``IBlockDevice.read``): clients may ask for more.
Of what they write, it is given less."""


class DeviceImage:
    """The attributes of a device that need no I/O; they have the names and meanings of ``Image``.

    :param device: provides IBlockDevice.
    :param path: what it is called, in logs.
    :raises ImageError: it doesn't provide that, or has no size that can be served.
    """

    # No file: it can't be unlinked, and nothing stands beside it.
    is_block_device = True
    identity = None
    # Told by ``DeviceBackground.extents`` only, which may take its time.
    may_have_holes = False
    trust = None
    in_memory = False
    is_local = False
    fd = None
    # What a failed flush of such storage means, it knows itself.
    flush_failure = None

    def __init__(self, device: Any, path: str) -> None:
        if not IBlockDevice.providedBy(device):
            raise ImageError(f"{path}: {device!r} does not provide IBlockDevice")
        if not isinstance(device.size, int) or device.size < 0:
            raise ImageError(f"{path}: {device.size!r} is not a size in bytes")
        self.device = device
        self.path = self.real_path = path
        self.size: int = device.size
        self.cut: str | None = None
        self.read_only = bool(device.read_only)
        self.is_closed = False
        self.pace = Pace()  # it knows itself what may be asked for at once
        self._ready = device if IReadyBlockDevice.providedBy(device) else None

    def try_read_into(self, view: memoryview, offset: int) -> bool:
        """Fill *view* if that can be done at once; what goes wrong is told by ``read``."""
        if self._ready is None:
            return False
        try:
            return bool(self._ready.try_read_into(view, offset))
        except OSError:
            return False
        except Exception:  # noqa: BLE001  # it is somebody else's code
            log.failure("{path} failed with an unexpected error", path=self.path)
            return False

    def may_block_write(self, offset: int, length: int) -> bool:
        """Tell whether ``write`` can't be called."""
        if self._ready is None:
            return True
        try:
            return bool(self._ready.may_block_write(offset, length))
        except Exception:  # noqa: BLE001  # it is somebody else's code
            log.failure("{path} failed with an unexpected error", path=self.path)
            return True

    def write(self, view: Readable, offset: int) -> None:
        """Write at once, after ``may_block_write`` has said that it can be done.

        :raises OSError: whatever went wrong.
        """
        assert self._ready is not None
        try:
            self._ready.write_now(view, offset)
        except OSError:
            raise
        except Exception as error:
            log.failure("{path} failed with an unexpected error", path=self.path)
            raise OSError(errno.EIO, f"a bug in the device: {error}") from error

    def is_hole(self, view: Readable, offset: int) -> bool:
        """Nothing is known at once."""
        return False

    def is_resident(self, offset: int, length: int) -> bool:
        """There is nothing to send from before it was read."""
        return False

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Nothing is known at once: all is data."""
        yield Extent(offset, length, True)

    def extent_at(self, offset: int) -> Extent:
        """Nothing is known at once: all is data."""
        return Extent(offset, self.size - offset, True)

    def read(self, offset: int, length: int) -> bytes:
        """There is nothing to be read without waiting.

        :raises OSError: always.
        """
        raise OSError(errno.EIO, f"{self.path} can't be read at once")

    def name_fault(self) -> str | None:
        """There is no name that could lead elsewhere."""
        return None

    def given_name_fault(self) -> str | None:
        """There is no name that could lead elsewhere."""
        return None

    def other_readers(self) -> str | None:
        """Nothing is known of others."""
        return None

    def size_fault(self) -> str | None:
        """It has the size that it says it has."""
        return None

    def grow(self) -> bool:
        """It has the size that it says it has."""
        return False

    def unlink(self) -> None:
        """There is nothing to unlink.

        :raises ImageError: always.
        """
        raise ImageError(f"{self.path} is no file and can't be unlinked")

    def close(self) -> Any:
        """Close the device; once, and whatever it returns may have to be waited for."""
        self.is_closed = True
        return self.device.close()


# Whatever an export may be of.
AnyImage = Image | DeviceImage


class DeviceBackground(Background):
    """A device's calls, as Deferreds that fail with OSError and nothing else.

    Only ``run`` uses the threads: for what is done about the device, and not by it. A device is
    told at once of all that is asked for: nothing waits here that could be forgotten.
    """

    def __init__(self, image: DeviceImage, reactor: IReactorFromThreads, pool: ThreadPool) -> None:
        super().__init__(image, reactor, pool)
        self._path = image.path
        self._size = image.size
        self._device: Any = image.device

    def read(self, offset: int, length: int) -> Deferred[bytes]:
        """Read, and see that it is as much as was asked for."""
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
        """Write; *data* must stay as it is until the Deferred fires."""
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
        """As :meth:`IBlockDevice.zero`."""
        return self._checked(
            _nothing, self._device.zero, offset, length, may_punch=may_punch, fast_only=fast_only
        )

    def trim(self, offset: int, length: int, asker: object = None) -> Deferred[None]:
        """As :meth:`IBlockDevice.trim`."""
        return self._checked(_nothing, self._device.trim, offset, length)

    def read_short(
        self, wanted: Sequence[Wanted], answer: Answer, *, whole: bool, asker: object = None
    ) -> None:
        """Read some ranges, side by side."""
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
    ) -> Deferred[tuple[FileSource, list[Extent]]]:
        """Read a range, as one piece of data."""
        return self.fetch(offset, length).addCallback(
            lambda held: (held, [Extent(offset, length, True)])
        )

    def fetch(self, offset: int, length: int) -> Deferred[FileSource]:
        """Read a range, and hold it."""

        def hold(data: bytes) -> FileSource:
            return Held(offset, data)

        return self.read(offset, length).addCallback(hold)

    def extents(
        self, offset: int, length: int, limit: int, asker: object = None
    ) -> Deferred[list[Extent]]:
        """Return at most *limit* extents, from *offset* on: ascending, merged, clipped."""
        return self._checked(None, self._walk, offset, length, limit)

    async def _walk(self, offset: int, length: int, limit: int) -> list[Extent]:
        found: list[Extent] = []
        position, end = offset, offset + length
        while position < end and len(found) < limit:
            told: Iterable[Extent] = await maybeDeferred(
                self._device.extents, position, end - position
            )
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
        """Nothing can be done ahead."""
        return self._checked(_nothing, _nothing, None)

    def _begin_flush(self) -> Deferred[Any]:
        return self._guarded(_nothing, self._device.flush)

    def _checked(
        self,
        check: Callable[[Any], _T] | None,
        function: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Deferred[_T]:
        answer: Deferred[_T] = Deferred()
        self.pending += 1
        self._guarded(check, function, *args, **kwargs).addBoth(self._settle, answer)
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
        log.failure("{path} failed with an unexpected error", failure, path=self._path)
        return Failure(OSError(errno.EIO, f"a bug in the device: {failure.getErrorMessage()}"))


def _clipped(extent: Extent, end: int) -> Extent:
    return extent if extent.end <= end else Extent(extent.offset, end - extent.offset, extent.data)


def _nothing(_: object) -> None:
    """Turn a result that says nothing into None."""

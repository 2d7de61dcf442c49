"""The observer of changes at a destination: it records coverage, and starts writing to the disk.

Received data goes into the page cache, which takes it as fast as the link brings it. If nothing
were done, it would stay there, gigabytes of it, for the flush at the end: clients are parked
meanwhile, and the kernel, once it has had enough, makes whoever writes wait for seconds, which here
is the reactor. So the disk is kept busy from the beginning, and the sender waits where the disk
can't keep pace. How long the last flush takes does not depend on the image's size, then.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from twisted.python.failure import Failure

from flexmigrate.image.storage import Storage
from flexmigrate.migration.destination.coverage import Coverage
from flexmigrate.server.export import Export

WRITE_BACK_BYTES = 16 * 1024 * 1024
"""So much is received between two times that the disk is told to write: some hundredths of a
second's work for it, and by far more than a thread costs. Measured: 1 GiB from the page cache takes
1.3 s with 4 or 16 MiB, 1.4 s with 64, and 1.9 s, half of it flushing, if the disk isn't told."""

BACKLOG_BYTES = 64 * 1024 * 1024
"""When so much was received while the disk still writes what came before, the sender has to wait.
Twice as much, at most, is left to the flush."""


class WriteBack:
    """Keeps what was received, and isn't on its way to the disk yet, below ``BACKLOG_BYTES``.

    On the reactor's thread; the disk is told in another, by one call at a time.

    :param failed: called with what is wrong when it can't be written.
    """

    def __init__(
        self, export: Export, storage: Storage, failed: Callable[[OSError], object]
    ) -> None:
        self._export = export
        self._storage = storage
        self._tell = failed
        self._received = 0
        self._writing = False
        self._holding = False
        self._active = False

    def begin(self) -> None:
        """An attempt begins."""
        self._received = 0
        self._active = True

    def add(self, length: int) -> None:
        """*length* bytes were written into the image."""
        self._received += length
        if self._received >= WRITE_BACK_BYTES and self._active:
            self._keep_pace()

    def end(self) -> None:
        """Hold nobody any more: what was received is about to be flushed, or counts for nothing."""
        self._active = False
        self._let_go()

    def _keep_pace(self) -> None:
        if not self._writing:
            self._writing = True
            self._received = 0
            self._storage.write_back().addCallbacks(self._written, self._failed)
        elif self._received >= BACKLOG_BYTES and not self._holding:
            self._holding = True
            self._export.park()

    def _written(self, _: None) -> None:
        self._writing = False
        self._let_go()
        if self._received >= WRITE_BACK_BYTES and self._active:
            self._keep_pace()

    def _failed(self, failure: Failure) -> None:
        """Refuse further data of this attempt: what was received in it can't be written."""
        self._writing = False
        if self._active:
            self.end()
            error = failure.value
            self._tell(error if isinstance(error, OSError) else OSError(errno.EIO, str(error)))

    def _let_go(self) -> None:
        if self._holding:
            self._holding = False
            self._export.unpark()


class Reception:
    """Watches the export while an attempt is received (``server.export.ChangeObserver``).

    :param size_fault: tells, without waiting, why the image hasn't its size any more, if so.
    :param spoiled: called once if that is so: nothing that was received counts.
    """

    def __init__(
        self,
        coverage: Coverage,
        write_back: WriteBack,
        size_fault: Callable[[], str | None] = lambda: None,
        spoiled: Callable[[str], object] = lambda reason: None,
    ) -> None:
        self._coverage = coverage
        self._write_back = write_back
        self._size_fault = size_fault
        self._spoiled = spoiled

    def mark(self, offset: int, length: int) -> None:
        """A range was written, zeroed or trimmed."""
        self._coverage.mark(offset, length)
        # With each change: the next ones lengthen a file that was cut, and nothing tells of it.
        fault = self._size_fault()
        if fault is not None and self._coverage.spoiled is None:
            self._coverage.refused(fault)
            self._spoiled(fault)
        # Zeroes, too: where a filesystem can't make them otherwise, they were written.
        self._write_back.add(length)

    def failed(self, offset: int, length: int, error: BaseException) -> None:
        """A change failed; see ``Coverage``."""
        self._coverage.failed(offset, length, error)

    def flush_failed(self, error: BaseException) -> None:
        """A flush failed; see ``Coverage``."""
        self._coverage.flush_failed(error)

    def refused(self, text: str) -> None:
        """A change was refused; see ``Coverage``."""
        self._coverage.refused(text)

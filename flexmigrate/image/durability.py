"""The durability of an image: a record of what has been written but may not be on the disk yet.

Once a flush of an image has failed, the success of a later flush means nothing, and data that
is read through the page cache proves nothing about the disk (see ``kernel/page_cache.py``).
Every flush fails from then on, until either

* the page cache was emptied, so that reads return the disk's content; or
* every byte was written again, and then flushed without an error.

This also holds for the next process that opens the image, as long as the machine runs: a note
(``flush_failure``) says so. It is written before the error is reported.

Not detected: an error that was reported to another program's flush of the same file, while the
image wasn't open here.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from threading import Lock
from typing import Protocol

from flexmigrate.errors import ImageError
from flexmigrate.image.flush_failure import FlushFailure, Found, Note


class Cache(Protocol):
    """The page cache of one open image: see ``page_cache.PageCache``."""

    def sync(self) -> None:
        """Flush."""

    def write_back(self) -> None:
        """Begin to write."""

    def look(self) -> None:
        """Raise OSError if writing back has failed."""

    def empty(self) -> bool:
        """Empty it; return whether it is empty."""

    def close(self) -> None:
        """Close what was opened."""


class Durability:
    """The durability of one open image; see the module.

    Methods that wait for the disk must be called in a thread, any thread.

    :param path: of the image, for people.
    :ivar failure: since when the page cache isn't to be trusted, and why; None while it is.
    :ivar is_rewriting: every byte is being written once more, because of ``failure``.
    :ivar earlier: a failure before the machine was started anew, that the note told of: what was
        written by then may be missing.
    :ivar unnoted: why ``failure`` could not be noted, or why a note that means nothing any more
        could not be removed; else None.
    :ivar heard: called with a failure that is the first, or the first since all was made up for, in
        whichever thread found it, once it is noted.
    """

    def __init__(self, cache: Cache, note: Note, path: str, *, read_only: bool) -> None:
        self._cache = cache
        self._note = note
        self._path = path
        self._lock = Lock()
        self._failures = 0
        self.failure: FlushFailure | None = None
        self.is_rewriting = False
        self.earlier: FlushFailure | None = None
        self.unnoted: OSError | None = None
        self.heard: Callable[[FlushFailure], object] = _nobody
        found = note.load()
        if found is not None:
            self._take_in(found)
        if not read_only:
            # Who only reads would take an error away from the next who writes.
            self.look()

    def _take_in(self, found: Found) -> None:
        if not found.is_over:
            self.failure = found.failure
            return
        self.earlier = found.failure
        self._remove_note()

    # Flushing

    def flush(self) -> None:
        """Wait until all that was written is on stable storage.

        :raises OSError: it isn't, or can't be known to be, because of this flush or an earlier one.
        """
        self._try(self._cache.sync)
        with self._lock:  # whoever finds a failure may be about to note it
            failure = self.failure
            if failure is not None and not self.is_rewriting:
                raise self._error(failure)

    def write_back(self) -> None:
        """Start to write dirty pages to the disk.

        :raises OSError: as ``flush``.
        """
        self._try(self._cache.write_back)

    def look(self) -> None:
        """Find out whether the kernel has failed to write something back, without asking it to;
        never waits for the disk, unless that is so.
        """
        with contextlib.suppress(OSError):
            self._try(self._cache.look)  # it is known then

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except OSError as error:
            failure = FlushFailure(error.errno or 0, int(time.time()))
            raise self._error(self._happened(failure)) from error

    def _happened(self, failure: FlushFailure) -> FlushFailure:
        """Keep *failure*; return the first one that is still in force."""
        with self._lock:
            self._failures += 1
            self.is_rewriting = False
            is_first = self.failure is None
            first = self.failure = self.failure or failure
            if is_first or self.unnoted is not None:
                self._keep_note(first)
        if is_first:
            self.heard(first)
        return first

    def _keep_note(self, failure: FlushFailure) -> None:
        try:
            self._note.keep(failure)
            self.unnoted = None
        except OSError as error:
            self.unnoted = error

    def _remove_note(self) -> None:
        try:
            self._note.remove()
            self.unnoted = None
        except OSError as error:
            self.unnoted = error

    def _error(self, failure: FlushFailure) -> OSError:
        text = f"flushing {self._path} failed ({failure.text}): what was written may be lost"
        return OSError(failure.number, text)

    # Recovery

    def empty(self) -> None:
        """Empty the page cache, so that reads return the disk's content.

        :raises ImageError: it can't be emptied; the text says what is to be done.
        """
        if not self._cache.empty():
            failed = "unknown" if self.failure is None else self.failure.text
            raise ImageError(
                f"a flush of {self._path} has failed ({failed}), so that the page cache "
                "hold what the disk doesn't have, and it can't be emptied: end whatever else uses "
                "the file or device, or 'echo 1 > /proc/sys/vm/drop_caches', then try again"
            )
        self._made_up_for()

    def begin_receiving(self) -> bool:
        """Something is about to be received that is to be compared with what is here. Return
        whether that can be believed: a failed flush was made up for by emptying the page cache, if
        there was one. Where that can't be done, ``rewritten`` may make up for it later; until then
        flushes succeed again, if they do.
        """
        self.look()
        if self.failure is None:
            return True
        if self._cache.empty():
            self._made_up_for()
            return True
        with self._lock:
            self.is_rewriting = True
        return False

    def rewritten(self) -> None:
        """Note that every byte was written since ``begin_receiving``, and flushed."""
        with self._lock:
            was_rewritten = self.is_rewriting  # and nothing has failed since
        if was_rewritten:
            self._made_up_for()

    def _made_up_for(self) -> None:
        with contextlib.suppress(OSError):
            self._cache.look()  # what the kernel has still to tell is about what is gone by now
        with self._lock:
            if self.failure is not None:
                self._remove_note()
            self.failure = None
            self.is_rewriting = False

    def close(self) -> None:
        """Close the page cache's descriptor."""
        self._cache.close()


def _nobody(failure: FlushFailure) -> None:
    """Ignore a failure: no callback is set."""

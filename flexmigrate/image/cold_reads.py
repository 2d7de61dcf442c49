"""Short reads of a file that have to wait for the disk.

A client may want many thousands of them a second. They need no thread where the kernel has rings
(``kernel/ring_reader.py``), and are answered by a call each time that some are there.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger
from twisted.python.failure import Failure

from flexmigrate.image import reads
from flexmigrate.image.file import Image
from flexmigrate.image.kernel.ring_reader import LONGEST, Ended, ShortReads, Wanted, short_reads
from flexmigrate.image.storage import Answer, NotBegun, Outcome
from flexmigrate.image.thread_calls import ThreadCalls

log = Logger()

READS_AT_ONCE = 8
"""Short reads that one thread waits for: handing over to it and back costs as much as several
reads, but those that were read first wait for the last."""


class ColdReads:
    """The short reads of one image.

    :param may_have_ring: whether they may do without threads.
    """

    def __init__(
        self,
        image: Image,
        calls: ThreadCalls,
        reactor: IReactorFromThreads,
        *,
        may_have_ring: bool = True,
    ) -> None:
        self._image = image
        self._calls = calls
        self._reactor = reactor
        self._ring: ShortReads | None = None
        self._may_have_ring = may_have_ring

    def begin(
        self, wanted: Sequence[Wanted], answer: Answer, *, whole: bool, asker: object = None
    ) -> None:
        """See ``Storage.read_short``.

        The kernel should have begun to fetch them already, having been asked for them without
        waiting: then they come from the disk side by side whoever waits for them.
        """
        if self._may_have_ring and self._ring is None:
            # Late, since a daemon forks, and not at all where there is nothing to wait for.
            self._ring = short_reads(self._reactor, self._ring_told)
            self._may_have_ring = self._ring is not None
        if self._ring is not None and all(length <= LONGEST for _, _, length in wanted):
            wanted = self._read_by_ring(self._ring, wanted, answer, whole)
        for at in range(0, len(wanted), READS_AT_ONCE):
            self._read_by_thread(wanted[at : at + READS_AT_ONCE], answer, whole, asker)

    def _read_by_ring(
        self, ring: ShortReads, wanted: Sequence[Wanted], answer: Answer, whole: bool
    ) -> Sequence[Wanted]:
        """Return what there was no room for."""
        left = ring.begin(self._image.fd, wanted, (answer, whole))
        self._calls.begun(len(wanted) - len(left))
        return left

    def _ring_told(self, ended: list[Ended]) -> None:
        """Answer each asker once for all that it can have now."""
        outcomes: dict[tuple[Answer, bool], list[tuple[Wanted, Outcome]]] = {}
        asker: tuple[Answer, bool] | None = None
        its: list[tuple[Wanted, Outcome]] = []
        try:
            for each, about, data in ended:
                answer, whole = about
                if data is None:
                    self._read_by_thread([each], answer, whole)
                    continue
                if about is not asker:
                    asker, its = about, outcomes.setdefault(about, [])
                is_hole = not whole and self._image.is_hole(data, each[1])
                its.append((each, None if is_hole else data))
            for (answer, _), some in outcomes.items():
                try:
                    answer(some)
                except Exception:  # noqa: BLE001  # one asker's bug is not to end the others' reads
                    log.failure("short reads failed with an unexpected error")
        finally:
            self._calls.ended(len(ended))

    def _read_by_thread(
        self, wanted: Sequence[Wanted], answer: Answer, whole: bool, asker: object = None
    ) -> None:
        def failed(failure: Failure) -> list[OSError]:
            if isinstance(failure.value, NotBegun):
                return [failure.value] * len(wanted)
            log.failure("short reads failed with an unexpected error", failure)
            return [OSError(errno.EIO, "internal error")] * len(wanted)

        ranges = [(offset, length) for _, offset, length in wanted]
        reading: Deferred[Any] = self._calls.run_for(
            asker, reads.several, self._image, ranges, whole
        )
        reading.addErrback(failed)
        reading.addCallback(lambda outcomes: answer(list(zip(wanted, outcomes, strict=True))))
        reading.addErrback(
            lambda failure: log.failure("short reads failed with an unexpected error", failure)
        )

    def close(self) -> None:
        """Let go of the ring; once nothing is pending, and nothing will be."""
        self._may_have_ring = False
        if self._ring is not None:
            ring, self._ring = self._ring, None
            ring.close()

"""Short reads that have to wait for the disk, many at a time, without a thread: a ring of the
kernel's (``io_uring.py``) in a reactor.

What can't be read this way, whatever the reason, is left to whoever asked: ``begin`` returns it, or
it comes out later, to be read by a thread. So nothing here knows of errors, nor of ends of files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.logger import Logger
from zope.interface import implementer

from flexmigrate.image.kernel.io_uring import SLOT_SIZE, Ring

log = Logger()

Wanted: TypeAlias = tuple[int, int, int]
"""Who asks may name a read by a number; then its offset and its length, in bytes."""

Ended: TypeAlias = tuple[Wanted, Any, bytes | None]
"""A read, what it was begun with, and its bytes; None if it has to be read otherwise."""

LONGEST = SLOT_SIZE
"""The longest read that is taken, in bytes."""


@implementer(IReadDescriptor)
class ShortReads:
    """A ring that a reactor looks after; made by :func:`short_reads`.

    :param told: called with reads that have ended, some at a time.
    """

    def __init__(self, reactor: Any, ring: Ring, told: Callable[[list[Ended]], object]) -> None:
        self._reactor = reactor
        self._ring = ring
        self._told = told
        self._begun: dict[int, tuple[Wanted, Any]] = {}
        reactor.addReader(self)

    def begin(self, fd: int, wanted: Sequence[Wanted], about: Any) -> Sequence[Wanted]:
        """Begin to read from the file *fd* as many of *wanted* as there is room for; return the
        others.

        :param about: comes back with each.
        """
        slots = self._ring.begin(fd, wanted)
        for slot, each in zip(slots, wanted, strict=False):
            self._begun[slot] = each, about
        return wanted[len(slots) :]

    def doRead(self) -> None:
        """Tell of what has been read: what the reactor calls when there is something."""
        begun = self._begun
        ended = [(*begun.pop(slot), data) for slot, data in self._ring.completed()]
        try:
            self._told(ended)
        except Exception:  # noqa: BLE001  # the reactor would never call again, and reads never end
            log.failure("short reads failed with an unexpected error")

    def fileno(self) -> int:
        """As IFileDescriptor has it."""
        return self._ring.fd

    def logPrefix(self) -> str:
        """As ILoggingContext has it."""
        return "short reads"

    def connectionLost(self, reason: Any) -> None:
        """As IFileDescriptor has it: the reactor stops, and the process with it."""

    def close(self) -> None:
        """Have it end; nothing may be under way."""
        self._reactor.removeReader(self)
        self._ring.close()


def short_reads(reactor: Any, told: Callable[[list[Ended]], object]) -> ShortReads | None:
    """Return a ring in *reactor*; None where there can't be one, and the log says why."""
    if not IReactorFDSet.providedBy(reactor):
        return None
    try:
        ring = Ring()
    except OSError as error:
        log.info("reads that wait for the disk take threads: no io_uring: {error}", error=error)
        return None
    return ShortReads(reactor, ring, told)

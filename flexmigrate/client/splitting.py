"""Division of a range into several requests, and one Deferred for all their answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from twisted.internet.defer import Deferred, DeferredList

T = TypeVar("T")


def pieces(offset: int, length: int, largest: int) -> Iterator[tuple[int, int]]:
    """Divide a range into (offset, length) of at most *largest* bytes each, ascending."""
    end = offset + length
    while offset < end:
        size = min(end - offset, largest)
        yield offset, size
        offset += size


def all_of(answers: Sequence[Deferred[T]]) -> Deferred[list[T]]:
    """Return a Deferred that fires with all results, once *every* answer has come.

    If some fail, it fails like the first of them in the sequence, but only after the last answer:
    until then a server may still be filling a reader's buffer.
    """
    gathered = DeferredList(answers, consumeErrors=True)
    return gathered.addCallback(_results)


def _results(outcomes: list[tuple[bool, T]]) -> list[T]:
    for succeeded, outcome in outcomes:
        if not succeeded:
            outcome.raiseException()  # type: ignore[attr-defined]  # it is a Failure then
    return [outcome for _, outcome in outcomes]

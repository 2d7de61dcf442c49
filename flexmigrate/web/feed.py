"""The feed of documents for the page's viewers: the same document for all of them, repeatedly.

Nothing is made without a viewer. A document is made once for all viewers, and each only costs
the sending of it. A viewer that doesn't read is skipped, so that at most one document waits for
it, and is disconnected after a while. Making documents takes a small part of the time: one that
takes long to make is made less often.

At the process's end viewers get a last document, and the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import Cooperator
from twisted.logger import Logger
from twisted.python.failure import Failure

log = Logger()

INTERVAL: Final = 0.5
"""Seconds from one document to the next, at least."""

REST: Final = 20
"""Pause after a document, as a multiple of the time that it took to make it."""

PATIENCE: Final = 30.0
"""Seconds after which a viewer that reads nothing is disconnected."""


class Watcher(Protocol):
    """A viewer of the page.

    :ivar behind: whether an earlier document is still being sent.
    """

    behind: bool

    def send(self, document: str) -> None:
        """Send a document."""

    def end(self, farewell: str | None) -> None:
        """Send the process's result, if it is known, and end."""

    def abort(self) -> None:
        """Disconnect the viewer at once."""


class Feed:
    """The feed; see the module.

    :param pieces: makes a document: yields its text in pieces.
    """

    def __init__(self, reactor: Any, pieces: Callable[[], Iterator[str]]) -> None:
        self._reactor = reactor
        self._pieces = pieces
        self._cooperator = Cooperator(
            # One piece, then others have their turn.
            terminationPredicateFactory=lambda: lambda: True,
            scheduler=lambda step: reactor.callLater(0, step),
        )
        self._behind_since: dict[Watcher, float | None] = {}
        self._asking: list[Deferred[str]] = []
        self._making = False
        self._timer: IDelayedCall | None = None
        self._not_before = 0.0
        self._last: tuple[float, str] | None = None
        self._closed = False

    def join(self, watcher: Watcher) -> None:
        """Send documents to *watcher* from now on."""
        self._behind_since[watcher] = None
        if (document := self._fresh()) is not None:
            watcher.send(document)
        self._go_on()

    def leave(self, watcher: Watcher) -> None:
        """Stop sending to *watcher*, which is gone."""
        self._behind_since.pop(watcher, None)

    def ask(self) -> Deferred[str]:
        """Fire with a document that isn't older than `INTERVAL`; fail if it can't be made."""
        if (document := self._fresh()) is not None:
            return succeed(document)
        answer: Deferred[str] = Deferred()
        self._asking.append(answer)
        self._go_on()
        return answer

    def close(self, farewell: str | None) -> Deferred[None]:
        """Send a last document, and *farewell*; fire once that is written."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._behind_since:
            return succeed(None)
        return self._made().addBoth(lambda _: self._end(farewell))

    def _end(self, farewell: str | None) -> None:
        for watcher in list(self._behind_since):
            watcher.end(farewell)
        self._behind_since.clear()

    def _fresh(self) -> str | None:
        if self._last is None or self._reactor.seconds() - self._last[0] >= INTERVAL:
            return None
        return self._last[1]

    def _go_on(self) -> None:
        """Make a document when it's time for one, if anybody wants it."""
        wanted = self._behind_since or self._asking
        if wanted and not (self._closed or self._making or self._timer is not None):
            wait = max(self._not_before - self._reactor.seconds(), 0.0)
            self._timer = self._reactor.callLater(wait, self._make)

    def _make(self) -> None:
        self._timer = None
        self._making = True
        self._made().addBoth(self._rest)

    def _rest(self, _: object) -> None:
        self._making = False
        self._go_on()

    def _made(self) -> Deferred[None]:
        began = self._reactor.seconds()
        text: list[str] = []

        def collect() -> Iterator[None]:
            for piece in self._pieces():
                text.append(piece)
                yield

        making = self._cooperator.cooperate(collect()).whenDone()

        def done(_: object) -> None:
            now = self._reactor.seconds()
            self._not_before = max(began + INTERVAL, now + REST * (now - began))
            document = "".join(text)
            self._last = (now, document)
            self._tell(document, now)

        return making.addCallback(done).addErrback(self._met_a_bug)

    def _tell(self, document: str, now: float) -> None:
        asking, self._asking = self._asking, []
        for each in asking:
            each.callback(document)
        for watcher, since in list(self._behind_since.items()):
            if not watcher.behind:
                self._behind_since[watcher] = None
                watcher.send(document)
            elif since is None:
                self._behind_since[watcher] = now
            elif now - since >= PATIENCE:
                log.info("disconnected a viewer of the page that read nothing")
                del self._behind_since[watcher]
                watcher.abort()

    def _met_a_bug(self, failure: Failure) -> None:
        """Log the failure. Viewers get nothing, and their browsers try again."""
        log.failure("the page failed with an unexpected error", failure)
        self._not_before = self._reactor.seconds() + PATIENCE
        asking, self._asking = self._asking, []
        for each in asking:
            each.errback(failure)
        watchers, self._behind_since = list(self._behind_since), {}
        for watcher in watchers:
            watcher.abort()

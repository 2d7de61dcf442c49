"""The passes of an attempt: what is dirty is sent, flushed and compared, again and again."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from flexmigrate.client.splitting import all_of
from flexmigrate.errors import MigrationError
from flexmigrate.migration.comparison.verifier import Verifier, new_verifier
from flexmigrate.migration.dirty_map import DirtyMap
from flexmigrate.migration.request import VerifyRule
from flexmigrate.migration.source.connection import DestinationConnection
from flexmigrate.migration.source.convergence import Convergence, Pass
from flexmigrate.migration.source.copier import Copier
from flexmigrate.migration.source.progress import Progress
from flexmigrate.migration.source.rate import RateLimit
from flexmigrate.server.export import Export
from flexmigrate.wire.handover import Answer, State


class Passes:
    """Sends an export to the destination.

    :param verify: what is compared.
    :param about: the migration, for logs.
    :ivar number: how many passes were begun.
    :ivar last: the last one that ended.
    :ivar earlier: sessions that may have left something of use at the destination.
    """

    def __init__(
        self,
        reactor: Any,
        export: Export,
        verify: VerifyRule,
        limit: RateLimit,
        convergence: Convergence,
        progress: Progress,
        about: object = None,
    ) -> None:
        self._reactor = reactor
        self._export = export
        self._verify = verify
        self._limit = limit
        self._convergence = convergence
        self._progress = progress
        self._log = Logger(source=about)
        self._copier: Copier | None = None
        self._verifier: Verifier | None = None
        # Bytes that were dirty for a beginning, and not by what clients did.
        self._found: int | None = None
        self.earlier: frozenset[bytes] = frozenset()
        self.number = 0
        self.last = Pass(0, 0, 0.0, 0)

    @property
    def dirty(self) -> DirtyMap | None:
        """Return what is still to be sent; None before the first pass."""
        return self._copier.dirty if self._copier else None

    @property
    def unverified(self) -> DirtyMap | None:
        """Return what is still to be compared, dirty or not; None where nothing will be."""
        return self._verifier.unverified if self._verifier else None

    @property
    def dirtied(self) -> int | None:
        """Return how many bytes clients have dirtied since the first pass began; None before."""
        if self._found is None:
            return None
        repaired = self._verifier.repaired if self._verifier else 0
        return self._copying.dirty.dirtied - self._found - repaired

    @property
    def verification(self) -> str:
        """The extent of verification: a `VerifyRule`, or "unable" if the destination can't
        compare.
        """
        if self._verify is VerifyRule.OFF or self._verifier is not None:
            return self._verify.value
        return "unable"

    @property
    def digest(self) -> str | None:
        """The image's digest, as `ImageDigest.text` has it, of what was compared so far."""
        return self._verifier.digest.text if self._verifier else None

    @property
    def left(self) -> int:
        """Return how many bytes are dirty; the first pass must have begun."""
        return self._copying.dirty.bytes

    async def send_all(
        self, connection: DestinationConnection, answer: Answer | None, *, drop_cache: bool
    ) -> None:
        """Send everything, once; but for what an earlier attempt has left there, and is the same.

        :param answer: the destination's, in a session.
        :param drop_cache: whether the page cache loses what was sent.
        """
        export = self._export
        if export.storage.flush_failure is not None:
            self._log.warn(
                "{path}: a flush has failed ({failure}): sent is what clients read, which its disk "
                "may not have",
                path=export.storage.path,
                failure=export.storage.flush_failure.text,
            )
        dirty = DirtyMap(export.size)
        assert connection.client is not None
        verifier = self._verifier = new_verifier(
            self._verify,
            answer,
            export,
            connection.client,
            dirty,
            self._progress,
            self._reactor,
            self._log.source,
        )
        copier = self._copier = Copier(
            self._reactor,
            export.storage,
            connection.bundle,
            dirty,
            self._limit,
            self._progress,
            drop_cache,
            lambda: export.turns,
        )
        export.observer = dirty
        export.dirty_runs = dirty.runs
        if verifier is not None and answer is not None and self._has_something(answer):
            self._log.info("the destination may have a part of the image: comparing it")
            await verifier.find()
            self._found = dirty.dirtied - verifier.repaired
            self._log.info("{size} of {all} bytes differ", size=dirty.bytes, all=export.size)
        else:
            await copier.send_holes()
            self._found = dirty.dirtied
        if verifier is not None and self._verify is VerifyRule.FULL:
            copier.sending = verifier.sent
        await self.send()
        if verifier is not None:
            copier.sending = verifier.sent

    def _has_something(self, answer: Answer) -> bool:
        """Return whether a part of the image can be expected to be at the destination."""
        begun = answer.state in (State.RECEIVING, State.PREPARED)
        return begun and answer.session in self.earlier

    async def send(self, *, flush_again: bool = False) -> None:
        """Send, flush and compare what is dirty, once.

        :param flush_again: whether to flush even if nothing was sent since the last flush.
        """
        self.number += 1
        self._progress.begin_pass(self._copying.dirty.bytes)
        copying, dirty, clock = self._copying, self._copying.dirty, self._reactor
        began, before = clock.seconds(), dirty.bytes
        taken, zeroed = dirty.taken, self._progress.zeroed
        await self._followed(
            copying.send_dirty(lambda: self._convergence.enough(dirty.bytes, clock.seconds()))
        )
        if self._verifier is not None:
            await self._verifier.compare()
        sent = clock.seconds()
        # So that the flush in the parked phase has little to do. It may take long, and what is
        # left has to be asked for when it's over.
        flushed = await copying.flush(again=flush_again)
        zeroed = self._progress.zeroed - zeroed
        done = self.last = Pass(
            before=before,
            # What was sent along because it lay between dirty blocks doesn't count.
            sent=max(0, dirty.taken - taken - zeroed),
            seconds=sent - began,
            left=dirty.bytes,
            flush_seconds=clock.seconds() - sent,
            flushed=flushed,
        )
        self.count_dirtied()
        self._log.info(
            "pass {number}: {sent} bytes in {seconds:.2f} s, {left} bytes were changed meanwhile",
            number=self.number,
            sent=done.sent,
            seconds=done.seconds,
            left=done.left,
        )

    async def _followed(self, sending: Coroutine[Any, Any, int]) -> None:
        """Send a pass; the first, which has the most to send, is compared as far as it is."""
        verifier, copying = self._verifier, self._copying
        if verifier is None or self.number > 1 or self._verify is not VerifyRule.FULL:
            await sending
            return
        following = Deferred.fromCoroutine(verifier.follow(lambda: copying.reached))
        following.addErrback(copying.give_up)
        copying.advanced = verifier.advanced
        try:
            await sending
        except BaseException:
            following.cancel()
            raise
        verifier.end_following()
        await following
        copying.raise_failure()

    async def send_rest(self, flushed: Callable[[], object]) -> None:
        """Send, flush and compare what is left, until both images are equal: clients are parked.

        :param flushed: called after each flush.
        :raises MigrationError: the image was changed all the same.
        """
        await self._copying.send_dirty()
        while not await self._flush_and_compare(flushed):
            await self._copying.send_dirty()
        verifier = self._verifier
        if self._copying.dirty.count or (verifier is not None and verifier.unverified.count):
            raise MigrationError("the image was changed while clients were parked")

    async def _flush_and_compare(self, flushed: Callable[[], object]) -> bool:
        """Have what was sent made durable, and compared meanwhile; return whether it is equal."""
        if self._verifier is None:
            await self._copying.flush()
            return True
        comparing = Deferred.fromCoroutine(self._verifier.compare())
        flushing: Deferred[bool] = Deferred.fromCoroutine(self._flush(flushed))
        outcomes: list[bool] = await all_of([comparing, flushing])
        return all(outcomes)

    async def _flush(self, flushed: Callable[[], object]) -> bool:
        await self._copying.flush()
        flushed()
        return True

    def stop_marking(self) -> None:
        """Mark nothing as dirty any more, and let writers write as fast as they can."""
        self._export.observer = None
        self._export.dirty_runs = None
        self._export.free_writers()

    def adjust(self) -> None:
        """Have writers keep to what convergence says, which may have been changed."""
        if self._export.observer is None:
            return  # nothing is copied yet, or any more
        limit, throttle = self._convergence.write_limit, self._export.throttle
        if limit is None:
            self._export.free_writers()
        elif throttle is None or throttle.rate != limit:
            dirty = self._copying.dirty
            self._export.slow_writers(self._reactor, limit, lambda: dirty.dirtied)
            self._log.info(
                "clients write faster than can be sent: limited to {limit} bytes/s",
                limit=int(limit),
            )

    def count_dirtied(self) -> None:
        """Tell convergence how much clients have dirtied so far."""
        total = self.dirtied
        if total is not None:
            self._convergence.dirtied(total, self._reactor.seconds())

    @property
    def _copying(self) -> Copier:
        assert self._copier is not None
        return self._copier

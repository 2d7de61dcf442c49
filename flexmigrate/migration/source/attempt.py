"""One connection from source to destination: its steps, each a coroutine that the source's state
machine runs.

A step doesn't know what comes after it. Before it does something to the server, it registers how
that is undone. ``abandon`` undoes everything, the last first, at any point before the handover is
settled: clients go on, and nothing of the attempt remains.
"""

from __future__ import annotations

from collections.abc import Coroutine
from contextlib import ExitStack
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger

from flexmigrate.client import NBDClientProtocol
from flexmigrate.client.bundle import Bundle
from flexmigrate.client.splitting import all_of
from flexmigrate.errors import ConnectionGone, MigrationError, SessionDeclined
from flexmigrate.log import failures
from flexmigrate.migration.comparison.verifier import Verifier, new_verifier
from flexmigrate.migration.dirty_map import DirtyMap
from flexmigrate.migration.request import VerifyRule
from flexmigrate.migration.source.backoff import Backoff
from flexmigrate.migration.source.convergence import Convergence, ConvergenceVerdict, Pass
from flexmigrate.migration.source.copier import Copier
from flexmigrate.migration.source.environment import (
    MigrationEnvironment,
    SizeMismatch,
    Stalled,
    Timeouts,
)
from flexmigrate.migration.source.handover import (
    HandoverTerms,
    NotConfirmed,
    SourceHandover,
    confirm,
    settling,
)
from flexmigrate.migration.source.progress import Progress
from flexmigrate.migration.source.proposal import MigrationProposal, Proposal
from flexmigrate.migration.source.rate import RateLimit
from flexmigrate.server.export import Export
from flexmigrate.wire.constants import TransmissionFlag
from flexmigrate.wire.handover import Answer, State, parse_answer

WATCH_SECONDS = 1.0
"""How often it is looked whether the destination makes progress, and how much clients dirty."""

LOOK_SECONDS = 5.0
"""How long it counts that the handover could be recorded: to find that out takes a few writes."""


class Attempt:
    """See the module.

    :param terms: what is given, and how.
    :param number: of the attempt, from 1.
    :param about: the migration, for logs.
    :ivar passes: how many walks were begun.
    :ivar warning: what the operator should know of the handover, or of what is overwritten; None:
        it is by a session, to a server that waits for it.
    :ivar obstacle: why clients aren't parked though so little is left that they could be, in words;
        None: nothing is in the way, as far as is known.
    """

    def __init__(
        self,
        reactor: Any,
        export: Export,
        environment: MigrationEnvironment,
        timeouts: Timeouts,
        limit: RateLimit,
        convergence: Convergence,
        progress: Progress,
        terms: HandoverTerms,
        number: int,
        about: object = None,
    ) -> None:
        self._reactor = reactor
        self._export = export
        self._environment = environment
        self._timeouts = timeouts
        self._limit = limit
        self._convergence = convergence
        self._progress = progress
        self._about = about
        self._terms = terms
        self._number = number
        self._handover: SourceHandover | None = None
        self._log = Logger(source=about)
        self._client: NBDClientProtocol | None = None
        self._bundle: Bundle | None = None
        self._copier: Copier | None = None
        self._watchdog = LoopingCall(self._watch)
        self._watchdog.clock = reactor
        # What has to be undone if the image stays here; the last of it first.
        self._undo = ExitStack()
        self._verifier: Verifier | None = None
        self._earlier: frozenset[bytes] = (
            frozenset()
        )  # sessions that may have left something of use
        self._last = Pass(0, 0, 0.0, 0)
        # Bytes that were dirty for a beginning, and not by what clients did.
        self._found: int | None = None
        self._parked_at: float | None = None
        self._parked_until: float | None = None
        self._has_flushed = False
        self._waits_for = ""  # while clients are parked
        self._retry: IDelayedCall | None = None
        self._looked_at: float | None = None
        self.passes = 0
        self.warning: str | None = None
        self.obstacle: str | None = None

    @property
    def dirty(self) -> DirtyMap | None:
        """Return what is still to be sent; None before the connection stands."""
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

    def parked_seconds(self, now: float) -> float:
        """Return for how long clients have been parked, or were in the end."""
        if self._parked_at is None:
            return 0.0
        return (now if self._parked_until is None else self._parked_until) - self._parked_at

    @property
    def has_parked(self) -> bool:
        """Whether clients were parked in it, or are."""
        return self._parked_at is not None

    # The steps, in their order

    async def dial(self) -> None:
        """Connect, and see that the destination's export is as large as the image, and can be
        written to.
        """
        await self._terms.check_name()
        self._terms.check_size()
        await self._terms.check_readers()
        session = await self._terms.wants_session()
        proposal = MigrationProposal(self._terms, self._number, session=session)
        self._earlier = proposal.opening.named
        client = self._client = await self._dial(proposal)
        overwrites = proposal.check(client)
        if client.size != self._export.size:
            raise SizeMismatch(client.size, self._export.size)
        if client.flags & TransmissionFlag.READ_ONLY:
            raise MigrationError("the destination's export is read-only")
        self._bundle = Bundle(client, self._about)
        if client.flags & TransmissionFlag.CAN_MULTI_CONN:
            for _ in range(self._timeouts.connections - 1):
                self._bundle.expect(self._environment.dial(self._timeouts.hello_seconds, None))
        self._watchdog.start(WATCH_SECONDS, now=False)
        client.when_closed().addCallback(lambda _: self.hurry())
        handover = SourceHandover(self._reactor, self._terms, self._number, client, self._about)
        await handover.begin()
        self._handover = handover
        warnings = filter(None, (overwrites, self._terms.warning(session, handover.is_session)))
        self.warning = "; ".join(warnings) or None
        if self.warning is not None:
            self._log.warn("{warning}", warning=self.warning)
        if self._terms.may_be_session:
            self._log.info("handover: {kind}", kind=self.handover_kind)

    async def _dial(self, proposal: Proposal) -> NBDClientProtocol:
        """Connect, and say what *proposal* has.

        :raises FlexmigrateError: why there is no connection.
        """
        try:
            return await self._environment.dial(self._timeouts.hello_seconds, proposal)
        except SessionDeclined as error:
            raise proposal.declined(error) from error

    @property
    def destination(self) -> str:
        """Return the destination as it calls itself, host and path, if it does; and its address."""
        address = self._terms.address
        if self._client is None or self._client.session is None:
            return address
        return f"{parse_answer(self._client.session).name} ({address})"

    @property
    def handover_kind(self) -> str | None:
        """The kind of handover, "session" or "plain"; None before that is known."""
        if self._handover is None:
            return None
        return "session" if self._handover.is_session else "plain"

    @property
    def verification(self) -> str:
        """The extent of verification: a `VerifyRule`, or "unable" if the destination can't
        compare.
        """
        rule = self._terms.verify
        if rule is VerifyRule.OFF or self._verifier is not None:
            return rule.value
        return "unable"

    @property
    def digest(self) -> str | None:
        """The image's digest, as `ImageDigest.text` has it, of what was compared so far."""
        return self._verifier.digest.text if self._verifier else None

    async def copy(self) -> None:
        """The first pass: everything, once; but for what an earlier attempt has left there, and
        is the same.
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
        assert self._bundle is not None
        assert self._client is not None
        answer = None
        if self._handing_over.is_session and self._client.session is not None:
            answer = parse_answer(self._client.session)
        verifier = self._verifier = new_verifier(
            self._terms.verify,
            answer,
            export,
            self._client,
            dirty,
            self._progress,
            self._reactor,
            self._about,
        )
        self._copier = Copier(
            self._reactor,
            export.storage,
            self._bundle,
            dirty,
            self._limit,
            self._progress,
            self._timeouts.drop_cache,
            lambda: export.turns,
        )
        self._undo.callback(self._stop_marking)
        export.observer = dirty
        export.dirty_runs = dirty.runs
        if verifier is not None and answer is not None and self._has_something(answer):
            self._log.info("the destination may have a part of the image: comparing it")
            await verifier.find()
            self._found = dirty.dirtied - verifier.repaired
            self._log.info("{size} of {all} bytes differ", size=dirty.bytes, all=export.size)
        else:
            await self._copier.send_holes()
            self._found = dirty.dirtied
        if verifier is not None and self._terms.verify is VerifyRule.FULL:
            self._copier.sending = verifier.sent
        self._last = await self._pass()
        if verifier is not None:
            self._copier.sending = verifier.sent

    def _has_something(self, answer: Answer) -> bool:
        """Return whether a part of the image can be expected to be at the destination."""
        begun = answer.state in (State.RECEIVING, State.PREPARED)
        return begun and answer.session in self._earlier

    async def converge(self) -> None:
        """Further passes, until clients may be parked for what is left, and nothing is known to be
        in the way of the handover.
        """
        convergence = self._convergence
        backoff = Backoff()
        while True:
            now = self._reactor.seconds()
            throttle = self._export.throttle
            before = convergence.verdict, convergence.allowed
            enough = convergence.after(self._last, throttle.longest_wait if throttle else 0.0, now)
            self.adjust()
            self._tell(*before)
            if enough:
                if await self._is_free():
                    return
                if self.obstacle is not None:
                    await self._wait(backoff)
                    if self._still_fits() and await self._is_free():
                        return  # it was a matter of what is asked for
            # Where parking was put off, it has to be seen how long the next flush takes.
            self._last = await self._pass(flush_again=enough)

    def _still_fits(self) -> bool:
        left, now = self._copying.dirty.bytes, self._reactor.seconds()
        return left <= self._convergence.fitting(now)

    async def _is_free(self) -> bool:
        """Return whether nothing is in the way of a handover now, and tell of what is."""
        left, handover = self._copying.dirty.bytes, self._handing_over
        obstacle = self._convergence.obstacle(left, prepares=handover.is_session)
        if obstacle is not None and self.passes == 1:
            return False  # the flush of so much says little about the next
        if obstacle is None and not self._has_looked():
            await self._terms.check_name()
            obstacle = await handover.obstacle()
            self._looked_at = None if obstacle else self._reactor.seconds()
        self._tell_obstacle(obstacle)
        # To look took a while: what was changed meanwhile may be too much to park for.
        return obstacle is None and self._copying.dirty.bytes <= left

    def _has_looked(self) -> bool:
        """Return whether it was checked just now that the handover can be recorded."""
        at = self._looked_at
        return at is not None and self._reactor.seconds() - at < LOOK_SECONDS

    def _tell_obstacle(self, obstacle: str | None) -> None:
        """Keep what is in the way, if anything is; tell of it once, since its figures change."""
        if obstacle is not None and self.obstacle is None:
            self._log.error(
                "clients are not parked, since that would be in vain: {obstacle}", obstacle=obstacle
            )
        if obstacle is None and self.obstacle is not None:
            self._log.info("the obstacle to the handover is gone")
        if obstacle is not None:
            self._convergence.free_writers()
            self.adjust()
        self.obstacle = obstacle

    async def _wait(self, backoff: Backoff) -> None:
        """Wait before it is looked again whether something is in the way; a change of what was
        asked for ends that.
        """
        waiting: Deferred[None] = Deferred(lambda _: self._end_waiting())
        self._retry = self._reactor.callLater(backoff.failed(), waiting.callback, None)
        try:
            await waiting
        finally:
            self._end_waiting()

    def _end_waiting(self) -> None:
        retry, self._retry = self._retry, None
        if retry is not None and retry.active():
            retry.cancel()

    def hurry(self) -> None:
        """Look at once whether something is in the way still."""
        if self._retry is not None and self._retry.active():
            self._retry.reset(0)

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

    def _tell(self, verdict: ConvergenceVerdict, allowed: float) -> None:
        """Tell the log of what is new since *verdict* and *allowed*."""
        convergence = self._convergence
        if convergence.verdict not in (verdict, ConvergenceVerdict.THROTTLING):
            self._log.info(
                "{verdict}: clients dirty {dirty:.0f} bytes/s, {rate:.0f} bytes/s can be sent",
                verdict=convergence.verdict.value,
                dirty=convergence.dirty_rate(self._reactor.seconds()),
                rate=convergence.send_rate,
            )
        if convergence.allowed > allowed:
            self._log.warn(
                "clients would have to be slowed down too much: they may be parked for {seconds:g} "
                "s instead",
                seconds=convergence.allowed,
            )

    async def finish(self) -> None:
        """Park the clients, and send and flush the rest: both images are equal then."""
        self._terms.check_size()
        await self._terms.check_readers()
        left = self._copying.dirty.bytes
        self._log.info(
            "clients are parked for {left} bytes, which should take {seconds:.3f} s",
            left=left,
            seconds=self._convergence.downtime(left) or 0.0,
        )
        self._parked_at = self._reactor.seconds()
        await self._while_parked(self._send_rest())

    async def _send_rest(self) -> None:
        self._undo.callback(self._export.unpark)
        self._waits_for = "requests of clients were under way still"
        await self._export.park()
        self._waits_for = "the rest was not sent, flushed and compared yet"
        await self._copying.send_dirty()
        while not await self._flush_and_compare():
            await self._copying.send_dirty()
        verifier = self._verifier
        if self._copying.dirty.count or (verifier is not None and verifier.unverified.count):
            raise MigrationError("the image was changed while clients were parked")
        assert self._bundle is not None
        self._bundle.dismiss_others()

    async def _flush_and_compare(self) -> bool:
        """Have what was sent made durable, and compared meanwhile; return whether it is equal."""
        if self._verifier is None:
            await self._copying.flush()
            return True
        comparing = Deferred.fromCoroutine(self._verifier.compare())
        flushing: Deferred[bool] = Deferred.fromCoroutine(self._flushed())
        outcomes: list[bool] = await all_of([comparing, flushing])
        return all(outcomes)

    async def _flushed(self) -> bool:
        await self._copying.flush()
        self._has_flushed = True
        return True

    async def settle(self) -> None:
        """Free the address, under the migration lock, and have the destination prepare."""
        await self._while_parked(self._make_way())

    async def commit(self) -> bool:
        """Take the step that can't be taken back; see :class:`SourceHandover`."""
        return await self._handing_over.commit(self.digest or "")

    async def confirm(self) -> None:
        """Tell the destination that the image is its own, until it answers, on this connection or,
        once that has failed, on another one.

        :raises FlexmigrateError: it has to be told again.
        """
        if self._client is not None:
            return await self._handing_over.confirm()
        record = self._terms.ownership.record
        assert record is not None, "it is committed"
        client = await self._dial(Proposal(settling(record, self._terms.name)))
        if client.session is None:
            client.leave(ConnectionGone("it doesn't support sessions"))
            raise NotConfirmed("the server that listens there now doesn't support sessions")
        self._client = client
        return await confirm(self._reactor, client, self._terms.ownership)

    def let_go(self, reason: str) -> None:
        """The destination was not heard of: it may own the image, so clients had better look there.
        Nothing that is still to be done here needs the lock.
        """
        self._stop_watching()
        client, self._client = self._client, None
        if client is not None:
            client.leave(ConnectionGone(reason))
        self._environment.dismiss()
        self._free_lock()

    async def finish_giving(self) -> None:
        """The image is the destination's: let the clients go there, and clean up."""
        self._environment.dismiss()
        # Their connections end in the reactor's next turn: before that nothing else keeps it busy.
        await deferLater(self._reactor, 0)
        await self._handing_over.finish(self._client)

    async def _make_way(self) -> None:
        await self._terms.check_name()
        self._waits_for = "the serving address was not free yet"
        await self._environment.lock.acquire(self)
        self._undo.callback(self._listen_again)
        await self._environment.stop_listening()
        self._waits_for = "the destination had not said that it is prepared"
        if self._handing_over.is_session:
            await self._handing_over.prepare(self.digest)

    async def _while_parked(self, work: Coroutine[Any, Any, None]) -> None:
        """Do *work* within what is left of the time for which clients may be parked."""
        most = self._convergence.config.max_park
        left = max(0.0, most - self.parked_seconds(self._reactor.seconds()))
        working = Deferred.fromCoroutine(work).addTimeout(left, self._reactor)
        try:
            await working
        except DeferredTimeout:
            if not self._has_flushed:
                self._convergence.flushed_in_vain(most)
            raise MigrationError(
                f"clients were parked for {most:.1f} s, and the handover had not begun: "
                f"{self._waits_for}"
            ) from None

    # Its end

    def close(self) -> None:
        """The image is given away, or may be: free the lock. Clients stay parked."""
        self._undo.pop_all()
        self._hang_up("the migration is over")
        self._free_lock()

    def abandon(self, reason: str) -> None:
        """The image stays here: clients go on, as if nothing had happened."""
        try:
            self._hang_up(reason)
        finally:
            try:
                self._undo.close()
            finally:
                self._free_lock()  # last: who waits for it finds everything as it is to stay

    def _hang_up(self, reason: str) -> None:
        self._parked_until = self._reactor.seconds()
        self._stop_watching()
        if self._client is not None:
            self._client.leave(ConnectionGone(reason))

    def _stop_marking(self) -> None:
        self._export.observer = None
        self._export.dirty_runs = None
        self._export.free_writers()

    def _listen_again(self) -> None:
        # What goes wrong there must not keep those waiting who are connected.
        maybeDeferred(self._environment.resume_listening).addErrback(
            lambda failure: failures.tell(self._log, "listening again failed", failure)
        )

    def _free_lock(self) -> None:
        if self._environment.lock.owner is self:
            self._environment.lock.release(self)

    def _stop_watching(self) -> None:
        if self._watchdog.running:
            self._watchdog.stop()

    # Details

    @property
    def _handing_over(self) -> SourceHandover:
        assert self._handover is not None
        return self._handover

    @property
    def _copying(self) -> Copier:
        assert self._copier is not None
        return self._copier

    async def _pass(self, *, flush_again: bool = False) -> Pass:
        self.passes += 1
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
        done = Pass(
            before=before,
            # What was sent along because it lay between dirty blocks doesn't count.
            sent=max(0, dirty.taken - taken - zeroed),
            seconds=sent - began,
            left=dirty.bytes,
            flush_seconds=clock.seconds() - sent,
            flushed=flushed,
        )
        self._count_dirtied()
        self._log.info(
            "pass {number}: {sent} bytes in {seconds:.2f} s, {left} bytes were changed meanwhile",
            number=self.passes,
            sent=done.sent,
            seconds=done.seconds,
            left=done.left,
        )
        return done

    async def _followed(self, sending: Coroutine[Any, Any, int]) -> None:
        """Send a pass; the first, which has the most to send, is compared as far as it is."""
        verifier, copying = self._verifier, self._copying
        if verifier is None or self.passes > 1 or self._terms.verify is not VerifyRule.FULL:
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

    def _count_dirtied(self) -> None:
        total = self.dirtied
        if total is not None:
            self._convergence.dirtied(total, self._reactor.seconds())

    def _watch(self) -> None:
        """Once a second: a destination that is silent while requests are in flight is given up."""
        self._count_dirtied()
        client, bundle = self._client, self._bundle
        if client is None or bundle is None or not bundle.requests_in_flight:
            return
        silent = self._reactor.seconds() - bundle.last_progress
        if silent > self._timeouts.request_seconds:
            self._stop_watching()
            client.abort(Stalled(f"the destination made no progress for {silent:.0f} s"))

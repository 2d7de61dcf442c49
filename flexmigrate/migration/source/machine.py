"""The source of a migration, as a state machine: from the mirror command to success, failure or
break.

Two rules. Each state in which something goes on owns that step (a Deferred), so leaving the state
ends the step. And only ``settling`` leads into ``committing``, from which no way leads back to
serving unless the handover itself says that nothing has happened. With a session the image is
committed from there on: ``confirming`` asks the destination to say that it knows, and
``unanswered`` waits before it is asked again, for as long as that takes.

What the steps do is in ``attempt``; who owns the image is decided in ``handover``.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from automat import TypeMachineBuilder
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from flexmigrate.errors import Broken, ImageLost, MigrationError, RequestFailed
from flexmigrate.log import failures
from flexmigrate.migration.dirty_map import DirtyMap
from flexmigrate.migration.request import Action, ConvergeChange
from flexmigrate.migration.source.attempt import Attempt
from flexmigrate.migration.source.backoff import Backoff
from flexmigrate.migration.source.convergence import Convergence
from flexmigrate.migration.source.ending import Copied, Ending, GivenAway, Kept, Unconfirmed
from flexmigrate.migration.source.environment import MigrationEnvironment, Timeouts
from flexmigrate.migration.source.handover import HandoverTerms, NotGiven
from flexmigrate.migration.source.progress import Progress
from flexmigrate.migration.source.rate import RateLimit
from flexmigrate.server.export import Export
from flexmigrate.telemetry.states import SourceState

RETRY_SECONDS = 1.0
"""Between an attempt that failed and the next, where no client had to wait for it; where clients
were parked in vain, see `Backoff`."""


class Source(Protocol):
    """The inputs of the state machine: those of the operator, then the results of steps."""

    def start(self) -> None:
        """Begin. Once."""

    def cancel(self, reason: str) -> None:
        """End the migration, and serve on; has no effect from ``committing`` on."""

    def leave(self, reason: str) -> None:
        """The process ends: don't ask the destination any more; after ``cancel``."""

    def _agreed(self) -> None:
        """The destination said hello, with the right size."""

    def _copied(self) -> None:
        """The first pass is done."""

    def _converged(self) -> None:
        """The rest fits into the allowed downtime."""

    def _equal(self) -> None:
        """Clients are parked, and both images are equal."""

    def _prepared(self) -> None:
        """The way is free, and the destination is prepared, if it can be."""

    def _only_copied(self) -> None:
        """There is nothing to hand over: the destination has a copy."""

    def _committed(self) -> None:
        """The source's journal says that the image is not ours any more."""

    def _unanswered(self, failure: Failure) -> None:
        """The destination did not say that it knows."""

    def _finished(self) -> None:
        """Nothing is left to do."""

    def _given(self) -> None:
        """The destination owns the image."""

    def _not_given(self, failure: Failure) -> None:
        """The handover failed, and the image is certainly still ours."""

    def _failed(self, failure: Failure) -> None:
        """The step failed."""

    def _hopeless(self, failure: Failure) -> None:
        """The step failed, and no further attempt can come to anything; the image is ours."""

    def _retry(self) -> None:
        """It's time for the next attempt."""


@dataclass
class Core:
    """The data that all states share.

    :ivar migration_id: a random id of the migration, for logs.
    :ivar logger: the logger for events about this migration.
    :ivar started: fires when the destination agreed to the first attempt, or fails as that did.
    :ivar finished: fires with how the migration has ended, if it had started; never fails.
    :ivar state: of the machine; set by ``enter`` only.
    """

    reactor: Any
    export: Export
    environment: MigrationEnvironment
    terms: HandoverTerms
    timeouts: Timeouts
    limit: RateLimit
    convergence: Convergence
    began: float
    progress: Progress
    started: Deferred[None] = field(default_factory=Deferred)
    finished: Deferred[Ending] = field(default_factory=Deferred)
    migration_id: str = field(default_factory=lambda: secrets.token_hex(4))
    attempt: Attempt | None = None
    attempts: int = 0
    state: SourceState = SourceState.NEW
    last_error: str | None = None
    failed: failures.Repeated = field(default_factory=failures.Repeated)
    in_vain: Backoff = field(default_factory=Backoff)
    retry: IDelayedCall | None = None

    def __post_init__(self) -> None:
        self.logger = Logger(source=self)
        self._entered = {self.state}  # in this attempt

    @property
    def log_about(self) -> Mapping[str, str]:
        """The migration: see ``log.layouts.About``."""
        return {"migration": self.migration_id}

    @property
    def phase(self) -> str:
        """The name of the state's phase."""
        return self.state.phase

    def enter(self, state: SourceState) -> None:
        """Keep which state the machine is in, and tell of it: of one that an attempt enters again
        and again, as while the destination doesn't confirm, only once.
        """
        self.state = state
        is_news = state not in self._entered
        self._entered.add(state)
        tell = self.logger.info if is_news else self.logger.debug
        tell("migration: {state}", state=state.label)
        if is_news:
            self.progress.changed()

    def begin_attempt(self) -> None:
        """Count another attempt, whose states are news."""
        self.attempts += 1
        self._entered = {self.state}

    def new_attempt(self) -> Attempt:
        """Begin another."""
        self.begin_attempt()
        self.convergence.restart(self.reactor.seconds())
        self.progress.restart(self.reactor.seconds())
        self.attempt = Attempt(
            self.reactor,
            self.export,
            self.environment,
            self.timeouts,
            self.limit,
            self.convergence,
            self.progress,
            self.terms,
            self.attempts,
            about=self,
        )
        return self.attempt

    def change(self, change: ConvergeChange) -> None:
        """Change how it comes to its end; concerns the attempt that runs, too.

        :raises CommandError: if the change makes no sense.
        """
        self.convergence.change(change, self.reactor.seconds())
        if self.attempt is not None:
            self.attempt.passes.adjust()
        self.hurry()

    def hurry(self) -> None:
        """End the current wait at once: the request has changed."""
        self.in_vain.reset()
        if self.attempt is not None:
            self.attempt.hurry()
        if self.retry is not None and self.retry.active():
            self.retry.reset(0)

    @property
    def obstacle(self) -> str | None:
        """Return what keeps the migration from its end, in words; None: nothing that is known."""
        obstacle = self.attempt.obstacle if self.attempt is not None else None
        if obstacle is None and self.in_vain.failures > 1:
            return (
                f"clients were parked {self.in_vain.failures} times in vain, the last time because "
                f"{self.last_error}"
            )
        return obstacle

    @property
    def current(self) -> Attempt:
        """Return the attempt, in the states that have one."""
        assert self.attempt is not None
        return self.attempt

    @property
    def dirty(self) -> DirtyMap | None:
        """Return what is still to be sent, once that is known."""
        return self.attempt.passes.dirty if self.attempt else None

    @property
    def unverified(self) -> DirtyMap | None:
        """The ranges that are still to be compared; None if nothing will be."""
        return self.attempt.passes.unverified if self.attempt else None

    def abandon(self, reason: str) -> None:
        """End the attempt, if there is one; clients go on."""
        if self.attempt is not None:
            self.attempt.abandon(reason)


Step = Deferred[None]


def _step(
    source: Source,
    core: Core,
    state: SourceState,
    work: Coroutine[Any, Any, None],
    done: Callable[[], None],
    failed: Callable[[Failure], None] | None = None,
) -> Step:
    """Enter *state*, and run *work*; its end is an input, its failure another."""
    core.enter(state)
    step = Deferred.fromCoroutine(work)
    step.addCallbacks(
        lambda _: done(), failed or (lambda failure: _fail(source, _placed(failure, core)))
    )
    step.addErrback(
        lambda failure: core.logger.failure(
            "the migration's state machine failed with an unexpected error", failure
        )
    )
    return step


def _placed(failure: Failure, core: Core) -> Failure:
    """Return *failure* with what it doesn't say by itself: at which side it was."""
    error = failure.value
    if isinstance(error, RequestFailed):
        return Failure(MigrationError(f"at the destination, {core.current.destination}: {error}"))
    if isinstance(error, OSError):
        return Failure(MigrationError(f"at the source: {error.strerror or error}"))
    return failure


def _fail(source: Source, failure: Failure) -> None:
    """Tell that a step failed before anything was given away, and whether that can be mended."""
    if failure.check(ImageLost):
        source._hopeless(failure)
    else:
        source._failed(failure)


def _dial(source: Source, core: Core) -> Step:
    work = core.new_attempt().dial()
    return _step(source, core, SourceState.DIALLING, work, source._agreed)


def _redial(source: Source, core: Core) -> Step:
    work = core.new_attempt().dial()
    return _step(source, core, SourceState.REDIALLING, work, source._agreed)


def _copy(source: Source, core: Core) -> Step:
    return _step(source, core, SourceState.COPYING, core.current.copy(), source._copied)


def _converge(source: Source, core: Core) -> Step:
    return _step(source, core, SourceState.CONVERGING, core.current.converge(), source._converged)


def _finish(source: Source, core: Core) -> Step:
    return _step(source, core, SourceState.PARKED, core.current.finish(), source._equal)


def _settle(source: Source, core: Core) -> Step:
    if core.terms.action is Action.NOTHING:
        return _step(source, core, SourceState.SETTLING, _nothing_to_do(), source._only_copied)
    return _step(source, core, SourceState.SETTLING, core.current.settle(), source._prepared)


async def _nothing_to_do() -> None:
    """Hand nothing over."""


def _commit(source: Source, core: Core) -> Step:
    async def commit() -> None:
        if await core.current.commit():
            source._given()
        else:
            source._committed()

    def failed(failure: Failure) -> None:
        if failure.check(NotGiven):
            source._not_given(failure)
        else:
            _fail(source, failure)

    return _step(source, core, SourceState.COMMITTING, commit(), _nothing, failed)


def _confirm(source: Source, core: Core) -> Step:
    return _step(
        source,
        core,
        SourceState.CONFIRMING,
        core.current.confirm(),
        source._given,
        source._unanswered,
    )


def _ask_again(source: Source, core: Core, failure: Failure) -> IDelayedCall:
    """Let the clients go, who can be served nowhere but at the destination, and ask in a while."""
    error = core.last_error = failures.reason(failure)
    core.enter(SourceState.UNANSWERED)
    path = core.terms.storage.path
    text = "{path} is not confirmed yet: {place} was asked {times} times, and answers the same"
    if core.failed.is_news(error):
        text = (
            "{path} is committed to {place}, which has not confirmed it: {error}; it is asked "
            "again in {seconds:.0f} s, until it does. See 'flexmigrate whose {path}'"
        )
    if core.failed.is_due:
        core.logger.error(
            text,
            path=path,
            place=core.terms.address,
            error=error,
            times=core.failed.times,
            seconds=RETRY_SECONDS,
        )
    if not failures.is_expected(failure):
        core.logger.failure("unexpected error", failure)
    core.current.let_go(error)
    delayed: IDelayedCall = core.reactor.callLater(RETRY_SECONDS, source._retry)
    return delayed


def _finish_giving(source: Source, core: Core) -> Step:
    return _step(
        source,
        core,
        SourceState.FINISHING,
        core.current.finish_giving(),
        source._finished,
        lambda failure: _finished_badly(source, core, failure),
    )


def _finished_badly(source: Source, core: Core, failure: Failure) -> None:
    """The image is given away all the same."""
    failures.tell(core.logger, "after the handover", failure)
    source._finished()


def _nothing() -> None:
    """The step has told its end itself."""


def _again(source: Source, core: Core, failure: Failure) -> IDelayedCall:
    """Undo the attempt, and make another in a while."""
    core.last_error = failures.reason(failure)
    core.enter(SourceState.WAITING)
    core.progress.restart(core.reactor.seconds())
    seconds = core.timeouts.retry_seconds
    if core.current.has_parked:
        seconds = max(seconds, core.in_vain.failed())
    text = "attempt {number} failed as the {times} before: the next is in {seconds:.0f} s"
    if core.failed.is_news(core.last_error):
        text = "attempt {number} failed: {error}; the next is in {seconds:.0f} s"
    if core.failed.is_due:
        core.logger.error(
            text,
            number=core.attempts,
            error=core.last_error,
            times=core.failed.times - 1,
            seconds=seconds,
        )
    if not failures.is_expected(failure):
        core.logger.failure("unexpected error", failure)
    core.abandon(core.last_error)
    delayed: IDelayedCall = core.reactor.callLater(seconds, source._retry)
    core.retry = delayed
    return delayed


builder = TypeMachineBuilder(Source, Core)
new = builder.state("new")
dialling = builder.state("dialling", _dial)
copying = builder.state("copying", _copy)
converging = builder.state("converging", _converge)
parked = builder.state("parked", _finish)
settling = builder.state("settling", _settle)
committing = builder.state("committing", _commit)
confirming = builder.state("confirming", _confirm)
unanswered = builder.state("unanswered", _ask_again)
finishing = builder.state("finishing", _finish_giving)
waiting = builder.state("waiting", _again)
redialling = builder.state("redialling", _redial)
given = builder.state("given")
ended = builder.state("ended")

# The way, at a glance.
new.upon(Source.start).to(dialling).returns(None)
redialling.upon(Source._agreed).to(copying).returns(None)
copying.upon(Source._copied).to(converging).returns(None)
converging.upon(Source._converged).to(parked).returns(None)
parked.upon(Source._equal).to(settling).returns(None)
settling.upon(Source._prepared, nodata=True).to(committing).returns(None)
committing.upon(Source._committed, nodata=True).to(confirming).returns(None)
confirming.upon(Source._given, nodata=True).to(finishing).returns(None)
committing.upon(Source._given, nodata=True).to(finishing).returns(None)
waiting.upon(Source._retry, nodata=True).to(redialling).returns(None)

# Nobody else can be the owner now, so it is asked until it says so.
confirming.upon(Source._unanswered, nodata=True).to(unanswered).returns(None)
unanswered.upon(Source._retry, nodata=True).to(confirming).returns(None)

# A later attempt that fails is followed by another.
for trying in (redialling, copying, converging, parked, settling):
    trying.upon(Source._failed, nodata=True).to(waiting).returns(None)
committing.upon(Source._not_given, nodata=True).to(waiting).returns(None)

# What comes late changes nothing: a step that was cancelled says so after its state was left, and
# nobody can break off what is settled or over.
for over in (given, ended):
    over.upon(Source._failed).loop().returns(None)
    over.upon(Source._hopeless).loop().returns(None)
    over.upon(Source._unanswered).loop().returns(None)
    over.upon(Source.cancel).loop().returns(None)
    over.upon(Source.leave).loop().returns(None)
for past in (committing, confirming, unanswered, finishing):
    past.upon(Source.cancel, nodata=True).loop().returns(None)
# These hold the migration lock, and whoever leaves waits for that; what they come to is the truth.
for settled in (committing, finishing):
    settled.upon(Source.leave, nodata=True).loop().returns(None)


@dialling.upon(Source._agreed, nodata=True).to(copying)
def _first_agreed(source: Source, core: Core) -> None:
    core.started.callback(None)


@dialling.upon(Source._failed).to(ended)
@dialling.upon(Source._hopeless).to(ended)
def _first_failed(source: Source, core: Core, step: Step, failure: Failure) -> None:
    """The first attempt's failure is the answer to the command, and the end."""
    _keep(core, failure.getErrorMessage())
    core.started.errback(failure)


@redialling.upon(Source._hopeless).to(ended)
@copying.upon(Source._hopeless).to(ended)
@converging.upon(Source._hopeless).to(ended)
@parked.upon(Source._hopeless).to(ended)
@settling.upon(Source._hopeless).to(ended)
@committing.upon(Source._hopeless).to(ended)
def _given_up(source: Source, core: Core, step: Step, failure: Failure) -> None:
    """Serve on, and don't try it again."""
    core.last_error = failure.getErrorMessage()
    _keep(core, core.last_error)
    core.finished.callback(Kept(core.last_error))


@settling.upon(Source._only_copied).to(ended)
def _copied_only(source: Source, core: Core, step: Step) -> None:
    """Without a handover: the destination has a copy, and the image stays here."""
    _keep(core, "the copy is complete")
    core.finished.callback(Copied())


@finishing.upon(Source._finished).to(given)
def _handed_over(source: Source, core: Core, step: Step) -> None:
    _give(core, GivenAway())


@committing.upon(Source._failed).to(given)
def _not_confirmed(source: Source, core: Core, step: Step, failure: Failure) -> None:
    """Keep the image closed whatever the reason: it may be the destination's."""
    _give(core, Unconfirmed(failures.reason(failure)))


@confirming.upon(Source.leave).to(given)
def _leave_confirming(source: Source, core: Core, step: Step, reason: str) -> None:
    step.cancel()
    _stay_committed(core, reason)


@unanswered.upon(Source.leave).to(given)
def _leave_unanswered(source: Source, core: Core, retry: IDelayedCall, reason: str) -> None:
    retry.cancel()
    _stay_committed(core, reason)


def _stay_committed(core: Core, reason: str) -> None:
    """The image is the destination's, or will be once it is told: whoever serves it next here is
    told so by the journal.
    """
    text = (
        f"{core.terms.storage.path} is committed to {core.terms.address}, which has not "
        f"confirmed it ({reason}); a 'serve' of it will ask again"
    )
    _give(core, Unconfirmed(text))


@new.upon(Source.cancel).to(ended)
def _never_began(source: Source, core: Core, reason: str) -> None:
    _keep(core, reason)
    core.started.errback(Failure(Broken(reason)))


@dialling.upon(Source.cancel).to(ended)
def _break_first(source: Source, core: Core, step: Step, reason: str) -> None:
    step.cancel()
    _keep(core, reason)
    core.started.errback(Failure(Broken(reason)))


@redialling.upon(Source.cancel).to(ended)
@copying.upon(Source.cancel).to(ended)
@converging.upon(Source.cancel).to(ended)
@parked.upon(Source.cancel).to(ended)
@settling.upon(Source.cancel).to(ended)
def _break(source: Source, core: Core, step: Step, reason: str) -> None:
    step.cancel()
    _keep(core, reason)
    core.finished.callback(Kept(reason))


@waiting.upon(Source.cancel).to(ended)
def _break_waiting(source: Source, core: Core, retry: IDelayedCall, reason: str) -> None:
    retry.cancel()
    _keep(core, reason)
    core.finished.callback(Kept(reason))


def _keep(core: Core, reason: str) -> None:
    """Enter ``ended``: clients go on."""
    core.enter(SourceState.ENDED)
    core.abandon(reason)


def _give(core: Core, ending: Ending) -> None:
    """Enter ``given``, and tell so before the lock is free: who waits for it asks then what came
    of this.
    """
    core.enter(SourceState.GIVEN)
    core.finished.callback(ending)
    core.current.close()


SourceMachine = builder.build()
"""Makes a Source of a Core."""

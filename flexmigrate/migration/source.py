"""The source of a migration, as a state machine: from the mirror command to success, failure or
break.

Two rules. Each state in which something goes on owns that step (a Deferred), so leaving the state
ends the step. And only the handover leads out of ``settling`` into ``committing``, from which no
way leads back to serving unless the handover itself says that nothing has happened.

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

from flexmigrate.control.grammar import Action, ConvergeChange
from flexmigrate.errors import Broken, FlexmigrateError
from flexmigrate.image.dirty import DirtyMap
from flexmigrate.migration.attempt import Allowances, Attempt, Ground
from flexmigrate.migration.convergence import Convergence
from flexmigrate.migration.copying import Progress
from flexmigrate.migration.handover import NotGiven
from flexmigrate.migration.plan import RateLimit
from flexmigrate.server.export import Export

RETRY_SECONDS = 1.0
"""Between an attempt that failed and the next."""


class Source(Protocol):
    """Inputs: those for the operator, then those by which the steps tell their ends."""

    def start(self) -> None:
        """Begin. Once."""

    def cancel(self, reason: str) -> None:
        """End the migration, and serve on; has no effect from ``committing`` on."""

    def _agreed(self) -> None:
        """The destination said hello, with the right size."""

    def _copied(self) -> None:
        """The first pass is done."""

    def _converged(self) -> None:
        """The rest fits into the allowed downtime."""

    def _equal(self) -> None:
        """Clients are parked, and both images are equal."""

    def _committing(self) -> None:
        """The next act can't be taken back."""

    def _given(self) -> None:
        """The destination owns the image."""

    def _not_given(self, failure: Failure) -> None:
        """The handover failed, and the image is certainly still ours."""

    def _failed(self, failure: Failure) -> None:
        """The step failed."""

    def _retry(self) -> None:
        """It's time for the next attempt."""


@dataclass
class Core:
    """What all states share.

    :ivar migration_id: tells migrations apart, in logs of one server and of several.
    :ivar logger: for what is about this migration.
    :ivar started: fires when the destination agreed to the first attempt, or fails as that did.
    :ivar finished: fires with what the clients may expect: True if the image is given away, False
        if it was only copied; fails with why the migration ended otherwise.
    """

    reactor: Any
    export: Export
    ground: Ground
    action: Action
    allowances: Allowances
    limit: RateLimit
    convergence: Convergence
    began: float
    progress: Progress
    started: Deferred[None] = field(default_factory=Deferred)
    finished: Deferred[bool] = field(default_factory=Deferred)
    migration_id: str = field(default_factory=lambda: secrets.token_hex(4))
    attempt: Attempt | None = None
    attempts: int = 0
    phase: str = "new"
    last_error: str | None = None

    def __post_init__(self) -> None:
        self.logger = Logger(source=self)

    @property
    def log_about(self) -> Mapping[str, str]:
        """The migration: see ``log.layouts.About``."""
        return {"migration": self.migration_id}

    def enter(self, phase: str) -> None:
        """Name the state that the migration is in now, for whoever looks on."""
        self.phase = phase
        self.progress.changed()

    def new_attempt(self) -> Attempt:
        """Begin another."""
        self.attempts += 1
        self.convergence.restart(self.reactor.seconds())
        self.attempt = Attempt(
            self.reactor,
            self.export,
            self.ground,
            self.allowances,
            self.limit,
            self.convergence,
            self.progress,
            about=self,
        )
        return self.attempt

    def change(self, change: ConvergeChange) -> None:
        """Change how it comes to its end; concerns the attempt that runs, too.

        :raises CommandError: if the change makes no sense.
        """
        self.convergence.change(change, self.reactor.seconds())
        if self.attempt is not None:
            self.attempt.adjust()

    @property
    def current(self) -> Attempt:
        """Return the attempt, in the states that have one."""
        assert self.attempt is not None
        return self.attempt

    @property
    def dirty(self) -> DirtyMap | None:
        """Return what is still to be sent, once that is known."""
        return self.attempt.dirty if self.attempt else None

    def abandon(self, reason: str) -> None:
        """End the attempt, if there is one; clients go on."""
        if self.attempt is not None:
            self.attempt.abandon(reason)


Step = Deferred[None]


def _step(
    source: Source,
    core: Core,
    phase: str,
    work: Coroutine[Any, Any, None],
    done: Callable[[], None],
    failed: Callable[[Failure], None] | None = None,
) -> Step:
    """Run *work*; its end is an input, its failure another."""
    core.enter(phase)
    core.logger.info("migration: {phase}", phase=phase)
    step = Deferred.fromCoroutine(work)
    step.addCallbacks(lambda _: done(), failed or source._failed)
    step.addErrback(lambda failure: core.logger.failure("a bug in the migration's states", failure))
    return step


def _dial(source: Source, core: Core) -> Step:
    return _step(source, core, "dialling", core.new_attempt().dial(), source._agreed)


def _copy(source: Source, core: Core) -> Step:
    return _step(source, core, "copying", core.current.copy(), source._copied)


def _converge(source: Source, core: Core) -> Step:
    return _step(source, core, "converging", core.current.converge(), source._converged)


def _finish(source: Source, core: Core) -> Step:
    return _step(source, core, "parked", core.current.finish(), source._equal)


def _settle(source: Source, core: Core) -> Step:
    def failed(failure: Failure) -> None:
        if failure.check(NotGiven):
            source._not_given(failure)
        else:
            source._failed(failure)

    return _step(source, core, "settling", _give(source, core), source._given, failed)


async def _give(source: Source, core: Core) -> None:
    if core.action is not Action.NOTHING:
        await core.current.settle(core.action is Action.UNLINK, source._committing)


def _again(source: Source, core: Core, failure: Failure) -> IDelayedCall:
    """Undo the attempt, and make another in a while."""
    core.last_error = failure.getErrorMessage()
    core.enter("waiting")
    core.logger.error(
        "attempt {number} failed: {error}; the next is in {seconds:.0f} s",
        number=core.attempts,
        error=core.last_error,
        seconds=RETRY_SECONDS,
    )
    if not failure.check(FlexmigrateError, OSError):
        core.logger.failure("the error was not one that is expected here", failure)
    core.abandon(core.last_error)
    delayed: IDelayedCall = core.reactor.callLater(RETRY_SECONDS, source._retry)
    return delayed


builder = TypeMachineBuilder(Source, Core)
new = builder.state("new")
dialling = builder.state("dialling", _dial)
copying = builder.state("copying", _copy)
converging = builder.state("converging", _converge)
parked = builder.state("parked", _finish)
settling = builder.state("settling", _settle)
committing = builder.state("committing")
waiting = builder.state("waiting", _again)
redialling = builder.state("redialling", _dial)
given = builder.state("given")
ended = builder.state("ended")

# The way, at a glance.
new.upon(Source.start).to(dialling).returns(None)
redialling.upon(Source._agreed).to(copying).returns(None)
copying.upon(Source._copied).to(converging).returns(None)
converging.upon(Source._converged).to(parked).returns(None)
parked.upon(Source._equal).to(settling).returns(None)
waiting.upon(Source._retry, nodata=True).to(redialling).returns(None)

# A later attempt that fails is followed by another.
for trying in (redialling, copying, converging, parked, settling):
    trying.upon(Source._failed, nodata=True).to(waiting).returns(None)
settling.upon(Source._not_given, nodata=True).to(waiting).returns(None)
committing.upon(Source._not_given).to(waiting).returns(None)

# What comes late changes nothing: a step that was cancelled says so after its state was left, and
# nobody can break off what is settled or over.
for over in (given, ended):
    over.upon(Source._failed).loop().returns(None)
    over.upon(Source._not_given).loop().returns(None)
for past in (committing, given, ended):
    past.upon(Source.cancel).loop().returns(None)


@dialling.upon(Source._agreed, nodata=True).to(copying)
def _first_agreed(source: Source, core: Core) -> None:
    core.started.callback(None)


@dialling.upon(Source._failed).to(ended)
def _first_failed(source: Source, core: Core, step: Step, failure: Failure) -> None:
    """The first attempt's failure is the answer to the command, and the end."""
    core.enter("ended")
    core.abandon(failure.getErrorMessage())
    core.started.errback(failure)


@settling.upon(Source._committing).to(committing)
def _point_of_no_return(source: Source, core: Core, step: Step) -> None:
    core.enter("committing")


@settling.upon(Source._given).to(ended)
def _only_copied(source: Source, core: Core, step: Step) -> None:
    """Without a handover: the destination has a copy, and the image stays here."""
    core.enter("ended")
    core.abandon("the copy is complete")
    core.finished.callback(False)


@committing.upon(Source._given).to(given)
def _handed_over(source: Source, core: Core) -> None:
    core.enter("given")
    # Before the lock is free: who waits for it asks then what came of this.
    core.finished.callback(True)
    core.current.close()


@committing.upon(Source._failed).to(given)
def _not_confirmed(source: Source, core: Core, failure: Failure) -> None:
    """Whatever it was, the image may be the destination's: it isn't served here any more."""
    core.enter("given")
    core.finished.errback(failure)
    core.current.close()


@new.upon(Source.cancel).to(ended)
def _never_began(source: Source, core: Core, reason: str) -> None:
    core.enter("ended")
    core.started.errback(Failure(Broken(reason)))


@dialling.upon(Source.cancel).to(ended)
def _break_first(source: Source, core: Core, step: Step, reason: str) -> None:
    _stop(core, step, reason)
    core.started.errback(Failure(Broken(reason)))


@redialling.upon(Source.cancel).to(ended)
@copying.upon(Source.cancel).to(ended)
@converging.upon(Source.cancel).to(ended)
@parked.upon(Source.cancel).to(ended)
@settling.upon(Source.cancel).to(ended)
def _break(source: Source, core: Core, step: Step, reason: str) -> None:
    _stop(core, step, reason)
    core.finished.errback(Failure(Broken(reason)))


@waiting.upon(Source.cancel).to(ended)
def _break_waiting(source: Source, core: Core, retry: IDelayedCall, reason: str) -> None:
    retry.cancel()
    core.enter("ended")
    core.finished.errback(Failure(Broken(reason)))


def _stop(core: Core, step: Step, reason: str) -> None:
    core.enter("ended")
    step.cancel()
    core.abandon(reason)


SourceMachine = builder.build()
"""Makes a Source of a Core."""

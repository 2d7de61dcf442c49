"""The destination of a migration, as a state machine: one sender at a time, until one has sent
everything.

The rule: only ``_goodbye``, the DISC of the plain sender that is being received, and ``_commit``, a
session's COMMIT after it was prepared, lead to the question who owns the image; ``handover``
answers it. A connection that ends in any other way leads back to ``waiting``. What it brought
is discarded then, unless the journal says that it was prepared.
"""

from __future__ import annotations

from typing import Any, Protocol

from automat import TypeMachineBuilder
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from flexmigrate.log import failures
from flexmigrate.migration.comparison.digests import ImageDigest
from flexmigrate.migration.destination.coverage import Coverage
from flexmigrate.migration.destination.handover import DestinationHandover, DiscVerdict
from flexmigrate.migration.destination.write_back import Reception, WriteBack
from flexmigrate.migration.ownership.journal import now
from flexmigrate.server.export import Export
from flexmigrate.telemetry.states import DestinationState
from flexmigrate.wire.handover import Outcome, fit_text

FIRST_REQUEST_SECONDS = 10.0
"""A connection that asks for nothing does not hold the place of the sender for longer."""


class Sender(Protocol):
    """A connection to a destination.

    :ivar address: its address, for people.
    """

    address: str

    def probe(self) -> None:
        """Find out soon whether its other end is there still."""

    @property
    def requests_taken(self) -> int:
        """The number of requests that it has made."""

    def abort(self, reason: str) -> None:
        """Close it at once."""

    def dismiss(self, reason: str) -> None:
        """Carry nothing more out, answer why, and close it soon."""

    def fail_changes(self, error: OSError) -> None:
        """Answer all further changes with *error*, and carry none of them out."""


class Destination(Protocol):
    """The inputs of the state machine."""

    def sender_connected(self, sender: Sender) -> None:
        """A sender was let in."""

    def sender_lost(self, sender: Sender) -> None:
        """The sender's connection is gone, in whatever way; see ``DestinationCore.is_from``."""

    def cancel(self, reason: str = "") -> None:
        """The process is told to end."""

    def resume(self) -> None:
        """The image was ours when the process was started; its source may not know."""

    def _prepare(
        self, sender: Sender, outcome: Deferred[Outcome], claimed: str | None = None
    ) -> None:
        """The sender said PREPARE, and can change nothing any more; with its image's digest, or
        without.
        """

    def _sealed(self) -> None:
        """PREPARE was answered, and the sender is there still."""

    def _commit(self, outcome: Deferred[Outcome]) -> None:
        """The source of what is prepared said COMMIT."""

    def _goodbye(self, sender: Sender, answer: Deferred[bool]) -> None:
        """The sender said DISC, and all it asked for is done."""

    def _drained(self) -> None:
        """Nothing that the lost sender asked for is under way any more."""

    def _silent(self) -> None:
        """The sender's time to ask for something is over."""

    def _ours(self) -> None:
        """The image is ours."""

    def _not_ours(self) -> None:
        """It isn't."""

    def _failed(self, failure: Failure) -> None:
        """The decision could not be carried out."""


class DestinationCore:
    """The data that all states share.

    :ivar state: of the machine; set by ``enter`` only.
    :ivar logger: the logger for events about the sender, or the last one.
    :ivar since: when the sender came, for people.
    :ivar coverage: the coverage by the attempt.
    :ivar digest: made of what was compared with the source's and equal.
    :ivar is_believed: whether reads of the image return the disk's content.
    :ivar complete: fires once the image is ours. ``confirm`` is to be called when its new owner is
        ready: the close of the connection is what tells the sender.
    """

    def __init__(self, reactor: Any, export: Export, handover: DestinationHandover) -> None:
        self.reactor = reactor
        self.export = export
        self.handover = handover
        self.complete: Deferred[None] = Deferred()
        self.state = DestinationState.WAITING
        self.coverage = Coverage(export.size)
        self.digest = ImageDigest(export.size)
        self.write_back = WriteBack(export, export.storage, self._cannot_write)
        self.is_believed = True
        self.sender: Sender | None = None
        self.answer: Deferred[bool] | None = None
        self.outcome: Deferred[Outcome] | None = None
        self.since = ""
        self.attempts = 0
        self.logger = Logger()
        self._vacancies: list[Deferred[None]] = []

    def enter(self, state: DestinationState) -> None:
        """Keep which state the machine is in, and tell of it."""
        self.state = state
        self.logger.debug("receiving a migration: {state}", state=state.label)

    @property
    def busy(self) -> str | None:
        """Return why no sender is wanted now, or None."""
        if self.state is DestinationState.WAITING:
            return None
        if self.state in (DestinationState.SEALED, DestinationState.OWNING) or (
            self.state is DestinationState.COMPLETE and self.handover.by_session
        ):
            return None  # it may have come to settle: who hasn't gets no further than the gate
        if self.state in (
            DestinationState.RECEIVING,
            DestinationState.SETTLING,
            DestinationState.PREPARING,
        ):
            return self.taken
        if self.state is DestinationState.DRAINING:
            return "the last sender's requests aren't over yet"
        return "the migration is over"

    @property
    def taken(self) -> str:
        """Return who has the sender's place, and since when, in words."""
        where = "" if self.sender is None else f": {self.sender.address}, since {self.since}"
        return f"a sender is connected already{where}"

    def vacant(self) -> Deferred[None]:
        """Fire once a sender may come, which may be now."""
        if self.state is DestinationState.WAITING:
            return succeed(None)
        vacancy: Deferred[None] = Deferred()
        self._vacancies.append(vacancy)
        return vacancy

    def _tell_vacancies(self) -> None:
        vacancies, self._vacancies = self._vacancies, []
        for each in vacancies:
            each.callback(None)

    def _cannot_write(self, error: OSError) -> None:
        """The disk doesn't take what is received: the sender is told at once, not in the end."""
        self.logger.error("cannot write received data: {error}", error=error.strerror)
        self.coverage.flush_failed(error)
        if self.sender is not None:
            self.sender.fail_changes(error)

    def is_from(self, sender: Sender) -> bool:
        """Return whether an event of *sender* counts. A sender that was lost, or refused at its
        DISC, may still cause events when another one has its place.
        """
        return self.sender is sender

    def forget(self) -> None:
        """Discard the record of what was received."""
        self.sender = None
        if self._vacancies:
            # Once the machine is in the state that leads to this.
            self.reactor.callLater(0, self._tell_vacancies)
        self.coverage = Coverage(self.export.size)
        self.digest = ImageDigest(self.export.size)
        self.write_back.begin()
        self.export.observer = Reception(
            self.coverage, self.write_back, self.export.storage.size_fault, self._spoiled
        )

    def _spoiled(self, reason: str) -> None:
        """Somebody else has changed the image while it was received: end the attempt."""
        self.logger.error("discarding the received data: {reason}", reason=reason)
        if self.sender is not None:
            # Not now: its request is being carried out.
            self.reactor.callLater(0, self.sender.dismiss, reason)

    def confirm(self, accepted: bool) -> None:
        """Let the sender's connection be closed (*accepted*), or reset."""
        answer, self.answer = self.answer, None
        if answer is not None:
            answer.callback(accepted)
        outcome, self.outcome = self.outcome, None
        if outcome is not None:
            outcome.callback(Outcome(self.handover.ownership.state))


def _receive(destination: Destination, core: DestinationCore, sender: Sender) -> IDelayedCall:
    core.logger = Logger(source=sender)
    core.enter(DestinationState.RECEIVING)
    core.forget()
    core.sender = sender
    core.since = now()
    core.attempts += 1
    delayed: IDelayedCall = core.reactor.callLater(FIRST_REQUEST_SECONDS, destination._silent)
    return delayed


def _drain(destination: Destination, core: DestinationCore, sender: Sender) -> Deferred[None]:
    """Finish the requests of a lost sender, before another one may send."""
    core.enter(DestinationState.DRAINING)
    core.sender = None
    return core.export.idle().addCallback(lambda _: destination._drained())


def _decide(
    destination: Destination, core: DestinationCore, sender: Sender, answer: Deferred[bool]
) -> Deferred[None]:
    """Ask the handover; what comes of it is an input."""
    core.enter(DestinationState.SETTLING)
    core.answer = answer
    core.export.observer = None
    core.write_back.end()

    def decided(verdict: DiscVerdict) -> None:
        if verdict is DiscVerdict.OURS:
            destination._ours()
        else:
            destination._not_ours()

    return core.handover.take(core.coverage).addCallbacks(decided, destination._failed)


def _ask_to_prepare(
    destination: Destination,
    core: DestinationCore,
    sender: Sender,
    outcome: Deferred[Outcome],
    claimed: str | None = None,
) -> Deferred[None]:
    """Ask the handover; the sender is answered, whatever comes of it."""
    core.enter(DestinationState.PREPARING)
    core.export.observer = None
    core.write_back.end()

    def answer(result: Outcome | Failure) -> None:
        if isinstance(result, Failure):
            if not failures.is_expected(result):
                core.logger.failure("preparing failed", result)
            result = Outcome(core.handover.ownership.state, fit_text(failures.reason(result)))
        if result.refusal:
            core.logger.error("not prepared: {refusal}", refusal=result.refusal)
        else:
            core.logger.info(
                "prepared: {path} has all, durably; {compared} bytes were compared and equal, "
                "{digest}",
                path=core.export.storage.path,
                compared=core.digest.compared,
                digest=core.digest.text or "not all of it",
            )
        if core.sender is None:
            destination._drained()
        else:
            destination._sealed()
        outcome.callback(result)

    preparing = core.handover.prepare(core.coverage, core.digest.text or "", claimed)
    return preparing.addBoth(answer)


def _own(
    destination: Destination, core: DestinationCore, outcome: Deferred[Outcome]
) -> Deferred[None]:
    """Ask the handover; what comes of it is an input."""
    core.enter(DestinationState.OWNING)
    core.outcome = outcome
    core.export.observer = None
    core.write_back.end()
    return core.handover.own().addCallbacks(lambda _: destination._ours(), destination._failed)


builder = TypeMachineBuilder(Destination, DestinationCore)
waiting = builder.state("waiting")
draining = builder.state("draining", _drain)
receiving = builder.state("receiving", _receive)
settling = builder.state("settling", _decide)
preparing = builder.state("preparing", _ask_to_prepare)
sealed = builder.state("sealed")
owning = builder.state("owning", _own)
complete = builder.state("complete")
cancelled = builder.state("cancelled")

waiting.upon(Destination.sender_connected).to(receiving).returns(None)
# The connection of a sender that said DISC may end before its image is decided about: DISC is
# what counts.
settling.upon(Destination.sender_lost, nodata=True).loop().returns(None)
complete.upon(Destination.sender_lost).loop().returns(None)
complete.upon(Destination.cancel).loop().returns(None)
# Connections are closed, and requests end, after the process was told to end.
waiting.upon(Destination.sender_lost).loop().returns(None)
cancelled.upon(Destination.cancel).loop().returns(None)
cancelled.upon(Destination.sender_lost).loop().returns(None)
cancelled.upon(Destination._drained).loop().returns(None)
# Whoever cancels holds the migration lock, and so does the decision until it is made.
settling.upon(Destination.cancel, nodata=True).loop().returns(None)
draining.upon(Destination.sender_lost, nodata=True).loop().returns(None)
owning.upon(Destination.sender_lost, nodata=True).loop().returns(None)
owning.upon(Destination.cancel, nodata=True).loop().returns(None)
preparing.upon(Destination.cancel, nodata=True).loop().returns(None)


@preparing.upon(Destination.sender_lost).loop()
def _lost_preparing(
    destination: Destination, core: DestinationCore, asked: Deferred[None], sender: Sender
) -> None:
    """Handle the loss of a sender while preparing: the image may be prepared all the same."""
    core.sender = None


@preparing.upon(Destination._drained).to(waiting)
def _nobody_is_answered(
    destination: Destination, core: DestinationCore, asked: Deferred[None]
) -> None:
    core.enter(DestinationState.WAITING)
    core.forget()


@preparing.upon(Destination._sealed).to(sealed)
def _answered(destination: Destination, core: DestinationCore, asked: Deferred[None]) -> None:
    core.enter(DestinationState.SEALED)


@receiving.upon(Destination._prepare).to(preparing)
def _said_prepare(
    destination: Destination,
    core: DestinationCore,
    delayed: IDelayedCall,
    sender: Sender,
    outcome: Deferred[Outcome],
    claimed: str | None = None,
) -> None:
    _stop(delayed)


@sealed.upon(Destination.sender_lost).to(waiting)
def _lost_sealed(destination: Destination, core: DestinationCore, sender: Sender) -> None:
    """Nothing that it asked for is under way: it was sealed."""
    core.enter(DestinationState.WAITING)
    core.forget()


@sealed.upon(Destination.cancel).to(cancelled)
def _cancel_sealed(destination: Destination, core: DestinationCore, reason: str = "") -> None:
    core.enter(DestinationState.CANCELLED)
    sender, core.sender = core.sender, None
    if sender is not None:
        sender.dismiss(_ending(reason))


# Whoever is connected meanwhile has not got past the gate: the journal says prepared, and the lock
# keeps everything else out.
waiting.upon(Destination._commit).to(owning).returns(None)
sealed.upon(Destination._commit).to(owning).returns(None)
draining.upon(Destination._commit, nodata=True).to(owning).returns(None)
owning.upon(Destination._drained, nodata=True).loop().returns(None)
complete.upon(Destination._drained).loop().returns(None)


@receiving.upon(Destination._commit).to(owning)
def _commit_of_another(
    destination: Destination,
    core: DestinationCore,
    delayed: IDelayedCall,
    outcome: Deferred[Outcome],
) -> None:
    _stop(delayed)


@cancelled.upon(Destination._commit).loop()
def _committed_too_late(
    destination: Destination, core: DestinationCore, outcome: Deferred[Outcome]
) -> None:
    """It will be asked again, and find whoever is started next on the image."""
    outcome.callback(Outcome(core.handover.ownership.state, "this server is told to end"))


@waiting.upon(Destination.resume).to(complete)
def _resumed(destination: Destination, core: DestinationCore) -> None:
    core.enter(DestinationState.COMPLETE)
    core.complete.callback(None)


@owning.upon(Destination._ours).to(complete)
def _owned_by_session(
    destination: Destination, core: DestinationCore, owning: Deferred[None]
) -> None:
    core.enter(DestinationState.COMPLETE)
    core.logger.info("migration complete: {path} is here", path=core.export.storage.path)
    core.complete.callback(None)


@owning.upon(Destination._failed).to(waiting)
def _not_recorded(
    destination: Destination, core: DestinationCore, owning: Deferred[None], failure: Failure
) -> None:
    """It is asked again, and can't be sent anything else meanwhile: the journal says prepared."""
    failures.tell(core.logger, "taking over failed", failure)
    refusal = fit_text(failures.reason(failure))
    outcome, core.outcome = core.outcome, None
    core.enter(DestinationState.WAITING)
    core.forget()
    if outcome is not None:
        outcome.callback(Outcome(core.handover.ownership.state, refusal or "it failed"))


@receiving.upon(Destination.sender_lost).to(draining)
def _start_over(
    destination: Destination, core: DestinationCore, delayed: IDelayedCall, sender: Sender
) -> None:
    _stop(delayed)
    if core.coverage.writes:
        core.logger.error(
            "the sender went away before it was done; what it sent ({covered} bytes) doesn't count",
            covered=core.coverage.covered,
        )


@receiving.upon(Destination._silent).loop()
def _check(destination: Destination, core: DestinationCore, delayed: IDelayedCall) -> None:
    if core.sender is not None and not core.sender.requests_taken:
        core.sender.abort(f"no request in {FIRST_REQUEST_SECONDS:.0f} s")


@receiving.upon(Destination._goodbye).to(settling)
def _said_goodbye(
    destination: Destination,
    core: DestinationCore,
    delayed: IDelayedCall,
    sender: Sender,
    answer: Deferred[bool],
) -> None:
    _stop(delayed)


@cancelled.upon(Destination._goodbye).loop()
def _too_late(
    destination: Destination, core: DestinationCore, sender: Sender, answer: Deferred[bool]
) -> None:
    """The process was told to end before the sender was done: the image stays the source's."""
    answer.callback(False)


@draining.upon(Destination._drained).to(waiting)
def _be_ready(destination: Destination, core: DestinationCore, drained: Deferred[None]) -> None:
    core.enter(DestinationState.WAITING)
    core.forget()


@waiting.upon(Destination.cancel).to(cancelled)
def _cancel_waiting(destination: Destination, core: DestinationCore, reason: str = "") -> None:
    core.enter(DestinationState.CANCELLED)


@draining.upon(Destination.cancel).to(cancelled)
def _cancel_draining(
    destination: Destination, core: DestinationCore, drained: Deferred[None], reason: str = ""
) -> None:
    core.enter(DestinationState.CANCELLED)


@receiving.upon(Destination.cancel).to(cancelled)
def _cancel_receiving(
    destination: Destination, core: DestinationCore, delayed: IDelayedCall, reason: str = ""
) -> None:
    _stop(delayed)
    core.enter(DestinationState.CANCELLED)
    sender, core.sender = core.sender, None
    if sender is not None:
        sender.dismiss(_ending(reason))


@settling.upon(Destination._ours).to(complete)
def _owned(destination: Destination, core: DestinationCore, decision: Deferred[None]) -> None:
    core.enter(DestinationState.COMPLETE)
    core.logger.info("migration complete: {path} is here", path=core.export.storage.path)
    core.complete.callback(None)


@settling.upon(Destination._not_ours).to(waiting)
def _refused(destination: Destination, core: DestinationCore, decision: Deferred[None]) -> None:
    core.enter(DestinationState.WAITING)
    core.forget()
    core.confirm(False)


@settling.upon(Destination._failed).to(waiting)
def _not_carried_out(
    destination: Destination, core: DestinationCore, decision: Deferred[None], failure: Failure
) -> None:
    """The image could not be flushed, or its marker not removed: it isn't ours, and the sender is
    told so.
    """
    failures.tell(core.logger, "taking over failed", failure)
    core.enter(DestinationState.WAITING)
    core.forget()
    core.confirm(False)


def _ending(reason: str) -> str:
    """Return what a sender reads of a server that ends, for *reason*."""
    return f"this server ends: {reason}" if reason else "this server is told to end"


def _stop(delayed: IDelayedCall) -> None:
    if delayed.active():
        delayed.cancel()


DestinationMachine = builder.build()
"""Makes a Destination of a DestinationCore."""

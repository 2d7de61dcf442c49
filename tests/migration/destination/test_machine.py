from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.migration.destination.coverage import Coverage
from flexmigrate.migration.destination.handover import DiscVerdict
from flexmigrate.migration.destination.machine import (
    FIRST_REQUEST_SECONDS,
    Destination,
    DestinationCore,
    DestinationMachine,
)
from flexmigrate.telemetry.states import DESTINATION_STATES, DestinationState
from flexmigrate.wire.handover import Outcome, State
from support.machines import state_of, states, undeclared

SIZE = 8192
PREPARED = Outcome(State.PREPARED)


class RecordedSender:
    """A connection of which only is known what it was told."""

    address = "192.0.2.1:1"

    def __init__(self, requests_taken: int = 0) -> None:
        self.requests_taken = requests_taken
        self.aborted: list[str] = []

    def abort(self, reason: str) -> None:
        self.aborted.append(reason)

    dismiss = abort


class RecordedHandover:
    """Decides as the test says, when the test says."""

    class ownership:  # noqa: N801
        state = State.PREPARED

    def __init__(self) -> None:
        self.by_session = False
        self.asked: list[Coverage] = []
        self.decision: Deferred[Any] | None = None
        self.at_once: DiscVerdict | Exception | None = None

    def prepare(self, coverage: Coverage, digest: str, claimed: str | None = None) -> Deferred[Any]:
        return self.take(coverage)

    def own(self) -> Deferred[Any]:
        self.by_session = True
        return self.take(None)

    def take(self, coverage: Coverage | None) -> Deferred[Any]:
        if coverage is not None:
            self.asked.append(coverage)
        self.decision = Deferred()
        if isinstance(self.at_once, DiscVerdict):
            self.decision.callback(self.at_once)
        elif self.at_once is not None:
            self.decision.errback(self.at_once)
        return self.decision


class RecordedExport:
    """An export whose requests end when the test says so."""

    class storage:  # noqa: N801
        path = "disk.img"
        fault: str | None = None

        @classmethod
        def size_fault(cls) -> str | None:
            return cls.fault

    size = SIZE

    def __init__(self) -> None:
        self.observer: Any = None
        self.busy = False
        self.waiters: list[Deferred[None]] = []

    def idle(self) -> Deferred[None]:
        waiter: Deferred[None] = Deferred()
        self.waiters.append(waiter)
        if not self.busy:
            self.become_idle()
        return waiter

    def become_idle(self) -> None:
        self.busy = False
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            waiter.callback(None)


class Scene:
    """A destination with recorded collaborators."""

    def __init__(self) -> None:
        self.clock = Clock()
        export: Any = RecordedExport()
        handover: Any = RecordedHandover()
        self.export: RecordedExport = export
        self.handover: RecordedHandover = handover
        self.core = DestinationCore(self.clock, export, handover)
        self.destination: Destination = DestinationMachine(self.core)
        self.completed: list[None] = []
        self.core.complete.addCallback(self.completed.append)
        self.answers: list[bool] = []
        self.outcomes: list[Outcome] = []
        self.sender = RecordedSender()

    @property
    def state(self) -> str:
        """The machine's state, which the core has to tell as it is."""
        state = state_of(self.destination)
        assert self.core.state.label == state, (self.core.state, state)
        return state

    def connect(self, requests_taken: int = 0) -> RecordedSender:
        self.sender = RecordedSender(requests_taken)
        self.destination.sender_connected(self.sender)
        return self.sender

    def lose(self) -> None:
        self.destination.sender_lost(self.sender)

    def goodbye(self) -> None:
        answer: Deferred[bool] = Deferred()
        answer.addCallback(self.answers.append)
        self.destination._goodbye(self.sender, answer)

    def prepare(self) -> None:
        self.destination._prepare(self.sender, self._expect())

    def commit(self) -> None:
        self.destination._commit(self._expect())

    def _expect(self) -> Deferred[Outcome]:
        outcome: Deferred[Outcome] = Deferred()
        outcome.addCallback(self.outcomes.append)
        return outcome

    def decide(self, verdict: DiscVerdict | Outcome | Exception) -> None:
        assert self.handover.decision is not None
        if isinstance(verdict, (DiscVerdict, Outcome)):
            self.handover.decision.callback(verdict)
        else:
            self.handover.decision.errback(verdict)


class SizeTests(SynchronousTestCase):
    def test_nothing_counts_once_somebody_else_has_changed_the_size(self) -> None:
        scene = Scene()
        self.patch(RecordedExport.storage, "fault", None)
        sender = scene.connect()
        scene.export.observer.mark(0, SIZE // 2)
        RecordedExport.storage.fault = "it was cut"
        scene.export.observer.mark(SIZE // 2, 512)
        RecordedExport.storage.fault = None  # as what is written next lengthens it again
        scene.export.observer.mark(SIZE // 2, SIZE // 2)
        self.assertFalse(scene.core.coverage.complete)
        self.assertEqual(scene.core.coverage.spoiled, "it was cut")
        scene.clock.advance(0)
        self.assertEqual(sender.aborted, ["it was cut"])
        scene.lose()
        scene.connect()
        self.assertEqual(scene.core.coverage.covered, 0)


DECISION_IS_OVER = "only the handover says so, once for each time that it was asked in settling"
NOT_AT_ONCE = "the lock is held until what was asked before it is answered"
UNREACHABLE: dict[str, tuple[str, set[str]]] = {
    "sender_connected": (
        "only where the phase is waiting is a connection the sender",
        states(DestinationMachine) - {"waiting"},
    ),
    "resume": (
        "it is said once, at the start",
        states(DestinationMachine) - {"waiting"},
    ),
    "_prepare": (
        "only who is_from the core's sender is heard, while the phase is receiving",
        states(DestinationMachine) - {"receiving"},
    ),
    "_commit": (
        NOT_AT_ONCE + "; once the image is ours the answer needs no machine",
        {"preparing", "settling", "owning", "complete"},
    ),
    "_sealed": (
        "only the preparation says so, at its end",
        states(DestinationMachine) - {"preparing"},
    ),
    "_goodbye": (
        "only who is_from the core's sender is heard, and it says DISC once, of a plain sender",
        {"waiting", "draining", "settling", "complete", "preparing", "sealed", "owning"},
    ),
    "_drained": (
        "it is waited for in draining, which is left by it, for good, or by a COMMIT",
        {"waiting", "receiving", "settling", "sealed"},
    ),
    "_silent": ("its timer exists only in receiving", states(DestinationMachine) - {"receiving"}),
    "_ours": (DECISION_IS_OVER, states(DestinationMachine) - {"settling", "owning"}),
    "_not_ours": (DECISION_IS_OVER, states(DestinationMachine) - {"settling"}),
    "_failed": (DECISION_IS_OVER, states(DestinationMachine) - {"settling", "owning"}),
}


class TableTests(SynchronousTestCase):
    def test_every_state_can_be_told(self) -> None:
        of_the_server = {"rebinding", "serving", "failed"}
        self.assertEqual(set(DESTINATION_STATES) - of_the_server, states(DestinationMachine))
        self.assertEqual(
            {state.phase for state in DestinationState} - set(DESTINATION_STATES), set()
        )

    def test_every_pair_is_declared_or_has_a_reason_not_to_be(self) -> None:
        explained = {(state, name) for name, (_, where) in UNREACHABLE.items() for state in where}
        self.assertEqual(undeclared(DestinationMachine, Destination), explained)

    def test_who_is_busy_says_so_unless_somebody_may_come_to_settle(self) -> None:
        for state, scene in one_in_each_state():
            open_to = state in ("waiting", "sealed", "owning")
            self.assertEqual(scene.core.busy is None, open_to, state)
        scene = Scene()
        own(scene)
        scene.decide(DiscVerdict.OURS)
        self.assertEqual((scene.state, scene.core.busy), ("complete", None))

    def test_who_is_busy_says_with_whom_and_since_when(self) -> None:
        scene = Scene()
        scene.connect()
        self.assertRegex(str(scene.core.busy), r"connected already: 192\.0\.2\.1:1, since 20\d\d-")

    def test_a_place_is_vacant_once_all_is_over(self) -> None:
        scene = Scene()
        self.successResultOf(scene.core.vacant())
        drain(scene)
        vacancies = [scene.core.vacant(), scene.core.vacant()]
        scene.export.become_idle()
        self.assertNoResult(vacancies[0])  # the machine may not be asked for anything just then
        scene.clock.advance(0)
        for each in vacancies:
            self.successResultOf(each)
        self.assertEqual((scene.state, scene.clock.getDelayedCalls()), ("waiting", []))


def one_in_each_state() -> Iterator[tuple[str, Scene]]:
    ways: dict[str, Callable[[Scene], object]] = {
        "waiting": lambda scene: None,
        "receiving": lambda scene: scene.connect(),
        "draining": drain,
        "settling": settle,
        "complete": lambda scene: (settle(scene), scene.decide(DiscVerdict.OURS)),
        "preparing": prepare,
        "sealed": seal,
        "owning": own,
        "cancelled": lambda scene: scene.destination.cancel(),
    }
    for state, way in ways.items():
        scene = Scene()
        way(scene)
        assert scene.state == state
        yield state, scene


def settle(scene: Scene) -> None:
    scene.connect()
    scene.goodbye()


def prepare(scene: Scene) -> None:
    scene.connect()
    scene.prepare()


def seal(scene: Scene) -> None:
    prepare(scene)
    scene.decide(PREPARED)


def own(scene: Scene) -> None:
    seal(scene)
    scene.commit()


def drain(scene: Scene) -> None:
    scene.connect()
    scene.export.busy = True
    scene.lose()


class ReceivingTests(SynchronousTestCase):
    def test_what_a_sender_brings_counts_from_zero(self) -> None:
        scene = Scene()
        for _ in range(3):
            scene.connect()
            self.assertEqual(scene.core.coverage.covered, 0)
            scene.export.observer.mark(0, 4096)
            self.assertEqual(scene.core.coverage.covered, 4096)
            scene.lose()
            self.assertEqual(scene.state, "waiting")
            self.assertEqual(scene.core.coverage.covered, 0)
        self.assertEqual(scene.core.attempts, 3)
        self.assertEqual(scene.handover.asked, [])

    def test_what_a_lost_sender_asked_for_must_be_over_before_the_next(self) -> None:
        scene = Scene()
        sender = scene.connect()
        scene.export.busy = True
        scene.lose()
        self.assertEqual(scene.state, "draining")
        self.assertFalse(scene.core.is_from(sender))
        self.assertIn("aren't over yet", str(scene.core.busy))
        scene.export.observer.mark(0, SIZE)  # the last of its requests
        scene.export.become_idle()
        self.assertEqual(scene.state, "waiting")
        self.assertEqual(scene.core.coverage.covered, 0)

    def test_who_asks_for_nothing_loses_the_place(self) -> None:
        scene = Scene()
        sender = scene.connect()
        scene.clock.advance(FIRST_REQUEST_SECONDS - 0.1)
        self.assertEqual(sender.aborted, [])
        scene.clock.advance(0.2)
        self.assertEqual(len(sender.aborted), 1)
        scene.lose()
        self.assertEqual(scene.state, "waiting")

    def test_who_has_asked_for_something_keeps_it(self) -> None:
        scene = Scene()
        sender = scene.connect(requests_taken=1)
        scene.clock.advance(10 * FIRST_REQUEST_SECONDS)
        self.assertEqual(sender.aborted, [])

    def test_no_timer_outlives_its_sender(self) -> None:
        for end in (Scene.lose, Scene.goodbye, lambda scene: scene.destination.cancel()):
            scene = Scene()
            scene.connect()
            end(scene)
            self.assertEqual(scene.clock.getDelayedCalls(), [])

    def test_only_the_sender_that_has_the_place_is_heard(self) -> None:
        scene = Scene()
        settle(scene)
        first = scene.sender
        scene.decide(DiscVerdict.NOT_OURS)
        # Its connection is being reset; meanwhile another is let in.
        second = scene.connect()
        self.assertFalse(scene.core.is_from(first))
        self.assertTrue(scene.core.is_from(second))


class GoodbyeTests(SynchronousTestCase):
    def test_asks_the_handover_about_what_was_covered(self) -> None:
        scene = Scene()
        scene.connect()
        coverage = scene.core.coverage
        coverage.mark(0, SIZE)
        scene.goodbye()
        self.assertEqual(scene.state, "settling")
        self.assertEqual(scene.handover.asked, [coverage])
        self.assertIsNone(scene.export.observer)
        self.assertEqual((scene.completed, scene.answers), ([], []))

    def test_the_sender_is_told_only_when_the_owner_is_ready(self) -> None:
        scene = Scene()
        settle(scene)
        scene.decide(DiscVerdict.OURS)
        self.assertEqual(scene.state, "complete")
        self.assertEqual((scene.completed, scene.answers), ([None], []))
        scene.core.confirm(True)
        scene.core.confirm(True)
        self.assertEqual(scene.answers, [True])

    def test_a_refusal_starts_over(self) -> None:
        scene = Scene()
        settle(scene)
        scene.decide(DiscVerdict.NOT_OURS)
        self.assertEqual((scene.state, scene.answers, scene.completed), ("waiting", [False], []))
        scene.lose()
        scene.connect()
        self.assertEqual(scene.state, "receiving")

    def test_a_failure_starts_over_and_is_logged(self) -> None:
        scene = Scene()
        settle(scene)
        scene.decide(OSError(5, "I/O error"))
        self.assertEqual((scene.state, scene.answers, scene.completed), ("waiting", [False], []))
        self.assertEqual(self.flushLoggedErrors(), [])  # a disk may fail: that is no bug

    def test_a_bug_starts_over_too_and_is_logged_as_one(self) -> None:
        scene = Scene()
        settle(scene)
        scene.decide(ZeroDivisionError())
        self.assertEqual((scene.state, scene.answers), ("waiting", [False]))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_counts_even_if_the_connection_ends_first(self) -> None:
        scene = Scene()
        settle(scene)
        scene.lose()
        self.assertEqual(scene.state, "settling")
        scene.decide(DiscVerdict.OURS)
        self.assertEqual(scene.completed, [None])

    def test_decided_at_once(self) -> None:
        ends: tuple[tuple[DiscVerdict | Exception, str], ...] = (
            (DiscVerdict.OURS, "complete"),
            (DiscVerdict.NOT_OURS, "waiting"),
            (OSError(28, "full"), "waiting"),
        )
        for verdict, state in ends:
            scene = Scene()
            scene.handover.at_once = verdict
            settle(scene)
            self.assertEqual(scene.state, state)


class SessionTests(SynchronousTestCase):
    def test_from_prepare_to_commit(self) -> None:
        scene = Scene()
        scene.connect()
        coverage = scene.core.coverage
        scene.prepare()
        self.assertEqual((scene.state, scene.handover.asked), ("preparing", [coverage]))
        self.assertIsNone(scene.export.observer)
        scene.decide(PREPARED)
        self.assertEqual((scene.state, scene.outcomes), ("sealed", [PREPARED]))
        scene.commit()
        self.assertEqual((scene.state, scene.completed), ("owning", []))
        scene.decide(DiscVerdict.OURS)
        self.assertEqual((scene.state, scene.completed), ("complete", [None]))
        self.assertEqual(len(scene.outcomes), 1)  # the owner isn't ready yet
        scene.core.confirm(True)
        self.assertEqual(len(scene.outcomes), 2)
        self.assertEqual(scene.outcomes[1].refusal, "")

    def test_what_cannot_be_prepared_is_told_and_the_sender_has_to_go(self) -> None:
        for verdict in (Outcome(State.RECEIVING, "not all"), OSError(5, "I/O error")):
            scene = Scene()
            prepare(scene)
            scene.decide(verdict)
            self.assertEqual(scene.state, "sealed")
            self.assertTrue(scene.outcomes[0].refusal)
            scene.lose()
            self.assertEqual(scene.state, "waiting")

    def test_a_connection_lost_while_preparing_ends_it_when_that_is_over(self) -> None:
        scene = Scene()
        prepare(scene)
        scene.lose()
        self.assertEqual(scene.state, "preparing")
        self.assertIsNotNone(scene.core.busy)
        scene.decide(PREPARED)
        self.assertEqual(scene.state, "waiting")

    def test_whoever_committed_may_come_again_in_any_state(self) -> None:
        for state, scene in one_in_each_state():
            if state in ("waiting", "receiving", "draining", "sealed"):
                scene.commit()
                self.assertEqual(scene.state, "owning")
                scene.export.become_idle()
                scene.decide(DiscVerdict.OURS)
                scene.core.confirm(True)
                self.assertEqual((scene.state, len(scene.completed)), ("complete", 1))
                self.assertEqual(scene.clock.getDelayedCalls(), [])

    def test_what_cannot_be_recorded_is_told_and_asked_again(self) -> None:
        scene = Scene()
        own(scene)
        scene.decide(OSError(5, "I/O error"))
        self.assertEqual((scene.state, scene.completed), ("waiting", []))
        self.assertEqual(scene.outcomes[-1].refusal, "I/O error")
        scene.commit()
        scene.decide(DiscVerdict.OURS)
        self.assertEqual(scene.completed, [None])

    def test_a_connection_lost_while_it_is_recorded_changes_nothing(self) -> None:
        scene = Scene()
        own(scene)
        scene.lose()
        scene.decide(DiscVerdict.OURS)
        self.assertEqual(scene.completed, [None])

    def test_an_owner_that_was_started_again_goes_on_as_one(self) -> None:
        scene = Scene()
        scene.destination.resume()
        self.assertEqual((scene.state, scene.completed), ("complete", [None]))

    def test_who_is_told_to_end_commits_nothing(self) -> None:
        scene = Scene()
        seal(scene)
        scene.destination.cancel()
        self.assertEqual(len(scene.sender.aborted), 1)
        scene.commit()
        self.assertIn("told to end", scene.outcomes[-1].refusal)
        self.assertEqual(scene.completed, [])


class CancelTests(SynchronousTestCase):
    def test_in_every_state(self) -> None:
        for state, scene in one_in_each_state():
            scene.destination.cancel()
            # Who is told to end while a handover is settled waits for what comes of it.
            kept = state in ("settling", "complete", "preparing", "owning")
            self.assertEqual(scene.state, state if kept else "cancelled")
            self.assertEqual(scene.core.busy is None, state == "owning")
            scene.destination.cancel()
            self.assertEqual(len(scene.sender.aborted), state in ("receiving", "sealed"))

    def test_late_events_change_nothing(self) -> None:
        scene = Scene()
        drain(scene)
        scene.destination.cancel()
        scene.export.become_idle()
        self.assertEqual(scene.state, "cancelled")
        self.assertIsNotNone(scene.core.busy)

        scene = Scene()
        sender = scene.connect()
        scene.destination.cancel()
        self.assertFalse(scene.core.is_from(sender))
        scene.goodbye()
        scene.lose()
        self.assertEqual((scene.state, scene.answers), ("cancelled", [False]))
        self.assertEqual(scene.handover.asked, [])


class EveryOrderTests(SynchronousTestCase):
    """All orders of what can happen to a destination."""

    def events(self, scene: Scene) -> Iterator[Callable[[Scene], object]]:
        if scene.core.state.label == "waiting":
            yield Scene.connect
        if scene.state in ("waiting", "receiving", "draining", "sealed", "cancelled"):
            yield Scene.commit
        if scene.core.is_from(scene.sender):
            yield Scene.lose
            if scene.state == "receiving":
                yield Scene.goodbye
                yield Scene.prepare
        if scene.clock.getDelayedCalls():
            yield lambda scene: scene.clock.advance(FIRST_REQUEST_SECONDS)
        if scene.export.waiters:
            yield lambda scene: scene.export.become_idle()
        else:
            yield lambda scene: setattr(scene.export, "busy", True)
        if scene.handover.decision is not None and not scene.handover.decision.called:
            if scene.state == "preparing":
                yield lambda scene: scene.decide(PREPARED)
                yield lambda scene: scene.decide(Outcome(State.RECEIVING, "no"))
            else:
                yield lambda scene: scene.decide(DiscVerdict.OURS)
            if scene.state == "settling":
                yield lambda scene: scene.decide(DiscVerdict.NOT_OURS)
            yield lambda scene: scene.decide(OSError(5, "I/O error"))
        yield lambda scene: scene.destination.cancel()

    def check(self, scene: Scene) -> None:
        self.assertEqual(bool(scene.completed), scene.state == "complete")
        if scene.state in ("receiving", "settling", "sealed"):
            self.assertIsNotNone(scene.core.sender)
        if scene.state in ("waiting", "draining", "cancelled"):
            self.assertIsNone(scene.core.sender)
        if scene.state == "receiving":
            self.assertIsNotNone(scene.export.observer)
        if scene.state in ("settling", "preparing", "sealed"):
            self.assertIsNone(scene.export.observer)
        if scene.state == "waiting":
            self.assertEqual(scene.core.coverage.writes, 0)

    def test_keeps_to_the_declared_transitions(self) -> None:
        seen: set[tuple[Any, ...]] = set()
        paths: list[tuple[Callable[[Scene], object], ...]] = [()]
        while paths:
            path = paths.pop()
            scene = Scene()
            for event in path:
                event(scene)
            self.check(scene)
            key = (
                scene.state,
                min(scene.core.attempts, 2),
                scene.export.busy,
                len(scene.clock.getDelayedCalls()),
            )
            if key not in seen:
                seen.add(key)
                paths += [(*path, event) for event in self.events(scene)]
        self.assertEqual({state for state, *_ in seen}, states(DestinationMachine))

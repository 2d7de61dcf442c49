from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.errors import Broken, ImageLost, MigrationError
from flexmigrate.migration.request import Action, ConvergeChange, ConvergeConfig
from flexmigrate.migration.source.convergence import Convergence
from flexmigrate.migration.source.ending import Copied, GivenAway, Kept, Unconfirmed
from flexmigrate.migration.source.environment import Timeouts
from flexmigrate.migration.source.handover import (
    HandoverTerms,
    HandoverUncertain,
    NotConfirmed,
    NotGiven,
)
from flexmigrate.migration.source.machine import RETRY_SECONDS, Core, Source, SourceMachine
from flexmigrate.migration.source.progress import Progress
from flexmigrate.migration.source.rate import RateLimit
from flexmigrate.telemetry.states import SOURCE_STATES, SourceState
from support.machines import state_of, states, undeclared

STEPS = ("dial", "copy", "converge", "finish", "settle", "commit", "confirm", "finish_giving")
UNDONE = STEPS[1:5]  # steps after the first whose failure ends only the attempt
STATES = {
    "dial": "dialling",
    "copy": "copying",
    "converge": "converging",
    "finish": "parked",
    "settle": "settling",
    "commit": "committing",
    "confirm": "confirming",
    "finish_giving": "finishing",
}


class RecordedPasses:
    """Passes of which none is ever sent."""

    number = 0
    dirty = unverified = dirtied = None

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def adjust(self) -> None:
        self.log.append("adjust")


class RecordedAttempt:
    """An attempt that only tells what it was asked for; its steps end as the test says."""

    has_parked = False
    obstacle = None

    def __init__(self, log: list[str], instant: dict[str, Exception | None], plain: bool) -> None:
        self.log = log
        self.instant = instant
        self.plain = plain
        self.passes = RecordedPasses(log)
        self.step: tuple[str, Deferred[None]] | None = None

    async def _begin(self, name: str) -> None:
        self.log.append(name)
        if name in self.instant:
            error = self.instant[name]
            if error is not None:
                raise error
            return
        step: Deferred[None] = Deferred(lambda _: self.log.append(f"{name} cancelled"))
        self.step = name, step
        try:
            await step
        finally:
            self.step = None

    async def dial(self) -> None:
        await self._begin("dial")

    async def copy(self) -> None:
        await self._begin("copy")

    async def converge(self) -> None:
        await self._begin("converge")

    async def finish(self) -> None:
        await self._begin("finish")

    async def settle(self) -> None:
        await self._begin("settle")

    async def commit(self) -> bool:
        await self._begin("commit")
        return self.plain

    async def confirm(self) -> None:
        await self._begin("confirm")

    async def finish_giving(self) -> None:
        await self._begin("finish_giving")

    def hurry(self) -> None:
        self.log.append("hurry")

    def let_go(self, reason: str) -> None:
        self.log.append(f"let go: {reason}")

    def close(self) -> None:
        self.log.append("close")

    def abandon(self, reason: str) -> None:
        self.log.append(f"abandon: {reason}")


class RecordedCore(Core):
    """Makes recorded attempts."""

    instant: dict[str, Exception | None]
    log: list[str]
    plain: bool

    def new_attempt(self) -> Any:
        self.begin_attempt()
        attempt: Any = RecordedAttempt(self.log, self.instant, self.plain)
        self.attempt = attempt
        return attempt


class Scene:
    """A source whose attempts are recorded.

    :param plain: whether the handover is.
    :param instant: steps that end inside the state's own beginning, and how.
    """

    def __init__(
        self, action: Action = Action.EXIT, plain: bool = False, **instant: Exception | None
    ) -> None:
        self.clock = Clock()
        nothing: Any = None
        image: Any = SimpleNamespace(path="disk.img")
        self.core = RecordedCore(
            reactor=self.clock,
            export=nothing,
            environment=nothing,
            terms=HandoverTerms(image, nothing, action, address="192.0.2.2:1"),
            timeouts=Timeouts(),
            limit=RateLimit(),
            convergence=Convergence(ConvergeConfig(), RateLimit(), 0.0),
            began=0.0,
            progress=Progress(0.0),
        )
        self.log: list[str] = []
        self.core.log, self.core.instant, self.core.plain = self.log, instant, plain
        self.source: Source = SourceMachine(self.core)
        self.outcomes: dict[str, list[Any]] = {"started": [], "finished": []}
        self.core.started.addBoth(self.outcomes["started"].append)
        self.core.finished.addBoth(self.outcomes["finished"].append)

    @property
    def state(self) -> str:
        """The machine's state, which the core has to tell as it is."""
        state = state_of(self.source)
        assert self.core.state.label == state, (self.core.state, state)
        return state

    @property
    def attempt(self) -> RecordedAttempt:
        attempt: Any = self.core.attempt
        assert isinstance(attempt, RecordedAttempt)
        return attempt

    def start(self) -> Scene:
        self.source.start()
        return self

    def succeed(self) -> Scene:
        assert self.attempt.step is not None
        self.attempt.step[1].callback(None)
        return self

    def fail(self, error: Exception | None = None) -> Scene:
        assert self.attempt.step is not None
        self.attempt.step[1].errback(error or MigrationError("no luck"))
        return self

    def until(self, name: str) -> Scene:
        """Go on until the step *name* is under way."""
        if self.state == "new":
            self.start()
        while self.attempt.step is None or self.attempt.step[0] != name:
            self.succeed()
        return self

    def error(self, which: str) -> Exception:
        (failure,) = self.outcomes[which]
        assert isinstance(failure, Failure)
        error = failure.value
        assert isinstance(error, Exception)
        return error


# Why an input can't come in the states where it isn't declared.
STEP_IS_OVER = (
    "only the step of the state that declares it says so, and a step is over, or is cancelled and "
    "then only fails, when its state is left"
)
UNREACHABLE: dict[str, tuple[str, set[str]]] = {
    "start": (
        "whoever makes a source starts it, once",
        set(STATES.values()) | {"waiting", "redialling", "unanswered", "given", "ended"},
    ),
    "_agreed": (STEP_IS_OVER, states(SourceMachine) - {"dialling", "redialling"}),
    "_copied": (STEP_IS_OVER, states(SourceMachine) - {"copying"}),
    "_converged": (STEP_IS_OVER, states(SourceMachine) - {"converging"}),
    "_equal": (STEP_IS_OVER, states(SourceMachine) - {"parked"}),
    "_prepared": (STEP_IS_OVER, states(SourceMachine) - {"settling"}),
    "_only_copied": (STEP_IS_OVER, states(SourceMachine) - {"settling"}),
    "_committed": (STEP_IS_OVER, states(SourceMachine) - {"committing"}),
    "_given": (STEP_IS_OVER, states(SourceMachine) - {"committing", "confirming"}),
    "_finished": (STEP_IS_OVER, states(SourceMachine) - {"finishing"}),
    "_not_given": (
        "only committing says so, and can't be cancelled",
        states(SourceMachine) - {"committing"},
    ),
    "_unanswered": (
        "only confirming says so, and is left for good if it is cancelled",
        states(SourceMachine) - {"confirming", "given", "ended"},
    ),
    "_failed": (
        "no step is under way, or its failures have an input of their own",
        {"new", "waiting", "confirming", "unanswered", "finishing"},
    ),
    "_hopeless": (
        "no step is under way, or what it gives away is given",
        {"new", "waiting", "confirming", "unanswered", "finishing"},
    ),
    "_retry": (
        "its timer exists only where something is waited for",
        states(SourceMachine) - {"waiting", "unanswered"},
    ),
    "leave": (
        "whoever leaves has cancelled before, which only these states outlast",
        states(SourceMachine)
        - {"committing", "confirming", "unanswered", "finishing", "given", "ended"},
    ),
}


class TableTests(SynchronousTestCase):
    def test_every_state_can_be_told(self) -> None:
        self.assertEqual({state.label for state in SourceState}, states(SourceMachine))
        self.assertEqual({state.phase for state in SourceState} - set(SOURCE_STATES), set())

    def test_every_pair_is_declared_or_has_a_reason_not_to_be(self) -> None:
        explained = {(state, name) for name, (_, where) in UNREACHABLE.items() for state in where}
        self.assertEqual(undeclared(SourceMachine, Source), explained)


class WayTests(SynchronousTestCase):
    def test_to_a_handover(self) -> None:
        for plain in (False, True):
            scene = Scene(plain=plain).start()
            steps = [step for step in STEPS if step != "confirm" or not plain]
            for step in steps:
                self.assertEqual(scene.state, STATES[step])
                self.assertEqual(len(scene.outcomes["started"]), step != "dial")
                self.assertEqual(scene.outcomes["finished"], [])
                scene.succeed()
            self.assertEqual(scene.state, "given")
            self.assertEqual(scene.outcomes, {"started": [None], "finished": [GivenAway()]})
            self.assertEqual(scene.log, [*steps, "close"])

    def test_an_image_that_is_lost_is_not_tried_again(self) -> None:
        for step in ("copy", "converge", "finish", "settle", "commit"):
            scene = Scene().until(step).fail(ImageLost("it is gone"))
            self.assertEqual(scene.state, "ended")
            self.assertEqual(scene.outcomes["finished"], [Kept("it is gone")])
            self.assertEqual(scene.core.last_error, "it is gone")
            self.assertEqual(scene.log[-1], "abandon: it is gone")
            self.assertEqual(scene.clock.getDelayedCalls(), [])
        scene = Scene().until("copy").fail()
        scene.clock.advance(RETRY_SECONDS)
        self.assertEqual(scene.state, "redialling")
        self.assertEqual(scene.fail(ImageLost("it is gone")).state, "ended")

    def test_one_that_is_lost_before_it_begins_is_the_answer(self) -> None:
        scene = Scene().start().fail(ImageLost("it is gone"))
        self.assertEqual(scene.state, "ended")
        self.assertIsInstance(scene.error("started"), ImageLost)

    def test_whoever_looks_on_is_told_of_each_state(self) -> None:
        scene = Scene()
        seen: list[str] = []
        scene.core.progress.changed = lambda: seen.append(scene.core.state.label)
        scene.start().until("copy").fail()
        scene.clock.advance(RETRY_SECONDS)
        self.assertEqual(seen, ["dialling", "copying", "waiting", "redialling"])

    def test_that_it_is_asked_again_and_again_is_told_once(self) -> None:
        scene = Scene().until("commit")
        seen: list[str] = []
        scene.core.progress.changed = lambda: seen.append(scene.core.state.label)
        scene.succeed()
        for _ in range(3):
            scene.fail(NotConfirmed("silence"))
            scene.clock.advance(RETRY_SECONDS)
        scene.succeed().succeed()
        self.assertEqual(seen, ["confirming", "unanswered", "finishing", "given"])

    def test_what_came_of_it_is_told_before_the_lock_is_free(self) -> None:
        for step, end in (("finish_giving", Scene.succeed), ("commit", Scene.fail)):
            scene = Scene().until(step)
            seen: list[bool] = []
            for outcome in (scene.core.finished,):
                outcome.addBoth(lambda _, scene=scene, seen=seen: seen.append("close" in scene.log))
            end(scene)
            self.assertEqual(seen, [False])
            self.assertEqual(scene.log[-1], "close")

    def test_a_copy_is_no_handover(self) -> None:
        scene = Scene(Action.NOTHING).until("finish").succeed()
        self.assertEqual(scene.state, "ended")
        self.assertEqual(scene.log, [*STEPS[:4], "abandon: the copy is complete"])
        self.assertEqual(scene.outcomes["finished"], [Copied()])

    def test_with_steps_that_end_at_once(self) -> None:
        for plain in (False, True):
            scene = Scene(plain=plain, **dict.fromkeys(STEPS)).start()
            self.assertEqual(scene.state, "given")
            self.assertEqual(scene.outcomes, {"started": [None], "finished": [GivenAway()]})

    def test_with_steps_of_which_one_fails_at_once(self) -> None:
        for failing in UNDONE:
            instant: dict[str, Exception | None] = dict.fromkeys(STEPS)
            instant[failing] = MigrationError("at once")
            scene = Scene(**instant).start()
            self.assertEqual(scene.state, "waiting")
            self.assertEqual(scene.log[-1], "abandon: at once")
            scene.core.instant = dict.fromkeys(STEPS)
            scene.clock.advance(RETRY_SECONDS)
            self.assertEqual(scene.state, "given")

    def test_with_a_handover_that_fails_at_once(self) -> None:
        steps: dict[str, Exception | None] = dict.fromkeys(STEPS)
        for error, state in (
            (NotGiven("the file is busy"), "waiting"),
            (HandoverUncertain("who knows"), "given"),
        ):
            self.assertEqual(Scene(**{**steps, "commit": error}).start().state, state)
        scene = Scene(**{**steps, "confirm": NotConfirmed("silence")}).start()
        self.assertEqual(scene.state, "unanswered")


class FirstAttemptTests(SynchronousTestCase):
    def test_its_failure_is_the_answer_and_the_end(self) -> None:
        for scene in (Scene().start().fail(), Scene(dial=MigrationError("no luck")).start()):
            self.assertEqual(scene.state, "ended")
            self.assertEqual(str(scene.error("started")), "no luck")
            self.assertEqual(scene.outcomes["finished"], [])
            self.assertEqual(scene.log, ["dial", "abandon: no luck"])
            self.assertEqual(scene.clock.getDelayedCalls(), [])

    def test_the_next_attempt_comes_when_it_was_asked_for(self) -> None:
        for step in UNDONE:
            scene = Scene()
            scene.core.timeouts = Timeouts(retry_seconds=90.0)
            scene.until(step).fail()
            self.assertEqual(scene.state, "waiting")
            scene.clock.advance(89.9)
            self.assertEqual(scene.core.attempts, 1)
            scene.clock.advance(0.2)
            self.assertEqual((scene.state, scene.core.attempts), ("redialling", 2))

    def test_once_agreed_later_failures_are_retried(self) -> None:
        for step in UNDONE:
            scene = Scene().until(step).fail()
            self.assertEqual(scene.state, "waiting")
            self.assertEqual(scene.log[-1], "abandon: no luck")
            self.assertEqual(scene.core.last_error, "no luck")
            scene.clock.advance(RETRY_SECONDS * 0.99)
            self.assertEqual(scene.core.attempts, 1)
            scene.clock.advance(RETRY_SECONDS * 0.02)
            self.assertEqual((scene.state, scene.core.attempts), ("redialling", 2))
            scene.fail()
            self.assertEqual(scene.state, "waiting")
            scene.clock.advance(RETRY_SECONDS)
            scene.until("finish_giving").succeed()
            self.assertEqual(scene.outcomes, {"started": [None], "finished": [GivenAway()]})
            self.assertEqual(scene.core.attempts, 3)

    def test_those_that_clients_had_to_wait_for_are_retried_later_and_later(self) -> None:
        scene = Scene().until("finish")
        for seconds in (1, 1, 2, 4):
            scene.until("finish").attempt.has_parked = True
            scene.fail()
            scene.clock.advance(seconds * 0.99)
            self.assertEqual(scene.state, "waiting")
            scene.clock.advance(seconds * 0.02)
            self.assertEqual(scene.state, "redialling")
            # A failure that no client noticed is another matter.
            scene.fail()
            scene.clock.advance(RETRY_SECONDS)
        self.assertIn("parked 4 times in vain", scene.core.obstacle or "")

    def test_a_change_of_what_is_asked_for_is_tried_at_once(self) -> None:
        scene = Scene()
        for _ in range(9):
            scene.until("finish").attempt.has_parked = True
            scene.fail()
            scene.core.change(ConvergeChange(max_park=20.0))
            scene.clock.advance(0)
            self.assertEqual(scene.state, "redialling")
            self.assertIsNone(scene.core.obstacle)

    def test_how_fast_an_attempt_was_says_nothing_of_the_next(self) -> None:
        scene = Scene().until("copy")
        rate = scene.core.progress.rate
        scene.clock.advance(1.0)
        rate.add(scene.clock.seconds(), 1000)
        self.assertEqual(rate.value(scene.clock.seconds()), 1000.0)
        scene.fail()
        scene.clock.advance(RETRY_SECONDS / 2)
        self.assertEqual(scene.core.progress.rate.value(scene.clock.seconds()), 0.0)

    def test_an_error_that_nobody_expects_is_logged_and_retried(self) -> None:
        scene = Scene().until("copy").fail(ZeroDivisionError())
        self.assertEqual(scene.state, "waiting")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class HandoverTests(SynchronousTestCase):
    def test_that_did_not_happen_is_retried(self) -> None:
        scene = Scene().until("commit").fail(NotGiven("the file is busy"))
        self.assertEqual(scene.state, "waiting")
        self.assertEqual(scene.log[-1], "abandon: the file is busy")

    def test_that_may_have_happened_ends_serving(self) -> None:
        for error, reason in (
            (HandoverUncertain("who knows"), "who knows"),
            (OSError(5, "I/O error"), "I/O error"),
            (CancelledError(), "CancelledError"),
        ):
            scene = Scene().until("commit").fail(error)
            self.assertEqual(scene.state, "given")
            self.assertEqual(scene.outcomes["finished"], [Unconfirmed(reason)])
            self.assertEqual(scene.log[-1], "close")
            self.assertNotIn("abandon", " ".join(scene.log))

    def test_can_not_be_broken_off_once_it_was_begun(self) -> None:
        for step in STEPS[5:]:
            scene = Scene().until(step)
            scene.source.cancel("too late")
            self.assertEqual(scene.state, STATES[step])
            self.assertNotIn("cancelled", " ".join(scene.log))
            scene.until("finish_giving").succeed()
            scene.source.cancel("much too late")
            self.assertEqual(scene.outcomes["finished"], [GivenAway()])

    def test_is_asked_about_each_second_until_it_is_confirmed(self) -> None:
        scene = Scene().until("confirm")
        for _ in range(100):
            scene.fail(NotConfirmed("silence"))
            self.assertEqual(scene.state, "unanswered")
            self.assertEqual(scene.log[-1], "let go: silence")
            scene.source.cancel("too late")
            scene.clock.advance(RETRY_SECONDS)
            self.assertEqual(scene.state, "confirming")
        scene.until("finish_giving").succeed()
        self.assertEqual(scene.outcomes["finished"], [GivenAway()])
        self.assertNotIn("abandon", " ".join(scene.log))
        self.assertEqual(scene.core.attempts, 1)

    def test_an_error_in_asking_that_nobody_expects_is_logged_and_it_is_asked_again(self) -> None:
        scene = Scene().until("confirm").fail(ZeroDivisionError())
        self.assertEqual(scene.state, "unanswered")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_an_error_in_cleaning_up_does_not_deny_it(self) -> None:
        scene = Scene().until("finish_giving").fail(ZeroDivisionError())
        self.assertEqual(scene.outcomes["finished"], [GivenAway()])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_a_process_that_ends_leaves_it_committed(self) -> None:
        asked, waiting = Scene().until("confirm"), Scene().until("confirm").fail()
        for scene in (asked, waiting):
            scene.source.cancel("SIGTERM")
            scene.source.leave("SIGTERM")
            self.assertEqual(scene.state, "given")
            (ending,) = scene.outcomes["finished"]
            self.assertEqual((ending.verdict, ending.gave_away), ("unconfirmed", True))
            self.assertRegex(ending.reason, "disk.img is committed to 192.0.2.2:1, .*SIGTERM")
            self.assertEqual(scene.clock.getDelayedCalls(), [])
            self.assertEqual(scene.log[-1], "close")

    def test_who_leaves_waits_for_what_is_settled(self) -> None:
        for step in ("commit", "finish_giving"):
            scene = Scene().until(step)
            scene.source.leave("SIGTERM")
            self.assertEqual(scene.state, STATES[step])


class CancelTests(SynchronousTestCase):
    def assert_broken(self, scene: Scene, which: str) -> None:
        self.assertEqual(scene.state, "ended")
        if which == "finished":
            self.assertEqual(scene.outcomes[which], [Kept("because")])
        else:
            self.assertIsInstance(scene.error(which), Broken)
            self.assertEqual(str(scene.error(which)), "because")
        self.assertEqual(scene.clock.getDelayedCalls(), [])
        scene.source.cancel("again")
        scene.clock.advance(10 * RETRY_SECONDS)
        self.assertEqual(scene.state, "ended")

    def test_before_the_start(self) -> None:
        scene = Scene()
        scene.source.cancel("because")
        self.assert_broken(scene, "started")
        self.assertEqual(scene.log, [])

    def test_in_the_first_attempt_before_it_is_agreed(self) -> None:
        scene = Scene().start()
        scene.source.cancel("because")
        self.assert_broken(scene, "started")
        self.assertEqual(scene.log, ["dial", "dial cancelled", "abandon: because"])
        self.assertEqual(scene.outcomes["finished"], [])

    def test_in_every_later_step(self) -> None:
        for step in UNDONE:
            scene = Scene().until(step)
            scene.source.cancel("because")
            self.assert_broken(scene, "finished")
            self.assertEqual(scene.log[-2:], [f"{step} cancelled", "abandon: because"])

    def test_between_two_attempts_and_in_the_next(self) -> None:
        scene = Scene().until("copy").fail()
        scene.source.cancel("because")
        self.assert_broken(scene, "finished")
        scene = Scene().until("copy").fail()
        scene.clock.advance(RETRY_SECONDS)
        self.assertEqual(scene.state, "redialling")
        scene.source.cancel("because")
        self.assert_broken(scene, "finished")

    def test_by_who_is_told_that_it_has_started(self) -> None:
        for instant in ((), ("copy",), ("copy", "converge", "finish")):
            scene = Scene(**dict.fromkeys(instant))
            scene.core.started.addCallback(lambda _, scene=scene: scene.source.cancel("because"))
            scene.until("dial").succeed()
            self.assert_broken(scene, "finished")


class EveryOrderTests(SynchronousTestCase):
    """All orders in which steps can end, time can pass, and somebody can break off."""

    def events(self, scene: Scene) -> Iterator[tuple[str, Callable[[Scene], object]]]:
        yield "cancel", lambda scene: scene.source.cancel("because")
        if scene.clock.getDelayedCalls():
            yield "time", lambda scene: scene.clock.advance(RETRY_SECONDS)
        if scene.state == "new":
            yield "start", Scene.start
        elif scene.core.attempt is not None and scene.attempt.step is not None:
            yield "succeed", Scene.succeed
            if scene.state != "finishing":
                yield "fail", Scene.fail
            if scene.state == "committing":
                yield "not given", lambda scene: scene.fail(NotGiven("no"))
        if scene.state in ("committing", "confirming", "unanswered", "finishing", "given"):
            yield "leave", lambda scene: scene.source.leave("because")

    def check(self, scene: Scene) -> None:
        """What holds in every state, whatever has happened."""
        log, state = scene.log, scene.state
        working = scene.core.attempt is not None and scene.attempt.step is not None
        self.assertEqual(working, state in {*STATES.values(), "redialling"})
        waiting = state in ("waiting", "unanswered")
        self.assertEqual(bool(scene.clock.getDelayedCalls()), waiting)
        self.assertEqual("close" in log, state == "given")
        if state in ("ended", "waiting") and scene.core.attempt is not None:
            self.assertTrue(log[-1].startswith("abandon"))
        if state in ("committing", "confirming", "unanswered", "finishing", "given"):
            # From the last step on, nothing brings the image back but the handover's own word.
            last = len(log) - log[::-1].index("commit")
            self.assertNotIn("abandon", " ".join(log[last:]))
        over = state in ("given", "ended")
        told = len(scene.outcomes["finished"]) + sum(
            isinstance(each, Failure) for each in scene.outcomes["started"]
        )
        self.assertEqual(told, over)

    def test_keeps_to_the_declared_transitions(self) -> None:
        seen: set[tuple[Any, ...]] = set()
        paths: list[tuple[Callable[[Scene], object], ...]] = [()]
        while paths:
            path = paths.pop()
            scene = Scene()
            for event in path:
                event(scene)
            self.check(scene)
            attempts = min(scene.core.attempts, 3)
            key = (scene.state, attempts, *scene.log[-1:])
            if key not in seen:
                seen.add(key)
                paths += [(*path, event) for _, event in self.events(scene)]
        self.assertEqual({state for state, *_ in seen}, states(SourceMachine))
        self.assertEqual(self.flushLoggedErrors(), [])

"""What those see of a migration who look on: its history, its summary, its end."""

from __future__ import annotations

import random
import threading
from types import SimpleNamespace
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.errors import CommandError
from flexmigrate.migration.request import Action, ConvergeConfig
from flexmigrate.migration.source.convergence import Convergence
from flexmigrate.migration.source.environment import Timeouts
from flexmigrate.migration.source.handover import HandoverTerms
from flexmigrate.migration.source.machine import Core
from flexmigrate.migration.source.progress import Progress
from flexmigrate.migration.source.rate import RateLimit
from flexmigrate.service import watch as watch_module
from flexmigrate.service.watch import REPORT_SECONDS, Watch, in_own_thread
from flexmigrate.telemetry.history import History, Summary
from flexmigrate.telemetry.states import SourceState
from support.processes import PATIENCE
from support.scene import Scene, SceneCase

MIB = 1 << 20


class HistoryTests(SceneCase):
    image = random.Random(3).randbytes(2 * MIB)

    def watch(self, scene: Scene) -> Watch:
        watch = scene.migrating.watch
        assert isinstance(watch, Watch)
        return watch

    def test_of_a_migration_from_its_beginning_to_its_end(self) -> None:
        scene = self.scene()
        scene.world.result_of(scene.mirror(max_bps=MIB))
        scene.finish()
        history = self.watch(scene).history
        states = [change.state for change in history.changes]
        self.assertEqual(states[:3], ["dialling", "copying", "copying"])
        last = ["parked", "settling", "committing", "confirming", "finishing", "given"]
        self.assertEqual(states[-6:], last)
        phases = [change.phase for change in history.changes]
        last = ["parked", "settling", "committing", "committing", "given", "given"]
        self.assertEqual(phases[-6:], last)
        samples = history.samples
        self.assertGreater(len(samples), 10)  # of about 2 s
        sent = [sample.bytes_sent for sample in samples]
        self.assertEqual(sent, sorted(sent))
        self.assertGreaterEqual(sent[-1], 2 * MIB)
        self.assertEqual(samples[-1].phase, "given")
        self.assertEqual(samples[-1].speed_limit, MIB)

    def test_what_a_pass_has_to_send_is_told_while_it_does(self) -> None:
        scene = self.scene()
        scene.world.result_of(scene.mirror(max_bps=MIB))
        scene.world.run_until(lambda: scene.migrating.migration.progress.sent > MIB)
        status = scene.source.service.status(None)
        self.assertEqual(status.migration_pass_size, 2 * MIB)
        self.assertTrue(MIB < status.migration_pass_sent <= 2 * MIB)
        self.assertEqual(status.migration_parked, 0.0)
        self.assertIsNone(status.summary)

    def test_the_summary_is_told_when_it_is_over(self) -> None:
        scene = self.scene()
        scene.reach("copying", Action.NOTHING)
        scene.world.run_until(lambda: not scene.migrating.is_mirroring)
        summary = scene.source.service.status(None).summary
        self.assertEqual(summary, self.watch(scene).summary)
        self.assertEqual((summary.verdict, summary.reason), ("copied", None))
        self.assertEqual(summary.attempts, 1)
        self.assertGreaterEqual(summary.passes, 1)
        self.assertGreaterEqual(summary.bytes_sent, 2 * MIB)
        self.assertEqual(summary.address, "192.0.2.2:10810")

    def test_a_failed_attempt_is_told_with_its_error(self) -> None:
        scene = self.scene()
        scene.cut("destination", MIB)
        scene.world.result_of(scene.mirror())
        scene.finish()
        watch = self.watch(scene)
        (failed,) = [change for change in watch.history.changes if change.phase == "waiting"]
        self.assertIn("connection", failed.error or "")
        assert watch.summary is not None
        self.assertEqual(watch.summary.attempts, 2)
        # What is sent again was sent twice.
        self.assertGreater(watch.summary.bytes_sent, 2 * MIB)

    def test_waiting_for_the_end(self) -> None:
        scene = self.scene()
        with self.assertRaisesRegex(CommandError, "Not mirroring"):
            scene.source.service.wait(None)
        scene.reach("copying")
        first, second = scene.source.service.wait(None), scene.source.service.wait(None)
        self.assertNoResult(first)
        second.cancel()
        self.failureResultOf(second)
        scene.source.service.break_mirror(None)
        summary = self.successResultOf(first)
        self.assertEqual((summary.verdict, summary.succeeded), ("broken", False))
        self.assertEqual(summary.reason, "broken off by the operator")
        # It isn't forgotten.
        self.assertEqual(self.successResultOf(scene.source.service.wait(None)), summary)

    def test_one_that_never_began_is_over_as_well(self) -> None:
        scene = self.scene()
        scene.world.unreachable.add("192.0.2.2")
        asked = scene.mirror()
        scene.world.run_until(lambda: asked.called, 60)
        self.failureResultOf(asked, CommandError)
        summary = self.successResultOf(scene.source.service.wait(None))
        self.assertEqual(summary.verdict, "failed")

    def test_the_end_of_the_process_is_its_end_too(self) -> None:
        scene = self.scene()
        scene.reach("copying")
        waiting = scene.source.service.wait(None)
        scene.source.signal()
        scene.world.run_until(lambda: scene.source.is_over, 60)
        self.assertEqual(self.successResultOf(waiting).verdict, "broken")
        self.assertEqual(scene.source.status, 1)


class ParkedTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        nothing: Any = None
        self.core = Core(
            reactor=self.clock,
            export=SimpleNamespace(storage=SimpleNamespace(flush_failure=None)),  # type: ignore[arg-type]
            environment=nothing,
            terms=HandoverTerms(nothing, nothing, Action.EXIT),
            timeouts=Timeouts(),
            limit=RateLimit(),
            convergence=Convergence(ConvergeConfig(), RateLimit(), 0.0),
            began=0.0,
            progress=Progress(0.0),
        )

    def watch(self, report: Any = None) -> Watch:
        watch = Watch(self.clock, self.core, "192.0.2.2:10810", report)
        watch.start()
        return watch

    def test_all_attempts_count(self) -> None:
        watch = self.watch()
        for state, seconds in (
            (SourceState.COPYING, 5.0),
            (SourceState.PARKED, 0.5),
            (SourceState.SETTLING, 0.25),
            (SourceState.WAITING, 1.0),
        ):
            self.core.enter(state)
            self.clock.advance(seconds)
        self.core.begin_attempt()
        for state, seconds in (
            (SourceState.REDIALLING, 5.0),
            (SourceState.PARKED, 0.125),
            (SourceState.COMMITTING, 0.0625),
            (SourceState.CONFIRMING, 0.0625),
            (SourceState.UNANSWERED, 5.0),  # clients were let go
            (SourceState.CONFIRMING, 5.0),
        ):
            self.core.enter(state)
            self.clock.advance(seconds)
        self.assertEqual(watch.parked_seconds(self.clock.seconds()), 1.0)
        self.core.enter(SourceState.GIVEN)
        self.assertEqual(watch.ended("complete").parked, 1.0)
        self.clock.advance(10)
        self.assertEqual(watch.parked_seconds(self.clock.seconds()), 1.0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_report_that_can_not_be_kept_is_a_warning(self) -> None:
        def full(history: History, summary: Summary) -> None:
            raise OSError(28, "No space left on device")

        def threadless(reactor: Any, work: Any) -> Deferred[object]:
            return Deferred.fromCoroutine(soon(work))

        async def soon(work: Any) -> object:
            return work()

        self.patch(watch_module, "in_own_thread", threadless)
        watch = self.watch(full)
        waiting = watch.wait()
        watch.ended("complete")
        watch.conclude()
        self.assertEqual(self.successResultOf(waiting).verdict, "complete")

    def test_a_report_that_takes_for_ever_is_not_waited_for(self) -> None:
        goes_on = threading.Event()
        self.addCleanup(goes_on.set)
        watch = self.watch(lambda history, summary: goes_on.wait(PATIENCE))
        self.clock.callFromThread = lambda *call: None  # type: ignore[attr-defined]
        waiting = watch.wait()
        watch.ended("complete")
        watch.conclude()
        self.clock.advance(REPORT_SECONDS - 0.1)
        self.assertNoResult(waiting)
        self.clock.advance(0.2)
        self.assertEqual(self.successResultOf(waiting).verdict, "complete")

    def test_its_thread_tells_what_came_of_it(self) -> None:
        told = threading.Event()
        calls: list[tuple[Any, ...]] = []

        class Reactor:
            def callFromThread(self, *call: Any) -> None:  # noqa: N802
                calls.append(call)
                told.set()

        for work in (lambda: 17, lambda: 1 // 0):
            told.clear()
            answer = in_own_thread(Reactor(), work)
            self.assertTrue(told.wait(PATIENCE))
            call, result = calls.pop()
            call(result)
            if isinstance(result, int):
                self.assertEqual(self.successResultOf(answer), 17)
            else:
                self.failureResultOf(answer, ZeroDivisionError)

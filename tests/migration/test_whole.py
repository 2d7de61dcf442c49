"""Whole migrations in memory: broken off, stalled, throttled, or ended by signals, at any time."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any
from unittest import mock

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost

from flexmigrate.errors import CommandError
from flexmigrate.image.disk import SYSTEM
from flexmigrate.migration.comparison import comparer
from flexmigrate.migration.comparison.digests import ImageDigest
from flexmigrate.migration.destination import policy as sessions
from flexmigrate.migration.destination.coverage import Coverage
from flexmigrate.migration.destination.handover import DestinationHandover
from flexmigrate.migration.ownership import journal
from flexmigrate.migration.request import (
    Action,
    ConvergeChange,
    ConvergeConfig,
    HandoverRule,
    MirrorRequest,
)
from flexmigrate.migration.source.handover import HandoverTerms
from flexmigrate.wire.handover import Claim, Opening, Outcome, State
from support.scene import INTAKE, Scene, SceneCase

BLOCK = 4096


class AnyMomentTests(SceneCase):
    """Something is done after every single thing that happens in a migration."""

    gap = "moved later"

    def each_moment(self, action: Action, do: Callable[[Scene], object]) -> Counter[str]:
        """Return how often what came of it."""
        ends: Counter[str] = Counter()
        for moment in range(100_000):
            scene = Scene(self.folder, self.image, handover=self.handover)
            scene.mirror(action).addErrback(lambda failure: failure.trap(CommandError))
            steps = iter(range(moment))
            try:
                scene.world.run_until(lambda steps=steps: next(steps, None) is None)  # type: ignore[misc]
                over = scene.source.is_over
                ends[str(do(scene))] += 1
            finally:
                scene.close()
            if over:
                return ends
        raise AssertionError("the migration had no end")

    def test_sigterm_of_the_source(self) -> None:
        def terminate(scene: Scene) -> str:
            scene.source.signal()
            scene.world.run_until(lambda: scene.source.is_over)
            scene.world.settle()
            if scene.source.status == 0:
                self.assert_moved(scene)
                return "moved"
            self.assertFalse(scene.owned)
            self.assertEqual(scene.faults(scene.source_image), [])
            return "kept"

        ends = self.each_moment(Action.EXIT, terminate)
        self.assertEqual(set(ends), {"moved", "kept"})

    def test_sigterm_of_the_destination(self) -> None:
        def terminate(scene: Scene) -> str:
            scene.destination.signal()
            scene.world.run_until(lambda: scene.destination.is_over)
            scene.world.run_until(lambda: scene.destination.machine.world.clock.seconds() > 3)
            if scene.owned:
                self.assertEqual(scene.destination.status, 0)
                self.assert_moved(scene)
                return "moved"
            self.assertEqual(scene.destination.status, 1)
            if scene.migrating.host.ownership.state is State.COMMITTED and not scene.source.status:
                # It was told to end after it was prepared: the next one hears of it.
                scene.start_destination()
                scene.finish()
                self.assert_moved(scene)
                return "moved later"
            if scene.source.status == 1:
                # DISC was on its way to a destination that was told to end.
                self.assertEqual(scene.faults(scene.destination_image), [])
                return "uncertain"
            self.assert_kept(scene)
            return "kept"

        ends = self.each_moment(Action.EXIT, terminate)
        self.assertEqual(set(ends), {"moved", "kept", self.gap})

    def test_break(self) -> None:
        def break_off(scene: Scene) -> str:
            try:
                answer = scene.migrating.break_mirror()
            except CommandError as error:
                answer = str(error)
            if answer == "mirror stopped":
                self.assert_kept(scene)
                scene.world.result_of(scene.mirror())
            scene.finish()
            self.assert_moved(scene)
            return answer

        ends = self.each_moment(Action.EXIT, break_off)
        self.assertEqual(
            set(ends),
            {"mirror stopped", "too late: the image is being handed over", "Not mirroring"},
        )

    def test_the_connection_is_lost_at_either_end_first(self) -> None:
        for name in ("client", "server"):

            def lose(scene: Scene, name: str = name) -> str:
                if scene.migrations and not scene.source.is_over:
                    end = getattr(scene.migrations[0], name)
                    end.wire.clear()
                    end.lose(ConnectionLost())
                    end.peer.wire.frozen = True
                    scene.world.settle()
                    # The other end notices a good while later.
                    scene.world.clock.callLater(5, end.peer.lose, ConnectionLost())
                scene.world.advance(6)
                if scene.serves and not scene.migrating.is_mirroring:
                    # The first attempt's failure was the end.
                    scene.world.result_of(scene.mirror())
                scene.world.run_until(lambda: scene.source.status is not None, 100)
                if scene.source.status == 1:
                    self.assertEqual(scene.faults(scene.destination_image), [])
                    return "uncertain"
                scene.finish()
                self.assert_moved(scene)
                return "moved"

            ends = self.each_moment(Action.EXIT, lose)
            self.assertIn("moved", ends)


class AtOnceTests(SceneCase):
    """Break and SIGTERM don't wait for a destination that is silent, or for a thread."""

    PHASES = ("copying", "converging", "parked", "settling")

    def silent(self, phase: str) -> Scene:
        scene = Scene(self.folder, self.image)
        scene.reach(phase)
        scene.migrations[0].freeze()
        return scene

    def test_break_while_the_destination_is_silent(self) -> None:
        for phase in self.PHASES:
            scene = self.silent(phase)
            self.assertEqual(scene.migrating.break_mirror(), "mirror stopped")
            self.assertFalse(scene.migrating.host.export.parked)
            self.assertIsNone(scene.migrating.lock.owner)
            scene.migrations[0].server.lose(ConnectionLost())
            self.assert_kept(scene)
            scene.close()

    def test_sigterm_while_the_destination_is_silent(self) -> None:
        for phase in self.PHASES:
            scene = self.silent(phase)
            began = scene.world.clock.seconds()
            scene.source.signal()
            scene.world.run_until(lambda scene=scene: scene.source.is_over, 60)  # type: ignore[misc]
            self.assertLess(scene.world.clock.seconds() - began, 0.1, phase)
            self.assertEqual(scene.source.status, 1)
            self.assertFalse(scene.owned)
            scene.close()

    def test_sigterm_while_the_address_is_not_free_yet(self) -> None:
        scene = Scene(self.folder, self.image)
        never: Deferred[None] = Deferred()
        scene.migrating.front.withdraw = lambda host: never
        scene.reach("settling")
        scene.world.settle()
        self.assertIsNotNone(scene.migrating.lock.owner)
        began = scene.world.clock.seconds()
        scene.source.signal()
        scene.world.run_until(lambda: scene.source.is_over, 60)
        self.assertLess(scene.world.clock.seconds() - began, 0.1)
        self.assertEqual(scene.source.status, 1)
        self.assertFalse(scene.owned)
        scene.close()

    def test_break_while_the_image_is_read_for_ever(self) -> None:
        scene = self.scene()
        storage = scene.migrating.host.storage
        # Without a handover no journal is written first, for which nobody would wait in vain.
        with mock.patch.object(storage, "run", return_value=Deferred()):
            scene.world.result_of(scene.mirror(Action.NOTHING))
            self.assertEqual(scene.migrating.migration.phase, "copying")
            self.assertEqual(scene.migrating.break_mirror(), "mirror stopped")
        self.assert_kept(scene)

    def test_break_while_a_clients_flush_takes_for_ever(self) -> None:
        scene = self.scene()
        export = scene.migrating.host.export
        with mock.patch.object(export, "idle", Deferred):
            scene.reach("parked")
            scene.world.settle()
            self.assertTrue(export.parked)
            self.assertEqual(scene.migrating.break_mirror(), "mirror stopped")
            self.assertFalse(export.parked)
        self.assert_kept(scene)


class SummaryTests(SceneCase):
    """What a migration came to tells of no success where there was none."""

    def told(self, scene: Scene) -> tuple[str, str | None, str | None]:
        summary = scene.source.service.status(None).summary
        return summary.verdict, summary.verified, summary.digest

    def test_of_one_that_was_broken_off_once_all_was_compared(self) -> None:
        for phase in ("copying", "parked", "settling"):
            scene = Scene(self.folder, self.image)
            scene.reach(phase)
            scene.migrations[0].freeze()
            if phase == "settling":
                assert scene.migrating.migration.attempt.passes.digest is not None
            scene.migrating.break_mirror()
            self.assertEqual(self.told(scene), ("broken", None, None))
            scene.migrations[0].server.lose(ConnectionLost())
            self.assert_kept(scene)
            scene.close()

    def test_of_one_that_is_not_confirmed(self) -> None:
        scene = self.scene()
        scene.reach("settling")
        ownership = scene.migrating.host.ownership
        scene.world.run_until(lambda: ownership.state is State.COMMITTED)
        scene.migrations[0].cut()
        scene.source.signal()
        scene.world.run_until(lambda: scene.source.is_over, 60)
        self.assertEqual(self.told(scene), ("unconfirmed", None, None))

    def test_of_one_that_succeeded(self) -> None:
        scene = self.scene()
        scene.world.result_of(scene.mirror())
        scene.finish()
        verdict, verified, digest = self.told(scene)
        self.assertEqual((verdict, verified), ("complete", "full"))
        self.assertIn("blake3", str(digest))


class ConvergeTests(SceneCase):
    """Clients that write all the while, more than may be sent."""

    image = random.Random(1).randbytes(64 * BLOCK)

    def outrun(self, converge: ConvergeConfig) -> Scene:
        scene = self.scene(image=self.image)
        request = MirrorRequest(INTAKE, max_bps=16 * BLOCK, converge=converge)
        scene.world.result_of(scene.source.service.mirror(request))
        return scene

    def verdict(self, scene: Scene) -> str | None:
        verdict = scene.source.service.status(None).migration_verdict
        assert verdict is None or isinstance(verdict, str)
        return verdict

    def test_waiting_goes_on_until_it_is_told_otherwise(self) -> None:
        scene = self.outrun(ConvergeConfig("wait"))
        scene.world.run_until(lambda: self.verdict(scene) == "not converging", 60)
        self.assertIsNone(scene.migrating.host.export.throttle)
        status = scene.source.service.status(None)
        assert status.migration_dirty_rate is not None
        self.assertGreater(status.migration_dirty_rate, 0)
        self.assertEqual(status.migration_send_rate, 16 * BLOCK)
        scene.source.service.set_converge(ConvergeChange("throttle"), None)
        scene.world.run_until(lambda: scene.source.is_over and scene.owned, 120)
        self.assert_moved(scene)

    def test_writers_are_free_at_once_if_it_is_to_wait_after_all(self) -> None:
        scene = self.outrun(ConvergeConfig())
        export = scene.migrating.host.export
        scene.world.run_until(lambda: export.throttle is not None, 60)
        self.assertEqual(self.verdict(scene), "throttling")
        scene.source.service.set_converge(ConvergeChange("wait"), None)
        self.assertIsNone(export.throttle)
        scene.migrating.break_mirror()
        self.assert_kept(scene)

    def test_force_parks_after_its_timeout(self) -> None:
        scene = self.outrun(ConvergeConfig("force", timeout=30.0))
        scene.world.run_until(lambda: self.verdict(scene) == "not converging", 60)
        began = scene.world.clock.seconds()
        scene.world.run_until(lambda: scene.migrating.host.export.parked, 60)
        self.assertLess(abs(scene.world.clock.seconds() - began - 30), 10)
        scene.world.run_until(lambda: scene.source.is_over and scene.owned, 60)
        self.assert_moved(scene)

    def test_force_said_while_it_runs_acts_at_once(self) -> None:
        scene = self.outrun(ConvergeConfig("wait"))
        scene.world.run_until(lambda: self.verdict(scene) == "not converging", 60)
        scene.source.service.set_converge(ConvergeChange("force", timeout=0.0), None)
        scene.world.run_until(lambda: scene.migrating.host.export.parked, 1)
        scene.world.run_until(lambda: scene.source.is_over and scene.owned, 60)
        self.assert_moved(scene)

    def test_what_is_said_when_nothing_runs_is_refused(self) -> None:
        scene = self.scene()
        with self.assertRaisesRegex(CommandError, "Not mirroring"):
            scene.source.service.set_converge(ConvergeChange("force"), None)


class CopyTests(SceneCase):
    def test_with_action_nothing_leaves_no_handover(self) -> None:
        scene = self.scene()
        self.assertEqual(scene.world.result_of(scene.mirror(Action.NOTHING)), "Mirror started")
        scene.world.run_until(lambda: not scene.migrating.is_mirroring)
        # It is equal at the moment at which the clients were parked: nothing has happened since.
        self.assertEqual(scene.source_image.read_bytes(), scene.destination_image.read_bytes())
        scene.world.settle()
        self.assertEqual(scene.migrating.last_migration, "copied")
        self.assertNotIn(("destination", "receives DISC"), scene.world.trace)
        self.assertNotIn(("source", "listens no longer on port 10809"), scene.world.trace)
        self.assert_kept(scene)
        scene.world.result_of(scene.mirror())
        scene.finish()
        self.assert_moved(scene)

    def test_of_a_sparse_image_is_as_sparse(self) -> None:
        image = bytearray(64 * BLOCK)
        image[8 * BLOCK : 9 * BLOCK] = random.Random(1).randbytes(BLOCK)
        scene = self.scene(image=bytes(image), write_every=0)
        scene.world.result_of(scene.mirror())
        scene.finish()
        self.assert_moved(scene)
        sizes = [path.stat().st_blocks for path in (scene.source_image, scene.destination_image)]
        self.assertLessEqual(abs(sizes[0] - sizes[1]), 8 * scene.writer.acknowledged)
        self.assertLess(sizes[1], 64 * 8)


class AnyMomentPlainlyTests(AnyMomentTests):
    handover = HandoverRule.PLAIN
    gap = "uncertain"


class StallTests(SceneCase):
    def freeze(self, scene: Scene, phase: str) -> None:
        scene.reach(phase)
        scene.migrations[0].freeze()

    def thaw(self, scene: Scene) -> None:
        """Let the destination notice that its sender is gone, as keepalive would."""
        scene.migrations[0].server.lose(ConnectionLost())

    def test_of_a_minute_ends_an_attempt_and_clients_notice_nothing(self) -> None:
        scene = self.scene()
        self.freeze(scene, "copying")
        began = scene.world.clock.seconds()
        scene.world.run_until(lambda: scene.migrating.migration.phase == "waiting", 100)
        self.assertLess(abs(scene.world.clock.seconds() - began - 61), 1.5)
        self.assertIn("no progress for 6", scene.migrating.migration.last_error)
        self.thaw(scene)
        self.assert_kept(scene)
        scene.finish()
        self.assert_moved(scene)

    def test_while_parked_lets_clients_go_after_max_park(self) -> None:
        scene = self.scene()
        self.freeze(scene, "parked")
        scene.world.settle()
        began, before = scene.world.clock.seconds(), scene.writer.acknowledged
        scene.world.run_until(lambda: scene.writer.acknowledged > before, 100)
        self.assertLess(abs(scene.world.clock.seconds() - began - 10), 0.5)
        self.assertIn("were parked for 10.0 s", scene.migrating.migration.last_error)
        self.thaw(scene)
        self.assert_kept(scene)
        scene.finish()
        self.assert_moved(scene)

    def test_of_the_answer_to_disc_leaves_it_uncertain_after_half_a_minute(self) -> None:
        for action in (Action.EXIT, Action.UNLINK):
            scene = Scene(self.folder, self.image, handover=HandoverRule.PLAIN)
            scene.reach("committing", action)
            scene.migrations[0].freeze()
            began = scene.world.clock.seconds()
            scene.world.run_until(lambda scene=scene: scene.source.is_over, 100)  # type: ignore[misc]
            self.assertLess(abs(scene.world.clock.seconds() - began - 30), 0.5)
            self.assertEqual(scene.source.status, 1)
            self.assertIn("did not close the connection", scene.migrating.last_migration)
            self.assertEqual(scene.faults(scene.destination_image), [])
            self.thaw(scene)
            scene.close()

    def test_a_destination_that_says_nothing_is_no_destination(self) -> None:
        scene = self.scene()
        scene.world.connected = lambda connection: connection.freeze()
        with self.assertRaises(CommandError) as caught:
            scene.world.result_of(scene.mirror())
        self.assertIn("Remote server failed to respond: ", str(caught.exception))
        scene.world.connected = lambda connection: None
        self.assert_kept(scene)


class SlowLinkTests(SceneCase):
    """A link that takes 64 KiB a second."""

    BANDWIDTH = 64 * 1024

    def slow(self, scene: Scene, writes_a_second: int) -> None:
        connected = scene.world.connected

        def slowly(connection: object) -> None:
            connected(connection)
            if scene.migrations and scene.migrations[-1] is connection:
                scene.migrations[-1].server.wire.bandwidth = self.BANDWIDTH

        scene.world.connected = slowly

        def write() -> None:
            scene.writer.write()
            if not scene.source.is_over:
                scene.world.clock.callLater(1 / writes_a_second, write)

        write()

    def test_writers_are_slowed_until_it_converges(self) -> None:
        image = random.Random(1).randbytes(64 * BLOCK)
        scene = self.scene(image=image, write_every=0)
        # Each write dirties a block: four times what the link takes.
        self.slow(scene, writes_a_second=64)
        scene.world.result_of(scene.mirror())
        scene.world.run_until(lambda: scene.migrating.host.export.throttle is not None, 120)
        scene.world.run_until(lambda: scene.source.is_over, 600)
        scene.wait_for_writes()
        self.assert_moved(scene)

    def test_writers_that_are_slow_enough_are_left_alone(self) -> None:
        image = random.Random(1).randbytes(64 * BLOCK)
        scene = self.scene(image=image, write_every=0, beat=1.0)
        self.slow(scene, writes_a_second=1)
        scene.world.result_of(scene.mirror())
        while not scene.source.is_over:
            scene.world.step() or scene.world.advance(0.1)
            self.assertIsNone(scene.migrating.host.export.throttle)
        self.assert_moved(scene)

    def test_writers_are_free_again_when_it_is_broken_off(self) -> None:
        image = random.Random(1).randbytes(64 * BLOCK)
        scene = self.scene(image=image, write_every=0)
        self.slow(scene, writes_a_second=64)
        scene.world.result_of(scene.mirror())
        export = scene.migrating.host.export
        scene.world.run_until(lambda: export.throttle is not None, 120)
        scene.migrating.break_mirror()
        self.assertIsNone(export.throttle)
        scene.world.advance(2)
        before = scene.writer.acknowledged
        scene.world.advance(1)
        self.assertGreater(scene.writer.acknowledged - before, 50)
        self.assert_kept(scene)

    def test_a_limit_is_kept_to_and_may_be_lifted(self) -> None:
        image = random.Random(1).randbytes(64 * BLOCK)
        scene = self.scene(image=image, write_every=0)
        scene.world.result_of(scene.mirror(max_bps=BLOCK))
        scene.world.advance(10)
        sent = scene.migrating.migration.progress.sent
        self.assertLess(abs(sent - 10 * BLOCK), 2 * BLOCK)
        scene.migrating.set_max_bps(0)
        scene.world.run_until(lambda: scene.source.is_over, 5)
        self.assert_moved(scene)


class PrepareTests(SceneCase):
    """Both ends have to have the same digest of the whole image, where both know how to say so."""

    def watched(self, scene: Scene) -> list[tuple[str, str | None]]:
        """Return where what the destination is asked to prepare will be: its digest, the claim."""
        asked: list[tuple[str, str | None]] = []
        prepare = DestinationHandover.prepare

        def watch(
            handover: DestinationHandover, coverage: Coverage, digest: str, claimed: str | None
        ) -> Deferred[Outcome]:
            asked.append((digest, claimed))
            return prepare(handover, coverage, digest, claimed)

        self.patch(DestinationHandover, "prepare", watch)
        return asked

    def test_both_have_the_same(self) -> None:
        for handover in (HandoverRule.AUTO, HandoverRule.PLAIN):
            with closing(Scene(self.folder, self.image, handover=handover)) as scene:
                asked = self.watched(scene)
                scene.world.result_of(scene.mirror())
                scene.finish()
                self.assert_moved(scene)
            expected = 0 if handover is HandoverRule.PLAIN else 1
            self.assertEqual(len(asked), expected)
            for digest, claimed in asked:
                self.assertRegex(digest, "^blake3")
                self.assertEqual(digest, claimed)

    def test_another_one_is_refused_and_the_next_attempt_begins_anew(self) -> None:
        def wrong(digest: ImageDigest, claim: Claim) -> None:
            comparer.tell(digest, replace(claim, digest=b"x" * 32))

        for spoiled, found in ((wrong, "the image's digest is blake3"), (mock.Mock(), "not known")):
            with closing(Scene(self.folder, self.image)) as scene:
                asked = self.watched(scene)
                with mock.patch.object(sessions, "tell", spoiled):
                    scene.world.result_of(scene.mirror())
                    scene.world.run_until(lambda asked=asked: asked)
                    scene.world.run_until(lambda scene=scene: scene.migrating.migration.last_error)
                error = scene.migrating.migration.last_error or ""
                self.assertIn(found, error)
                self.assertIn(f"{asked[0][1]} at the source", error)
                state = journal.load(SYSTEM, f"{scene.destination_image}.handover")
                self.assertIs(state and state.state, State.RECEIVING)
                scene.finish()
                self.assert_moved(scene)
            self.assertEqual(asked[-1][0], asked[-1][1])

    def test_who_does_not_know_how_to_say_it_is_asked_as_ever(self) -> None:
        answers, opening = sessions.answer, HandoverTerms.opening

        def old_source(terms: HandoverTerms, attempt: int, **more: Any) -> Opening:
            return replace(opening(terms, attempt, **more), capabilities=0)

        def old_destination(asked: Opening, *args: Any, **more: Any) -> sessions.Replies:
            return answers(replace(asked, capabilities=0), *args, **more)

        for where, name, old in (
            (HandoverTerms, "opening", old_source),
            (sessions, "answer", old_destination),
        ):
            with (
                closing(Scene(self.folder, self.image)) as scene,
                mock.patch.object(where, name, old),
            ):
                asked = self.watched(scene)
                scene.world.result_of(scene.mirror())
                scene.finish()
                self.assert_moved(scene)
            self.assertEqual([claimed for _, claimed in asked], [None])

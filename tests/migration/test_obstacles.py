"""Clients are not parked for what is known to come to nothing, in memory."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from flexmigrate.image.file_storage import FileStorage
from flexmigrate.migration.destination.handover import DestinationHandover
from flexmigrate.migration.ownership.ownership import Ownership
from flexmigrate.migration.request import Action, ConvergeChange, HandoverRule
from flexmigrate.wire.handover import Outcome, State
from support.scene import Scene, SceneCase


class ObstacleCase(SceneCase):
    def slow_flushes(self, seconds: Callable[[], float]) -> None:
        """Let each flush at the destination take so long."""
        flush = FileStorage.flush

        def slow(storage: Any) -> Deferred[None]:
            if storage._reactor.name != "destination":
                return flush(storage)
            return deferLater(storage._reactor, seconds(), flush, storage)

        self.patch(FileStorage, "flush", slow)

    def parked(self, scene: Scene) -> float:
        """Return for how long clients have been parked, in all."""
        seconds = self.status(scene).migration_parked
        assert seconds is not None
        return seconds

    def status(self, scene: Scene) -> Any:
        return scene.source.service.status(None)

    def obstacle(self, scene: Scene) -> str:
        """Return what is said to be in the way, once something is."""
        scene.world.run_until(lambda: self.status(scene).migration_obstacle, 600)
        obstacle: str = self.status(scene).migration_obstacle
        return obstacle


class SlowFlushTests(ObstacleCase):
    def test_clients_are_not_parked_for_one_that_takes_too_long(self) -> None:
        self.slow_flushes(lambda: 12.0)
        scene = self.scene()
        scene.world.result_of(scene.mirror())
        obstacle = self.obstacle(scene)
        self.assertIn("takes 12.0 s", obstacle)
        self.assertIn("may be for 10 s", obstacle)
        for _ in range(10):
            scene.world.advance(60)
            scene.wait_for_writes()
        self.assertEqual(self.parked(scene), 0.0)
        self.assertEqual(scene.migrating.migration.phase, "converging")
        self.assertEqual(scene.migrating.migration.attempts, 1)
        self.assert_kept(scene)

    def test_nor_for_two_that_take_too_long_together(self) -> None:
        self.slow_flushes(lambda: 6.0)
        scene = self.scene()
        scene.world.result_of(scene.mirror())
        self.assertIn("takes 6.0 s, twice, to flush", self.obstacle(scene))
        self.assertEqual(self.parked(scene), 0.0)

    def test_a_copy_needs_only_one(self) -> None:
        self.slow_flushes(lambda: 6.0)
        scene = self.scene()
        scene.world.result_of(scene.mirror(Action.NOTHING))
        scene.world.run_until(lambda: scene.migrating.last_migration == "copied", 600)

    def test_a_plain_handover_needs_only_one(self) -> None:
        self.slow_flushes(lambda: 6.0)
        scene = self.scene(handover=HandoverRule.PLAIN)
        scene.world.result_of(scene.mirror())
        scene.finish()
        self.assert_moved(scene)

    def test_more_time_for_parking_counts_at_once(self) -> None:
        self.slow_flushes(lambda: 12.0)
        scene = self.scene()
        scene.world.result_of(scene.mirror())
        self.obstacle(scene)
        scene.world.advance(100)
        began = scene.world.clock.seconds()
        scene.migrating.set_converge(ConvergeChange(max_park=30.0))
        scene.world.run_until(lambda: scene.migrating.migration.phase == "parked", 600)
        # But for a pass that may have been under way.
        self.assertLess(scene.world.clock.seconds() - began, 13)
        scene.finish()
        self.assert_moved(scene)

    def test_when_it_is_quick_again_the_handover_follows(self) -> None:
        seconds = [12.0]
        self.slow_flushes(lambda: seconds[0])
        scene = self.scene()
        scene.world.result_of(scene.mirror())
        self.obstacle(scene)
        scene.world.advance(300)
        seconds[0] = 0.1
        scene.finish()
        self.assert_moved(scene)
        self.assertLess(scene.migrating.watch.parked_seconds(0.0), 1.0)

    def test_the_first_flush_of_so_much_says_nothing(self) -> None:
        waits = iter([12.0])
        self.slow_flushes(lambda: next(waits, 0.0))
        scene = self.scene()
        scene.world.result_of(scene.mirror())
        scene.world.run_until(lambda: scene.source.is_over, 14)
        self.assert_moved(scene)

    def test_the_destination_is_looked_for_at_once_when_it_is_gone(self) -> None:
        self.slow_flushes(lambda: 12.0)
        scene = self.scene()
        scene.world.result_of(scene.mirror())
        self.obstacle(scene)
        scene.world.advance(300)
        migration = scene.migrating.migration
        scene.world.run_until(lambda: migration.attempt._switchover._retry is not None, 100)
        scene.migrations[0].cut()
        scene.world.run_until(lambda: migration.attempts == 2, 3)

    def test_it_can_be_broken_off(self) -> None:
        self.slow_flushes(lambda: 12.0)
        scene = self.scene()
        scene.world.result_of(scene.mirror())
        self.obstacle(scene)
        self.assertEqual(scene.migrating.break_mirror(), "mirror stopped")
        self.assert_kept(scene)


class FlushThatFailedTests(ObstacleCase):
    """Clients were parked once for a flush that was too long."""

    def test_it_is_not_tried_in_the_same_way_again(self) -> None:
        is_parked = [False]
        self.slow_flushes(lambda: 60.0 if is_parked[0] else 0.0)
        scene = self.scene()
        scene.world.result_of(scene.mirror())
        migration = scene.migrating.migration
        scene.world.run_until(lambda: migration.phase == "parked", 600)
        is_parked[0] = True
        scene.world.run_until(lambda: migration.phase == "waiting", 600)
        self.assertIn("not sent, flushed and compared yet", migration.last_error)
        is_parked[0] = False
        self.assertIn("takes 10.0 s to flush", self.obstacle(scene))
        self.assertLess(self.parked(scene), 10.1)
        scene.finish()  # three flushes were short since
        self.assert_moved(scene)


class JournalTests(ObstacleCase):
    def test_clients_are_not_parked_while_it_can_not_be_written(self) -> None:
        probe = Ownership.probe
        is_full = [False]

        def probed(ownership: Ownership) -> None:
            if is_full[0] and "source" in ownership.image_state.path:
                raise OSError(errno.ENOSPC, "No space left on device")
            probe(ownership)

        self.patch(Ownership, "probe", probed)
        scene = self.scene()
        scene.world.result_of(scene.mirror())
        is_full[0] = True
        self.assertIn("No space left", self.obstacle(scene))
        scene.world.advance(300)
        self.assertEqual(self.parked(scene), 0.0)
        self.assertEqual(scene.migrating.migration.attempts, 1)
        is_full[0] = False
        scene.finish()
        self.assert_moved(scene)


class RefusalTests(ObstacleCase):
    """The destination refuses to prepare, time and again."""

    def refuse(self, refuses: Callable[[], bool]) -> None:
        prepare = DestinationHandover._prepare

        async def prepared(handover: Any, *args: Any) -> Outcome:
            if refuses():
                return Outcome(State.RECEIVING, "the stars are wrong")
            return await prepare(handover, *args)

        self.patch(DestinationHandover, "_prepare", prepared)

    def test_it_is_asked_less_and_less_often(self) -> None:
        asked: list[float] = []
        self.refuse(lambda: not asked.append(scene.world.clock.seconds()))  # type: ignore[func-returns-value]
        scene = self.scene()
        scene.world.result_of(scene.mirror())
        scene.world.run_until(lambda: len(asked) == 9, 600)
        gaps = [round(later - earlier) for earlier, later in itertools.pairwise(asked)]
        self.assertEqual(gaps, [1, 1, 2, 4, 8, 16, 32, 60])
        told = self.status(scene).migration_obstacle
        self.assertIn("parked 8 times in vain", told)
        self.assertIn("the stars are wrong", told)
        self.assert_kept(scene)
        # Whoever changes what is asked for wants to see what comes of it.
        scene.world.run_until(lambda: scene.migrating.migration.phase == "waiting", 5)
        began = scene.world.clock.seconds()
        scene.migrating.set_converge(ConvergeChange(max_park=11.0))
        scene.world.run_until(lambda: len(asked) == 10, 5)
        self.assertLess(asked[-1] - began, 1.0)

    def test_it_says_what_it_waited_for(self) -> None:
        prepare = DestinationHandover._prepare

        async def late(handover: Any, *args: Any) -> Outcome:
            await deferLater(scene.destination_machine, 30)
            return await prepare(handover, *args)

        self.patch(DestinationHandover, "_prepare", late)
        scene = self.scene()
        scene.reach("waiting")
        self.assertIn("had not said that it is prepared", self.status(scene).migration_error or "")

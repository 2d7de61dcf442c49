"""The disk is told early what it has to write, and the sender waits for it."""

from __future__ import annotations

import random
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.migration.destination import write_back
from flexmigrate.migration.destination.coverage import Coverage
from flexmigrate.migration.destination.write_back import (
    BACKLOG_BYTES,
    WRITE_BACK_BYTES,
    Reception,
    WriteBack,
)
from flexmigrate.server.export import Export
from flexmigrate.wire.constants import MAX_REQUEST
from support.scene import Scene, SceneCase

MIB = 1 << 20


class RecordedExport:
    """Knows whether its connections wait."""

    def __init__(self) -> None:
        self.parked = False

    def park(self) -> None:
        assert not self.parked
        self.parked = True

    def unpark(self) -> None:
        assert self.parked
        self.parked = False


class RecordedDisk:
    """Is done with what it was told when the test says so."""

    def __init__(self) -> None:
        self.told: list[Deferred[None]] = []

    @property
    def busy(self) -> bool:
        return bool(self.told) and not self.told[-1].called

    def write_back(self) -> Deferred[None]:
        assert not self.busy
        self.told.append(Deferred())
        return self.told[-1]

    def done(self) -> None:
        self.told[-1].callback(None)


class WriteBackTests(SynchronousTestCase):
    def setUp(self) -> None:
        export: Any = RecordedExport()
        disk: Any = RecordedDisk()
        self.export: RecordedExport = export
        self.disk: RecordedDisk = disk
        self.told: list[OSError] = []
        self.write_back = WriteBack(export, disk, self.told.append)
        self.write_back.begin()

    def add(self, length: int) -> None:
        for _ in range(length // MIB):
            self.write_back.add(MIB)

    def test_the_disk_is_told_once_enough_has_come(self) -> None:
        self.add(WRITE_BACK_BYTES - MIB)
        self.assertEqual(self.disk.told, [])
        self.add(MIB)
        self.assertEqual(len(self.disk.told), 1)

    def test_it_is_not_told_again_before_it_is_done(self) -> None:
        self.add(3 * WRITE_BACK_BYTES)
        self.assertEqual(len(self.disk.told), 1)
        self.disk.done()
        self.assertEqual(len(self.disk.told), 2)
        self.disk.done()
        self.assertEqual(len(self.disk.told), 2)  # nothing came meanwhile

    def test_the_sender_waits_for_a_disk_that_can_not_keep_pace(self) -> None:
        self.add(WRITE_BACK_BYTES + BACKLOG_BYTES - MIB)
        self.assertFalse(self.export.parked)
        self.add(MIB)
        self.assertTrue(self.export.parked)
        self.add(MIB)  # what was under way when it was told to wait
        self.disk.done()
        self.assertFalse(self.export.parked)
        self.assertTrue(self.disk.busy)

    def test_never_more_than_the_backlog_is_received_beside_what_is_being_written(self) -> None:
        draw = random.Random(1)
        received = handed_over = 0
        for _ in range(20_000):
            before = len(self.disk.told)
            if self.disk.busy and (self.export.parked or draw.randrange(100) == 0):
                self.disk.done()
            else:
                self.write_back.add(MIB)
                received += MIB
            if len(self.disk.told) > before:
                handed_over = received
            self.assertLessEqual(received - handed_over, BACKLOG_BYTES)

    def test_at_the_end_nobody_waits_any_more(self) -> None:
        self.add(WRITE_BACK_BYTES + BACKLOG_BYTES)
        self.write_back.end()
        self.assertFalse(self.export.parked)
        self.add(2 * BACKLOG_BYTES)
        self.disk.done()
        self.assertFalse(self.export.parked)
        self.assertEqual(len(self.disk.told), 1)

    def test_another_attempt_waits_for_what_the_last_one_left_to_be_written(self) -> None:
        self.add(WRITE_BACK_BYTES)
        self.write_back.end()
        self.write_back.begin()
        self.add(BACKLOG_BYTES)
        self.assertEqual(len(self.disk.told), 1)
        self.assertTrue(self.export.parked)
        self.disk.done()
        self.assertFalse(self.export.parked)

    def fail(self) -> OSError:
        error = OSError(5, "Input/output error")
        self.disk.told[-1].errback(Failure(error))
        return error

    def test_where_it_fails_that_is_told_and_nothing_more_is_written(self) -> None:
        self.add(WRITE_BACK_BYTES + BACKLOG_BYTES)
        self.assertEqual(self.told, [self.fail()])
        self.assertFalse(self.export.parked)
        self.add(2 * BACKLOG_BYTES)
        self.assertEqual(len(self.disk.told), 1)
        self.write_back.begin()
        self.add(WRITE_BACK_BYTES)
        self.assertEqual(len(self.disk.told), 2)

    def test_what_fails_between_two_attempts_is_found_by_the_next(self) -> None:
        self.add(WRITE_BACK_BYTES)
        self.write_back.end()
        self.fail()
        self.assertEqual(self.told, [])

    def test_what_the_last_attempt_has_left_and_fails_in_this_is_told(self) -> None:
        self.add(WRITE_BACK_BYTES)
        self.write_back.end()
        self.write_back.begin()
        self.assertEqual(self.told, [self.fail()])


class ReceptionTests(SynchronousTestCase):
    def setUp(self) -> None:
        export: Any = RecordedExport()
        self.disk: Any = RecordedDisk()
        self.told: list[OSError] = []
        self.coverage = Coverage(4 * MAX_REQUEST)
        write_back = WriteBack(export, self.disk, self.told.append)
        write_back.begin()
        self.reception = Reception(self.coverage, write_back)

    def test_a_write_is_covered_and_written_back(self) -> None:
        self.reception.mark(0, MAX_REQUEST)
        self.assertEqual(self.coverage.covered, MAX_REQUEST)
        self.assertEqual(len(self.disk.told), 1)

    def test_so_are_zeroes_which_may_have_been_written(self) -> None:
        self.reception.mark(0, 2 * MAX_REQUEST)
        self.assertEqual(self.coverage.covered, 2 * MAX_REQUEST)
        self.assertEqual(len(self.disk.told), 1)

    def test_what_failed_or_was_refused_spoils_the_attempt(self) -> None:
        for tell in (
            lambda: self.reception.failed(0, 512, OSError(28, "No space left on device")),
            lambda: self.reception.flush_failed(OSError(5, "Input/output error")),
            lambda: self.reception.refused("a write of 512 bytes at 2048"),
        ):
            self.coverage.spoiled = None
            tell()
            self.assertIsNotNone(self.coverage.spoiled)
            self.assertFalse(self.coverage.complete)


class WholeMigrationTests(SceneCase):
    """With a disk that is told of every block, and so slow that the sender has to wait."""

    image = random.Random(4).randbytes(16 * 4096)

    def test_in_any_order_of_events_moves_the_image(self) -> None:
        self.patch(write_back, "WRITE_BACK_BYTES", 4096)
        self.patch(write_back, "BACKLOG_BYTES", 2 * 4096)
        waits: list[str] = []
        park = Export.park

        def parked(export: Export) -> Deferred[None]:
            waits.append(export.storage.path)
            return park(export)

        self.patch(Export, "park", parked)
        for seed in range(1, 21):
            scene = Scene(self.folder, self.image, seed=seed)
            try:
                scene.world.result_of(scene.mirror())
                scene.finish()
                self.assert_moved(scene)
            finally:
                scene.close()
        self.assertIn(str(scene.destination_image), waits)

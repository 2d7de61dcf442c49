"""The order of what happens at the end, where a second server takes over an address."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.internet.defer import Deferred

from flexmigrate.image.file import Image
from flexmigrate.migration.ownership import journal
from flexmigrate.migration.ownership.journal import Record
from flexmigrate.migration.request import Action, HandoverRule
from support.scene import SERVING, Scene, SceneCase

CLOSED = "is told of a connection's end: ConnectionDone"
LOST = "is told of a connection's end: ConnectionLost"


class SequenceTests(SceneCase):
    handover = HandoverRule.PLAIN

    def places(self, scene: Scene, *events: tuple[str, str]) -> list[int]:
        """Return where each of *events* first stands in the trace."""
        return [scene.world.trace.index(event) for event in events]

    def assert_in_order(self, scene: Scene, *events: tuple[str, str]) -> None:
        places = self.places(scene, *events)
        self.assertEqual(places, sorted(places), scene.world.trace)

    def test_of_a_migration_within_one_address(self) -> None:
        for seed in (None, *range(20)):
            scene = Scene(self.folder, self.image, seed=seed, handover=self.handover)
            scene.world.result_of(scene.mirror())
            scene.finish()
            self.assert_moved(scene)
            self.assert_in_order(
                scene,
                # Before the last message, the address is free,
                ("source", "listens no longer on port 10809"),
                ("destination", "receives DISC"),
                # so that the destination has it before it tells the source,
                ("destination", "listens on port 10809"),
                ("source", CLOSED),
                # which then lets its clients go: they find the new server at once.
                ("source", "ends with status 0"),
            )
            self.assert_in_order(scene, ("source", CLOSED), ("client", self.client_end(scene)))
            self.assert_in_order(
                scene,
                ("destination", "receives DISC"),
                ("destination", "listens no longer on port 10810"),
                ("destination", "listens on port 10809"),
            )
            scene.close()

    def test_the_last_before_disc_is_a_flush(self) -> None:
        scene = self.scene()
        scene.world.result_of(scene.mirror())
        scene.finish()
        self.assertIn(("destination", "had a flush before"), scene.world.trace)

    def client_end(self, scene: Scene) -> str:
        """Return how the client's first connection ended: what it had sent and nobody read makes a
        reset of the close.
        """
        return next(what for who, what in scene.world.trace if who == "client")

    def test_of_one_whose_address_is_still_taken(self) -> None:
        scene = self.scene()
        address = (SERVING.host, SERVING.port)
        scene.world.result_of(scene.mirror())
        scene.world.listen_errors[address] = errno.EADDRNOTAVAIL
        scene.world.run_until(lambda: scene.source.is_over)
        # The first try comes before the source is told; the image is safe whatever comes of it.
        self.assert_in_order(
            scene,
            ("destination", "can't listen on port 10809"),
            ("source", CLOSED),
            ("source", "ends with status 0"),
        )
        self.assertTrue(scene.owned)
        scene.world.advance(5)
        tries = scene.world.trace.count(("destination", "can't listen on port 10809"))
        self.assertEqual(tries, 6)
        status = scene.destination.service.status(None)
        self.assertEqual((status.listening_phase, status.rebind_attempts), ("rebinding", 6))
        del scene.world.listen_errors[address]
        scene.world.advance(1)
        self.assertIn(("destination", "listens on port 10809"), scene.world.trace)
        scene.wait_for_writes()
        self.assert_moved(scene)

    def test_of_one_whose_address_can_never_be_had(self) -> None:
        scene = self.scene()
        scene.world.result_of(scene.mirror())
        scene.world.listen_errors[SERVING.host, SERVING.port] = errno.EAFNOSUPPORT
        scene.world.run_until(lambda: scene.source.is_over and scene.destination.is_over)
        self.assertEqual((scene.source.status, scene.destination.status), (0, 0))
        self.assertEqual(scene.faults(scene.destination_image), [])

    def test_without_rebind_both_end_with_success(self) -> None:
        scene = self.scene(rebind=False)
        scene.world.result_of(scene.mirror())
        scene.world.run_until(lambda: scene.source.is_over and scene.destination.is_over)
        self.assertEqual((scene.source.status, scene.destination.status), (0, 0))
        self.assertEqual(scene.faults(scene.destination_image), [])
        self.assertNotIn(("destination", "listens on port 10809"), scene.world.trace)

    def test_with_unlink_the_file_is_gone_before_disc(self) -> None:
        scene = self.scene()
        unlink = os.unlink

        def told(path: str) -> None:
            unlink(path)
            if path == str(scene.source_image):
                scene.source_machine.note("has unlinked its image")

        with mock.patch.object(os, "unlink", told):
            scene.world.result_of(scene.mirror(Action.UNLINK))
            scene.finish()
        self.assert_in_order(
            scene,
            ("source", "listens no longer on port 10809"),
            ("source", "has unlinked its image"),
            ("destination", "receives DISC"),
        )

    def test_the_source_listens_again_if_the_handover_fails(self) -> None:
        scene = self.scene()
        unlink = os.unlink

        def unlinked(path: str) -> None:
            if path == str(scene.source_image):
                raise PermissionError(errno.EACCES, "no")
            unlink(path)

        with mock.patch.object(os, "unlink", unlinked):
            scene.world.result_of(scene.mirror(Action.UNLINK))
            scene.world.run_until(lambda: scene.migrating.migration.last_error)
        scene.world.settle()
        self.assertIn("can't be unlinked", scene.migrating.migration.last_error)
        self.assertEqual(scene.world.trace.count(("source", "listens on port 10809")), 2)
        self.assertNotIn(("destination", "receives DISC"), scene.world.trace)
        self.assert_kept(scene)
        scene.finish()
        self.assert_moved(scene)

    def test_the_marker_stands_from_before_the_first_byte_until_all_is_flushed(self) -> None:
        scene = self.scene()
        self.assertFalse(scene.owned)
        flushed: list[bool] = []
        flush = Image.flush

        def told(image: Image) -> None:
            flush(image)
            flushed.append(scene.owned)

        with mock.patch.object(Image, "flush", told):
            scene.world.result_of(scene.mirror())
            scene.world.run_until(lambda: scene.owned)
        self.assertTrue(flushed)
        self.assertNotIn(True, flushed)


class SessionSequenceTests(SceneCase):
    def test_of_a_migration_within_one_address(self) -> None:
        keep: Any = journal.store
        for seed in (None, *range(20)):
            scene = Scene(self.folder, self.image, seed=seed)
            written: list[tuple[str, str]] = []

            def told(disk: object, path: str, record: Record, written: Any = written) -> None:
                written.append((Path(path).name.partition(".")[0], record.state.name))
                keep(disk, path, record)

            with mock.patch.object(journal, "store", told):
                scene.world.result_of(scene.mirror(Action.UNLINK))
                scene.finish()
            self.assert_moved(scene)
            self.assertFalse(scene.source_image.exists())
            # Once more when its file is gone, and the owner once more when its source has said so.
            ends = [("source", "DONE"), ("source", "DONE"), ("destination", "OWNER")]
            self.assertEqual(
                set(written[:2]), {("destination", "RECEIVING"), ("source", "SENDING")}
            )
            self.assertEqual(
                written[2:5],
                [
                    ("destination", "PREPARED"),
                    ("source", "COMMITTED"),
                    ("destination", "OWNER"),
                ],
            )
            self.assertEqual(written[5:], ends)
            trace = scene.world.trace
            places = [
                trace.index(event)
                for event in (
                    ("source", "listens no longer on port 10809"),
                    ("destination", "listens on port 10809"),
                    next(each for each in trace if each[0] == "client"),
                    ("source", "ends with status 0"),
                )
            ]
            self.assertEqual(places, sorted(places), trace)
            scene.close()


class LockTests(SceneCase):
    """Who asks for something while the handover is settled is answered by what came of it."""

    def test_sigterm_that_waited_for_the_handover_ends_with_its_outcome(self) -> None:
        scene = self.scene()
        scene.reach("committing")
        scene.source.signal()
        scene.world.run_until(lambda: ("destination", "receives DISC") in scene.world.trace)
        scene.destination.signal()
        scene.world.run_until(lambda: scene.source.is_over and scene.destination.is_over)
        self.assertEqual((scene.source.status, scene.destination.status), (0, 0))
        self.assertEqual(scene.faults(scene.destination_image), [])

    def test_a_second_mirror_waits_and_is_refused(self) -> None:
        scene = self.scene()
        scene.reach("committing")
        asked: Deferred[str] = scene.mirror()
        self.assertNoResult(asked)
        scene.finish()
        self.assertIn("was migrated away", self.failureResultOf(asked).getErrorMessage())

"""What both ends tell of who owns the image, in every state of their machines."""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ConnectionLost

from flexmigrate.migration.destination.machine import DestinationMachine
from flexmigrate.migration.ownership.journal import Record
from flexmigrate.migration.ownership.status import ImageState
from flexmigrate.migration.request import HandoverRule
from flexmigrate.migration.source.machine import SourceMachine
from flexmigrate.service.receiving import Receiving
from flexmigrate.service.serving import Serving
from flexmigrate.wire.handover import State
from support.machines import state_of, states
from support.scene import Scene, SceneCase

NEVER = {"confirming", "unanswered", "finishing", "given"}
"""States of a source that own nothing; in ``committing`` it depends on the journal."""

OURS = {"complete"}
"""States of a destination that own the image; it may already do so in these two."""
SETTLING = {"settling", "owning"}


class Watched:
    """A scene in which nothing may happen after which both ends say that they own the image.

    :ivar seen: states of the source's and of the destination's machine, with what each end told.
    :ivar wrong: what must not be.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.seen: set[tuple[str, bool]] = set()
        self.received: set[tuple[str, bool]] = set()
        self.wrong: list[str] = []
        scene.world.every(1, self.look)

    def look(self) -> None:
        source, destination = (
            None if server.is_over else self.told(server)
            for server in (self.scene.source, self.scene.destination)
        )
        if source and destination:
            self.wrong.append("both say that they own it")
        if source is not None and isinstance(self.scene.source.service.role, Serving):
            self.look_at_source(source)
        if destination is not None:
            self.look_at_destination(destination)

    def told(self, server: Any) -> bool:
        """Return what *server* tells of itself."""
        status = server.service.status(None)
        assert isinstance(status.has_control, bool)
        return status.has_control

    def look_at_source(self, owns: bool) -> None:
        migrating = self.scene.migrating
        journal = migrating.host.ownership.state
        state = "none" if migrating._source is None else state_of(migrating._source)
        self.seen.add((state, owns))
        if owns and (state in NEVER or journal in (State.COMMITTED, State.DONE)):
            self.wrong.append(f"a source that is {state}, {journal.name}, says that it owns it")
        if not owns and state in ("copying", "converging", "parked", "settling", "waiting"):
            self.wrong.append(f"a source that is {state} says that it doesn't own it")

    def look_at_destination(self, owns: bool) -> None:
        received = self.scene.destination.service.roles[0]
        if not isinstance(received, Receiving):
            return
        intake = received.intake
        state, journal = state_of(intake.machine), intake.host.ownership.state
        self.received.add((state, owns))
        if owns != (journal is State.OWNER) or (owns and state not in OURS | SETTLING):
            self.wrong.append(f"a destination that is {state}, {journal.name}, says {owns}")


class OwnersTests(SceneCase):
    def watched(self, **more: Any) -> Watched:
        return Watched(self.scene(**more))

    def end(self, watched: Watched) -> None:
        watched.scene.finish()
        self.assert_moved(watched.scene)
        self.assertEqual(watched.wrong, [])

    def test_of_a_handover_that_nothing_happens_to(self) -> None:
        for handover in HandoverRule:
            watched = self.watched(handover=handover)
            watched.scene.world.result_of(watched.scene.mirror())
            self.end(watched)
            told = {owns for state, owns in watched.seen if state == "committing"}
            self.assertIn(False, told)
            watched.scene.close()

    def test_of_one_whose_link_is_cut_for_long_at_each_of_its_steps(self) -> None:
        seen: set[tuple[str, bool]] = set()
        received: set[tuple[str, bool]] = set()
        for state in ("copying", "converging", "parked", "settling", "committing", "confirming"):
            for spared in ("client", "server", None):
                watched = self.watched()
                scene = watched.scene
                scene.world.result_of(scene.mirror())
                scene.world.run_until(
                    lambda migrating=scene.migrating, state=state: (  # type: ignore[misc]
                        state_of(migrating._source) == state
                    )
                )
                connection = scene.migrations[-1]
                connection.cut(*([] if spared is None else [getattr(connection, spared)]))
                scene.world.unreachable.add("192.0.2.2")
                scene.world.advance(8)
                scene.world.unreachable.discard("192.0.2.2")
                self.end(watched)
                seen |= watched.seen
                received |= watched.received
                scene.close()
        self.assertEqual(
            {state for state, _ in seen} - {"none"},
            states(SourceMachine) - {"new", "ended", "given"},
        )
        self.assertIn(("unanswered", False), seen)
        self.assertIn(("confirming", False), seen)
        self.assertEqual(
            {state for state, _ in received},
            states(DestinationMachine) - {"settling", "cancelled", "draining"},
        )

    def test_of_one_that_is_only_asked_about_again(self) -> None:
        watched = self.watched()
        scene = watched.scene
        scene.world.result_of(scene.mirror())
        source = scene.migrating.host.ownership
        scene.world.run_until(lambda: source.state is State.COMMITTED)
        connection = scene.migrations[0]
        connection.freeze()
        scene.world.unreachable.add("192.0.2.2")
        scene.source.signal()
        scene.world.run_until(lambda: scene.source.is_over, 60)
        connection.server.lose(ConnectionLost())
        for status in (1, 0):
            scene.start_source()
            self.assertFalse(scene.source.service.status(None).has_control)
            scene.world.run_until(lambda: scene.source.is_over, 60)
            self.assertEqual(scene.source.status, status)
            scene.world.unreachable.discard("192.0.2.2")
        self.assertEqual(watched.wrong, [])
        self.assertTrue(scene.destination.service.status(None).has_control)

    def test_all_that_is_told_comes_from_one_place(self) -> None:
        table = {
            State.NONE: (True, False),
            State.SENDING: (True, False),
            State.COMMITTED: (False, False),
            State.DONE: (False, False),
            State.RECEIVING: (False, False),
            State.PREPARED: (False, False),
            State.OWNER: (True, True),
        }
        self.assertEqual(table.keys(), set(State))
        for state, told in table.items():
            record = None if state is State.NONE else Record(state)
            image_state = ImageState("disk.img", record, marker=False)
            found = image_state.is_owned(serving=True), image_state.is_owned(serving=False)
            self.assertEqual(found, told, state)

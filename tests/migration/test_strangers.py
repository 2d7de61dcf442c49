"""Somebody else speaks to a destination, at any moment of a handover, and knows all that can be
overheard, but no key: he gets nothing.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from unittest import mock

from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectionLost
from twisted.internet.protocol import Factory, Protocol

from flexmigrate.client import NBDClientProtocol, ask, connect
from flexmigrate.errors import CommandError, FlexmigrateError, RequestFailed
from flexmigrate.image.disk import SYSTEM
from flexmigrate.migration.destination import policy as sessions
from flexmigrate.migration.ownership import journal, offer
from flexmigrate.migration.request import MirrorRequest
from flexmigrate.migration.source.handover import HandoverTerms
from flexmigrate.testing import Machine
from flexmigrate.wire.client_handshake import ClientOptions, SessionRequest
from flexmigrate.wire.handover import (
    NO_ID,
    Answer,
    Capability,
    Opening,
    PrivateCommand,
    Purpose,
    State,
    parse_answer,
    parse_opening,
    parse_outcome,
)
from flexmigrate.wire.keys import NO_KEY, KeyKind, derive_key
from support.scene import INTAKE, Scene, SceneCase

COMMIT, RETRACT = KeyKind.COMMIT, KeyKind.RETRACT


class Stranger:
    """Somebody who has heard every opening that the source has said.

    :ivar opening: the last one.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.machine = Machine(scene.world, "stranger", "192.0.2.9")
        terms = scene.migrating.migration.terms
        self.secret = terms.secret
        self.opening: Opening = terms.opening(scene.migrating.migration.attempts)

    def key(self, kind: KeyKind, attempt: int = 1) -> bytes:
        """Return a key, as he would have it if the source had said it."""
        return derive_key(self.secret, kind, self.opening.session, attempt)

    def wrong_keys(self) -> list[bytes]:
        """Return what he may take for the commit key."""
        opening = self.opening
        digests = [opening.commit_digest, opening.retract_digest]
        others = [self.key(RETRACT), self.key(COMMIT, opening.attempt + 1), b"k" * 32, NO_KEY]
        return [*digests, *others]

    def _endpoint(self) -> Any:
        endpoint: Any = TCP4ClientEndpoint
        return endpoint(self.machine, INTAKE.host, INTAKE.port)

    def connect(self, opening: Opening | None) -> NBDClientProtocol:
        """Connect, and say *opening*.

        :raises FlexmigrateError: he is refused.
        """
        session = None if opening is None else SessionRequest(opening.encode())
        wish = ClientOptions(structured=False, extended=False, session=session)
        connecting = connect(self._endpoint(), options=wish, clock=self.machine)
        connected: NBDClientProtocol = self.scene.world.result_of(connecting)
        return connected

    def refused(self, opening: Opening | None) -> str:
        """Return with what words he is refused; he has to be."""
        try:
            self.connect(opening)
        except FlexmigrateError as error:
            return str(error)
        raise AssertionError(f"{opening} is let in")

    def ask(self, opening: Opening) -> Answer:
        """Return what he is told."""
        wish = ClientOptions(session=SessionRequest(opening.encode()))
        asking = ask(self._endpoint(), options=wish, clock=self.machine)
        return parse_answer(self.scene.world.result_of(asking))

    def say(self, client: NBDClientProtocol, command: PrivateCommand, payload: bytes = b"") -> str:
        """Return the refusal, or nothing if it was done."""
        try:
            answer = self.scene.world.result_of(client.private(command, payload=payload))
        except RequestFailed as error:
            return str(error)
        return parse_outcome(answer).refusal

    def settling(self, key: bytes, **more: Any) -> Opening:
        """Return what the source would say to have it settled, with another *key*."""
        return replace(self.opening.as_committed(key), **more)


class StrangerCase(SceneCase):
    def state(self, scene: Scene) -> State:
        """What the destination's journal says."""
        record = journal.load(SYSTEM, journal.path_of(str(scene.destination_image)))
        return State.NONE if record is None else record.state

    def prepared(self) -> tuple[Scene, Stranger]:
        """A destination that is prepared; its source was cut off before it heard that."""
        scene = self.scene()
        scene.reach("settling")
        connection = scene.migrations[0]
        scene.world.run_until(lambda: self.state(scene) is State.PREPARED)
        connection.cut()
        stranger = Stranger(scene)
        scene.world.run_until(lambda: scene.migrating.migration.phase == "waiting")
        return scene, stranger

    def committed(self) -> tuple[Scene, Stranger]:
        """The same; its source has committed, and was cut off before COMMIT arrived."""
        scene = self.scene()
        scene.reach("settling")
        source = scene.migrating.host.ownership
        scene.world.run_until(lambda: source.state is State.COMMITTED)
        scene.migrations[0].cut()
        self.assertIs(self.state(scene), State.PREPARED)
        return scene, Stranger(scene)

    def assert_moves(self, scene: Scene) -> None:
        """Nothing that was said has kept the image from where it was to go."""
        scene.finish()
        self.assert_moved(scene)


class CommitTests(StrangerCase):
    def test_nobody_settles_without_the_key(self) -> None:
        for make in (self.prepared, self.committed):
            scene, stranger = make()
            for key in stranger.wrong_keys():
                for attempt in (1, 2):
                    text = stranger.refused(stranger.settling(key, attempt=attempt))
                    self.assertRegex(text, "commit key|was committed")
            self.assertIn(
                "no such session", stranger.refused(stranger.settling(b"k" * 32, session=b"i" * 16))
            )
            self.assertIs(self.state(scene), State.PREPARED)
            self.assert_moves(scene)
            scene.close()

    def test_nobody_settles_what_is_received(self) -> None:
        scene = self.scene()
        scene.reach("copying")
        scene.world.run_until(lambda: self.state(scene) is State.RECEIVING)
        stranger = Stranger(scene)
        # It isn't received for ever: so the right key, which nobody has yet, comes first.
        self.assertIn("receiving", stranger.refused(stranger.settling(stranger.key(COMMIT))))
        for key in stranger.wrong_keys():
            text = stranger.refused(stranger.settling(key))
            self.assertRegex(text, "receiving|commit key|was committed")
        self.assert_moves(scene)

    def test_commit_needs_a_prepare_before_it(self) -> None:
        scene = self.scene()
        scene.reach("copying")
        stranger = Stranger(scene)
        client = scene.migrating.migration.attempt._connection.client
        self.assertIn(
            "receiving", stranger.say(client, PrivateCommand.COMMIT, stranger.key(COMMIT))
        )
        for key in (b"", *stranger.wrong_keys()):
            text = stranger.say(client, PrivateCommand.COMMIT, key)
            self.assertRegex(text, "receiving|commit key")
        self.assert_moves(scene)

    def test_the_senders_own_connection_needs_the_key_too(self) -> None:
        scene = self.scene()
        scene.reach("settling")
        scene.world.run_until(lambda: self.state(scene) is State.PREPARED)
        stranger = Stranger(scene)
        client = scene.migrating.migration.attempt._connection.client
        # All at once, since the source goes on with the right one.
        answers = [
            client.private(PrivateCommand.COMMIT, payload=key) for key in stranger.wrong_keys()
        ]
        for each in answers:
            outcome = parse_outcome(scene.world.result_of(each))
            self.assertIn("commit key", outcome.refusal)
        self.assert_moves(scene)

    def test_what_was_overheard_does_what_the_source_has_decided_once(self) -> None:
        scene, stranger = self.committed()
        settling = stranger.settling(stranger.key(COMMIT))
        first, second = stranger.connect(settling), stranger.connect(settling)
        racing = [
            each.private(PrivateCommand.COMMIT, payload=stranger.key(COMMIT))
            for each in (first, second)
        ]
        for each in racing:
            self.assertEqual(parse_outcome(scene.world.result_of(each)).state, State.OWNER)
        self.assertIs(self.state(scene), State.OWNER)
        for key in stranger.wrong_keys():
            self.assertIn("commit key", stranger.say(first, PrivateCommand.COMMIT, key))
        self.assert_moves(scene)


class ReplaceTests(StrangerCase):
    def test_nobody_replaces_what_is_prepared(self) -> None:
        for make in (self.prepared, self.committed):
            scene, stranger = make()
            own = replace(
                stranger.opening, session=b"o" * 16, superseded=(stranger.opening.session,)
            )
            later = replace(stranger.opening, attempt=2)
            for opening in (None, own, later):
                for key in (NO_KEY, stranger.key(COMMIT), stranger.opening.retract_digest):
                    said = None if opening is None else replace(opening, key=key)
                    self.assertIn("may be the image of", stranger.refused(said))
            self.assertIs(self.state(scene), State.PREPARED)
            self.assert_moves(scene)
            scene.close()

    def test_a_retract_key_is_good_for_one_attempt(self) -> None:
        """It was overheard when attempt 2 replaced attempt 1."""
        scene, stranger = self.prepared()
        scene.world.run_until(lambda: scene.migrating.host.ownership.state is State.COMMITTED)
        scene.migrations[-1].cut()
        self.assertIs(self.state(scene), State.PREPARED)
        overheard = replace(stranger.opening, attempt=3, key=stranger.key(RETRACT, 1))
        self.assertIn("may be the image of", stranger.refused(overheard))
        self.assert_moves(scene)

    def test_nobody_takes_the_place_of_a_sessions_sender(self) -> None:
        scene = self.scene()
        scene.reach("copying")
        scene.migrations[0].freeze()  # so that nothing goes on meanwhile
        stranger = Stranger(scene)
        later = replace(stranger.opening, attempt=2)
        for key in (NO_KEY, stranger.key(COMMIT), stranger.opening.retract_digest):
            for opening in (later, replace(later, session=b"o" * 16)):
                text = stranger.refused(replace(opening, key=key))
                self.assertRegex(text, "a sender is connected already: .*, since ")
        self.assertFalse(scene.migrations[0].is_over)
        scene.migrations[0].cut()
        self.assert_moves(scene)

    def test_its_source_takes_the_place_of_its_own_dead_connection_at_once(self) -> None:
        scene = self.scene()
        scene.reach("converging")
        connection = scene.migrations[0]
        connection.freeze()
        connection.client.lose(ConnectionLost())
        began = scene.world.clock.seconds()
        self.assert_moves(scene)
        self.assertLess(scene.world.clock.seconds() - began, 3)

    def test_so_does_its_source_once_it_was_started_again(self) -> None:
        scene = self.scene()
        scene.reach("converging")
        scene.migrations[0].freeze()
        scene.source.signal()
        scene.world.run_until(lambda: scene.source.is_over, 60)
        self.assertFalse(scene.migrations[0].is_over)
        scene.start_source()
        began = scene.world.clock.seconds()
        self.assertEqual(scene.world.result_of(scene.mirror()), "Mirror started")
        self.assert_moves(scene)
        self.assertLess(scene.world.clock.seconds() - began, 3)


class OldPeerTests(SceneCase):
    """With a side that knows of no keys: as it would say it, and as it would read it."""

    def old_source(self) -> Any:
        opening = HandoverTerms.opening

        def say(terms: HandoverTerms, attempt: int, **more: Any) -> Opening:
            return replace(opening(terms, attempt, **more), version=1)

        return mock.patch.object(HandoverTerms, "opening", say)

    def old_destination(self) -> Any:
        told, parse = Answer.encode, sessions.parse_opening

        def answer(answer: Answer) -> bytes:
            return told(replace(answer, version=1))

        def read(data: bytes) -> Opening:
            return parse_opening(replace(parse(data), version=1).encode())

        stack = ExitStack()
        stack.enter_context(mock.patch.object(Answer, "encode", answer))
        stack.enter_context(mock.patch.object(sessions, "parse_opening", read))
        stack.enter_context(mock.patch.object(offer, "parse_opening", read))
        return stack

    def test_is_refused_and_told_what_to_do(self) -> None:
        for old in (self.old_source, self.old_destination):
            with old():
                scene = Scene(self.folder, self.image)
                with self.assertRaisesRegex(CommandError, "rejected: .*--allow-old-peers"):
                    scene.world.result_of(scene.mirror())
                self.assert_kept(scene)
                scene.close()

    def test_goes_by_a_session_where_that_is_allowed(self) -> None:
        said: list[int] = []
        commit = sessions.ReceivingSession.private

        def private(self: Any, connection: Any, command: int, *more: Any) -> Any:
            if command == PrivateCommand.COMMIT:
                said.append(len(more[-1]))
            return commit(self, connection, command, *more)

        # To a destination that knows of no keys, none is said: it would read it as a request.
        for old, key_length in ((self.old_source, 32), (self.old_destination, 0)):
            said.clear()
            with old(), mock.patch.object(sessions.ReceivingSession, "private", private):
                scene = Scene(self.folder, self.image)
                scene.destination.service.role.intake.host.ownership.allows_old_peers = True
                request = MirrorRequest(INTAKE, allow_old_peers=True)
                scene.world.result_of(scene.source.service.mirror(request))
                self.assertEqual(scene.migrating.migration.attempt.handover_kind, "session")
                scene.finish()
                self.assert_moved(scene)
                scene.close()
            self.assertEqual(set(said), {key_length})


class AskTests(StrangerCase):
    def test_who_asks_learns_no_session(self) -> None:
        for make in (self.prepared, self.committed):
            scene, stranger = make()
            asking = Opening(Purpose.ASK, NO_ID, 0, State.NONE, 0, capabilities=Capability.JOURNAL)
            answer = stranger.ask(asking)
            self.assertEqual(
                (answer.state, answer.session, answer.attempt), (State.PREPARED, NO_ID, 0)
            )
            known = stranger.opening
            for secret in (known.session, known.commit_digest, known.retract_digest):
                self.assertNotIn(secret.hex().encode(), answer.journal)
            named = stranger.ask(replace(asking, session=known.session))
            self.assertEqual((named.session, named.attempt), (known.session, 1))
            for secret in (known.commit_digest, known.retract_digest):
                self.assertNotIn(secret.hex().encode(), named.journal)
            self.assert_moves(scene)
            scene.close()

    def test_who_asks_or_says_nothing_has_nobodys_place(self) -> None:
        scene = self.scene()
        silent = Machine(scene.world, "silent", "192.0.2.8")
        endpoint: Any = TCP4ClientEndpoint
        for _ in range(3):
            scene.world.result_of(
                endpoint(silent, INTAKE.host, INTAKE.port).connect(Factory.forProtocol(Protocol))
            )
        scene.reach("copying")
        stranger = Stranger(scene)
        asking = Opening(Purpose.ASK, stranger.opening.session, 0, State.NONE, 0)
        self.assertIs(stranger.ask(asking).state, State.RECEIVING)
        self.assert_moves(scene)

"""The rules of who owns an image, and how they are kept on a real disk that may fail."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.cli.ownership import record_of
from flexmigrate.errors import FlexmigrateError, ImageError
from flexmigrate.image.disk import SYSTEM
from flexmigrate.migration.ownership import journal, resolve
from flexmigrate.migration.ownership.journal import JournalError, Record
from flexmigrate.migration.ownership.ownership import STEPS, Ownership, UncertainError
from flexmigrate.migration.ownership.resolve import CopyVerdict, judge
from flexmigrate.migration.ownership.status import ImageState, MayServe, look
from flexmigrate.wire.handover import (
    MAX_SUPERSEDED,
    NO_ID,
    Answer,
    Opening,
    Property,
    Purpose,
    State,
    parse_opening,
)
from flexmigrate.wire.keys import NO_KEY, KeyKind, derive_key, key_digest

SIZE = 8192
A, B, C = (bytes([number]) * 16 for number in (1, 2, 3))
PLACE = "/images/disk"


COMMIT, RETRACT = KeyKind.COMMIT, KeyKind.RETRACT


def key(kind: KeyKind, session: bytes = A, attempt: int = 1) -> bytes:
    """Return the key that the session's source has, whose secret is the session's id, twice."""
    return derive_key(session * 2, kind, session, attempt)


def digest(kind: KeyKind, session: bytes = A, attempt: int = 1) -> bytes:
    return key_digest(key(kind, session, attempt), kind, session, attempt)


def opening(session: bytes = A, attempt: int = 1, **more: Any) -> Opening:
    said = {
        "purpose": Purpose.MIGRATE,
        "state": State.SENDING,
        "size": SIZE,
        "commit_digest": digest(COMMIT, session, attempt),
        "retract_digest": digest(RETRACT, session, attempt),
        **more,
    }
    return Opening(session=session, attempt=attempt, name="host-a:/disk", **said)


def settling(
    session: bytes = A,
    attempt: int = 1,
    state: State = State.COMMITTED,
    shown: bytes | None = None,
) -> Opening:
    """As a source does that has the key, unless another is *shown*."""
    shown = key(COMMIT, session, attempt) if shown is None else shown
    return opening(session, attempt, purpose=Purpose.SETTLE, state=state, key=shown)


def old(opening: Opening) -> Opening:
    """As the same source would say it that knows of no keys."""
    return parse_opening(replace(opening, version=1).encode())


class FailingDisk:
    """The system's disk, but for the calls that the test lets fail."""

    def __init__(self) -> None:
        self.failing: Callable[[str, tuple[Any, ...]], bool] = lambda name, args: False

    def __getattr__(self, name: str) -> Any:
        real = getattr(SYSTEM, name)

        def call(*args: Any, **more: Any) -> Any:
            if self.failing(name, args):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(*args, **more)

        return call


class JournalCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.image = self.folder / "disk.img"
        self.image.write_bytes(bytes(SIZE))
        self.journal = self.folder / "disk.img.handover"
        self.marker = self.folder / "disk.img.INCOMPLETE"
        self.disk = FailingDisk()

    def ownership(self) -> Ownership:
        """What a process finds that has just been started."""
        disk: Any = self.disk
        return Ownership(str(self.image), SIZE, disk)

    def found(self) -> State:
        return self.ownership().state

    def put(self, state: State, **more: Any) -> Ownership:
        if state in (State.RECEIVING, State.PREPARED, State.OWNER):
            more = {"commit_digest": digest(COMMIT), "retract_digest": digest(RETRACT), **more}
        record = Record(state, session=A, attempt=1, size=SIZE, peer="host-b", **more)
        journal.store(SYSTEM, str(self.journal), record)
        return self.ownership()


class JournalTests(JournalCase):
    def test_all_of_a_record_survives(self) -> None:
        record = Record(
            State.COMMITTED,
            session=A,
            attempt=7,
            size=SIZE,
            plain=True,
            unlink=True,
            acknowledged=True,
            peer="host-b",
            address="192.0.2.1:1",
            mirror=("mirror", "192.0.2.1", "1", "unlink"),
            superseded=(B, C),
            origin=C,
            file="12 of 34",
            time="2026-01-01T00:00:00+00:00",
            settled=("a sentence",),
            secret=A * 2,
            superseded_secrets=(B * 2, NO_KEY),
            commit_digest=digest(COMMIT),
            retract_digest=digest(RETRACT),
            origin_digest=digest(COMMIT, C),
            read_only=True,
        )
        journal.store(SYSTEM, str(self.journal), record)
        self.assertEqual(journal.load(SYSTEM, str(self.journal)), record)

    def test_what_is_not_whole_or_was_changed_is_not_trusted(self) -> None:
        data = journal.encode(Record(State.SENDING, session=A))
        wrong = [data[:length] for length in range(len(data) - 1)]
        wrong += [data[:at] + b"0" + data[at + 1 :] for at, byte in enumerate(data) if byte == 49]
        wrong += [b"[]", b"{}", b"[" * 40000, bytes(journal.MAX_BYTES + 1)]
        for each in wrong:
            self.journal.write_bytes(each)
            with self.assertRaisesRegex(JournalError, r"disk\.img\.handover can't be trusted"):
                self.ownership()

    def test_another_version_and_unknown_fields_are_not_guessed_at(self) -> None:
        body = {"version": 3, "state": "owner"}
        for more, fault in (({}, "its version is 3"), ({"version": 1}, "fields are wrong")):
            said = {**body, **more}
            said["checksum"] = journal.checksum_of(said)
            with self.assertRaisesRegex(ValueError, fault):
                journal.decode(journal.json.dumps(said).encode())

    def test_a_later_version_is_told_from_nonsense(self) -> None:
        for version, kind in ((journal.VERSION + 1, True), (0, False), ("2", False), (True, False)):
            data = journal.encode(Record(State.SENDING)).replace(
                b'"version": 1', f'"version": {version!r}'.encode()
            )
            error = self.assertRaises(ValueError, journal.decode, data)
            self.assertEqual(isinstance(error, journal.NewerError), kind, version)

    def test_the_first_ones_did_not_know_the_file_nor_where_the_source_asks(self) -> None:
        body = json.loads(journal.encode(Record(State.SENDING, session=A)))
        self.assertNotIn("awaited_at", body)  # nor do they have to, but where one is awaited
        del body["file"], body["checksum"]
        body["checksum"] = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        found = journal.decode(json.dumps(body).encode())
        self.assertEqual(found, Record(State.SENDING, session=A))

    def test_what_needs_no_keys_can_be_read_by_those_who_know_none(self) -> None:
        for record, version in (
            (Record(State.OWNER, session=A), 1),
            (Record(State.SENDING, session=A, secret=A * 2), 2),
            (Record(State.OWNER, session=A, commit_digest=digest(COMMIT)), 2),
            (Record(State.OWNER, read_only=True), 2),
        ):
            body = json.loads(journal.encode(record))
            self.assertEqual(body["version"], version)
            self.assertEqual(
                {"secret", "read_only", "origin_digest"} & body.keys() == set(),
                record.secret == NO_KEY and not record.read_only,
            )

    def test_a_secret_is_for_its_owner_only_and_ends_with_its_use(self) -> None:
        ownership = self.ownership()
        for step, mode in (
            (lambda: ownership.send(Record(State.SENDING, session=A, secret=A * 2)), 0o600),
            (lambda: ownership.send(Record(State.SENDING, session=B, secret=B * 2)), 0o600),
            (lambda: ownership.commit(1), 0o600),
            (ownership.done, 0o644),
        ):
            step()
            self.assertEqual(stat.S_IMODE(self.journal.stat().st_mode), mode)
        for secret in (A * 2, B * 2):
            self.assertNotIn(secret.hex(), self.journal.read_text())

    def test_who_asks_is_told_no_secret_and_no_session_that_he_does_not_know(self) -> None:
        record = Record(
            State.SENDING,
            session=A,
            attempt=3,
            size=SIZE,
            peer="host-b",
            address="192.0.2.1:1",
            mirror=("mirror", "tls-certificates=/etc/keys"),
            superseded=(B,),
            origin=C,
            digest="blake3:" + "0" * 64,
            file="12 of 34",
            time="2026-01-01T00:00:00+00:00",
            settled=("a sentence",),
            secret=A * 2,
            superseded_secrets=(B * 2,),
            commit_digest=digest(COMMIT),
            retract_digest=digest(RETRACT),
            origin_digest=digest(COMMIT, C),
        )
        never = [A * 2, B * 2, *(digest(kind, each) for kind in KeyKind for each in (A, C))]
        for named, told, untold in (
            ((), (), (A, B, C)),
            ((A,), (A,), (B, C)),
            ((B, C), (B, C), (A,)),
        ):
            data = journal.told(record, named)
            found = journal.decode(data)
            self.assertEqual((found.state, found.size), (record.state, SIZE))
            self.assertEqual((found.digest, found.time), (record.digest, record.time))
            self.assertEqual(found.attempt, 3 if A in named else 0)
            self.assertEqual(found.peer, "host-b" if named else "")
            for each in told:
                self.assertIn(each.hex().encode(), data)
            for each in (*untold, *never):
                self.assertNotIn(each.hex().encode(), data)
            for text in (b"/etc/keys", b"12 of 34"):
                self.assertNotIn(text, data)

    def test_each_field_is_checked(self) -> None:
        record = Record(
            State.SENDING,
            session=A,
            awaited_at=("127.0.0.1:1",),
            secret=A * 2,
            superseded=(B,),
            superseded_secrets=(B * 2,),
            commit_digest=digest(COMMIT),
            retract_digest=digest(RETRACT),
            origin_digest=digest(COMMIT),
            read_only=True,
        )
        self.assertEqual(journal.decode(journal.encode(record)), record)
        good = journal.json.loads(journal.encode(record))
        del good["checksum"]
        for name in good.keys() - {"version"}:
            for value in (None, -1, {}, [None], True, "none"):
                said = {**good, name: value}
                exact = ("state", "session", "origin", "secret")
                if type(value) is type(good[name]) and not name.endswith("digest"):
                    if name not in exact and value != [None]:
                        continue
                elif name == "digest" and isinstance(value, str):
                    continue
                said["checksum"] = journal.checksum_of(said)
                with self.assertRaises(ValueError, msg=(name, value)):
                    journal.decode(journal.json.dumps(said).encode())


class FoundTests(JournalCase):
    """A process may have died before what it wrote was durable."""

    def test_what_is_found_is_made_durable_before_it_counts(self) -> None:
        synced: list[str] = []

        def watch(name: str, args: tuple[Any, ...]) -> bool:
            if name == "fsync" and stat.S_ISDIR(os.fstat(args[0]).st_mode):
                synced.append(os.readlink(f"/proc/self/fd/{args[0]}"))
            return False

        self.put(State.COMMITTED)
        self.disk.failing = watch
        self.assertIs(self.found(), State.COMMITTED)
        self.assertEqual(synced, [str(self.folder)])

    def test_what_can_not_be_made_durable_does_not_count(self) -> None:
        self.put(State.COMMITTED)
        self.disk.failing = lambda name, args: name == "fsync"
        error = self.assertRaises(ImageError, self.ownership)
        self.assertIn("disk.img.handover", str(error))

    def test_without_a_journal_there_is_nothing_to_lose(self) -> None:
        self.disk.failing = lambda name, args: name == "fsync"
        self.assertIs(self.found(), State.NONE)


class SourceTests(JournalCase):
    def begin(self, session: bytes = A, **more: Any) -> Ownership:
        ownership = self.ownership()
        secret = NO_KEY if more.get("plain") else session * 2
        record = Record(State.SENDING, session=session, peer="host-b", secret=secret, **more)
        ownership.send(record)
        return ownership

    def test_serves_until_it_has_committed_and_never_again(self) -> None:
        ownership = self.begin()
        for step, expected in (
            (lambda: None, MayServe.SERVE),
            (lambda: ownership.commit(3), MayServe.SETTLE),
            (ownership.done, MayServe.REFUSE),
        ):
            step()
            self.assertEqual(self.ownership().image_state.to_serve()[0], expected)
        self.assertEqual(self.ownership().record, ownership.record)
        self.assertEqual(ownership.record and ownership.record.attempt, 3)
        self.assertIsNone(ownership.image_state.to_receive())

    def test_a_plain_one_that_is_not_confirmed_is_for_a_human(self) -> None:
        self.begin(plain=True).commit(1)
        serving, text = self.ownership().image_state.to_serve()
        self.assertEqual(serving, MayServe.REFUSE)
        self.assertRegex(text, "host-b.*not confirmed; see 'flexmigrate whose")

    def test_names_the_sessions_that_it_gave_up(self) -> None:
        self.begin(A)
        self.begin(A)
        self.begin(B, plain=True)
        self.begin(C)
        self.assertEqual(self.ownership().superseded_by(C), {A: A * 2})
        self.assertEqual(self.ownership().superseded_by(A), {C: C * 2, A: A * 2})
        for number in range(4, 40):
            self.begin(bytes([number]) * 16)
        self.assertEqual(len(self.ownership().superseded_by(A)), MAX_SUPERSEDED)

    def test_what_fails_before_the_new_name_is_there_changes_nothing(self) -> None:
        for failing in ("write", "replace"):
            ownership = self.begin()
            self.disk.failing = lambda name, args, failing=failing: name == failing
            self.assertRaises(OSError, ownership.commit, 1)
            self.disk.failing = lambda name, args: False
            self.assertEqual((ownership.state, self.found()), (State.SENDING, State.SENDING))

    def test_a_probe_tells_and_leaves_nothing(self) -> None:
        ownership = self.begin()
        before = sorted(self.folder.iterdir())
        ownership.probe()
        self.assertEqual(sorted(self.folder.iterdir()), before)
        for failing in ("write", "fsync", "replace"):
            self.disk.failing = lambda name, args, failing=failing: name == failing
            self.assertRaises(OSError, ownership.probe)
            self.assertEqual(sorted(self.folder.iterdir()), before)

    def fail_folder(self, *numbers: int) -> None:
        """Let these syncs of the folder fail, counted from now."""
        calls = itertools.count()

        def failing(name: str, args: tuple[Any, ...]) -> bool:
            if name != "open" or args[0] != str(self.folder):
                return False
            return next(calls) in numbers

        self.disk.failing = failing

    def test_what_may_have_been_written_is_undone_durably(self) -> None:
        ownership = self.begin()
        self.fail_folder(0)
        self.assertRaises(OSError, ownership.commit, 1)
        self.assertEqual((ownership.state, self.found()), (State.SENDING, State.SENDING))

    def test_what_cannot_be_undone_is_uncertain(self) -> None:
        ownership = self.begin()
        self.fail_folder(0, 1)
        self.assertRaises(UncertainError, ownership.commit, 1)

    def test_takes_it_back_where_nobody_was_told(self) -> None:
        ownership = self.begin(plain=True)
        ownership.commit(1)
        ownership.take_back()
        self.assertEqual(self.found(), State.SENDING)
        ownership.commit(1)
        self.fail_folder(0)
        self.assertRaises(UncertainError, ownership.take_back)


class DestinationTests(JournalCase):
    def test_goes_its_way(self) -> None:
        ownership = self.ownership()
        ownership.expect()
        ownership.receive(opening(), "192.0.2.1:1")
        self.assertEqual(self.ownership().image_state.to_serve()[0], MayServe.REFUSE)
        ownership.prepare()
        self.assertEqual(self.ownership().image_state.to_serve()[0], MayServe.REFUSE)
        self.assertTrue(self.marker.exists())
        ownership.own()
        ownership.clear_marker()
        self.assertFalse(self.marker.exists())
        self.assertEqual(self.ownership().image_state.to_serve(), (MayServe.SERVE, ""))
        self.assertIsNone(self.ownership().image_state.to_receive())
        ownership.acknowledge()
        refusal = self.ownership().image_state.to_receive()
        self.assertRegex(str(refusal), "would overwrite it.*flexmigrate release")

    def test_lets_in_while_it_has_nothing_to_lose(self) -> None:
        for ownership in (self.ownership(), self.put(State.DONE), self.put(State.RECEIVING)):
            for sender in (None, opening(), opening(B)):
                self.assertIsNone(ownership.refusal(sender))
            self.assertIn("session", str(ownership.refusal(settling())))

    def test_once_prepared_only_its_source_gets_in(self) -> None:
        ownership = self.put(State.PREPARED)
        shown = {"key": key(RETRACT)}
        for right in (settling(), opening(attempt=2, **shown), opening(B, **shown)):
            self.assertIsNone(ownership.refusal(right), right)
        for wrong in (
            None,
            opening(attempt=1, **shown),
            opening(attempt=2, state=State.COMMITTED, **shown),
            opening(attempt=2),
            opening(attempt=2, key=key(COMMIT)),
            opening(attempt=2, key=key(RETRACT, attempt=2)),
            opening(attempt=2, key=digest(RETRACT)),
            opening(B, superseded=(C, A)),
            opening(B, superseded=(A,), key=key(RETRACT, B)),
            settling(B),
            settling(attempt=2),
            settling(attempt=2, shown=key(COMMIT)),
            settling(state=State.SENDING),
            settling(shown=NO_KEY),
            settling(shown=key(RETRACT)),
            settling(shown=key(COMMIT, attempt=2)),
            settling(shown=key(COMMIT, B)),
            settling(shown=digest(COMMIT)),
        ):
            self.assertIsNotNone(ownership.refusal(wrong), wrong)
        self.assertIn("the image of host-b, complete", str(ownership.refusal(None)))

    def test_once_owner_nobody_sends_and_its_source_may_ask_for_ever(self) -> None:
        ownership = self.put(State.OWNER, origin=A, origin_digest=digest(COMMIT))
        for sender in (None, opening(), opening(attempt=2), opening(B, key=key(RETRACT))):
            self.assertIn("the image is here", str(ownership.refusal(sender)))
        for state in (State.OWNER, State.SENDING, State.COMMITTED, State.DONE):
            found = self.put(state, origin=A, origin_digest=digest(COMMIT))
            self.assertIsNone(found.refusal_to_confirm(settling()), state)
            self.assertIsNotNone(found.refusal_to_confirm(settling(shown=key(RETRACT))), state)
            self.assertIsNotNone(found.refusal_to_confirm(settling(attempt=2)), state)
            self.assertIsNotNone(self.put(state, origin=B).refusal_to_confirm(settling(C)), state)

    def test_nothing_is_settled_while_it_is_received(self) -> None:
        for state in (State.RECEIVING, State.DONE):
            self.assertIn(state.name.lower(), str(self.put(state).refusal_to_confirm(settling())))

    def test_the_key_is_kept_on_the_way_and_after(self) -> None:
        ownership = self.ownership()
        ownership.receive(opening(), "192.0.2.1:1")
        self.assertIsNotNone(self.ownership().refusal_to_confirm(settling()))
        ownership.prepare()
        self.assertIsNone(self.ownership().refusal_to_confirm(settling()))
        ownership.own()
        ownership.acknowledge()
        ownership.send(Record(State.SENDING, session=B, secret=B * 2))
        self.assertIsNone(self.ownership().refusal_to_confirm(settling()))
        self.assertIsNotNone(self.ownership().refusal_to_confirm(settling(shown=key(COMMIT, B))))

    def test_a_human_who_takes_it_leaves_its_source_what_it_asks_for(self) -> None:
        self.put(State.PREPARED).settle(State.OWNER, "root")
        self.assertIsNone(self.ownership().refusal_to_confirm(settling()))
        self.assertIsNotNone(self.ownership().refusal_to_confirm(settling(shown=NO_KEY)))

    def test_without_keys_there_is_no_session_unless_that_is_allowed(self) -> None:
        for state in (State.RECEIVING, State.DONE):
            ownership = self.put(state)
            self.assertIn("--allow-old-peers", str(ownership.refusal(old(opening()))))
            ownership.allows_old_peers = True
            self.assertIsNone(ownership.refusal(old(opening())))
        none = {"commit_digest": NO_KEY, "retract_digest": NO_KEY}
        ownership = self.put(State.PREPARED, **none)
        for sender in (old(settling()), old(opening(attempt=2))):
            self.assertIn("--allow-old-peers", str(ownership.refusal(sender)))
        self.assertIsNotNone(ownership.refusal(opening(B, superseded=(A,))))
        ownership.allows_old_peers = True
        for sender in (old(settling()), old(opening(attempt=2)), opening(B, superseded=(A,))):
            self.assertIsNone(ownership.refusal(sender))

    def test_what_was_prepared_with_keys_is_not_given_without_them(self) -> None:
        ownership = self.put(State.PREPARED)
        ownership.allows_old_peers = True
        for sender in (old(settling()), old(opening(attempt=2)), old(opening(B, superseded=(A,)))):
            self.assertIsNotNone(ownership.refusal(sender))

    def test_read_only_is_kept_wherever_it_comes_from(self) -> None:
        for properties, here in ((Property.READ_ONLY, False), (0, True), (0, False)):
            ownership = self.ownership()
            ownership.receive(opening(properties=properties), "x", read_only=here)
            ownership.prepare()
            record = self.ownership().record
            assert record is not None
            self.assertEqual(record.read_only, bool(properties) or here)
            self.journal.unlink()

    def test_a_session_is_no_session_without_an_id(self) -> None:
        self.assertIsNotNone(
            self.put(State.OWNER, origin=NO_ID).refusal_to_confirm(settling(NO_ID))
        )

    def test_a_marker_beside_an_owner_means_nothing_and_goes(self) -> None:
        self.marker.touch()
        ownership = self.put(State.OWNER)
        self.assertEqual(ownership.image_state.to_serve()[0], MayServe.SERVE)
        ownership.tidy()
        self.assertFalse(self.marker.exists())

    def test_what_has_the_name_of_an_unlinked_file_is_another(self) -> None:
        self.assertEqual(
            self.put(State.DONE, unlink=True).image_state.to_serve()[0], MayServe.REFUSE
        )
        self.ownership().unlinked()
        self.image.unlink()
        self.image.write_bytes(bytes(SIZE))
        ownership = self.ownership()
        self.assertEqual(ownership.image_state.to_serve(), (MayServe.SERVE, ""))
        self.assertIsNone(ownership.image_state.to_receive())
        self.assertIn("is another", str(judge(ownership.image_state)))
        ownership.tidy()
        self.assertFalse(self.journal.exists())
        self.assertEqual((ownership.state, self.ownership().state), (State.NONE, State.NONE))

    def test_what_is_received_into_the_name_of_an_unlinked_file_is_not_served(self) -> None:
        self.put(State.DONE, unlink=True, unlinked=True)
        self.ownership().expect()
        serving, text = self.ownership().image_state.to_serve()
        self.assertIs(serving, MayServe.REFUSE)
        self.assertIn("INCOMPLETE", text)

    def test_the_journal_of_an_unlinked_file_that_stays_is_an_error(self) -> None:
        ownership = self.put(State.DONE, unlink=True, unlinked=True)
        self.disk.failing = lambda name, args: name == "unlink"
        with self.assertRaisesRegex(ImageError, "handover: Input/output"):
            ownership.tidy()
        self.assertEqual(ownership.state, State.DONE)

    def test_a_marker_that_stays_does_not_deny_the_owner(self) -> None:
        ownership = self.put(State.PREPARED)
        self.marker.touch()
        self.disk.failing = lambda name, args: name == "unlink"
        ownership.own()
        self.assertRaises(OSError, ownership.clear_marker)
        self.disk.failing = lambda name, args: False
        self.assertEqual(self.found(), State.OWNER)

    def test_what_a_plain_sender_brought_is_not_received_over(self) -> None:
        for state in (State.NONE, State.DONE, State.RECEIVING):
            self.journal.unlink(missing_ok=True)
            self.marker.touch()
            ownership = self.ownership() if state is State.NONE else self.put(state)
            ownership.own_plainly()
            self.assertTrue(self.marker.exists())
            self.assertEqual(self.ownership().image_state.to_serve()[0], MayServe.SERVE)
            ownership.clear_marker()
            self.assertFalse(self.marker.exists())
            self.assertEqual(self.ownership().image_state.to_serve()[0], MayServe.SERVE)
            self.assertIn("flexmigrate release", self.ownership().image_state.to_receive() or "")
            self.assertIn("the image is here", self.ownership().refusal(None) or "")

    def own_while_syncs_fail(self, ownership: Ownership, failing: Callable[[int], bool]) -> None:
        """Try to; each sync fails whose number, from 1, *failing* says."""
        fsync, numbers = os.fsync, itertools.count(1)

        def sync(fd: int) -> None:
            if failing(next(numbers)):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            fsync(fd)

        with mock.patch.object(os, "fsync", sync):
            self.assertRaises(OSError, ownership.own_plainly)

    def test_a_plain_owner_that_can_not_be_recorded_is_none(self) -> None:
        self.marker.touch()
        for state in (State.NONE, State.RECEIVING):
            self.journal.unlink(missing_ok=True)
            ownership = self.ownership() if state is State.NONE else self.put(state)
            # The folder can't be synced when the record has its name; afterwards it can.
            self.own_while_syncs_fail(ownership, lambda number: number == 2)
            self.assertIs(self.ownership().state, state)
            self.assertTrue(self.marker.exists())

    def test_nobody_sends_to_where_there_is_a_doubt(self) -> None:
        self.marker.touch()
        ownership = self.ownership()
        self.own_while_syncs_fail(ownership, lambda number: number > 1)
        ownership.doubt("it may be the image")
        for sender in (None, opening(), opening(B), settling()):
            self.assertEqual(ownership.refusal(sender), "it may be the image")

    def test_nothing_is_expected_where_nothing_can_be_recorded(self) -> None:
        self.disk.failing = lambda name, args: name == "replace" and "handover" in args[1]
        with self.assertRaisesRegex(ImageError, "can't write the journal .*handover: Input/output"):
            self.ownership().expect()
        self.assertEqual([each.name for each in self.folder.iterdir()], ["disk.img"])


class ReplacedFileTests(JournalCase):
    """A file was removed, and another made by its name, and the journal is of the first one."""

    def replace_file(self) -> None:
        other = self.folder / "other"
        other.write_bytes(bytes(SIZE))  # beside the first one: it is no other inode by chance
        os.replace(other, self.image)

    def test_what_was_received_is_not_looked_for_in_another_file(self) -> None:
        ways: dict[State, Callable[[Ownership], object]] = {
            State.PREPARED: Ownership.prepare,
            State.OWNER: lambda ownership: (ownership.prepare(), ownership.own()),
        }
        for state, go in ways.items():
            self.journal.unlink(missing_ok=True)
            ownership = self.ownership()
            ownership.receive(opening(), "192.0.2.1")
            go(ownership)
            self.assertIs(ownership.state, state)
            self.assertIsNone(self.ownership().image_state.to_receive())
            self.replace_file()
            refusal = self.ownership().image_state.to_receive() or ""
            self.assertIn("another file than the one that came from host-a:/disk", refusal)
            self.assertIn(f"flexmigrate release {self.image}", refusal)
            resolve.settle(str(self.image), State.DONE, "me")
            self.assertIsNone(self.ownership().image_state.to_receive())

    def test_what_was_not_complete_may_be_received_into_another(self) -> None:
        self.ownership().receive(opening(), "192.0.2.1")
        self.replace_file()
        self.assertIsNone(self.ownership().image_state.to_receive())

    def test_a_record_that_does_not_know_its_file_may_be_of_any(self) -> None:
        ownership = self.put(State.OWNER)
        assert ownership.record is not None
        self.assertEqual(ownership.record.file, "")
        self.assertIsNone(ownership.image_state.to_receive())

    def test_only_the_file_is_known_by_its_mark_whatever_is_done_to_it(self) -> None:
        self.ownership().receive(opening(), "192.0.2.1")
        with self.image.open("r+b") as image:
            image.write(b"more")
            image.truncate(2 * SIZE)
        self.image.chmod(0o600)
        moved = self.image.rename(self.folder / "moved")
        moved.rename(self.image)
        self.assertFalse(self.ownership().image_state.is_replaced)
        self.replace_file()
        self.assertTrue(self.ownership().image_state.is_replaced)


class StepsTests(JournalCase):
    def test_nothing_but_the_steps_can_be_written(self) -> None:
        for before in State:
            for after in set(State) - {State.NONE} - STEPS[before]:
                self.journal.unlink(missing_ok=True)
                ownership = self.ownership() if before is State.NONE else self.put(before)
                with self.assertRaises(AssertionError):
                    ownership._write(Record(after))

    def test_no_way_leads_back_to_serving_once_it_was_told(self) -> None:
        """Only who was never told may serve again: `take_back`; the rest comes by a migration."""
        self.assertNotIn(State.OWNER, STEPS[State.COMMITTED])
        self.assertNotIn(State.SENDING, STEPS[State.DONE])


def image_state(state: State, session: bytes = A, marker: bool = False, **more: Any) -> ImageState:
    if state is State.NONE:
        return ImageState(PLACE, None, marker)
    return ImageState(PLACE, Record(state, session=session, peer="host-b", **more), marker)


def their(state: State, session: bytes = A, **more: Any) -> Record:
    return Record(state, session=session, peer="host-a", **more)


class WhoseTests(SynchronousTestCase):
    def check(self, expected: CopyVerdict, *sides: Any, text: str = ".") -> None:
        found = judge(*sides)
        self.assertEqual(found.verdict, expected, (sides, found))
        self.assertRegex(found.sentence, text)

    def test_by_one_journal(self) -> None:
        for state, expected in (
            (State.NONE, CopyVerdict.THIS),
            (State.SENDING, CopyVerdict.THIS),
            (State.COMMITTED, CopyVerdict.OTHER),
            (State.DONE, CopyVerdict.OTHER),
            (State.RECEIVING, CopyVerdict.OTHER),
            (State.PREPARED, CopyVerdict.UNKNOWN),
            (State.OWNER, CopyVerdict.THIS),
        ):
            self.check(expected, image_state(state))
        self.check(CopyVerdict.OTHER, image_state(State.NONE, marker=True), text="never finished")
        self.check(
            CopyVerdict.UNKNOWN, image_state(State.COMMITTED, plain=True), text="not confirm"
        )

    def test_two_journals_never_contradict_each_other_whatever_was_cut(self) -> None:
        """Each pair that a handover can leave, from both sides: one of them is canonical."""
        source, destination = "source", "destination"
        for theirs, mine, canonical in (
            (State.SENDING, State.RECEIVING, source),
            (State.SENDING, State.PREPARED, source),
            (State.COMMITTED, State.PREPARED, destination),
            (State.COMMITTED, State.OWNER, destination),
            (State.DONE, State.OWNER, destination),
        ):
            here = CopyVerdict.THIS if canonical == destination else CopyVerdict.OTHER
            there = CopyVerdict.THIS if canonical == source else CopyVerdict.OTHER
            self.check(here, image_state(mine), their(theirs))
            self.check(there, image_state(theirs), their(mine))

    def test_a_session_that_was_given_up_is_not_canonical(self) -> None:
        for state in (State.SENDING, State.COMMITTED, State.DONE):
            later = their(state, B, superseded=(A,))
            self.check(CopyVerdict.OTHER, image_state(State.PREPARED), later, text="given up")

    def test_another_migrations_journal_adds_nothing(self) -> None:
        for state in (State.SENDING, State.DONE, State.OWNER):
            stranger = their(state, B)
            self.check(
                CopyVerdict.UNKNOWN, image_state(State.PREPARED), stranger, text="another migr"
            )

    def test_the_image_may_have_gone_on_from_there(self) -> None:
        on = their(State.DONE, B, origin=A)
        self.check(
            CopyVerdict.OTHER, image_state(State.COMMITTED), on, text="and from there to host-a"
        )

    def test_two_owners_by_hand_are_told_of(self) -> None:
        owner = their(State.OWNER)
        self.check(CopyVerdict.UNKNOWN, image_state(State.OWNER), owner, text="both say")
        done = their(State.DONE)
        self.check(CopyVerdict.UNKNOWN, image_state(State.DONE), done, text="each says")


class ByHandTests(JournalCase):
    def test_taking_and_releasing_are_remembered(self) -> None:
        self.put(State.COMMITTED)
        resolve.settle(str(self.image), State.OWNER, "me")
        taken = look(str(self.image))
        self.assertEqual(taken.to_serve()[0], MayServe.SERVE)
        self.assertRegex(judge(taken).sentence, "by hand: .*: owner, by me; was committed")
        resolve.settle(str(self.image), State.DONE, "you")
        released = look(str(self.image))
        self.assertEqual(released.to_serve()[0], MayServe.REFUSE)
        self.assertIsNone(released.to_receive())
        assert released.record is not None
        self.assertEqual(len(released.record.settled), 2)

    def test_what_was_released_is_not_served_though_the_file_before_it_was_unlinked(self) -> None:
        self.put(State.DONE, unlink=True, unlinked=True)
        self.assertIs(look(str(self.image)).to_serve()[0], MayServe.SERVE)
        resolve.settle(str(self.image), State.DONE, "me")
        self.assertIs(look(str(self.image)).to_serve()[0], MayServe.REFUSE)

    def test_the_source_of_what_was_taken_hears_that_it_is_here(self) -> None:
        for before, heard in ((State.PREPARED, True), (State.RECEIVING, False)):
            self.put(before)
            resolve.settle(str(self.image), State.OWNER, "me")
            ownership = self.ownership()
            self.assertEqual(ownership.refusal_to_confirm(settling()) is None, heard, before)
            self.assertIsNotNone(ownership.refusal_to_confirm(settling(B)))
            self.assertIsNotNone(ownership.refusal(opening()))  # but nobody sends

    def test_taking_removes_the_marker(self) -> None:
        self.marker.touch()
        resolve.settle(str(self.image), State.OWNER, "me")
        self.assertFalse(self.marker.exists())

    def test_a_journal_that_cannot_be_trusted_is_put_aside(self) -> None:
        self.journal.write_text("nonsense")
        _, fault = resolve.look_to_settle(str(self.image))
        self.assertIn("can't be trusted", str(fault))
        resolve.settle(str(self.image), State.OWNER, "me")
        self.assertEqual(self.found(), State.OWNER)
        self.assertEqual((self.folder / "disk.img.handover.bad").read_text(), "nonsense")

    def test_the_image_of_a_running_server_is_left_alone(self) -> None:
        from flexmigrate.image.file import Image

        image = Image.open(str(self.image))
        self.addCleanup(image.close)
        with self.assertRaisesRegex(ImageError, "in use"):
            resolve.settle(str(self.image), State.OWNER, "me")

    def test_what_it_means_is_said_first(self) -> None:
        for before, after, warnings in (
            (image_state(State.OWNER), State.OWNER, 0),
            (image_state(State.COMMITTED), State.OWNER, 2),
            (image_state(State.RECEIVING, marker=True), State.OWNER, 3),
            (image_state(State.PREPARED, marker=True), State.OWNER, 2),
            (image_state(State.DONE), State.DONE, 0),
            (image_state(State.OWNER), State.DONE, 2),
        ):
            said = resolve.consequences(before, after)
            self.assertEqual(len(said), 1 + warnings, said)
        replaced = replace(image_state(State.OWNER), path="/other")
        self.assertIn("/other", resolve.consequences(replaced, State.DONE)[0])


class AnotherSidesTextTests(JournalCase):
    def test_it_does_nothing_to_a_terminal(self) -> None:
        record = Record(
            State.DONE, session=A, peer="a\x1b[2J", address="b\nc", time="\x07", settled=("d\r",)
        )
        journal.store(SYSTEM, str(self.journal), record)
        found = resolve.load_peer(str(self.journal))
        texts = (found.peer, found.address, found.time, *found.settled)
        self.assertEqual(texts, ("a\ufffd[2J", "b\ufffdc", "\ufffd", "d\ufffd"))
        sentence = judge(ImageState("/here", found, marker=False)).sentence
        self.assertTrue(sentence.isprintable(), sentence)

    def test_of_a_newer_journal_the_answer_tells_what_is_known(self) -> None:
        newer = journal.encode(Record(State.OWNER, session=A)).replace(
            b'"version": 1', b'"version": 99'
        )
        answer = Answer(State.OWNER, A, 3, SIZE, journal=newer)
        record = record_of(answer)
        self.assertEqual((record.state, record.session, record.attempt), (State.OWNER, A, 3))
        with self.assertRaisesRegex(FlexmigrateError, "not JSON"):
            record_of(replace(answer, journal=b"nonsense"))

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.errors import (
    ConnectionGone,
    FlexmigrateError,
    ImageError,
    ImageLost,
    MigrationError,
)
from flexmigrate.image.disk import UntrustedFile
from flexmigrate.image.file import Image
from flexmigrate.image.file_storage import FileStorage
from flexmigrate.migration.destination.coverage import Coverage
from flexmigrate.migration.destination.handover import DestinationHandover, DiscVerdict
from flexmigrate.migration.ownership.journal import Record
from flexmigrate.migration.ownership.ownership import Ownership, UncertainError
from flexmigrate.migration.ownership.status import look
from flexmigrate.migration.request import Action, HandoverRule
from flexmigrate.migration.source.handover import (
    CLOSE_SECONDS,
    HandoverTerms,
    HandoverUncertain,
    NotGiven,
    SourceHandover,
)
from flexmigrate.testing import InlineClock, InlineThreads
from flexmigrate.wire.handover import Answer, State

SIZE = 8192


def what_is(fd: int) -> str:
    """Describe an open file."""
    status = os.fstat(fd)
    if stat.S_ISDIR(status.st_mode):
        return "a folder"
    return "a file with text" if status.st_size else "an empty file"


class ImageCase(SynchronousTestCase):
    """A real image, whose slow calls are done at once; what is done is told in ``log``."""

    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.path = self.folder / "disk.img"
        self.path.write_bytes(bytes(SIZE))
        self.image = Image.open(str(self.path))
        self.addCleanup(self.image.close)
        self.clock = InlineClock()
        self.storage = self.new_storage(self.image)
        self.log: list[str] = []

    def new_storage(self, image: Image) -> FileStorage:
        """Return *image* with threads that do everything at once."""
        threads: Any = InlineThreads()
        reactor: Any = self.clock
        return FileStorage(image, reactor, threads)

    def watch(self, target: Any, name: str, tell: Callable[..., str | None]) -> None:
        """Tell of each call of *target*'s *name* before it is made."""
        original = getattr(target, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            what = tell(*args)
            if what is not None:
                self.log.append(what)
            return original(*args, **kwargs)

        self.patch(target, name, call)

    def fail_at(self, name: str, number: int) -> None:
        """Let ``os``'s *name* fail."""

        def fail(*args: Any, **kwargs: Any) -> None:
            raise OSError(number, os.strerror(number))

        self.patch(os, name, fail)


class RecordedClient:
    """A connection of which only is known that DISC was said, and when it is over."""

    session = None

    def __init__(self, log: list[str], path: Path) -> None:
        self.failure: FlexmigrateError | None = None
        self.goodbye: Deferred[None] = Deferred()
        self._log = log
        self._path = path

    def disconnect(self) -> Deferred[None]:
        self._log.append(f"DISC, the file {'is there' if self._path.exists() else 'is gone'}")
        if self.failure is not None:
            self.goodbye.errback(self.failure)
        return self.goodbye

    def abort(self, reason: FlexmigrateError) -> None:
        self._log.append("abort")
        self.failure = reason
        self.goodbye.errback(reason)


class RecordedOwnership:
    """A journal of which only is known what it was told; see ``test_ownership`` for the rest."""

    is_recorded = True

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.errors: dict[str, Exception] = {}

    def _note(self, name: str) -> None:
        self.log.append(name)
        if name in self.errors:
            raise self.errors[name]

    def superseded_by(self, session: bytes) -> dict[bytes, bytes]:
        return {}

    def send(self, record: Record) -> None:
        self._note("sending, plain" if record.plain else "sending")

    def commit(self, attempt: int, digest: str) -> None:
        self._note("committing")

    def take_back(self) -> None:
        self._note("taken back")

    def done(self) -> None:
        self._note("done")


class SourceHandoverTests(ImageCase):
    def setUp(self) -> None:
        super().setUp()
        self.ownership = RecordedOwnership(self.log)

    def give(self, *, unlink: bool = False, gone: bool = False) -> Deferred[bool]:
        self.client = RecordedClient(self.log, self.path)
        if gone:
            self.client.failure = ConnectionGone("it was lost")
        client: Any = self.client
        ownership: Any = self.ownership
        action = Action.UNLINK if unlink else Action.EXIT
        terms = HandoverTerms(self.storage, ownership, action)
        self.giving = SourceHandover(self.clock, terms, 1, client)
        self.successResultOf(Deferred.fromCoroutine(self.giving.begin()))
        self.assertEqual(self.log.pop(), "sending, plain")
        return Deferred.fromCoroutine(self.giving.commit())

    def test_is_done_when_the_destination_closes(self) -> None:
        given = self.give()
        self.assertEqual(self.log, ["committing", "DISC, the file is there"])
        self.assertNoResult(given)
        self.client.goodbye.callback(None)
        self.assertTrue(self.successResultOf(given))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        client: Any = self.client
        self.successResultOf(Deferred.fromCoroutine(self.giving.finish(client)))
        self.assertEqual(self.log[-1], "done")

    def begin(self, action: Action) -> Deferred[None]:
        client: Any = RecordedClient(self.log, self.path)
        ownership: Any = self.ownership
        terms = HandoverTerms(self.storage, ownership, action)
        return Deferred.fromCoroutine(SourceHandover(self.clock, terms, 1, client).begin())

    def test_without_a_journal_nothing_is_given_away(self) -> None:
        self.ownership.errors["sending, plain"] = OSError(errno.EROFS, "Read-only file system")
        for action in (Action.EXIT, Action.UNLINK):
            text = self.failureResultOf(self.begin(action), MigrationError).getErrorMessage()
            for part in ("Read-only file system", str(self.path), "'nothing'"):
                self.assertIn(part, text)
        self.assertNotIn("committing", self.log)

    def test_a_copy_needs_no_journal(self) -> None:
        self.ownership.errors["sending, plain"] = OSError(errno.EROFS, "Read-only file system")
        self.successResultOf(self.begin(Action.NOTHING))

    def test_what_is_no_file_goes_without(self) -> None:
        self.ownership.errors["sending, plain"] = OSError(errno.ENOTSUP, "it is no file")
        self.ownership.is_recorded = False
        self.successResultOf(self.begin(Action.EXIT))

    def test_what_the_journal_does_not_take_is_not_given(self) -> None:
        self.ownership.errors["committing"] = OSError(errno.ENOSPC, "No space left")
        failure = self.failureResultOf(self.give(), NotGiven)
        self.assertIn("No space left", failure.getErrorMessage())
        self.assertEqual(self.log, ["committing"])

    def test_what_the_journal_may_have_taken_is_uncertain(self) -> None:
        self.ownership.errors["committing"] = UncertainError("who knows")
        self.failureResultOf(self.give(), HandoverUncertain)
        self.assertEqual(self.log, ["committing"])
        self.log.clear()
        self.ownership.errors = {"taken back": UncertainError("who knows")}
        self.fail_at("unlink", errno.EACCES)
        self.failureResultOf(self.give(unlink=True), HandoverUncertain)

    def test_with_unlink_the_file_is_gone_before_disc(self) -> None:
        given = self.give(unlink=True)
        self.assertEqual(self.log, ["committing", "DISC, the file is gone"])
        self.client.goodbye.callback(None)
        self.successResultOf(given)

    def test_unlinking_is_durable_before_disc(self) -> None:
        self.watch(os, "unlink", lambda path: "unlink")
        self.watch(os, "fsync", lambda fd: "sync the folder")
        self.give(unlink=True)
        self.assertEqual(
            self.log, ["committing", "unlink", "sync the folder", "DISC, the file is gone"]
        )

    def test_without_a_connection_nothing_begins(self) -> None:
        for unlink in (False, True):
            self.log.clear()
            failure = self.failureResultOf(self.give(unlink=unlink, gone=True), NotGiven)
            self.assertIn("it was lost", failure.getErrorMessage())
            self.assertEqual(self.log, [])
        self.assertTrue(self.path.exists())

    def test_a_file_that_can_not_be_unlinked_is_not_given(self) -> None:
        self.fail_at("unlink", errno.EACCES)
        failure = self.failureResultOf(self.give(unlink=True), NotGiven)
        self.assertIn("Permission denied", failure.getErrorMessage())
        self.assertEqual(self.log, ["committing", "taken back"])
        self.assertTrue(self.path.exists())

    def test_so_it_is_wherever_the_process_has_gone(self) -> None:
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.folder)
        self.image.close()
        self.image = Image.open("disk.img")
        self.addCleanup(self.image.close)
        self.storage = self.new_storage(self.image)
        os.chdir("/")
        self.fail_at("unlink", errno.EACCES)
        self.failureResultOf(self.give(unlink=True), NotGiven)
        self.assertEqual(self.log, ["committing", "taken back"])

    def test_a_name_that_leads_elsewhere_is_not_given(self) -> None:
        self.path.rename(self.folder / "moved.img")
        self.path.write_bytes(b"another")
        for unlink in (False, True):
            self.failureResultOf(self.give(unlink=unlink), ImageLost)
        self.assertEqual(self.path.read_bytes(), b"another")
        self.assertNotIn("committing", self.log)

    def test_a_name_that_is_gone_but_not_durably_is_given(self) -> None:
        self.fail_at("fsync", errno.EIO)
        given = self.give(unlink=True)
        self.assertEqual(self.log[-1], "DISC, the file is gone")
        self.client.goodbye.callback(None)
        self.successResultOf(given)

    def test_a_connection_that_ends_otherwise_leaves_it_uncertain(self) -> None:
        for unlink, fate in ((False, "was kept"), (True, "was removed")):
            given = self.give(unlink=unlink)
            self.client.goodbye.errback(ConnectionGone("reset by peer"))
            text = self.failureResultOf(given, HandoverUncertain).getErrorMessage()
            for part in ("reset by peer", str(self.path), fate):
                self.assertIn(part, text)
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_connection_that_does_not_end_leaves_it_uncertain(self) -> None:
        given = self.give()
        self.clock.advance(CLOSE_SECONDS - 0.1)
        self.assertNoResult(given)
        self.clock.advance(0.2)
        text = self.failureResultOf(given, HandoverUncertain).getErrorMessage()
        self.assertIn(f"within {CLOSE_SECONDS:g} s", text)
        self.assertEqual(self.log[-1], "abort")

    def test_a_connection_lost_while_the_file_is_unlinked_leaves_it_uncertain(self) -> None:
        self.watch(os, "unlink", lambda path: setattr(self.client, "failure", ConnectionGone("x")))
        self.failureResultOf(self.give(unlink=True), HandoverUncertain)
        self.assertFalse(self.path.exists())


class SessionOrPlainTests(ImageCase):
    is_recorded = True

    def setUp(self) -> None:
        super().setUp()
        self.fault: OSError | None = None
        self.ownership: Any = self
        self.terms = HandoverTerms(self.storage, self.ownership, Action.EXIT)

    def probe(self) -> None:
        if self.fault is not None:
            raise self.fault

    def superseded_by(self, session: bytes) -> dict[bytes, bytes]:
        return {}

    def send(self, record: Record) -> None:
        """Keep a journal."""

    def wants(self) -> Any:
        return Deferred.fromCoroutine(self.terms.wants_session())

    def begin(self, session: bytes | None) -> Deferred[None]:
        client: Any = SimpleNamespace(session=session)
        return Deferred.fromCoroutine(SourceHandover(None, self.terms, 1, client).begin())

    def test_without_room_for_a_journal_nothing_is_given(self) -> None:
        self.assertTrue(self.successResultOf(self.wants()))
        self.fault = OSError(errno.ENOSPC, "No space left on device")
        refused = self.failureResultOf(self.wants(), MigrationError).getErrorMessage()
        self.assertIn("No space left on device", refused)
        self.assertIn("'nothing' to send a copy", refused)

    def test_without_a_place_for_one_it_is_plain_unless_insisted_on(self) -> None:
        self.is_recorded = False
        self.fault = OSError(errno.ENOTSUP, "it is no file")
        self.assertFalse(self.successResultOf(self.wants()))
        self.terms.rule = HandoverRule.SESSION
        self.failureResultOf(self.wants(), MigrationError)

    def test_once_there_was_a_session_it_is_never_plain(self) -> None:
        answer = Answer(State.NONE, bytes(16), 0, SIZE).encode()
        self.successResultOf(self.begin(answer))
        self.fault = OSError(errno.ENOSPC, "No space left on device")
        refused = self.failureResultOf(self.wants(), MigrationError)
        self.assertIn("No space left", refused.getErrorMessage())
        self.fault = None
        self.assertTrue(self.successResultOf(self.wants()))
        refused = self.failureResultOf(self.begin(None), MigrationError)
        self.assertIn("any more", refused.getErrorMessage())
        self.successResultOf(self.begin(answer))


class MarkerCase(ImageCase):
    """A destination's handover, before anything has been expected."""

    def setUp(self) -> None:
        super().setUp()
        self.marker = self.folder / "disk.img.INCOMPLETE"
        self.handover = self.new_handover(self.image)

    def new_handover(self, image: Image, *, full: bool = True) -> DestinationHandover:
        ownership = Ownership(image.real_path, image.size)
        return DestinationHandover(self.new_storage(image), ownership, full_coverage=full)


def incomplete(path: str) -> bool:
    """Whether a ``serve`` would say so."""
    return look(path).is_incomplete


class MarkerTests(MarkerCase):
    def test_stands_durably_once_something_is_expected(self) -> None:
        self.assertFalse(incomplete(str(self.path)))
        self.watch(os, "fsync", what_is)
        self.handover.expect()
        # First whether a journal could be written, then the marker.
        self.assertEqual(self.log, ["a file with text", "a folder"] * 2)
        self.assertTrue(self.marker.exists())
        self.assertTrue(incomplete(str(self.path)))
        self.handover.expect()  # after a crash it stands already

    def test_is_told_of_if_it_can_not_be_written(self) -> None:
        self.marker.mkdir()
        with self.assertRaises(ImageError) as caught:
            self.handover.expect()
        self.assertIn(str(self.marker), str(caught.exception))

    def test_a_dangling_link_is_not_taken_for_one(self) -> None:
        self.marker.symlink_to("nowhere")
        error = self.assertRaises(UntrustedFile, incomplete, str(self.path))
        self.assertIn("it is a symbolic link", str(error))


class TakeTests(MarkerCase):
    def setUp(self) -> None:
        super().setUp()
        self.handover.expect()
        self.coverage = Coverage(SIZE)
        self.coverage.mark(0, SIZE)

    def take(self) -> Deferred[DiscVerdict]:
        return self.handover.take(self.coverage)

    def test_flushes_before_the_marker_goes(self) -> None:
        self.watch(os, "fdatasync", lambda fd: f"flush, {self.marker.exists()}")
        self.watch(os, "replace", lambda old, new: f"record, {self.handover.owned}")
        self.watch(os, "unlink", lambda path: f"unlink, {self.handover.owned}")
        self.watch(os, "fsync", what_is)
        self.assertIs(self.successResultOf(self.take()), DiscVerdict.OURS)
        recorded = ["a file with text", "record, False", "a folder"]
        self.assertEqual(self.log, ["flush, True", *recorded, "unlink, True", "a folder"])
        self.assertTrue(self.handover.owned)
        self.assertFalse(self.marker.exists())

    def test_what_can_not_be_flushed_is_not_ours(self) -> None:
        self.fail_at("fdatasync", errno.EIO)
        self.failureResultOf(self.take(), OSError)
        self.assertTrue(self.marker.exists())
        self.assertFalse(self.handover.owned)
        self.assertIn("may be the image, complete", self.handover.ownership.refusal(None) or "")

    def test_what_can_not_be_recorded_is_not_ours(self) -> None:
        self.fail_at("replace", errno.EROFS)
        self.failureResultOf(self.take(), OSError)
        self.assertTrue(self.marker.exists())
        self.assertFalse(self.handover.owned)
        self.assertIn("may be the image, complete", self.handover.ownership.refusal(None) or "")

    def test_a_marker_that_can_not_be_removed_means_nothing(self) -> None:
        self.fail_at("unlink", errno.EROFS)
        self.assertIs(self.successResultOf(self.take()), DiscVerdict.OURS)
        self.assertTrue(self.marker.exists())
        self.assertFalse(incomplete(str(self.path)))

    def test_a_marker_that_somebody_has_removed_is_no_hindrance(self) -> None:
        self.marker.unlink()
        self.assertIs(self.successResultOf(self.take()), DiscVerdict.OURS)
        self.assertFalse(self.marker.exists())


class JudgeTests(MarkerCase):
    """What a DISC means after what was covered."""

    def verdicts(self, coverage: Coverage) -> tuple[bool, bool]:
        """Return whether it gives the image away where all must be covered, and where any may."""
        judges = (self.new_handover(self.image, full=full) for full in (True, False))
        return tuple(judge.judge(coverage) is None for judge in judges)  # type: ignore[return-value]

    def test_nothing(self) -> None:
        self.assertEqual(self.verdicts(Coverage(SIZE)), (False, False))

    def test_everything(self) -> None:
        coverage = Coverage(SIZE)
        coverage.mark(SIZE // 2, SIZE // 2)
        coverage.mark(0, SIZE // 2)
        self.assertEqual(self.verdicts(coverage), (True, True))

    def test_a_part(self) -> None:
        coverage = Coverage(SIZE)
        coverage.mark(0, SIZE - 1)
        self.assertEqual(self.verdicts(coverage), (False, True))
        self.assertIn("1 of 8192 bytes", str(self.handover.judge(coverage)))

    def test_something_that_failed(self) -> None:
        coverage = Coverage(SIZE)
        coverage.mark(0, SIZE)
        coverage.failed(0, 512, OSError(28, "full"))
        self.assertEqual(self.verdicts(coverage), (False, False))

    def test_something_that_was_refused(self) -> None:
        coverage = Coverage(SIZE)
        coverage.mark(0, SIZE)
        coverage.refused("beyond the end")
        self.assertEqual(self.verdicts(coverage), (False, False))

    def test_what_is_refused_changes_nothing(self) -> None:
        self.handover.expect()
        self.watch(os, "fdatasync", lambda fd: "flush")
        verdict = self.successResultOf(self.handover.take(Coverage(SIZE)))
        self.assertIs(verdict, DiscVerdict.NOT_OURS)
        self.assertEqual(self.log, [])
        self.assertTrue(self.marker.exists())
        self.assertFalse(self.handover.owned)


class MarkerPlaceTests(MarkerCase):
    def test_it_is_beside_the_image_whatever_link_led_there(self) -> None:
        self.image.close()
        link = self.folder / "link.img"
        link.symlink_to("disk.img")
        image = Image.open(str(link))
        self.addCleanup(image.close)
        self.new_handover(image).expect()
        self.assertTrue((self.folder / "disk.img.INCOMPLETE").exists())
        self.assertFalse((self.folder / "link.img.INCOMPLETE").exists())
        for path in (self.path, link):
            self.assertTrue(incomplete(str(path)))

    def test_it_stays_where_it_is_when_the_process_goes_elsewhere(self) -> None:
        self.image.close()
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.folder)
        image = Image.open("disk.img")
        self.addCleanup(image.close)
        marked = self.new_handover(image)
        marked.expect()
        os.chdir("/")
        self.assertEqual(marked.marker, f"{self.folder.resolve()}/disk.img.INCOMPLETE")
        self.assertTrue(os.path.exists(marked.marker))

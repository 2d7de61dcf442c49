"""What goes with a file when its name changes: who owns it is known by another name, too."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from flexmigrate.image.disk import SYSTEM
from flexmigrate.migration.ownership import attribute, journal
from flexmigrate.migration.ownership.attribute import NAME, Attribute, combined
from flexmigrate.migration.ownership.journal import Record
from flexmigrate.migration.ownership.ownership import Ownership
from flexmigrate.migration.ownership.status import MayServe, look
from flexmigrate.testing.disk import Died, SimulatedDisk
from flexmigrate.wire.handover import Opening, Purpose, State
from support.processes import Children, flexmigrate

SIZE = 8192
A, B = b"a" * 16, b"b" * 16
HERE, THERE = "/images/disk.handover", "/images/other.handover"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SIZE))
    try:
        os.setxattr(path, "user.test", b"")
    except OSError as error:
        pytest.skip(f"no extended attributes in {tmp_path}: {error}")
    return path


def ownership(path: Path, disk: Any = SYSTEM) -> Ownership:
    return Ownership(str(path), SIZE, disk)


def sending() -> Record:
    return Record(State.SENDING, session=A, attempt=1, peer="host-b:/disk", address="192.0.2.2:1")


def give_away(path: Path, *, until: State = State.DONE) -> Path:
    """Leave what a source leaves that has given its image away."""
    ours = ownership(path)
    ours.send(sending())
    if until is not State.SENDING:
        ours.commit(1)
    if until is State.DONE:
        ours.done()
    return path


def receive(path: Path, *, until: State = State.OWNER) -> Path:
    ours = ownership(path)
    ours.receive(
        Opening(Purpose.MIGRATE, A, 1, State.SENDING, SIZE, name="host-a:/disk"), "192.0.2.1:1"
    )
    if until is not State.RECEIVING:
        ours.prepare()
    if until is State.OWNER:
        ours.own()
    return path


def told(path: Path) -> Attribute | None:
    return attribute.read(SYSTEM, str(path))


def may_serve(path: Path) -> bool:
    return look(str(path)).to_serve()[0] is MayServe.SERVE


class TestByAnotherName:
    @pytest.mark.parametrize("until", [State.COMMITTED, State.DONE])
    @pytest.mark.parametrize("rename", [True, False])
    @pytest.mark.parametrize("keep", [True, False])
    def test_what_was_given_away_is_not_served(
        self, image: Path, until: State, rename: bool, keep: bool
    ) -> None:
        give_away(image, until=until)
        other = image.with_name("other.img")
        (os.rename if rename else os.link)(image, other)
        if not keep:
            image.with_name("disk.img.handover").unlink()
        may, reason = look(str(other)).to_serve()
        assert may is MayServe.REFUSE
        assert f"{image}.handover) says: {until.name.lower()}" in reason
        asked = flexmigrate("whose", str(other))
        assert asked.returncode == 3
        assert f"it was recorded in {image}.handover" in asked.stdout.decode()
        server = flexmigrate("serve", "-l", "127.0.0.1", "-p", "0", "-f", str(other))
        assert server.returncode == 1
        assert b"Traceback" not in server.stderr

    def test_nor_where_only_the_journal_is_lost(self, image: Path) -> None:
        give_away(image)
        image.with_name("disk.img.handover").unlink()
        assert not may_serve(image)

    def test_what_came_is(self, image: Path) -> None:
        receive(image)
        other = image.rename(image.with_name("other.img"))
        assert may_serve(other)
        assert flexmigrate("whose", str(other)).returncode == 0
        assert flexmigrate("whose", str(image)).returncode == 4  # it is not there any more

    @pytest.mark.parametrize("until", [State.RECEIVING, State.PREPARED])
    def test_what_is_not_whole_or_not_ours_yet_is_not(self, image: Path, until: State) -> None:
        receive(image, until=until)
        other = image.rename(image.with_name("other.img"))
        assert not may_serve(other)
        assert (look(str(other)).to_receive() is None) is (until is State.RECEIVING)

    @pytest.mark.parametrize("command", ["take", "release"])
    def test_a_human_settles_it_by_that_name(self, image: Path, command: str) -> None:
        give_away(image)
        other = image.with_name("other.img")
        os.link(image, other)
        assert flexmigrate(command, "--yes", str(other)).returncode == 0
        found = told(other)
        assert found is not None
        assert found.journal == f"{other}.handover"
        assert may_serve(other) is (command == "take")
        assert not may_serve(image)  # its own journal says so
        assert look(str(other)).to_receive() is None or command == "take"

    def test_the_journal_of_an_unlinked_name_counts_for_the_link_that_is_left(
        self, image: Path
    ) -> None:
        other = image.with_name("other.img")
        os.link(image, other)
        give_away(image)
        image.unlink()
        record = journal.load(SYSTEM, f"{image}.handover")
        assert record is not None
        journal.store(SYSTEM, f"{image}.handover", replace(record, unlinked=True))
        assert not may_serve(other)
        os.link(other, image)
        assert not may_serve(image)
        image.unlink()
        image.write_bytes(bytes(SIZE))
        assert may_serve(image)  # a new one

    def test_what_is_received_over_it_replaces_it(self, image: Path) -> None:
        give_away(image)
        other = image.rename(image.with_name("other.img"))
        assert look(str(other)).to_receive() is None
        receive(other)
        assert may_serve(other)
        found = told(other)
        assert found is not None
        assert (found.journal, found.record.state) == (f"{other}.handover", State.OWNER)


class TestCopies:
    def test_a_copy_with_its_attributes_is_another_file(
        self, image: Path, children: Children
    ) -> None:
        give_away(image)
        other = image.with_name("other.img")
        subprocess.run(["cp", "--preserve=all", str(image), str(other)], check=True)
        assert os.getxattr(other, NAME) == os.getxattr(image, NAME)
        assert may_serve(other)
        assert not may_serve(image)
        words = ("serve", "-l", "127.0.0.1", "-p", "0", "-f", str(other))
        children.flexmigrate(*words).wait_for("it has the record of another file")

    def test_what_makes_no_sense_means_nothing(self, image: Path) -> None:
        give_away(image, until=State.SENDING)
        good = os.getxattr(image, NAME)
        image.with_name("disk.img.handover").unlink()
        for data in (b"", b"{}", b"[]", b"\xff", good[:-1], good.replace(b"sending", b"done")):
            assert attribute.decode(data) is None
            os.setxattr(image, NAME, data)
            assert may_serve(image)
        assert attribute.decode(good) is not None


class TestWriting:
    def test_it_says_what_the_journal_says(self, image: Path) -> None:
        ours = ownership(image)
        for step, state in (
            (lambda: ours.send(sending()), State.SENDING),
            (lambda: ours.commit(1), State.COMMITTED),
            (ours.done, State.DONE),
        ):
            step()
            found = told(image)
            assert found is not None
            assert (found.record.state, found.record.session) == (state, A)
            assert found.record.file == look(str(image)).file_id

    def test_a_commit_that_can_not_be_written_is_taken_back_there_too(self, image: Path) -> None:
        class Failing:
            failing = False

            def __getattr__(self, name: str) -> Any:
                return getattr(SYSTEM, name)

            def replace(self, old: str, new: str) -> None:
                if self.failing:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.replace(old, new)

        disk = Failing()
        ours = ownership(image, disk)
        ours.send(sending())
        disk.failing = True
        with pytest.raises(OSError, match="No space left"):
            ours.commit(1)
        found = told(image)
        assert found is not None
        assert found.record.state is State.SENDING

    def test_what_forbids_is_there_before_the_journal_and_what_allows_after_it(
        self, image: Path
    ) -> None:
        seen: list[tuple[State | None, State]] = []
        store = journal.store

        def watched(disk: Any, path: str, record: Record) -> None:
            found = told(image)
            seen.append((found.record.state if found else None, record.state))
            store(disk, path, record)

        with mock.patch.object(journal, "store", watched):
            give_away(image)
        assert seen == [
            (None, State.SENDING),
            (State.COMMITTED, State.COMMITTED),
            (State.DONE, State.DONE),
        ]

    def test_one_that_is_missing_is_written_when_the_image_is_opened(self, image: Path) -> None:
        receive(image)
        os.removexattr(image, NAME)
        ownership(image).tidy()
        found = told(image)
        assert found is not None
        assert found.record.state is State.OWNER

    def test_a_plain_owner_is_not_held_back_by_what_was_before(self, image: Path) -> None:
        give_away(image)
        with mock.patch.object(attribute, "encode", side_effect=OSError(errno.ENOSPC, "full")):
            ownership(image).own_plainly()
        assert told(image) is None  # or it would say that the image was given away
        assert may_serve(image)

    def test_where_there_are_none_all_is_as_without(self, image: Path) -> None:
        class Without:
            def __getattr__(self, name: str) -> Any:
                if name.endswith("xattr"):

                    def refuse(*_: object) -> None:
                        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

                    return refuse
                return getattr(SYSTEM, name)

        ours = ownership(image, Without())
        ours.send(sending())
        ours.commit(1)
        ours.done()
        assert ownership(image, Without()).state is State.DONE
        assert NAME not in os.listxattr(image)

    def test_another_file_that_has_the_name_by_then_is_left_alone(self, image: Path) -> None:
        ours = ownership(image)
        ours.send(sending())
        os.replace(shutil.copy(image, image.with_name("new")), image)
        ours.commit(1)
        assert NAME not in os.listxattr(image)


def record(state: State, session: bytes = A) -> Record:
    return Record(state, session=session)


@pytest.mark.parametrize(
    ("own", "found", "others", "decides"),
    [
        # Of the same session, under the same name: the journal.
        ((State.SENDING, A), (State.COMMITTED, A, HERE), None, "own"),
        ((State.OWNER, A), (State.DONE, A, HERE), None, "own"),
        ((State.DONE, A), (State.OWNER, A, HERE), None, "own"),
        # A session that has only begun says nothing before the journal does.
        ((State.OWNER, A), (State.RECEIVING, B, HERE), None, "own"),
        ((State.OWNER, A), (State.SENDING, B, HERE), None, "own"),
        # A journal that was put back from before.
        ((State.OWNER, A), (State.DONE, B, HERE), None, "found"),
        ((State.SENDING, A), (State.COMMITTED, B, HERE), None, "found"),
        # Another name: what forbids.
        ((State.OWNER, A), (State.DONE, B, THERE), None, "found"),
        ((State.OWNER, A), (State.RECEIVING, B, THERE), None, "found"),
        ((State.OWNER, A), (State.OWNER, B, THERE), None, "own"),
        ((State.DONE, A), (State.OWNER, B, THERE), None, "own"),
        ((State.OWNER, A), (State.SENDING, B, THERE), (State.COMMITTED, B), "others"),
        # There is no journal here.
        (None, (State.DONE, A, THERE), None, "found"),
        (None, (State.OWNER, A, THERE), None, "found"),
        (None, (State.DONE, A, HERE), None, "found"),
        (None, (State.SENDING, A, THERE), (State.DONE, A), "others"),
    ],
)
def test_which_record_decides(own: Any, found: Any, others: Any, decides: str) -> None:
    mine = None if own is None else record(*own)
    theirs = None if others is None else record(*others)
    told = Attribute(record(*found[:2]), found[2])
    expected = {"own": mine, "found": told.record, "others": theirs}[decides]
    assert combined(mine, told, HERE, theirs) == (expected, "" if decides == "own" else found[2])
    assert combined(mine, None, HERE, None) == (mine, "")


def test_it_never_allows_what_the_journal_forbids() -> None:
    for mine in State:
        for other in State:
            for session in (A, B):
                for path in (HERE, THERE):
                    if State.NONE in (mine, other) or mine not in attribute.FORBIDDING:
                        continue
                    told = Attribute(record(other, session), path)
                    found, _ = combined(record(mine), told, HERE, None)
                    assert found is not None
                    assert found.state in attribute.FORBIDDING


def test_an_image_that_was_replaced_by_one_that_was_given_away_is_not_served(image: Path) -> None:
    receive(image)
    other = image.with_name("other.img")
    other.write_bytes(bytes(SIZE))
    give_away(other)
    os.replace(other, image)
    assert not may_serve(image)


def test_what_a_crash_left_of_a_commit_is_gone_before_another_session_begins() -> None:
    disk = SimulatedDisk()
    disk.put("/image", bytes(8192))
    first = disk.mount()
    ours = Ownership("/image", 8192, first)
    ours.send(Record(State.SENDING, session=b"1" * 16, attempt=1))

    def before(mount: object, call: str, path: str) -> None:
        if call == "replace":
            first.die()  # the attribute says committed, and the journal doesn't

    disk.before = before
    with pytest.raises(Died):
        ours.commit(1)
    disk.before = lambda mount, call, path: None
    disk.fail("everything", random.Random(1))
    assert look("/image", disk.mount()).state is State.SENDING

    second = disk.mount()
    ours = Ownership("/image", 8192, second)
    ours.tidy()
    ours.send(Record(State.SENDING, session=b"2" * 16, attempt=1))
    second.die()
    disk.fail("nothing", random.Random(1))
    image_state = look("/image", disk.mount())
    assert image_state.state is State.SENDING
    assert image_state.record is not None
    assert image_state.record.session == b"2" * 16

"""The rules of ownership, for both ends, on one page; only this module changes a journal.

A journal says in which of six states this side of a handover is (``STEPS`` has what may follow
what); no journal is a state too. What it means for whoever
wants to serve the image, or to receive over it, is said in ``status``; whether a source that
comes is the right one, here: ``refusal`` at a destination that waits, and ``refusal_to_confirm`` at
any server that has the image.

Why no crash, at either end, makes two owners: the source writes ``committed`` only after the
destination has said that it is ``prepared``, and COMMIT leaves only after ``committed`` is durable.
So a destination becomes ``owner`` only once its source can never serve again, and a source that is
not ``committed`` knows that nobody has become owner. Why none makes no owner: ``prepared`` is
written once every byte is durable, and a ``committed`` source repeats COMMIT until it is answered.

Why no stranger makes either: COMMIT carries the attempt's commit key, and whoever replaces what is
``prepared`` shows the attempt's retract key. Only the source can make them (``wire.keys``), and it
says the first once it is ``committed``, the second once it never will be.

The plain handover has no ``prepared``. The source's journal says ``committed`` from before the
first act that can't be taken back, so that a source that doesn't know is not started again as if it
did; the destination's says ``owner`` before the source can know, so that nothing is received over
it.

Everything here may wait for the disk: it is called in threads, by one caller at a time for each
image. Twisted is not imported.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Sequence
from dataclasses import replace

from flexmigrate.errors import ImageError, in_words
from flexmigrate.image import disk as disks
from flexmigrate.image import places
from flexmigrate.image.disk import SYSTEM, Disk
from flexmigrate.migration.ownership import attribute as attributes
from flexmigrate.migration.ownership import journal
from flexmigrate.migration.ownership.attribute import FORBIDDING
from flexmigrate.migration.ownership.journal import Record
from flexmigrate.migration.ownership.status import MARKER_SUFFIX, ImageState, look
from flexmigrate.wire.handover import MAX_SUPERSEDED, NO_ID, Opening, Property, Purpose, State
from flexmigrate.wire.keys import NO_KEY, KeyKind, is_key

_MARKER_TEXT = (
    "A migration into the image beside this file has not finished: the image is not whole.\n"
    "flexmigrate removes this file once it is.\n"
)

STEPS: dict[State, frozenset[State]] = {
    # OWNER, as after RECEIVING, by the plain handover, which has no PREPARED.
    State.NONE: frozenset({State.SENDING, State.RECEIVING, State.OWNER}),
    # A new session, or another attempt; or all is sent, and the destination is prepared.
    State.SENDING: frozenset({State.SENDING, State.COMMITTED}),
    # Back only while nobody can have been told: see `SourceOwnership.take_back`.
    State.COMMITTED: frozenset({State.SENDING, State.DONE}),
    # Its file was unlinked, too; or the image comes back; or another has its name: see `tidy`.
    State.DONE: frozenset({State.DONE, State.RECEIVING, State.OWNER}),
    State.RECEIVING: frozenset({State.RECEIVING, State.PREPARED, State.OWNER}),
    State.PREPARED: frozenset({State.RECEIVING, State.PREPARED, State.OWNER}),
    State.OWNER: frozenset({State.OWNER, State.SENDING}),
}
"""What may be written after what; a human may write ``done`` and ``owner`` after anything."""


class Ownership:
    """The records of one image that is open and locked by this process; see the module.

    :param path: of the image, absolute and without links.
    :param size: of the image, in bytes.
    :raises ImageError: as `look`; or what a journal says can't be made durable.
    :ivar image_state: the state of the image, as it is on the disk.
    :ivar allows_old_peers: whether a session may be had with those who know of no keys.
    :cvar is_recorded: whether there is a journal at all.
    """

    is_recorded = True

    def __init__(self, path: str, size: int, disk: Disk = SYSTEM) -> None:
        self._path = path
        self.size = size
        self._disk = disk
        self._writing = threading.Lock()
        self._doubt: str | None = None
        self._is_first_to_mark = False
        self.allows_old_peers = False
        self.image_state = look(path, disk)
        self._records_prefix = self.image_state.place
        places.make_folder(self._records_prefix)
        self._make_durable()

    def _make_durable(self) -> None:
        """Sync what was found before anything is done because of it.

        Whoever wrote it may have died between giving it its name and making that durable. If it was
        acted upon, and then forgotten in a crash of the machine, a source that had its destination
        take the image would find itself ``sending``.
        """
        try:
            disks.sync_folder(self._disk, self._records_prefix)
        except OSError as error:
            if self.image_state.record is not None:
                where = journal.path_of(self._records_prefix)
                raise ImageError(f"can't make durable what {where} says: {error}") from error

    @property
    def marker_path(self) -> str:
        """The path of the file that exists exactly while the image is incomplete."""
        return self._records_prefix + MARKER_SUFFIX

    @property
    def record(self) -> Record | None:
        """The journal's content; None without a journal."""
        return self.image_state.record

    @property
    def state(self) -> State:
        """The state in the journal."""
        return self.image_state.state

    def probe(self) -> None:
        """See whether a journal can be written: before anybody depends on it.

        :raises OSError: it can't.
        """
        path = journal.path_of(self._records_prefix)
        with disks.about(path):
            try:
                disks.replace(self._disk, path + ".probe", bytes(journal.PROBE_BYTES))
            finally:
                with contextlib.suppress(FileNotFoundError):
                    self._disk.unlink(path + ".probe")

    # A source

    def superseded_by(self, session: bytes) -> dict[bytes, bytes]:
        """Return the earlier sessions that *session* follows, none of which was committed, the
        latest first, each with its secret, or NO_KEY where that isn't known.
        """
        record = self.record
        if record is None or record.state is not State.SENDING:
            return {}
        secrets = (*record.superseded_secrets, *[NO_KEY] * MAX_SUPERSEDED)
        earlier = list(zip(record.superseded, secrets, strict=False))
        if record.session != session and not record.plain:
            earlier.insert(0, (record.session, record.secret))
        return dict(earlier[:MAX_SUPERSEDED])

    def send(self, record: Record) -> None:
        """Begin to send, as *record* says, whose state and earlier sessions are filled in here."""
        before = self.record
        superseded = self.superseded_by(record.session)
        self._write(
            replace(
                record,
                state=State.SENDING,
                size=self.size,
                superseded=tuple(superseded),
                superseded_secrets=tuple(superseded.values()),
                origin=NO_ID if before is None else before.origin,
                origin_digest=NO_KEY if before is None else before.origin_digest,
                settled=() if before is None else before.settled,
            )
        )

    def commit(self, attempt: int, digest: str = "") -> None:
        """From here this side never serves again.

        :param digest: of the image, as it was compared.
        :raises OSError: it can't be written, and surely isn't.
        :raises UncertainError: it can't be written, and may be all the same.
        """
        before = self._known()
        try:
            self._write(replace(before, state=State.COMMITTED, attempt=attempt, digest=digest))
        except OSError as error:
            self._restore(before, error)
            raise

    def _restore(self, before: Record, error: OSError) -> None:
        """See that the journal says *before* again, after *error*. Nobody has been told, so it is
        as true; but once the new record has got its name, which of them would be found after a
        crash is known only when one of them is durable.
        """
        path = journal.path_of(self._records_prefix)
        try:
            if journal.load(self._disk, path, self.image_state.writers) != before:
                self._force(before)
        except (OSError, ImageError):
            raise UncertainError(
                f"can't write {path}: {in_words(error)}; it may say 'committed' or 'sending'"
            ) from error

    def take_back(self) -> None:
        """The handover was not begun after all: nobody was told of it.

        :raises UncertainError: that can't be written.
        """
        try:
            self._write(replace(self._known(), state=State.SENDING, digest=""))
        except OSError as error:
            raise UncertainError(
                f"can't write the journal ({in_words(error)}); it says 'committed'"
            ) from error

    def done(self) -> None:
        """The destination owns the image: nobody has to be shown anything any more."""
        self._write(replace(self._known(), state=State.DONE, secret=NO_KEY, superseded_secrets=()))

    def unlinked(self) -> None:
        """The file is gone: whoever finds one of its name finds another."""
        self._write(replace(self._known(), unlinked=True))

    # A destination

    def expect(self) -> None:
        """Set the marker before the first byte is received, unless the image is whole; and see that
        what comes of it can be recorded.

        :raises ImageError: where either can't be written.
        """
        if self.state in (State.PREPARED, State.OWNER):
            return
        try:
            self.probe()
        except OSError as error:
            where = journal.path_of(self._records_prefix)
            raise ImageError(f"can't write the journal {where}: {error.strerror}") from error
        was_marked = self.image_state.marker
        try:
            self._set_marker()
        except OSError as error:
            marker = self.marker_path
            raise ImageError(f"can't write the marker {marker}: {error.strerror}") from error
        self._is_first_to_mark = not was_marked

    def stop_expecting(self) -> None:
        """Remove the marker if `expect` set it: nobody has touched the image since.

        :raises OSError: it can't be removed.
        """
        if self._is_first_to_mark:
            self._is_first_to_mark = False
            self.clear_marker()

    def refusal(self, opening: Opening | None) -> str | None:
        """Return why a sender may not enter, or None.

        :param opening: what it said of its session; None for a plain sender.
        """
        record = self.record
        if self._doubt is not None:
            return self._doubt
        if opening is not None and opening.purpose is Purpose.SETTLE:
            return self.refusal_to_confirm(opening)
        if opening is not None and not opening.has_keys and not self.allows_old_peers:
            return (
                f"the version of {opening.name or 'the source'} is too old to have a key, so that "
                "anybody could commit in its name: upgrade it, or start the destination with "
                "--allow-old-peers"
            )
        if record is None or record.state in (State.RECEIVING, State.DONE):
            return None
        if record.state is State.PREPARED and opening is not None and self.retracts(opening):
            late = record.session == opening.session and opening.attempt <= record.attempt
            return f"attempt {opening.attempt} is over" if late else None
        since = f"since {record.time}" if record.time else "already"
        if record.state is State.PREPARED:
            return f"what is here may be the image of {record.other_side}, complete {since}"
        return f"the image is here {since}, from {record.other_side}"

    def retracts(self, opening: Opening, earlier: Record | Opening | None = None) -> bool:
        """Return whether *opening* shows that its source has given up an earlier attempt: then what
        is here of that may be replaced.

        :param earlier: the attempt; None for the one that the journal is about.
        """
        given_up = earlier or self.record
        if given_up is None or opening.state is not State.SENDING:
            return False
        session, attempt = given_up.session, given_up.attempt
        if given_up.retract_digest == NO_KEY and self.allows_old_peers:
            return session in opening.named
        return is_key(opening.key, given_up.retract_digest, KeyKind.RETRACT, session, attempt)

    def refusal_to_confirm(self, opening: Opening) -> str | None:
        """Return why a committed handover can't be settled with us, or None if it can.

        :param opening: with the commit key.
        """
        record = self.record
        if opening.state is not State.COMMITTED:
            return "only what was committed can be settled"
        if record is not None and record.origin == opening.session != NO_ID:
            # It came here by this session, whatever became of it since.
            return self._refusal_of_key(opening, record.origin_digest)
        if record is None or record.session != opening.session:
            return "no such session is known here"
        if record.state is not State.PREPARED:
            return f"the session is {record.state.name.lower()} here, since {record.time}"
        if record.attempt != opening.attempt:
            return (
                f"what is here is of attempt {record.attempt}, and attempt {opening.attempt} was "
                "committed"
            )
        return self._refusal_of_key(opening, record.commit_digest)

    def _refusal_of_key(self, opening: Opening, digest: bytes) -> str | None:
        """Return why the commit key in *opening* isn't the one with the *digest*, or None."""
        if digest == NO_KEY and self.allows_old_peers:
            return None
        if digest == NO_KEY:
            return (
                "its source is of a version without commit keys, so whoever asks could be anybody: "
                "say --allow-old-peers here, or see 'flexmigrate help whose'"
            )
        if is_key(opening.key, digest, KeyKind.COMMIT, opening.session, opening.attempt):
            return None
        return "that isn't the commit key of the session: only its source has that"

    def receive(
        self,
        opening: Opening,
        address: str,
        awaited_at: Sequence[str] = (),
        *,
        read_only: bool = False,
    ) -> None:
        """Begin to receive what *opening* announced: what is here isn't whole from now on.

        :param awaited_at: the addresses at which it may be asked about.
        :param read_only: whether clients may not change it here, whatever they might at its source.
        """
        if self.state is State.PREPARED:
            self._set_marker()
        before = self.record
        self._write(
            Record(
                State.RECEIVING,
                session=opening.session,
                attempt=opening.attempt,
                size=self.size,
                peer=opening.name,
                address=address,
                awaited_at=tuple(awaited_at),
                settled=() if before is None else before.settled,
                commit_digest=opening.commit_digest,
                retract_digest=opening.retract_digest,
                read_only=read_only or bool(opening.properties & Property.READ_ONLY),
            )
        )

    def prepare(self, digest: str = "") -> None:
        """All is here, and durable: the source may commit.

        :param digest: of the image, as it was compared.
        """
        self._write(replace(self._known(), state=State.PREPARED, digest=digest))

    def own(self) -> None:
        """The source has committed: the image is ours, and the marker has no meaning any more."""
        record = self._known()
        if record.state is not State.OWNER:
            self._write(
                replace(
                    record,
                    state=State.OWNER,
                    origin=record.session,
                    origin_digest=record.commit_digest,
                )
            )

    def own_plainly(self, *, read_only: bool = False) -> None:
        """A plain sender has brought everything, all is durable, and it said DISC: it's ours.

        From here ``listen`` does not receive over it: it may be the only copy.

        :param read_only: whether clients may not change it.
        :raises OSError: it can't be recorded, so it isn't ours.
        """
        before = self.record
        settled = () if before is None else before.settled
        peer = "a sender that knows no sessions"
        try:
            self._write(
                Record(
                    State.OWNER,
                    size=self.size,
                    plain=True,
                    acknowledged=True,
                    peer=peer,
                    settled=settled,
                    read_only=read_only,
                )
            )
        except OSError:
            self._put_back(before)
            raise

    def _put_back(self, before: Record | None) -> None:
        """See that the journal says *before* again. Where that fails, too, it is known what it says
        once it is read again; nobody sends here before.
        """
        path = journal.path_of(self._records_prefix)
        with contextlib.suppress(OSError, ImageError):
            if journal.load(self._disk, path, self.image_state.writers) != before:
                if before is None:
                    disks.remove(self._disk, path)
                    self._mark(None)
                else:
                    self._force(before)

    def doubt(self, reason: str) -> None:
        """A plain sender has brought everything, and may have given it away, and that couldn't be
        recorded: let nobody send here as long as this process lives.

        :param reason: what a sender that comes is told.
        """
        self._doubt = reason

    def acknowledge(self) -> None:
        """The source knows that the image is ours."""
        record = self.record
        if record is not None and record.state is State.OWNER and not record.acknowledged:
            self._write(replace(record, acknowledged=True, awaited_at=()))

    @property
    def awaited_at(self) -> tuple[str, ...]:
        """The address where a source asks that doesn't know yet that the image is ours; usually
        none.
        """
        record = self.record
        if record is None or record.state is not State.OWNER or record.acknowledged:
            return ()
        return record.awaited_at

    def tidy(self) -> None:
        """Remove what has no meaning any more: a marker beside an owner, where the process died
        before it did that; the journal of a file that was unlinked, when another has its name. And
        write the file's attribute, where that is missing.

        :raises ImageError: it can't be removed.
        """
        if self.image_state.is_of_another_file:
            path = journal.path_of(self._records_prefix)
            try:
                disks.remove(self._disk, path)
            except OSError as error:
                raise ImageError(f"can't remove {path}: {error.strerror}") from error
            self.overlook()
        if self.image_state.marker and self.state is State.OWNER:
            try:
                self.clear_marker()
            except OSError as error:
                marker = self.marker_path
                raise ImageError(f"can't remove {marker}: {error.strerror}") from error
        image_state = self.image_state
        is_ours = not image_state.recorded_at and not image_state.is_replaced
        if image_state.record is not None and is_ours and not image_state.is_marked:
            # Its process died in between, or the record is older than attributes are.
            self._mark(replace(image_state.record, file=image_state.file_id))

    def overlook(self) -> None:
        """Don't take the journal of a file that was unlinked for that of the file which has its
        name now, and which is open here.
        """
        if self.image_state.is_of_another_file:
            self.image_state = replace(self.image_state, record=None)

    # By hand

    def settle(self, state: State, by: str) -> None:
        """A human says that this copy is the image (OWNER) or isn't (DONE).

        :param by: who, and why, for people.
        """
        before = self.record or Record(State.NONE, size=self.size)
        was = self.state.name.lower()
        # Its source, once it has committed, is to hear what it would have heard from COMMIT.
        taken = state is State.OWNER and before.state is State.PREPARED
        sentence = f"{journal.now()}: {state.name.lower()}, by {by}; was {was}"
        self._force(
            replace(
                before,
                state=state,
                acknowledged=state is State.OWNER,
                origin=before.session if taken else before.origin,
                origin_digest=before.commit_digest if taken else before.origin_digest,
                secret=NO_KEY,
                superseded_secrets=(),
                unlinked=False,  # it is about the file that has the name now
                settled=(sentence, *before.settled)[: journal.MAX_SETTLED],
            )
        )
        if state is State.OWNER:
            self.clear_marker()

    # Keeping it

    def _known(self) -> Record:
        assert self.record is not None, "nothing was begun"
        return self.record

    def _write(self, record: Record) -> None:
        if record.state not in STEPS[self.state]:
            raise AssertionError(f"{self._path}: {record.state.name} after {self.state.name}")
        self._force(record)

    def _force(self, record: Record) -> None:
        with self._writing:
            record = replace(record, time=journal.now(), file=self.image_state.file_id)
            forbids = record.state in FORBIDDING
            self._announce(record, forbids)
            try:
                journal.store(self._disk, journal.path_of(self._records_prefix), record)
            except OSError:
                if forbids and self.image_state.attribute is not None:
                    self._mark(self.image_state.record)  # as it was, as far as is known
                raise
            if not forbids:
                self._mark(record)
            self.image_state = replace(self.image_state, record=record, recorded_at="")

    def _announce(self, record: Record, forbids: bool) -> None:
        """Write into the file's attribute, before the journal says *record*, what may not be
        missing, or left there, if we died in between: see ``attribute``.
        """
        image_state, own = self.image_state, journal.path_of(self._records_prefix)
        if forbids:
            self._mark(record)
        elif image_state.is_the_recorded_file:
            _, recorded_at = attributes.combined(record, image_state.attribute, own, None)
            if recorded_at or self._may_have_committed(record):
                self._mark(None, durable=True)  # it would count more than the journal

    def _may_have_committed(self, record: Record) -> bool:
        """Return whether a crash may bring back another attribute than there is now: one of an
        earlier session whose ``committed`` was written and taken back, with neither synced.
        """
        found = self.image_state.attribute
        return (
            found is not None
            and found.record.state is State.SENDING
            and found.record.session != record.session
        )

    def _mark(self, record: Record | None, *, durable: bool = False) -> None:
        """Write the file's attribute, or remove it; what can't be had there is left out.

        :raises OSError: only if *durable*.
        """
        path, mark = journal.path_of(self._records_prefix), self.image_state.file_id
        attributes.write(self._disk, self._path, mark, record, path, durable=durable)
        is_marked = record is not None and bool(mark)
        told = attributes.Attribute(record, path) if record is not None and is_marked else None
        self.image_state = replace(self.image_state, attribute=told)

    def make_attribute_durable(self) -> None:
        """Sync the file's attribute, if it has one: when nobody waits for that any more.

        :raises OSError: it can't be.
        """
        with self._writing:
            if self.image_state.is_marked:
                self._mark(self.record, durable=True)

    def _set_marker(self) -> None:
        with self._writing:
            disks.replace(self._disk, self.marker_path, _MARKER_TEXT.encode())
            self.image_state = replace(self.image_state, marker=True)

    def clear_marker(self) -> None:
        """Remove the marker, once the image is ours.

        :raises OSError: it can't be removed.
        """
        with self._writing:
            disks.remove(self._disk, self.marker_path)  # perhaps the operator has: so be it
            self.image_state = replace(self.image_state, marker=False)


class UncertainError(Exception):
    """It is unknown what the journal would contain after a crash."""


class Unrecorded(Ownership):
    """The ownership of storage that is no file. It has no place for a journal, so its handovers are
    plain ones, and the provider of the storage has to remember their result.

    :param name: what it is called, in logs.
    """

    is_recorded = False

    def __init__(self, name: str) -> None:
        # Not its own beginning, which looks at what lies beside a file.
        self.image_state = ImageState(name, None, False)
        self._doubt = None
        self.allows_old_peers = False

    def probe(self) -> None:
        """See that no journal can be written.

        :raises OSError: always.
        """
        raise OSError(errno.ENOTSUP, "it is no file")

    def send(self, record: Record) -> None:
        """Keep no record.

        :raises OSError: always.
        """
        self.probe()

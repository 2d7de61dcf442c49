"""The state of an image by the files beside it: whether it may be served, or received over.

That is decided here and nowhere else, from a journal and a marker as they are found. What may be
written there, and when, is ``ownership``'s affair. Twisted is not imported.
"""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass, replace

from flexmigrate.errors import ImageError
from flexmigrate.image import disk as disks
from flexmigrate.image import places
from flexmigrate.image.disk import SYSTEM, Disk, Writers
from flexmigrate.migration.ownership import attribute as attributes
from flexmigrate.migration.ownership import journal
from flexmigrate.migration.ownership.attribute import FORBIDDING, Attribute
from flexmigrate.migration.ownership.journal import Record
from flexmigrate.wire.handover import State

MARKER_SUFFIX = ".INCOMPLETE"


class MayServe(enum.Enum):
    """The answer to whether an image may be served."""

    SERVE = "serve"
    SETTLE = "settle"  # its handover was committed: ask the destination to take it
    REFUSE = "refuse"


@dataclass(frozen=True)
class ImageState:
    """The state of an image, by the files beside it.

    :ivar path: of the image, absolute and without links.
    :ivar record: what its journal says; None without one.
    :ivar marker: whether ``IMAGE.INCOMPLETE`` is there.
    :ivar records_prefix: the prefix of the paths of its journal and marker; empty: its path.
    :ivar file_id: the id of the file that has its name now (``image.disk.file_id``), or empty.
    :ivar is_missing: whether nothing has its name.
    :ivar writers: the users who may have written its records.
    :ivar attribute: what its attribute says, whatever file that is about; None without one.
    :ivar recorded_at: the journal's path, if the record isn't that of the journal beside it but was
        found by its attribute: another name's, or one that is gone; else empty.
    """

    path: str
    record: Record | None
    marker: bool
    records_prefix: str = ""
    file_id: str = ""
    is_missing: bool = False
    writers: Writers | None = None
    attribute: Attribute | None = None
    recorded_at: str = ""

    @property
    def place(self) -> str:
        """The prefix of the paths of its journal and its marker: see ``image.places``."""
        return self.records_prefix or self.path

    @property
    def state(self) -> State:
        """The state in the journal."""
        return State.NONE if self.record is None else self.record.state

    @property
    def is_incomplete(self) -> bool:
        """Whether a migration into it never finished.

        A marker beside an ``owner`` is left of one that did: it is removed after the journal is
        written.
        """
        return self.marker and self.state is not State.OWNER

    @property
    def is_of_another_file(self) -> bool:
        """Whether the journal is that of a file which was unlinked once it was given away: what has
        its name now is another.
        """
        is_gone = self.record is not None and self.state is State.DONE and self.record.unlinked
        return is_gone and not self.is_the_recorded_file

    @property
    def is_the_recorded_file(self) -> bool:
        """Whether the file itself says that a journal is about it."""
        return self.attribute is not None and "" != self.attribute.record.file == self.file_id

    def by_its_attribute(self, own: str, others: Record | None = None) -> ImageState:
        """Return how it stands with what the file's attribute says: see ``attribute.combined``."""
        record, recorded_at = attributes.combined(self.record, self.attribute, own, others)
        return replace(self, record=record, recorded_at=recorded_at)

    @property
    def is_marked(self) -> bool:
        """Whether the file's attribute says what the journal beside it says."""
        found = self.attribute
        return (
            self.record is not None
            and found is not None
            and self.is_the_recorded_file
            and (found.record.state, found.record.session)
            == (self.record.state, self.record.session)
        )

    @property
    def is_a_copy(self) -> bool:
        """Whether it has the attribute of another file, from which it was copied."""
        return self.attribute is not None and not self.is_the_recorded_file

    @property
    def is_replaced(self) -> bool:
        """Whether another file has got the name since the journal was written, as far as can be
        told.
        """
        record = self.record
        return record is not None and (
            "" not in (record.file, self.file_id) and record.file != self.file_id
        )

    @property
    def what_came_is_lost(self) -> str | None:
        """Return what became of an image that came here, if it has its name no more; else None."""
        if self.state not in (State.PREPARED, State.OWNER) or self.is_of_another_file:
            return None
        if self.is_missing:
            return "is not there any more"
        return "is another file by now" if self.is_replaced else None

    def is_owned(self, *, serving: bool) -> bool:
        """Return whether this side owns the image, as far as its journal goes: what all that is
        told of that comes from.

        At no moment both sides of a handover do: the destination's journal says ``owner`` only
        once that of the source says ``committed``.

        :param serving: whether the image is served, or was until its handover began; else one waits
            for it, or receives it.
        """
        if serving:
            return self.state in (State.NONE, State.SENDING, State.OWNER)
        return self.state is State.OWNER

    def to_serve(self) -> tuple[MayServe, str]:
        """Return whether the image may be served, and why not."""
        of_none = self.state in (State.NONE, State.SENDING) or self.is_of_another_file
        if self.is_incomplete and of_none:
            return MayServe.REFUSE, (
                f"{self.path} is incomplete: {self.place}{MARKER_SUFFIX} says that a migration "
                "into it never finished"
            )
        if self.record is None or self.is_of_another_file:
            return MayServe.SERVE, ""
        record, place = self.record, self.record.other_side
        advice = f"see 'flexmigrate whose {self.path}'"
        if self.what_came_is_lost is not None:
            return MayServe.REFUSE, self._other_file
        if self.recorded_at and record.state in FORBIDDING:
            return MayServe.REFUSE, self._recorded_elsewhere
        if record.state is State.COMMITTED and not record.plain:
            return MayServe.SETTLE, f"{self.path} was handed over to {place}"
        text = {
            State.COMMITTED: f"may be at {place} since {record.time}: its handover was begun, and "
            f"not confirmed; {advice}, look there, then 'flexmigrate take' or 'release'",
            State.DONE: f"was migrated to {place} ({record.time}); {advice}, and 'flexmigrate take "
            f"{self.path}' if this copy is to be used all the same",
            State.RECEIVING: f"is incomplete: a migration from {place} into it never finished",
            State.PREPARED: f"is a complete copy of what {place} had, and may be the only one in "
            f"use or not: it waits to be told by its source; start its 'listen' again, or {advice}",
        }.get(record.state)
        if text is None:
            return MayServe.SERVE, ""
        return MayServe.REFUSE, f"{self.path} {text}"

    @property
    def _other_file(self) -> str:
        assert self.record is not None
        return (
            f"{self.path} is another file than the one that came from {self.record.other_side} "
            f"(its journal says {self.state.name.lower()}): put that back, or say 'flexmigrate "
            f"take {self.path}' if this one is it all the same, or 'flexmigrate release "
            f"{self.path}' if it is of no use any more"
        )

    @property
    def _recorded_elsewhere(self) -> str:
        assert self.record is not None
        return (
            f"{self.path}: the file's own record (of {self.recorded_at}) says: "
            f"{self.state.name.lower()}, with {self.record.other_side} ({self.record.time}). See "
            f"'flexmigrate whose {self.path}', and use it by the name that it was recorded by; or, "
            f"if this copy is to be used all the same, say 'flexmigrate take {self.path}', or "
            f"'flexmigrate release {self.path}' if it is of no use any more"
        )

    def to_receive(self) -> str | None:
        """Return why nothing may be received over the image, or None."""
        if self.record is None or self.state in (State.DONE, State.RECEIVING):
            return None
        if self.what_came_is_lost is not None:
            return self._other_file
        if self.recorded_at and self.state in (State.COMMITTED, State.PREPARED):
            return self._recorded_elsewhere
        if self.state is State.PREPARED:
            return None
        if self.state is State.OWNER and not self.record.acknowledged:
            return None  # its source may ask once more; nobody else gets past `refusal`
        return (
            f"{self.path} is the image itself, not a copy (its journal says "
            f"{self.state.name.lower()}): receiving would overwrite it; if it is of no use any "
            f"more, 'flexmigrate release {self.path}'"
        )


def look(path: str, disk: Disk = SYSTEM) -> ImageState:
    """Return how the image at *path* stands.

    :raises ImageError: what lies beside it can't be read, or can't be trusted.
    """
    real = os.path.realpath(path)
    where = real
    try:
        where = places.beside(disk, real)
        is_missing = not disks.exists(disk, real)
        writers = None if is_missing else Writers.of(disk.stat(real))
        marker = disks.is_there(disk, where + MARKER_SUFFIX, writers)
        mark = disks.file_id(disk, real)
        misplaced = where != real and disks.exists(disk, journal.path_of(real))
    except OSError as error:
        raise ImageError(f"can't look for {where}{MARKER_SUFFIX}: {error}") from error
    if misplaced:
        raise ImageError(
            f"there is a journal beside the node of the device, {journal.path_of(real)}, where "
            f"none is kept: if it is about what is on the device now, move it to "
            f"{journal.path_of(where)}, else remove it"
        )
    own = journal.path_of(where)
    record = journal.load(disk, own, writers)
    found = attributes.read(disk, real) if mark else None
    image_state = ImageState(real, record, marker, where, mark, is_missing, writers, found)
    if found is None or not image_state.is_the_recorded_file:
        return image_state
    others = None
    if found.journal != own:
        others = attributes.record_elsewhere(disk, found, writers)
    return image_state.by_its_attribute(own, others)

"""What is left when everything has died at once, and which of it comes to the same.

Where no process lives, the world is what lies on two disks, what a client was promised, and what
supervisors will start. So it can be copied, and gone on from, which no living process can. And it
can be compared: two worlds in which the code has to do the same are told by one `Likeness`.

What makes no difference to the code makes none there: which bytes an image has, but not whether it
is the same as the other copy; which id a session has, but not whether two records are of one; the
time of a record; files that are written before they are read.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from flexmigrate.migration.ownership import attribute, journal
from flexmigrate.migration.ownership.attribute import NAME, Attribute
from flexmigrate.testing.disk import SimulatedDisk
from flexmigrate.testing.writer import Promises
from flexmigrate.wire.handover import NO_ID

IMAGE = "/image"  # in a folder that is quick to look for: its program does so often
JOURNAL = IMAGE + ".handover"
MARKER = IMAGE + ".INCOMPLETE"
BLOCK = 4096

FATES = ("process", "machine")
"""What dies of a side: its process; or its machine, which keeps only what it must."""

_READ = frozenset((IMAGE, JOURNAL, MARKER))

Likeness = Hashable


@dataclass(frozen=True)
class Left:
    """What is left of one side.

    :ivar role: what its supervisor starts.
    :ivar is_over: nobody starts anything there: it has ended as it was to.
    """

    disk: SimulatedDisk
    role: str
    is_over: bool


@dataclass(frozen=True)
class Remains:
    """What is left of both sides; by their names.

    :ivar served_by: who had acknowledged writes, in their order.
    """

    sides: dict[str, Left]
    promises: Promises
    served_by: tuple[str, ...]


@dataclass(frozen=True)
class View:
    """What is on one disk, for whoever finds it."""

    journal: bytes | None
    names: frozenset[str]
    image: bytes | None
    attribute: bytes | None = None

    @classmethod
    def of(cls, disk: SimulatedDisk, *, after_failure: bool) -> View:
        """Return what processes find there now, or would after a failure that kept nothing."""
        find = disk.find_after_failure if after_failure else disk.find
        attribute = disk.attribute(IMAGE, NAME, after_failure=after_failure)
        return cls(find(JOURNAL), disk.names(after_failure=after_failure), find(IMAGE), attribute)


@lru_cache(256)
def decode(data: bytes) -> journal.Record:
    """Return the record in a journal's bytes, as often as it is asked for."""
    return journal.decode(data)


@lru_cache(256)
def decode_attribute(data: bytes) -> Attribute:
    """Return what an attribute says, as often as it is asked for."""
    found = attribute.decode(data)
    assert found is not None, data
    return found


def likeness(views: Sequence[View]) -> Likeness:
    """Return what tells whether the code has to do the same, where *views* are what can be found.

    :param views: of both sides. Of one whose process died, and had not synced everything, what is
        there now, and what would be after a failure: that can still come.
    """
    return (
        tuple(tuple(sorted(view.names & _READ)) for view in views),
        _records(tuple(view.journal for view in views), tuple(view.attribute for view in views)),
        _alike([view.image for view in views]),
    )


@lru_cache(4096)
def _records(journals: tuple[bytes | None, ...], attributes: tuple[bytes | None, ...]) -> Hashable:
    """Return what several journals, and the attributes of the images, say, as far as it can make a
    difference.
    """
    records = [None if data is None else decode(data) for data in journals]
    # One of the journal's own session decides nothing: see `attribute.combined`.
    for mine, data in zip(tuple(records), attributes, strict=True):
        marked = None if data is None else decode_attribute(data).record
        is_told = marked is None or (mine is not None and mine.session == marked.session)
        records.append(None if is_told else marked)
    known = [NO_ID]
    for record in records:
        if record is not None:
            known += [each for each in (record.session, record.origin) if each not in known]
    attempts = sorted({record.attempt for record in records if record is not None})
    return tuple(
        record
        and (
            record.state,
            known.index(record.session),
            known.index(record.origin),
            tuple(known.index(each) for each in record.superseded if each in known),
            attempts.index(record.attempt),
            record.plain,
            record.unlink,
            record.unlinked,
            record.acknowledged,
            bool(record.mirror),
        )
        for record in records
    )


def _alike(images: Sequence[bytes | None]) -> Hashable:
    """Return which images are the same."""
    kinds: list[bytes | None] = [None]
    for image in images:
        if image not in kinds:
            kinds.append(image)
    return tuple(kinds.index(image) for image in images)

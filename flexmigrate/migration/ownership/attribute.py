"""An extended attribute beside the journal, which stays with an image's inode if it is renamed.

A hard link to an image, or another name that it was given, has no journal beside it. So what
decides is written into an attribute of the file, too: the state, the session, and where the journal
is. It names the file that it is about, since programs that copy files copy attributes as well: of
another file it means nothing.

The journal is the authority. The attribute decides only where there is none, and where it was
written under another name, or by a later session, and says that the image was given away or isn't
whole: it can forbid what a journal allows, and never the other way round (``combined``). So it need
not be written at the same moment. States that forbid are written to the attribute first, and then
to the journal, whose fsync(2) makes both durable on filesystems with one log for all (ext4, XFS);
those that allow, the other way round (``ownership``).

Filesystems without such attributes, and devices, have the journal alone. Twisted is not imported.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from dataclasses import dataclass, replace

from flexmigrate.errors import ImageError
from flexmigrate.image.disk import Disk, Writers
from flexmigrate.migration.ownership import journal
from flexmigrate.migration.ownership.journal import Record
from flexmigrate.wire.frames import display_text
from flexmigrate.wire.handover import State

NAME = "user.flexmigrate.handover"
"""Of the attribute. Whoever may write to the image may write it."""

VERSION = 1

_MOST_TEXT = 200
"""Characters of each text: ext4 has a block for all of a file's attributes."""

FORBIDDING = frozenset((State.COMMITTED, State.DONE, State.RECEIVING, State.PREPARED))
"""States in which an image isn't served."""

_FIELDS = ("state", "session", "attempt", "size", "plain", "origin", "file", "time")
_TEXTS = ("peer", "address")


@dataclass(frozen=True)
class Attribute:
    """The content of the attribute.

    :ivar record: the journal's record, but for what only that has a use for.
    :ivar journal: path of the journal.
    """

    record: Record
    journal: str


def encode(record: Record, path: str) -> bytes:
    """Return the attribute's bytes, of a *record* whose journal is at *path*."""
    body = journal.as_json(record)
    body = {
        "version": VERSION,
        "journal": path,
        **{each: body[each] for each in _FIELDS},
        **{each: body[each][:_MOST_TEXT] for each in _TEXTS},
    }
    return json.dumps({**body, "checksum": journal.checksum_of(body)}).encode()


def decode(data: bytes) -> Attribute | None:
    """Return what an attribute's bytes say; None where that makes no sense to us."""
    try:
        body = json.loads(data)
        if body.pop("checksum") != journal.checksum_of(body) or body["version"] != VERSION:
            return None
        path = body["journal"]
        known = {each: journal.field_of(each, body[each]) for each in (*_FIELDS, *_TEXTS)}
        record = Record(**known)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not isinstance(path, str) or not os.path.isabs(path) or "\0" in path:
        return None

    def clean(text: str) -> str:
        return display_text(text.encode(errors="replace"))

    record = replace(
        record, peer=clean(record.peer), address=clean(record.address), time=clean(record.time)
    )
    return Attribute(record, path)


def read(disk: Disk, path: str) -> Attribute | None:
    """Return what the attribute of the file at *path* says, whatever file that is about; None if it
    has none, or none can be had there.
    """
    try:
        return decode(disk.getxattr(path, NAME))
    except OSError:
        return None


def write(
    disk: Disk, image: str, file_id: str, record: Record | None, path: str, *, durable: bool = False
) -> None:
    """Write, or remove, the attribute of the file at *image*, if it is still the one with that
    *file_id*; where there are no attributes, do nothing.

    :param record: None to remove it.
    :param path: of the journal.
    :param durable: sync the file, by an opening of its own: errors of writing back that others are
        to be told of are told to them all the same.
    :raises OSError: only if *durable*: the file could not be synced.
    """
    if not file_id:
        return  # a device
    try:
        fd = disk.open(image, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    try:
        status = disk.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or str(status.st_ino) != file_id.split(maxsplit=1)[0]:
            return  # the name leads elsewhere by now
        with contextlib.suppress(OSError):
            if record is not None:
                disk.setxattr(fd, NAME, encode(record, path))
            else:
                disk.removexattr(fd, NAME)
        if durable:
            disk.fsync(fd)
    finally:
        disk.close(fd)


def combined(
    record: Record | None, found: Attribute | None, own: str, others: Record | None
) -> tuple[Record | None, str]:
    """Return the record that decides, and where it was recorded if that isn't the journal.

    :param record: of the journal at *own*; None without one.
    :param found: the file's attribute, if it is about that file.
    :param others: the record of the journal that the attribute names, if it is another one, and
        about this file and session.
    """
    if found is None:
        return record, ""
    elsewhere = found.journal != own
    told = others if elsewhere and others is not None else found.record
    if record is None:
        return told, found.journal
    if record.state in FORBIDDING:
        return record, ""
    # A session that has begun is written here before the journal says so; it decides nothing then.
    is_later = found.record.session != record.session and told.state in (
        State.COMMITTED,
        State.DONE,
    )
    if told.state in FORBIDDING and (elsewhere or is_later):
        return told, found.journal
    return record, ""


def record_elsewhere(disk: Disk, found: Attribute, writers: Writers | None) -> Record | None:
    """Return the record of the journal that an attribute names, if it is about the same file and
    session.
    """
    with contextlib.suppress(ImageError):
        record = journal.load(disk, found.journal, writers)
        if record is not None and (record.file, record.session) == (
            found.record.file,
            found.record.session,
        ):
            return record
    return None

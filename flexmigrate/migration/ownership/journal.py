"""The journal beside an image, ``IMAGE.handover``: one record of who owns it, kept durably.

``ownership`` defines the meaning of records and their order. This module defines how they are
kept: written so that a crash leaves the old record or the new one (``image.disk``), and read so
that anything but a complete record of a known version is an error.
Twisted is not imported: the command line reads journals, too.

The file is JSON, for people to read. A checksum detects changes by hand:
``flexmigrate take`` and ``release`` are there for that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from typing import Any

from flexmigrate.errors import ImageError
from flexmigrate.image import disk as disks
from flexmigrate.image.disk import Disk, Writers
from flexmigrate.wire.handover import MAX_JOURNAL, MAX_SUPERSEDED, NO_ID, State
from flexmigrate.wire.keys import KEY_LENGTH, NO_KEY, KeyKind, derive_key
from flexmigrate.wire.packing import ID_LENGTH

SUFFIX = ".handover"

VERSION = 2
"""Of a record that has any field of `_NEWER_FIELDS`; without one it is written as version 1, which
those who came before can read."""

MAX_BYTES = 64 * 1024
"""Bytes that a journal may have: far more than a record ever needs."""

PROBE_BYTES = 4096
"""What has to fit on the disk for a journal to be relied on: more than a common record has."""

MAX_SETTLED = 16
"""How many of the last settlements by hand are remembered."""


class JournalError(ImageError):
    """A journal can't be read or written, or isn't one; the text names its path and the cause."""


class NewerError(ValueError):
    """A record is of a version that came after this one."""


@dataclass(frozen=True)
class Record:
    """The content of a journal.

    :ivar state: of this side; never NONE, which is the absence of a journal.
    :ivar session: whose state that is.
    :ivar attempt: of the session.
    :ivar size: of the image, in bytes.
    :ivar plain: the other side keeps no journal of this session: the plain handover.
    :ivar unlink: a source's: its file is to go once the destination owns the image.
    :ivar unlinked: a source's: it is gone, and a file of its name is another.
    :ivar acknowledged: an owner's: the source knows of it, and won't ask again.
    :ivar awaited_at: a destination's: the addresses at which the source asks.
    :ivar peer: the other side's name, for people; may be empty.
    :ivar address: where the other side was, for people.
    :ivar mirror: a source's: the lines of the mirror command, which say how the destination is
        reached (``control.grammar``).
    :ivar superseded: a source's: earlier sessions that were never committed, the latest first.
    :ivar origin: the session by which the image came here, whatever became of it since; NO_ID if
        it didn't come by one.
    :ivar digest: of the image as both sides had it, where it was compared
        (``migration.comparison.digests``); else empty.
    :ivar file: what tells the file from every later one of its name (``image.disk.file_id``); may
        be empty.
    :ivar time: when this was written, for people (ISO 8601).
    :ivar settled: what was settled by hand, a sentence each, the latest first.
    :ivar secret: a source's: what the keys of its session's attempts are derived of, see
        ``wire.keys``. Whoever reads it can say COMMIT: it is never told, and the journal that has
        it can be read by its owner only.
    :ivar superseded_secrets: a source's: those of the *superseded* sessions, in their order; NO_KEY
        for one that isn't known.
    :ivar commit_digest: a destination's: what its source's commit key is recognised by; NO_KEY
        where the source is of a version that has none.
    :ivar retract_digest: likewise its retract key.
    :ivar origin_digest: likewise the commit key of *origin*, whatever became of the image since.
    :ivar read_only: a destination's: clients may not change the image.
    """

    state: State
    session: bytes = NO_ID
    attempt: int = 0
    size: int = 0
    plain: bool = False
    unlink: bool = False
    unlinked: bool = False
    acknowledged: bool = False
    awaited_at: tuple[str, ...] = ()
    peer: str = ""
    address: str = ""
    mirror: tuple[str, ...] = ()
    superseded: tuple[bytes, ...] = ()
    origin: bytes = NO_ID
    digest: str = ""
    file: str = ""
    time: str = ""
    settled: tuple[str, ...] = ()
    secret: bytes = NO_KEY
    superseded_secrets: tuple[bytes, ...] = ()
    commit_digest: bytes = NO_KEY
    retract_digest: bytes = NO_KEY
    origin_digest: bytes = NO_KEY
    read_only: bool = False

    @property
    def is_secret(self) -> bool:
        """Whether it has something that nobody else may read."""
        return self.secret != NO_KEY or bool(self.superseded_secrets)

    @property
    def commit_key(self) -> bytes:
        """A source's: what shows its destination that it has committed; NO_KEY where the session
        was begun by a version that has no keys.
        """
        assert self.state in (State.COMMITTED, State.DONE), "it would give the image away"
        if self.secret == NO_KEY:
            return NO_KEY
        return derive_key(self.secret, KeyKind.COMMIT, self.session, self.attempt)

    @property
    def other_side(self) -> str:
        """The other side's name and address, for people."""
        if self.peer and self.address:
            return f"{self.peer} ({self.address})"
        return self.peer or self.address or "an unknown place"


def now() -> str:
    """Return the time as a record has it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def path_of(place: str) -> str:
    """Return where the journal of an image is whose things are at *place*: its path, absolute and
    without links, or that of a device's: ``image.places.beside``.
    """
    return place + SUFFIX


def load(disk: Disk, path: str, writers: Writers | None = None) -> Record | None:
    """Return the record in the journal at *path*, or None where there is no journal.

    :param writers: the users who may have written it, besides root and us.
    :raises JournalError: there is something, and it isn't a whole record that we know.
    :raises UntrustedFile: it isn't a file that nobody else could have put there.
    """
    try:
        data = disks.read(disk, path, MAX_BYTES + 1, writers)
    except OSError as error:
        raise JournalError(f"can't read the journal {path}: {error.strerror}") from error
    return None if data is None else _decoded(path, data)


def load_copy(path: str) -> Record:
    """Return the record in a copy of a journal that a human has named, whatever kind of file it is.

    :raises JournalError: there is none, or it isn't a whole record that we know.
    """
    try:
        with open(path, "rb") as file:
            return _decoded(path, file.read(MAX_BYTES + 1))
    except FileNotFoundError:
        raise JournalError(f"there is no journal {path}") from None
    except OSError as error:
        raise JournalError(f"can't read the journal {path}: {error.strerror}") from error


def _decoded(path: str, data: bytes) -> Record:
    try:
        return decode(data)
    except ValueError as error:
        raise JournalError(
            f"the journal {path} can't be trusted ({error}); nothing is done with the image "
            "before a human has settled whose it is: see 'flexmigrate help whose'"
        ) from error


def store(disk: Disk, path: str, record: Record) -> None:
    """Make *record* what the journal at *path* says, durably.

    :raises OSError: as ``image.disk.replace``: it says what it said, or, only if the folder could
        not be synced, *record*, and after a crash either.
    """
    mode = disks.SECRET_MODE if record.is_secret else disks.PUBLIC_MODE
    disks.replace(disk, path, encode(record), mode)


def as_json(record: Record) -> dict[str, Any]:
    """Return the fields of a record as JSON has them."""
    return {each.name: _plain(getattr(record, each.name)) for each in fields(record)}


def field_of(name: str, value: Any) -> Any:
    """Return the field *name* of a record, of which JSON has *value*.

    :raises ValueError: it can't be.
    """
    return _READERS[name](name, value)


def encode(record: Record) -> bytes:
    """Return the bytes of a journal."""
    body = as_json(record)
    if not record.awaited_at:
        del body["awaited_at"]  # the first ones didn't know it
    for name, nothing in _NEWER_FIELDS.items():
        if body[name] == nothing:
            del body[name]
    body["version"] = VERSION if _NEWER_FIELDS.keys() & body.keys() else 1
    body["checksum"] = checksum_of(body)
    lines = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in body.items())
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def told(record: Record | None, named: Collection[bytes] = ()) -> bytes:
    """Return a record's bytes for whoever asks another server for them: without what only this side
    has a use for, and without what the asker doesn't know already of which sessions there were;
    empty if there is none, or it is too long to be told.

    :param named: ids of sessions that the asker knows. Who knows none is told the state, the size,
        the digest and the time.
    """
    if record is None:
        return b""
    knows = bool({record.session, record.origin, *record.superseded} & set(named))
    data = encode(
        Record(
            record.state,
            session=record.session if record.session in named else NO_ID,
            attempt=record.attempt if record.session in named else 0,
            size=record.size,
            plain=record.plain,
            unlinked=record.unlinked,
            acknowledged=record.acknowledged,
            peer=record.peer if knows else "",
            address=record.address if knows else "",
            superseded=tuple(each for each in record.superseded if each in named),
            origin=record.origin if record.origin in named else NO_ID,
            digest=record.digest,
            time=record.time,
            settled=record.settled if knows else (),
        )
    )
    return data if len(data) <= MAX_JOURNAL else b""


def decode(data: bytes) -> Record:
    """Return the record in a journal's bytes.

    :raises ValueError: saying why it is none.
    :raises NewerError: it may be one, of a later version.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    try:
        body = json.loads(data)
    except ValueError as error:
        raise ValueError(f"it is not JSON: {error}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(body, dict):
        raise ValueError("it is no record")
    version, checksum = body.pop("version", None), body.pop("checksum", None)
    if version not in (1, VERSION) or isinstance(version, bool):
        kind = NewerError if isinstance(version, int) and version > VERSION else ValueError
        raise kind(f"its version is {version!r}, and {VERSION} is what is known")
    if checksum != checksum_of({**body, "version": version}):
        raise ValueError("its checksum is wrong")
    # The first ones hadn't these.
    body.setdefault("file", "")
    body.setdefault("awaited_at", [])
    for name, nothing in _NEWER_FIELDS.items():
        body.setdefault(name, nothing)
    if body.keys() != _READERS.keys():
        unknown = ", ".join(sorted(body.keys() ^ _READERS.keys()))
        raise ValueError(f"its fields are wrong: {unknown}")
    values: dict[str, Any] = {name: read(name, body[name]) for name, read in _READERS.items()}
    return Record(**values)


def _plain(value: Any) -> Any:
    """Return *value* as JSON has it."""
    if isinstance(value, State):
        return value.name.lower()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return value


def checksum_of(body: dict[str, Any]) -> str:
    """Return what stands in *body*, as JSON has it, as its checksum."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _state(name: str, value: Any) -> State:
    for state in State:
        if state and value == state.name.lower():
            return state
    raise ValueError(f"{name} is {value!r}")


def _bool(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}")
    return value


def _number(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 64:
        raise ValueError(f"{name} is {value!r}")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} is {value!r}")
    return value


def _id(name: str, value: Any) -> bytes:
    return _hex(name, value, ID_LENGTH)


def _key(name: str, value: Any) -> bytes:
    return _hex(name, value, KEY_LENGTH)


def _hex(name: str, value: Any, length: int) -> bytes:
    try:
        read = bytes.fromhex(value)
    except (TypeError, ValueError):
        read = b""
    if len(read) != length:
        # Not what it is: it may be a secret.
        raise ValueError(f"{name} isn't {length} bytes in hexadecimal digits")
    return read


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{name} is {value!r}")
    return tuple(_text(name, each) for each in value)


def _ids(name: str, value: Any) -> tuple[bytes, ...]:
    if not isinstance(value, list) or len(value) > MAX_SUPERSEDED:
        raise ValueError(f"{name} is {value!r}")
    return tuple(_id(name, each) for each in value)


def _keys(name: str, value: Any) -> tuple[bytes, ...]:
    if not isinstance(value, list) or len(value) > MAX_SUPERSEDED:
        raise ValueError(f"{name} is no list of keys")
    return tuple(_key(name, each) for each in value)


_READERS = {
    "state": _state,
    "session": _id,
    "attempt": _number,
    "size": _number,
    "plain": _bool,
    "unlink": _bool,
    "unlinked": _bool,
    "acknowledged": _bool,
    "awaited_at": _texts,
    "peer": _text,
    "address": _text,
    "mirror": _texts,
    "superseded": _ids,
    "origin": _id,
    "digest": _text,
    "file": _text,
    "time": _text,
    "settled": _texts,
    "secret": _key,
    "superseded_secrets": _keys,
    "commit_digest": _key,
    "retract_digest": _key,
    "origin_digest": _key,
    "read_only": _bool,
}

_NEWER_FIELDS: dict[str, Any] = {
    "secret": NO_KEY.hex(),
    "superseded_secrets": [],
    "commit_digest": NO_KEY.hex(),
    "retract_digest": NO_KEY.hex(),
    "origin_digest": NO_KEY.hex(),
    "read_only": False,
}
"""What version 2 brought, with what stands for its absence."""

"""Journals as a process leaves them that was killed at a certain moment of a handover."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flexmigrate.control.grammar import mirror_command
from flexmigrate.image.disk import SYSTEM
from flexmigrate.migration.ownership import journal
from flexmigrate.migration.ownership.journal import Record
from flexmigrate.migration.request import MirrorRequest
from flexmigrate.net.address import Address
from flexmigrate.wire.handover import State
from flexmigrate.wire.keys import KeyKind, derive_key, key_digest

SESSION = b"s" * 16
SECRET = b"k" * 32


def leave(image: Path, state: State, **more: Any) -> None:
    """Leave a journal of the session beside *image*."""
    size = image.stat().st_size
    record = Record(state, session=SESSION, attempt=1, size=size, peer="other", **more)
    journal.store(SYSTEM, journal.path_of(str(image)), record)


def leave_committed(image: Path, address: Address, **more: Any) -> None:
    """Leave what a source does that has committed to the destination at *address*."""
    mirror = tuple(mirror_command(MirrorRequest(address)))
    leave(image, State.COMMITTED, address=str(address), mirror=mirror, secret=SECRET, **more)


def leave_prepared(image: Path) -> None:
    """Leave what the destination does that has all of the same session."""
    leave(image, State.PREPARED, commit_digest=_commit_digest())


def leave_owner(image: Path) -> None:
    """Leave what the destination does that has become the owner by the same session."""
    digest = _commit_digest()
    leave(image, State.OWNER, origin=SESSION, commit_digest=digest, origin_digest=digest)


def _commit_digest() -> bytes:
    key = derive_key(SECRET, KeyKind.COMMIT, SESSION, 1)
    return key_digest(key, KeyKind.COMMIT, SESSION, 1)


def state_of(image: Path) -> State | None:
    """Return what the journal says, if there is one."""
    found = journal.load(SYSTEM, journal.path_of(str(image)))
    return None if found is None else found.state

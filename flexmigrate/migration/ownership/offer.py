"""The session option at a server: what a connection proposed, and the answer to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from flexmigrate.errors import RequestFailed
from flexmigrate.migration.ownership import journal
from flexmigrate.migration.ownership.ownership import Ownership
from flexmigrate.server.connection import NBDServerProtocol
from flexmigrate.wire.constants import ErrorCode, OptionReply
from flexmigrate.wire.handover import (
    NO_ID,
    SESSION_OPTION,
    SESSION_REPLY,
    Answer,
    Capability,
    Digest,
    Opening,
    Purpose,
    fit_text,
    parse_opening,
)

Replies = Sequence[tuple[int, bytes]]


def opening_of(connection: NBDServerProtocol) -> Opening | None:
    """Return what *connection* said of its session when it negotiated; None if it has none."""
    agreement = connection.agreement
    return None if agreement is None else opening_in(dict(agreement.private))


def opening_in(private: Mapping[int, bytes]) -> Opening | None:
    """Return what was said of a session, among what was agreed on by private options; None also
    where it was said that there is none.
    """
    data = private.get(SESSION_OPTION)
    opening = None if data is None else parse_opening(data)
    return None if opening is None or opening.purpose is Purpose.PLAIN else opening


def answer(
    opening: Opening,
    ownership: Ownership,
    size: int,
    name: str,
    refusal: str | None,
    *,
    compares: bool = False,
) -> Replies:
    """Return the replies to a session option. Which sessions there were is told only to who names
    them.

    :param compares: whether we can compare what we have with what the source has.
    """
    record = ownership.record
    known = Capability.JOURNAL if opening.purpose is Purpose.ASK else Capability(0)
    if compares:
        known |= Capability.COMPARE
    is_named = record is not None and record.session in opening.named
    told = Answer(
        ownership.state,
        record.session if record is not None and is_named else NO_ID,
        record.attempt if record is not None and is_named else 0,
        size,
        fit_text(name),
        fit_text(refusal or ""),
        opening.digests & Digest.BLAKE3 if compares else 0,
        opening.capabilities & known,
        journal.told(record, opening.named),
    )
    return [(SESSION_REPLY, told.encode()), (OptionReply.ACK, b"")]


OURSELVES = "it is the very server that the image is to be migrated from"


def refused(text: str) -> Deferred[bytes]:
    """Return the failure that answers a private command as invalid, with the reason *text*."""
    failed: Deferred[bytes] = Deferred()
    failed.errback(Failure(RequestFailed(int(ErrorCode.EINVAL), text)))
    return failed

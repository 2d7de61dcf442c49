"""What a connection said of its session when it negotiated, and what it is answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flexmigrate.migration import journal
from flexmigrate.migration.ownership import Ownership
from flexmigrate.server.connection import NBDServerProtocol
from flexmigrate.wire.constants import OptionReply
from flexmigrate.wire.session import (
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
    """Return what was said of a session, among what was agreed on by private options."""
    data = private.get(SESSION_OPTION)
    return None if data is None else parse_opening(data)


def answer(
    opening: Opening,
    ownership: Ownership,
    size: int,
    name: str,
    refusal: str | None,
    *,
    compares: bool = False,
) -> Replies:
    """Return the replies to a session option.

    :param compares: whether we can compare what we have with what the source has.
    """
    record = ownership.record
    known = Capability.JOURNAL if opening.purpose is Purpose.ASK else Capability(0)
    if compares:
        known |= Capability.COMPARE
    told = Answer(
        ownership.state,
        NO_ID if record is None else record.session,
        0 if record is None else record.attempt,
        size,
        fit_text(name),
        fit_text(refusal or ""),
        opening.digests & Digest.BLAKE3 if compares else 0,
        opening.capabilities & known,
        journal.told(record),
    )
    return [(SESSION_REPLY, told.encode()), (OptionReply.ACK, b"")]

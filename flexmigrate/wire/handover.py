"""The messages of a session between two flexmigrates: layouts, limits, builders and parsers.

The builders raise ``LocalProtocolError`` rather than make an invalid message. The parsers take
hostile input: a field that doesn't fit raises ``RemoteProtocolError``, and nothing else. The order
of messages is not checked here.

Each message begins with its version. A higher version may only append fields, and a reader skips
fields that it doesn't know. So each side writes the highest version that it knows, and both go by
the lower of the two.

Layouts: docs/handover-protocol.rst, to the byte. All numbers are big-endian.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum, IntFlag
from struct import Struct
from typing import Any

from flexmigrate.errors import LocalProtocolError, RemoteProtocolError
from flexmigrate.wire.constants import Command, name_of
from flexmigrate.wire.frames import display_text
from flexmigrate.wire.keys import KEY_LENGTH, NO_KEY
from flexmigrate.wire.packing import (
    ID_LENGTH,
    MAX_TEXT,
    VERSION,
    VERSION_FIELD,
    Fields,
    blob_field,
    checked_id,
    pack,
    text_field,
)

SESSION_OPTION = 0x666D6967  # ASCII "fmig"
"""The number of the private option. The specification assigns small numbers, and reserves none for
private use; a peer that doesn't know an option answers ERR_UNSUP."""

SESSION_REPLY = 0x666D6967
"""The type of the reply with an answer; an ACK follows it."""

MAX_SUPERSEDED = 16
"""Ids of earlier sessions that an opening may name."""

MAX_PRIVATE_PAYLOAD = 32 * 1024
"""Bytes that a private command, or the reply to one, may carry."""

DIGEST_LENGTH = 32
"""Bytes of a digest."""

ZEROES_DIGEST = bytes(DIGEST_LENGTH)
"""Used as the digest of a range that reads as zeroes; such a range may be long: see `Claim`."""

# purpose, state, id, attempt, size, digests, capabilities, count of superseded ids
_OPENING = Struct(f">BB{ID_LENGTH}sIQIIH")
# From version 2 on: digests of the commit key and of the retract key, a key, the server's token,
# properties of the export
_OPENING_2 = Struct(f">{KEY_LENGTH}s{KEY_LENGTH}s{KEY_LENGTH}s{ID_LENGTH}sI")
# state, id, attempt, size, digests, capabilities
_ANSWER = Struct(f">B{ID_LENGTH}sIQII")
# state, done
_OUTCOME = Struct(">BB")
# offset, length, digest
_CLAIM = Struct(f">QQ{DIGEST_LENGTH}s")
_COUNT = Struct(">H")
# kind, digest
_IMAGE_DIGEST = Struct(f">B{DIGEST_LENGTH}s")
_DIGEST_KINDS = {1: "blake3", 2: "blake3-chained"}

MAX_CLAIMS = (MAX_PRIVATE_PAYLOAD - VERSION_FIELD.size - _COUNT.size) // _CLAIM.size
"""Ranges that one VERIFY may be about."""

MAX_JOURNAL = 12 * 1024
"""Bytes of a journal that an answer may carry: far more than one has, and with the rest of it no
more than the reply to an option may have (``constants.MAX_OPTION_REPLY``)."""

NO_ID = bytes(ID_LENGTH)
"""The session id that means "no session"."""


class Purpose(IntEnum):
    """The purpose for which a source opens a session (8 bits)."""

    MIGRATE = 1  # to send the image
    SETTLE = 2  # to have a handover ended that was committed before
    ASK = 3  # to learn what the journal says, and leave
    PLAIN = 4  # to send the image, or a copy of it, without a session


class State(IntEnum):
    """The state in an image's journal (8 bits): first those of a source, then of a destination."""

    NONE = 0  # there is no journal
    SENDING = 1
    COMMITTED = 2
    DONE = 3
    RECEIVING = 4
    PREPARED = 5
    OWNER = 6


class PrivateCommand(IntEnum):
    """Requests that may be sent once a session is agreed on (16 bits, as ``Command``)."""

    PREPARE = 0xF100  # is all here, and durable? then you may become the owner
    COMMIT = 0xF101  # you are the owner: here is the commit key
    VERIFY = 0xF102  # do these ranges have these digests?
    PREPARE_EQUAL = 0xF103  # PREPARE, if your image has this digest


PRIVATE_CHUNK = 0x7100
"""The type of the chunk that carries the payload of the reply to a private command, where replies
are structured or extended; a simple reply has its length (32 bits) and the payload behind it."""


class Digest(IntFlag):
    """Digests by which copies can be compared (32 bits)."""

    BLAKE3 = 1  # of 32 bytes, without a key


class Capability(IntFlag):
    """Abilities of a side (32 bits). A source names those it has, a destination those it will
    use.
    """

    COMPARE = 1  # PREPARE_EQUAL
    JOURNAL = 2  # the answer has the journal's record behind it


class Property(IntFlag):
    """Properties of the source's export (32 bits)."""

    READ_ONLY = 1  # clients may not change it


@dataclass(frozen=True)
class Opening:
    """A source's proposal of a session; ``wire.keys`` explains its keys.

    :ivar session: the id, 16 bytes. All attempts of one migration have the same.
    :ivar attempt: from 1; 0 to 2^32 - 1.
    :ivar state: what the source's journal says.
    :ivar superseded: ids of earlier sessions of the same image that were never committed, the
        latest first; at most MAX_SUPERSEDED.
    :ivar size: of the image, in bytes.
    :ivar export: the name of the export that it is about.
    :ivar name: of the source, for people: its host and the image's path.
    :ivar digests: that the source can make: see ``Digest``.
    :ivar capabilities: see ``Capability``.
    :ivar commit_digest: the digest of the attempt's commit key; NO_KEY without one.
    :ivar retract_digest: the digest of its retract key.
    :ivar key: the commit key of what is to be settled; or the retract key of what the destination
        has, to have that replaced; NO_KEY for none.
    :ivar instance: tells the server that sends from every other; NO_ID for none.
    :ivar properties: of the export: see ``Property``.
    :ivar version: of the message; 1 has none of the last five.
    """

    purpose: Purpose
    session: bytes
    attempt: int
    state: State
    size: int
    export: str = ""
    name: str = ""
    superseded: tuple[bytes, ...] = ()
    digests: int = 0
    capabilities: int = 0
    commit_digest: bytes = NO_KEY
    retract_digest: bytes = NO_KEY
    key: bytes = NO_KEY
    instance: bytes = NO_ID
    properties: int = 0
    version: int = VERSION

    @property
    def has_keys(self) -> bool:
        """Whether it has the digests by which its source can be recognised."""
        return NO_KEY not in (self.commit_digest, self.retract_digest)

    @property
    def named(self) -> frozenset[bytes]:
        """The ids of the sessions in it; its sender is told of no others."""
        return frozenset((self.session, *self.superseded)) - {NO_ID}

    def as_committed(self, key: bytes) -> Opening:
        """Return the same session's opening once the source has committed, with the commit key."""
        return replace(self, purpose=Purpose.SETTLE, state=State.COMMITTED, key=key)

    def encode(self) -> bytes:
        """Return the option's data; LocalProtocolError if it can't be said."""
        if len(self.superseded) > MAX_SUPERSEDED:
            raise LocalProtocolError(f"more than {MAX_SUPERSEDED} superseded sessions")
        fields = pack(
            _OPENING,
            self.purpose,
            self.state,
            checked_id(self.session),
            self.attempt,
            self.size,
            self.digests,
            self.capabilities,
            len(self.superseded),
        )
        superseded = b"".join(map(checked_id, self.superseded))
        texts = text_field(self.export) + text_field(self.name)
        message = VERSION_FIELD.pack(self.version) + fields + superseded + texts
        if self.version < 2:
            return message
        return message + pack(
            _OPENING_2,
            self.commit_digest,
            self.retract_digest,
            self.key,
            self.instance,
            self.properties,
        )


@dataclass(frozen=True)
class Answer:
    """A destination's answer to an opening.

    :ivar state: what its journal says.
    :ivar session: the journal's session; NO_ID without one.
    :ivar attempt: the journal's.
    :ivar size: of its image, in bytes.
    :ivar name: of the destination, for people.
    :ivar refusal: why the session is not agreed on; empty if it is.
    :ivar digests: those chosen; see ``Digest``.
    :ivar capabilities: those chosen; see ``Capability``.
    :ivar journal: the bytes of its journal, at most MAX_JOURNAL; empty without one. Told only with
        the capability JOURNAL.
    :ivar version: of the message: who says 1 knows nothing of keys.
    """

    state: State
    session: bytes
    attempt: int
    size: int
    name: str = ""
    refusal: str = ""
    digests: int = 0
    capabilities: int = 0
    journal: bytes = b""
    version: int = VERSION

    def encode(self) -> bytes:
        """Return the reply's data; LocalProtocolError if it can't be said."""
        fields = pack(
            _ANSWER,
            self.state,
            checked_id(self.session),
            self.attempt,
            self.size,
            self.digests,
            self.capabilities,
        )
        texts = text_field(self.name) + text_field(self.refusal)
        if not self.capabilities & Capability.JOURNAL:
            return VERSION_FIELD.pack(self.version) + fields + texts
        return VERSION_FIELD.pack(self.version) + fields + texts + blob_field(self.journal)


@dataclass(frozen=True)
class Outcome:
    """The result of a PREPARE or a COMMIT: the payload of its reply.

    :ivar state: the state in the destination's journal now.
    :ivar refusal: the reason if it was refused; else empty.
    """

    state: State
    refusal: str = ""

    def encode(self) -> bytes:
        """Return the payload; LocalProtocolError if it can't be said."""
        done = pack(_OUTCOME, self.state, 0 if self.refusal else 1)
        return VERSION_FIELD.pack(VERSION) + done + text_field(self.refusal)


@dataclass(frozen=True, slots=True)
class Claim:
    """The content of a range of the source's image, for the destination to compare with its own.

    :ivar offset: in bytes, as *length*, which is at least 1.
    :ivar digest: of the range; ZEROES_DIGEST says that it reads as zeroes.
    """

    offset: int
    length: int
    digest: bytes

    @property
    def is_zeroes(self) -> bool:
        """Whether the range is said to read as zeroes."""
        return self.digest == ZEROES_DIGEST


def encode_claims(claims: Sequence[Claim]) -> bytes:
    """Return the payload of VERIFY; LocalProtocolError if it can't be said."""
    if len(claims) > MAX_CLAIMS:
        raise LocalProtocolError(f"{len(claims)} ranges to verify (at most {MAX_CLAIMS})")
    packed = [pack(_CLAIM, each.offset, each.length, each.digest) for each in claims]
    return VERSION_FIELD.pack(VERSION) + _COUNT.pack(len(claims)) + b"".join(packed)


def parse_claims(data: bytes) -> list[Claim]:
    """Parse the payload of VERIFY."""
    fields = Fields(data)
    (count,) = fields.take(_COUNT)
    claims = [Claim(*fields.take(_CLAIM)) for _ in range(count)]
    fields.end()
    return claims


def encode_verdicts(verdicts: Sequence[bool]) -> bytes:
    """Return the payload of the reply to VERIFY: for each range, in order, whether it is equal."""
    return VERSION_FIELD.pack(VERSION) + _COUNT.pack(len(verdicts)) + bytes(verdicts)


def parse_verdicts(data: bytes, expected: int) -> list[bool]:
    """Parse the payload of the reply to a VERIFY of *expected* ranges."""
    fields = Fields(data)
    (count,) = fields.take(_COUNT)
    if count != expected:
        raise RemoteProtocolError(f"{count} verdicts about {expected} ranges")
    verdicts = fields.raw(count)
    fields.end()
    if any(each > 1 for each in verdicts):
        raise RemoteProtocolError("the verdict on a range is neither equal nor different")
    return [bool(each) for each in verdicts]


def encode_image_digest(text: str) -> bytes:
    """Return the payload of PREPARE_EQUAL; LocalProtocolError if *text* is no image's digest.

    :param text: as ``image.digests.ImageDigest.text``.
    """
    name, _, digits = text.partition(":")
    for kind, known in _DIGEST_KINDS.items():
        if name == known and len(digits) == 2 * DIGEST_LENGTH:
            return VERSION_FIELD.pack(VERSION) + pack(_IMAGE_DIGEST, kind, bytes.fromhex(digits))
    raise LocalProtocolError(f"{text!r} is no image's digest")


def parse_image_digest(data: bytes) -> str:
    """Parse the payload of PREPARE_EQUAL; return it as ``ImageDigest.text``."""
    fields = Fields(data)
    kind, digest = fields.take(_IMAGE_DIGEST)
    fields.end()
    if kind not in _DIGEST_KINDS:
        raise RemoteProtocolError(f"an image's digest of the unknown kind {kind}")
    return f"{_DIGEST_KINDS[kind]}:{digest.hex()}"


def parse_opening(data: bytes) -> Opening:
    """Parse the data of a session option."""
    fields = Fields(data)
    purpose, state, session, attempt, size, digests, capabilities, count = fields.take(_OPENING)
    if count > MAX_SUPERSEDED:
        raise RemoteProtocolError(f"{count} superseded sessions (at most {MAX_SUPERSEDED})")
    superseded = tuple(fields.raw(ID_LENGTH) for _ in range(count))
    export, name = fields.string(), fields.text()
    newer: tuple[Any, ...] = (NO_KEY, NO_KEY, NO_KEY, NO_ID, 0)
    if fields.version >= 2:
        newer = fields.take(_OPENING_2)
    fields.end()
    commit_digest, retract_digest, key, instance, properties = newer
    return Opening(
        _purpose(purpose),
        session,
        attempt,
        _state(state),
        size,
        export,
        name,
        superseded,
        digests,
        capabilities,
        commit_digest,
        retract_digest,
        key,
        instance,
        properties,
        min(fields.version, VERSION),
    )


def parse_answer(data: bytes) -> Answer:
    """Parse the data of the reply to a session option."""
    fields = Fields(data)
    state, session, attempt, size, digests, capabilities = fields.take(_ANSWER)
    name, refusal = fields.text(), fields.text()
    journal = fields.blob(MAX_JOURNAL) if capabilities & Capability.JOURNAL else b""
    fields.end()
    return Answer(
        _state(state),
        session,
        attempt,
        size,
        name,
        refusal,
        digests,
        capabilities,
        journal,
        min(fields.version, VERSION),
    )


def parse_outcome(data: bytes) -> Outcome:
    """Parse the payload of the reply to PREPARE or COMMIT."""
    fields = Fields(data)
    state, done = fields.take(_OUTCOME)
    refusal = fields.text()
    fields.end()
    if done > 1 or bool(refusal) == bool(done):
        raise RemoteProtocolError("the result is neither done nor refused")
    return Outcome(_state(state), refusal)


def fit_text(text: str) -> str:
    """Return *text* fit to be sent: printable, and cut to MAX_TEXT bytes."""
    shown = display_text(text.encode("utf-8", "replace"))
    return shown.encode()[:MAX_TEXT].decode(errors="ignore")


def is_private(command: int) -> bool:
    """Return whether the reply to *command* carries a payload of our own."""
    return command in _PRIVATE


def command_name(command: int) -> str:
    """Return the name of a request's type, for people."""
    return name_of(PrivateCommand if is_private(command) else Command, command)


def has_payload(command: int) -> bool:
    """Return whether a request of type *command* carries a payload, within a session."""
    return command in _CARRYING


_PRIVATE = frozenset(int(each) for each in PrivateCommand)
_CARRYING = (PrivateCommand.COMMIT, PrivateCommand.VERIFY, PrivateCommand.PREPARE_EQUAL)


def _purpose(value: int) -> Purpose:
    try:
        return Purpose(value)
    except ValueError:
        raise RemoteProtocolError(f"a session with the unknown purpose {value}") from None


def _state(value: int) -> State:
    try:
        return State(value)
    except ValueError:
        raise RemoteProtocolError(f"a journal in the unknown state {value}") from None

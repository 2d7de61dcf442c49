"""The two keys of each attempt of a session: what only its source can say.

A source draws a secret for each session, and derives two keys of it for each attempt. Its opening
says the digests of both, and the destination keeps those. The source says one of the keys later:

* the *commit key* once its journal says that the attempt is committed, and never before;
* the *retract key* once it has given the attempt up, and won't commit it any more.

It never says both of one attempt. So whoever overhears one of them can do with it only what the
source itself has decided, and whoever knows none can do nothing. See docs/handover-protocol.rst.
"""

from __future__ import annotations

import hashlib
import hmac
from enum import Enum
from struct import Struct

from flexmigrate.wire.packing import ID_LENGTH

KEY_LENGTH = 32
"""Bytes of a key, of its digest, and of the secret that a source derives its keys of."""

NO_KEY = bytes(KEY_LENGTH)
"""Stands where there is no key, or no digest of one."""

_BOUND = Struct(f">{ID_LENGTH}sI")


class KeyKind(Enum):
    """What a key is for; the value is part of what is hashed."""

    COMMIT = b"flexmigrate commit"
    RETRACT = b"flexmigrate retract"


def derive_key(secret: bytes, kind: KeyKind, session: bytes, attempt: int) -> bytes:
    """Return the key of a session's attempt; how a source makes its keys is its own affair.

    :param secret: the session's, KEY_LENGTH bytes that were drawn at random.
    """
    return hmac.digest(secret, kind.value + _BOUND.pack(session, attempt), "sha256")


def key_digest(key: bytes, kind: KeyKind, session: bytes, attempt: int) -> bytes:
    """Return the digest by which *key* can be recognised: of no use for another attempt."""
    return hashlib.sha256(kind.value + _BOUND.pack(session, attempt) + key).digest()


def is_key(key: bytes, digest: bytes, kind: KeyKind, session: bytes, attempt: int) -> bool:
    """Return whether *key* is the one that has the *digest*; False where either is missing."""
    if len(key) != KEY_LENGTH or digest == NO_KEY or not 0 <= attempt < 1 << 32:
        return False
    return hmac.compare_digest(key_digest(key, kind, session, attempt), digest)

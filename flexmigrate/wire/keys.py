"""The two keys of each attempt of a session, with which a source proves what it has decided.

A source draws a secret for each session, and derives two keys from it for each attempt. It opens
the session with the digests of both, which the destination keeps. Later the source sends one of the
keys:

* the *commit key* once its journal says that the attempt is committed, and never before;
* the *retract key* once it has given the attempt up and won't commit it any more.

It never sends both keys of one attempt. So somebody who overhears one of them can do with it only
what the source itself has decided, and without a key nothing. See docs/handover-protocol.rst.
"""

from __future__ import annotations

import hashlib
import hmac
from enum import Enum
from struct import Struct

from flexmigrate.wire.packing import ID_LENGTH

KEY_LENGTH = 32
"""Bytes of a key, of its digest, and of the secret from which a source derives its keys."""

NO_KEY = bytes(KEY_LENGTH)
"""Used in place of a key, or of a key's digest, where there is none."""

_BOUND = Struct(f">{ID_LENGTH}sI")


class KeyKind(Enum):
    """The purpose of a key. The value is part of the hashed data."""

    COMMIT = b"flexmigrate commit"
    RETRACT = b"flexmigrate retract"


def derive_key(secret: bytes, kind: KeyKind, session: bytes, attempt: int) -> bytes:
    """Return the key for an attempt of a session. No peer needs to derive it.

    :param secret: the session's secret, KEY_LENGTH random bytes.
    """
    return hmac.digest(secret, kind.value + _BOUND.pack(session, attempt), "sha256")


def key_digest(key: bytes, kind: KeyKind, session: bytes, attempt: int) -> bytes:
    """Return the digest by which *key* is recognised. It is valid for this attempt only."""
    return hashlib.sha256(kind.value + _BOUND.pack(session, attempt) + key).digest()


def is_key(key: bytes, digest: bytes, kind: KeyKind, session: bytes, attempt: int) -> bool:
    """Return whether *key* is the key with this *digest*; False if either is missing."""
    if len(key) != KEY_LENGTH or digest == NO_KEY or not 0 <= attempt < 1 << 32:
        return False
    return hmac.compare_digest(key_digest(key, kind, session, attempt), digest)

"""The destination's side of a comparison: it checks the source's claims against its own image."""

from __future__ import annotations

from collections.abc import Sequence

from flexmigrate.image.storage import BlockingReads
from flexmigrate.migration.comparison.digests import (
    ImageDigest,
    chunk_size,
    digest_of,
    reads_as_zeroes,
)
from flexmigrate.migration.comparison.verifier import MOST_BYTES, MOST_ZEROES, _digest_in
from flexmigrate.wire.handover import Claim


def fault_in(claims: Sequence[Claim], size: int) -> str | None:
    """Return why *claims* about an image of *size* bytes aren't looked at, or None."""
    chunk, total = chunk_size(size), 0
    for each in claims:
        most = MOST_ZEROES if each.is_zeroes else chunk
        if not 0 < each.length <= max(most, chunk) or each.offset + each.length > size:
            return f"a claim about {each.length} bytes at {each.offset} of {size}"
        if not each.is_zeroes and each.offset // chunk != (each.offset + each.length - 1) // chunk:
            return f"a claim about parts of two chunks, {each.length} bytes at {each.offset}"
        total += each.length
    if total > MOST_BYTES:
        return f"claims about {total} bytes (at most {MOST_BYTES})"
    return None


def judge(image: BlockingReads, claims: Sequence[Claim]) -> list[bool]:
    """Return which of *claims*, which are without fault, are true; waits for the disk.

    :raises OSError: something can't be read.
    """
    return [
        reads_as_zeroes(image, each.offset, each.length)
        if each.is_zeroes
        else digest_of(image, each.offset, each.length) == each.digest
        for each in claims
    ]


def tell(digest: ImageDigest, claim: Claim) -> None:
    """Have *digest* take in a claim that was found to be true."""
    digest.add(claim.offset, claim.length, _digest_in(claim))

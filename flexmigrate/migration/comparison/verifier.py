"""Verification that the destination's copy equals the source's: the source sends claims, the
digests of ranges of its image, and the destination answers which of them are true of its own.

At any time, each block of the image is dirty (it will be sent), unverified (it
will be compared), being sent or compared, or was found equal and not sent since. A block becomes
unverified when it is taken to be sent. Its mark is cleared *before* it is read to be compared, and
its verdict counts only if it isn't dirty when that comes: what a client changed meanwhile has
marked it by then, or will before the client is answered, and so it is sent and compared again.

What a pass has sent is compared while it sends what follows, as far as all was answered: the pass
won't come back there, and whatever clients change meanwhile stays dirty until the next.

The same walk compares what an earlier attempt has left at the destination. Nothing that is known
of that attempt is trusted; a block that is equal need not be sent, however it came there.

A destination counts ranges that *it* found to be equal as covered. It compares what it reads, which
is what its clients would read; the flush makes sure that the disk has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.task import deferLater
from twisted.logger import Logger

from flexmigrate.client.splitting import all_of
from flexmigrate.errors import MigrationError, RequestFailed
from flexmigrate.image.storage import BlockingReads, Storage
from flexmigrate.migration.comparison.digests import (
    ImageDigest,
    chunk_size,
    digests_of,
)
from flexmigrate.migration.dirty_map import DirtyMap
from flexmigrate.migration.extent_lookup import ExtentLookup
from flexmigrate.migration.request import VerifyRule
from flexmigrate.migration.source.progress import Progress
from flexmigrate.server.export import Export
from flexmigrate.wire.handover import (
    ZEROES_DIGEST,
    Answer,
    Claim,
    Digest,
    PrivateCommand,
    encode_claims,
    parse_verdicts,
)

BATCH_BYTES = 8 * 1024 * 1024
"""What one request makes claims about: some milliseconds' work for either side."""

BATCH_CLAIMS = 64
"""Likewise, of what clients have written here and there."""

BATCHES = 4
"""Requests under way: one side hashes what the other has hashed before, and neither waits."""

FOLLOW_BATCHES = 16
"""The same of a pass that is followed: they stand in the queue behind what it sends."""

MOST_ZEROES = 64 * 1024 * 1024
"""How long a range may be of which it is said that it reads as zeroes: it need not be a hole at the
destination, which has to read it then."""

MOST_BYTES = 1024 * 1024 * 1024
"""What all claims of a request may be about: no more than a slow disk reads before anybody gets
impatient."""

FOLLOW_HASHERS = 2
"""Of these, so many are hashed at a time: as fast as any link, beside what sending needs."""

CLIENTS_SHARE = 8
"""Clients that are at work have so many times as long as hashing took, before there is more of
that: on either side it needs a core. Parked ones aren't at work."""

MOST_WALKS = 4
"""Walks in a row, over what clients disturbed by writing, before that is left to a later pass."""

MOST_REPAIRS = 3
"""How often in a row something may differ, and be sent again, before the attempt is given up."""


class Asked(Protocol):
    """The connection to a destination with which a session was agreed on."""

    def private(
        self, command: PrivateCommand, offset: int = 0, length: int = 0, payload: bytes = b""
    ) -> Deferred[bytes]:
        """See ``client.NBDClientProtocol``."""


class Verifier:
    """The source's side of a verification, in one attempt.

    :param readable: the storage's blocking interface, whose bytes are hashed.
    :param dirty: the map of blocks to send; blocks that differ are marked in it.
    :param clients_turns: returns the number of turns that clients have had.
    :param everything: whether at first all of the image is unverified, or nothing.
    :param about: the migration, for logs.
    :ivar unverified: the blocks that were sent or never compared, and not found equal since.
    :ivar digest: the digest of the ranges that were found equal.
    :ivar repaired: the number of bytes that were found to differ, and marked dirty.
    """

    def __init__(
        self,
        storage: Storage,
        readable: BlockingReads,
        client: Asked,
        dirty: DirtyMap,
        progress: Progress,
        reactor: Any,
        clients_turns: Callable[[], int],
        *,
        everything: bool,
        about: object = None,
    ) -> None:
        self._reactor = reactor
        self._clients_turns = clients_turns
        self._storage = storage
        self._readable = readable
        self._size = storage.size
        self._client = client
        self._dirty = dirty
        self._progress = progress
        self._log = Logger(source=about)
        self._chunk = chunk_size(self._size)
        self._lookup = ExtentLookup(storage.fast)
        self._at = 0
        self._reached: Callable[[], int] | None = None
        self._is_following = False
        self._waiting: list[Deferred[None]] = []
        self._hashing = DeferredSemaphore(BATCHES)
        self._expects_equal = True
        self._disturbed = 0
        self._differing: list[Claim] = []
        self._repairs = 0
        self.unverified = DirtyMap(self._size, dirty.block_size)
        if everything:
            self.unverified.mark(0, self._size)
        self.digest = ImageDigest(self._size)
        self.repaired = 0

    def sent(self, offset: int, length: int) -> None:
        """A range was taken to be sent."""
        self.unverified.mark(offset, length)

    async def find(self) -> None:
        """Compare the image with what the destination happens to have; what differs is dirty then.

        :raises MigrationError: it can't be compared.
        """
        everything = DirtyMap(self._size, self._dirty.block_size)
        everything.mark(0, self._size)
        kept, self.unverified = self.unverified, everything
        self._expects_equal = False
        try:
            await self._walk()
        finally:
            self._expects_equal = True
            # Equal, dirty, or left since a client wrote there: nobody has to look at it twice.
            left, self.unverified = self.unverified, kept
        if kept.count:
            self.unverified = left

    async def follow(self, reached: Callable[[], int]) -> None:
        """Compare what a pass has sent, while it goes on; ``compare`` tells what came of it.

        :param reached: tells how far that may be done: see ``Copier.reached``. The end is where
            ``end_following`` is called.
        :raises MigrationError: it can't be compared.
        """
        self._reached = reached
        self._is_following = True
        self._hashing = DeferredSemaphore(FOLLOW_HASHERS)
        try:
            await self._walk(FOLLOW_BATCHES)
        finally:
            self._is_following = False
            self._hashing = DeferredSemaphore(BATCHES)

    def advanced(self) -> None:
        """The pass that is followed has come further."""
        if self._waiting and not self._must_wait_for_copier():
            self._go_on()

    def end_following(self) -> None:
        """The pass is over: ``follow`` ends once all was compared."""
        self._wait_no_more()

    def _wait_no_more(self) -> None:
        self._reached = None
        self._go_on()

    def _must_wait_for_copier(self) -> bool:
        """Return whether the copier's pass isn't far enough ahead for a whole batch."""
        return self._reached is not None and self._reached() - self._at < BATCH_BYTES + self._chunk

    def _go_on(self) -> None:
        for _ in range(len(self._waiting)):
            if self._waiting:
                self._waiting.pop(0).callback(None)

    async def compare(self) -> bool:
        """Compare what is unverified, and isn't dirty; what differs is dirty then.

        :return: whether nothing differed, but for what clients have changed meanwhile.
        :raises MigrationError: it can't be compared, or differs however often it is sent.
        """
        for _ in range(MOST_WALKS):
            self._disturbed = 0
            await self._walk()
            if not self._disturbed:
                break
        differing, self._differing = self._differing, []
        if not differing:
            self._repairs = 0
            return True
        self._repairs += 1
        length, first = sum(each.length for each in differing), differing[0].offset
        what = f"{length} bytes differ at the destination, the first of them behind {first}"
        if self._repairs > MOST_REPAIRS:
            raise MigrationError(
                f"{what}, though all was sent {self._repairs} times: its disk or its memory does "
                "not keep what it is given"
            )
        self._log.error("{what}; they are sent again", what=what)
        return False

    async def _walk(self, batches: int = BATCHES) -> None:
        self._at = 0
        self._lookup.forget()
        await all_of([Deferred.fromCoroutine(self._work()) for _ in range(batches)])

    async def _work(self) -> None:
        try:
            while True:
                while self._must_wait_for_copier():
                    further: Deferred[None] = Deferred(self._waiting.remove)
                    self._waiting.append(further)
                    await further
                batch = self._next_batch()
                if batch:
                    await self._compare(batch)
                elif self._reached is None:
                    return
        except BaseException:
            self._at = self._size  # the others need not go on
            self._wait_no_more()
            raise

    # What to compare

    def _next_batch(self) -> list[tuple[int, int, bool]]:
        """Return the next (offset, length, is a hole), whose marks are cleared."""
        batch: list[tuple[int, int, bool]] = []
        data = total = 0
        # Several times as many batches are under way while a pass is followed.
        most = MOST_BYTES * BATCHES // FOLLOW_BATCHES if self._is_following else MOST_BYTES
        while (
            data < BATCH_BYTES
            and total <= most - MOST_ZEROES
            and len(batch) < BATCH_CLAIMS
            and (found := self._next_range()) is not None
        ):
            batch.append(found)
            total += found[1]
            data += 0 if found[2] else found[1]
        return batch

    @property
    def _limit(self) -> int:
        """The offset up to which ranges may be compared, so that no chunk is compared in two
        parts.
        """
        if self._reached is None:
            return self._size
        reached = self._reached()
        return reached - reached % self._chunk

    def _next_range(self) -> tuple[int, int, bool] | None:
        limit = self._limit
        run = self._take(self._at, self._chunk, limit)
        if run is None:
            self._at = max(self._at, limit)
            return None
        offset, length = run
        # Nothing of two chunks: see ImageDigest.
        end = min(offset + length, offset - offset % self._chunk + self._chunk)
        if end < offset + length:
            self.unverified.mark(end, offset + length - end)
        extent = self._lookup.at(offset)
        is_hole = not extent.data and extent.end >= end
        if is_hole:
            end = self._whole_hole(end, min(extent.end, offset + MOST_ZEROES, limit))
        self._at = end
        return offset, end - offset, is_hole

    def _whole_hole(self, end: int, limit: int) -> int:
        """Return how far what is to be compared as zeroes reaches, from *end* to before *limit*."""
        limit -= limit % self._chunk if limit < self._size else 0
        if end < limit and (more := self._take(end, limit - end, limit)) is not None:
            if more[0] == end:
                return end + more[1]
            self.unverified.mark(*more)
        return end

    def _take(self, at: int, most: int, limit: int) -> tuple[int, int] | None:
        """Take the next run of marks that aren't dirty, which begins before *limit*; what is dirty
        will be sent, and marked by that.
        """
        while at < limit and (run := self.unverified.take(most, at)) is not None:
            offset, length = run
            if offset >= limit:
                self.unverified.mark(offset, length)
                break
            dirty = next(self._dirty.runs(offset, length), None)
            if dirty is None:
                return run
            begin, past = dirty[0], dirty[0] + dirty[1]
            if past < offset + length:
                self.unverified.mark(past, offset + length - past)
            if begin > offset:
                return offset, begin - offset
            at = past
        return None

    # Comparing

    async def _compare(self, batch: Sequence[tuple[int, int, bool]]) -> None:
        data = [(offset, length) for offset, length, is_hole in batch if not is_hole]
        digests = iter(await self._digests(data) if data else ())
        claims = [
            Claim(offset, length, ZEROES_DIGEST if is_hole else next(digests))
            for offset, length, is_hole in batch
        ]
        try:
            answer = await self._client.private(
                PrivateCommand.VERIFY, payload=encode_claims(claims)
            )
        except RequestFailed as error:
            first, last = claims[0], claims[-1]
            raise MigrationError(
                f"the destination could not compare what it has between {first.offset} and "
                f"{last.offset + last.length}: {error}"
            ) from error
        for claim, equal in zip(claims, parse_verdicts(answer, len(claims)), strict=True):
            self._judge(claim, equal)

    async def _digests(self, data: list[tuple[int, int]]) -> list[bytes]:
        """Hash, some batches at a time."""
        hashing = self._hashing
        await hashing.acquire()
        try:
            began, turns = self._reactor.seconds(), self._clients_turns()
            digests = await self._storage.run(digests_of, self._readable, data)
            if self._clients_turns() != turns:
                took = self._reactor.seconds() - began
                await deferLater(self._reactor, CLIENTS_SHARE * took)
            return digests
        finally:
            hashing.release()

    def _judge(self, claim: Claim, equal: bool) -> None:
        if equal:
            self.digest.add(claim.offset, claim.length, _digest_in(claim))
            self._progress.compared += claim.length
            return
        disturbed = next(self._dirty.runs(claim.offset, claim.length), None) is not None
        if (disturbed or self._is_following) and self._expects_equal:
            # Only what was written is sent: the rest is compared once more. What differs though
            # nothing was written may be changing in a thread now, so that isn't judged while there
            # is time to ask again.
            self._disturbed += 1
            self.unverified.mark(claim.offset, claim.length)
            return
        before = self._dirty.dirtied
        self._dirty.mark(claim.offset, claim.length)
        self.repaired += self._dirty.dirtied - before
        if self._expects_equal:
            self._differing.append(claim)


def new_verifier(
    rule: VerifyRule,
    answer: Answer | None,
    export: Export,
    client: Asked,
    dirty: DirtyMap,
    progress: Progress,
    reactor: Any,
    about: object = None,
) -> Verifier | None:
    """Return what compares as *rule* says, or None, and say so, where it can't be done.

    :param answer: the destination's, if a session was agreed on.
    """
    if rule is VerifyRule.OFF:
        return None
    log, readable = Logger(source=about), export.storage.blocking
    if answer is None or not answer.digests & Digest.BLAKE3:
        log.warn("the destination can't compare: what arrives there is not verified")
        return None
    if readable is None:
        log.warn("storage that is no file can't be compared: it is not verified")
        return None
    everything = rule is VerifyRule.FULL
    return Verifier(
        export.storage,
        readable,
        client,
        dirty,
        progress,
        reactor,
        lambda: export.turns,
        everything=everything,
        about=about,
    )


# A destination's side


def _digest_in(claim: Claim) -> bytes | None:
    return None if claim.is_zeroes else claim.digest

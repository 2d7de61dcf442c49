"""The record of a verifying writer: which version of each block was written, and which promised.

The record is a journal, a text file of one line per event, each written before what depends on it:
`sent SEQ BLOCK` before the write is sent, `done SEQ BLOCK` once its reply has come. So it is right
even if the writer is killed. A version's bytes follow from the seed, its number and its block, and
need not be kept. Nothing here knows of NBD.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

BLOCK = 4096
SECTOR = 512
ZEROES_EVERY = 8  # one write in so many writes zeroes: a hole is content, too


def content(seed: int, seq: int, block: int) -> bytes:
    """Return the 4096 bytes that write number *seq* puts into *block*."""
    if seq % ZEROES_EVERY == 0:
        return bytes(BLOCK)
    return random.Random(f"{seed} {seq} {block}").randbytes(BLOCK)


class Record:
    """The journal, and what follows from it.

    :ivar acknowledged: for each block, the number of the last write to it that was answered
    :ivar unanswered: for each block, the number of the write to it that was sent and not answered
    """

    def __init__(self, seed: int, original: Path | None = None) -> None:
        """Begin with nothing written.

        :param original: the image as it was before the first write; without it, nothing is known
            of blocks that were not written
        """
        self.seed = seed
        self.original = original
        self.acknowledged: dict[int, int] = {}
        self.unanswered: dict[int, int] = {}

    def sent(self, seq: int, block: int) -> None:
        """A write is about to be sent, for the first time or again."""
        self.unanswered[block] = seq

    def done(self, seq: int, block: int) -> None:
        """The write was answered: from here on, it must be there."""
        if self.unanswered.pop(block, None) != seq:
            raise ValueError(f"write {seq} to block {block} was answered, and not sent")
        self.acknowledged[block] = seq

    def fault(self, block: int, found: bytes) -> str | None:
        """Return what is wrong with the bytes *found* in a block, or None.

        A block whose last write was answered holds that write. One with a write unanswered holds,
        in each of its sectors, either that write or what was there before.
        """
        versions = [self._settled(block)]
        if block in self.unanswered:
            versions.append(content(self.seed, self.unanswered[block], block))
        if found in versions or versions[0] is None:
            return None
        for start in range(0, BLOCK, SECTOR):
            sector = slice(start, start + SECTOR)
            if not any(v is not None and v[sector] == found[sector] for v in versions):
                return f"block {block}, byte {block * BLOCK + start} on: {self._meaning(block)}"
        return None

    def _settled(self, block: int) -> bytes | None:
        if block in self.acknowledged:
            return content(self.seed, self.acknowledged[block], block)
        if self.original is None:
            return None
        with self.original.open("rb") as image:
            image.seek(block * BLOCK)
            return image.read(BLOCK)

    def _meaning(self, block: int) -> str:
        if block not in self.acknowledged and block not in self.unanswered:
            return "it was never written, and is not as it was"
        return (
            f"not its last acknowledged write ({self.acknowledged.get(block, 'none')})"
            f" nor the unanswered one ({self.unanswered.get(block, 'none')})"
        )

    def faults(self, image: Path) -> Iterator[str]:
        """Compare a whole image with this record; yield what is wrong, block by block."""
        with image.open("rb") as file:
            for block in range(image.stat().st_size // BLOCK):
                if found := self.fault(block, file.read(BLOCK)):
                    yield found


class Journal:
    """A record that is also on disk."""

    def __init__(self, path: Path, record: Record) -> None:
        """Start a new journal.

        :raises FileExistsError: if there is one: it is somebody's only record
        """
        self.record = record
        self._file = path.open("x", buffering=1)
        self._file.write(f"seed {record.seed}\n")

    def sent(self, seq: int, block: int) -> None:
        """As `Record.sent`."""
        self._file.write(f"sent {seq} {block}\n")
        self.record.sent(seq, block)

    def done(self, seq: int, block: int) -> None:
        """As `Record.done`."""
        self._file.write(f"done {seq} {block}\n")
        self.record.done(seq, block)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_journal(path: Path, original: Path | None = None) -> Record:
    """Return the record that a journal holds; a last line that is not whole is left out."""
    first, *events = path.read_text().rpartition("\n")[0].split("\n")
    record = Record(int(first.removeprefix("seed ")), original)
    for event in events:
        kind, seq, block = event.split()
        step = {"sent": record.sent, "done": record.done}[kind]
        step(int(seq), int(block))
    return record

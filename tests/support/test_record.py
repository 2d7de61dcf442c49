"""The record finds a lost write, an old one that came back, and a byte that nobody wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.images import random_image
from support.record import BLOCK, SECTOR, ZEROES_EVERY, Journal, Record, content, read_journal

SEED = 5
BLOCKS = 16


@pytest.fixture
def original(tmp_path: Path) -> Path:
    return random_image(tmp_path / "original", BLOCKS * BLOCK)


@pytest.fixture
def record(original: Path) -> Record:
    return Record(SEED, original)


def before(original: Path, block: int) -> bytes:
    return original.read_bytes()[block * BLOCK : (block + 1) * BLOCK]


def test_contents_differ_by_seed_write_and_block_and_some_are_zeroes() -> None:
    assert len({content(1, 1, 1), content(2, 1, 1), content(1, 2, 1), content(1, 1, 2)}) == 4
    assert content(1, ZEROES_EVERY, 1) == bytes(BLOCK)
    assert {len(content(1, seq, 1)) for seq in range(20)} == {BLOCK}


def test_an_acknowledged_write_must_be_there(record: Record, original: Path) -> None:
    record.sent(1, 3)
    record.done(1, 3)
    assert record.fault(3, content(SEED, 1, 3)) is None
    assert "last acknowledged write (1)" in str(record.fault(3, before(original, 3)))


def test_the_write_before_the_last_is_a_fault(record: Record) -> None:
    for seq in (1, 2):
        record.sent(seq, 3)
        record.done(seq, 3)
    assert record.fault(3, content(SEED, 2, 3)) is None
    assert record.fault(3, content(SEED, 1, 3)) is not None


def test_an_unanswered_write_may_be_there_or_not(record: Record, original: Path) -> None:
    record.sent(1, 3)
    assert record.fault(3, content(SEED, 1, 3)) is None
    assert record.fault(3, before(original, 3)) is None
    record.done(1, 3)
    record.sent(2, 3)
    assert record.fault(3, content(SEED, 2, 3)) is None
    assert record.fault(3, content(SEED, 1, 3)) is None
    assert record.fault(3, before(original, 3)) is not None


def test_an_unanswered_write_may_be_torn_between_sectors_and_not_within(
    record: Record, original: Path
) -> None:
    record.sent(1, 3)
    new, old = content(SEED, 1, 3), before(original, 3)
    assert record.fault(3, new[: 3 * SECTOR] + old[3 * SECTOR :]) is None
    assert record.fault(3, new[:700] + old[700:]) is not None


@pytest.mark.parametrize("position", [0, 511, 2048, BLOCK - 1])
def test_one_broken_bit_is_a_fault(record: Record, position: int) -> None:
    record.sent(1, 3)
    record.done(1, 3)
    broken = bytearray(content(SEED, 1, 3))
    broken[position] ^= 1
    assert f"byte {3 * BLOCK + position // SECTOR * SECTOR} on" in str(
        record.fault(3, bytes(broken))
    )


def test_a_block_that_was_never_written_must_be_as_it_was(record: Record, original: Path) -> None:
    assert record.fault(7, before(original, 7)) is None
    assert "never written" in str(record.fault(7, before(original, 8)))


def test_without_the_original_unwritten_blocks_may_be_anything() -> None:
    assert Record(SEED).fault(7, bytes(BLOCK)) is None


def test_an_answer_to_a_write_that_was_not_sent_is_refused(record: Record) -> None:
    record.sent(1, 3)
    with pytest.raises(ValueError, match="write 2 to block 3"):
        record.done(2, 3)


def test_the_journal_tells_the_same_at_any_moment(tmp_path: Path, original: Path) -> None:
    journal = Journal(tmp_path / "journal", Record(SEED, original))
    journal.sent(1, 3)
    journal.sent(2, 4)
    journal.done(2, 4)
    found = read_journal(tmp_path / "journal", original)
    assert (found.seed, found.unanswered, found.acknowledged) == (SEED, {3: 1}, {4: 2})
    journal.close()


def test_a_journal_cut_in_the_middle_of_a_line_is_right_so_far(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", Record(SEED))
    journal.sent(1, 13)
    journal.done(1, 13)
    journal.close()
    whole = (tmp_path / "journal").read_text()
    (tmp_path / "journal").write_text(whole[:-2])  # "done 1 1": a different block
    assert read_journal(tmp_path / "journal").acknowledged == {}


def test_a_journal_is_never_overwritten(tmp_path: Path) -> None:
    Journal(tmp_path / "journal", Record(SEED)).close()
    with pytest.raises(FileExistsError):
        Journal(tmp_path / "journal", Record(SEED))


def test_the_whole_image_is_compared(tmp_path: Path, record: Record, original: Path) -> None:
    image = tmp_path / "image"
    data = bytearray(original.read_bytes())
    record.sent(1, 0)
    record.done(1, 0)
    data[0:BLOCK] = content(SEED, 1, 0)
    image.write_bytes(data)
    assert list(record.faults(image)) == []
    data[-1] ^= 1  # nobody wrote there
    data[100] ^= 1
    image.write_bytes(data)
    assert [fault.partition(",")[0] for fault in record.faults(image)] == ["block 0", "block 15"]

import os

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.image.zeroes import BLOCK, ZEROES, zero_runs

DATA = b"\x01" * BLOCK
LATE = bytes(BLOCK - 1) + b"\x01"  # looks like zeroes until its last byte
EMPTY = bytes(BLOCK)


class ZeroRuns(SynchronousTestCase):
    def test_a_view_of_zeroes_is_one_run_whatever_its_length_and_place(self) -> None:
        for length in (1, 512, BLOCK, 3 * BLOCK + 7, len(ZEROES)):
            for offset in (0, 512, BLOCK, 2**63 + 1):
                self.assertEqual(zero_runs(bytes(length), offset), [(0, length)])

    def test_zeroes_longer_than_the_constant_are_found_too(self) -> None:
        length = len(ZEROES) + 2 * BLOCK
        self.assertEqual(zero_runs(bytes(length), 4 * BLOCK), [(0, length)])

    def test_a_block_that_ends_in_data_is_data(self) -> None:
        self.assertEqual(zero_runs(LATE, 0), [])
        self.assertEqual(zero_runs(LATE + EMPTY, 0), [(BLOCK, 2 * BLOCK)])

    def test_neighbouring_blocks_are_one_run(self) -> None:
        view = EMPTY + DATA + EMPTY + EMPTY + LATE + EMPTY
        runs = [(0, BLOCK), (2 * BLOCK, 4 * BLOCK), (5 * BLOCK, 6 * BLOCK)]
        self.assertEqual(zero_runs(view, 0), runs)

    def test_blocks_are_those_of_the_image_and_not_of_the_view(self) -> None:
        view = DATA[:512] + EMPTY + DATA
        self.assertEqual(zero_runs(view, 0), [])
        self.assertEqual(zero_runs(view, BLOCK - 512), [(512, 512 + BLOCK)])

    def test_a_last_block_that_is_cut_short_is_not_taken(self) -> None:
        self.assertEqual(zero_runs(DATA + EMPTY[:-1], 0), [])

    def test_any_kind_of_buffer_will_do(self) -> None:
        view = DATA + EMPTY
        for kind in (bytes, bytearray, memoryview):
            self.assertEqual(zero_runs(kind(view), 0), [(BLOCK, 2 * BLOCK)])

    @given(
        st.lists(st.sampled_from((DATA, LATE, EMPTY, b"\x00" * 512, b"\x07" * 512)), max_size=12),
        st.integers(0, 2 * BLOCK),
    )
    def test_runs_are_all_the_zero_blocks_and_no_more(
        self, pieces: list[bytes], offset: int
    ) -> None:
        view = b"".join(pieces)
        found = {byte for start, end in zero_runs(view, offset) for byte in range(start, end)}
        if view.count(0) == len(view):
            self.assertEqual(found, set(range(len(view))))
            return
        expected: set[int] = set()
        for start in range(-offset % BLOCK, len(view) - BLOCK + 1, BLOCK):
            if view[start : start + BLOCK] == EMPTY:
                expected.update(range(start, start + BLOCK))
        self.assertEqual(found, expected)

    def test_random_data_has_no_runs(self) -> None:
        self.assertEqual(zero_runs(b"\x01" + os.urandom(64 * BLOCK), 0), [])

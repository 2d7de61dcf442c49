from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.migration.dirty_map import MAX_MAP, MIN_BLOCK, DirtyMap

GIB = 1 << 30
SIZE = 40 * 512 + 100  # the last block is short
RANGES = st.tuples(st.integers(0, SIZE - 1), st.integers(1, SIZE)).map(
    lambda pair: (pair[0], min(pair[1], SIZE - pair[0]))
)


class BlockSizes(SynchronousTestCase):
    def test_blocks_are_as_small_as_the_map_allows(self) -> None:
        for size, block_size in (
            (0, MIN_BLOCK),
            (GIB, MIN_BLOCK),
            (64 * GIB, MIN_BLOCK),
            (64 * GIB + 1, 2 * MIN_BLOCK),
            (1024 * GIB, 65536),
        ):
            blocks = DirtyMap(size)
            self.assertEqual(blocks.block_size, block_size)
            self.assertLessEqual(size, blocks.block_size * MAX_MAP)

    def test_only_powers_of_two_are_taken(self) -> None:
        for wrong in (0, -4096, 3, 4097):
            self.assertRaises(ValueError, DirtyMap, GIB, wrong)


class Marks(SynchronousTestCase):
    def test_an_empty_image_has_no_marks(self) -> None:
        blocks = DirtyMap(0)
        self.assertEqual((blocks.count, blocks.bytes, blocks.take(1)), (0, 0, None))

    def test_a_range_marks_every_block_that_it_touches(self) -> None:
        blocks = DirtyMap(GIB)
        blocks.mark(4095, 2)
        self.assertEqual(list(blocks.runs(0, GIB)), [(0, 8192)])
        self.assertEqual(blocks.count, 2)

    def test_rewriting_counts_once(self) -> None:
        blocks = DirtyMap(GIB)
        for _ in range(3):
            blocks.mark(8192, 4096)
            blocks.mark(4096, 16384)
        self.assertEqual((blocks.count, blocks.bytes), (4, 16384))

    def test_the_last_block_has_the_bytes_that_the_image_has(self) -> None:
        blocks = DirtyMap(10_000)
        blocks.mark(9_999, 1)
        self.assertEqual((blocks.bytes, blocks.take(GIB)), (10_000 - 8192, (8192, 10_000 - 8192)))

    def test_a_range_beyond_the_end_is_refused_and_marks_nothing(self) -> None:
        blocks = DirtyMap(8192)
        self.assertRaises(IndexError, blocks.mark, 8192, 1)
        self.assertRaises(IndexError, blocks.mark, 4096, 8192)
        self.assertEqual((blocks.count, blocks.take(GIB)), (0, None))
        blocks.mark(0, 8192)
        self.assertEqual(blocks.bytes, 8192)

    def test_runs_do_not_reach_beyond_the_end_of_the_image(self) -> None:
        blocks = DirtyMap(10_000)
        blocks.mark(0, 10_000)
        self.assertEqual(list(blocks.runs(5000, GIB)), [(5000, 5000)])

    def test_a_failed_write_is_a_change(self) -> None:
        blocks = DirtyMap(GIB)
        blocks.failed(4096, 1, OSError(28, "full"))
        self.assertEqual(blocks.take(GIB), (4096, 4096))


class Takes(SynchronousTestCase):
    def test_a_run_is_taken_in_pieces_of_the_size_asked_for(self) -> None:
        blocks = DirtyMap(GIB)
        blocks.mark(4096, 3 * 4096)
        self.assertEqual(blocks.take(8192), (4096, 8192))
        self.assertEqual(blocks.take(8192), (12288, 4096))
        self.assertEqual((blocks.take(8192), blocks.count), (None, 0))

    def test_one_block_is_the_least(self) -> None:
        blocks = DirtyMap(GIB)
        blocks.mark(0, 8192)
        self.assertEqual(blocks.take(1), (0, 4096))

    def test_the_search_begins_at_the_start_given_and_does_not_go_round(self) -> None:
        blocks = DirtyMap(GIB)
        blocks.mark(0, 1)
        blocks.mark(81920, 1)
        self.assertEqual(blocks.take(GIB, 4096), (81920, 4096))
        self.assertIs(blocks.take(GIB, 4096), None)
        self.assertEqual(blocks.take(GIB), (0, 4096))

    def test_a_start_inside_a_marked_block_does_not_miss_it(self) -> None:
        blocks = DirtyMap(GIB)
        blocks.mark(4096, 1)
        self.assertEqual(blocks.take(GIB, 4100), (4096, 4096))

    def test_a_block_that_changes_while_it_is_sent_is_taken_again(self) -> None:
        blocks = DirtyMap(GIB)
        blocks.mark(4096, 4096)
        self.assertEqual(blocks.take(GIB), (4096, 4096))
        blocks.mark(4096, 512)
        self.assertEqual(blocks.take(GIB), (4096, 4096))

    def test_no_byte_is_counted_that_the_image_has_not(self) -> None:
        for size in (1, 1000, 5000, 8192):
            blocks = DirtyMap(size)
            for times in (1, 2):
                blocks.mark(0, size)
                self.assertEqual(blocks.dirtied, times * size)
                while blocks.take(4096):
                    pass
                self.assertEqual((blocks.taken, blocks.bytes), (times * size, 0))


class Bridges(SynchronousTestCase):
    def marked(self, *blocks: int) -> DirtyMap:
        dirty = DirtyMap(100 * 4096)
        for block in blocks:
            dirty.mark(block * 4096, 4096)
        return dirty

    def test_runs_with_a_small_gap_between_them_are_taken_as_one(self) -> None:
        dirty = self.marked(3, 5, 8)
        self.assertEqual(dirty.take(1 << 20, 0, 2 * 4096), (3 * 4096, 6 * 4096))
        self.assertEqual((dirty.count, dirty.take(1 << 20)), (0, None))

    def test_a_larger_gap_divides_them(self) -> None:
        dirty = self.marked(3, 5, 9)
        self.assertEqual(dirty.take(1 << 20, 0, 2 * 4096), (3 * 4096, 3 * 4096))
        self.assertEqual(dirty.take(1 << 20, 0, 2 * 4096), (9 * 4096, 4096))

    def test_a_bridge_leads_neither_beyond_the_most_bytes_nor_beyond_the_end(self) -> None:
        dirty = self.marked(0, 2, 4, 99)
        self.assertEqual(dirty.take(4 * 4096, 0, 8 * 4096), (0, 3 * 4096))
        self.assertEqual(dirty.take(4 * 4096, 0, 8 * 4096), (4 * 4096, 4096))
        self.assertEqual(dirty.take(1 << 20, 0, 1 << 20), (99 * 4096, 4096))
        self.assertEqual(dirty.count, 0)

    def test_less_than_a_block_is_no_bridge(self) -> None:
        self.assertEqual(self.marked(3, 5).take(1 << 20, 0, 4095), (3 * 4096, 4096))


class AgainstASetOfBlocks(SynchronousTestCase):
    @given(
        st.lists(
            st.one_of(
                st.tuples(st.just("mark"), RANGES),
                st.tuples(st.just("take"), RANGES),
                st.tuples(st.just("runs"), RANGES),
            ),
            max_size=40,
        )
    )
    def test_any_sequence_gives_what_a_set_gives(
        self, steps: list[tuple[str, tuple[int, int]]]
    ) -> None:
        blocks, model = DirtyMap(SIZE, 512), set[int]()
        for step, (offset, length) in steps:
            first, end = offset // 512, -(-(offset + length) // 512)
            if step == "mark":
                blocks.mark(offset, length)
                model.update(range(first, end))
            elif step == "take":
                self.assertEqual(blocks.take(length, offset), self._take(model, first, length))
            else:
                seen = {byte for at, n in blocks.runs(offset, length) for byte in range(at, at + n)}
                wanted = {byte for byte in range(offset, offset + length) if byte // 512 in model}
                self.assertEqual(seen, wanted)
            self.assertEqual(blocks.count, len(model))
            self.assertEqual(blocks.bytes, sum(min(512, SIZE - b * 512) for b in model))

    @staticmethod
    def _take(model: set[int], first: int, max_bytes: int) -> tuple[int, int] | None:
        run: list[int] = []
        for block in sorted(block for block in model if block >= first):
            if run and (block != run[-1] + 1 or len(run) >= max(max_bytes // 512, 1)):
                break
            run.append(block)
        model.difference_update(run)
        if not run:
            return None
        return run[0] * 512, min((run[-1] + 1) * 512, SIZE) - run[0] * 512

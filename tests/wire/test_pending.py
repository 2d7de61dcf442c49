from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.errors import RemoteProtocolError
from flexmigrate.wire import pending as module
from flexmigrate.wire.constants import Command
from flexmigrate.wire.pending import PendingRequest

OFFSET = 1 << 40


def reading(length: int, *, fill: int = 0xAA, unfragmented: bool = False) -> tuple:
    buffer = bytearray([fill]) * length
    request = PendingRequest(
        Command.READ, OFFSET, length, view=memoryview(buffer), unfragmented=unfragmented
    )
    return request, buffer


def asking_status(
    length: int = 4096, contexts: tuple = (7,), one_extent: bool = False
) -> PendingRequest:
    return PendingRequest(
        Command.BLOCK_STATUS, OFFSET, length, contexts=contexts, one_extent=one_extent
    )


class ContentOfReads(SynchronousTestCase):
    def test_pieces_in_any_order_fill_the_buffer(self) -> None:
        request, buffer = reading(10)
        for start, data in ((6, b"ghij"), (0, b"ab"), (2, b"cdef")):
            request.place(OFFSET + start, len(data))[:] = data
        request.finish()
        self.assertEqual(buffer, b"abcdefghij")
        self.assertIsNone(request.failure)

    def test_holes_are_zeroed_in_a_used_buffer_and_nothing_else_is(self) -> None:
        size = 200_000  # more than one block of zeroes
        request, buffer = reading(size + 2)
        request.place_hole(OFFSET + 1, size)
        self.assertEqual(buffer, b"\xaa" + bytes(size) + b"\xaa")

    def test_what_lies_outside_the_request_is_refused(self) -> None:
        for offset, length in (
            (OFFSET - 1, 1),
            (OFFSET - 1, 12),
            (OFFSET + 10, 1),
            (OFFSET + 9, 2),
            (OFFSET, 11),
            (OFFSET, 0),
            (0, 4),
            (2**64 - 1, 10),
        ):
            request, buffer = reading(10)
            self.assertRaises(RemoteProtocolError, request.place, offset, length)
            self.assertEqual(buffer, b"\xaa" * 10)

    def test_a_byte_that_comes_twice_is_refused(self) -> None:
        for offset, length in ((2, 1), (0, 3), (5, 2), (3, 1), (0, 10), (2, 4)):
            request, _ = reading(10)
            request.place(OFFSET + 2, 4)
            self.assertRaises(RemoteProtocolError, request.place, OFFSET + offset, length)

    def test_a_read_that_ends_too_early_is_refused(self) -> None:
        request, _ = reading(10)
        request.place(OFFSET, 4)
        request.place(OFFSET + 5, 5)
        self.assertRaises(RemoteProtocolError, request.finish)

    def test_a_failed_read_may_end_early(self) -> None:
        request, _ = reading(10)
        request.fail(5)
        request.finish()
        self.assertEqual(request.failure.errno, 5)

    def test_with_df_a_second_piece_is_refused(self) -> None:
        request, _ = reading(10, unfragmented=True)
        request.place(OFFSET, 4)
        self.assertRaises(RemoteProtocolError, request.place, OFFSET + 4, 6)

    def test_data_for_a_command_that_reads_nothing_is_refused(self) -> None:
        for command in set(Command) - {Command.READ}:
            request = PendingRequest(command, OFFSET, 10)
            self.assertRaises(RemoteProtocolError, request.place, OFFSET, 10)

    def test_the_number_of_stretches_out_of_order_is_bounded(self) -> None:
        self.patch(module, "MAX_SPANS", 3)
        request, _ = reading(100)
        for start in (0, 10, 20):
            request.place(OFFSET + start, 1)
        self.assertRaises(RemoteProtocolError, request.place, OFFSET + 30, 1)
        request.place(OFFSET + 1, 9)  # joins two of them
        request.place(OFFSET + 30, 1)

    def test_the_readers_buffer_is_let_go(self) -> None:
        request, buffer = reading(10)
        request.place(OFFSET, 10)
        request.finish()
        buffer.append(1)  # a BufferError if anybody still held a view


@given(st.integers(0, 2**32), st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20))))
def test_spans_accept_each_byte_exactly_once(seed: int, spans: list[tuple[int, int]]) -> None:
    request, _ = reading(80)
    came = [False] * 80
    for start, length in spans:
        fresh = not any(came[start : start + length])
        try:
            request.place(OFFSET + start, length)
        except RemoteProtocolError:
            assert not fresh
        else:
            assert fresh
            came[start : start + length] = [True] * length
    missing = [at for at in range(80) if not came[at]]
    random.Random(seed).shuffle(missing)
    for at in missing:
        request.place(OFFSET + at, 1)
    request.finish()


class BlockStatus(SynchronousTestCase):
    def test_extents_are_kept_by_context(self) -> None:
        request = asking_status(contexts=(7, 9))
        request.open_status(9)
        request.add_extents(9, [(512, 3), (3584, 0)])
        request.open_status(7)
        request.add_extents(7, [(512, 1)])
        request.add_extents(7, [(9000, 0)])
        request.finish()
        self.assertEqual(request.extents, {9: [(512, 3), (3584, 0)], 7: [(512, 1), (9000, 0)]})

    def test_a_context_that_was_not_asked_for_is_refused(self) -> None:
        self.assertRaises(RemoteProtocolError, asking_status().open_status, 8)
        self.assertRaises(RemoteProtocolError, PendingRequest(Command.FLUSH).open_status, 7)

    def test_a_context_that_comes_twice_is_refused(self) -> None:
        request = asking_status()
        request.open_status(7)
        self.assertRaises(RemoteProtocolError, request.open_status, 7)

    def test_a_context_that_is_left_out_is_refused(self) -> None:
        request = asking_status(contexts=(7, 9))
        request.open_status(7)
        request.add_extents(7, [(4096, 0)])
        self.assertRaises(RemoteProtocolError, request.finish)

    def test_an_empty_extent_is_refused(self) -> None:
        request = asking_status()
        request.open_status(7)
        self.assertRaises(RemoteProtocolError, request.add_extents, 7, [(512, 0), (0, 0)])

    def test_an_extent_behind_the_one_that_reaches_the_end_is_refused(self) -> None:
        request = asking_status(4096)
        request.open_status(7)
        request.add_extents(7, [(4096, 0)])
        self.assertRaises(RemoteProtocolError, request.add_extents, 7, [(1, 0)])

    def test_with_req_one_a_second_or_a_longer_extent_is_refused(self) -> None:
        for descriptors in ([(512, 0), (512, 0)], [(4097, 0)]):
            request = asking_status(4096, one_extent=True)
            request.open_status(7)
            self.assertRaises(RemoteProtocolError, request.add_extents, 7, descriptors)

    def test_what_is_kept_of_a_very_fragmented_export_is_bounded(self) -> None:
        self.patch(module, "MAX_EXTENTS_KEPT", 3)
        request = asking_status(4096)
        request.open_status(7)
        request.add_extents(7, [(1, n) for n in range(2)])
        request.add_extents(7, [(1, n) for n in range(2, 5)])
        request.finish()
        self.assertEqual(request.extents[7], [(1, 0), (1, 1), (1, 2)])


class Errors(SynchronousTestCase):
    def test_the_first_error_is_told_with_the_servers_words(self) -> None:
        request = PendingRequest(Command.WRITE, 4096, 512)
        request.fail(28, "no room", at=4100)
        request.fail(5, "later")
        self.assertEqual(request.failure.errno, 28)
        self.assertEqual(
            str(request.failure),
            "WRITE of 512 bytes at 4096 failed at 4100: No space left on device: no room",
        )

    def test_an_unknown_number_counts_as_einval_and_is_told(self) -> None:
        request = PendingRequest(Command.FLUSH)
        request.fail(0xDEAD)
        self.assertEqual(request.failure.errno, 22)
        self.assertIn("57005", str(request.failure))

    def test_error_zero_is_refused(self) -> None:
        self.assertRaises(RemoteProtocolError, PendingRequest(Command.FLUSH).fail, 0)

    def test_an_error_at_an_offset_outside_the_request_is_refused(self) -> None:
        for at in (99, 110, 2**64 - 1):
            request = PendingRequest(Command.TRIM, 100, 10)
            self.assertRaises(RemoteProtocolError, request.fail, 5, "", at)

    def test_a_message_cannot_steer_a_terminal_or_a_log(self) -> None:
        request = PendingRequest(Command.FLUSH)
        request.fail(5, "a\x1b[2J\nb\x00\u2028ü")
        self.assertTrue(str(request.failure).isprintable())
        self.assertIn("ü", str(request.failure))

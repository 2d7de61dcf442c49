"""What makes a request acceptable: every command against flags, ranges and what was agreed on."""

from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.wire.constants import (
    MAX_REQUEST,
    Command,
    CommandFlag,
    ErrorCode,
    TransmissionFlag,
)
from flexmigrate.wire.requests import (
    EXTENDED_REQUEST,
    MAX_EFFECT,
    REQUEST,
    RULES,
    Terms,
    pack_request,
    payload_length,
    refuse,
)

SIZE = 1 << 40
ALL = TransmissionFlag(0xFFFF) & ~TransmissionFlag.READ_ONLY
TERMS = Terms(SIZE, ALL, context_ids=(1,))
EXTENDED = Terms(SIZE, ALL, extended=True, context_ids=(1,))

FUA, PAYLOAD = CommandFlag.FUA, CommandFlag.PAYLOAD_LEN
# By command: the flags that the specification lets it carry ("Command flags", "Request types").
TAKES = {
    Command.READ: FUA | CommandFlag.DF,
    Command.WRITE: FUA,
    Command.FLUSH: FUA,
    Command.TRIM: FUA,
    Command.CACHE: FUA,
    Command.WRITE_ZEROES: FUA | CommandFlag.NO_HOLE | CommandFlag.FAST_ZERO,
    Command.BLOCK_STATUS: FUA | CommandFlag.REQ_ONE,
}
ADVERTISED_BY = {
    Command.FLUSH: TransmissionFlag.SEND_FLUSH,
    Command.TRIM: TransmissionFlag.SEND_TRIM,
    Command.CACHE: TransmissionFlag.SEND_CACHE,
    Command.WRITE_ZEROES: TransmissionFlag.SEND_WRITE_ZEROES,
}
CHANGES = {Command.WRITE, Command.TRIM, Command.WRITE_ZEROES}
RANGED = [command for command in TAKES if command != Command.FLUSH]


def length_of(command):
    """Return a length that suits the command."""
    return 0 if command == Command.FLUSH else 512


def code(command, flags=0, offset=0, length=None, terms=TERMS):
    """Return the error that a request is refused with, or 0."""
    if terms.extended and command == Command.WRITE:
        flags |= PAYLOAD
    refusal = refuse(
        command, flags, offset, length_of(command) if length is None else length, terms
    )
    if refusal is not None:
        assert refusal.text
    return 0 if refusal is None else refusal.code


class FlagTests(SynchronousTestCase):
    def test_every_command_takes_its_flags_and_no_others(self):
        for terms in (TERMS, EXTENDED):
            for command, takes in TAKES.items():
                for bit in (1 << shift for shift in range(16)):
                    if terms.extended and bit == PAYLOAD:
                        continue
                    expected = 0 if bit & int(takes) else ErrorCode.EINVAL
                    self.assertEqual(code(command, bit, terms=terms), expected, (command, bit))

    def test_flags_without_a_name_are_seen_beside_those_that_have_one(self):
        for command, takes in TAKES.items():
            self.assertEqual(code(command, int(takes) | 0x40), ErrorCode.EINVAL)
            self.assertEqual(code(command, int(takes) | 0x8000), ErrorCode.EINVAL)
            self.assertEqual(code(command, 0xFFFF), ErrorCode.EINVAL)

    def test_plain_integers_and_enums_are_judged_alike(self):
        for command, takes in TAKES.items():
            for flags in (takes, takes | CommandFlag(64), CommandFlag(0), PAYLOAD):
                for terms in (TERMS, EXTENDED):
                    self.assertEqual(
                        code(command, flags, terms=terms),
                        code(int(command), int(flags), terms=terms),
                    )

    def test_a_flag_that_was_not_advertised_is_refused(self):
        for flag, needs, command in (
            (FUA, TransmissionFlag.SEND_FUA, Command.WRITE),
            (FUA, TransmissionFlag.SEND_FUA, Command.READ),
            (CommandFlag.DF, TransmissionFlag.SEND_DF, Command.READ),
            (CommandFlag.FAST_ZERO, TransmissionFlag.SEND_FAST_ZERO, Command.WRITE_ZEROES),
        ):
            self.assertEqual(code(command, flag, terms=Terms(SIZE, needs | ALL)), 0)
            without = Terms(SIZE, ALL & ~needs)
            self.assertEqual(code(command, flag, terms=without), ErrorCode.EINVAL)
            self.assertEqual(code(command, 0, terms=without), 0)

    def test_no_hole_needs_nothing_but_the_command(self):
        terms = Terms(SIZE, TransmissionFlag.SEND_WRITE_ZEROES)
        self.assertEqual(code(Command.WRITE_ZEROES, CommandFlag.NO_HOLE, terms=terms), 0)


class PayloadTests(SynchronousTestCase):
    def test_a_compact_request_has_a_payload_if_it_is_a_write(self):
        for command in range(12):
            expected = 4096 if command == Command.WRITE else 0
            self.assertEqual(payload_length(False, 0, command, 4096), expected)
            self.assertEqual(payload_length(False, 0xFFFF, command, 4096), expected)

    def test_an_extended_request_has_a_payload_if_it_says_so(self):
        for command in range(12):
            self.assertEqual(payload_length(True, 0, command, 2**64 - 1), 0)
            self.assertEqual(payload_length(True, PAYLOAD, command, 2**64 - 1), 2**64 - 1)
            self.assertEqual(payload_length(True, 0xFFFF, command, 7), 7)

    def test_a_compact_request_never_says_that_it_has_one(self):
        for command in TAKES:
            self.assertEqual(code(command, PAYLOAD), ErrorCode.EINVAL)

    def test_an_extended_write_has_to_say_it(self):
        refusal = refuse(Command.WRITE, 0, 0, 512, EXTENDED)
        self.assertEqual(refusal.code, ErrorCode.EINVAL)
        self.assertIsNone(refuse(Command.WRITE, int(PAYLOAD), 0, 512, EXTENDED))
        self.assertIsNone(refuse(Command.WRITE, int(PAYLOAD | FUA), 0, 512, EXTENDED))

    def test_of_the_others_only_block_status_takes_one_where_that_was_advertised(self):
        for command in TAKES:
            expected = 0 if command in (Command.BLOCK_STATUS, Command.WRITE) else ErrorCode.EINVAL
            self.assertEqual(code(command, PAYLOAD, terms=EXTENDED), expected)
        flags = ALL & ~TransmissionFlag.BLOCK_STATUS_PAYLOAD
        terms = Terms(SIZE, flags, extended=True, context_ids=(1,))
        self.assertEqual(code(Command.BLOCK_STATUS, PAYLOAD, terms=terms), ErrorCode.EINVAL)


class CommandTests(SynchronousTestCase):
    def test_there_is_a_rule_for_each_command_but_those_that_have_no_answer(self):
        self.assertEqual(set(RULES), set(TAKES))

    def test_unknown_commands_are_invalid(self):
        for command in (Command.RESIZE, Command.DISC, 9, 77, 0xFFFF):
            for terms in (TERMS, EXTENDED):
                self.assertEqual(code(command, 0, 0, 512, terms), ErrorCode.EINVAL)

    def test_what_was_not_advertised_is_invalid(self):
        for command, needs in ADVERTISED_BY.items():
            self.assertEqual(code(command, terms=Terms(SIZE, ALL & ~needs)), ErrorCode.EINVAL)
            self.assertEqual(code(command, terms=Terms(SIZE, needs)), 0)

    def test_reads_and_writes_need_no_flag(self):
        for command in (Command.READ, Command.WRITE):
            self.assertEqual(code(command, terms=Terms(SIZE, TransmissionFlag(0))), 0)

    def test_nothing_changes_a_read_only_export(self):
        for flags in (ALL, ALL & ~TransmissionFlag.SEND_TRIM & ~TransmissionFlag.SEND_WRITE_ZEROES):
            terms = Terms(SIZE, flags | TransmissionFlag.READ_ONLY, context_ids=(1,))
            for command in TAKES:
                expected = ErrorCode.EPERM if command in CHANGES else 0
                self.assertEqual(code(command, terms=terms), expected)

    def test_block_status_needs_a_context(self):
        terms = Terms(SIZE, ALL)
        self.assertEqual(code(Command.BLOCK_STATUS, terms=terms), ErrorCode.EINVAL)

    def test_a_flush_has_neither_offset_nor_length(self):
        self.assertEqual(code(Command.FLUSH, 0, 0, 0), 0)
        self.assertEqual(code(Command.FLUSH, 0, 1, 0), ErrorCode.EINVAL)
        self.assertEqual(code(Command.FLUSH, 0, 0, 1), ErrorCode.EINVAL)


class RangeTests(SynchronousTestCase):
    def beyond(self, command):
        """Return the error for a range that isn't within the export ("Error values")."""
        full = (Command.WRITE, Command.WRITE_ZEROES)
        return ErrorCode.ENOSPC if command in full else ErrorCode.EINVAL

    def test_a_range_ends_where_the_export_does(self):
        for command in RANGED:
            for offset, length in ((0, 1), (SIZE - 1, 1), (SIZE - 4096, 4096)):
                self.assertEqual(code(command, 0, offset, length), 0)
            for offset, length in ((SIZE, 1), (SIZE - 1, 2), (SIZE - 4096, 4097)):
                self.assertEqual(code(command, 0, offset, length), self.beyond(command))

    def test_no_offset_wraps(self):
        for terms in (TERMS, EXTENDED):
            for command in RANGED:
                for offset in (2**63 - 1, 2**63, 2**64 - 4096, 2**64 - 1):
                    for length in (1, 4096, 2**32 - 1):
                        self.assertNotEqual(code(command, 0, offset, length, terms), 0)

    def test_no_length_wraps(self):
        for command in RANGED:
            for length in (2**63 - 1, 2**63, 2**64 - 4096, 2**64 - 1):
                for offset in (0, 1, 4096, 2**64 - 1):
                    self.assertNotEqual(code(command, 0, offset, length, EXTENDED), 0)

    def test_an_empty_export_has_no_byte(self):
        terms = Terms(0, ALL, context_ids=(1,))
        for command in RANGED:
            self.assertEqual(code(command, 0, 0, 1, terms), self.beyond(command))

    def test_reads_and_writes_have_a_longest_length(self):
        for command in (Command.READ, Command.WRITE):
            self.assertEqual(code(command, 0, 0, MAX_REQUEST), 0)
            self.assertEqual(code(command, 0, 0, MAX_REQUEST + 1), ErrorCode.EINVAL)

    def test_what_has_no_payload_may_be_longer_up_to_the_compact_layout_s_limit(self):
        for command in (Command.TRIM, Command.WRITE_ZEROES, Command.CACHE, Command.BLOCK_STATUS):
            self.assertEqual(code(command, 0, 0, MAX_EFFECT, EXTENDED), 0)
            self.assertEqual(code(command, 0, 0, MAX_EFFECT + 1, EXTENDED), ErrorCode.EINVAL)

    def test_no_bytes_are_within_the_export_up_to_its_end(self):
        for command in (Command.READ, Command.WRITE, Command.TRIM, Command.WRITE_ZEROES):
            self.assertEqual(code(command, 0, SIZE, 0), 0)
            self.assertEqual(code(command, 0, SIZE + 1, 0), self.beyond(command))

    def test_the_status_of_no_bytes_can_not_be_told(self):
        self.assertEqual(code(Command.BLOCK_STATUS, 0, 0, 0), ErrorCode.EINVAL)


class LayoutTests(SynchronousTestCase):
    """The bytes, by the specification's tables ("Request message")."""

    def test_compact(self):
        self.assertEqual(REQUEST.size, 28)
        self.assertEqual(
            pack_request(False, FUA, Command.WRITE, 0x0102030405060708, 0x10, 0x20),
            bytes.fromhex("25609513 0001 0001 0102030405060708 0000000000000010 00000020"),
        )

    def test_extended(self):
        self.assertEqual(EXTENDED_REQUEST.size, 32)
        self.assertEqual(
            pack_request(True, PAYLOAD, Command.WRITE, 0x0102030405060708, 0x10, 0x20),
            bytes.fromhex("21e41c71 0020 0001 0102030405060708 0000000000000010 0000000000000020"),
        )

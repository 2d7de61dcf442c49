import errno
from enum import IntEnum, IntFlag

from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.wire import constants
from flexmigrate.wire.constants import (
    Chunk,
    Command,
    CommandFlag,
    ErrorCode,
    Info,
    Option,
    OptionReply,
    TransmissionFlag,
    name_of,
)


class Names(SynchronousTestCase):
    def test_a_known_number_has_the_name_of_the_specification(self) -> None:
        self.assertEqual(name_of(Command, 0), "READ")
        self.assertEqual(name_of(Option, 7), "GO")
        self.assertEqual(name_of(OptionReply, 2**31 + 6), "ERR_UNKNOWN")
        self.assertEqual(name_of(Chunk, 2**15 + 2), "ERROR_OFFSET")

    def test_an_unknown_number_is_told_with_what_it_was_meant_to_be(self) -> None:
        self.assertEqual(name_of(Command, 77), "Command 77 (unknown)")
        self.assertEqual(name_of(Info, -1), "Info -1 (unknown)")

    def test_flags_are_joined_and_unknown_bits_come_last(self) -> None:
        self.assertEqual(name_of(CommandFlag, 0b101), "FUA|DF")
        self.assertEqual(name_of(CommandFlag, 0x8001), "FUA|0x8000 (unknown)")
        self.assertEqual(name_of(TransmissionFlag, 1 << 15), "0x8000 (unknown)")

    def test_no_flag_is_none(self) -> None:
        self.assertEqual(name_of(CommandFlag, 0), "none")


class Numbers(SynchronousTestCase):
    def test_the_magic_numbers_that_are_text_read_as_such(self) -> None:
        self.assertEqual(constants.INIT_MAGIC.to_bytes(8, "big"), b"NBDMAGIC")
        self.assertEqual(constants.OPTION_MAGIC.to_bytes(8, "big"), b"IHAVEOPT")

    def test_no_two_magic_numbers_of_one_width_can_be_confused(self) -> None:
        magics = [value for name, value in vars(constants).items() if name.endswith("_MAGIC")]
        self.assertEqual(len(magics), len(set(magics)))

    def test_error_numbers_are_those_of_linux(self) -> None:
        for code in ErrorCode:
            self.assertEqual(code, getattr(errno, code.name))

    def test_every_number_fits_its_field(self) -> None:
        widths: dict[type[IntEnum | IntFlag], int] = {
            constants.HandshakeFlag: 16,
            constants.ClientFlag: 32,
            TransmissionFlag: 16,
            Option: 32,
            OptionReply: 32,
            Info: 16,
            Command: 16,
            CommandFlag: 16,
            Chunk: 16,
            constants.ChunkFlag: 16,
            ErrorCode: 32,
            constants.AllocationFlag: 32,
        }
        for enum, bits in widths.items():
            for member in enum:
                self.assertLess(member.value, 1 << bits, member)

    def test_flags_are_single_bits(self) -> None:
        for enum in (TransmissionFlag, CommandFlag, constants.AllocationFlag):
            for number, flag in enumerate(enum):
                self.assertEqual(flag.value, 1 << number, flag)

    def test_error_replies_are_told_by_their_top_bit(self) -> None:
        for kind in OptionReply:
            is_error = bool(kind & constants.OPTION_ERROR_BIT)
            self.assertEqual(is_error, kind.name.startswith("ERR_"), kind)
        for chunk in Chunk:
            is_error = bool(chunk & constants.CHUNK_ERROR_BIT)
            self.assertEqual(is_error, chunk.name.startswith("ERROR"), chunk)


class Limits(SynchronousTestCase):
    def test_the_longest_regular_options_and_replies_fit(self) -> None:
        name = 4 + constants.MAX_STRING
        self.assertGreaterEqual(constants.MAX_OPTION_LENGTH, name + 4 + name)
        self.assertGreaterEqual(constants.MAX_OPTION_LENGTH, name + 2 + 2 * 2000)
        self.assertGreaterEqual(constants.MAX_OPTION_REPLY, name + constants.MAX_STRING)

    def test_each_limit_on_one_thing_is_below_the_limit_on_all(self) -> None:
        self.assertLess(constants.MAX_OPTION_LENGTH, constants.MAX_DRAINED_OPTION)
        self.assertLess(constants.MAX_OPTION_REPLY, constants.MAX_OPTION_REPLIES)
        self.assertLess(constants.MAX_OPTION_REPLIES, constants.MAX_ANSWERS)

import struct

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.errors import LocalProtocolError, RemoteProtocolError
from flexmigrate.wire import frames
from flexmigrate.wire.constants import MAX_STRING, Info, Option, OptionReply, ServerRole

strings = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60)


class Layouts(SynchronousTestCase):
    def test_the_newstyle_greeting_is_18_bytes(self) -> None:
        self.assertEqual(frames.newstyle_greeting(3), b"NBDMAGICIHAVEOPT\x00\x03")

    def test_the_oldstyle_greeting_is_152_bytes(self) -> None:
        expected = b"NBDMAGIC" + bytes.fromhex("0000420281861253 0000000100000200 00000005")
        self.assertEqual(frames.oldstyle_greeting(0x100000200, 5), expected + bytes(124))
        self.assertEqual(len(frames.oldstyle_greeting(0, 0)), 152)
        told = frames.oldstyle_greeting(0x100000200, 5, ServerRole.RECEIVING)
        self.assertEqual(told, expected + bytes.fromhex("666d6967 00000002") + bytes(116))

    def test_an_option(self) -> None:
        expected = b"IHAVEOPT" + bytes.fromhex("00000001 00000004") + b"disk"
        self.assertEqual(frames.option(Option.EXPORT_NAME, b"disk"), expected)

    def test_a_reply_to_an_option(self) -> None:
        expected = bytes.fromhex("0003e889045565a9 00000003 80000001 00000002") + b"no"
        self.assertEqual(frames.option_reply(Option.LIST, OptionReply.ERR_UNSUP, b"no"), expected)

    def test_the_data_of_go(self) -> None:
        expected = bytes.fromhex("00000001") + b"d" + bytes.fromhex("0002 0003 0001")
        self.assertEqual(frames.export_request("d", [Info.BLOCK_SIZE, Info.NAME]), expected)

    def test_the_data_of_set_meta_context(self) -> None:
        expected = bytes.fromhex("00000001") + b"d" + bytes.fromhex("00000001 00000003") + b"b:a"
        self.assertEqual(frames.context_request("d", ["b:a"]), expected)

    def test_the_data_of_the_replies(self) -> None:
        self.assertEqual(frames.export_entry("d", "it"), b"\0\0\0\1dit")
        self.assertEqual(frames.context_entry(7, "b:a"), b"\0\0\0\7b:a")
        self.assertEqual(frames.info_text(Info.DESCRIPTION, "it"), b"\0\2it")
        self.assertEqual(frames.INFO_EXPORT.size, 12)
        self.assertEqual(frames.INFO_BLOCK_SIZE.size, 14)

    def test_the_answer_to_export_name_is_10_bytes_or_134(self) -> None:
        self.assertEqual(frames.EXPORT.pack(1, 2), b"\0\0\0\0\0\0\0\1\0\2")
        self.assertEqual(frames.EXPORT_PADDED.pack(1, 2), b"\0\0\0\0\0\0\0\1\0\2" + bytes(124))


class OurStrings(SynchronousTestCase):
    def test_a_string_may_have_4096_bytes_and_no_more(self) -> None:
        self.assertEqual(len(frames.encode_string("ä" * 2048)), MAX_STRING)
        with self.assertRaisesRegex(LocalProtocolError, "4098 bytes"):
            frames.encode_string("ä" * 2049)

    def test_what_cannot_travel_is_our_mistake(self) -> None:
        with self.assertRaisesRegex(LocalProtocolError, "NUL"):
            frames.encode_string("a\0b")
        with self.assertRaisesRegex(LocalProtocolError, "UTF-8"):
            frames.encode_string("\udc80")


class TheirStrings(SynchronousTestCase):
    def test_a_string_may_have_4096_bytes_and_no_more(self) -> None:
        self.assertEqual(frames.decode_string(b"x" * MAX_STRING), "x" * MAX_STRING)
        with self.assertRaisesRegex(RemoteProtocolError, "4097 bytes"):
            frames.decode_string(b"x" * (MAX_STRING + 1))

    def test_what_is_no_string_is_their_mistake(self) -> None:
        with self.assertRaisesRegex(RemoteProtocolError, "NUL"):
            frames.decode_string(b"a\0b")
        for data in (b"\xff", b"\xc3", b"\xed\xb2\x80"):
            with self.assertRaisesRegex(RemoteProtocolError, "UTF-8"):
                frames.decode_string(data)

    @settings(deadline=None)
    @given(st.binary(max_size=80))
    def test_whatever_comes_is_a_string_or_their_mistake(self, data: bytes) -> None:
        try:
            text = frames.decode_string(data)
        except RemoteProtocolError:
            return
        self.assertEqual(text.encode(), data)

    def test_a_message_cannot_control_a_terminal_or_forge_a_line(self) -> None:
        self.assertEqual(frames.display_text(b"no\x1b[2J\nERR \xff"), "no\ufffd[2J\ufffdERR \ufffd")

    @settings(deadline=None)
    @given(st.binary(max_size=80), st.integers(0, 100))
    def test_a_message_is_always_fit_to_be_described_with(self, data: bytes, times: int) -> None:
        text = frames.display_text(data * times)
        self.assertTrue(text.isprintable())
        self.assertLessEqual(len(frames.encode_string(text)), MAX_STRING)


class TakingApart(SynchronousTestCase):
    @settings(deadline=None)
    @given(strings, st.frozensets(st.integers(0, 0xFFFF), max_size=9))
    def test_what_go_asks_for_arrives(self, name: str, infos: frozenset[int]) -> None:
        request = frames.parse_export_request(frames.export_request(name, infos))
        self.assertEqual(request, frames.ExportRequest(name, infos))

    @settings(deadline=None)
    @given(strings, st.lists(strings, max_size=9))
    def test_what_set_meta_context_asks_for_arrives(self, name: str, queries: list[str]) -> None:
        request = frames.parse_context_request(frames.context_request(name, queries))
        self.assertEqual(request, frames.ContextRequest(name, tuple(queries)))

    @settings(deadline=None)
    @given(strings, strings.filter(str.isprintable), st.integers(0, 0xFFFFFFFF))
    def test_what_the_server_tells_arrives(self, name: str, text: str, number: int) -> None:
        entry = frames.parse_export_entry(frames.export_entry(name, text))
        self.assertEqual(entry, (name, text))
        context = frames.parse_context_entry(frames.context_entry(number, name))
        self.assertEqual(context, (number, name))

    def test_an_item_asked_for_twice_is_asked_for_once(self) -> None:
        request = frames.parse_export_request(frames.export_request("d", [3, 3]))
        self.assertEqual(request.infos, {3})

    def test_a_request_cut_short_or_too_long_is_their_mistake(self) -> None:
        export = frames.export_request("disk", [1, 3])
        contexts = frames.context_request("disk", ["base:allocation", "x:"])
        for parse, data in (
            (frames.parse_export_request, export),
            (frames.parse_context_request, contexts),
        ):
            for wrong in [data[:end] for end in range(len(data))] + [data + b"\0"]:
                with self.assertRaises(RemoteProtocolError):
                    parse(wrong)

    def test_lengths_that_reach_outside_are_their_mistake(self) -> None:
        huge = struct.pack(">I", 0xFFFFFFFF)
        for wrong in (huge, huge + b"disk", b"\0\0\0\5disk", b"\0\0\0\0" + huge):
            with self.assertRaises(RemoteProtocolError):
                frames.parse_context_request(wrong)
            with self.assertRaises(RemoteProtocolError):
                frames.parse_export_request(wrong)

    def test_a_fixed_frame_has_its_length(self) -> None:
        self.assertEqual(frames.parse_fixed(frames.U16, b"\0\1"), (1,))
        for wrong in (b"", b"\0", b"\0\1\2"):
            with self.assertRaisesRegex(RemoteProtocolError, f"{len(wrong)} bytes"):
                frames.parse_fixed(frames.U16, wrong)

    def test_nothing_is_nothing(self) -> None:
        frames.parse_nothing(b"")
        with self.assertRaisesRegex(RemoteProtocolError, "1 bytes"):
            frames.parse_nothing(b"x")

    @settings(deadline=None, max_examples=300)
    @given(st.binary(max_size=60))
    def test_garbage_is_their_mistake_or_a_value(self, data: bytes) -> None:
        for parse in (
            frames.parse_export_request,
            frames.parse_context_request,
            frames.parse_export_entry,
            frames.parse_context_entry,
            frames.parse_nothing,
        ):
            try:
                parse(data)
            except RemoteProtocolError as problem:
                self.assertTrue(str(problem))

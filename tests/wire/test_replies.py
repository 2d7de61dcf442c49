"""The three styles of replies: their bytes, and what a strict client makes of them."""

import struct

from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.wire.constants import MAX_STRING, Command, CommandFlag, ErrorCode
from flexmigrate.wire.pending import PendingRequest
from flexmigrate.wire.replies import (
    EXTENDED_REPLIES,
    SIMPLE_REPLIES,
    STRUCTURED_REPLIES,
    reply_style,
)
from flexmigrate.wire.reply_parser import ReplyParser
from flexmigrate.wire.requests import EXTENDED_REQUEST, REQUEST

STYLES = (SIMPLE_REPLIES, STRUCTURED_REPLIES, EXTENDED_REPLIES)
CHUNKED = (STRUCTURED_REPLIES, EXTENDED_REPLIES)
COOKIE = 0x0102030405060708
OFFSET = 0x10000


def parsed(style, reply, awaited):
    """Return *awaited* as a client has it after *reply*, whole and byte by byte."""
    for pieces in ([reply], [bytes([byte]) for byte in reply]):
        parser = ReplyParser(structured=style.fragments, extended=style.extended)
        request = awaited()
        parser.expect(COOKIE, request)
        for piece in pieces:
            parser.receive(piece)
        assert [cookie for cookie, _ in parser.take()] == [COOKIE]
    return request


def parsed_read(style, reply, length, **more):
    """Return the bytes of a read from OFFSET as a client has them."""
    data = bytearray(b"\xee") * length
    view = memoryview(data)
    request = parsed(
        style, reply, lambda: PendingRequest(Command.READ, OFFSET, length, view=view, **more)
    )
    assert request.failure is None
    return bytes(data)


class ReadTests(SynchronousTestCase):
    def test_a_read_in_memory_is_one_reply(self):
        for style in STYLES:
            out = bytearray(b"\xaa" * (5 + style.data_prefix))
            style.pack_read(out, 5, COOKIE, OFFSET, 9)
            self.assertEqual(out[:5], b"\xaa" * 5)
            found = parsed_read(
                style, bytes(out[5:]) + b"nine byte", 9, unfragmented=style.fragments
            )
            self.assertEqual(found, b"nine byte")

    def test_a_read_that_may_fail_has_an_opening_that_is_not_the_last_and_a_closing(self):
        for style in STYLES:
            reply = style.read_opening(COOKIE, OFFSET, OFFSET, 4) + b"four"
            reply += style.read_closing(COOKIE, OFFSET)
            self.assertEqual(parsed_read(style, reply, 4, unfragmented=style.fragments), b"four")

    def test_pieces_and_holes_make_up_one_read(self):
        for style in CHUNKED:
            reply = style.read_opening(COOKIE, OFFSET, OFFSET, 4) + b"four"
            reply += style.hole(COOKIE, OFFSET, OFFSET + 4, 100_000)
            reply += style.read_opening(COOKIE, OFFSET, OFFSET + 100_004, 3) + b"end"
            reply += style.read_closing(COOKIE, OFFSET)
            self.assertEqual(parsed_read(style, reply, 100_007), b"four" + bytes(100_000) + b"end")

    def test_an_error_may_take_the_place_of_what_is_missing(self):
        for style in CHUNKED:
            reply = style.read_opening(COOKIE, OFFSET, OFFSET, 4) + b"four"
            reply += style.error(COOKIE, OFFSET, ErrorCode.EIO, "the rest can't be read")
            view = memoryview(bytearray(100))
            request = parsed(
                style, reply, lambda v=view: PendingRequest(Command.READ, OFFSET, 100, view=v)
            )
            self.assertEqual(request.failure.errno, ErrorCode.EIO)
            self.assertIn("the rest can't be read", str(request.failure))

    def test_simple_replies_know_neither_holes_nor_status(self):
        with self.assertRaises(TypeError):
            SIMPLE_REPLIES.hole(COOKIE, 0, 0, 4096)
        with self.assertRaises(TypeError):
            SIMPLE_REPLIES.status(COOKIE, 0, 1, [(4096, 0)], True)
        self.assertFalse(SIMPLE_REPLIES.fragments)


class OtherReplyTests(SynchronousTestCase):
    def test_success_has_nothing_to_tell(self):
        for style in STYLES:
            request = parsed(
                style, style.ok(COOKIE, OFFSET), lambda: PendingRequest(Command.FLUSH, OFFSET)
            )
            self.assertIsNone(request.failure)

    def test_every_error_arrives_for_every_command(self):
        for style in STYLES:
            for code in ErrorCode:
                for command in (Command.WRITE, Command.FLUSH, Command.TRIM):
                    reply = style.error(COOKIE, OFFSET, code, "because")
                    request = parsed(style, reply, lambda c=command: PendingRequest(c, OFFSET, 1))
                    self.assertEqual(request.failure.errno, code)
                    self.assertEqual("because" in str(request.failure), style.fragments)

    def test_an_error_s_text_is_cut_between_characters(self):
        text = "\N{EURO SIGN}" * MAX_STRING
        for style in CHUNKED:
            reply = style.error(COOKIE, OFFSET, ErrorCode.EIO, text)
            at = reply.index(struct.pack(">I", ErrorCode.EIO) + b"\x0f") + 6
            sent = reply[at:]
            self.assertLessEqual(len(sent), MAX_STRING)
            self.assertTrue(text.startswith(sent.decode("utf-8")))
            request = parsed(style, reply, lambda: PendingRequest(Command.FLUSH, OFFSET))
            self.assertNotIn("\N{REPLACEMENT CHARACTER}", str(request.failure))

    def test_text_that_can_not_be_encoded_does_no_harm(self):
        for style in CHUNKED:
            reply = style.error(COOKIE, OFFSET, ErrorCode.EIO, "name: \udcff")
            request = parsed(style, reply, lambda: PendingRequest(Command.FLUSH, OFFSET))
            self.assertEqual(request.failure.errno, ErrorCode.EIO)

    def test_status_is_one_chunk_for_each_context(self):
        first, second = [(4096, 3), (65536, 0)], [(2**32 - 1, 1)]
        for style in CHUNKED:
            reply = style.status(COOKIE, OFFSET, 7, first, False)
            reply += style.status(COOKIE, OFFSET, 9, second, True)
            request = parsed(
                style,
                reply,
                lambda: PendingRequest(Command.BLOCK_STATUS, OFFSET, 2**32 - 1, contexts=(7, 9)),
            )
            self.assertEqual(request.extents, {7: first, 9: second})


class LayoutTests(SynchronousTestCase):
    """The bytes, by the specification's tables ("Simple reply message" and the next two)."""

    def test_simple(self):
        self.assertEqual(
            SIMPLE_REPLIES.error(COOKIE, OFFSET, 22, "not sent"),
            bytes.fromhex("67446698 00000016 0102030405060708"),
        )

    def test_structured(self):
        self.assertEqual(
            STRUCTURED_REPLIES.hole(COOKIE, 0, OFFSET, 4096),
            bytes.fromhex("668e33ef 0000 0002 0102030405060708 0000000c 0000000000010000 00001000"),
        )
        self.assertEqual(
            STRUCTURED_REPLIES.read_closing(COOKIE, OFFSET),
            bytes.fromhex("668e33ef 0001 0000 0102030405060708 00000000"),
        )
        self.assertEqual(
            STRUCTURED_REPLIES.status(COOKIE, OFFSET, 1, [(4096, 3)], True),
            bytes.fromhex(
                "668e33ef 0001 0005 0102030405060708 0000000c 00000001 00001000 00000003"
            ),
        )

    def test_extended(self):
        self.assertEqual(
            EXTENDED_REPLIES.ok(COOKIE, OFFSET),
            bytes.fromhex("6e8a278c 0001 0000 0102030405060708 0000000000010000 0000000000000000"),
        )
        self.assertEqual(
            EXTENDED_REPLIES.status(COOKIE, OFFSET, 1, [(4096, 3)], True),
            bytes.fromhex(
                "6e8a278c 0001 0006 0102030405060708 0000000000010000 0000000000000018"
                "00000001 00000001 0000000000001000 0000000000000003"
            ),
        )

    def test_each_style_goes_with_its_layout_of_requests(self):
        self.assertIs(reply_style(False, False), SIMPLE_REPLIES)
        self.assertIs(reply_style(True, False), STRUCTURED_REPLIES)
        self.assertIs(reply_style(True, True), EXTENDED_REPLIES)
        self.assertIs(reply_style(False, True), EXTENDED_REPLIES)
        self.assertEqual([style.request for style in STYLES], [REQUEST, REQUEST, EXTENDED_REQUEST])
        self.assertEqual(CommandFlag.PAYLOAD_LEN, 32)

import struct
from dataclasses import replace

from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.errors import LocalProtocolError, RemoteProtocolError
from flexmigrate.wire.agreement import CloseKind, Event, Ready, Send
from flexmigrate.wire.constants import MAX_ANSWERS, MAX_OPTION_LENGTH, MAX_OPTIONS
from flexmigrate.wire.engine import ENOUGH_TOLD, Phase
from flexmigrate.wire.handshake import ServerHandshake
from support.negotiation import (
    SPARE,
    Exports,
    error,
    feed,
    greeted,
    last_close,
    option,
    queries,
    reply,
    sent,
    wanted,
)

ABORT, LIST, PEEK_EXPORT, _, INFO, GO = range(2, 8)
STRUCTURED_REPLY, SET_META_CONTEXT = 8, 10
ACK = 1
UNSUP, POLICY, INVALID, UNKNOWN, TOO_BIG = 1, 2, 3, 6, 9


class PrivateOptions(SynchronousTestCase):
    OURS = 0x666C6578

    def answer(self, *replies: tuple[int, bytes]) -> tuple[ServerHandshake, list[Event]]:
        server = greeted(private_options={self.OURS: lambda data: replies})
        return server, server.receive(option(self.OURS, b"hello"))

    def private(self, server: ServerHandshake) -> object:
        events = server.receive(option(GO, wanted(b"disk")))
        assert isinstance(events[-1], Ready)
        return events[-1].agreement.private

    def test_it_is_answered_and_its_data_is_in_the_agreement(self) -> None:
        server, events = self.answer((99, b"welcome"), (ACK, b""))
        expected = reply(self.OURS, 99, b"welcome") + reply(self.OURS, ACK)
        self.assertEqual(events, [Send(expected)])
        self.assertEqual(self.private(server), ((self.OURS, b"hello"),))

    def test_one_that_is_refused_is_not(self) -> None:
        server, events = self.answer(((1 << 31) + POLICY, b"no"))
        self.assertEqual(events, [Send(reply(self.OURS, (1 << 31) + POLICY, b"no"))])
        self.assertEqual(self.private(server), ())

    def test_nonsense_is_invalid(self) -> None:
        def refuse(data: bytes) -> list[tuple[int, bytes]]:
            raise RemoteProtocolError("nonsense")

        server = greeted(private_options={self.OURS: refuse})
        events = server.receive(option(self.OURS))
        self.assertEqual(events, [Send(reply(self.OURS, (1 << 31) + INVALID, b"nonsense"))])

    def test_the_last_reply_has_to_be_a_final_one(self) -> None:
        for replies in ([], [(99, b"")], [(ACK, b""), (99, b"")]):
            with self.assertRaisesRegex(LocalProtocolError, "no final reply"):
                self.answer(*replies)

    def test_the_numbers_of_the_specification_are_taken(self) -> None:
        for number in range(1, 12):
            with self.assertRaisesRegex(LocalProtocolError, "private option"):
                greeted(private_options={number: lambda data: []})


class HostileClients(SynchronousTestCase):
    def test_an_unknown_option_is_unsupported_and_haggling_goes_on(self) -> None:
        for number in (0, PEEK_EXPORT, 12, 1 << 16, 0xFFFFFFFF):
            server = greeted()
            events = server.receive(option(number, b"GO" * 100))
            self.assertTrue(sent(events).startswith(error(number, UNSUP)), number)
            server.receive(option(GO, wanted(b"disk")))
            self.assertIs(server.phase, Phase.READY)

    def test_every_wrong_bit_of_the_magic_closes(self) -> None:
        for bit in range(64):
            wire = bytearray(option(LIST))
            wire[bit // 8] ^= 1 << bit % 8
            close = last_close(greeted().receive(bytes(wire)))
            self.assertEqual(close.kind, CloseKind.VIOLATION)

    def test_too_much_data_is_read_and_forgotten(self) -> None:
        for number in (ABORT, LIST, INFO, GO, SET_META_CONTEXT):
            server = greeted()
            wire = option(number, bytes(MAX_OPTION_LENGTH + 1))
            events = server.receive(wire[:16])
            self.assertTrue(sent(events).startswith(error(number, TOO_BIG)), number)
            for at in range(16, len(wire), 1000):
                self.assertEqual(server.receive(wire[at : at + 1000]), [])
                self.assertEqual(len(server._buffer), 0)
            server.receive(option(GO, wanted(b"disk")))
            self.assertIs(server.phase, Phase.READY)

    def test_the_most_data_that_is_allowed_is_taken(self) -> None:
        data = queries(b"d" * 4096, b"a:" + b"x" * 4094)
        server = greeted()
        server.receive(option(STRUCTURED_REPLY))
        events = server.receive(option(SET_META_CONTEXT, data))
        self.assertTrue(sent(events).startswith(error(SET_META_CONTEXT, UNKNOWN)))
        server.receive(option(GO, wanted(b"d" * 4096, *range(2000))))
        self.assertIs(server.phase, Phase.HAGGLING)

    def test_a_client_that_does_not_finish_an_option_holds_little(self) -> None:
        server = greeted()
        server.receive(option(GO, bytes(MAX_OPTION_LENGTH))[:-1])
        self.assertLess(len(server._buffer), 9 * 1024)

    def test_absurd_lengths_close(self) -> None:
        for length in ((1 << 20) + 1, 1 << 31, 0xFFFFFFFF):
            for number in (GO, 12):
                wire = b"IHAVEOPT" + struct.pack(">II", number, length)
                close = last_close(greeted().receive(wire))
                self.assertEqual(close.kind, CloseKind.VIOLATION)
                self.assertIn(str(length), close.reason)

    def test_haggling_for_ever_closes(self) -> None:
        server = greeted()
        for _ in range(MAX_OPTIONS):
            self.assertEqual(len(server.receive(option(12))), 1)
        close = last_close(server.receive(option(12)))
        self.assertIn(f"more than {MAX_OPTIONS} options", close.reason)

    def test_short_questions_with_long_answers_close_in_the_end(self) -> None:
        exports = [replace(SPARE, name=str(number) * 50) for number in range(500)]
        server = greeted(directory=Exports(exports))
        events = feed(server, [option(LIST) * MAX_OPTIONS])
        self.assertEqual(last_close(events).kind, CloseKind.VIOLATION)
        self.assertLessEqual(len(sent(events)), MAX_ANSWERS)

    def test_more_than_enough_is_not_answered_at_once(self) -> None:
        exports = [replace(SPARE, name=f"{number:04d}" * 50) for number in range(1000)]
        whole = sent(feed(greeted(directory=Exports(exports)), [option(LIST)]))
        self.assertEqual(whole.count(b"\0\x03\xe8\x89"), 1001)
        server = greeted(directory=Exports(exports))
        told, calls = sent(server.receive(option(LIST) * 3 + option(GO, wanted(b"no")))), 1
        while server.has_more:
            more = server.receive(b"")
            self.assertLess(len(sent(more)), ENOUGH_TOLD + 4096)
            told += sent(more)
            calls += 1
        self.assertEqual(told[: 3 * len(whole)], whole * 3)
        self.assertTrue(told[3 * len(whole) :].startswith(error(GO, UNKNOWN)))
        self.assertGreater(calls, 3 * len(whole) // (ENOUGH_TOLD + 4096))

    def test_exports_that_come_and_go_meanwhile_are_told_as_they_were(self) -> None:
        exports = [replace(SPARE, name=f"{number:04d}" * 50) for number in range(1000)]
        directory = Exports(exports)
        server = greeted(directory=directory)
        told = sent(server.receive(option(LIST)))
        exports.clear()
        while server.has_more:
            told += sent(server.receive(b""))
        self.assertEqual(told.count(b"\0\x03\xe8\x89"), 1001)

    def test_no_answer_repeats_what_the_client_wrote(self) -> None:
        name = b"\x1b[2Jevil"
        server = greeted()
        server.receive(option(STRUCTURED_REPLY))
        for wire in (
            option(GO, wanted(name)),
            option(SET_META_CONTEXT, queries(name)),
            option(SET_META_CONTEXT, queries(b"disk", name)),
            option(77, name),
        ):
            self.assertNotIn(b"evil", sent(server.receive(wire)))

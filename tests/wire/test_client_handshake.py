import struct
from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.errors import LocalProtocolError
from flexmigrate.wire.agreement import (
    DEFAULT_BLOCK_SIZES,
    Agreement,
    Close,
    CloseKind,
    Event,
    ExportInfo,
    Listed,
    Ready,
    Send,
    StartTLS,
    TLSMode,
)
from flexmigrate.wire.client_handshake import ClientHandshake, ClientOptions, ListHandshake
from flexmigrate.wire.client_options import ClientNegotiation
from flexmigrate.wire.constants import (
    MAX_OPTION_REPLIES,
    MAX_OPTION_REPLY,
    MAX_QUERIES,
    ServerRole,
    TransmissionFlag,
)
from support.negotiation import check_feeds, counted, last_close, option, queries, reply, wanted

EXPORT_NAME, ABORT, LIST, _, STARTTLS, INFO, GO = range(1, 8)
STRUCTURED_REPLY, _, SET_META_CONTEXT, EXTENDED_HEADERS = range(8, 12)
ACK, SERVER, REP_INFO, META_CONTEXT = range(1, 5)
ERROR = 1 << 31
UNSUP, POLICY, INVALID, PLATFORM, TLS_REQD, UNKNOWN, SHUTDOWN = range(ERROR + 1, ERROR + 8)

NEWSTYLE = b"NBDMAGICIHAVEOPT\0\3"
OLDSTYLE = b"NBDMAGIC" + struct.pack(">QQI", 0x420281861253, 1 << 20, 0x10005) + bytes(124)
FIXED = b"\0\0\0\3"
PLAIN = ClientOptions("disk", structured=False)
FLAGS = TransmissionFlag.HAS_FLAGS | TransmissionFlag.SEND_FLUSH
EXPORT = reply(GO, REP_INFO, struct.pack(">HQH", 0, 1 << 20, FLAGS))
ASKED_GO = option(GO, wanted(b"disk", 3))
TLS_ON = ClientOptions("disk", structured=False, tls=TLSMode.ON)
TLS_REQUIRED = ClientOptions("disk", structured=False, tls=TLSMode.REQUIRE)


def export(name: str = "disk", **more: Any) -> ExportInfo:
    fields = {"size": 1 << 20, "flags": FLAGS, "contexts": (), **more}
    return ExportInfo(name, **fields)


def asking(wish: ClientOptions = PLAIN, *answers: bytes) -> ClientHandshake:
    client = ClientHandshake(wish)
    for answer in (NEWSTYLE, *answers):
        client.receive(answer)
    return client


class Greetings(SynchronousTestCase):
    def test_newstyle_is_recognised_however_it_is_cut(self) -> None:
        expected: list[Event] = [Send(FIXED), Send(ASKED_GO)]
        check_feeds(lambda: ClientHandshake(PLAIN), NEWSTYLE, expected)

    def test_oldstyle_is_recognised_however_it_is_cut(self) -> None:
        agreement = Agreement(export(""), oldstyle=True)
        check_feeds(ClientHandshake, OLDSTYLE, [Ready(agreement)])

    def test_oldstyle_may_tell_what_the_server_does(self) -> None:
        for said, role in (
            (struct.pack(">II", 0x666D6967, 1), ServerRole.SERVING),
            (struct.pack(">II", 0x666D6967, 2), ServerRole.RECEIVING),
            (struct.pack(">II", 0x666D6967, 3), ServerRole.UNKNOWN),
            (struct.pack(">II", 0x666D6966, 1), ServerRole.UNKNOWN),
            (bytes(8), ServerRole.UNKNOWN),
        ):
            ready = ClientHandshake().receive(OLDSTYLE[:28] + said + bytes(116))[0]
            assert isinstance(ready, Ready)
            self.assertIs(ready.agreement.role, role)

    def test_oldstyle_has_neither_names_nor_tls(self) -> None:
        for wish in (ClientOptions("disk"), ClientOptions(tls=TLSMode.REQUIRE)):
            close = last_close(ClientHandshake(wish).receive(OLDSTYLE))
            self.assertEqual(close.kind, CloseKind.REFUSED)
            self.assertIn("oldstyle", close.reason)
        events = ClientHandshake(ClientOptions(tls=TLSMode.ON)).receive(OLDSTYLE)
        self.assertEqual(events, [Ready(Agreement(export(""), oldstyle=True))])

    def test_anything_else_is_no_nbd_server(self) -> None:
        http = b"HTTP/1.1 400 Bad Request\r\n\r\n"
        for wire in (http, bytes(16), b"NBDMAGIC" + bytes(8), b"NBDMAGICNBDMAGIC"):
            close = last_close(ClientHandshake().receive(wire))
            self.assertEqual(close.kind, CloseKind.VIOLATION)
        self.assertIn("HTTP", last_close(ClientHandshake().receive(http)).reason)

    def test_every_wrong_bit_of_the_hello_closes(self) -> None:
        for bit in range(128):
            for greeting in (NEWSTYLE, OLDSTYLE):
                wire = bytearray(greeting[:16])
                wire[bit // 8] ^= 1 << bit % 8
                close = last_close(ClientHandshake().receive(bytes(wire)))
                self.assertEqual(close.kind, CloseKind.VIOLATION)

    def test_only_flags_that_the_server_offered_are_answered(self) -> None:
        for offered, answered in ((0, 0), (1, 1), (2, 2), (3, 3), (0xFFFF, 3)):
            client = ClientHandshake(PLAIN)
            events = client.receive(NEWSTYLE[:16] + struct.pack(">H", offered))
            self.assertEqual(events[0], Send(struct.pack(">I", answered)))

    def test_a_size_that_no_offset_reaches_closes(self) -> None:
        oldstyle = OLDSTYLE[:16] + b"\x80" + bytes(7) + OLDSTYLE[24:]
        size = struct.pack(">HQH", 0, 1 << 63, FLAGS)
        for client, wire in (
            (ClientHandshake(), oldstyle),
            (asking(), reply(GO, REP_INFO, size)),
            (asking(PLAIN, reply(GO, UNSUP)), b"\x80" + bytes(9)),
        ):
            close = last_close(client.receive(wire))
            self.assertEqual(close.kind, CloseKind.VIOLATION)
            self.assertIn(str(1 << 63), close.reason)


class Wishes(SynchronousTestCase):
    def test_what_cannot_be_asked_for_is_our_mistake(self) -> None:
        wishes: tuple[dict[str, Any], ...] = (
            {"name": "x" * 4097},
            {"name": "a\0"},
            {"contexts": ("x" * 4097,)},
            {"contexts": ("a:b",) * (MAX_QUERIES + 1)},
        )
        for wrong in wishes:
            with self.assertRaises(LocalProtocolError):
                ClientOptions(**wrong)

    def check_order(self, wish: ClientOptions, *asked: bytes) -> None:
        """Check that all of *asked* is asked for, if each but the last is acknowledged."""
        client = ClientHandshake(wish)
        events = client.receive(NEWSTYLE)[1:]
        for wire in asked:
            self.assertEqual(events, [Send(wire)])
            (number,) = struct.unpack_from(">I", wire, 8)
            events = client.receive(reply(number, ACK)) if wire is not asked[-1] else []

    def test_the_best_is_asked_for_first(self) -> None:
        go = option(GO, wanted(b"", 3))
        contexts = option(SET_META_CONTEXT, queries(b"", b"a:b"))
        extended, structured = option(EXTENDED_HEADERS), option(STRUCTURED_REPLY)
        self.check_order(ClientOptions(), extended, go)
        self.check_order(ClientOptions(extended=False), structured, go)
        self.check_order(ClientOptions(contexts=("a:b",)), extended, contexts, go)
        self.check_order(ClientOptions(extended=False, contexts=("a:b",)), structured, contexts, go)

    def test_without_chunks_nothing_that_needs_them_is_asked_for(self) -> None:
        self.check_order(
            ClientOptions(structured=False, contexts=("a:b",)), option(GO, wanted(b"", 3))
        )

    def test_one_goes_on_without_what_there_is_not(self) -> None:
        wish = ClientOptions("disk", contexts=("a:b",))
        for code in (UNSUP, POLICY, INVALID, PLATFORM, TLS_REQD, ERROR + 77):
            client = asking(wish)
            self.assertEqual(
                client.receive(reply(EXTENDED_HEADERS, code)), [Send(option(STRUCTURED_REPLY))]
            )
            self.assertEqual(client.receive(reply(STRUCTURED_REPLY, code)), [Send(ASKED_GO)])
            events = client.receive(EXPORT + reply(GO, ACK))
            self.assertEqual(events, [Ready(Agreement(export()))])


class Contexts(SynchronousTestCase):
    WISH = ClientOptions("disk", contexts=("a:b", "c:d"))

    def entry(self, number: int, name: bytes = b"a:b") -> bytes:
        return reply(SET_META_CONTEXT, META_CONTEXT, struct.pack(">I", number) + name)

    def asked(self) -> ClientHandshake:
        return asking(self.WISH, reply(EXTENDED_HEADERS, ACK))

    def test_those_that_are_granted_are_in_the_agreement(self) -> None:
        wire = self.entry(0xFFFFFFFF) + self.entry(0, b"c:d") + reply(SET_META_CONTEXT, ACK)
        contexts = ((0xFFFFFFFF, "a:b"), (0, "c:d"))
        agreement = Agreement(export(), structured=True, extended=True, contexts=contexts)
        expected: list[Event] = [Send(ASKED_GO), Ready(agreement)]
        check_feeds(self.asked, wire + EXPORT + reply(GO, ACK), expected)

    def test_after_an_error_none_is(self) -> None:
        wire = self.entry(1) + reply(SET_META_CONTEXT, INVALID) + EXPORT + reply(GO, ACK)
        agreement = Agreement(export(), structured=True, extended=True)
        self.assertEqual(self.asked().receive(wire)[-1], Ready(agreement))

    def test_nonsense_closes(self) -> None:
        many = b"".join(map(self.entry, range(MAX_QUERIES + 1)))
        for wire in (
            self.entry(1) + self.entry(1, b"c:d"),
            many,
            self.entry(1, b"\xff"),
            self.entry(1, b"a\0"),
            self.entry(1, b"x" * 4097),
            reply(SET_META_CONTEXT, META_CONTEXT, b"\0\0\0"),
            reply(SET_META_CONTEXT, REP_INFO),
        ):
            close = last_close(self.asked().receive(wire))
            self.assertEqual(close.kind, CloseKind.VIOLATION)


class Go(SynchronousTestCase):
    def test_it_ends_with_an_agreement_however_it_is_cut(self) -> None:
        check_feeds(asking, EXPORT + reply(GO, ACK), [Ready(Agreement(export()))])

    def test_all_details_are_taken_in_any_order_and_unknown_ones_ignored(self) -> None:
        infos = [
            struct.pack(">HIII", 3, 512, 8192, 0xFFFFFFFF),
            b"\0\1canonical",
            b"\0\2it is \xffbig\n",
            struct.pack(">HQH", 0, 1 << 20, FLAGS),
            b"\0\x63whatever",
            b"\0\x62",
        ]
        blocks = (512, 8192, 0xFFFFFFFF)
        text = "it is \ufffdbig\ufffd"
        expected = export("canonical", description=text, block_sizes=blocks)
        for order in (infos, infos[::-1]):
            wire = b"".join(reply(GO, REP_INFO, info) for info in order) + reply(GO, ACK)
            self.assertEqual(asking().receive(wire), [Ready(Agreement(expected))])

    def test_unknown_transmission_flags_are_ignored(self) -> None:
        info = reply(GO, REP_INFO, struct.pack(">HQH", 0, 1 << 20, FLAGS | 0xE000))
        self.assertEqual(asking().receive(info + reply(GO, ACK)), [Ready(Agreement(export()))])

    def test_a_description_made_of_garbage_is_kept_short(self) -> None:
        info = reply(GO, REP_INFO, b"\0\2" + b"\xff" * 4096)
        events = asking().receive(info + EXPORT + reply(GO, ACK))
        assert isinstance(events[-1], Ready)
        self.assertLessEqual(len(events[-1].agreement.export.description.encode()), 4096)

    def test_details_of_the_wrong_length_or_value_close(self) -> None:
        good = {
            0: struct.pack(">HQH", 0, 1 << 20, FLAGS),
            3: struct.pack(">HIII", 3, 1, 4096, 1 << 25),
        }
        wrong = [b"", b"\0", b"\0\1\xff", b"\0\1" + b"x" * 4097]
        wrong += [info[:end] for info in good.values() for end in range(3, len(info))]
        wrong += [info + b"\0" for info in good.values()]
        wrong += [struct.pack(">HIII", 3, 3, 4096, 1 << 25), bytes([0, 3]) + bytes(12)]
        for info in wrong:
            close = last_close(asking().receive(reply(GO, REP_INFO, info)))
            self.assertEqual(close.kind, CloseKind.VIOLATION, info)

    def test_success_without_a_size_closes(self) -> None:
        close = last_close(asking().receive(reply(GO, ACK)))
        self.assertEqual(close.kind, CloseKind.VIOLATION)

    def test_a_refusal_is_told_with_the_servers_words_and_the_server_left(self) -> None:
        for code, name in ((UNKNOWN, "ERR_UNKNOWN"), (TLS_REQD, "ERR_TLS_REQD"), (ERROR + 77, "")):
            wire = EXPORT + reply(GO, code, b"no such\x1bthing")
            reason = f"the server answered {name or 'OptionReply 2147483725 (unknown)'} to GO"
            close = Close(f"{reason}: no such\ufffdthing", CloseKind.REFUSED)
            check_feeds(asking, wire, [Send(option(ABORT)), close])

    def test_a_refusal_without_words_is_told_too(self) -> None:
        close = last_close(asking().receive(reply(GO, UNKNOWN)))
        self.assertTrue(close.reason.endswith("ERR_UNKNOWN to GO"))

    def test_with_extended_headers_there_is_no_way_back_to_export_name(self) -> None:
        client = asking(ClientOptions("disk"), reply(EXTENDED_HEADERS, ACK))
        events = client.receive(reply(GO, UNSUP))
        self.assertEqual(events[0], Send(option(ABORT)))
        self.assertEqual(last_close(events).kind, CloseKind.REFUSED)


class ExportName(SynchronousTestCase):
    NOT_FIXED = NEWSTYLE[:16] + b"\0\2"
    NOTHING = NEWSTYLE[:16] + b"\0\0"
    ANSWER = struct.pack(">QH", 1 << 20, FLAGS)

    def test_it_is_used_where_go_is_not_known(self) -> None:
        wire = reply(GO, UNSUP) + self.ANSWER
        expected: list[Event] = [Send(option(EXPORT_NAME, b"disk")), Ready(Agreement(export()))]
        check_feeds(asking, wire, expected)

    def test_it_is_used_where_nothing_else_is_known(self) -> None:
        for greeting, flags, zeroes in ((self.NOT_FIXED, 2, 0), (self.NOTHING, 0, 124)):
            wire = greeting + self.ANSWER + bytes(zeroes)
            expected: list[Event] = [
                Send(struct.pack(">I", flags)),
                Send(option(EXPORT_NAME, b"disk")),
                Ready(Agreement(export())),
            ]
            wish = ClientOptions("disk", contexts=("a:b",), tls=TLSMode.ON)
            check_feeds(lambda wish=wish: ClientHandshake(wish), wire, expected)

    def test_what_was_agreed_before_holds(self) -> None:
        client = asking(ClientOptions("disk", extended=False), reply(STRUCTURED_REPLY, ACK))
        events = client.receive(reply(GO, UNSUP) + self.ANSWER)
        self.assertEqual(events[-1], Ready(Agreement(export(), structured=True)))

    def test_without_options_there_is_no_tls(self) -> None:
        events = ClientHandshake(TLS_REQUIRED).receive(self.NOT_FIXED)
        self.assertEqual(last_close(events).kind, CloseKind.REFUSED)


class TLS(SynchronousTestCase):
    def test_it_comes_before_all_else_however_it_is_cut(self) -> None:
        for wish in (TLS_ON, TLS_REQUIRED):
            expected: list[Event] = [Send(FIXED), Send(option(STARTTLS)), StartTLS()]
            wire = NEWSTYLE + reply(STARTTLS, ACK)
            check_feeds(lambda wish=wish: ClientHandshake(wish), wire, expected, behind=b"")

    def test_over_it_one_goes_on(self) -> None:
        client = asking(TLS_REQUIRED, reply(STARTTLS, ACK))
        self.assertEqual(client.tls_started(), [Send(ASKED_GO)])
        events = client.receive(EXPORT + reply(GO, ACK))
        self.assertEqual(events, [Ready(Agreement(export(), tls=True))])

    def test_plaintext_behind_it_closes(self) -> None:
        events = asking(TLS_REQUIRED).receive(reply(STARTTLS, ACK) + EXPORT + reply(GO, ACK))
        self.assertEqual(last_close(events).kind, CloseKind.VIOLATION)
        self.assertEqual(len(events), 1)

    def test_refused_it_is_done_without_only_if_that_will_do(self) -> None:
        for code in (UNSUP, POLICY, INVALID, PLATFORM):
            answer = reply(STARTTLS, code, b"no")
            self.assertEqual(asking(TLS_ON).receive(answer), [Send(ASKED_GO)])
            events = asking(TLS_REQUIRED).receive(answer)
            self.assertEqual(events[0], Send(option(ABORT)))
            self.assertEqual(last_close(events).kind, CloseKind.REFUSED)


class Listing(SynchronousTestCase):
    def asked(self, wish: ClientOptions | None = None) -> ListHandshake:
        client = ListHandshake(wish)
        client.receive(NEWSTYLE)
        return client

    def test_the_exports_are_told_and_the_server_is_left(self) -> None:
        wire = reply(LIST, SERVER, counted(b"disk") + b"the first\n")
        wire += reply(LIST, SERVER, counted(b"")) + reply(LIST, ACK)
        expected: list[Event] = [
            Send(option(ABORT)),
            Listed((("disk", "the first\ufffd"), ("", ""))),
            Close("the exports are listed", CloseKind.ENDED),
        ]
        check_feeds(self.asked, wire, expected)

    def test_it_can_be_done_over_tls(self) -> None:
        client = self.asked(TLS_REQUIRED)
        client.receive(reply(STARTTLS, ACK))
        self.assertEqual(client.tls_started(), [Send(option(LIST))])

    def test_a_refusal_is_told(self) -> None:
        close = last_close(self.asked().receive(reply(LIST, POLICY, b"not here")))
        self.assertEqual(close.kind, CloseKind.REFUSED)
        self.assertIn("ERR_POLICY to LIST: not here", close.reason)

    def test_old_servers_cannot_list(self) -> None:
        for greeting in (OLDSTYLE, NEWSTYLE[:16] + b"\0\2"):
            close = last_close(ListHandshake().receive(greeting))
            self.assertEqual(close.kind, CloseKind.REFUSED)

    def test_an_entry_that_does_not_fit_its_frame_closes(self) -> None:
        for entry in (b"", b"\0\0\0", b"\0\0\0\5disk", b"\xff\xff\xff\xff", b"\0\0\0\1\xff"):
            close = last_close(self.asked().receive(reply(LIST, SERVER, entry)))
            self.assertEqual(close.kind, CloseKind.VIOLATION)

    def test_a_list_without_end_closes(self) -> None:
        client = self.asked()
        entry = reply(LIST, SERVER, counted(b"disk"))
        for _ in range(MAX_OPTION_REPLIES // len(entry)):
            self.assertEqual(client.receive(entry), [])
        self.assertEqual(last_close(client.receive(entry)).kind, CloseKind.VIOLATION)


class HostileServers(SynchronousTestCase):
    # Each client with the number of the option that it waits for the answer to.
    WAITING: list[tuple[int, Callable[[], ClientNegotiation]]] = [
        (STARTTLS, lambda: asking(TLS_REQUIRED)),
        (EXTENDED_HEADERS, lambda: asking(ClientOptions())),
        (STRUCTURED_REPLY, lambda: asking(ClientOptions(extended=False))),
        (SET_META_CONTEXT, lambda: asking(Contexts.WISH, reply(EXTENDED_HEADERS, ACK))),
        (GO, asking),
        (LIST, Listing().asked),
    ]

    def check_closes(self, client: ClientNegotiation, wire: bytes) -> None:
        self.assertEqual(last_close(client.receive(wire)).kind, CloseKind.VIOLATION)

    def test_every_wrong_bit_of_magic_and_option_closes(self) -> None:
        for number, new in self.WAITING:
            for bit in range(96):
                wire = bytearray(reply(number, ACK))
                wire[bit // 8] ^= 1 << bit % 8
                self.check_closes(new(), bytes(wire))

    def test_a_reply_of_a_kind_that_does_not_belong_closes(self) -> None:
        belongs = {(GO, REP_INFO), (SET_META_CONTEXT, META_CONTEXT), (LIST, SERVER)}
        for number, new in self.WAITING:
            for kind in (0, SERVER, REP_INFO, META_CONTEXT, 5, ERROR - 1):
                if (number, kind) not in belongs:
                    self.check_closes(new(), reply(number, kind, b"\0\0\0\0"))

    def test_an_acknowledgement_carries_nothing(self) -> None:
        for number, new in self.WAITING:
            self.check_closes(new(), reply(number, ACK, b"x"))

    def test_a_reply_too_long_closes_before_it_is_read(self) -> None:
        for number, new in self.WAITING:
            for kind in (ACK, SERVER, UNSUP):
                for length in (MAX_OPTION_REPLY + 1, 0xFFFFFFFF):
                    head = struct.pack(">QIII", 0x3E889045565A9, number, kind, length)
                    self.check_closes(new(), head)

    def test_replies_without_end_close(self) -> None:
        for number, kind, data in (
            (GO, REP_INFO, b"\0\x63" + bytes(10000)),
            (GO, REP_INFO, b"\0\x63"),
        ):
            client, wire = asking(), reply(number, kind, data)
            for _ in range(MAX_OPTION_REPLIES // len(wire)):
                self.assertEqual(client.receive(wire), [])
            self.check_closes(client, wire)

    def test_a_server_that_shuts_down_is_left_politely(self) -> None:
        for number, new in self.WAITING:
            events = new().receive(reply(number, SHUTDOWN, b"later"))
            self.assertEqual(events[0], Send(option(ABORT)))
            close = last_close(events)
            self.assertEqual(close.kind, CloseKind.REFUSED)
            self.assertIn("ERR_SHUTDOWN", close.reason)
            self.assertIn("later", close.reason)


class Defaults(SynchronousTestCase):
    def test_block_sizes_that_are_not_told_are_those_of_the_specification(self) -> None:
        events = asking().receive(EXPORT + reply(GO, ACK))
        assert isinstance(events[-1], Ready)
        self.assertEqual(events[-1].agreement.export.block_sizes, DEFAULT_BLOCK_SIZES)
        self.assertEqual(DEFAULT_BLOCK_SIZES, (1, 4096, 1 << 25))

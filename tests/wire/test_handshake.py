import struct
from dataclasses import replace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.errors import LocalProtocolError
from flexmigrate.wire.agreement import (
    Agreement,
    Close,
    CloseKind,
    Event,
    Ready,
    Send,
    StartTLS,
    TLSMode,
)
from flexmigrate.wire.constants import MAX_QUERIES, TransmissionFlag
from flexmigrate.wire.engine import Phase
from flexmigrate.wire.handshake import HandshakeStyle, ServerHandshake
from support.negotiation import (
    DIRTY,
    DISK,
    TOLD,
    Exports,
    check_feeds,
    counted,
    error,
    greeted,
    last_close,
    option,
    queries,
    reply,
    sent,
    wanted,
)

EXPORT_NAME, ABORT, LIST, PEEK_EXPORT, STARTTLS, INFO, GO = range(1, 8)
STRUCTURED_REPLY, LIST_META_CONTEXT, SET_META_CONTEXT, EXTENDED_HEADERS = range(8, 12)
ACK, SERVER, REP_INFO, META_CONTEXT = range(1, 5)
UNSUP, POLICY, INVALID, PLATFORM, TLS_REQD, UNKNOWN, SHUTDOWN = range(1, 8)
TOO_BIG, EXT_HEADER_REQD = 9, 10

FIXED = b"\0\0\0\3"
DF = TransmissionFlag.SEND_DF


def encrypted(tls: TLSMode = TLSMode.ON) -> ServerHandshake:
    server = greeted(tls=tls)
    server.receive(option(STARTTLS))
    server.tls_started()
    return server


def told(number: int, size: int, flags: int, *more: bytes, blocks: bytes | None = None) -> bytes:
    """Pack what a server answers to INFO or GO when it agrees."""
    blocks = blocks or struct.pack(">III", 1, 4096, 1 << 25)
    infos = [struct.pack(">HQH", 0, size, flags), *more, b"\0\3" + blocks]
    return b"".join(reply(number, REP_INFO, info) for info in infos) + reply(number, ACK)


class Greetings(SynchronousTestCase):
    def test_newstyle_offers_what_is_fixed_and_no_zeroes(self) -> None:
        server = ServerHandshake(Exports())
        self.assertEqual(server.greeting(), [Send(b"NBDMAGICIHAVEOPT\0\3")])

    def test_oldstyle_says_all_at_once_and_is_ready(self) -> None:
        server = ServerHandshake(Exports(), style=HandshakeStyle.OLDSTYLE, default_export="disk")
        head = b"NBDMAGIC" + struct.pack(">QQI", 0x420281861253, 3 << 30, TOLD)
        agreement = Agreement(replace(DISK, flags=TOLD), oldstyle=True)
        self.assertEqual(server.greeting(), [Send(head + bytes(124)), Ready(agreement)])
        self.assertEqual(server.leftover, b"")

    def test_oldstyle_without_an_export_says_nothing(self) -> None:
        server = ServerHandshake(Exports(()), style=HandshakeStyle.OLDSTYLE)
        self.assertEqual(
            server.greeting(), [Close("there is no default export", CloseKind.REFUSED)]
        )

    def test_oldstyle_cannot_require_tls(self) -> None:
        with self.assertRaisesRegex(LocalProtocolError, "oldstyle"):
            ServerHandshake(Exports(), style=HandshakeStyle.OLDSTYLE, tls=TLSMode.REQUIRE)

    def test_a_client_is_greeted_once_and_first(self) -> None:
        server = ServerHandshake(Exports())
        with self.assertRaisesRegex(LocalProtocolError, Phase.NEW.value):
            server.receive(FIXED)
        server.greeting()
        with self.assertRaisesRegex(LocalProtocolError, Phase.HAGGLING.value):
            server.greeting()


class ClientFlags(SynchronousTestCase):
    def answer(self, flags: int, **kwargs: Any) -> list[Event]:
        server = ServerHandshake(Exports(), **kwargs)
        server.greeting()
        return server.receive(struct.pack(">I", flags) + option(EXPORT_NAME, b"disk"))

    def test_each_pair_of_flags_is_honoured(self) -> None:
        short = struct.pack(">QH", 3 << 30, TOLD)
        for flags, zeroes in ((0, 124), (1, 124), (2, 0), (3, 0)):
            self.assertEqual(sent(self.answer(flags)), short + bytes(zeroes), flags)

    def test_any_other_flag_closes(self) -> None:
        for bit in range(2, 32):
            close = last_close(self.answer(3 | 1 << bit))
            self.assertEqual(close.kind, CloseKind.VIOLATION)
            self.assertIn("unknown", close.reason)

    def test_a_client_that_is_not_fixed_is_not_offered_tls(self) -> None:
        server = greeted(b"\0\0\0\0", tls=TLSMode.ON)
        self.assertTrue(sent(server.receive(option(STARTTLS))).startswith(error(STARTTLS, POLICY)))
        close = last_close(self.answer(2, tls=TLSMode.REQUIRE))
        self.assertEqual(close.kind, CloseKind.REFUSED)


class ExportName(SynchronousTestCase):
    def test_it_enters_transmission_however_it_is_cut(self) -> None:
        data = struct.pack(">QH", 3 << 30, TOLD)
        agreement = Agreement(replace(DISK, flags=TOLD))
        expected = [Send(data), Ready(agreement)]
        check_feeds(greeted, option(EXPORT_NAME, b"disk"), expected)

    def test_no_name_means_the_default_export(self) -> None:
        server = greeted(default_export="spare")
        events = server.receive(option(EXPORT_NAME))
        assert isinstance(events[-1], Ready)
        self.assertEqual(events[-1].agreement.export.name, "spare")

    def test_all_that_was_agreed_before_holds(self) -> None:
        server = greeted()
        server.receive(option(STRUCTURED_REPLY))
        server.receive(option(SET_META_CONTEXT, queries(b"disk", b"base:allocation")))
        events = server.receive(option(EXPORT_NAME, b"disk"))
        agreement = Agreement(
            replace(DISK, flags=TOLD | DF), structured=True, contexts=((1, "base:allocation"),)
        )
        self.assertEqual(events[-1], Ready(agreement))

    def test_what_cannot_be_had_ends_the_session(self) -> None:
        for server, name in (
            (greeted(), b"nosuch"),
            (greeted(), b""),
            (greeted(), b"dis\xff"),
            (greeted(), b"x" * 5000),
            (greeted(), b"x" * 70000),
            (greeted(tls=TLSMode.REQUIRE), b"disk"),
        ):
            events = server.receive(option(EXPORT_NAME, name))
            self.assertEqual(last_close(events).kind, CloseKind.REFUSED)
            self.assertEqual(len(events), 1, "a refused EXPORT_NAME has no reply")

    def test_it_may_not_follow_extended_headers(self) -> None:
        server = greeted()
        server.receive(option(EXTENDED_HEADERS))
        close = last_close(server.receive(option(EXPORT_NAME, b"disk")))
        self.assertEqual(close.kind, CloseKind.VIOLATION)


class InfoAndGo(SynchronousTestCase):
    def test_go_enters_transmission_however_it_is_cut(self) -> None:
        agreement = Agreement(replace(DISK, flags=TOLD))
        expected = [Send(told(GO, 3 << 30, TOLD)), Ready(agreement)]
        check_feeds(greeted, option(GO, wanted(b"disk")), expected)

    def test_info_tells_the_same_and_stays(self) -> None:
        check_feeds(greeted, option(INFO, wanted(b"disk")), [Send(told(INFO, 3 << 30, TOLD))])

    def test_names_and_descriptions_are_told_to_those_who_ask(self) -> None:
        texts = (b"\0\1disk", b"\0\2the first disk")
        server = greeted(default_export="disk")
        events = server.receive(option(INFO, wanted(b"", 2, 1, 3, 0, 77)))
        self.assertEqual(sent(events), told(INFO, 3 << 30, TOLD, *texts))

    def test_an_empty_description_is_left_out(self) -> None:
        blocks = struct.pack(">III", 512, 4096, 1 << 20)
        flags = TOLD | TransmissionFlag.READ_ONLY
        events = greeted().receive(option(INFO, wanted(b"spare", 2)))
        self.assertEqual(sent(events), told(INFO, 512, flags, blocks=blocks))

    def test_an_unknown_export_is_refused_and_haggling_goes_on(self) -> None:
        for number in (INFO, GO):
            server = greeted()
            events = server.receive(option(number, wanted(b"nosuch")))
            self.assertTrue(sent(events).startswith(error(number, UNKNOWN)))
            server.receive(option(GO, wanted(b"disk")))
            self.assertIs(server.phase, Phase.READY)

    def test_every_wrong_length_is_invalid(self) -> None:
        data = wanted(b"disk", 1, 3)
        wrong = [data[:end] for end in range(len(data))]
        wrong += [data + b"\0", b"\xff\xff\xff\xff" + data[4:], data[:8] + b"\xff\xff" + data[10:]]
        for bad in wrong:
            events = greeted().receive(option(GO, bad))
            self.assertTrue(sent(events).startswith(error(GO, INVALID)), bad)
            self.assertEqual(len(events), 1)

    def test_a_name_that_is_no_string_is_invalid(self) -> None:
        for name in (b"\xff", b"a\0", b"x" * 4097):
            events = greeted().receive(option(GO, wanted(name)))
            self.assertTrue(sent(events).startswith(error(GO, INVALID)))

    def test_flags_that_depend_on_options_are_told_only_after_them(self) -> None:
        payload = TransmissionFlag.BLOCK_STATUS_PAYLOAD
        directory = Exports([replace(DISK, flags=DISK.flags | payload | DF)])
        before = {
            (): TOLD,
            (STRUCTURED_REPLY,): TOLD | DF,
            (STRUCTURED_REPLY, SET_META_CONTEXT): TOLD | DF,
            (EXTENDED_HEADERS,): TOLD | DF,
            (EXTENDED_HEADERS, SET_META_CONTEXT): TOLD | DF | payload,
        }
        for options, flags in before.items():
            server = greeted(directory=directory)
            for number in options:
                data = queries(b"disk", b"base:allocation") if number == SET_META_CONTEXT else b""
                server.receive(option(number, data))
            events = server.receive(option(GO, wanted(b"disk")))
            self.assertEqual(sent(events), told(GO, 3 << 30, flags), options)


class Listing(SynchronousTestCase):
    def test_all_exports_are_told(self) -> None:
        entries = reply(LIST, SERVER, counted(b"disk") + b"the first disk")
        entries += reply(LIST, SERVER, counted(b"spare"))
        check_feeds(greeted, option(LIST), [Send(entries + reply(LIST, ACK))])

    def test_no_export_is_an_empty_list(self) -> None:
        events = greeted(directory=Exports(())).receive(option(LIST))
        self.assertEqual(events, [Send(reply(LIST, ACK))])

    def test_it_can_be_switched_off(self) -> None:
        events = greeted(directory=Exports(may_list=False)).receive(option(LIST))
        self.assertTrue(sent(events).startswith(error(LIST, POLICY)))


class Terms(SynchronousTestCase):
    def after(self, *options: int) -> Agreement:
        server = greeted()
        for number in options:
            self.assertEqual(server.receive(option(number)), [Send(reply(number, ACK))])
        events = server.receive(option(GO, wanted(b"disk")))
        assert isinstance(events[-1], Ready)
        return events[-1].agreement

    def test_structured_replies(self) -> None:
        agreement = self.after(STRUCTURED_REPLY)
        self.assertTrue(agreement.structured)
        self.assertFalse(agreement.extended)

    def test_extended_headers_bring_structured_replies(self) -> None:
        for options in ((EXTENDED_HEADERS,), (STRUCTURED_REPLY, EXTENDED_HEADERS)):
            agreement = self.after(*options)
            self.assertTrue(agreement.structured)
            self.assertTrue(agreement.extended)

    def test_to_ask_again_changes_nothing(self) -> None:
        self.assertTrue(self.after(STRUCTURED_REPLY, STRUCTURED_REPLY).structured)
        self.assertTrue(self.after(EXTENDED_HEADERS, EXTENDED_HEADERS).extended)

    def test_there_is_no_way_back_from_extended_headers(self) -> None:
        server = greeted()
        server.receive(option(EXTENDED_HEADERS))
        events = server.receive(option(STRUCTURED_REPLY))
        self.assertTrue(sent(events).startswith(error(STRUCTURED_REPLY, EXT_HEADER_REQD)))

    def test_options_without_data_refuse_data(self) -> None:
        for number in (LIST, STARTTLS, STRUCTURED_REPLY, EXTENDED_HEADERS):
            server = greeted(tls=TLSMode.ON)
            events = server.receive(option(number, b"x"))
            self.assertTrue(sent(events).startswith(error(number, INVALID)), number)
            self.assertIs(server.phase, Phase.HAGGLING)


class MetaContexts(SynchronousTestCase):
    def structured(self, *before: bytes) -> ServerHandshake:
        server = greeted()
        for wire in (option(STRUCTURED_REPLY), *before):
            server.receive(wire)
        return server

    def contexts(self, server: ServerHandshake, name: bytes = b"disk") -> tuple[object, ...]:
        events = server.receive(option(GO, wanted(name)))
        assert isinstance(events[-1], Ready)
        return events[-1].agreement.contexts

    def test_they_are_listed_without_ids(self) -> None:
        wire = option(LIST_META_CONTEXT, queries(b"disk", b"base:"))
        entry = reply(LIST_META_CONTEXT, META_CONTEXT, b"\0\0\0\0base:allocation")
        expected = [Send(entry + reply(LIST_META_CONTEXT, ACK))]
        check_feeds(self.structured, wire, expected)

    def test_to_list_selects_nothing(self) -> None:
        server = self.structured(option(LIST_META_CONTEXT, queries(b"disk", b"base:allocation")))
        self.assertEqual(self.contexts(server), ())

    def test_those_that_are_selected_have_ids(self) -> None:
        wire = option(SET_META_CONTEXT, queries(b"disk", DIRTY.encode(), b"x-y:z"))
        entry = reply(SET_META_CONTEXT, META_CONTEXT, b"\0\0\0\2" + DIRTY.encode())
        expected = [Send(entry + reply(SET_META_CONTEXT, ACK))]
        check_feeds(self.structured, wire, expected)
        self.assertEqual(self.contexts(self.structured(wire)), ((2, DIRTY),))

    def test_they_hold_for_the_export_that_they_were_selected_for(self) -> None:
        wire = option(SET_META_CONTEXT, queries(b"disk", b"base:allocation"))
        self.assertEqual(self.contexts(self.structured(wire), b"spare"), ())

    def test_the_last_selection_counts_even_if_it_fails(self) -> None:
        good = option(SET_META_CONTEXT, queries(b"disk", b"base:allocation"))
        for bad in (
            option(SET_META_CONTEXT, queries(b"disk")),
            option(SET_META_CONTEXT, queries(b"nosuch", b"base:allocation")),
            option(SET_META_CONTEXT, queries(b"disk", b"nocolon")),
            option(SET_META_CONTEXT, queries(b"disk", *[b"a:b"] * (MAX_QUERIES + 1))),
            option(SET_META_CONTEXT, b"x" * 70000),
            option(SET_META_CONTEXT, b""),
        ):
            self.assertEqual(self.contexts(self.structured(good, bad)), ())
            self.assertEqual(self.contexts(self.structured(bad, good)), ((1, "base:allocation"),))

    def test_each_thing_that_can_be_wrong_has_its_error(self) -> None:
        many = queries(b"disk", *[b"a:b"] * (MAX_QUERIES + 1))
        good = queries(b"disk", b"base:allocation")
        for number in (LIST_META_CONTEXT, SET_META_CONTEXT):
            for server, data, code in (
                (greeted(), good, INVALID),
                (self.structured(), many, TOO_BIG),
                (self.structured(), queries(b"nosuch"), UNKNOWN),
                (self.structured(), queries(b"disk", b"nocolon"), INVALID),
                *((self.structured(), good[:end], INVALID) for end in range(len(good))),
                (self.structured(), good + b"\0", INVALID),
            ):
                events = server.receive(option(number, data))
                self.assertTrue(sent(events).startswith(error(number, code)), data)


class TLS(SynchronousTestCase):
    def test_starttls_is_acknowledged_however_it_is_cut(self) -> None:
        for mode in (TLSMode.ON, TLSMode.REQUIRE):
            wire = option(STARTTLS)
            expected = [Send(reply(STARTTLS, ACK)), StartTLS()]
            check_feeds(lambda mode=mode: greeted(tls=mode), wire, expected, behind=b"")

    def test_plaintext_behind_starttls_closes(self) -> None:
        events = greeted(tls=TLSMode.ON).receive(option(STARTTLS) + option(STRUCTURED_REPLY))
        self.assertEqual(events[:-1], [Send(reply(STARTTLS, ACK))])
        self.assertEqual(last_close(events).kind, CloseKind.VIOLATION)

    def test_without_tls_it_is_refused(self) -> None:
        events = greeted().receive(option(STARTTLS))
        self.assertTrue(sent(events).startswith(error(STARTTLS, POLICY)))

    def test_a_second_time_is_invalid(self) -> None:
        for mode in (TLSMode.ON, TLSMode.REQUIRE):
            events = encrypted(mode).receive(option(STARTTLS))
            self.assertTrue(sent(events).startswith(error(STARTTLS, INVALID)))

    def test_all_that_was_agreed_before_is_forgotten(self) -> None:
        server = greeted(tls=TLSMode.ON, private_options={1 << 20: lambda data: [(ACK, b"")]})
        server.receive(option(EXTENDED_HEADERS) + option(1 << 20, b"ours"))
        server.receive(option(SET_META_CONTEXT, queries(b"disk", b"base:allocation")))
        server.receive(option(STARTTLS))
        self.assertEqual(server.tls_started(), [])
        events = server.receive(option(GO, wanted(b"disk")))
        self.assertEqual(events[-1], Ready(Agreement(replace(DISK, flags=TOLD), tls=True)))

    def test_where_it_is_required_nothing_else_is_answered(self) -> None:
        for number in (
            LIST,
            PEEK_EXPORT,
            INFO,
            GO,
            STRUCTURED_REPLY,
            SET_META_CONTEXT,
            12,
            1 << 31,
        ):
            server = greeted(tls=TLSMode.REQUIRE)
            events = server.receive(option(number, b"whatever"))
            self.assertTrue(sent(events).startswith(error(number, TLS_REQD)), number)
            self.assertIs(server.phase, Phase.HAGGLING)

    def test_once_it_is_up_it_is_no_longer_asked_for(self) -> None:
        events = encrypted(TLSMode.REQUIRE).receive(option(GO, wanted(b"disk")))
        assert isinstance(events[-1], Ready)
        self.assertTrue(events[-1].agreement.tls)

    def test_where_it_is_optional_one_can_do_without(self) -> None:
        events = greeted(tls=TLSMode.ON).receive(option(GO, wanted(b"disk")))
        assert isinstance(events[-1], Ready)
        self.assertFalse(events[-1].agreement.tls)


class Endings(SynchronousTestCase):
    def test_abort_is_acknowledged_whatever_comes_with_it(self) -> None:
        for data in (b"", b"bye"):
            for mode in TLSMode:
                events = greeted(tls=mode).receive(option(ABORT, data))
                self.assertEqual(events[0], Send(reply(ABORT, ACK)))
                self.assertEqual(last_close(events).kind, CloseKind.ENDED)

    def test_a_server_that_shuts_down_agrees_to_nothing(self) -> None:
        for number in (LIST, STARTTLS, INFO, GO, STRUCTURED_REPLY, SET_META_CONTEXT, 12):
            server = greeted()
            server.shut_down()
            events = server.receive(option(number))
            self.assertTrue(sent(events).startswith(error(number, SHUTDOWN)))
            self.assertEqual(last_close(server.receive(option(ABORT))).kind, CloseKind.ENDED)
        server = greeted()
        server.shut_down()
        close = last_close(server.receive(option(EXPORT_NAME, b"disk")))
        self.assertEqual(close.kind, CloseKind.REFUSED)

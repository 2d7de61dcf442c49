"""Both roles joined without a transport, and each of them fed with garbage."""

import itertools
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.wire.agreement import Close, CloseKind, Event, Listed, Ready, TLSMode
from flexmigrate.wire.client_handshake import ClientHandshake, ClientOptions, ListHandshake
from flexmigrate.wire.constants import MAX_DRAINED_OPTION, MAX_OPTION_LENGTH, TransmissionFlag
from flexmigrate.wire.engine import Negotiation, Phase
from flexmigrate.wire.handshake import HandshakeStyle, ServerHandshake
from support.negotiation import (
    DIRTY,
    Exports,
    Pair,
    is_event,
    last_close,
    option,
    queries,
    reply,
    wanted,
)

TLS_MODES = list(itertools.product(TLSMode, TLSMode))
IMPOSSIBLE = {(TLSMode.REQUIRE, TLSMode.OFF), (TLSMode.OFF, TLSMode.REQUIRE)}


def pair(wish: ClientOptions, piece: int = 1 << 20, **server: Any) -> Pair:
    machine = ServerHandshake(Exports(), default_export="spare", **server)
    return Pair(ClientHandshake(wish), machine, piece=piece).run()


class Agreeing(SynchronousTestCase):
    def check_same(self, joined: Pair) -> None:
        """Check that both sides believe the same, but for what a client isn't told."""
        client, server = (ready.agreement for ready in joined.agreed())
        told = replace(server.export, description="", contexts=(), name=client.export.name)
        self.assertEqual(client, replace(server, export=told))
        self.assertEqual(joined.client.leftover + joined.server.leftover, b"")

    def test_every_wish_is_understood_by_both_in_the_same_way(self) -> None:
        booleans = (False, True)
        contexts: tuple[tuple[str, ...], ...] = ((), (DIRTY, "base:allocation"), ("x-no:such",))
        for name, structured, extended, names in itertools.product(
            ("", "disk"), booleans, booleans, contexts
        ):
            for client_tls, server_tls in TLS_MODES:
                if (client_tls, server_tls) not in IMPOSSIBLE:
                    wish = ClientOptions(name, structured, extended, names, client_tls)
                    self.check_same(pair(wish, tls=server_tls))

    def test_byte_by_byte_nothing_changes(self) -> None:
        for mode in TLSMode:
            wish = ClientOptions("disk", contexts=(DIRTY,), tls=mode)
            whole, cut = (pair(wish, piece, tls=TLSMode.ON) for piece in (1 << 20, 1))
            self.assertEqual(whole.client_events, cut.client_events)
            self.assertEqual(whole.server_events, cut.server_events)

    def test_all_that_is_wished_for_is_granted(self) -> None:
        wish = ClientOptions("disk", contexts=(DIRTY, "base:allocation"), tls=TLSMode.ON)
        agreement = pair(wish, tls=TLSMode.ON).agreed()[0].agreement
        self.assertTrue(agreement.structured)
        self.assertTrue(agreement.extended)
        self.assertTrue(agreement.tls)
        self.assertEqual(agreement.contexts, ((1, "base:allocation"), (2, DIRTY)))
        self.assertTrue(agreement.export.flags & TransmissionFlag.SEND_DF)

    def test_tls_is_used_where_both_can_and_missed_where_one_insists(self) -> None:
        for client_tls, server_tls in TLS_MODES:
            joined = pair(ClientOptions(tls=client_tls), tls=server_tls)
            if (client_tls, server_tls) in IMPOSSIBLE:
                self.assert_refused(joined)
            else:
                both = TLSMode.OFF not in (client_tls, server_tls)
                self.assertEqual(joined.agreed()[0].agreement.tls, both)

    def test_an_unknown_export_is_a_refusal_and_a_polite_end(self) -> None:
        joined = pair(ClientOptions("nosuch"))
        self.assert_refused(joined)
        self.assertIn("ERR_UNKNOWN", last_close(joined.client_events).reason)

    def test_a_server_that_shuts_down_is_left(self) -> None:
        server = ServerHandshake(Exports())
        server.shut_down()
        self.assert_refused(Pair(ClientHandshake(), server).run())

    def assert_refused(self, joined: Pair) -> None:
        kinds = [
            events[-1].kind if isinstance(events[-1], Close) else None
            for events in (joined.client_events, joined.server_events)
        ]
        self.assertEqual(kinds, [CloseKind.REFUSED, CloseKind.ENDED])

    def test_oldstyle_is_agreed_on_without_a_word_from_the_client(self) -> None:
        style = HandshakeStyle.OLDSTYLE
        server = ServerHandshake(Exports(), default_export="disk", style=style)
        joined = Pair(ClientHandshake(), server).run()
        self.check_same(joined)
        self.assertEqual(len(joined.client_events), 1)

    def test_exports_are_listed(self) -> None:
        for mode in TLSMode:
            server = ServerHandshake(Exports(), tls=mode)
            joined = Pair(ListHandshake(ClientOptions(tls=mode)), server).run()
            listed = Listed((("disk", "the first disk"), ("spare", "")))
            self.assertIn(listed, joined.client_events)
            last = joined.server_events[-1]
            assert isinstance(last, Close)
            self.assertEqual(last.kind, CloseKind.ENDED)


def client_options() -> st.SearchStrategy[bytes]:
    """Options as a client might send them, right and wrong, and garbage."""
    names = st.sampled_from([b"", b"disk", b"spare", b"nosuch", b"\xff"])
    data = st.one_of(
        st.just(b""),
        names,
        st.builds(wanted, names, st.integers(0, 5)),
        st.builds(queries, names, st.sampled_from([b"base:", b"base:allocation", b":", b""])),
        st.binary(max_size=40),
    )
    numbers = st.one_of(st.integers(0, 12), st.integers(0, 2**32 - 1))
    return st.one_of(st.builds(option, numbers, data), st.binary(max_size=40))


def server_replies() -> st.SearchStrategy[bytes]:
    """Replies as a server might send them, most of them to the right option, and garbage."""
    kinds = st.one_of(st.integers(0, 5), st.integers(2**31, 2**31 + 11), st.integers(0, 2**32 - 1))
    infos = st.builds(
        lambda kind, rest: bytes([0, kind]) + rest, st.integers(0, 5), st.binary(max_size=14)
    )
    data = st.one_of(st.just(b""), infos, st.binary(max_size=30))
    numbers = st.one_of(st.sampled_from([3, 5, 7, 8, 10, 11]), st.integers(0, 2**32 - 1))
    return st.one_of(st.builds(reply, numbers, kinds, data), st.binary(max_size=40))


def sliced(wire: bytes, sizes: list[int]) -> Iterator[bytes]:
    """Cut *wire* into pieces of *sizes*, the last of them repeated."""
    at = 0
    for size in itertools.chain(sizes, itertools.repeat(sizes[-1])):
        if at >= len(wire):
            return
        yield wire[at : at + size]
        at += size


class Garbage(SynchronousTestCase):
    def check(self, machine: Negotiation, wire: bytes, sizes: list[int]) -> None:
        """Check the one law: events, of which Ready and Close are the last; nothing is raised."""
        events: list[Event] = []
        for piece in sliced(wire, sizes):
            events += machine.receive(piece)
            self.assertLessEqual(len(machine._buffer), MAX_OPTION_LENGTH + len(piece))
            if machine.phase is Phase.STARTING_TLS:
                events += machine.tls_started()
            if machine.phase is Phase.READY:
                break
        self.assertTrue(all(is_event(event) or isinstance(event, Listed) for event in events))
        ends = [event for event in events if isinstance(event, (Ready, Close))]
        self.assertEqual(ends, events[-1:] if machine.phase in _ENDS else [])

    @settings(deadline=None, max_examples=400)
    @given(
        st.sampled_from(list(TLSMode)),
        st.sampled_from([b"\0\0\0\3", b"\0\0\0\1", b"\0\0\0\0", b""]),
        st.lists(client_options(), max_size=12),
        st.lists(st.integers(1, 50), min_size=1, max_size=5),
    )
    def test_a_server_makes_events_of_it(
        self, mode: TLSMode, flags: bytes, options: list[bytes], sizes: list[int]
    ) -> None:
        private = {77: lambda data: [(1, b"")]}
        server = ServerHandshake(Exports(), tls=mode, private_options=private)
        server.greeting()
        self.check(server, flags + b"".join(options), sizes)

    @settings(deadline=None, max_examples=400)
    @given(
        st.sampled_from(list(TLSMode)),
        st.booleans(),
        st.sampled_from([b"NBDMAGICIHAVEOPT\0\3", b"NBDMAGICIHAVEOPT\0\0", b"NBDMAGIC", b""]),
        st.lists(server_replies(), max_size=12),
        st.lists(st.integers(1, 50), min_size=1, max_size=5),
    )
    def test_a_client_makes_events_of_it(
        self, mode: TLSMode, lists: bool, hello: bytes, replies: list[bytes], sizes: list[int]
    ) -> None:
        wish = ClientOptions("disk", contexts=("base:allocation",), tls=mode)
        client = ListHandshake(wish) if lists else ClientHandshake(wish)
        self.check(client, hello + b"".join(replies), sizes)

    @settings(deadline=None, max_examples=200)
    @given(st.data())
    def test_a_server_says_the_same_however_it_is_cut(self, data: st.DataObject) -> None:
        options = data.draw(st.lists(client_options(), max_size=8))
        wire = b"\0\0\0\3" + b"".join(options)
        sizes = data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=5))
        runs = []
        for pieces in ([wire], sliced(wire, sizes)):
            server = ServerHandshake(Exports())
            server.greeting()
            events: list[Event] = []
            for piece in pieces:
                if server.phase is not Phase.READY:
                    events += server.receive(piece)
            runs.append(events)
        self.assertEqual(runs[0], runs[1])


_ENDS = {Phase.READY, Phase.CLOSED}


class Memory(SynchronousTestCase):
    def peak(self, new: Callable[[], Negotiation], wires: Iterator[bytes]) -> int:
        machine = new()
        tracemalloc.start()
        try:
            for wire in wires:
                machine.receive(wire)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    def test_options_that_are_too_large_take_none(self) -> None:
        def new() -> ServerHandshake:
            server = ServerHandshake(Exports())
            server.greeting()
            server.receive(b"\0\0\0\3")
            return server

        piece = bytes(32768)
        head = option(7, b"")[:12] + MAX_DRAINED_OPTION.to_bytes(4, "big")
        large = itertools.chain([head], itertools.repeat(piece, MAX_DRAINED_OPTION // len(piece)))
        self.assertLess(self.peak(new, large), 4 * len(piece))

"""Streams made wrong, with seeds: every one is answered or ends its connection, and harms nobody.

Each case is one world and what goes wrong in it. `make fuzz` goes on for ten minutes; a failure
tells the seed that repeats it, as FUZZ_SEED=….
"""

import struct

from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.client.connection import NBDClientProtocol
from flexmigrate.errors import FlexmigrateError, RemoteProtocolError
from flexmigrate.wire.agreement import Close, CloseKind, Listed, Ready, Send, StartTLS, TLSMode
from flexmigrate.wire.client_handshake import ClientHandshake, ListHandshake
from flexmigrate.wire.constants import BASE_ALLOCATION, Command, CommandFlag, Option
from flexmigrate.wire.frames import context_request, export_request, option
from flexmigrate.wire.handshake import HandshakeStyle, ServerHandshake
from flexmigrate.wire.pending import PendingRequest
from flexmigrate.wire.reply_parser import ReplyParser
from flexmigrate.wire.requests import pack_request
from support.feeds import PlainFeed
from support.fuzzing import (
    bytes_held,
    campaign,
    frames_of,
    judge,
    mutated,
    pieces,
    seconds_to_fuzz,
    seed_to_repeat,
    unchanged_outside,
)
from support.negotiation import Exports
from support.serving import EXTENDED, FEEDS, SIMPLE, STRUCTURED, STYLES, Served

SIZE = 512 * 1024

# What a connection may hold of what it received and has to send, in bytes: a packet that it can't
# use yet, the replies of one batch, and MAX_UNDER_WAY requests that are with the pool.
MOST_HELD = 4 << 20

# What a negotiation may hold: an option that isn't whole, and what came with its last byte.
MOST_HAGGLED = 256 * 1024

# Where clients write whose negotiation goes wrong: nothing says how their requests will be taken.
YARD = (SIZE - 65536, 65536)

PROBE = 0x5EED_5EED_5EED_5EED


def a_range(rng):
    """Return a range of the image, mostly inside of it."""
    length = rng.choice((1, 512, 4096, 4096, 65536, 70_001, 200_000))
    return rng.randrange(0, SIZE - length, rng.choice((1, 512))), length


def a_request(rng, extended, within=a_range):
    """Return a request that keeps the rules."""
    command = rng.choice((0, 0, 1, 1, 1, 3, 4, 5, 6, 7))
    offset, length = within(rng)
    flags, payload = 0, b""
    if command == Command.WRITE:
        payload = rng.randbytes(length)
        flags = rng.choice((0, CommandFlag.FUA)) | (CommandFlag.PAYLOAD_LEN if extended else 0)
    elif command == Command.FLUSH:
        offset = length = 0
    elif command == Command.WRITE_ZEROES:
        flags = rng.choice((0, CommandFlag.NO_HOLE, CommandFlag.FAST_ZERO))
    elif command == Command.BLOCK_STATUS and extended and rng.random() < 0.5:
        payload = struct.pack(">QI", length, rng.randrange(3))
        flags, length = CommandFlag.PAYLOAD_LEN, len(payload)
    cookie = rng.randrange(1 << 64)
    return pack_request(extended, int(flags), command, cookie, offset, length) + payload


def requests(rng, extended, within=a_range):
    """Return some requests, and perhaps a DISC behind them."""
    made = [a_request(rng, extended, within) for _ in range(rng.randrange(1, 12))]
    if rng.random() < 0.2:
        made.append(pack_request(extended, 0, Command.DISC, 0, 0, 0))
    return made


def in_the_yard(rng):
    """Return a range where nobody minds."""
    offset, length = YARD
    return offset + rng.randrange(0, length // 2, 512), rng.choice((1, 512, 4096))


def haggling(rng, name=""):
    """Return what a client says until it is served, or leaves."""
    queries = rng.choice(((), (BASE_ALLOCATION,), ("base:", "flexmigrate:dirty"), ("x-no:such",)))
    asked = [
        option(Option.LIST),
        option(Option.STRUCTURED_REPLY),
        option(Option.EXTENDED_HEADERS),
        option(Option.STARTTLS),
        option(Option.LIST_META_CONTEXT, context_request(name, queries)),
        option(Option.SET_META_CONTEXT, context_request(name, queries)),
        option(Option.INFO, export_request(name, [1, 2, 3])),
        option(rng.randrange(1 << 32), rng.randbytes(rng.choice((0, 5, 100, 80_000)))),
    ]
    frames = [struct.pack(">I", rng.choice((3, 3, 3, 1, 0, 2)))]
    frames += rng.sample(asked, rng.randrange(len(asked)))
    last = rng.choice((Option.GO, Option.GO, Option.EXPORT_NAME, Option.ABORT))
    data = {Option.GO: export_request(name, [3]), Option.EXPORT_NAME: name.encode()}
    return [*frames, option(last, data.get(last, b""))]


# The codecs by themselves


def told(events, machine):
    """Note what a negotiation said, sent bytes joined; go on over TLS where it says so."""
    outcome = []
    for event in events:
        assert isinstance(event, (Send, StartTLS, Ready, Close, Listed)), event
        outcome.append(event)
        if isinstance(event, StartTLS):
            outcome += told(machine.tls_started(), machine)
    return outcome


def negotiate(machine, parts):
    """Feed a negotiation until it ends; return all that it said."""
    said = []
    for part in parts:
        said += told(machine.receive(part), machine)
        assert bytes_held([machine], []) < MOST_HAGGLED + len(part)
        if said and isinstance(said[-1], (Ready, Close)):
            break
    return said


def handshake_case(rng):
    """A server's negotiation says the same however the stream is cut, and holds little."""
    tls = rng.choice((TLSMode.OFF, TLSMode.ON, TLSMode.REQUIRE))
    wire = b"".join(mutated(rng, haggling(rng, rng.choice(("disk", "spare", "x")))))

    def hear(parts):
        machine = ServerHandshake(Exports(), tls=tls, default_export="disk")
        machine.greeting()
        return negotiate(machine, parts)

    whole, cut = hear([wire]), hear(pieces(rng, wire))
    # What comes in one piece with STARTTLS was said in the clear, and ends the negotiation; what
    # comes after it is TLS's. So there, and only there, a cut makes a difference.
    if not any(isinstance(event, StartTLS) for event in whole + cut):
        assert cut == whole


def server_says(rng, wish):
    """Return what a server says to a client that wishes for that."""
    style = rng.choice((HandshakeStyle.FIXED_NEWSTYLE,) * 3 + (HandshakeStyle.OLDSTYLE,))
    server, client = ServerHandshake(Exports(), style=style, default_export="disk"), wish
    said, to_client = [], server.greeting()
    while to_client:
        said += [event.data for event in to_client if isinstance(event, Send)]
        answers = [client.receive(event.data) for event in to_client if isinstance(event, Send)]
        asked = b"".join(e.data for each in answers for e in each if isinstance(e, Send))
        to_client = server.receive(asked) if asked and style != HandshakeStyle.OLDSTYLE else []
    return [frame for each in said for frame in frames_of(each)]


def client_handshake_case(rng):
    """A client's negotiation likewise."""
    wish = rng.choice(list(STYLES.values()))
    kind = rng.choice((ClientHandshake, ClientHandshake, ListHandshake))
    wire = b"".join(mutated(rng, server_says(rng, kind(wish))))
    whole = negotiate(kind(wish), [wire])
    assert negotiate(kind(wish), pieces(rng, wire)) == whole
    assert not whole or not isinstance(whole[-1], Close) or whole[-1].kind in CloseKind


# A server, and its image


class World:
    """A server with a client that keeps the rules, beside whom others don't."""

    def __init__(self, rng, **factory):
        self.rng = rng
        self.feed = rng.choice(FEEDS)
        self.served = Served(rng.randbytes(SIZE // 2), size=SIZE, **factory)
        self.bench = self.served.bench
        self.good = self.served.client(self.feed, rng.choice(list(STYLES.values())))
        self.shared = [
            *(self.served.factory, self.served.export, self.served.image, self.served.storage),
            *(self.bench, self.bench.reactor, self.bench.clock, self.bench.pool),
            *(self.served.factory.scratch, self.good, self.good.feed),
        ]

    def pour(self, feed, parts):
        """Send, while the disk is sometimes slow, and look at what is held meanwhile."""
        self.served.image.cold = self.rng.random() < 0.3
        self.bench.pool.at_once = self.rng.random() < 0.7
        for part in parts:
            if feed.ended:
                break
            feed.send(part)
            if self.rng.random() < 0.3:
                self.bench.turn()
                self.look(feed)
        self.bench.turn()
        self.look(feed)

    def look(self, feed):
        """Raise where a connection holds too much: *feed* is where it was sent to."""
        waiting = [list(each) for each in self.bench.pool.waiting]
        roots = [feed.protocol, feed.transport, *waiting]
        held = bytes_held(roots, [*self.shared, feed])
        assert held < MOST_HELD, held

    def settle(self):
        """Let the disk catch up."""
        self.bench.pool.at_once = True
        self.bench.settle()
        self.served.image.cold = False

    def harmed_nobody(self, feed, before, ranges):
        """End a client, and see that nothing is left of it but what it was allowed to write."""
        feed.vanish()
        self.settle()
        assert len(self.served.factory.clients) == 1
        assert self.served.export._under_way == 0
        found = self.served.content()
        assert unchanged_outside(before, found, ranges), "it changed what it was not to"
        offset, length = a_range(self.rng)
        assert self.good.read(offset, length) == found[offset : offset + length]
        payload = self.rng.randbytes(length)
        assert self.good.error(self.good.write(offset, payload)) == 0
        assert self.good.read(offset, length) == payload


def transmission_case(rng):
    """Requests made wrong, in any style of replies, after a good negotiation."""
    oldstyle = rng.random() < 0.2
    style = HandshakeStyle.OLDSTYLE if oldstyle else HandshakeStyle.FIXED_NEWSTYLE
    world = World(rng, style=style)
    try:
        for _ in range(4):
            wish = rng.choice((SIMPLE, STRUCTURED, EXTENDED))
            wrong_requests(world, world.served.client(world.feed, wish))
    finally:
        world.served.close()


def wrong_requests(world, client):
    rng, feed, extended = world.rng, client.feed, client.agreement.extended
    before = world.served.content()
    parts = pieces(rng, b"".join(mutated(rng, requests(rng, extended))))
    wire = b"".join(parts)
    verdict = judge(wire, extended, SIZE)
    deaf = rng.random() < 0.2
    feed.read_limit = rng.choice((0, 1, 100_000)) if deaf else None
    during = world.good.ask(Command.CACHE, 0, 4096)
    world.pour(feed, parts)
    world.settle()
    world.look(feed)
    assert world.good.is_answered(during)
    if not deaf:
        answered_or_ended(world, feed, verdict, extended)
    world.harmed_nobody(feed, before, verdict.changes)


def answered_or_ended(world, feed, verdict, extended):
    """See that a server took a stream of requests as it must be taken."""
    if not verdict.broken:
        for cookie in verdict.cookies:
            assert cookie.to_bytes(8, "big") in feed.received, f"{cookie:#x} is not answered"
    if verdict.left or verdict.broken:
        assert feed.ended, "it goes on"
        return
    assert not feed.ended, "it ended for no reason"
    if verdict.missing is not None and verdict.missing <= SIZE:
        feed.send(bytes(verdict.missing))
        feed.send(pack_request(extended, 0, Command.FLUSH, PROBE, 0, 0))
        world.settle()
        assert PROBE.to_bytes(8, "big") in feed.received, "it lost its place"


def negotiation_case(rng):
    """A negotiation made wrong, with good requests behind it that change the yard only."""
    world = World(rng)
    try:
        for _ in range(4):
            before = world.served.content()
            feed = world.feed(world.bench, world.served.factory)
            frames = mutated(rng, haggling(rng))
            frames += requests(rng, rng.random() < 0.5, in_the_yard)
            feed.read_limit = rng.choice((None, None, None, 0, 1000))
            world.pour(feed, pieces(rng, b"".join(frames)))
            world.settle()
            world.look(feed)
            if feed.protocol.export is None:
                world.bench.advance(60)
                assert feed.ended or feed.read_limit is not None, "it may haggle for ever"
            world.harmed_nobody(feed, before, [YARD])
    finally:
        world.served.close()


# Our client


def client_case(rng):
    """Our client, before a real server whose every word may come out wrong."""
    style = HandshakeStyle.OLDSTYLE if rng.random() < 0.2 else HandshakeStyle.FIXED_NEWSTYLE
    served = Served(rng.randbytes(SIZE // 2), size=SIZE, style=style)
    try:
        for _ in range(4):
            misled_client(rng, served)
    finally:
        served.close()


def misled_client(rng, served):
    feed = PlainFeed(served.bench, served.factory)
    client = NBDClientProtocol(rng.choice(list(STYLES.values())), Clock())
    transport = StringTransport()
    outcomes, asked = [], []

    def ask(_):
        asked.extend(calls(rng, client))
        for answer in asked:
            answer.addBoth(outcomes.append)

    client.ready.addCallback(ask)
    client.ready.addErrback(lambda failure: failure.trap(FlexmigrateError))
    client.makeConnection(transport)
    honest = rng.randrange(20_000)  # bytes that come through as they were sent
    while not transport.disconnecting:
        served.bench.settle()
        came = bytes(feed.received)
        feed.received.clear()
        if not came:
            break
        good, rest = came[:honest], came[honest:]
        honest -= len(good)
        for part in (*pieces(rng, good), *pieces(rng, b"".join(mutated(rng, frames_of(rest))))):
            if not transport.disconnecting:
                client.dataReceived(part)
                held = bytes_held([client], [transport, asked, outcomes])
                assert held < MOST_HELD, held
        feed.send(transport.value())
        transport.clear()
    client.connectionLost(Failure(ConnectionDone()))
    assert len(outcomes) == len(asked), "a request has no outcome"
    for outcome in outcomes:
        assert not isinstance(outcome, Failure) or outcome.check(FlexmigrateError), outcome
    feed.vanish()
    served.bench.settle()


def calls(rng, client):
    """Ask for some things at once."""
    answers = []
    for _ in range(rng.randrange(1, 12)):
        offset, length = a_range(rng)
        what = rng.choice(("read", "read", "write", "zero", "flush", "status"))
        if what == "read":
            answers.append(client.read(offset, length, unfragmented=rng.random() < 0.1))
        elif what == "write":
            answers.append(client.write(rng.randbytes(length), offset))
        elif what == "zero":
            answers.append(client.zero(offset, length))
        elif what == "flush":
            answers.append(client.flush())
        else:
            answers.append(client.block_status(offset, length))
    if rng.random() < 0.2:
        answers.append(client.disconnect())
    return answers


def reply_parser_case(rng):
    """Replies made wrong are understood alike, or refused alike, however they are cut."""
    structured, extended = rng.choice(((False, False), (True, False), (True, True)))
    wish = {(False, False): SIMPLE, (True, False): STRUCTURED, (True, True): EXTENDED}
    served = Served(rng.randbytes(SIZE // 2), size=SIZE)
    try:
        client = served.client(PlainFeed, wish[structured, extended])
        asked = [(cookie, *a_range(rng)) for cookie in range(1, rng.randrange(2, 8))]
        for cookie, offset, length in asked:
            client.feed.send(pack_request(extended, 0, Command.READ, cookie, offset, length))
        served.bench.settle()
        wire = b"".join(mutated(rng, frames_of(bytes(client.feed.received))))
    finally:
        served.close()

    def hear(parts):
        parser = ReplyParser(structured=structured, extended=extended)
        views = {cookie: bytearray(length) for cookie, _, length in asked}
        for cookie, offset, length in asked:
            view = memoryview(views[cookie])
            parser.expect(cookie, PendingRequest(Command.READ, offset, length, view=view))
        violation = None
        try:
            for part in parts:
                parser.receive(part)
        except RemoteProtocolError as error:
            violation = str(error)
        answers = [
            (cookie, str(each.failure), bytes(views[cookie])) for cookie, each in parser.take()
        ]
        return answers, violation

    assert hear([wire] if wire else []) == hear(pieces(rng, wire))


CASES = (
    *(handshake_case, client_handshake_case, reply_parser_case),
    *(transmission_case, transmission_case, negotiation_case, client_case),
)


def any_case(rng):
    """Try one of all these."""
    rng.choice(CASES)(rng)


class FuzzTests(SynchronousTestCase):
    def test_nothing_wrong_does_harm(self):
        tried = campaign(any_case, seconds_to_fuzz(), seed_to_repeat())
        print(f"{tried} cases")

"""Who gets in and for how long, and how fast a writer may write."""

import itertools

from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.net.acl import AccessList
from flexmigrate.server.limits import Limits
from flexmigrate.wire.constants import Command
from flexmigrate.wire.handshake import HandshakeStyle
from flexmigrate.wire.requests import pack_request
from support.feeds import StreamFeed
from support.serving import (
    FEEDS,
    Served,
    SuiteBase,
    each_way,
)

SIZE = 4 << 20
READ, WRITE, FLUSH, ZERO = Command.READ, Command.WRITE, Command.FLUSH, Command.WRITE_ZEROES
LARGE = 2 << 20


class Meter:
    """Counts what is changed, as if every byte were a block."""

    def __init__(self):
        self.bytes = 0

    def mark(self, offset, length):
        self.bytes += length


class ThrottleSuite(SuiteBase):
    def slow(self, rate):
        self.export.observer = meter = Meter()
        self.export.slow_writers(self.bench.reactor, rate, lambda: meter.bytes)

    def test_writers_keep_to_the_limit_and_readers_go_on(self):
        reader = self.connect()
        self.slow(100_000.0)
        cookies = [self.client.write(0, b"w" * 50_000) for _ in range(40)]
        done = 0
        for second in range(1, 45):
            self.assertEqual(reader.read(5, 5), self.served.content()[5:10])
            self.bench.advance(1)
            self.client.collect()
            done = len(self.client.order) * 50_000
            # A batch is taken whole, and paid for afterwards.
            self.assertLessEqual(done, 100_000 * second + 300_000)
        self.assertTrue(all(self.client.error(cookie) == 0 for cookie in cookies))

    def test_what_many_writers_owe_is_paid_by_all(self):
        self.slow(100_000.0)
        clients = [self.client, *(self.connect() for _ in range(9))]
        for client in clients:
            for _ in range(10):
                client.write(0, b"w" * 100_000)
        self.bench.settle()
        first = sum(length for _, _, length in self.served.image.done)
        for _ in range(20):
            self.bench.advance(1)
        done = sum(length for _, _, length in self.served.image.done)
        self.assertLessEqual(done - first, 100_000 * 20 + 10 * 300_000)
        self.export.free_writers()
        self.bench.settle()
        for client in clients:
            client.collect()
        self.assertEqual(sum(len(client.order) for client in clients), 100)

    def test_a_limit_that_is_lifted_lets_everybody_go_at_once(self):
        self.slow(1.0)
        self.client.write(0, b"w" * 1000)
        self.bench.settle()
        cookie = self.client.ask(READ, 0, 1)
        self.bench.advance(5)
        self.assertFalse(self.client.is_answered(cookie))
        self.export.free_writers()
        self.bench.settle()
        self.assertEqual(self.client.data(cookie), b"w")
        self.assertEqual(self.bench.reactor.getDelayedCalls(), [])
        # What was owed is forgotten.
        self.slow(1000.0)
        self.client.write(0, b"w")
        self.bench.settle()
        self.bench.advance(0.01)
        self.assertEqual(self.client.read(0, 1), b"w")

    def test_who_writes_little_waits_little_beside_who_writes_much(self):
        self.slow(1_000_000.0)
        greedy = [self.connect() for _ in range(3)]
        for client in greedy:
            for _ in range(100):
                client.write(0, b"g" * 100_000)
        self.bench.settle()
        for turn in range(20):
            cookie = self.client.write(4096 * turn, b"l" * 4096)
            self.bench.settle()
            following = self.client.ask(READ, 0, 1)
            # Its own bytes at a quarter of the rate, whatever the others owe.
            for _ in range(18):
                self.bench.advance(0.001)
            self.assertTrue(self.client.is_answered(following), turn)
            self.assertEqual(self.client.error(cookie), 0)

    def test_a_trim_of_all_is_no_reason_to_wait_for_ever(self):
        self.slow(1_000_000.0)
        self.assertEqual(self.client.error(self.client.ask(ZERO, 0, SIZE)), 0)
        cookie = self.client.ask(READ, 0, 1)
        for _ in range(22):
            self.bench.advance(0.05)
        self.assertEqual(self.client.data(cookie), b"\0")

    def test_a_writer_that_vanishes_leaves_no_timer(self):
        self.slow(1.0)
        self.client.write(0, b"w" * 1000)
        self.bench.settle()
        self.client.feed.vanish()
        if self.feed is StreamFeed:
            self.bench.advance(1)  # it isn't read from, so that its end is noticed late
            self.client.feed.protocol.abort("the test ends")
        self.bench.settle()
        self.assertEqual(self.bench.reactor.getDelayedCalls(), [])


each_way(ThrottleSuite, globals())


class KillswitchSuite(SuiteBase):
    limits = Limits(request_seconds=120)

    def setUp(self):
        super().setUp()
        self.served.factory.doStart()
        self.addCleanup(self.served.factory.doStop)

    def seconds(self, count):
        for _ in range(count):
            self.bench.advance(1)

    def test_a_request_that_is_not_complete_in_time_costs_the_connection(self):
        whole = self.client.request(WRITE, 0, payload=b"x" * 10_000)
        for cut in (1, 30, 40, 9_000):
            other = self.connect()
            slow = self.connect()
            slow.feed.send(whole[:cut])
            self.seconds(119)
            self.assertFalse(slow.ended)
            self.seconds(3)
            self.assertTrue(slow.ended)
            self.assertEqual(other.read(SIZE - 1, 1), self.bytes[-1:])

    def test_an_idle_client_may_stay(self):
        self.seconds(300)
        self.assertEqual(self.client.read(0, 1), self.bytes[:1])

    def test_a_client_that_is_parked_is_not_to_blame(self):
        self.export.park()
        cookie = self.client.ask(READ, 0, 1)
        self.seconds(300)
        self.export.unpark()
        self.assertEqual(self.client.data(cookie), self.bytes[:1])

    def test_a_client_whose_requests_wait_for_the_disk_is_not_to_blame(self):
        self.bench.pool.at_once = False
        self.served.image.cold = True
        for cookie in (self.client.write(0, b"x" * 600_000), self.client.ask(READ, 0, 5)):
            self.seconds(300)
            self.bench.pool.at_once = True
            self.assertEqual(self.client.error(cookie), 0)

    def test_a_client_that_does_not_read_its_replies_is(self):
        self.client.feed.read_limit = 10
        self.client.ask(READ, 0, LARGE)
        self.bench.settle()
        self.seconds(125)
        self.client.feed.read_limit = None
        self.assertTrue(self.client.ended)

    def test_it_goes_on_while_a_port_is_closed_and_opened_again_and_ends_with_the_last(self):
        factory = self.served.factory
        factory.doStop()
        factory.doStart()
        self.client.feed.send(b"\x25")
        self.seconds(122)
        self.assertTrue(self.client.ended)
        factory.doStop()
        self.assertEqual(self.bench.reactor.getDelayedCalls(), [])
        factory.doStart()


each_way(KillswitchSuite, globals())


class AdmissionTests(SynchronousTestCase):
    """Who gets in, who has to go."""

    def serve(self, **options):
        served = Served(b"\x05" * 65536, **options)
        self.addCleanup(served.close)
        return served

    def test_who_may_not_connect_gets_no_connection(self):
        served = self.serve(acl=AccessList(["192.0.2.0/24"], default_deny=True))
        for feed in FEEDS:
            self.assertTrue(feed(served.bench, served.factory, "198.51.100.1").refused)
            self.assertEqual(served.client(feed, host="192.0.2.9").read(0, 1), b"\x05")

    def test_a_change_of_the_access_list_ends_who_is_no_longer_allowed_at_once(self):
        for feed in FEEDS:
            served = self.serve()
            stays = served.client(feed, host="192.0.2.1")
            goes = served.client(feed, host="192.0.2.2")
            haggles = feed(served.bench, served.factory, "192.0.2.2")
            goes.feed.read_limit = 1
            goes.ask(READ, 0, 60_000)
            served.bench.settle()
            served.factory.set_acl(AccessList(["192.0.2.1"], default_deny=True))
            served.bench.settle()
            goes.feed.read_limit = None
            served.bench.settle()
            self.assertTrue(goes.feed.ended)
            self.assertTrue(haggles.ended)
            self.assertEqual(stays.read(0, 1), b"\x05")

    def test_no_more_clients_than_the_limit(self):
        for feed in FEEDS:
            served = self.serve(limits=Limits(clients=2))
            first = served.client(feed)
            served.client(feed)
            self.assertTrue(feed(served.bench, served.factory).refused)
            first.feed.vanish()
            served.bench.settle()
            self.assertEqual(served.client(feed).read(0, 1), b"\x05")

    def test_one_host_has_no_more_than_its_part(self):
        for feed in FEEDS:
            served = self.serve(limits=Limits(clients=8))
            busy = [feed(served.bench, served.factory, "192.0.2.1") for _ in range(6)]
            self.assertTrue(feed(served.bench, served.factory, "192.0.2.1").refused)
            self.assertTrue(feed(served.bench, served.factory, "::ffff:192.0.2.1").refused)
            self.assertFalse(feed(served.bench, served.factory, "192.0.2.2").refused)
            busy.pop().vanish()
            served.bench.settle()
            self.assertFalse(feed(served.bench, served.factory, "192.0.2.1").refused)
            served = self.serve(limits=Limits(clients=8, host_clients=1))
            self.assertFalse(feed(served.bench, served.factory, "2001:db8::1").refused)
            self.assertTrue(feed(served.bench, served.factory, "2001:db8::2:1").refused)
            self.assertFalse(feed(served.bench, served.factory, "2001:db8:0:1::1").refused)

    def test_who_does_not_choose_an_export_in_time_is_closed(self):
        for feed, said in itertools.product(FEEDS, (b"", b"\0\0\0\3", b"\0\0\0\3IHAVE")):
            served = self.serve(limits=Limits(negotiation_seconds=30))
            idle = feed(served.bench, served.factory)
            idle.send(said)
            served.bench.settle()
            served.bench.advance(29)
            self.assertFalse(idle.ended)
            served.bench.advance(2)
            self.assertTrue(idle.ended)
            self.assertEqual(served.bench.reactor.getDelayedCalls(), [])

    def test_who_chose_one_may_say_nothing_for_long(self):
        for feed in FEEDS:
            served = self.serve(limits=Limits(negotiation_seconds=30))
            client = served.client(feed)
            served.bench.advance(3600)
            self.assertEqual(client.read(0, 1), b"\x05")

    def test_both_handshakes_lead_to_requests_even_in_one_packet(self):
        for feed in FEEDS:
            served = self.serve(style=HandshakeStyle.OLDSTYLE)
            self.assertEqual(served.client(feed).read(0, 3), b"\x05" * 3)
            served = self.serve()
            eager = feed(served.bench, served.factory)
            go = b"\0\0\0\3IHAVEOPT\0\0\0\7\0\0\0\6\0\0\0\0\0\0"
            eager.send(go + pack_request(False, 0, READ, 9, 0, 300))
            served.bench.settle()
            self.assertTrue(eager.received.endswith(b"\0" * 7 + b"\x09" + b"\x05" * 300))

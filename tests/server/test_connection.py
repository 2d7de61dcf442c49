"""A client's connection beyond its requests: back-pressure, parking, timers, and every end."""

import errno
import itertools
import random

from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.net.acl import AccessList
from flexmigrate.server.connection import GOODBYE_SECONDS, LINGER_SECONDS
from flexmigrate.server.factory import Limits, OpenSession
from flexmigrate.wire.constants import Command, CommandFlag
from flexmigrate.wire.handshake import HandshakeStyle
from flexmigrate.wire.requests import pack_request
from support.feeds import PlainFeed, StreamFeed, open_descriptors
from support.serving import (
    EXTENDED,
    FEEDS,
    SIMPLE,
    STYLES,
    Recorder,
    Served,
    each_way,
)

SIZE = 4 << 20
READ, WRITE, FLUSH, ZERO = Command.READ, Command.WRITE, Command.FLUSH, Command.WRITE_ZEROES
LARGE = 2 << 20


class NotingSession(OpenSession):
    """Notes what it is told; DISC is settled as the test says."""

    def __init__(self):
        self.events = []
        self.settled = lambda: succeed(True)

    def connected(self, connection):
        self.events.append("connected")

    def transmitting(self, connection):
        self.events.append("transmitting")

    def disconnecting(self, connection):
        self.events.append("disconnecting")
        return self.settled()

    def lost(self, connection):
        self.events.append("lost")


class Base:
    limits = None

    def setUp(self):
        self.bytes = bytearray(random.Random(11).randbytes(SIZE))
        self.session = NotingSession()
        self.served = Served(bytes(self.bytes), session=self.session, limits=self.limits)
        self.addCleanup(self.served.close)
        self.bench = self.served.bench
        self.export = self.served.export
        self.client = self.served.client(self.feed, self.wish)

    def connect(self):
        return self.served.client(self.feed, self.wish)


class BackPressureSuite(Base):
    def test_a_client_that_does_not_read_is_not_read_from_and_holds_little(self):
        self.client.feed.read_limit = 0
        cookies = [self.client.ask(READ, 0, LARGE) for _ in range(12)]
        writes = [self.client.write(0, self.bytes[:100_000]) for _ in range(20)]
        self.bench.settle()
        taken = self.client.feed.protocol.requests_taken
        self.assertLess(taken, 10)
        self.assertGreater(self.client.feed.unread, 1_000_000)
        if self.feed is PlainFeed:
            self.assertLess(self.client.feed.transport.most_held, 600_000)
        other = self.connect()
        self.assertEqual(other.read(0, 100), self.bytes[:100])
        self.client.feed.read_limit = None
        for cookie in cookies:
            self.assertTrue(self.client.data(cookie) == self.bytes[:LARGE])
        for cookie in writes:
            self.assertEqual(self.client.error(cookie), 0)

    def test_a_reader_that_stops_and_goes_on_anywhere_gets_every_byte(self):
        cookies = [self.client.ask(READ, at, LARGE) for at in range(3)]
        for amount in (1, 15, 16, 17, 28, 40, 4096, 100_000, LARGE - 5, LARGE, 1):
            self.client.feed.read_limit = amount
            self.bench.settle()
        self.client.feed.read_limit = None
        for at, cookie in enumerate(cookies):
            self.assertTrue(self.client.data(cookie) == self.bytes[at : at + LARGE])

    def test_a_reader_that_vanishes_in_the_middle_harms_nobody(self):
        other = self.connect()
        before = open_descriptors()
        for amount in (0, 10, 100_000, LARGE + 1):
            reader = self.connect()
            reader.feed.read_limit = amount
            for _ in range(3):
                reader.ask(READ, 0, LARGE)
            self.bench.settle()
            reader.feed.vanish()
            self.assertTrue(other.read(1, LARGE) == self.bytes[1 : 1 + LARGE])
        self.bench.settle()
        self.assertEqual(open_descriptors(), before)
        self.assertEqual(len(self.served.factory.clients), 2)

    def test_one_that_vanishes_with_cold_requests_under_way_harms_nobody(self):
        other = self.connect()
        self.bench.pool.at_once = False
        self.served.image.cold = True
        for length in (100, LARGE):
            self.client.ask(READ, 0, length)
        write = self.client.write(0, b"arrives")
        self.client.ask(FLUSH)
        self.bench.settle()
        self.client.feed.vanish()
        self.bench.settle()
        self.bench.pool.at_once = True
        self.assertEqual(other.read(0, 7), b"arrives")
        self.assertEqual(self.export._under_way, 0)
        self.assertIsNotNone(write)


each_way(BackPressureSuite, globals())


class ParkingSuite(Base):
    def park(self):
        parked = []
        self.export.park().addCallback(parked.append)
        return parked

    def test_parked_requests_wait_and_are_answered_once_it_is_over(self):
        self.assertEqual(self.park(), [None])
        write = self.client.write(0, b"later")
        read = self.client.ask(READ, 0, 5)
        self.assertFalse(self.client.is_answered(write))
        self.assertEqual(self.served.image.done, [])
        self.export.unpark()
        self.assertEqual(self.client.error(write), 0)
        self.assertEqual(self.client.data(read), b"later")

    def test_a_client_that_comes_meanwhile_waits_too(self):
        self.park()
        late = self.connect()
        cookie = late.ask(READ, 0, 5)
        self.assertFalse(late.is_answered(cookie))
        self.export.unpark()
        self.assertEqual(late.data(cookie), self.bytes[:5])

    def test_parking_in_the_middle_of_a_long_write_keeps_what_was_written_marked(self):
        recorder = self.export.observer = Recorder()
        data = random.Random(2).randbytes(1_000_000)
        request = self.client.request(WRITE, 100, payload=data)
        for cut in (1, 30, 300_000, 999_999):
            self.client.feed.send(request[:cut])
            self.bench.settle()
            self.assertEqual(self.park(), [None])
            marked = sum(length for _, _, length in recorder.events)
            done = sum(length for _, _, length in self.served.image.done)
            self.assertEqual(marked, done)
            self.client.feed.send(request[cut:])
            self.bench.settle()
            self.assertEqual(sum(length for _, _, length in self.served.image.done), done)
            self.export.unpark()
            self.assertEqual(self.client.error(self.client.last), 0)
            self.assertTrue(self.client.read(100, len(data)) == data)
            recorder.events.clear()
            self.served.image.done.clear()
            data = data[1:] + data[:1]
            request = self.client.request(WRITE, 100, payload=data)
        self.client.feed.send(request)
        self.bench.settle()

    def test_parking_waits_for_what_is_under_way_and_that_is_answered(self):
        self.bench.pool.at_once = False
        self.served.image.cold = True
        recorder = self.export.observer = Recorder()
        cookies = [
            self.client.write(0, b"cold"),
            self.client.ask(READ, 100, 100),
            self.client.ask(READ, 100, LARGE),
            self.client.ask(ZERO, 4096, 4096),
            self.client.ask(FLUSH),
        ]
        self.bench.settle()
        parked = self.park()
        later = self.client.ask(READ, 0, 1)
        while self.bench.pool.waiting:
            self.assertEqual(parked, [])
            self.bench.pool.work()
            self.bench.settle()
        self.assertEqual(parked, [None])
        marks = [("marked", 0, 4), ("marked", 4096, 4096)]
        self.assertEqual(sorted(recorder.events), marks)
        for cookie in cookies:
            self.assertEqual(self.client.error(cookie), 0)
        self.assertFalse(self.client.is_answered(later))
        self.bench.pool.at_once = True
        self.export.unpark()
        self.assertEqual(self.client.data(later), b"c")

    def test_parking_waits_for_a_piece_of_a_long_write(self):
        self.bench.pool.at_once = False
        self.served.image.cold = True
        cookie = self.client.write(0, b"p" * 1_000_000)
        self.bench.settle()
        parked = self.park()
        self.assertEqual(parked, [])
        self.bench.pool.work()
        self.bench.settle()
        self.assertEqual(parked, [None])
        self.assertFalse(self.bench.pool.waiting)
        self.export.unpark()
        self.bench.pool.at_once = True
        self.assertEqual(self.client.error(cookie), 0)
        self.assertEqual(self.served.content()[:1_000_000], b"p" * 1_000_000)

    def test_a_large_read_that_is_being_sent_goes_on_while_parked(self):
        self.client.feed.read_limit = 1000
        cookie = self.client.ask(READ, 0, LARGE)
        self.bench.settle()
        self.assertEqual(self.park(), [None])
        self.client.feed.read_limit = None
        self.assertTrue(self.client.data(cookie) == self.bytes[:LARGE])
        self.export.unpark()
        self.assertEqual(self.client.read(0, 1), self.bytes[:1])

    def test_a_client_may_vanish_while_parked(self):
        other = self.connect()
        self.park()
        self.client.write(0, b"never")
        self.bench.settle()
        self.client.feed.vanish()
        self.bench.settle()
        self.export.unpark()
        self.assertEqual(len(other.read(0, 5)), 5)

    def test_parking_and_unparking_at_any_moment_changes_nothing_but_time(self):
        rng = random.Random(5)
        mine = bytearray(self.bytes)
        wire = bytearray()
        reads = []
        for _ in range(60):
            offset, length = rng.randrange(SIZE - 70_000), rng.choice((1, 512, 4096, 70_000))
            if rng.random() < 0.6:
                data = rng.randbytes(length)
                mine[offset : offset + length] = data
                wire += self.client.request(WRITE, offset, payload=data)
            else:
                wire += self.client.request(READ, offset, length)
                reads.append((self.client.last, bytes(mine[offset : offset + length])))
        at = 0
        while at < len(wire):
            size = rng.randrange(1, 60_000)
            self.client.feed.send(wire[at : at + size])
            at += size
            self.bench.turn()
            if rng.random() < 0.5:
                self.export.park()
                self.bench.turn()
                if rng.random() < 0.5:
                    self.bench.settle()
                self.export.unpark()
        for cookie, data in reads:
            self.assertTrue(self.client.data(cookie) == data)
        self.assertTrue(self.served.content() == mine)


each_way(ParkingSuite, globals())


class OrphanTests(SynchronousTestCase):
    """A client that comes back must not be overtaken by what it asked for before."""

    def test_who_connects_waits_for_changes_that_a_lost_connection_left_under_way(self):
        for feed in FEEDS:
            served = Served(bytes(65536))
            self.addCleanup(served.close)
            bench = served.bench
            first = served.client(feed)
            bystander = served.client(feed)
            bench.pool.at_once = False
            served.image.cold = True
            first.write(0, b"old")
            first.ask(ZERO, 100, 5)
            bench.settle()
            first.feed.vanish()
            bench.settle()
            served.image.cold = False
            again = served.client(feed)
            cookie = again.write(0, b"new")
            self.assertFalse(again.is_answered(cookie))
            self.assertEqual(bystander.error(bystander.write(8192, b"free")), 0)
            bench.pool.work()
            self.assertFalse(again.is_answered(cookie))
            bench.pool.work()
            self.assertEqual(again.error(cookie), 0)
            self.assertEqual(served.content()[:3], b"new")
            bench.pool.at_once = True


class EndSuite(Base):
    def test_disc_is_told_to_the_session_once_all_before_it_is_answered(self):
        self.bench.pool.at_once = False
        self.served.image.cold = True
        write, flush = self.client.write(0, b"cold"), self.client.ask(FLUSH)
        self.client.say_goodbye()
        self.bench.settle()
        self.assertNotIn("disconnecting", self.session.events)
        self.bench.pool.at_once = True
        self.bench.settle()
        self.assertEqual(self.client.error(write), 0)
        self.assertEqual(self.client.error(flush), 0)
        self.assertTrue(self.client.ended)
        self.assertEqual(self.session.events[-2:], ["disconnecting", "lost"])

    def test_requests_and_disc_in_one_packet_are_answered(self):
        wire = self.client.request(WRITE, 0, payload=b"with")
        write = self.client.last
        wire += self.client.request(READ, 0, 4)
        wire += pack_request(self.client.agreement.extended, 0, Command.DISC, 0, 0, 0)
        self.client.feed.send(wire + b"whatever comes behind it")
        self.assertEqual(self.client.error(write), 0)
        self.assertEqual(self.client.data(self.client.last), b"with")
        self.assertTrue(self.client.ended)

    def test_large_reads_that_were_asked_for_before_disc_arrive(self):
        self.client.feed.read_limit = 10
        cookie = self.client.ask(READ, 0, LARGE)
        self.client.say_goodbye()
        self.bench.advance(LINGER_SECONDS + 1)
        self.client.feed.read_limit = None
        self.assertTrue(self.client.data(cookie) == self.bytes[:LARGE])
        self.assertTrue(self.client.ended)

    def test_who_says_disc_and_never_reads_is_cut_off(self):
        self.client.feed.read_limit = 10
        wire = self.client.request(READ, 0, 60_000)
        for _ in range(4):
            wire += self.client.request(READ, 0, 60_000)
        disc = pack_request(self.client.agreement.extended, 0, Command.DISC, 0, 0, 0)
        self.client.feed.send(wire + disc)
        self.bench.settle()
        self.bench.advance(GOODBYE_SECONDS - 1)
        if "disconnecting" in self.session.events:
            self.assertNotIn("lost", self.session.events)
            self.bench.advance(2)
            self.assertIn("lost", self.session.events)

    def test_a_disc_that_is_not_accepted_is_answered_with_a_reset(self):
        self.session.settled = lambda: succeed(False)
        self.client.say_goodbye()
        self.assertTrue(self.client.ended)
        if self.feed is PlainFeed:
            self.assertTrue(self.client.feed.transport.aborted)

    def test_settling_a_disc_may_take_its_time(self):
        answer = Deferred()
        self.session.settled = lambda: answer
        self.client.say_goodbye()
        self.assertFalse(self.client.ended)
        answer.callback(True)
        self.assertTrue(self.client.ended)

    def test_settling_a_disc_may_end_after_the_connection(self):
        for outcome in (True, False):
            answer = Deferred()
            self.session.settled = lambda answer=answer: answer
            client = self.connect()
            client.say_goodbye()
            self.bench.settle()
            client.feed.vanish()
            self.bench.settle()
            answer.callback(outcome)
            self.bench.settle()

    def test_settling_a_disc_may_fail(self):
        self.session.settled = lambda: fail(ZeroDivisionError("a bug"))
        self.client.say_goodbye()
        self.assertTrue(self.client.ended)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_a_disc_with_anything_in_it_is_none(self):
        extended = self.client.agreement.extended
        for flags, offset, length in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (32, 0, 0)):
            client = self.connect()
            before = client.ask(READ, 0, 5)
            client.feed.send(pack_request(extended, flags, Command.DISC, 0, offset, length))
            self.assertEqual(client.data(before), self.bytes[:5])
            self.assertTrue(client.ended)
            self.assertNotIn("disconnecting", self.session.events)

    def test_an_end_without_disc_is_no_disc(self):
        for said in (b"", b"\x25", self.client.request(WRITE, 0, payload=b"half")[:-1]):
            client = self.connect()
            client.feed.send(said)
            self.bench.settle()
            client.feed.vanish()
            self.bench.settle()
            self.assertEqual(self.session.events[-1], "lost")
        self.assertNotIn("disconnecting", self.session.events)

    def test_closing_all_clients_waits_for_each(self):
        others = [self.connect() for _ in range(3)]
        gone = []
        self.served.factory.close_clients("enough").addCallback(gone.append)
        self.assertEqual(gone, [])
        self.bench.settle()
        self.assertEqual(gone, [None])
        self.assertTrue(all(client.ended for client in (self.client, *others)))

    def test_what_was_answered_leaves_before_the_connection_is_closed(self):
        self.client.feed.read_limit = 10
        cookie = self.client.ask(READ, 0, LARGE)
        self.bench.settle()
        self.served.factory.close_clients("enough")
        self.bench.settle()
        self.client.feed.read_limit = None
        self.assertTrue(self.client.data(cookie) == self.bytes[:LARGE])
        self.assertTrue(self.client.ended)

    def test_who_does_not_read_is_cut_off(self):
        self.client.feed.read_limit = 10
        self.client.ask(READ, 0, LARGE)
        self.bench.settle()
        gone = []
        self.served.factory.close_clients("enough").addCallback(gone.append)
        self.bench.advance(LINGER_SECONDS - 1)
        self.assertEqual(gone, [])
        self.bench.advance(1.5)
        self.assertEqual(gone, [None])
        self.assertEqual(self.bench.reactor.getDelayedCalls(), [])

    def test_a_closed_client_s_requests_are_taken_no_more(self):
        self.bench.pool.at_once = False
        self.served.image.cold = True
        self.client.write(0, b"under way")
        self.bench.settle()
        self.client.feed.protocol.abort("enough")
        self.client.write(100, b"too late")
        self.bench.settle()
        self.bench.pool.at_once = True
        self.bench.settle()
        self.assertEqual(self.served.image.done, [("write", 0, 9)])


each_way(EndSuite, globals())


class ThrottleSuite(Base):
    def test_writers_keep_to_the_limit_and_readers_go_on(self):
        reader = self.connect()
        self.export.write_limit = 100_000.0
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
        self.export.write_limit = 100_000.0
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
        self.export.write_limit = None
        for _ in range(3):
            self.bench.advance(1)
        for client in clients:
            client.collect()
        self.assertEqual(sum(len(client.order) for client in clients), 100)

    def test_a_limit_that_is_lifted_lets_everybody_go_within_a_second(self):
        self.export.write_limit = 1.0
        self.client.write(0, b"w" * 1000)
        self.bench.settle()
        cookie = self.client.ask(READ, 0, 1)
        self.bench.advance(5)
        self.assertFalse(self.client.is_answered(cookie))
        self.export.write_limit = None
        self.bench.advance(1)
        self.assertEqual(self.client.data(cookie), b"w")
        self.export.write_limit = 1000.0
        self.client.write(0, b"w")
        self.bench.settle()
        self.bench.advance(0.01)
        self.assertEqual(self.client.read(0, 1), b"w")

    def test_a_writer_that_vanishes_leaves_no_timer(self):
        self.export.write_limit = 1.0
        self.client.write(0, b"w" * 1000)
        self.bench.settle()
        self.client.feed.vanish()
        if self.feed is StreamFeed:
            self.bench.advance(1)  # it isn't read from, so that its end is noticed late
            self.client.feed.protocol.abort("the test ends")
        self.bench.settle()
        self.assertEqual(self.bench.reactor.getDelayedCalls(), [])


each_way(ThrottleSuite, globals())


class KillswitchSuite(Base):
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


class GarbageTests(SynchronousTestCase):
    def test_garbage_ends_at_most_its_own_connection(self):
        rng = random.Random(17)
        for feed in FEEDS:
            served = Served(b"\x05" * 65536)
            self.addCleanup(served.close)
            good = served.client(feed)
            before = open_descriptors()
            for _ in range(40):
                bad = feed(served.bench, served.factory)
                bad.send(rng.randbytes(rng.choice((1, 4, 28, 1000, 100_000))))
                served.bench.settle()
                bad.vanish()
                served.bench.settle()
            for wish, _ in itertools.product(STYLES.values(), range(25)):
                client = served.client(feed, wish)
                self.send_nearly_requests(client, rng)
                served.bench.settle()
                client.feed.vanish()
                served.bench.settle()
            self.assertEqual(open_descriptors(), before)
            self.assertEqual(len(served.factory.clients), 1)
            self.assertEqual(len(good.read(0, 65536)), 65536)
            self.assertEqual(served.export._under_way, 0)

    def send_nearly_requests(self, client, rng):
        """Send frames with the right magic and anything else."""
        extended = client.agreement.extended
        for _ in range(rng.randrange(1, 8)):
            hostile = (0, 1, 512, 65536, 2**31, 2**32 - 1)
            length = rng.choice((*hostile, 2**63, 2**64 - 1) if extended else hostile)
            offset = rng.choice((0, 1, 65535, 65536, 2**63 - 1, 2**64 - 4096, 2**64 - 1))
            flags, command = rng.choice((0, 1, 32, 33, 65535)), rng.randrange(12)
            client.feed.send(pack_request(extended, flags, command, 5, offset, length))
            client.feed.send(rng.randbytes(rng.choice((0, 1, 512))))


class ModelTests(SynchronousTestCase):
    """Random requests from some clients, each on its own part, against a model in memory."""

    size = 1 << 20

    def run_against_model(self, feed, wishes, seed):
        rng = random.Random(seed)
        served = Served(size=self.size)
        self.addCleanup(served.close)
        model = bytearray(self.size)
        part = self.size // len(wishes)
        clients = [served.client(feed, wish) for wish in wishes]
        expected = []
        for _ in range(150):
            served.image.cold = rng.random() < 0.3
            served.bench.pool.at_once = rng.random() < 0.7
            number = rng.randrange(len(clients))
            client = clients[number]
            length = rng.choice((1, 511, 512, 4096, 65536, 100_000))
            offset = number * part + rng.randrange(part - length)
            expected.append(self.step(client, rng, model, offset, length))
            for _ in range(rng.randrange(3)):
                served.bench.turn()
            if rng.random() < 0.1:
                served.export.park()
                served.bench.turn()
                served.export.unpark()
        served.bench.pool.at_once = True
        for client, cookie, data in expected:
            self.assertEqual(client.error(cookie), 0, seed)
            if data is not None:
                self.assertTrue(client.data(cookie) == data, f"seed {seed}")
        self.assertTrue(served.content() == model, f"seed {seed}")

    def step(self, client, rng, model, offset, length):
        """Send a request, and do the same to the model; overlapping ones wait for each other."""
        at_once, client.bench.pool.at_once = client.bench.pool.at_once, True
        client.bench.settle()
        client.bench.pool.at_once = at_once
        data = None
        flags = rng.choice((0, CommandFlag.FUA))
        command = rng.choice((READ, READ, WRITE, WRITE, ZERO, Command.TRIM, FLUSH))
        if command == WRITE:
            payload = rng.choice((rng.randbytes(length), bytes(length)))
            model[offset : offset + length] = payload
            return client, client.write(offset, payload, flags), None
        if command == FLUSH:
            return client, client.ask(FLUSH), None
        if command == READ:
            data = bytes(model[offset : offset + length])
            flags = 0
        else:
            model[offset : offset + length] = bytes(length)
        return client, client.ask(command, offset, length, flags=flags), data

    def test_one_client(self):
        for feed, wish in itertools.product(FEEDS, STYLES.values()):
            self.run_against_model(feed, [wish], seed=1)

    def test_four_clients(self):
        for feed in FEEDS:
            self.run_against_model(feed, [SIMPLE, *STYLES.values()], seed=2)
            self.run_against_model(feed, [EXTENDED] * 4, seed=3)


class ErrnoTests(SynchronousTestCase):
    def test_a_full_disk_costs_no_connection(self):
        for feed in FEEDS:
            served = Served(bytes(65536))
            self.addCleanup(served.close)
            client = served.client(feed)
            served.image.faults["write"] = OSError(errno.ENOSPC, "full")
            self.assertEqual(client.error(client.write(0, b"x" * 4096)), errno.ENOSPC)
            served.image.faults.clear()
            self.assertEqual(client.error(client.write(0, b"x" * 4096)), 0)

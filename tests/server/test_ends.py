"""Every way in which a connection ends, and what leaves and what is told before."""

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionLost
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure

from flexmigrate.server.connection import GOODBYE_SECONDS, LINGER_SECONDS
from flexmigrate.wire.constants import Command
from flexmigrate.wire.requests import pack_request
from support.feeds import PlainFeed
from support.serving import (
    SuiteBase,
    each_way,
)

SIZE = 4 << 20
READ, WRITE, FLUSH, ZERO = Command.READ, Command.WRITE, Command.FLUSH, Command.WRITE_ZEROES
LARGE = 2 << 20


class EndSuite(SuiteBase):
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

    def test_a_reset_behind_disc_is_not_told_as_a_loss(self):
        self.client.feed.read_limit = 10
        self.client.ask(READ, 0, LARGE)
        self.bench.settle()
        (protocol,) = self.served.factory.clients
        told = []
        with capturedLogs() as events:
            self.client.say_goodbye()
            self.client.feed.read_limit = None
            self.bench.settle()
            protocol.connectionLost(Failure(ConnectionLost()))
            told = [formatEvent(event) for event in events]
        self.assertEqual([text for text in told if "lost" in text], [])
        self.assertTrue(any("disconnected" in text for text in told), told)

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

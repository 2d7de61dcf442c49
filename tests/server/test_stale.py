"""What a connection had asked for, and was not begun when its client gave it up, undoes nothing
that the client has done since on another one.
"""

import errno
import random
import socket

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.image.shares import Share, Shares
from flexmigrate.image.storage import NotBegun
from flexmigrate.net.hang_ups import HangUps
from flexmigrate.server.export import MOST_AHEAD
from flexmigrate.wire.constants import Command, CommandFlag
from support.feeds import StreamFeed
from support.serving import SIMPLE, NotingSession, Recorder, Served

SIZE = 1 << 20
READ, WRITE, FLUSH, ZERO = Command.READ, Command.WRITE, Command.FLUSH, Command.WRITE_ZEROES
OLD, NEW = b"O" * 4096, b"N" * 4096


class ComingBack(SynchronousTestCase):
    """Each test holds a connection in another way, with a write behind it; then the client closes
    it, connects again, and writes something newer.
    """

    def setUp(self):
        self.session = NotingSession()
        self.served = Served(random.Random(1).randbytes(SIZE), session=self.session)
        self.addCleanup(self.served.close)
        self.bench = self.served.bench
        self.export = self.served.export
        self.image = self.served.image
        self.client = self.connect()

    def connect(self):
        return self.served.client(StreamFeed, SIMPLE)

    def come_back(self):
        """Give the connection up, and return the answer to a newer write on the next."""
        self.client.feed.vanish()
        again = self.connect()
        return again, again.write(0, NEW)

    def assert_newer(self, again, cookie):
        """The newer write is done, and is never undone."""
        self.assertEqual(again.error(cookie), 0)
        self.assertEqual(self.served.content()[:4096], NEW)
        self.image.cold = False
        self.bench.pool.at_once = True
        self.bench.settle()
        self.bench.advance(60)
        self.assertEqual(self.served.content()[:4096], NEW)
        self.assertEqual(self.image.done.count(("write", 0, 4096)), 1)

    def test_behind_as_many_requests_as_may_be_under_way(self):
        self.bench.pool.at_once = False
        requests = b"".join(self.client.request(FLUSH) for _ in range(64))
        self.client.feed.send(requests + self.client.request(WRITE, 0, payload=OLD))
        self.bench.settle()
        self.assert_newer(*self.come_back())

    def test_behind_those_and_still_in_the_socket(self):
        self.bench.pool.at_once = False
        self.client.feed.send(b"".join(self.client.request(FLUSH) for _ in range(64)))
        self.bench.settle()
        self.client.write(0, OLD)
        self.assert_newer(*self.come_back())

    def test_behind_a_piece_of_a_long_write(self):
        self.bench.pool.at_once = False
        self.image.cold = True
        long = self.client.request(WRITE, 8192, payload=b"L" * 300_000)
        self.client.feed.send(long + self.client.request(WRITE, 0, payload=OLD))
        self.bench.settle()
        again, cookie = self.come_back()
        # The piece is under way: the newer write waits for it.
        self.assertFalse(again.is_answered(cookie))
        self.image.cold = False
        self.bench.pool.work()
        self.assert_newer(again, cookie)
        self.assertEqual([name for name, *_ in self.image.done], ["write", "write"])

    def test_a_piece_that_did_not_arrive_whole(self):
        recorder = self.export.observer = Recorder()
        long = self.client.request(WRITE, 0, payload=b"O" * 300_000)
        self.client.feed.send(long[:200_000])
        self.bench.settle()
        self.export.park()
        self.client.feed.send(long[200_000:])
        self.client.feed.vanish()
        again = self.connect()
        cookie = again.write(0, NEW)
        done = list(self.image.done)
        self.export.unpark()
        self.assertEqual(again.error(cookie), 0)
        self.assertEqual(self.image.done, [*done, ("write", 0, 4096)])
        self.assertEqual(recorder.events[-1], ("marked", 0, 4096))

    def test_parked(self):
        self.export.park()
        self.client.write(0, OLD)
        self.bench.settle()
        again, cookie = self.come_back()
        self.assertFalse(again.is_answered(cookie))
        self.export.unpark()
        self.assert_newer(again, cookie)

    def test_parked_with_some_of_it_received(self):
        write = self.client.request(WRITE, 0, payload=OLD)
        self.client.feed.send(write[:100])
        self.bench.settle()
        self.export.park()
        self.client.feed.send(write[100:])
        again, cookie = self.come_back()
        self.export.unpark()
        self.assert_newer(again, cookie)

    def test_slowed_down(self):
        changed = iter(range(0, 1 << 40, 1 << 20))
        self.export.slow_writers(self.bench.clock, 1 << 20, lambda: next(changed))
        self.client.write(8192, b"much")
        self.bench.settle()
        self.client.write(0, OLD)
        self.export.free_writers, free = (lambda: None), self.export.free_writers
        again, cookie = self.come_back()
        self.assertEqual(again.error(cookie), 0)
        free()
        self.assert_newer(again, cookie)

    def test_not_reading_its_replies(self):
        self.client.feed.read_limit = 10
        for _ in range(2):
            self.client.ask(READ, 0, 512 * 1024)
        self.bench.settle()
        self.client.write(0, OLD)
        self.assert_newer(*self.come_back())

    def test_waiting_for_what_has_to_be_recorded_first(self):
        recorded = Deferred()
        self.session.transmitting = lambda connection: recorded
        self.client.feed.vanish()
        self.client = self.connect()
        self.client.write(0, OLD)
        self.bench.settle()
        self.session.transmitting = lambda connection: None
        again, cookie = self.come_back()
        self.assertEqual(again.error(cookie), 0)
        recorded.callback(None)
        self.assert_newer(again, cookie)

    def test_waiting_for_what_the_connection_before_it_left_under_way(self):
        self.bench.pool.at_once = False
        self.image.cold = True
        self.client.write(8192, b"first")
        self.bench.settle()
        self.client.feed.vanish()
        self.bench.settle()
        self.client = self.connect()
        self.client.write(0, OLD)
        self.bench.settle()
        again, cookie = self.come_back()
        self.assertFalse(again.is_answered(cookie))
        self.image.cold = False
        self.bench.pool.work()
        self.assert_newer(again, cookie)

    def test_who_comes_later_waits_only_for_what_was_left_before(self):
        other = self.connect()
        other.read(0, 1)
        self.bench.pool.at_once = False
        self.image.cold = True
        self.client.write(8192, b"first")
        self.bench.settle()
        other.write(16384, b"second")
        self.bench.settle()
        again, cookie = self.come_back()
        self.assertFalse(again.is_answered(cookie))
        other.feed.vanish()
        self.bench.settle()
        self.image.cold = False
        self.bench.pool.work()  # the first; the second goes on for ever
        self.assertEqual(again.error(cookie), 0)

    def test_waiting_for_a_thread(self):
        self.served.storage._calls._share = Share(Shares(threads=0))
        recorder = self.export.observer = Recorder()
        self.bench.pool.at_once = False
        self.image.cold = True
        self.client.write(8192, b"begun")
        for _ in range(3):
            self.client.write(0, OLD)
        self.client.write(0, OLD, flags=CommandFlag.FUA)
        self.client.ask(ZERO, 0, 4096)
        self.bench.settle()
        again, cookie = self.come_back()
        self.assertFalse(again.is_answered(cookie))
        self.image.cold = False
        self.bench.pool.work()
        self.assert_newer(again, cookie)
        self.assertEqual(recorder.events, [("marked", 8192, 5), ("marked", 0, 4096)])
        self.assertEqual(self.export.idle().called, True)

    def test_waiting_for_a_thread_when_nobody_comes_back(self):
        self.served.storage._calls._share = Share(Shares(threads=0))
        self.bench.pool.at_once = False
        self.image.cold = True
        self.client.write(8192, b"begun")
        self.client.write(0, OLD)
        self.client.ask(READ, 0, 512)
        self.bench.settle()
        self.client.feed.vanish()
        self.bench.settle()
        self.bench.pool.at_once = True
        self.bench.settle()
        self.assertEqual(self.image.done, [("write", 8192, 5)])
        self.assertEqual(self.served.storage.pending, 0)

    def test_what_it_said_disc_behind_is_done_before_the_newer_write(self):
        self.served.storage._calls._share = Share(Shares(threads=0))
        self.bench.pool.at_once = False
        self.image.cold = True
        self.client.write(8192, b"begun")
        self.client.write(0, OLD)
        self.client.say_goodbye()
        self.bench.settle()
        again, cookie = self.come_back()
        self.image.cold = False
        self.bench.pool.work()
        self.assertFalse(again.is_answered(cookie))
        self.bench.pool.work()
        self.assertEqual(again.error(cookie), 0)
        offsets = [offset for _, offset, _ in self.image.done]
        self.assertEqual((offsets, self.served.content()[:4096]), ([8192, 0, 0], NEW))

    def test_closed_after_the_next_has_connected_but_before_it_asks(self):
        self.bench.pool.at_once = False
        self.client.feed.send(b"".join(self.client.request(FLUSH) for _ in range(64)))
        self.client.write(0, OLD)
        self.bench.settle()
        again = self.connect()
        self.client.feed.vanish()
        self.assert_newer(again, again.write(0, NEW))

    def test_all_have_hung_up_when_it_is_unparked(self):
        for _ in range(8):  # whatever the order in which they go on
            self.export.park()
            self.client.write(0, OLD)
            again, cookie = self.come_back()
            again.feed.sock.shutdown(socket.SHUT_WR)
            self.bench.settle()
            self.export.unpark()
            self.assertEqual(again.error(cookie), 0)
            self.assertEqual(self.served.content()[:4096], NEW)
            self.client = self.connect()

    def test_a_connection_that_was_there_before_is_used_instead(self):
        idle = self.connect()
        self.client, idle = idle, self.client
        self.bench.pool.at_once = False
        self.client.feed.send(b"".join(self.client.request(FLUSH) for _ in range(64)))
        self.client.write(0, OLD)
        self.bench.settle()
        self.client.feed.vanish()
        self.assert_newer(idle, idle.write(0, NEW))


class SayingNoMore(SynchronousTestCase):
    """A client that has ended its sending and still reads."""

    def setUp(self):
        self.served = Served(bytes(SIZE))
        self.addCleanup(self.served.close)
        self.bench = self.served.bench
        self.client = self.served.client(StreamFeed, SIMPLE)
        self.served.export.park()
        self.cookie = self.client.write(0, OLD)
        self.bench.settle()
        self.client.feed.sock.shutdown(socket.SHUT_WR)

    def test_is_served_while_nobody_else_is_there(self):
        self.served.export.unpark()
        self.assertEqual(self.client.error(self.cookie), 0)
        self.assertEqual(self.served.content()[:4096], OLD)

    def test_is_dropped_for_others(self):
        other = self.served.client(StreamFeed, SIMPLE)
        self.served.export.unpark()
        self.assertEqual(other.read(0, 4096), bytes(4096))
        self.assertTrue(self.client.ended)

    def test_is_served_beside_others_where_nothing_can_be_changed(self):
        self.served.export.read_only = True
        other = self.served.client(StreamFeed, SIMPLE)
        self.served.export.unpark()
        self.assertEqual(len(other.read(0, 4096)), 4096)
        self.assertTrue(self.client.is_answered(self.cookie))


class OthersStay(SynchronousTestCase):
    """Who is there is left alone by those who come."""

    def test_what_they_ask_for_is_answered_in_order(self):
        served = Served(bytes(SIZE))
        self.addCleanup(served.close)
        first = served.client(StreamFeed, SIMPLE)
        served.bench.pool.at_once = False
        first.feed.send(b"".join(first.request(FLUSH) for _ in range(64)))
        served.bench.settle()
        # So much that it doesn't fit into a buffer, and is only looked through for its end.
        payloads = [bytes([number]) * 70_000 for number in range(1, 11)]
        cookies = [first.write(number * 70_000, each) for number, each in enumerate(payloads)]
        second = served.client(StreamFeed, SIMPLE)
        self.assertEqual(second.error(second.write(SIZE - 512, b"n" * 512)), 0)
        served.bench.pool.at_once = True
        for cookie in cookies:
            self.assertEqual(first.error(cookie), 0)
        self.assertEqual(served.content()[:700_000], b"".join(payloads))

    def test_no_more_is_kept_of_them_than_there_is_room_for(self):
        served = Served(bytes(SIZE))
        self.addCleanup(served.close)
        first = served.client(StreamFeed, SIMPLE)
        first.feed.transport.read_ahead = lambda most: asked.append(most) or 0
        asked = []
        served.bench.pool.at_once = False
        first.feed.send(b"".join(first.request(FLUSH) for _ in range(64)))
        served.bench.settle()
        first.write(0, OLD)
        served.client(StreamFeed, SIMPLE).ask(FLUSH)
        served.bench.settle()
        self.assertEqual(asked, [MOST_AHEAD])
        first.feed.protocol._behind = memoryview(bytes(MOST_AHEAD))
        served.client(StreamFeed, SIMPLE).ask(FLUSH)
        served.bench.settle()
        self.assertEqual(asked, [MOST_AHEAD])


class OverTCP(SynchronousTestCase):
    """The kernel's part, with real connections."""

    def setUp(self):
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.far = socket.create_connection(listening.getsockname())
            self.near, _ = listening.accept()
        self.addCleanup(self.far.close)
        self.addCleanup(self.near.close)
        self.hang_ups = HangUps()
        self.hang_ups.add("near", self.near)

    def test_an_end_behind_what_was_not_read_is_seen(self):
        self.assertEqual(self.hang_ups.look(), ([], []))
        self.far.sendall(b"something")
        self.assertEqual(self.hang_ups.look(), ([], ["near"]))
        self.far.close()
        self.assertEqual(self.hang_ups.look(), (["near"], []))
        self.assertEqual(self.near.recv(100), b"something")

    def test_whose_descriptor_was_closed_is_forgotten(self):
        number = self.near.fileno()
        self.near.close()
        # The kernel gives the lowest number that is free.
        same, another = socket.socketpair()
        self.addCleanup(same.close)
        self.assertEqual(same.fileno(), number)
        self.hang_ups.add("same", same)
        self.hang_ups.remove("near")
        another.close()
        self.assertEqual(self.hang_ups.look(), (["same"], []))
        self.hang_ups.remove("same")
        self.assertEqual(self.hang_ups.look(), ([], []))

    def test_transports_without_a_descriptor_may_know_themselves(self):
        class InMemory:
            peer_has_ended = False

        known, unknown = InMemory(), object()
        self.hang_ups.add("known", known)
        self.hang_ups.add("unknown", unknown)
        self.assertEqual(self.hang_ups.look(), ([], []))
        known.peer_has_ended = True
        self.assertEqual(self.hang_ups.look(), (["known"], []))


def test_what_was_not_begun_says_so():
    assert NotBegun().errno == errno.ECANCELED

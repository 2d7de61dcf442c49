"""Sockets that stand as one among a reactor's descriptors."""

import select
import socket

from twisted.internet import main
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableDescriptor
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from flexmigrate.net.readers import MOST_AT_ONCE, Readers


class Reactor:
    def __init__(self):
        self.calls = []
        self.readers = set()

    def addReader(self, reader):
        self.calls.append("add")
        self.readers.add(reader)

    def removeReader(self, reader):
        self.calls.append("remove")
        self.readers.remove(reader)

    def removeWriter(self, writer):
        self.calls.append("remove writer")


class Reader:
    """Reads a byte each time; then does what the test says."""

    def __init__(self, then=lambda: None):
        self.near, self.far = socket.socketpair()
        self.then = then
        self.read = b""
        self.lost = []

    def fileno(self):
        return self.near.fileno()

    def doRead(self):
        self.read += self.near.recv(1)
        return self.then()

    def connectionLost(self, reason):
        self.lost.append(reason.type)


@implementer(IHalfCloseableDescriptor)
class HalfCloseable(Reader):
    def readConnectionLost(self, reason):
        self.lost.append("half")


class ReadersTests(SynchronousTestCase):
    def setUp(self):
        self.reactor = Reactor()
        self.readers = Readers(self.reactor)

    def reader(self, *args, kind=Reader):
        reader = kind(*args)
        self.addCleanup(reader.near.close)
        self.addCleanup(reader.far.close)
        self.readers.add(reader)
        return reader

    def turn(self):
        """Do what a reactor does, once."""
        for each in select.select(self.reactor.readers, [], [], 0)[0]:
            each.doRead()

    def test_all_that_are_readable_have_their_turn_in_one_call(self):
        busy, idle = [self.reader() for _ in range(5)], self.reader()
        for each in busy:
            each.far.send(b"ab")
        self.turn()
        self.assertEqual([each.read for each in busy], [b"a"] * 5)
        self.turn()
        self.assertEqual([each.read for each in busy], [b"ab"] * 5)
        self.assertEqual(idle.read, b"")

    def test_they_are_with_the_reactor_only_while_there_are_any(self):
        self.assertEqual(self.reactor.calls, [])
        one, other = self.reader(), self.reader()
        self.readers.add(one)
        self.readers.remove(one)
        self.readers.remove(one)
        self.assertEqual(self.reactor.readers, {self.readers})
        self.readers.remove(other)
        self.assertEqual(self.reactor.readers, set())
        self.readers.add(one)
        one.far.send(b"a")
        self.turn()
        self.assertEqual(one.read, b"a")

    def test_more_than_have_their_turn_at_once_wait_for_the_next(self):
        readers = [self.reader() for _ in range(MOST_AT_ONCE + 6)]
        for each in readers:
            each.far.send(b"a")
        self.turn()
        self.assertEqual(sum(each.read == b"a" for each in readers), MOST_AT_ONCE)
        self.turn()
        self.assertEqual(sum(each.read == b"a" for each in readers), len(readers))

    def test_one_that_another_ended_is_not_called(self):
        readers = []

        def end_others():
            for each in readers:
                if not each.read:
                    self.readers.remove(each)

        readers += [self.reader(end_others) for _ in range(3)]
        for each in readers:
            each.far.send(b"a")
        self.turn()
        self.assertEqual(sorted(each.read for each in readers), [b"", b"", b"a"])

    def test_one_that_is_lost_is_told_and_taken_out_and_the_others_go_on(self):
        lost, other = self.reader(lambda: main.CONNECTION_LOST), self.reader()
        for each in (lost, other):
            each.far.send(b"a")
        self.turn()
        self.assertEqual(lost.lost, [ConnectionLost])
        self.assertIn("remove writer", self.reactor.calls)
        self.assertEqual(other.read, b"a")
        lost.far.send(b"b")
        self.turn()
        self.assertEqual(lost.read, b"a")

    def test_one_that_was_closed_in_order_may_still_be_written_to(self):
        half = self.reader(lambda: main.CONNECTION_DONE, kind=HalfCloseable)
        whole = self.reader(lambda: main.CONNECTION_DONE)
        for each in (half, whole):
            each.far.send(b"a")
        self.turn()
        self.assertEqual(half.lost, ["half"])
        self.assertEqual(whole.lost, [ConnectionDone])

    def test_a_bug_ends_its_own_connection_alone(self):
        buggy, other = self.reader(lambda: 1 / 0), self.reader()
        for each in (buggy, other):
            each.far.send(b"a")
        self.turn()
        self.assertEqual(buggy.lost, [ZeroDivisionError])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(other.read, b"a")

    def test_when_the_reactor_stops_all_are_told_whatever_one_does(self):
        self.reader().connectionLost = lambda reason: 1 / 0
        readers = [self.reader() for _ in range(2)]
        self.readers.connectionLost(Failure(main.CONNECTION_LOST))
        self.assertEqual([each.lost for each in readers], [[ConnectionLost]] * 2)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.reactor.readers, set())

"""Sending over a transport that knows nothing of outlets: in order, bounded, closed properly."""

import errno
import os

from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.net.outlet import PIECE, PlainOutlet, outlet_for
from support.feeds import BUFFER, PlainTransport

CONTENT = os.urandom(3 * PIECE + 17)


class Source:
    fd = -1

    def __init__(self):
        self.reads = []
        self.fault = None

    def read(self, offset, length):
        if self.fault is not None:
            raise self.fault
        self.reads.append((offset, length))
        return CONTENT[offset : offset + length]


class Producer:
    def __init__(self):
        self.told = []

    def pauseProducing(self):
        self.told.append("pause")

    def resumeProducing(self):
        self.told.append("resume")

    def stopProducing(self):
        self.told.append("stop")


class PlainOutletTests(SynchronousTestCase):
    def setUp(self):
        self.transport = PlainTransport(None)
        self.producer = Producer()
        self.source = Source()
        self.outlet = outlet_for(self.transport, self.producer)
        self.assertIsInstance(self.outlet, PlainOutlet)

    def drain(self):
        """Read all that comes."""
        got = b""
        while self.transport.sent:
            got += self.transport.drain(10_000)
        return got

    def test_short_data_is_written_at_once(self):
        data = bytearray(b"data")
        self.outlet.send(data, more=True)
        self.outlet.send(memoryview(data)[1:])
        data[:] = b"----"
        self.assertEqual(bytes(self.transport.sent), b"dataata")
        self.assertEqual(self.producer.told, [])

    def test_a_file_is_read_piece_by_piece_as_the_transport_drains(self):
        self.outlet.send(b"head", more=True)
        self.outlet.send_file(self.source, 0, len(CONTENT))
        self.outlet.send(b"tail")
        self.assertEqual(self.source.reads, [(0, PIECE)])
        self.assertTrue(self.outlet.congested)
        self.assertEqual(self.producer.told, ["pause"])
        self.assertTrue(self.drain() == b"head" + CONTENT + b"tail")
        self.assertLess(self.transport.most_held, PIECE + BUFFER)
        self.assertFalse(self.outlet.congested)
        self.assertEqual((self.producer.told[0], self.producer.told[-1]), ("pause", "resume"))
        self.assertEqual(self.producer.told.count("resume"), 1)

    def test_all_of_a_file_goes_at_once_where_the_transport_takes_it(self):
        transport = StringTransport()
        outlet = outlet_for(transport, self.producer)
        outlet.send_file(self.source, 5, 2 * PIECE)
        self.assertTrue(transport.value() == CONTENT[5 : 5 + 2 * PIECE])
        self.assertEqual(self.producer.told, [])

    def test_a_file_that_can_not_be_read_ends_the_connection(self):
        self.outlet.send_file(self.source, 0, len(CONTENT))
        self.source.fault = OSError(errno.EIO, "bad sector")
        self.drain()
        self.assertTrue(self.transport.aborted)
        self.outlet.send(b"nothing more")
        self.outlet.send_file(self.source, 0, 5)
        self.assertFalse(self.outlet.congested)
        self.assertNotIn("resume", self.producer.told)

    def test_finish_closes_at_once_where_nothing_waits(self):
        self.outlet.send(b"bye")
        self.outlet.finish()
        self.assertTrue(self.transport.disconnecting)
        self.assertIsNone(self.transport.producer)
        self.assertEqual(self.drain(), b"bye")

    def test_finish_lets_all_leave_first(self):
        self.outlet.send_file(self.source, 0, len(CONTENT))
        self.outlet.send(b"bye")
        self.outlet.finish()
        self.outlet.send(b"too late")
        self.outlet.send_file(self.source, 0, 5)
        self.assertFalse(self.transport.disconnecting)
        self.assertTrue(self.drain() == CONTENT + b"bye")
        self.assertTrue(self.transport.disconnecting)
        self.assertIsNone(self.transport.producer)
        self.assertNotIn("resume", self.producer.told)

    def test_a_lost_connection_keeps_nothing(self):
        self.outlet.send_file(self.source, 0, len(CONTENT))
        self.outlet.stopProducing()
        self.outlet.finish()
        self.outlet.send(b"more")
        reads = list(self.source.reads)
        self.outlet.resumeProducing()
        self.assertEqual(self.source.reads, reads)
        self.assertNotIn("resume", self.producer.told)

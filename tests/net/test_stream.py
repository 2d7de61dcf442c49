"""The stream transport: what Twisted's own does, with another way in and out for who wants it."""

import contextlib
import errno
import os
import socket
import ssl
import stat
import struct
import tempfile
from pathlib import Path

from twisted.internet import error
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import ClientFactory, Factory, Protocol
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from flexmigrate.net.interfaces import IBufferedProtocol, IOutlet
from flexmigrate.net.polling import Poller
from flexmigrate.net.stream import RECORDS_TURN
from flexmigrate.net.streaming import streaming
from flexmigrate.net.tls import server_context
from support.certificates import Authority
from support.feeds import Bench

PAYLOAD = os.urandom(1 << 20)


class Plain(Protocol):
    """Keeps what it gets."""

    def __init__(self):
        self.received = bytearray()
        self.lost = None

    def dataReceived(self, data):
        self.received += data

    def connectionLost(self, reason=None):
        self.lost = reason


@implementer(IBufferedProtocol)
class Buffered(Plain):
    """Keeps what it gets, through a buffer of its own."""

    size = 1000
    poller = None
    waits = False

    def connectionMade(self):
        self.buffer = memoryview(bytearray(self.size))

    def get_buffer(self):
        return self.buffer

    def buffer_updated(self, size):
        assert 0 < size <= self.size
        self.received += self.buffer[:size]

    def dataReceived(self, data):
        raise AssertionError("it has a buffer")


@implementer(IPushProducer)
class Producer:
    """Counts what it is told."""

    def __init__(self):
        self.told = []

    def pauseProducing(self):
        self.told.append("pause")

    def resumeProducing(self):
        self.told.append("resume")

    def stopProducing(self):
        self.told.append("stop")


class Source:
    """A file to send from."""

    def __init__(self, test, content):
        file = tempfile.TemporaryFile()  # noqa: SIM115  # until the test's end
        test.addCleanup(file.close)
        file.write(content)
        file.flush()
        self.file, self.fd = file, file.fileno()

    def read(self, offset, length):
        data = os.pread(self.fd, length, offset)
        if len(data) < length:
            raise OSError(errno.EIO, f"there is no byte {offset + len(data)}")
        return data


def context():
    """Return what startTLS takes; nobody gets as far as to see a certificate."""
    return CertificateOptions()


class WithSockets(SynchronousTestCase):
    def setUp(self):
        self.bench = Bench()
        self.addCleanup(self.bench.close)
        self.reactor = streaming(self.bench.reactor)

    def listen(self, protocol, reactor=None):
        """Serve one *protocol* over TCP; return the address."""
        factory = Factory.forProtocol(lambda: protocol)
        factory.noisy = False
        port = (reactor or self.reactor).listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        return port.getHost().host, port.getHost().port

    def connect(self, protocol, reactor=None):
        """Return the client's socket of a connection to *protocol*."""
        client = socket.create_connection(self.listen(protocol, reactor))
        self.addCleanup(client.close)
        self.bench.until(lambda: protocol.connected)
        client.setblocking(False)
        return client

    def receive(self, client, length):
        """Return *length* bytes as they come."""
        got = bytearray()

        def enough():
            with contextlib.suppress(BlockingIOError):
                got.extend(client.recv(length - len(got)))
            return len(got) >= length

        self.bench.until(enough)
        return bytes(got)

    def is_at_end(self, client):
        """Wait for the end of the connection; return whether it was a clean one."""
        ends = []

        def ended():
            try:
                ends.append(client.recv(1 << 20) == b"")
            except BlockingIOError:
                return False
            except ConnectionResetError:
                ends.append(False)
                return True
            return ends[-1]

        self.bench.until(ended)
        return ends[-1]


class AsTwistedTests(WithSockets):
    """A protocol that knows nothing of it sees no difference to Twisted's transports."""

    def each(self, make=Plain):
        for reactor in (self.bench.reactor, self.reactor):
            protocol = make()
            yield protocol, self.connect(protocol, reactor)

    def test_bytes_arrive_both_ways_and_a_close_comes_after_them(self):
        for protocol, client in self.each():
            client.sendall(b"ping")
            self.bench.until(lambda p=protocol: p.received == b"ping")
            protocol.transport.write(PAYLOAD)
            protocol.transport.writeSequence([b"and", b"more"])
            protocol.transport.loseConnection()
            self.assertTrue(self.receive(client, len(PAYLOAD) + 7) == PAYLOAD + b"andmore")
            self.assertTrue(self.is_at_end(client))
            self.bench.until(lambda p=protocol: p.lost)
            self.assertTrue(protocol.lost.check(ConnectionDone))

    def test_an_abort_is_a_reset_that_drops_what_waits(self):
        for protocol, client in self.each():
            protocol.transport.write(PAYLOAD * 8)
            protocol.transport.abortConnection()
            protocol.transport.write(b"too late")
            self.assertFalse(self.is_at_end(client))
            self.assertTrue(protocol.lost.check(ConnectionAborted))

    def test_a_push_producer_is_paused_and_resumed(self):
        for protocol, client in self.each():
            producer = Producer()
            protocol.transport.registerProducer(producer, True)
            protocol.transport.write(PAYLOAD * 8)
            self.bench.until(lambda p=producer: p.told == ["pause"])
            self.receive(client, 8 * len(PAYLOAD))
            self.bench.until(lambda p=producer: p.told == ["pause", "resume"])
            protocol.transport.unregisterProducer()

    def test_a_pull_producer_is_asked_for_more_until_it_leaves(self):
        for protocol, client in self.each():

            class Pull:
                left = [b"one ", b"two ", PAYLOAD, b"three"]

                def resumeProducing(self, transport=protocol.transport):
                    transport.write(self.left.pop(0))
                    if not self.left:
                        transport.unregisterProducer()

                def stopProducing(self):
                    raise AssertionError("stopped")

            Pull.left = list(Pull.left)
            protocol.transport.registerProducer(Pull(), False)
            protocol.transport.loseConnection()
            whole = b"one two " + PAYLOAD + b"three"
            self.assertTrue(self.receive(client, len(whole)) == whole)
            self.assertTrue(self.is_at_end(client))

    def test_a_producer_hears_of_the_end(self):
        for protocol, client in self.each():
            producer = Producer()
            protocol.transport.registerProducer(producer, True)
            client.close()
            self.bench.until(lambda p=protocol: p.lost)
            self.assertEqual(producer.told, ["stop"])

    def test_writing_may_be_closed_alone(self):
        for protocol, client in self.each():
            protocol.transport.write(b"last words")
            protocol.transport.loseWriteConnection()
            self.assertEqual(self.receive(client, 10), b"last words")
            self.assertTrue(self.is_at_end(client))
            client.sendall(b"still heard")
            self.bench.until(lambda p=protocol: p.received == b"still heard")

    def test_a_paused_transport_does_not_read(self):
        for protocol, client in self.each():
            protocol.transport.pauseProducing()
            client.sendall(b"waits")
            for _ in range(5):
                self.bench.reactor.iterate(0)
            self.assertEqual(protocol.received, b"")
            protocol.transport.resumeProducing()
            self.bench.until(lambda p=protocol: p.received == b"waits")


class BufferedTests(WithSockets):
    def test_bytes_land_in_the_protocol_s_own_buffer(self):
        protocol = Buffered()
        client = self.connect(protocol)
        client.setblocking(True)
        client.sendall(PAYLOAD[:5000])
        self.bench.until(lambda: len(protocol.received) == 5000)
        self.assertEqual(protocol.received, PAYLOAD[:5000])
        client.close()
        self.bench.until(lambda: protocol.lost)
        self.assertTrue(protocol.lost.check(ConnectionDone))

    def test_what_the_reactor_saw_before_a_pause_is_not_read(self):
        protocol = Buffered()
        client = self.connect(protocol)
        client.sendall(b"waits")
        protocol.transport.pauseProducing()
        self.assertIsNone(protocol.transport.doRead())
        self.assertEqual(protocol.received, b"")
        protocol.transport.resumeProducing()
        self.bench.until(lambda: protocol.received == b"waits")

    def test_a_protocol_that_starts_tls_is_not_looked_at_for_more(self):
        protocol = Buffered()
        client = self.connect(protocol)
        protocol.poller = Poller(0.01)
        for number in range(1, 30):
            if number == 20:
                protocol.buffer_updated = lambda size: protocol.transport.startTLS(context())
            client.sendall(b"\x16" * 5)
            self.bench.until(
                lambda n=number: protocol.transport.TLS or len(protocol.received) == 5 * n
            )
            if protocol.transport.TLS:
                break
        self.assertTrue(protocol.transport.TLS)
        protocol.transport.abortConnection()
        self.bench.until(lambda: protocol.lost)

    def test_one_that_waits_for_the_reactor_is_not_looked_at_for_more(self):
        protocol = Buffered()
        client = self.connect(protocol)
        protocol.poller = poller = Poller(0.01)
        looks = {}
        for protocol.waits in (True, False):
            for _ in range(30):
                before = len(protocol.received)
                client.sendall(b"asks")
                self.bench.until(lambda n=before: len(protocol.received) == n + 4)
            looks[protocol.waits] = poller.hits + poller.misses
        self.assertEqual(looks[True], 0)
        self.assertGreater(looks[False], 0)

    def test_a_reset_is_told_as_a_loss(self):
        protocol = Buffered()
        client = self.connect(protocol)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        self.bench.until(lambda: protocol.lost)
        self.assertFalse(protocol.lost.check(ConnectionDone))

    def test_a_reset_that_comes_with_a_nap_is_told_as_one(self):
        protocol = Buffered()
        self.connect(protocol)
        transport, sizes = protocol.transport, iter((4, ConnectionResetError()))

        class Socket:
            def recv_into(self, buffer):
                found = next(sizes, 0)  # the kernel tells it once
                if isinstance(found, Exception):
                    raise found
                return found

        real, transport.socket = transport.socket, Socket()
        self.addCleanup(setattr, transport, "socket", real)
        poller = Poller()
        while not poller._coalesce():
            pass
        self.assertEqual(poller.look(transport._receive), 4)
        self.assertEqual(poller.look(transport._receive), -2)  # and not 0, the end


class ConnectingTests(WithSockets):
    def test_one_that_is_refused_only_after_a_while_is_told_so(self):
        """As over a real network, where the answer takes its time."""
        listener = socket.create_server(("127.0.0.1", 0), backlog=0)
        self.addCleanup(listener.close)
        address = listener.getsockname()
        for _ in range(4):  # no more are let in, so that the next is not answered
            waiting = socket.socket()
            self.addCleanup(waiting.close)
            waiting.setblocking(False)
            waiting.connect_ex(address)
        failed = []

        class Maker(ClientFactory):
            noisy = False

            def clientConnectionFailed(self, connector, reason):
                failed.append(reason)

        self.reactor.connectTCP(*address, Maker())
        self.bench.turn()
        self.assertEqual(failed, [])
        listener.close()
        self.bench.until(lambda: failed)
        self.assertTrue(failed[0].check(error.ConnectionRefusedError), failed)


class SendingTests(WithSockets):
    def setUp(self):
        super().setUp()
        self.protocol = Buffered()
        self.client = self.connect(self.protocol)
        self.outlet = self.protocol.transport
        self.producer = Producer()
        self.outlet.registerProducer(self.producer, True)

    def test_it_is_an_outlet(self):
        self.assertTrue(IOutlet.providedBy(self.outlet))

    def test_what_is_sent_arrives_in_order_however_slowly_it_is_read(self):
        source = Source(self, PAYLOAD)
        scratch = bytearray(b"first")
        self.outlet.send(scratch, more=True)
        scratch[:] = b"-----"
        self.outlet.send_file(source, 5, 700_000)
        reused = bytearray(PAYLOAD)
        self.outlet.send(memoryview(reused))
        reused[:] = bytes(len(reused))
        self.outlet.send_file(source, 0, len(PAYLOAD))
        self.outlet.send(b"last")
        whole = b"first" + PAYLOAD[5:700_005] + PAYLOAD + PAYLOAD + b"last"
        got = b""
        while len(got) < len(whole):
            got += self.receive(self.client, min(100_003, len(whole) - len(got)))
        self.assertTrue(got == whole)

    def test_its_producer_is_paused_while_anything_waits(self):
        self.assertFalse(self.outlet.congested)
        self.outlet.send(b"fits")
        self.assertEqual(self.producer.told, [])
        self.outlet.send(PAYLOAD * 8)
        self.assertTrue(self.outlet.congested)
        self.outlet.send(b"more")
        self.assertEqual(self.producer.told, ["pause"])
        self.receive(self.client, 8 * len(PAYLOAD) + 8)
        self.bench.until(lambda: self.producer.told == ["pause", "resume"])
        self.assertFalse(self.outlet.congested)

    def test_nothing_is_nothing(self):
        self.outlet.send(b"")
        self.outlet.send_file(Source(self, b""), 0, 0)
        self.outlet.send(b"something")
        self.assertEqual(self.receive(self.client, 9), b"something")

    def test_finish_closes_once_all_has_left_and_tells_the_producer_nothing(self):
        source = Source(self, PAYLOAD * 8)
        self.outlet.send_file(source, 0, 8 * len(PAYLOAD))
        self.outlet.finish()
        self.assertTrue(self.receive(self.client, 8 * len(PAYLOAD)) == PAYLOAD * 8)
        self.assertTrue(self.is_at_end(self.client))
        self.assertEqual(self.producer.told, ["pause"])

    def test_a_file_that_ends_early_ends_the_connection(self):
        self.outlet.send_file(Source(self, b"short"), 0, 100)
        self.outlet.send(b"not for that read")
        self.assertEqual(self.receive(self.client, 5), b"short")
        self.is_at_end(self.client)
        self.bench.until(lambda: self.protocol.lost)
        self.assertFalse(self.protocol.lost.check(ConnectionDone))
        fault = "could not read what it was to send: there is no byte 5"
        self.assertIn(fault, self.protocol.lost.getErrorMessage())

    def test_a_file_that_is_truncated_while_it_waits_ends_the_connection(self):
        source = Source(self, PAYLOAD * 16)
        self.outlet.send_file(source, 0, 16 * len(PAYLOAD))
        self.assertTrue(self.outlet.congested)
        os.truncate(source.fd, 0)
        self.is_at_end(self.client)
        self.bench.until(lambda: self.protocol.lost)

    def test_sending_to_who_has_gone_is_told_as_a_loss_later(self):
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.client.close()
        self.outlet.send(PAYLOAD)
        self.outlet.send_file(Source(self, PAYLOAD), 0, len(PAYLOAD))
        self.assertIsNone(self.protocol.lost)
        self.bench.until(lambda: self.protocol.lost)
        self.outlet.send(b"nothing happens")
        self.outlet.send_file(Source(self, PAYLOAD), 0, 5)
        self.outlet.finish()
        self.outlet.abortConnection()

    def test_a_lost_connection_keeps_no_file(self):
        self.outlet.send_file(Source(self, PAYLOAD * 16), 0, 16 * len(PAYLOAD))
        self.client.close()
        self.bench.until(lambda: self.protocol.lost)
        self.assertFalse(self.outlet.congested)

    def test_after_an_abort_nothing_is_sent(self):
        self.outlet.abortConnection()
        self.outlet.send(b"too late")
        self.assertFalse(self.is_at_end(self.client))


MANY = 1 << 26


class Endless:
    """A producer that writes whenever it may."""

    def __init__(self, transport, piece):
        self.transport, self.piece = transport, piece
        self.turns = []  # the bytes of each
        self.paused = False
        transport.registerProducer(self, True)

    def resumeProducing(self):
        self.paused = False
        self.turns.append(0)
        while not self.paused and self.turns[-1] < MANY:
            self.transport.write(self.piece)
            self.turns[-1] += len(self.piece)

    def pauseProducing(self):
        self.paused = True

    def stopProducing(self):
        self.paused = True


class TLSTests(WithSockets):
    """What TLS makes of what is written goes out together."""

    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        Authority().issue("server").write(Path(folder.name), "server")
        self.server = Plain()
        self.client = self.connect(self.server)
        self.server.transport.startTLS(server_context(folder.name, verify_peer=False))
        theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        theirs.check_hostname, theirs.verify_mode = False, ssl.CERT_NONE
        self.client = theirs.wrap_socket(self.client, do_handshake_on_connect=False)
        self.bench.until(self.has_shaken_hands)
        self.bench.settle()

    def has_shaken_hands(self):
        try:
            self.client.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def receive(self, length):
        got = bytearray()

        def enough():
            with contextlib.suppress(ssl.SSLWantReadError):
                while len(got) < length:
                    got.extend(self.client.recv(length - len(got)))
            return len(got) >= length

        self.bench.until(enough)
        return bytes(got)

    def test_long_and_short_writes_arrive_in_order(self):
        sent = [PAYLOAD[:number] for number in (1, 16384, 5, 300_000, 1 << 20, 17, 0, 65_537)] * 4
        for data in sent:
            self.server.transport.write(data)
        # Twisted keeps less than 64,000 bytes for a moment, by a clock that isn't the bench's.
        self.server.transport.writeSequence([b"and", PAYLOAD])
        expected = b"".join(sent) + b"and" + PAYLOAD
        self.assertEqual(self.receive(len(expected)), expected)

    def test_who_does_not_read_is_not_written_to(self):
        producer = Endless(self.server.transport, PAYLOAD[: 256 * 1024])
        producer.resumeProducing()
        self.bench.until(lambda: producer.paused)
        self.bench.settle()
        written = sum(producer.turns)
        # The kernel's buffers at both ends, at most.
        self.assertLess(written, 64 << 20)
        self.assertEqual(self.receive(written), PAYLOAD[: 256 * 1024] * (written >> 18))
        self.bench.until(lambda: sum(producer.turns) > written)
        self.server.transport.abortConnection()
        self.bench.until(lambda: self.server.lost)

    def test_others_have_their_turn_however_quickly_one_reads(self):
        class Taken:
            """A socket that takes everything."""

            def sendmsg(self, records):
                return sum(map(len, records))

        transport = self.server.transport
        producer = Endless(transport, PAYLOAD[: 256 * 1024])
        real, transport.socket = transport.socket, Taken()
        try:
            producer.resumeProducing()
            self.assertEqual(producer.turns, [RECORDS_TURN])
            transport.doWrite()
            self.assertEqual(producer.turns, [RECORDS_TURN, RECORDS_TURN])
        finally:
            transport.socket = real
        transport.abortConnection()
        self.bench.until(lambda: self.server.lost)

    def test_a_reset_is_no_end_in_order(self):
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.client.close()
        self.bench.until(lambda: self.server.lost)
        self.assertFalse(self.server.lost.check(ConnectionDone))
        self.assertFalse(self.server.transport.ended_in_order)

    def test_who_says_goodbye_without_having_read_all_is_closed(self):
        producer = Endless(self.server.transport, PAYLOAD[: 256 * 1024])
        producer.resumeProducing()
        self.bench.settle()
        self.assertTrue(producer.paused)
        with contextlib.suppress(ssl.SSLError):  # its answer is behind what was sent before
            self.client.unwrap()
        self.bench.settle()
        client = socket.socket(fileno=self.client.detach())
        self.addCleanup(client.close)
        client.setblocking(False)
        self.assertTrue(self.is_at_end(client))
        self.bench.until(lambda: self.server.lost)

    def test_what_the_other_side_does_not_take_is_lost_with_it(self):
        self.client.close()
        for _ in range(3):
            self.server.transport.write(PAYLOAD)
        self.bench.until(lambda: self.server.lost)
        self.server.transport.write(PAYLOAD)


class ReactorTests(WithSockets):
    """Everything that makes a connection makes a stream transport."""

    def assert_streams(self, server, connect):
        client = Buffered()
        factory = Factory.forProtocol(lambda: client)
        factory.noisy = False
        # A client factory of the old kind is told of these.
        factory.startedConnecting = lambda connector: None
        factory.clientConnectionLost = lambda connector, reason: None
        connector = connect(factory)
        self.bench.until(lambda: server.connected and client.connected)
        self.assertTrue(IOutlet.providedBy(client.transport))
        self.assertTrue(IOutlet.providedBy(server.transport))
        client.transport.send(b"ping")
        server.transport.send(b"pong")
        self.bench.until(lambda: client.received == b"pong" and server.received == b"ping")
        connector.disconnect()
        self.bench.until(lambda: client.lost and server.lost)

    def test_tcp(self):
        server = Buffered()
        host, port = self.listen(server)
        self.assert_streams(server, lambda factory: self.reactor.connectTCP(host, port, factory))

    def unix_path(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        return os.path.join(folder.name, "sock")

    def test_unix(self):
        server, path = Buffered(), self.unix_path()
        factory = Factory.forProtocol(lambda: server)
        factory.noisy = False
        port = self.reactor.listenUNIX(path, factory)
        self.assert_streams(server, lambda factory: self.reactor.connectUNIX(path, factory))
        port.stopListening()
        self.bench.settle()
        self.assertFalse(os.path.exists(path))

    def test_a_unix_socket_that_the_other_side_closes_while_we_wait_to_write_has_ended(self):
        server, path = Buffered(), self.unix_path()
        factory = Factory.forProtocol(lambda: server)
        factory.noisy = False
        self.addCleanup(self.reactor.listenUNIX(path, factory).stopListening)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            self.bench.until(lambda: server.connected)
        # Of what it waits for, the reactor is told that there is nobody any more.
        server.transport.pauseProducing()
        server.transport.startWriting()
        self.bench.until(lambda: server.lost)
        self.assertTrue(server.lost.check(ConnectionDone))
        self.assertTrue(server.transport.ended_in_order)

    def adopt(self, listening, server):
        listening.listen()
        listening.setblocking(False)
        factory = Factory.forProtocol(lambda: server)
        factory.noisy = False
        with listening:
            port = self.reactor.adoptStreamPort(listening.fileno(), listening.family, factory)
        self.addCleanup(port.stopListening)

    def test_an_adopted_tcp_port(self):
        server, listening = Buffered(), socket.socket()
        listening.bind(("127.0.0.1", 0))
        host, port = listening.getsockname()
        self.adopt(listening, server)
        self.assert_streams(server, lambda factory: self.reactor.connectTCP(host, port, factory))

    def test_a_unix_port_is_closed_even_if_its_file_has_gone_or_is_another_s(self):
        for takes_over in (False, True):
            path = self.unix_path()
            factory = Factory.forProtocol(Plain)
            factory.noisy = False
            port = self.reactor.listenUNIX(path, factory, mode=0o640)
            self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o640)
            os.unlink(path)
            with socket.socket(socket.AF_UNIX) as other:
                if takes_over:
                    other.bind(path)
                closed = port.stopListening()
                self.bench.settle()
                self.successResultOf(closed)
                self.assertEqual(os.path.exists(path), takes_over)

    def test_an_adopted_abstract_unix_port(self):
        server, listening = Buffered(), socket.socket(socket.AF_UNIX)
        path = f"\0flexmigrate-{os.getpid()}"
        listening.bind(path)
        self.adopt(listening, server)
        self.assert_streams(server, lambda factory: self.reactor.connectUNIX(path, factory))

    def test_an_adopted_unix_port(self):
        server, listening, path = Buffered(), socket.socket(socket.AF_UNIX), self.unix_path()
        listening.bind(path)
        self.adopt(listening, server)
        self.assert_streams(server, lambda factory: self.reactor.connectUNIX(path, factory))

    def test_a_reactor_without_descriptors_stays_as_it_is(self):
        reactor = Clock()
        self.assertIs(streaming(reactor), reactor)

    def test_all_else_is_the_reactor_s_own(self):
        self.assertEqual(self.reactor.seconds(), self.bench.clock.seconds())
        self.assertEqual(self.reactor.getDelayedCalls(), [])

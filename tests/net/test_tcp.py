"""No delay, and a peer that vanished is noticed within a minute: as the kernel has it."""

import socket

from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.net.stream import streaming
from flexmigrate.net.tcp import keep_alive
from support.feeds import PlainTransport
from support.serving import Served


class Handle:
    """A transport with nothing but a socket."""

    def __init__(self, sock):
        self.sock = sock
        self.getHandle = lambda: sock

    def setTcpNoDelay(self, enabled):
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, enabled)

    def setTcpKeepAlive(self, enabled):
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, enabled)


class KeepAliveTests(SynchronousTestCase):
    def test_a_tcp_socket_s_options(self):
        for family in (socket.AF_INET, socket.AF_INET6):
            try:
                sock = socket.socket(family)
            except OSError:
                continue
            with sock:
                keep_alive(Handle(sock))
                option = sock.getsockopt
                self.assertEqual(option(socket.IPPROTO_TCP, socket.TCP_NODELAY), 1)
                self.assertEqual(option(socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1)
                self.assertEqual(option(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE), 30)
                self.assertEqual(option(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL), 10)
                self.assertEqual(option(socket.IPPROTO_TCP, socket.TCP_KEEPCNT), 3)

    def test_transports_without_a_tcp_socket_are_left_alone(self):
        keep_alive(StringTransport())
        keep_alive(PlainTransport(None))
        with socket.socket(socket.AF_UNIX) as sock:
            keep_alive(Handle(sock))

    def test_a_served_tcp_client_has_them(self):
        served = Served(bytes(4096))
        self.addCleanup(served.close)
        port = streaming(served.bench.reactor).listenTCP(0, served.factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        with socket.create_connection(("127.0.0.1", port.getHost().port)):
            served.bench.until(lambda: served.factory.clients)
            (client,) = served.factory.clients
            self.assertEqual(client.transport.getTcpNoDelay(), 1)
            self.assertEqual(client.transport.getTcpKeepAlive(), 1)
        served.bench.until(lambda: not served.factory.clients)

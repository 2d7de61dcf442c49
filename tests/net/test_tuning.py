"""What the kernel says of a socket's options after they were set."""

import socket

from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.net.streaming import streaming
from flexmigrate.net.tuning import (
    LOCAL_CONGESTION_CONTROL,
    LOCAL_UNSENT,
    UNIX_SEND_BUFFER,
    tune,
)
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


def chosen_by_the_system(sock):
    """How TCP deals with congestion, and how much may wait unsent."""
    return (
        sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16),
        sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT),
    )


class TuningTests(SynchronousTestCase):
    def test_a_tcp_socket_s_options(self):
        for family in (socket.AF_INET, socket.AF_INET6):
            try:
                sock = socket.socket(family)
            except OSError:
                continue
            with sock:
                tune(Handle(sock))
                option = sock.getsockopt
                self.assertEqual(option(socket.IPPROTO_TCP, socket.TCP_NODELAY), 1)
                self.assertEqual(option(socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1)
                self.assertEqual(option(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE), 30)
                self.assertEqual(option(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL), 10)
                self.assertEqual(option(socket.IPPROTO_TCP, socket.TCP_KEEPCNT), 3)

    def test_transports_without_a_socket_are_left_alone(self):
        tune(StringTransport())
        tune(PlainTransport(None))

    def test_a_unix_socket_takes_a_long_reply(self):
        with socket.socket(socket.AF_UNIX) as sock:
            before = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            tune(Handle(sock))
            after = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        with open("/proc/sys/net/core/wmem_max", encoding="ascii") as file:
            most = int(file.read())
        # The kernel doubles what it's asked for, for its own bookkeeping (socket(7)).
        self.assertEqual(after, max(2 * min(UNIX_SEND_BUFFER, most), min(before, 2 * most)))

    def test_within_a_host_nothing_is_paced(self):
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname()) as sock,
        ):
            tune(Handle(sock))
            used = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
        self.assertEqual(used.rstrip(b"\0"), LOCAL_CONGESTION_CONTROL)

    def test_within_a_host_no_more_waits_than_may_be_sent(self):
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname()) as sock,
        ):
            tune(Handle(sock))
            used = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
        self.assertEqual(used, LOCAL_UNSENT)

    def test_between_hosts_the_system_s_choice_stays(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = ("127.0.0.1", server.getsockname()[1])
            with socket.create_connection(address, source_address=("127.0.0.2", 0)) as sock:
                before = chosen_by_the_system(sock)
                tune(Handle(sock))
                after = chosen_by_the_system(sock)
        self.assertEqual(after, before)

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

"""Addresses as operators give them become endpoints on stream transports."""

import os
import socket
import stat
import tempfile

from twisted.internet.error import ConnectError
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.errors import FlexmigrateError
from flexmigrate.net.address import Address
from flexmigrate.net.endpoints import client_endpoint, server_endpoint
from flexmigrate.net.interfaces import IOutlet
from support.feeds import Bench
from support.ports import held_port


class EndpointTests(SynchronousTestCase):
    def setUp(self):
        self.bench = Bench()
        self.addCleanup(self.bench.close)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = os.path.join(folder.name, "sock")
        self.served = []

    def listen(self, address):
        factory = Factory.forProtocol(Protocol)
        factory.noisy = False

        def build(addr):
            self.served.append(Protocol())
            return self.served[-1]

        factory.buildProtocol = build
        port = self.successResultOf(server_endpoint(self.bench.reactor, address).listen(factory))
        self.addCleanup(port.stopListening)
        return port

    def connect(self, address, **more):
        client = Protocol()
        factory = Factory.forProtocol(lambda: client)
        factory.noisy = False
        outcome = []
        endpoint = client_endpoint(self.bench.reactor, address, **more)
        endpoint.connect(factory).addBoth(outcome.append)
        self.bench.until(lambda: outcome)
        return outcome[0]

    def assert_connects(self, address, **more):
        client = self.connect(address, **more)
        self.bench.until(lambda: self.served and self.served[-1].connected)
        self.assertTrue(IOutlet.providedBy(client.transport))
        self.assertTrue(IOutlet.providedBy(self.served[-1].transport))
        client.transport.abortConnection()
        self.bench.until(lambda: not self.served[-1].transport.connected)
        return self.served[-1]

    def test_ipv4(self):
        port = self.listen(Address.tcp("127.0.0.1", 0))
        self.assert_connects(Address.tcp("127.0.0.1", port.getHost().port))

    def test_ipv6(self):
        try:
            with socket.socket(socket.AF_INET6) as probe:
                probe.bind(("::1", 0))
        except OSError as error:
            self.skipTest(f"no IPv6 here: {error}")
        port = self.listen(Address.tcp("::1", 0))
        self.assert_connects(Address.tcp("::1", port.getHost().port))

    def test_unix(self):
        self.listen(Address.unix(self.path))
        self.assert_connects(Address.unix(self.path))

    def test_a_unix_socket_is_its_owner_s_alone(self):
        self.listen(Address.unix(self.path))
        self.assertEqual(stat.S_IMODE(os.stat(self.path).st_mode), 0o600)

    def test_a_client_may_choose_the_address_that_it_comes_from(self):
        port = self.listen(Address.tcp("127.0.0.1", 0))
        client = self.connect(Address.tcp("127.0.0.1", port.getHost().port), bind="127.0.0.5")
        self.bench.until(lambda: self.served)
        self.assertEqual(self.served[0].transport.getPeer().host, "127.0.0.5")
        client.transport.abortConnection()
        self.bench.until(lambda: not self.served[0].transport.connected)

    def test_nobody_there_is_a_connect_error(self):
        with held_port() as port:
            for address in (Address.tcp("127.0.0.1", port), Address.unix(self.path)):
                self.assertIsInstance(self.connect(address).value, ConnectError)

    def test_the_socket_of_a_dead_server_is_replaced_and_that_of_a_live_one_is_not(self):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(self.path)
        self.listen(Address.unix(self.path))
        with self.assertRaises(FlexmigrateError):
            server_endpoint(self.bench.reactor, Address.unix(self.path))
        self.assert_connects(Address.unix(self.path))

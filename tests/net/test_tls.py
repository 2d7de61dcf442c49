"""Certificates as they come, and connections in memory between what is made of them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.test.iosim import FakeTransport, IOPump, connect
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from flexmigrate.errors import UsageError
from flexmigrate.net.tls import client_context, fault, server_context
from support.certificates import Authority

OURS, THEIRS = Authority(), Authority("another authority")


class Recorder(Protocol):
    """Notes what comes, and how it ends."""

    def __init__(self) -> None:
        self.received = b""
        self.ended: BaseException | None = None

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ended = reason.value

    def say(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)

    def leave(self) -> None:
        assert self.transport is not None
        self.transport.loseConnection()


@implementer(IOpenSSLClientConnectionCreator)
class Older:
    """A client of another project, which verifies nothing."""

    def __init__(self, context: SSL.Context) -> None:
        self._context = context

    def clientConnectionForTLS(self, protocol: object) -> SSL.Connection:  # Twisted's
        return SSL.Connection(self._context, None)


class TLSTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.path)

    def folder(self, name: str, *roles: str, authority: Authority = OURS) -> Path:
        return authority.folder(self.path / name, *roles)


class ConnectionTests(TLSTestCase):
    """A client and a server that were given folders."""

    def setUp(self) -> None:
        super().setUp()
        self.servers = self.folder("servers", "server")
        self.clients = self.folder("clients", "client")
        self.server, self.client = Recorder(), Recorder()
        self.clock: Any = Clock()

    def settle(self, pump: IOPump) -> None:
        """Let both sides talk; Twisted's TLS collects what is written in one turn."""
        while pump.pump() or self.clock.getDelayedCalls():
            self.clock.advance(0)

    def meet(
        self, *, hostname: str = "localhost", verify_peer: bool = False, client: Any = None
    ) -> IOPump:
        """Have the client say hello, and let both talk until they are silent."""
        context = server_context(str(self.servers), verify_peer=verify_peer)
        below = self.wrapped(self.server, context, is_client=False)
        client = client or client_context(str(self.clients), hostname)
        above = self.wrapped(self.client, client, is_client=True)
        pump = connect(
            below,
            FakeTransport(below, isServer=True),
            above,
            FakeTransport(above, isServer=False),
        )
        self.client.say(b"hello")
        self.settle(pump)
        return pump

    def wrapped(self, protocol: Recorder, context: Any, is_client: bool) -> Any:
        inner = Factory.forProtocol(lambda: protocol)
        factory = TLSMemoryBIOFactory(context, is_client, inner, clock=self.clock)
        return factory.buildProtocol(None)

    def assert_meet(self, **how: Any) -> None:
        pump = self.meet(**how)
        self.assertEqual(self.server.received, b"hello")
        self.server.say(b"welcome")
        self.settle(pump)
        self.assertEqual(self.client.received, b"welcome")

    def assert_client_refuses(self, text: str, **how: Any) -> None:
        self.meet(**how)
        assert self.client.ended is not None
        self.assertIn(text, fault(self.client.ended))
        self.assertEqual(self.server.received, b"")

    def assert_server_refuses(self, text: str, **how: Any) -> None:
        """In TLS 1.3 the client believes that it is connected, until the server's word comes."""
        self.meet(**how)
        assert self.server.ended is not None
        self.assertIn(text, fault(self.server.ended))
        self.assertEqual((self.server.received, self.client.received), (b"", b""))
        self.assertIsNotNone(self.client.ended)

    def test_who_trusts_the_same_authority_meets(self) -> None:
        self.assert_meet()

    def test_by_any_of_the_names_and_addresses_of_the_certificate(self) -> None:
        for host in ("localhost", "127.0.0.1", "::1"):
            self.server, self.client = Recorder(), Recorder()
            self.assert_meet(hostname=host)

    def test_the_end_of_one_side_is_a_clean_end_for_the_other(self) -> None:
        pump = self.meet()
        self.server.leave()
        self.settle(pump)
        for side in (self.server, self.client):
            self.assertEqual(type(side.ended).__name__, "ConnectionDone")

    def test_a_client_without_a_certificate_is_let_in_unless_it_has_to_show_one(self) -> None:
        for name in ("client-cert.pem", "client-key.pem"):
            (self.clients / name).unlink()
        self.assert_meet()
        self.server, self.client = Recorder(), Recorder()
        self.assert_server_refuses("peer did not return a certificate", verify_peer=True)

    def test_a_client_that_has_to_show_its_certificate_does(self) -> None:
        self.assert_meet(verify_peer=True)

    def test_a_client_of_another_authority_is_not_let_in(self) -> None:
        THEIRS.issue("client").write(self.clients, "client")
        self.assert_meet()
        self.server, self.client = Recorder(), Recorder()
        self.assert_server_refuses("certificate verify failed", verify_peer=True)

    def test_a_client_whose_certificate_has_expired_is_not_let_in(self) -> None:
        OURS.issue("client", valid=False).write(self.clients, "client")
        self.assert_server_refuses("certificate verify failed", verify_peer=True)

    def test_a_client_with_a_servers_certificate_is_not_let_in(self) -> None:
        OURS.issue("server").write(self.clients, "client")
        self.assert_server_refuses("certificate verify failed", verify_peer=True)

    def test_a_server_of_another_authority_is_not_believed(self) -> None:
        THEIRS.issue("server").write(self.servers, "server")
        self.assert_client_refuses("certificate verify failed")

    def test_a_server_that_has_signed_its_own_certificate_is_not_believed(self) -> None:
        OURS.issue("server", self_signed=True).write(self.servers, "server")
        self.assert_client_refuses("certificate verify failed")

    def test_a_server_whose_certificate_has_expired_is_not_believed(self) -> None:
        OURS.issue("server", valid=False).write(self.servers, "server")
        self.assert_client_refuses("certificate verify failed")

    def test_a_server_with_a_clients_certificate_is_not_believed(self) -> None:
        OURS.issue("client").write(self.servers, "server")
        self.assert_client_refuses("certificate verify failed")

    def test_a_server_of_another_name_is_not_believed(self) -> None:
        for host in ("disks.example", "127.0.0.2", "::2"):
            self.server, self.client = Recorder(), Recorder()
            self.assert_client_refuses("for another name", hostname=host)

    def test_several_authorities_may_be_trusted(self) -> None:
        both = THEIRS.certificate + OURS.certificate
        (self.clients / "ca-cert.pem").write_bytes(both)
        self.assert_meet()

    def test_a_chain_is_sent_along(self) -> None:
        middle = Authority("one in the middle", above=OURS)
        leaf = middle.issue("server")
        leaf.write(self.servers, "server")
        (self.servers / "server-cert.pem").write_bytes(leaf.certificate + middle.certificate)
        self.assert_meet()

    def test_what_is_older_than_tls_1_2_is_not_spoken(self) -> None:
        old = SSL.Context(SSL.TLS_METHOD)
        old.set_max_proto_version(SSL.TLS1_1_VERSION)
        self.meet(client=Older(old))
        self.assertEqual(self.server.received, b"")
        self.assertIsNotNone(self.client.ended)


class FilesTests(TLSTestCase):
    """What is wrong with the files is told before anybody connects, with the file's name."""

    def server(self, folder: Path) -> object:
        return server_context(str(folder), verify_peer=True)

    def client(self, folder: Path) -> object:
        return client_context(str(folder), "localhost")

    def assert_refused(self, make: Callable[[Path], object], folder: Path, *named: str) -> None:
        with self.assertRaises(UsageError) as caught:
            make(folder)
        for each in (str(folder), *named):
            self.assertIn(each, str(caught.exception))

    def test_each_file_that_is_missing(self) -> None:
        for make, files in (
            (self.server, ("ca-cert.pem", "server-cert.pem", "server-key.pem")),
            (self.client, ("ca-cert.pem", "client-key.pem")),
        ):
            for name in files:
                folder = self.folder(f"without {make.__name__} {name}", "server", "client")
                (folder / name).unlink()
                self.assert_refused(make, folder, name, "No such file")

    def test_each_file_that_is_something_else(self) -> None:
        for content in (
            b"",
            b"\0\xff" * 100,
            b"hello\n",
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            b"-----BEGIN CERTIFICATE-----\n",
            b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        ):
            for make, files in (
                (self.server, ("ca-cert.pem", "server-cert.pem", "server-key.pem")),
                (self.client, ("ca-cert.pem", "client-cert.pem", "client-key.pem")),
            ):
                for name in files:
                    folder = self.folder("garbage", "server", "client")
                    (folder / name).write_bytes(content)
                    self.assert_refused(make, folder, name)
                    shutil.rmtree(folder)

    def test_a_key_of_another_certificate(self) -> None:
        folder = self.folder("mixed", "server", "client")
        for make, role in ((self.server, "server"), (self.client, "client")):
            (folder / f"{role}-key.pem").write_bytes(OURS.issue("server").key)
            self.assert_refused(make, folder, f"{role}-key.pem", f"{role}-cert.pem")

    def test_a_key_where_the_authority_should_be(self) -> None:
        folder = self.folder("leak", "server")
        shutil.copy(folder / "server-key.pem", folder / "ca-cert.pem")
        self.assert_refused(self.server, folder, "ca-cert.pem", "no certificate")

    def test_a_folder_that_is_not_there(self) -> None:
        self.assert_refused(self.server, self.path / "none", "No such file")
        self.assert_refused(self.client, self.path / "none", "No such file")

    def test_a_file_that_may_not_be_read_is_like_one_that_is_missing(self) -> None:
        folder = self.folder("a folder in its place", "server")
        (folder / "server-key.pem").unlink()
        (folder / "server-key.pem").mkdir()
        self.assert_refused(self.server, folder, "server-key.pem", "Is a directory")

    def test_a_server_that_asks_for_no_certificates_needs_no_authority(self) -> None:
        folder = self.folder("alone", "server")
        (folder / "ca-cert.pem").unlink()
        server_context(str(folder), verify_peer=False)
        self.assert_refused(self.server, folder, "ca-cert.pem")

    def test_a_client_needs_no_certificate_of_its_own(self) -> None:
        client_context(str(self.folder("authority")), "localhost")

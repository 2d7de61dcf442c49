"""TLS between real processes: who gets in, who doesn't, and what somebody in between can do."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from support import raw_nbd
from support.certificates import PKI
from support.images import MIB, assert_same, blank_image, random_image
from support.nbd_peers import peers_with_tls
from support.operator import wait_until
from support.processes import Child, flexmigrate, run
from support.raw_nbd import OPT_GO, OPTION, RawClient, expect_end, receive
from support.relay import Relay
from support.servers import SIZE, Servers, stop

OPT_LIST, OPT_STARTTLS, OPT_INFO, OPT_STRUCTURED_REPLY = 3, 5, 6, 8
OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT = 9, 10
REP_ACK, REP_INFO, REP_META_CONTEXT = 1, 3, 4
ERR_POLICY, ERR_INVALID, ERR_TLS_REQD = 0x80000002, 0x80000003, 0x80000005
SEND_DF = 1 << 7
GO = struct.pack(">IH", 0, 0)  # the default export, and no wish for more information


def tls(folder: Path, rule: str = "require") -> tuple[str, ...]:
    return ("--tls", rule, "--tls-certificates", str(folder))


def uri(server: Child, folder: Path | None = None, scheme: str = "nbds") -> str:
    """Return a URI as libnbd's programs take it: they find the certificates there."""
    host, port = server.listening()
    place = f"{scheme}+unix:///?socket={host}&" if not port else f"{scheme}://{host}:{port}/?"
    return place + (f"tls-certificates={folder}" if folder else "")


def ours(server: Child, scheme: str = "nbds") -> str:
    """Return a URI as our own commands take it."""
    host, port = server.listening()
    return f"{scheme}+unix:///?socket={host}" if not port else f"{scheme}://{host}:{port}/"


def transfer(command: str, target: str, *more: str, stdin: bytes = b"") -> CompletedProcess[bytes]:
    size = len(stdin) if command == "write" else 5
    return flexmigrate(command, target, "--from", "4096", "--size", str(size), *more, stdin=stdin)


class Haggler(RawClient):
    """A client in the middle of its negotiation, which can begin TLS."""

    def __init__(self, server: Child) -> None:
        super().__init__(raw_nbd.connect(*server.listening()))
        assert receive(self.sock, 16) == raw_nbd.INIT_MAGIC + raw_nbd.OPTION_MAGIC
        assert receive(self.sock, 2) == struct.pack(">H", 3)
        self.sock.sendall(struct.pack(">I", 3))

    def ask(self, option: int, data: bytes = b"") -> list[int]:
        """Return the types of the replies to an option."""
        return [kind for kind, _ in self.option(option, data)]

    def begin_tls(self, pki: PKI) -> None:
        context = ssl.create_default_context(cafile=str(pki.anonymous / "ca-cert.pem"))
        self.sock = context.wrap_socket(self.sock, server_hostname="localhost")

    def go(self) -> None:
        """Come to transmission."""
        *infos, (last, _) = self.option(OPT_GO, GO)
        assert last == REP_ACK
        for kind, data in infos:
            if kind == REP_INFO and data[:2] == b"\0\0":
                self.size, self.flags = struct.unpack(">QH", data[2:])


@pytest.fixture
def haggle() -> Iterator[Callable[[Child], Haggler]]:
    with ExitStack() as stack:

        def begin(server: Child) -> Haggler:
            client = Haggler(server)
            stack.callback(client.close)
            return client

        yield begin


def contexts_query(name: bytes = b"base:allocation") -> bytes:
    return struct.pack(">III", 0, 1, len(name)) + name


def read_to_the_end(sock: socket.socket) -> None:
    while sock.recv(4096):
        pass


class TestClients:
    @pytest.fixture(params=["tcp", "unix"])
    def server(
        self, request: pytest.FixtureRequest, servers: Servers, pki: PKI, tmp_path: Path
    ) -> Child:
        """A server that insists on TLS."""
        if request.param == "tcp":
            return servers.serve(*tls(pki.ours))
        place = ("--addr", str(tmp_path / "nbd"), "--file", str(servers.image))
        server = servers.start("serve", *place, *tls(pki.ours))
        server.listening()
        return server

    def test_nbdinfo_and_nbdcopy(
        self, servers: Servers, server: Child, pki: PKI, tmp_path: Path
    ) -> None:
        shown = run("nbdinfo", uri(server, pki.anonymous))
        assert shown.returncode == 0, shown
        assert b"newstyle-fixed with TLS" in shown.stdout
        copied = run("nbdcopy", uri(server, pki.anonymous), str(tmp_path / "copied"))
        assert copied.returncode == 0, copied
        assert_same(servers.image, tmp_path / "copied")

    def test_nbdcopy_writes(
        self, servers: Servers, server: Child, pki: PKI, tmp_path: Path
    ) -> None:
        other = random_image(tmp_path / "other", SIZE, seed=2)
        copied = run("nbdcopy", "--flush", str(other), uri(server, pki.anonymous))
        assert copied.returncode == 0, copied
        assert_same(other, servers.image)

    def test_qemu_img(self, servers: Servers, server: Child, pki: PKI, tmp_path: Path) -> None:
        host, port = server.listening()
        where = f"host={host},port={port}" if port else f"path={host},tls-hostname=localhost"
        credentials = f"tls-creds-x509,id=tls,dir={pki.anonymous},endpoint=client"
        export = f"driver=nbd,{where},tls-creds=tls"
        words = ("--object", credentials, "--image-opts", export)
        converted = run("qemu-img", "convert", *words, "-O", "raw", str(tmp_path / "converted"))
        assert converted.returncode == 0, converted
        assert_same(servers.image, tmp_path / "converted")

    def test_our_own(self, servers: Servers, server: Child, pki: PKI) -> None:
        certificates = ("--tls-certificates", str(pki.anonymous))
        written = transfer("write", ours(server), *certificates, stdin=b"hello")
        assert written.returncode == 0, written
        read = transfer("read", ours(server), *certificates)
        assert (read.returncode, read.stdout) == (0, b"hello"), read
        assert servers.image.read_bytes()[4096:4101] == b"hello"

    def test_more_than_fits_into_one_request(self, servers: Servers, pki: PKI) -> None:
        size = 40 * MIB
        random_image(servers.image, size)
        server = servers.serve(*tls(pki.ours))
        words = ("--from", "0", "--size", str(size), "--tls-certificates", str(pki.anonymous))
        read = flexmigrate("read", ours(server), *words)
        assert read.stdout == servers.image.read_bytes()
        other = random_image(servers.folder / "other", size, seed=3)
        written = flexmigrate("write", ours(server), *words, stdin=other.read_bytes())
        assert written.returncode == 0, written
        assert_same(other, servers.image)

    def test_a_client_that_leaves_is_gone_at_once(self, server: Child, pki: PKI) -> None:
        read = transfer("read", ours(server), "--tls-certificates", str(pki.anonymous))
        assert read.returncode == 0
        server.wait_for(r"\[client 1 \S+\]: disconnected")
        stop(server)  # it would take a while if the connection still stood
        assert not any("at once" in line for line in server.lines), server.story()


class TestWhoGetsIn:
    def test_nobody_without_tls_where_it_is_required(
        self, servers: Servers, pki: PKI, haggle: Callable[[Child], Haggler]
    ) -> None:
        server = servers.serve(*tls(pki.ours))
        assert run("nbdinfo", uri(server, scheme="nbd")).returncode != 0
        refused = transfer("read", ours(server, "nbd"))
        assert (refused.returncode, b"ERR_TLS_REQD" in refused.stderr) == (1, True)
        client = haggle(server)
        query = contexts_query()
        for option, data in (
            (OPT_LIST, b""),
            (OPT_INFO, GO),
            (OPT_GO, GO),
            (OPT_STRUCTURED_REPLY, b""),
            (OPT_LIST_META_CONTEXT, query),
            (OPT_SET_META_CONTEXT, query),
        ):
            assert client.ask(option, data) == [ERR_TLS_REQD], option
        client.sock.sendall(OPTION.pack(raw_nbd.OPTION_MAGIC, raw_nbd.OPT_EXPORT_NAME, 0))
        expect_end(client.sock)

    def test_everybody_where_it_is_on(self, servers: Servers, pki: PKI) -> None:
        server = servers.serve(*tls(pki.ours, "on"))
        for scheme, protocol in (("nbd", "newstyle-fixed without TLS"), ("nbds", "with TLS")):
            shown = run("nbdinfo", uri(server, pki.anonymous, scheme))
            assert shown.returncode == 0, shown
            assert protocol.encode() in shown.stdout
        assert transfer("read", ours(server, "nbd")).returncode == 0

    def test_nobody_with_it_where_it_is_off(
        self, servers: Servers, pki: PKI, haggle: Callable[[Child], Haggler]
    ) -> None:
        server = servers.serve()
        assert run("nbdinfo", uri(server, pki.anonymous)).returncode != 0
        refused = transfer("read", ours(server), "--tls-certificates", str(pki.anonymous))
        assert (refused.returncode, refused.stdout) == (1, b"")
        client = haggle(server)
        assert client.ask(OPT_STARTTLS) == [ERR_POLICY]
        client.go()  # and the negotiation goes on
        assert client.size == SIZE

    def test_clients_have_to_show_a_certificate_if_that_is_wanted(
        self, servers: Servers, pki: PKI
    ) -> None:
        server = servers.serve(*tls(pki.ours), "--tls-verify-peer")
        for folder, let_in in ((pki.ours, True), (pki.anonymous, False), (pki.theirs, False)):
            # Who shows theirs trusts ours all the same.
            trusting = servers.folder / folder.name
            trusting.mkdir()
            (trusting / "ca-cert.pem").symlink_to(pki.ours / "ca-cert.pem")
            for name in ("client-cert.pem", "client-key.pem"):
                if (folder / name).exists():
                    (trusting / name).symlink_to(folder / name)
            assert (run("nbdinfo", uri(server, trusting)).returncode == 0) is let_in
            read = transfer("read", ours(server), "--tls-certificates", str(trusting))
            assert (read.returncode == 0) is let_in, read
            assert let_in or b"TLS failed: " in read.stderr

    @pytest.mark.parametrize(
        ("folder", "more", "text"),
        [
            ("theirs", (), b"TLS failed: .*certificate verify failed"),
            ("anonymous", ("--tls-hostname", "disks.example"), b"for another name"),
        ],
    )
    def test_a_server_that_is_not_believed_hears_of_no_request(
        self, servers: Servers, pki: PKI, folder: str, more: tuple[str, ...], text: bytes
    ) -> None:
        server = servers.serve(*tls(pki.ours))
        path = getattr(pki, folder)
        refused = transfer(
            "write", ours(server), "--tls-certificates", str(path), *more, stdin=b"x"
        )
        assert refused.returncode == 1
        assert text.split(b".*")[-1] in refused.stderr
        server.wait_for(r"\[client 1 \S+\]: lost: ")
        assert not any("uses the export" in line for line in server.lines)

    def test_a_certificate_may_be_looked_for_under_another_name(
        self, servers: Servers, pki: PKI
    ) -> None:
        server = servers.serve(*tls(pki.ours))
        named = ("--tls-certificates", str(pki.anonymous), "--tls-hostname", "localhost")
        assert transfer("read", ours(server), *named).returncode == 0

    @pytest.mark.parametrize("command", ["serve", "listen"])
    def test_certificates_that_cannot_be_used_are_a_wrong_command_line(
        self, servers: Servers, command: str, tmp_path: Path, twistd: bool
    ) -> None:
        place = ("--addr", "127.0.0.1", "--port", "0", "--file", str(servers.copy))
        server = servers.start(command, *place, *tls(tmp_path / "none"), twistd=twistd)
        server.expect_exit(2)
        server.wait_for("none/server-cert.pem: No such file or directory")
        assert not servers.marker.exists()


class TestSomebodyInBetween:
    def test_plaintext_behind_starttls_is_not_taken_for_what_came_through_tls(
        self, servers: Servers, pki: PKI, haggle: Callable[[Child], Haggler]
    ) -> None:
        server = servers.serve(*tls(pki.ours))
        client = haggle(server)
        smuggled = OPTION.pack(raw_nbd.OPTION_MAGIC, OPT_GO, len(GO)) + GO
        client.sock.sendall(OPTION.pack(raw_nbd.OPTION_MAGIC, OPT_STARTTLS, 0) + smuggled)
        with contextlib.suppress(raw_nbd.Ended):
            # Its consent may still come; then nothing more.
            assert receive(client.sock, 20) == starttls_answer(REP_ACK)
        expect_end(client.sock)
        assert not any("uses the export" in line for line in server.lines)

    def test_garbage_where_tls_should_begin_harms_nobody_else(
        self, servers: Servers, pki: PKI, haggle: Callable[[Child], Haggler]
    ) -> None:
        server = servers.serve(*tls(pki.ours))
        client = haggle(server)
        assert client.ask(OPT_STARTTLS) == [REP_ACK]
        client.sock.sendall(b"GET / HTTP/1.0\r\n\r\n" * 100)
        client.end_of_the_conversation()
        assert run("nbdinfo", "--size", uri(server, pki.anonymous)).returncode == 0

    def test_everything_agreed_before_starttls_is_forgotten(
        self, servers: Servers, pki: PKI, haggle: Callable[[Child], Haggler]
    ) -> None:
        server = servers.serve(*tls(pki.ours, "on"))
        client = haggle(server)
        assert client.ask(OPT_STRUCTURED_REPLY) == [REP_ACK]
        assert client.ask(OPT_SET_META_CONTEXT, contexts_query()) == [REP_META_CONTEXT, REP_ACK]
        assert client.ask(OPT_STARTTLS) == [REP_ACK]
        client.begin_tls(pki)
        assert client.ask(OPT_SET_META_CONTEXT, contexts_query()) == [ERR_INVALID]
        assert client.ask(OPT_STARTTLS) == [ERR_INVALID]
        client.go()
        assert not client.flags & SEND_DF
        # With structured replies, neither head would be a simple reply's.
        assert client.read(0, 4096) == servers.image.read_bytes()[:4096]
        assert client.call(raw_nbd.BLOCK_STATUS, 0, 4096) == raw_nbd.EINVAL

    def test_who_goes_away_before_tls_stands_is_forgotten(
        self, servers: Servers, pki: PKI, haggle: Callable[[Child], Haggler]
    ) -> None:
        server = servers.serve(*tls(pki.ours))
        client = haggle(server)
        assert client.ask(OPT_STARTTLS) == [REP_ACK]
        client.close()
        server.wait_for(r"\[client 1 \S+\]: (lost: |disconnected)")
        wait_until(servers.source_sock, num_clients="0")


class Impostor:
    """A server in the middle of the way, which answers STARTTLS as it likes.

    :ivar options: that it was asked for, in order.
    """

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._port = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)
        self.options: list[int] = []
        self.port = self._port.getsockname()[1]

    def __enter__(self) -> Impostor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(30)
        self._port.close()
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        self._port.settimeout(60)
        sock, _ = self._port.accept()
        with sock:
            sock.settimeout(60)
            sock.sendall(raw_nbd.INIT_MAGIC + raw_nbd.OPTION_MAGIC + struct.pack(">H", 3))
            try:
                receive(sock, 4)
                self._haggle(sock)
            except (raw_nbd.Ended, ConnectionError):
                return

    def _haggle(self, sock: socket.socket) -> None:
        while True:
            magic, option, length = OPTION.unpack(receive(sock, 16))
            if magic != raw_nbd.OPTION_MAGIC:
                return  # TLS's first bytes
            receive(sock, length)
            self.options.append(option)
            if option == raw_nbd.OPT_ABORT:
                return
            reply = raw_nbd.OPTION_REPLY
            refusal = reply.pack(raw_nbd.OPTION_REPLY_MAGIC, option, raw_nbd.REP_ERR_UNSUP, 0)
            sock.sendall(self._answer if option == OPT_STARTTLS else refusal)


def starttls_answer(kind: int, behind: bytes = b"") -> bytes:
    head = raw_nbd.OPTION_REPLY.pack(raw_nbd.OPTION_REPLY_MAGIC, OPT_STARTTLS, kind, 0)
    return head + behind


class TestDowngrade:
    """A client that insists on TLS says nothing in the clear, whatever it is told."""

    @pytest.mark.parametrize("scheme", ["nbd", "nbds"])
    @pytest.mark.parametrize("refusal", [raw_nbd.REP_ERR_UNSUP, ERR_POLICY])
    def test_a_server_that_claims_to_have_none(self, pki: PKI, scheme: str, refusal: int) -> None:
        with Impostor(starttls_answer(refusal)) as impostor:
            target = f"{scheme}://127.0.0.1:{impostor.port}/secret"
            refused = transfer("write", target, *tls(pki.anonymous), stdin=b"secret")
        assert refused.returncode == 1
        assert set(impostor.options) <= {OPT_STARTTLS, raw_nbd.OPT_ABORT}

    def test_by_address_too(self, pki: PKI) -> None:
        with Impostor(starttls_answer(raw_nbd.REP_ERR_UNSUP)) as impostor:
            place = ("--addr", "127.0.0.1", "--port", str(impostor.port), "--from", "0")
            refused = flexmigrate("read", *place, "--size", "1", *tls(pki.anonymous))
        assert refused.returncode == 1
        assert set(impostor.options) <= {OPT_STARTTLS, raw_nbd.OPT_ABORT}

    def test_one_that_goes_on_in_the_clear_behind_its_consent(self, pki: PKI) -> None:
        ack = raw_nbd.OPTION_REPLY.pack(raw_nbd.OPTION_REPLY_MAGIC, OPT_GO, REP_ACK, 0)
        with Impostor(starttls_answer(REP_ACK, ack)) as impostor:
            target = f"nbds://127.0.0.1:{impostor.port}/"
            refused = transfer("read", target, "--tls-certificates", str(pki.anonymous))
        assert (refused.returncode, refused.stdout) == (1, b"")
        assert impostor.options == [OPT_STARTTLS]

    def test_a_migration(self, servers: Servers, pki: PKI) -> None:
        source = servers.serve()
        with Impostor(starttls_answer(raw_nbd.REP_ERR_UNSUP)) as impostor:
            servers.send_to("127.0.0.1", impostor.port)
            refused = servers.mirror(*tls(pki.anonymous))
        assert refused.returncode == 1
        assert refused.stderr.startswith(b"Mirror was rejected: ")
        assert b"ERR_UNSUP to STARTTLS" in refused.stderr
        assert set(impostor.options) <= {OPT_STARTTLS, raw_nbd.OPT_ABORT}
        stop(source)

    def test_who_only_prefers_it_goes_on_without(self, servers: Servers, pki: PKI) -> None:
        server = servers.serve()
        read = transfer("read", ours(server, "nbd"), *tls(pki.anonymous, "on"))
        assert (read.returncode, read.stdout) == (0, servers.image.read_bytes()[4096:4101])


class TestMigration:
    @pytest.mark.parametrize("rule", ["on", "require"])
    def test_to_a_listen(self, servers: Servers, pki: PKI, rule: str, twistd: bool) -> None:
        source = servers.serve(twistd=twistd)
        destination = servers.listen(*tls(pki.ours), "--tls-verify-peer", twistd=twistd)
        servers.start_mirroring(*tls(pki.ours, rule))
        servers.complete(source, destination)

    def test_with_unlink_and_rebind(self, servers: Servers, pki: PKI, tmp_path: Path) -> None:
        source = servers.serve(*tls(pki.ours))
        content = servers.image.read_bytes()
        path = tmp_path / "nbd"
        destination = servers.listen(*tls(pki.ours), "--rebind-addr", str(path))
        servers.start_mirroring("--unlink", *tls(pki.ours))
        source.expect_exit(0)
        assert not servers.image.exists()
        wait_until(servers.destination_sock, listening_phase="serving")
        target = f"nbds+unix:///?socket={path}"
        words = ("--from", "0", "--size", str(SIZE), "--tls-certificates", str(pki.anonymous))
        assert flexmigrate("read", target, *words).stdout == content
        assert transfer("read", f"nbd+unix:///?socket={path}").returncode == 1
        stop(destination)

    def test_a_cut_connection_is_begun_again(self, servers: Servers, pki: PKI) -> None:
        source, destination = servers.serve(), servers.listen(*tls(pki.ours))
        with Relay("127.0.0.1", int(servers.place[-1])) as relay:
            relay.cut_after(MIB)
            servers.send_to("127.0.0.1", relay.port)
            servers.start_mirroring(*tls(pki.ours))
            source.wait_for("attempt 1 failed")
            servers.complete(source, destination)
            assert relay.connections == 2

    @pytest.mark.parametrize(
        ("folder", "more", "text"),
        [
            ("theirs", (), b"certificate verify failed"),
            ("anonymous", (), b"certificate required"),
            ("ours", ("--tls-hostname", "disks.example"), b"for another name"),
        ],
    )
    def test_who_is_not_believed(
        self, servers: Servers, pki: PKI, folder: str, more: tuple[str, ...], text: bytes
    ) -> None:
        source = servers.serve()
        destination = servers.listen(*tls(pki.ours), "--tls-verify-peer")
        refused = servers.mirror(*tls(getattr(pki, folder)), *more)
        assert refused.returncode == 1
        assert refused.stderr.startswith(b"TLS failed: ")
        assert text in refused.stderr
        servers.start_mirroring(*tls(pki.ours))  # nothing has happened
        servers.complete(source, destination)

    def test_without_tls_to_one_that_requires_it(self, servers: Servers, pki: PKI) -> None:
        source, destination = servers.serve(), servers.listen(*tls(pki.ours))
        refused = servers.mirror()
        assert refused.returncode == 1
        assert refused.stderr.startswith(b"Mirror was rejected: ")
        assert b"TLS is required" in refused.stderr
        source.wait_for("TLS is required")
        assert servers.marker.exists()
        assert destination.running

    def test_a_destination_refuses_by_a_reset(
        self, servers: Servers, pki: PKI, haggle: Callable[[Child], Haggler]
    ) -> None:
        """The end of TLS, or of the connection, would be consent."""
        destination = servers.listen(*tls(pki.ours))
        sender = haggle(destination)
        assert sender.ask(OPT_STARTTLS) == [REP_ACK]
        sender.begin_tls(pki)
        sender.go()
        sender.send(raw_nbd.DISC)
        with socket.socket(fileno=os.dup(sender.sock.fileno())) as below:
            below.settimeout(60)
            with pytest.raises(ConnectionResetError):
                read_to_the_end(below)
        destination.wait_for("the sender said DISC, but")
        assert servers.marker.exists()

    def test_a_destination_that_dies_in_the_middle_has_not_taken_over(
        self, servers: Servers, pki: PKI
    ) -> None:
        source, destination = servers.serve(), servers.listen(*tls(pki.ours))
        servers.start_mirroring_slowly(*tls(pki.ours))
        destination.end()
        source.wait_for("attempt 1 failed")
        assert source.running
        stop(source, status=1)

    def test_certificates_that_the_server_cannot_read(
        self, servers: Servers, tmp_path: Path
    ) -> None:
        servers.serve()
        servers.listen()
        refused = servers.mirror(*tls(tmp_path / "none"))
        assert refused.returncode == 1
        assert b"none/ca-cert.pem: No such file or directory" in refused.stderr

    @pytest.mark.parametrize("name", ["nbdkit", "qemu-nbd", "nbd-server"])
    def test_to_other_servers(self, servers: Servers, pki: PKI, name: str) -> None:
        peer = peers_with_tls(pki.ours)[name]
        if peer.missing:
            pytest.skip(f"{peer.program} is not installed")
        source = servers.serve()
        target = blank_image(servers.folder / "target.img", SIZE)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            servers.send_to(*listening.getsockname())
            with peer.serve(listening, target):
                servers.start_mirroring(
                    *tls(pki.ours), "--remote-export", peer.export, "--handover", "plain"
                )
                source.expect_exit(0)
        assert_same(servers.image, target)

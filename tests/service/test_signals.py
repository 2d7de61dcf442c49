"""Signals to processes: at their beginning, while they serve, and until their very end."""

from __future__ import annotations

import itertools
import shutil
import signal
import ssl
import sys
from pathlib import Path

import pytest

from support.certificates import PKI
from support.operator import ask, status
from support.processes import Child
from support.raw_nbd import OPTION, OPTION_MAGIC, Ended, RawClient, connect, receive
from support.servers import Servers, stop

ALL = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)

STARTTLS = 5


def bombard(server: Child) -> None:
    """Send it signals, one behind the other, until it has ended."""
    for number in itertools.cycle(ALL):
        if not server.running:
            return
        server.send(number)


class TestTheEnd:
    @pytest.mark.parametrize("first", ALL)
    def test_no_signal_changes_the_status(
        self, servers: Servers, first: signal.Signals, twistd: bool
    ) -> None:
        server = servers.serve(twistd=twistd)
        server.send(first)
        server.wait_for("ending with status 0")
        bombard(server)
        server.expect_exit(0)
        assert not servers.source_sock.exists()

    def test_nor_that_of_a_failure(self, servers: Servers, twistd: bool) -> None:
        destination = servers.listen(twistd=twistd)
        destination.send(signal.SIGTERM)
        destination.wait_for("ending with status 1")
        bombard(destination)
        destination.expect_exit(1)

    def test_nor_that_of_a_migration(self, servers: Servers, twistd: bool) -> None:
        source, destination = servers.serve(twistd=twistd), servers.listen(twistd=twistd)
        servers.start_mirroring()
        for server in (source, destination):
            server.wait_for("ending with status 0")
            bombard(server)
        servers.complete(source, destination)


# Begins as the command does, and says so when it imports all the rest.
BEGIN = """
import signal, sys
import flexmigrate.__main__
class Telling:
    def find_spec(name, path=None, target=None):
        if name == "flexmigrate.cli.main":
            print("begins", flush=True)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Telling)
sys.exit(flexmigrate.__main__.run())
"""


class TestTheBeginning:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_there_is_no_traceback(self, servers: Servers, number: signal.Signals) -> None:
        words = ("serve", "--addr", "127.0.0.1", "--port", "0", "--file", str(servers.image))
        for delay in range(8):
            server = servers.start_program(sys.executable, "-c", BEGIN, *words)
            server.wait_for("begins")
            for _ in range(delay * 1_000_000):  # no time would fit everywhere
                pass
            server.send(number)
            assert server.wait() in (-number, 0, 1)
            assert "Traceback" not in server.story()


def tls_client(server: Child, folder: Path) -> ssl.SSLSocket:
    """Connect over TLS, trusting *folder*'s authority."""
    sock = connect(*server.listening())
    receive(sock, 18)
    sock.sendall(b"\0\0\0\3" + OPTION.pack(OPTION_MAGIC, STARTTLS, 0))
    receive(sock, 20)
    context = ssl.create_default_context(cafile=str(folder / "ca-cert.pem"))
    return context.wrap_socket(sock, server_hostname="localhost")


class TestSIGHUP:
    def test_certificates_are_read_again(
        self, servers: Servers, pki: PKI, tmp_path: Path, twistd: bool
    ) -> None:
        folder = Path(shutil.copytree(pki.ours, tmp_path / "tls"))
        tls = ("--tls", "require", "--tls-certificates", str(folder))
        server = servers.serve(*tls, twistd=twistd)
        with tls_client(server, pki.ours) as before:
            old = before.getpeercert(binary_form=True)
            (folder / "server-key.pem").write_text("nonsense")
            server.send(signal.SIGHUP)
            server.wait_for("error .*not reloaded, nothing was changed: .*server-key.pem")
            with tls_client(server, pki.ours) as same:
                assert same.getpeercert(binary_form=True) == old
            pki.authority.issue("server").write(folder, "server")
            server.send(signal.SIGHUP)
            server.wait_for("reloaded: certificates$")
            with tls_client(server, pki.ours) as after:
                assert after.getpeercert(binary_form=True) != old
            # The old connection goes on.
            before.sendall(OPTION.pack(OPTION_MAGIC, 2, 0))
            assert before.recv(8)
        stop(server)

    def test_the_access_list_is(self, servers: Servers, tmp_path: Path, twistd: bool) -> None:
        file = tmp_path / "config.toml"
        file.write_text('acl = ["127.0.0.0/8"]\nread-only = true\n')
        server = servers.serve("--config", str(file), twistd=twistd)
        client = servers.client(server)
        file.write_text('acl = ["127.0.0.2"]\nmax-clients = 7\nno-list = true\n')
        server.send(signal.SIGHUP)
        server.wait_for("reloaded: access list$")
        server.wait_for("warn .*need a restart: read-only, no-list, max-clients$")
        client.expect_end()
        RawClient.to(*server.listening(), bind="127.0.0.2").close()
        file.write_text('acl = ["nonsense"]\n')
        server.send(signal.SIGHUP)
        server.wait_for("error .*not reloaded, nothing was changed: .*nonsense")
        RawClient.to(*server.listening(), bind="127.0.0.2").close()
        file.write_text("acl = []\ndefault-deny = true\n")
        server.send(signal.SIGHUP)
        server.wait_for("need a restart: read-only$")
        with pytest.raises(Ended):
            RawClient.to(*server.listening(), bind="127.0.0.2")
        assert ask(servers.source_sock, "acl")[0] == 0  # an empty one still lets nobody in
        with pytest.raises(Ended):
            servers.client(server)
        stop(server)

    def test_where_there_is_nothing_to_read_it_ends(self, servers: Servers, twistd: bool) -> None:
        path = servers.folder / "nbd"
        server = servers.serve("--endpoint", f"unix:{path}", twistd=twistd)
        server.wait_for(f"listening on {path}")
        server.send(signal.SIGHUP)
        server.expect_exit(0)
        assert not path.exists()
        assert not servers.source_sock.exists()

    def test_behind_nohup_it_is_ignored(self, servers: Servers) -> None:
        server = servers.start_program(
            *("nohup", sys.executable, "-m", "flexmigrate", "serve", "--addr", "127.0.0.1"),
            *("--port", "0", "--file", str(servers.image), "--sock", str(servers.source_sock)),
        )
        server.listening()
        server.send(signal.SIGHUP)
        assert servers.client(server).read(0, 512)
        assert status(servers.source_sock)["num_clients"]
        stop(server)

"""Very many clients that connect at once, and clients that take all there is to take."""

from __future__ import annotations

import contextlib
import resource
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.crowd import Crowd
from support.images import MIB
from support.operator import status, wait_until
from support.processes import Child, script
from support.raw_nbd import OPTION, OPTION_MAGIC, READ, Ended, RawClient, connect, receive, request
from support.servers import Servers, stop

ALL = 2000

# Seconds, for a machine that has other things to do; alone they take one or two.
AT_MOST = 60


@pytest.fixture(autouse=True)
def descriptors() -> Iterator[None]:
    """Let this process have as many as the clients need, and its children by default what most
    processes have.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2 * ALL:
        pytest.skip(f"{hard} open files are too few")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def with_limit(servers: Servers, soft: int, hard: int, *more: str) -> Child:
    """Start a source that may have so many open files."""
    server = servers.start_program(
        *("prlimit", f"--nofile={soft}:{hard}", script("flexmigrate")),
        *("serve", "--addr", "127.0.0.1", "--port", "0", "--sock", str(servers.source_sock)),
        *("--file", str(servers.image), *more),
    )
    server.listening()
    return server


class TestAllAtOnce:
    def test_at_a_server_that_has_just_begun(self, servers: Servers, twistd: bool) -> None:
        server = servers.serve(twistd=twistd)
        with Crowd(*server.listening(), ALL) as crowd:
            crowd.come(AT_MOST)
            assert crowd.tries == ALL
            assert status(servers.source_sock)["num_clients"] == str(ALL)
        stop(server)

    def test_with_the_soft_limit_of_most_processes(self, servers: Servers) -> None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        server = with_limit(servers, 1024, hard)
        with Crowd(*server.listening(), ALL) as crowd:
            crowd.come(AT_MOST)
            assert crowd.tries == ALL

    def test_at_a_unix_socket(self, servers: Servers, tmp_path: Path) -> None:
        path = str(tmp_path / "nbd")
        server = servers.start("serve", "--addr", path, "--file", str(servers.image))
        server.listening()
        with Crowd(path, 0, ALL) as crowd:
            crowd.come(AT_MOST)
            assert crowd.tries == ALL

    @pytest.mark.parametrize(
        "described", ["tcp:0:interface=127.0.0.1", "systemd:domain=INET:index=0"]
    )
    def test_at_an_endpoint(self, servers: Servers, described: str) -> None:
        words = ("serve", "--file", str(servers.image), "--endpoint", described)
        server = servers.children.python(
            *("-m", "support.activation", "127.0.0.1:0", "--", script("flexmigrate"), *words)
        )
        with Crowd(*server.listening(), ALL) as crowd:
            crowd.come(AT_MOST)
            assert crowd.tries == ALL

    def test_at_a_handover(self, servers: Servers) -> None:
        """All have lost their server, which is nowhere for a moment, and then the other one."""
        source = servers.serve()
        port = source.listening()[1]
        destination = servers.listen("--rebind-port", str(port))
        with Crowd("127.0.0.1", port, ALL) as crowd:
            crowd.come(AT_MOST)
            servers.start_mirroring()
            crowd.come_back(AT_MOST)
            source.expect_exit(0)
            found = wait_until(servers.destination_sock, listening_phase="serving")
            assert found["num_clients"] == str(ALL)
        stop(destination)


class TestOneHost:
    def test_leaves_places_to_others(self, servers: Servers) -> None:
        server = servers.serve("--max-clients", "40")
        with Crowd(*server.listening(), 30) as crowd:
            crowd.come(AT_MOST)
            with pytest.raises(Ended):
                servers.client(server)
            server.wait_for("30 clients of that host are connected already")
            with Crowd(*server.listening(), 10, bind="127.0.0.2") as others:
                others.come(AT_MOST)
                with pytest.raises(Ended):
                    RawClient.to(*server.listening(), bind="127.0.0.3")
                server.wait_for("40 clients are connected already")
        wait_until(servers.source_sock, num_clients="0")
        assert servers.client(server).read(0, 512)

    def test_has_as_many_as_is_said(self, servers: Servers) -> None:
        server = servers.serve("--max-clients-per-host", "2")
        first = servers.client(server)
        servers.client(server)
        with pytest.raises(Ended):
            servers.client(server)
        first.say_goodbye()
        wait_until(servers.source_sock, num_clients="1")
        servers.client(server)


class TestFewOpenFiles:
    def test_clients_do_not_take_the_last(self, servers: Servers) -> None:
        server = with_limit(servers, 64, 64)
        server.wait_for("16 clients can be connected at once, not 10000.*64 open files")
        client = servers.client(server)
        with Crowd(*server.listening(), 11) as crowd:
            crowd.come(AT_MOST)
            with pytest.raises(Ended):
                servers.client(server)
            assert client.read(0, 512)
            assert status(servers.source_sock)["num_clients"] == "12"
        wait_until(servers.source_sock, num_clients="1")
        assert servers.client(server).read(0, 512)


def resident(server: Child) -> int:
    """Return how many bytes of memory a server has."""
    pages = Path(f"/proc/{server.pid}/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


class TestWhoReadsNothing:
    """Much is asked for over a hundred connections, and nothing of it is read."""

    FEW = 24 * MIB

    # Of connections of one client, some of what stands in the kernel is looked at (server.export).
    LOOKED_AT = 96 * MIB

    def asked(self, server: Child, said: bytes, *, negotiates: bool) -> list[socket.socket]:
        """Connect a hundred clients, which send *said*, or as much of it as the server takes."""
        found = []
        for _ in range(100):
            client = RawClient(connect(*server.listening()))
            if not negotiates:
                client.hello()
            else:
                receive(client.sock, 18)
            client.sock.setblocking(False)
            found.append(client.sock)
        unsent = dict.fromkeys(found, said)
        # Each as far as it comes: a server that takes more in the meantime gets more.
        for _ in range(200):
            for sock, rest in unsent.items():
                with contextlib.suppress(BlockingIOError):
                    unsent[sock] = rest[sock.send(rest) :]
            time.sleep(0.01)
        return found

    def test_of_answers_to_options(self, servers: Servers) -> None:
        names = [f"--export={'n' * 200}{number}" for number in range(50)]
        paths = [f"={servers.folder}/{number}" for number in range(50)]
        for path in paths:
            Path(path[1:]).write_bytes(bytes(4096))
        server = servers.start(
            *("serve", "--addr", "127.0.0.1", "--port", "0", "--sock", str(servers.source_sock)),
            *map("".join, zip(names, paths, strict=True)),
        )
        server.listening()
        before = resident(server)
        lists = struct.pack(">I", 3) + OPTION.pack(OPTION_MAGIC, 3, 0) * 1000
        clients = self.asked(server, lists, negotiates=True)
        assert status(servers.source_sock)["num_clients"] == "100"
        assert resident(server) - before < self.FEW
        for each in clients:
            each.close()

    def test_of_replies(self, servers: Servers) -> None:
        server = servers.serve()
        before = resident(server)
        clients = self.asked(server, request(READ, 1, 0, 4096) * 20000, negotiates=False)
        assert status(servers.source_sock)["num_clients"] == "100"
        assert resident(server) - before < self.LOOKED_AT
        for each in clients:
            each.close()

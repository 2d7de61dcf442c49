"""An image that was received is served as ``serve`` would serve it, with the same options."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.operator import status, wait_until
from support.processes import Child
from support.raw_nbd import READ, Ended, RawClient, request
from support.servers import Servers, stop

# A server that has less patience than the 120 s of ``--killswitch``.
IMPATIENT = """
import flexmigrate.service.factories as factories
factories.KILLSWITCH_SECONDS = 2
from flexmigrate.__main__ import run
raise SystemExit(run())
"""


class Received:
    """A server that has received an image, and serves it at *port*."""

    def __init__(self, servers: Servers, port: int) -> None:
        self.servers = servers
        self.port = port

    def move(self, destination: Child) -> None:
        """Have the image come to *destination*."""
        source = self.servers.serve()
        self.servers.send_to(*destination.listening())
        self.servers.start_mirroring()
        source.expect_exit(0)
        wait_until(self.servers.destination_sock, listening_phase="serving")

    def client(self, bind: str | None = None) -> RawClient:
        return RawClient.to("127.0.0.1", self.port, bind=bind)

    def polls(self) -> int:
        seen = status(self.servers.destination_sock)
        return int(seen["poll_hits"]) + int(seen["poll_misses"])


@pytest.fixture
def received(servers: Servers, port: int) -> Received:
    return Received(servers, port)


def test_limits_of_clients_and_names(
    received: Received, servers: Servers, twistd: bool, tmp_path: Path
) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text("no-list = true\nmax-clients-per-host = 2\n")
    destination = servers.listen(
        *("--rebind-port", str(received.port), "--export", "disk", "--max-clients", "3"),
        *("--config", str(settings)),
        twistd=twistd,
    )
    received.move(destination)
    clients = [received.client(), received.client(), received.client("127.0.0.2")]
    for host, reason in (("127.0.0.1", "3 clients"), ("127.0.0.2", "3 clients")):
        with pytest.raises(Ended):
            received.client(host)
        destination.wait_for(f"refused a connection from {host}: {reason} are connected already")
    clients.pop().say_goodbye()
    wait_until(servers.destination_sock, num_clients="2")
    with pytest.raises(Ended):
        received.client()
    destination.wait_for("127.0.0.1: 2 clients of that host are connected already")
    clients.pop().say_goodbye()
    wait_until(servers.destination_sock, num_clients="1")
    listed = subprocess.run(
        ("nbdinfo", "--list", f"nbd://127.0.0.1:{received.port}"), check=False, capture_output=True
    )
    assert listed.returncode != 0
    assert b"disk" not in listed.stdout + listed.stderr
    clients.pop().say_goodbye()
    stop(destination)


@pytest.mark.parametrize(("microseconds", "expected"), [(None, True), ("500", True), ("0", False)])
def test_polling(
    received: Received, servers: Servers, microseconds: str | None, *, expected: bool
) -> None:
    more = () if microseconds is None else ("--poll-us", microseconds)
    destination = servers.listen("--rebind-port", str(received.port), *more)
    received.move(destination)
    client = received.client()
    for _ in range(100):
        client.read(0, 512)
    assert bool(received.polls()) is expected
    client.say_goodbye()
    stop(destination)


@pytest.mark.parametrize("killswitch", [True, False])
def test_killswitch(received: Received, servers: Servers, *, killswitch: bool) -> None:
    words = ("--addr", "127.0.0.1", "--port", "0", "--file", str(servers.copy))
    destination = servers.start_program(
        *(sys.executable, "-c", IMPATIENT, "listen", *words),
        *("--rebind-port", str(received.port), "--sock", str(servers.destination_sock)),
        *(["--killswitch"] if killswitch else []),
    )
    received.move(destination)
    slow, other = received.client(), received.client()
    head = request(READ, 1, length=512)
    slow.sock.sendall(head[:10])
    if killswitch:
        destination.wait_for("a request wasn't complete after 2 s")
        slow.expect_end()
    else:
        slow.sock.settimeout(4)
        with pytest.raises(TimeoutError):
            slow.sock.recv(1)
    assert len(other.read(0, 512)) == 512  # who is idle, or quick, isn't concerned
    other.say_goodbye()
    slow.close()
    stop(destination)

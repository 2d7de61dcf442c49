"""A network that does what the test says, and otherwise nothing at all."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from support.raw_nbd import Ended, receive
from support.relay import Relay

TIMEOUT = 20.0  # seconds


class Network:
    """A relay, with the target behind it played by the test."""

    def __init__(self, target: socket.socket, relay: Relay, stack: contextlib.ExitStack) -> None:
        self.relay = relay
        self._target = target
        self._stack = stack

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """Return both ends of a new connection."""
        number = self.relay.connections + 1
        near = socket.create_connection(("127.0.0.1", self.relay.port), TIMEOUT)
        far, _ = self._target.accept()
        far.settimeout(TIMEOUT)
        self.relay.wait_for_connection(number)
        for end in (near, far):
            self._stack.callback(end.close)
        return near, far


@pytest.fixture
def network() -> Iterator[Network]:
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        target.settimeout(TIMEOUT)
        relay = stack.enter_context(Relay("127.0.0.1", target.getsockname()[1]))
        yield Network(target, relay, stack)


def test_bytes_go_both_ways_and_are_counted_one_way(network: Network) -> None:
    near, far = network.connect()
    near.sendall(b"there")
    assert receive(far, 5) == b"there"
    far.sendall(b"and back")
    assert receive(near, 8) == b"and back"
    network.relay.wait_for_bytes(5)
    assert (network.relay.forwarded, network.relay.connections) == (5, 1)


def test_an_end_is_passed_on_and_the_other_way_stays_open(network: Network) -> None:
    near, far = network.connect()
    near.shutdown(socket.SHUT_WR)
    assert far.recv(1) == b""
    far.sendall(b"late")
    assert receive(near, 4) == b"late"
    far.close()
    assert near.recv(1) == b""


def test_a_cut_resets_what_there_is_and_lets_in_what_comes(network: Network) -> None:
    ends = [end for _ in range(3) for end in network.connect()]
    network.relay.cut()
    for end in ends:
        with pytest.raises(Ended):
            receive(end, 1)
    near, far = network.connect()
    near.sendall(b"x")
    assert receive(far, 1) == b"x"


def test_a_cut_never_looks_like_a_close(network: Network) -> None:
    for _ in range(300):
        near, far = network.connect()
        network.relay.cut()
        for end in (near, far):
            with pytest.raises(ConnectionResetError):
                assert end.recv(1) == b"reset", "it was closed in good order"


def test_a_cut_can_wait_for_so_many_bytes(network: Network) -> None:
    near, far = network.connect()
    network.relay.cut_after(10)
    near.sendall(b"nine bytes"[:9])
    assert len(receive(far, 9)) == 9
    near.sendall(b"x")
    with pytest.raises(Ended):
        receive(near, 1)


def test_what_is_stalled_comes_when_it_goes_on(network: Network) -> None:
    near, far = network.connect()
    network.relay.stall()
    near.sendall(b"stalled")
    far.settimeout(0.05)
    with pytest.raises(TimeoutError):
        far.recv(1)
    far.settimeout(TIMEOUT)
    network.relay.resume()
    assert receive(far, 7) == b"stalled"


def test_the_end_can_be_kept_secret(network: Network) -> None:
    near, far = network.connect()
    network.relay.keep_the_end_secret()
    far.sendall(b"bye")
    far.close()
    assert receive(near, 3) == b"bye"
    near.settimeout(0.05)
    with pytest.raises(TimeoutError):
        near.recv(1)


def test_where_nobody_listens_the_client_is_cut_off(port: int) -> None:
    with (
        Relay("127.0.0.1", port) as relay,
        # It may be as quick as to cut the connection before it seems to stand.
        pytest.raises((Ended, ConnectionResetError)),
        socket.create_connection(("127.0.0.1", relay.port), TIMEOUT) as client,
    ):
        receive(client, 1)

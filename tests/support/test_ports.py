"""A port that is held: nobody answers, one may listen, and the kernel gives it to nobody."""

from __future__ import annotations

import socket
import struct
from contextlib import ExitStack

import pytest

from support.ports import held_port

_IP_LOCAL_PORT_RANGE = 51  # ip(7); the socket module doesn't have it


def test_who_connects_is_refused() -> None:
    with held_port() as port, pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_a_server_may_listen_there_again_and_again() -> None:
    with held_port() as port:
        for _ in range(2):
            with (
                socket.create_server(("127.0.0.1", port)) as server,
                socket.create_connection(("127.0.0.1", port)),
            ):
                server.accept()[0].close()


def test_two_are_never_the_same_and_one_that_does_not_reuse_is_refused() -> None:
    with ExitStack() as stack:
        held = {stack.enter_context(held_port()) for _ in range(500)}
        assert len(held) == 500
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", held.pop()))


def test_it_is_not_what_somebody_gets_who_asks_for_any() -> None:
    with held_port() as port, socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        only = struct.pack("=HH", port, port)
        try:
            other.setsockopt(socket.IPPROTO_IP, _IP_LOCAL_PORT_RANGE, only)
        except OSError:
            pytest.skip("this kernel has no range of ports for each socket (Linux 6.3 has)")
        with pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", 0))

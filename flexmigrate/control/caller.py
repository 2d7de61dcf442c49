"""One call to a server's operator's socket, for the command line: blocking, and without Twisted."""

from __future__ import annotations

import os
import socket
import struct
import time

from flexmigrate.control.grammar import encode_command, parse_answer
from flexmigrate.errors import CommandError, ConnectFailed

# ``mirror`` is answered once the destination has said hello: at most the time that TCP needs to
# give up connecting (about 130 s with Linux's defaults, tcp(7) tcp_syn_retries), then 5 s.
ANSWER_TIMEOUT = 180.0
# An answer is a line of some hundred bytes; whoever sends more than this is no server of ours.
MAX_ANSWER = 65536


def call(sock: str, lines: list[str], timeout: float = ANSWER_TIMEOUT) -> tuple[int, str]:
    """Have the server that listens on *sock* obey the command *lines*; return its code and text.

    :param sock: path of the server's operator's socket.
    :param timeout: how long the whole call may take, in seconds.
    :raises ConnectFailed: if no server listens there.
    :raises CommandError: if *lines* are no command, or no answer came.
    """
    command = encode_command(lines)
    deadline = time.monotonic() + timeout
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            _connect(connection, sock, timeout)
        except OSError as error:
            raise ConnectFailed(f"no server answers on {sock}: {_reason(error)}") from error
        try:
            connection.settimeout(timeout)
            connection.sendall(command)
            answer = _receive_line(connection, deadline)
        except TimeoutError as error:
            raise CommandError(f"{sock}: no answer within {timeout:g} s") from error
        except OSError as error:
            raise CommandError(f"{sock}: no answer: {_reason(error)}") from error
    return parse_answer(answer)


def _connect(connection: socket.socket, sock: str, timeout: float) -> None:
    """Connect, waiting where the server has not yet accepted those who came before."""
    # With a timeout of Python's the socket would not block, and the kernel refuse at once where it
    # should let us wait (connect(2), EAGAIN); its own timeout is SO_SNDTIMEO.
    microseconds = int(timeout * 1_000_000)
    timeval = struct.pack("@ll", *divmod(microseconds, 1_000_000))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
    connection.connect(sock)


def _receive_line(connection: socket.socket, deadline: float) -> bytes:
    received = bytearray()
    while b"\n" not in received:
        # A timeout of 0 would mean "don't block"; the least positive one means "now or never".
        connection.settimeout(max(deadline - time.monotonic(), 1e-6))
        piece = connection.recv(MAX_ANSWER)
        if not piece:
            raise CommandError("the server closed the connection without an answer")
        received += piece
        if len(received) > MAX_ANSWER:
            raise CommandError(f"the server's answer has more than {MAX_ANSWER} bytes")
    return bytes(received.partition(b"\n")[0])


def _reason(error: OSError) -> str:
    # An OSError made by the socket module itself ("AF_UNIX path too long") has no number.
    return os.strerror(error.errno) if error.errno else str(error)

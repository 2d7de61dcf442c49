"""A blocking client of the operator's socket, for the command line; Twisted isn't imported."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Sequence

from flexmigrate.control.grammar import encode_command, parse_answer
from flexmigrate.errors import CommandError, ConnectFailed

# ``mirror`` is answered once the destination has said hello: at most the time that TCP needs to
# give up connecting (about 130 s with Linux's defaults, tcp(7) tcp_syn_retries), then 5 s.
ANSWER_TIMEOUT = 180.0
# An answer is a line of some hundred bytes; a longer one than this is not from our server.
MAX_ANSWER = 65536


class NoAnswer(CommandError):
    """The server closed the connection before it had answered."""


class Conversation:
    """Commands to the server that listens on *sock*, all on one connection, and their answers in
    order. A context manager; used by one thread.

    :param sock: path of the server's operator's socket.
    :param timeout: how long connecting may take, in seconds.
    :raises ConnectFailed: if no server listens there.
    :raises CommandError: if one of *commands* is none, or can't be sent.
    """

    def __init__(
        self, sock: str, commands: Sequence[list[str]], timeout: float = ANSWER_TIMEOUT
    ) -> None:
        request = b"".join(encode_command(lines) for lines in commands)
        self._sock = sock
        self._received = bytearray()
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._open(request, timeout)
        except BaseException:
            self._connection.close()
            raise

    def _open(self, request: bytes, timeout: float) -> None:
        try:
            _connect(self._connection, self._sock, timeout)
        except OSError as error:
            raise ConnectFailed(f"no server answers on {self._sock}: {_reason(error)}") from error
        try:
            self._connection.settimeout(timeout)
            self._connection.sendall(request)
        except OSError as error:
            raise CommandError(f"{self._sock}: no answer: {_reason(error)}") from error

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()

    def answer(self, timeout: float) -> tuple[int, str] | None:
        """Return code and text of the next answer; None if it has not come within *timeout*
        seconds, and may be asked for again.

        :raises NoAnswer: if the server closed the connection instead.
        :raises CommandError: if what it sent is no answer.
        """
        deadline = time.monotonic() + timeout
        while b"\n" not in self._received:
            if len(self._received) > MAX_ANSWER:
                raise CommandError(f"the server's answer has more than {MAX_ANSWER} bytes")
            # A timeout of 0 would mean "don't block"; the least positive one is "now or never".
            self._connection.settimeout(max(deadline - time.monotonic(), 1e-6))
            try:
                piece = self._connection.recv(MAX_ANSWER)
            except TimeoutError:
                return None
            except OSError as error:
                raise NoAnswer(f"{self._sock}: no answer: {_reason(error)}") from error
            if not piece:
                raise NoAnswer("the server closed the connection without an answer")
            self._received += piece
        line, _, self._received = self._received.partition(b"\n")
        return parse_answer(bytes(line))


def call(sock: str, lines: list[str], timeout: float = ANSWER_TIMEOUT) -> tuple[int, str]:
    """Send the command *lines* to the server that listens on *sock*; return its code and text.

    :param sock: path of the server's operator's socket.
    :param timeout: how long the whole call may take, in seconds.
    :raises ConnectFailed: if no server listens there.
    :raises CommandError: if *lines* are not a command, or no answer came.
    """
    deadline = time.monotonic() + timeout
    with Conversation(sock, [lines], timeout) as conversation:
        answer = conversation.answer(deadline - time.monotonic())
    if answer is None:
        raise CommandError(f"{sock}: no answer within {timeout:g} s")
    return answer


def _connect(connection: socket.socket, sock: str, timeout: float) -> None:
    """Connect; wait while the server hasn't accepted earlier connections yet."""
    # With Python's timeout the socket would not block, and the kernel would refuse at once instead
    # of letting us wait (connect(2), EAGAIN); the kernel's own timeout is SO_SNDTIMEO.
    microseconds = int(timeout * 1_000_000)
    timeval = struct.pack("@ll", *divmod(microseconds, 1_000_000))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
    connection.connect(sock)


def _reason(error: OSError) -> str:
    # An OSError made by the socket module itself ("AF_UNIX path too long") has no number.
    return os.strerror(error.errno) if error.errno else str(error)

"""The operator's socket by hand: asks and reads answers, sharing no code with flexmigrate."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from pathlib import Path

from support.processes import PATIENCE


def ask(sock: Path, *lines: str, timeout: float = PATIENCE) -> tuple[int, str]:
    """Send one command; return its answer, code and text.

    :param timeout: seconds
    :raises OSError: if nobody listens there, or no answer comes in time
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as operator:
        operator.settimeout(timeout)
        operator.connect(str(sock))
        operator.sendall("".join(f"{line}\n" for line in (*lines, "")).encode())
        with operator.makefile(encoding="utf-8") as answers:
            code, _, text = answers.readline().rstrip("\n").partition(": ")
    return int(code), text


def status(sock: Path) -> dict[str, str]:
    """Return what the server says of itself; keys and values as they stand in the answer."""
    code, text = ask(sock, "status")
    assert code == 0, text
    return dict(pair.split("=", 1) for pair in text.split(" "))


def wait_until(sock: Path, timeout: float = PATIENCE, **wanted: str) -> dict[str, str]:
    """Ask for the status, over and over, until it has the *wanted* pairs; return it.

    For what a server announces in no other way. Each question is a round trip, so this neither
    sleeps nor spins faster than the server answers.
    """
    return poll(sock, lambda found: wanted.items() <= found.items(), timeout, str(wanted))


def poll(
    sock: Path,
    enough: Callable[[dict[str, str]], bool],
    timeout: float = PATIENCE,
    what: str = "what was waited for",
) -> dict[str, str]:
    """Ask for the status, over and over, until it is *enough*; return it.

    :param what: is waited for, for people.
    """
    deadline = time.monotonic() + timeout
    found: dict[str, str] = {}
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):  # not yet there
            found = status(sock)
        if enough(found):
            return found
    raise AssertionError(f"not within {timeout} s: {what}; the last status was {found}")

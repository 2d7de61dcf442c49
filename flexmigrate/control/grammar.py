r"""The language of the operator's socket, without a socket: bytes to commands, answers to bytes.

It is flexnbd's. A command is a list of lines, each ended by ``\n``; an empty line or the end of
input ends the command. The first line names it, the others are its arguments. The answer is one
line, ``CODE: text``, where code 0 means that it was done. Texts are UTF-8; bytes that are not, as
the names of files may have, survive as surrogates.

Nothing here imports Twisted: the command line makes its calls with this module, too.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from flexmigrate.errors import CommandError
from flexmigrate.net.address import Address, BadAddress, parse_address, parse_host

# Bounds on what one connection may make the server hold. The longest argument that means something
# is the path of a socket (107 bytes); an access list may have many entries.
MAX_LINE = 1024  # bytes, without the line's end
MAX_LINES = 1024  # in one command
# A limit is told to flexnbd as an unsigned number of 64 bits.
MAX_BPS = 2**64 - 1

OK: Final = 0
FAILED: Final = 1

# Binding to it leaves the choice to the kernel: how "no bind address" is said where a limit has to
# follow, since an empty line would end the command.
_ANY_HOST = "0.0.0.0"
WILDCARDS = frozenset({_ANY_HOST, "::"})


class Action(enum.Enum):
    """What becomes of the source once the destination owns the image."""

    EXIT = "exit"
    UNLINK = "unlink"  #: exit, and the image's file is deleted before the destination is told
    NOTHING = "nothing"  #: the process stays, and serves no longer


@dataclass(frozen=True)
class MirrorRequest:
    """What ``mirror`` asks for.

    :ivar address: of the destination.
    :ivar bind: local IP address to connect from; ``None`` leaves it to the kernel.
    :ivar max_bps: limit in bytes per second, up to `MAX_BPS`; 0 for none.
    """

    address: Address
    action: Action = Action.EXIT
    bind: str | None = None
    max_bps: int = 0

    def lines(self) -> list[str]:
        """Return the command that asks for it, as `parse_mirror` reads it behind ``mirror``."""
        place = self.address.path or self.address.host
        lines = ["mirror", place, str(self.address.port), self.action.value]
        if self.bind is not None or self.max_bps:
            lines.append(self.bind or _ANY_HOST)
        if self.max_bps:
            lines.append(str(self.max_bps))
        return lines


def parse_mirror(arguments: list[str]) -> MirrorRequest:
    """Read ``ADDR PORT [exit|unlink|nothing [BIND [MAX_BPS]]]``.

    The port of a UNIX socket is 0. A BIND of ``0.0.0.0`` or ``::`` means none.

    :raises CommandError: with the answer.
    """
    if not 2 <= len(arguments) <= 5:
        raise CommandError("mirror takes ADDR PORT [exit|unlink|nothing [BIND [MAX_BPS]]]")
    left_out = ["exit", _ANY_HOST, "0"][len(arguments) - 2 :]
    addr, port, action, bind, max_bps = arguments + left_out
    try:
        return MirrorRequest(
            address=parse_address(addr, port, lowest_port=0 if addr.startswith("/") else 1),
            action=_parse_action(action),
            bind=None if bind in WILDCARDS else parse_host(bind),
            max_bps=parse_max_bps([max_bps]),
        )
    except BadAddress as error:
        raise CommandError(str(error)) from error


def parse_max_bps(arguments: list[str]) -> int:
    """Read ``N``, a limit in bytes per second, 0 for none.

    :raises CommandError: with the answer.
    """
    if len(arguments) != 1:
        raise CommandError("mirror_max_bps takes one number")
    (text,) = arguments
    if not (text.isascii() and text.isdigit() and int(text) <= MAX_BPS):
        raise CommandError(f"max_bps {text!r} is not a number from 0 to {MAX_BPS}")
    return int(text)


def _parse_action(text: str) -> Action:
    try:
        return Action(text)
    except ValueError:
        raise CommandError(f"action {text!r} is not 'exit', 'unlink' or 'nothing'") from None


class CommandReader:
    """Commands out of the bytes of one connection, however these are cut.

    Once it has raised, the connection is of no more use.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._lines: list[str] = []

    def receive(self, data: bytes) -> list[list[str]]:
        """Return the commands that *data* completes; an empty one is an empty list.

        :raises CommandError: if a line or a command is too long.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        _check_length(self._rest)
        return [self._take() for line in lines if not self._append(line)]

    def finish(self) -> list[list[str]]:
        """Return what the end of input completes: one command, or none.

        :raises CommandError: if it is too long.
        """
        self._append(self._rest)
        self._rest = b""
        return [self._take()] if self._lines else []

    def _append(self, line: bytes) -> bool:
        """Add *line* to the command, unless it is empty; return whether it was added."""
        _check_length(line)
        text = line.removesuffix(b"\r").decode("utf-8", "surrogateescape")
        if text and len(self._lines) == MAX_LINES:
            raise CommandError(f"a command has more than {MAX_LINES} lines")
        if text:
            self._lines.append(text)
        return bool(text)

    def _take(self) -> list[str]:
        command, self._lines = self._lines, []
        return command


def _check_length(line: bytes) -> None:
    if len(line) > MAX_LINE:
        raise CommandError(f"a line has more than {MAX_LINE} bytes")


def encode_command(lines: list[str]) -> bytes:
    """Return the bytes of the command *lines*.

    :raises CommandError: if a line is empty, too long, or holds the end of a line: the server
        would read another command.
    """
    if not lines or len(lines) > MAX_LINES:
        raise CommandError(f"a command has 1 to {MAX_LINES} lines, not {len(lines)}")
    encoded = [line.encode("utf-8", "surrogateescape") for line in lines]
    for line, code in zip(lines, encoded, strict=True):
        _check_length(code)
        if not code or b"\n" in code or b"\r" in code:
            raise CommandError(f"{line!r} can't be an argument of a command")
    return b"".join(code + b"\n" for code in (*encoded, b""))


def encode_answer(code: int, text: str) -> bytes:
    """Return the answer's line; what is not printable in *text* becomes a space."""
    shown = "".join(char if char.isprintable() else " " for char in text)
    return f"{code}: {' '.join(shown.split())}\n".encode()


def parse_answer(line: bytes) -> tuple[int, str]:
    """Return code and text of the answer *line*.

    :raises CommandError: if it is none.
    """
    code, colon, text = line.decode("utf-8", "backslashreplace").strip().partition(":")
    if not colon or not code.isdecimal():
        raise CommandError(f"the server's answer makes no sense: {line!r}")
    return int(code), text.strip()

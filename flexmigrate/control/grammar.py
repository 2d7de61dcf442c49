r"""The language of the operator's socket, without a socket: bytes to commands, answers to bytes.

It is flexnbd's. A command is a list of lines, each ended by ``\n``; an empty line or the end of
input ends the command. The first line names it, the others are its arguments. The answer is one
line, ``CODE: text``, where code 0 means that it was done. Texts are UTF-8; bytes that are not, as
the names of files may have, survive as surrogates.

After flexnbd's arguments there may be settings, one ``name=value`` per line, in any order. They
are flexmigrate's own.

Twisted isn't imported: the command line uses this module, too.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from flexmigrate.errors import CommandError, UsageError
from flexmigrate.migration.request import (
    CONVERGE_SETTINGS,
    MAX_BPS,
    SETTINGS,
    Action,
    ConvergeChange,
    MirrorRequest,
    Setting,
)
from flexmigrate.net.address import BadAddress, parse_address, parse_host

# Limits of the memory that one connection can take. The longest valid lines are
# settings: a name of an export, or a path, has at most 4096 bytes. An access list may have many
# entries.
MAX_LINE = 4096 + 64  # bytes, without the line's end
MAX_LINES = 1024  # in one command

_SETTING = re.compile(r"[a-z][a-z-]*=")

OK: Final = 0
FAILED: Final = 1

# To bind to it leaves the choice to the kernel. It stands for "no bind address" if a limit has to
# follow, since an empty line would end the command.
_ANY_HOST = "0.0.0.0"
WILDCARDS = frozenset({_ANY_HOST, "::"})


def _read_settings(said: Mapping[str, str], known: Sequence[Setting]) -> dict[str, Any]:
    """Return the values of settings, by their fields.

    :raises CommandError: with the answer.
    """
    try:
        return {each.field: each.read(said[each.name]) for each in known if each.name in said}
    except UsageError as error:
        raise CommandError(str(error)) from error


def mirror_command(request: MirrorRequest) -> list[str]:
    """Return the command that asks for *request*, as `parse_mirror` reads it behind ``mirror``."""
    place = request.address.path or request.address.host
    lines = ["mirror", place, str(request.address.port), request.action.value]
    if request.bind is not None or request.max_bps:
        lines.append(request.bind or _ANY_HOST)
    if request.max_bps:
        lines.append(str(request.max_bps))
    return [*lines, *request.setting_lines()]


def parse_converge(arguments: list[str]) -> tuple[ConvergeChange, str | None]:
    """Parse the settings of ``converge``: the change, and the export.

    :raises CommandError: with the answer.
    """
    names = [each.name for each in CONVERGE_SETTINGS]
    positional, said = split_settings(arguments, ("export", *names))
    values = _read_settings(said, CONVERGE_SETTINGS)
    if positional or not values:
        raise CommandError(f"converge takes settings: {', '.join(names)}")
    try:
        change = ConvergeChange(**{key.rpartition(".")[2]: each for key, each in values.items()})
    except UsageError as error:
        raise CommandError(str(error)) from error
    return change, said.get("export")


def split_settings(
    arguments: list[str], known: Collection[str]
) -> tuple[list[str], dict[str, str]]:
    """Return flexnbd's arguments, and the settings after them.

    :raises CommandError: naming a setting that isn't *known*, or is given twice.
    """
    positional = [line for line in arguments if not _SETTING.match(line)]
    settings: dict[str, str] = {}
    for line in arguments[len(positional) :]:
        name, _, value = line.partition("=")
        if not _SETTING.match(line) or name not in known or name in settings:
            raise CommandError(f"{line!r} can't be said here")
        settings[name] = value
    return positional, settings


def export_lines(export: str | None) -> list[str]:
    """Return the setting that names a command's export; ``None``: the only one."""
    return [] if export is None else [f"export={export}"]


def parse_export(arguments: list[str]) -> tuple[list[str], str | None]:
    """Return the arguments of a command about one export, and its name if it is given.

    :raises CommandError: with the answer.
    """
    positional, settings = split_settings(arguments, ("export",))
    return positional, settings.get("export")


def parse_mirror(arguments: list[str]) -> MirrorRequest:
    """Parse ``ADDR PORT [exit|unlink|nothing [BIND [MAX_BPS]]]`` and the settings after it.

    The port of a UNIX socket is 0. A BIND of ``0.0.0.0`` or ``::`` means none.

    :raises CommandError: with the answer.
    """
    arguments, said = split_settings(arguments, [each.name for each in SETTINGS])
    if not 2 <= len(arguments) <= 5:
        raise CommandError("mirror takes ADDR PORT [exit|unlink|nothing [BIND [MAX_BPS]]]")
    left_out = ["exit", _ANY_HOST, "0"][len(arguments) - 2 :]
    addr, port, action, bind, max_bps = arguments + left_out
    try:
        return MirrorRequest.of(
            parse_address(addr, port, lowest_port=0 if addr.startswith("/") else 1),
            _read_settings(said, SETTINGS),
            action=_parse_action(action),
            bind=None if bind in WILDCARDS else parse_host(bind),
            max_bps=parse_max_bps([max_bps]),
        )
    except (BadAddress, UsageError) as error:
        raise CommandError(str(error)) from error


def parse_max_bps(arguments: list[str]) -> int:
    """Parse ``N``, a limit in bytes per second, 0 for none.

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
    """A parser of the commands on one connection, whose bytes may be split anywhere.

    After an error the connection is of no more use.
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
        """Return the command that the end of input completes, if there is one.

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

    :raises CommandError: if a line is empty, too long, or contains a line end: the server
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

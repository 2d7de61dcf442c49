r"""The language of the operator's socket, without a socket: bytes to commands, answers to bytes.

It is flexnbd's. A command is a list of lines, each ended by ``\n``; an empty line or the end of
input ends the command. The first line names it, the others are its arguments. The answer is one
line, ``CODE: text``, where code 0 means that it was done. Texts are UTF-8; bytes that are not, as
the names of files may have, survive as surrogates.

Behind flexnbd's arguments may stand settings, ``name=value`` a line, in any order: they are ours,
and say what flexnbd can't.

Nothing here imports Twisted: the command line makes its calls with this module, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Final, TypeVar

from flexmigrate.errors import CommandError
from flexmigrate.migration.request import (
    _ANY_HOST,
    MAX_BPS,
    MAX_CONNECTIONS,
    USUAL_CONNECTIONS,
    USUAL_CONVERGENCE,
    Action,
    ConvergeChange,
    ConvergeRule,
    HandoverRule,
    MirrorRequest,
    TLSConfig,
    TLSRule,
    VerifyRule,
    format_seconds,
)
from flexmigrate.net.address import BadAddress, parse_address, parse_host
from flexmigrate.telemetry.report.subject import SUFFIXES

_T = TypeVar("_T")

# Bounds on what one connection may make the server hold. The longest lines that mean something are
# settings: a name of an export, or a path, has at most 4096 bytes. An access list may have many
# entries.
MAX_LINE = 4096 + 64  # bytes, without the line's end
MAX_LINES = 1024  # in one command

# Seconds in any setting: what takes longer than a day is no pause and no timeout.
MAX_SECONDS = 86400.0

_SETTING = re.compile(r"[a-z][a-z-]*=")
_CONVERGE_SETTINGS = ("converge", "max-downtime", "max-park", "converge-timeout")
_MIRROR_SETTINGS = (
    "export",
    "remote-export",
    "handover",
    "allow-old-peers",
    "verify",
    "connections",
    "drop-cache",
    "tls",
    "tls-certificates",
    "tls-hostname",
    "report",
    *_CONVERGE_SETTINGS,
)
_SECONDS = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|min|)", re.ASCII)
_UNITS = {"ms": 0.001, "s": 1.0, "": 1.0, "min": 60.0}


OK: Final = 0
FAILED: Final = 1

WILDCARDS = frozenset({_ANY_HOST, "::"})


def parse_seconds(text: str, lowest: float = 0.0) -> float:
    """Return the seconds that *text* names: a decimal number, and perhaps ``ms``, ``s`` or ``min``.

    :raises ValueError: if it names none, or none from *lowest* to `MAX_SECONDS`.
    """
    match = _SECONDS.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a time, like 100ms, 2.5s or 1min")
    seconds = float(match[1]) * _UNITS[match[2]]
    if not lowest <= seconds <= MAX_SECONDS:
        raise ValueError(
            f"{text!r} is not from {format_seconds(lowest)} to {format_seconds(MAX_SECONDS)}"
        )
    return seconds


# Parking for less would give up every handover that takes a round trip to a far host.
SHORTEST_PARK = 0.1


def parse_max_downtime(text: str) -> float:
    """As `parse_seconds`; 0 asks for the least that can be."""
    return parse_seconds(text)


def parse_max_park(text: str) -> float:
    """As `parse_seconds`, from `SHORTEST_PARK`."""
    return parse_seconds(text, SHORTEST_PARK)


def parse_converge_rule(text: str) -> ConvergeRule:
    """Return the rule that *text* names.

    :raises ValueError: if it names none.
    """
    rules: dict[str, ConvergeRule] = {"throttle": "throttle", "wait": "wait", "force": "force"}
    if text not in rules:
        raise ValueError(f"{text!r} is none of 'throttle', 'wait' and 'force'")
    return rules[text]


def _parse_convergence(settings: Mapping[str, str]) -> ConvergeChange:
    """Read the settings about convergence.

    :raises CommandError: with the answer.
    """

    def read(name: str, parse: Callable[[str], _T]) -> _T | None:
        text = settings.get(name)
        try:
            return None if text is None else parse(text)
        except ValueError as error:
            raise CommandError(f"{name}: {error}") from error

    return ConvergeChange(
        rule=read("converge", parse_converge_rule),
        max_downtime=read("max-downtime", parse_max_downtime),
        max_park=read("max-park", parse_max_park),
        timeout=read("converge-timeout", parse_seconds),
    )


def parse_converge(arguments: list[str]) -> tuple[ConvergeChange, str | None]:
    """Read the settings of ``converge``: what is to change, and for which export.

    :raises CommandError: with the answer.
    """
    positional, settings = split_settings(arguments, ("export", *_CONVERGE_SETTINGS))
    change = _parse_convergence(settings)
    if positional or change == ConvergeChange():
        raise CommandError(f"converge takes settings: {', '.join(_CONVERGE_SETTINGS)}")
    return change, settings.get("export")


def split_settings(
    arguments: list[str], known: Collection[str]
) -> tuple[list[str], dict[str, str]]:
    """Return flexnbd's arguments, and the settings behind them.

    :raises CommandError: naming a setting that isn't *known*, or is said twice.
    """
    positional = [line for line in arguments if not _SETTING.match(line)]
    settings: dict[str, str] = {}
    for line in arguments[len(positional) :]:
        name, _, value = line.partition("=")
        if not _SETTING.match(line) or name not in known or name in settings:
            raise CommandError(f"{line!r} can't be said here")
        settings[name] = value
    return positional, settings


def parse_export(arguments: list[str]) -> tuple[list[str], str | None]:
    """Return the arguments of a command about one export, and which it is, if that is said.

    :raises CommandError: with the answer.
    """
    positional, settings = split_settings(arguments, ("export",))
    return positional, settings.get("export")


def parse_mirror(arguments: list[str]) -> MirrorRequest:
    """Read ``ADDR PORT [exit|unlink|nothing [BIND [MAX_BPS]]]`` and the settings behind it.

    The port of a UNIX socket is 0. A BIND of ``0.0.0.0`` or ``::`` means none.

    :raises CommandError: with the answer.
    """
    arguments, settings = split_settings(arguments, _MIRROR_SETTINGS)
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
            export=settings.get("export"),
            remote_export=settings.get("remote-export", ""),
            handover=_parse_handover(settings.get("handover", HandoverRule.AUTO.value)),
            verify=_parse_verify(settings.get("verify", VerifyRule.FULL.value)),
            allow_old_peers=_parse_yes("allow-old-peers", settings.get("allow-old-peers", "no")),
            tls=_parse_tls(settings),
            converge=_parse_convergence(settings).of(USUAL_CONVERGENCE),
            connections=parse_connections(settings.get("connections", str(USUAL_CONNECTIONS))),
            drop_cache=_parse_yes("drop-cache", settings.get("drop-cache", "no")),
            report=_parse_report(settings.get("report")),
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


def parse_connections(text: str) -> int:
    """Read how many connections a migration may use.

    :raises CommandError: with the answer.
    """
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MAX_CONNECTIONS):
        raise CommandError(f"connections={text}: it is a number from 1 to {MAX_CONNECTIONS}")
    return int(text)


def _parse_yes(name: str, text: str) -> bool:
    if text not in ("yes", "no"):
        raise CommandError(f"{name}={text}: it is yes or no")
    return text == "yes"


def _parse_tls(settings: Mapping[str, str]) -> TLSConfig:
    rules: dict[str, TLSRule] = {"off": "off", "on": "on", "require": "require"}
    said = settings.get("tls", "off")
    if said not in rules:
        raise CommandError(f"tls={said}: it is off, on or require")
    if said != "off" and not settings.get("tls-certificates"):
        raise CommandError(f"tls={said} needs tls-certificates=DIR")
    for name in ("tls-certificates", "tls-hostname"):
        if said == "off" and name in settings:
            raise CommandError(f"{name}: without tls=on or tls=require, nothing is encrypted")
    return TLSConfig(
        rules[said], settings.get("tls-certificates"), hostname=settings.get("tls-hostname")
    )


def parse_report(text: str) -> str:
    """Return the path of a report, whose end says of which kind it is.

    :raises ValueError: if it doesn't.
    """
    if not text.endswith(SUFFIXES) or "\0" in text:
        raise ValueError(f"{text!r} is not the path of a report: it ends in .html or .json")
    return text


def _parse_report(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        path = parse_report(text)
    except ValueError as error:
        raise CommandError(f"report={text}: {error}") from error
    if not path.startswith("/"):
        # What it is relative to, the server can't know.
        raise CommandError(f"report={text}: the path has to begin with /")
    return path


def _parse_action(text: str) -> Action:
    try:
        return Action(text)
    except ValueError:
        raise CommandError(f"action {text!r} is not 'exit', 'unlink' or 'nothing'") from None


def _parse_handover(text: str) -> HandoverRule:
    try:
        return HandoverRule(text)
    except ValueError:
        raise CommandError(f"handover={text}: it is auto, session or plain") from None


def _parse_verify(text: str) -> VerifyRule:
    try:
        return VerifyRule(text)
    except ValueError:
        raise CommandError(f"verify={text}: it is full, dirty or off") from None


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

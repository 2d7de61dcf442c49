"""A request to migrate: what is asked for, and how it is said.

`SETTINGS` has a row for each setting of ``mirror`` that flexnbd's positional arguments don't cover.
The command line makes an option of each row, and the operator's socket a line ``name=value``; the
journal keeps these lines. So a new setting is one row here, a field of a class below, and the code
that uses it.

A request checks itself when it is made. Nothing here imports Twisted.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, Literal, TypeVar

from flexmigrate.errors import UsageError, check_type
from flexmigrate.net.address import Address
from flexmigrate.telemetry.report.subject import SUFFIXES
from flexmigrate.telemetry.units import format_seconds, parse_seconds

_E = TypeVar("_E", bound=enum.Enum)

TLSRule = Literal["off", "on", "require"]
ConvergeRule = Literal["throttle", "wait", "force"]

TLS_RULES: dict[str, TLSRule] = {"off": "off", "on": "on", "require": "require"}
CONVERGE_RULES: dict[str, ConvergeRule] = {"throttle": "throttle", "wait": "wait", "force": "force"}

MAX_BPS = 2**64 - 1
"""The highest limit of a rate, in bytes a second: flexnbd is told an unsigned number of 64 bits."""

USUAL_CONNECTIONS = 4
"""Connections of one migration, unless more is said. What one can't fill is a link that is long for
the socket buffers that the system allows."""

MAX_CONNECTIONS = 16
"""The most connections of one migration: beyond a few, they only compete."""

SHORTEST_PARK = 0.1
"""The lowest ``max-park``, in seconds: to park for less would give up every handover that takes a
round trip to a far host."""

SHORTEST_RETRY = 1.0
"""The lowest ``retry-interval``, in seconds: an attempt costs both ends a connection, and a
comparison of what was sent before."""

MAX_NAME = 4096
"""Bytes that the name of an export may have (proto.md, "Values")."""


class Action(enum.Enum):
    """The source's action once the destination owns the image."""

    EXIT = "exit"  #: the server ends; its file stays
    UNLINK = "unlink"  #: exit, and the image's file is deleted before the destination is told
    NOTHING = "nothing"  #: go on serving: the destination has a copy, and no claim to the image


class HandoverRule(enum.Enum):
    """The way in which source and destination decide who owns the image."""

    #: by a session, with a journal at each end, where the destination knows it; plainly where it
    #: says nothing of itself; not at all where it says that it serves an image
    AUTO = "auto"
    SESSION = "session"  #: by a session, or not at all
    PLAIN = "plain"  #: as every NBD server understands it, to any that doesn't say that it serves


class VerifyRule(enum.Enum):
    """The extent of verification, if there is a session (`HandoverRule`)."""

    FULL = "full"  #: both copies are compared, by their digests, before they are handed over
    DIRTY = "dirty"  #: only what clients have changed since it was first sent
    OFF = "off"  #: nothing; an attempt that follows on a lost one sends everything again


@dataclass(frozen=True)
class TLSConfig:
    """The settings of TLS.

    :ivar rule: "off", "on" (for who asks for it), or "require" (nothing is said without it).
    :ivar certificates: folder of the certificates and keys; needed unless the rule is "off".
    :ivar verify_peer: a client must show a certificate that our authority has signed.
    :ivar hostname: the name that a server's certificate must have; None: that of its address.
    :raises UsageError: the rule is none of these, or a value is of another type.
    """

    rule: TLSRule = "off"
    certificates: str | None = None
    verify_peer: bool = False
    hostname: str | None = None

    def __post_init__(self) -> None:
        """Refuse values that a field can't have. Whether they fit each other is for their user to
        say: it depends on the side.
        """
        check_type("tls", self.rule, str)
        if self.rule not in TLS_RULES:
            raise UsageError(f"tls: {self.rule!r} is none of 'off', 'on' and 'require'")
        check_type("certificates", self.certificates, str, type(None))
        check_type("verify_peer", self.verify_peer, bool)
        check_type("hostname", self.hostname, str, type(None))


NO_TLS = TLSConfig()


@dataclass(frozen=True)
class ConvergeConfig:
    """The settings of convergence: how a migration comes to its end while clients write.

    :ivar rule: what is done about clients that write faster than can be sent: "throttle" slows
        them down until it ends; "wait" waits until they write less, for ever if need be; "force"
        waits, but only for so long as *timeout* says.
    :ivar max_downtime: seconds for which clients should be parked at most. Aimed at, since what
        the destination will do can only be estimated.
    :ivar max_park: seconds, from `SHORTEST_PARK`, after which parked clients are let go and the
        attempt is given up; at least *max_downtime*.
    :ivar timeout: with "force", seconds after the first pass (or after this was said, if that was
        later) from which clients may be parked for half of *max_park*, and are slowed down until
        that is enough.
    :raises UsageError: the values don't fit each other.
    """

    rule: ConvergeRule = "throttle"
    max_downtime: float = 0.1
    max_park: float = 10.0
    timeout: float = 60.0

    def __post_init__(self) -> None:
        """Refuse what could never end in a handover."""
        for name in ("max_downtime", "max_park", "timeout"):
            check_type(name, getattr(self, name), float)
        if self.max_downtime > self.max_park:
            raise UsageError(
                f"max-downtime {format_seconds(self.max_downtime)} is more than "
                f"max-park {format_seconds(self.max_park)}"
            )


USUAL_CONVERGENCE = ConvergeConfig()


@dataclass(frozen=True)
class MirrorRequest:
    """The settings of ``mirror``.

    :ivar address: of the destination.
    :ivar bind: local IP address to connect from; ``None`` leaves it to the kernel.
    :ivar max_bps: limit in bytes per second, up to `MAX_BPS`; 0 for none.
    :ivar export: which export moves; ``None`` where there is only one.
    :ivar remote_export: its name at the destination.
    :ivar tls: how the migration's connection is protected.
    :ivar converge: how it comes to its end while clients write.
    :ivar connections: how many to use, where the destination takes more than one; 1 to
        `MAX_CONNECTIONS`.
    :ivar drop_cache: whether what was sent is dropped from the source's page cache.
    :ivar retry_interval: seconds from an attempt that failed to the next, from
        `SHORTEST_RETRY`; longer where handovers fail again and again.
    :ivar report: absolute path of the report that is written in the end, if there is to be one.
    :ivar handover: see `HandoverRule`.
    :ivar verify: see `VerifyRule`.
    :ivar allow_old_peers: whether a session may be had with a destination that knows of no keys.
    :raises UsageError: (a ValueError) a value is of another type or out of its range, or doesn't
        fit another; the text names it.
    """

    address: Address
    action: Action = Action.EXIT
    bind: str | None = None
    max_bps: int = 0
    export: str | None = None
    remote_export: str = ""
    tls: TLSConfig = NO_TLS
    converge: ConvergeConfig = USUAL_CONVERGENCE
    connections: int = USUAL_CONNECTIONS
    drop_cache: bool = False
    retry_interval: float = SHORTEST_RETRY
    report: str | None = None
    handover: HandoverRule = HandoverRule.AUTO
    verify: VerifyRule = VerifyRule.FULL
    allow_old_peers: bool = False

    def __post_init__(self) -> None:
        """Check each value against its setting's own parser, and TLS as a whole."""
        check_type("address", self.address, Address)
        check_type("action", self.action, Action)
        check_type("bind", self.bind, str, type(None))
        check_type("max_bps", self.max_bps, int)
        check_type("tls", self.tls, TLSConfig)
        check_type("converge", self.converge, ConvergeConfig)
        if not 0 <= self.max_bps <= MAX_BPS:
            raise UsageError(f"max-bps {self.max_bps} is not from 0 to {MAX_BPS}")
        for setting in SETTINGS:
            value = setting.value_in(self)
            if value is not None or setting.value_in(MirrorRequest) is not None:
                setting.check(value)
        if self.tls.rule != "off" and not self.tls.certificates:
            raise UsageError(f"tls={self.tls.rule} needs tls-certificates")
        for name, given in (
            ("tls-certificates", self.tls.certificates),
            ("tls-hostname", self.tls.hostname),
        ):
            if self.tls.rule == "off" and given is not None:
                raise UsageError(f"{name}: without tls on or require, nothing is encrypted")

    @classmethod
    def of(cls, address: Address, settings: Mapping[str, Any], **positional: Any) -> MirrorRequest:
        """Return the request that has these *settings*, values by the fields of `Setting`.

        :param positional: the other arguments of the class.
        :raises UsageError: as the class.
        """
        if "converge.timeout" in settings:
            _expect_force(settings.get("converge.rule", USUAL_CONVERGENCE.rule))
        parts: dict[str, dict[str, Any]] = {}
        for field, value in settings.items():
            part, _, name = field.rpartition(".")
            parts.setdefault(part, {})[name] = value
        own = parts.pop("", {})
        inner = {part: replace(getattr(cls, part), **said) for part, said in parts.items()}
        return cls(address, **positional, **own, **inner)

    def setting_lines(self) -> list[str]:
        """Return the lines ``name=value`` of all settings that aren't as they are without one."""
        usual = MirrorRequest(self.address)
        return [
            setting.line(value)
            for setting in SETTINGS
            if (value := setting.value_in(self)) != setting.value_in(usual)
        ]


@dataclass(frozen=True)
class ConvergeChange:
    """A change of a migration's convergence; ``None`` leaves a setting as it is.

    The values are those of `ConvergeConfig`.
    """

    rule: ConvergeRule | None = None
    max_downtime: float | None = None
    max_park: float | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        """Check each value against its setting's own parser."""
        for setting in CONVERGE_SETTINGS:
            value = getattr(self, setting.own_field)
            if value is not None:
                setting.check(value)

    def of(self, config: ConvergeConfig) -> ConvergeConfig:
        """Return what *config* becomes.

        :raises UsageError: that makes no sense.
        """
        said = {name: value for name, value in vars(self).items() if value is not None}
        changed = replace(config, **said)
        if self.timeout is not None:
            _expect_force(changed.rule)
        return changed

    def setting_lines(self) -> list[str]:
        """Return the lines ``name=value`` that say this."""
        return [
            setting.line(value)
            for setting in CONVERGE_SETTINGS
            if (value := getattr(self, setting.own_field)) is not None
        ]


def _expect_force(rule: str) -> None:
    if rule != "force":
        raise UsageError(f"converge-timeout means nothing with converge={rule}: it is for force")


# How values are said


def parse_yes(text: str) -> bool:
    """Return whether *text* says yes; ValueError if it says neither that nor no."""
    if text not in ("yes", "no"):
        raise ValueError(f"{text!r} is neither 'yes' nor 'no'")
    return text == "yes"


def format_yes(value: bool) -> str:
    """Return *value* as `parse_yes` reads it."""
    return "yes" if value else "no"


def parse_path(text: str) -> str:
    """Return a path; ValueError if it is none."""
    if not text or "\0" in text:
        raise ValueError(f"{text!r} is not a path")
    return text


def parse_report(text: str) -> str:
    """Return the path of a report, whose ending says of which kind it is; else ValueError."""
    if not text.endswith(SUFFIXES) or "\0" in text:
        raise ValueError(f"{text!r} is not the path of a report: it ends in .html or .json")
    return text


def parse_name(text: str) -> str:
    """Return the name of an export, as the protocol limits it; else ValueError."""
    if "\0" in text or len(text.encode("utf-8", "surrogateescape")) > MAX_NAME:
        raise ValueError(f"{text!r} is not a name of at most {MAX_NAME} bytes, none of them NUL")
    return text


def parse_host_name(text: str) -> str:
    """Return the name that a certificate has to have; ValueError if it can't be one."""
    if "\0" in text:
        raise ValueError(f"{text!r} is not the name of a host")
    return text


def parse_connections(text: str) -> int:
    """Return a number of connections; ValueError if it isn't from 1 to `MAX_CONNECTIONS`."""
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MAX_CONNECTIONS):
        raise ValueError(f"{text!r} is not a number of connections from 1 to {MAX_CONNECTIONS}")
    return int(text)


def parse_tls(text: str) -> TLSRule:
    """Return whether connections are encrypted; ValueError if *text* doesn't say."""
    if text not in TLS_RULES:
        raise ValueError(f"{text!r} is none of 'off', 'on' and 'require'")
    return TLS_RULES[text]


def parse_converge_rule(text: str) -> ConvergeRule:
    """Return the rule that *text* names; ValueError if it names none."""
    if text not in CONVERGE_RULES:
        raise ValueError(f"{text!r} is none of 'throttle', 'wait' and 'force'")
    return CONVERGE_RULES[text]


def parse_max_park(text: str) -> float:
    """As `parse_seconds`, from `SHORTEST_PARK`."""
    return parse_seconds(text, SHORTEST_PARK)


def parse_retry_interval(text: str) -> float:
    """As `parse_seconds`, from `SHORTEST_RETRY`."""
    return parse_seconds(text, SHORTEST_RETRY)


def _member_of(kind: type[_E]) -> Callable[[str], _E]:
    """Return a parser of the values of *kind*."""

    def parse(text: str) -> _E:
        try:
            return kind(text)
        except ValueError:
            *others, last = (repr(each.value) for each in kind)
            raise ValueError(f"{text!r} is none of {', '.join(others)} and {last}") from None

    return parse


def _value_of(member: enum.Enum) -> str:
    return str(member.value)


@dataclass(frozen=True)
class Setting:
    """A row of `SETTINGS`.

    :ivar field: of `MirrorRequest`; ``part.field`` for one of its ``tls`` or ``converge``.
    :ivar name: on the operator's socket, ``name=value``, and on the command line, ``--name``.
    :ivar metavar: what stands for the value in help; empty for one that is only given or not.
    :ivar help: of the option.
    :ivar parse: makes the value of a text; ValueError with a text that quotes it.
    :ivar format: makes the text of a value.
    :ivar is_path: relative to the working directory on the command line, absolute elsewhere.
    """

    field: str
    name: str
    metavar: str
    help: str
    parse: Callable[[str], Any]
    format: Callable[[Any], str] = str
    is_path: bool = False

    @property
    def own_field(self) -> str:
        """The field's name within its part."""
        return self.field.rpartition(".")[2]

    def value_in(self, request: MirrorRequest | type[MirrorRequest]) -> Any:
        """Return the value that *request* has of it; of the class, its default."""
        return attrgetter(self.field)(request)

    def line(self, value: Any) -> str:
        """Return the line that says *value*."""
        return f"{self.name}={self.format(value)}"

    def read(self, text: str) -> Any:
        """Return the value that *text* says.

        :raises UsageError: it says none.
        """
        try:
            value = self.parse(text)
        except ValueError as error:
            raise UsageError(f"{self.name}: {error}") from error
        if self.is_path and not os.path.isabs(text):
            raise UsageError(f"{self.name}: {text!r} has to begin with /")
        return value

    def check(self, value: Any) -> None:
        """See that *value* is one that the setting may have.

        :raises UsageError: it isn't.
        """
        try:
            text = self.format(value)
        except (TypeError, ValueError, AttributeError):
            raise UsageError(f"{self.name}: {value!r} is not a value of it") from None
        understood = self.read(text)
        # Times are said to the nanosecond.
        is_near = isinstance(understood, float) and abs(understood - value) < 1e-6
        if not is_near and understood != value:
            kind = type(understood).__name__
            raise UsageError(f"{self.name}: {value!r} is not a value of it: its type is {kind}")


SETTINGS = (
    Setting(
        "export",
        "export",
        "NAME",
        "which of the server's exports (default: the only one)",
        parse_name,
    ),
    Setting(
        "remote_export",
        "remote-export",
        "NAME",
        'name of the export at the destination (default: "", its default export)',
        parse_name,
    ),
    Setting(
        "connections",
        "connections",
        "N",
        "connections to use, 1 to 16, where the destination takes several (default: 4)",
        parse_connections,
    ),
    Setting(
        "drop_cache",
        "drop-cache",
        "",
        "drop from the source's page cache what was sent, so that a large image doesn't push out"
        " what others use (default: keep it)",
        parse_yes,
        format_yes,
    ),
    Setting(
        "retry_interval",
        "retry-interval",
        "TIME",
        "begin the next attempt TIME after one that failed, at least 1s (default: 1s)",
        parse_retry_interval,
        format_seconds,
    ),
    Setting(
        "handover",
        "handover",
        "auto|session|plain",
        "how to settle who owns the image: by a session, with a journal at each end; plainly, as"
        " every NBD server understands it; auto, by a session where the other server knows it, else"
        " plainly, with a warning that whatever it has is overwritten. A server that says that it"
        " serves an image is always refused (default: auto)",
        _member_of(HandoverRule),
        _value_of,
    ),
    Setting(
        "allow_old_peers",
        "allow-old-peers",
        "",
        "also accept older versions of flexmigrate, which have no keys: whoever can connect to the"
        " destination can then take the image over in the source's name (default: refuse them)",
        parse_yes,
        format_yes,
    ),
    Setting(
        "verify",
        "verify",
        "full|dirty|off",
        "what to compare with the destination, by digests, before it is handed over by a session:"
        " all, what clients have changed since it was first sent, or nothing (default: full)",
        _member_of(VerifyRule),
        _value_of,
    ),
    Setting(
        "tls.rule",
        "tls",
        "off|on|require",
        "whether connections are encrypted: never, if the other side asks for it, or always"
        " (default: off)",
        parse_tls,
    ),
    Setting(
        "tls.certificates",
        "tls-certificates",
        "DIR",
        "folder with ca-cert.pem, and server-cert.pem and server-key.pem, or client-cert.pem and"
        " client-key.pem (default: none, and so no TLS)",
        parse_path,
        is_path=True,
    ),
    Setting(
        "tls.hostname",
        "tls-hostname",
        "NAME",
        "name that the other server's certificate must have (default: the address connected to)",
        parse_host_name,
    ),
    Setting(
        "report",
        "report",
        "FILE",
        "have the server write a report of the migration when it is over: FILE.html, a page with a"
        " plot, or FILE.json (default: none)",
        parse_report,
        is_path=True,
    ),
    Setting(
        "converge.rule",
        "converge",
        "throttle|wait|force",
        "what to do about clients that write faster than can be sent: slow them down step by step"
        " until it ends, wait until they write less (for ever, if they don't), or wait for"
        " --converge-timeout and then see to it that it ends (default: throttle)",
        parse_converge_rule,
    ),
    Setting(
        "converge.max_downtime",
        "max-downtime",
        "TIME",
        "park clients once the rest can be sent, and the destination be settled with, in TIME, as"
        " far as that can be estimated; like 100ms, 2.5s or 1min, without a unit seconds, 0 for the"
        " least that can be (default: 100ms)",
        parse_seconds,
        format_seconds,
    ),
    Setting(
        "converge.max_park",
        "max-park",
        "TIME",
        "let parked clients go, and try again, if it takes longer than TIME, at least 100ms"
        " (default: 10s)",
        parse_max_park,
        format_seconds,
    ),
    Setting(
        "converge.timeout",
        "converge-timeout",
        "TIME",
        "with --converge force: so long after the first pass, clients may be parked for half of"
        " --max-park, and are slowed down until that is enough (default: 60s)",
        parse_seconds,
        format_seconds,
    ),
)
"""The settings of ``mirror``, in the order in which they are said and shown."""

CONVERGE_SETTINGS = tuple(each for each in SETTINGS if each.field.startswith("converge."))
"""Those that can be changed while a migration runs."""

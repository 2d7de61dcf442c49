"""A request to migrate: what is asked for, with its limits and defaults."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from flexmigrate.errors import CommandError
from flexmigrate.net.address import Address

TLSRule = Literal["off", "on", "require"]


ConvergeRule = Literal["throttle", "wait", "force"]


@dataclass(frozen=True)
class TLSConfig:
    """What was told of TLS.

    :ivar rule: "off", "on" (for who asks for it), or "require" (nothing is said without it).
    :ivar certificates: folder of the certificates and keys; needed unless the rule is "off".
    :ivar verify_peer: a client must show a certificate that our authority has signed.
    :ivar hostname: the name that a server's certificate must have; None: that of its address.
    """

    rule: TLSRule = "off"
    certificates: str | None = None
    verify_peer: bool = False
    hostname: str | None = None


NO_TLS = TLSConfig()


@dataclass(frozen=True)
class ConvergeConfig:
    """How a migration comes to its end while clients write.

    :ivar rule: what is done about clients that write faster than can be sent: "throttle" slows
        them down until it ends; "wait" waits until they write less, for ever if need be; "force"
        waits, but only for so long as *timeout* says.
    :ivar max_downtime: seconds for which clients should be parked at most. Aimed at, since what
        the destination will do can only be estimated.
    :ivar max_park: seconds, above 0, after which parked clients are let go and the attempt is given
        up; at least *max_downtime*.
    :ivar timeout: with "force", seconds after the first pass (or after this was said, if that was
        later) from which clients may be parked for half of *max_park*, and are slowed down until
        that is enough.
    """

    rule: ConvergeRule = "throttle"
    max_downtime: float = 0.1
    max_park: float = 10.0
    timeout: float = 60.0


USUAL_CONVERGENCE = ConvergeConfig()


# A limit is told to flexnbd as an unsigned number of 64 bits.
MAX_BPS = 2**64 - 1


# Connections of one migration: unless more is said, and the most. What one can't fill is a link
# that is long for the socket buffers that the system allows; beyond a few, they only compete.
USUAL_CONNECTIONS = 4


MAX_CONNECTIONS = 16


# Binding to it leaves the choice to the kernel: how "no bind address" is said where a limit has to
# follow, since an empty line would end the command.
_ANY_HOST = "0.0.0.0"


class Action(enum.Enum):
    """What becomes of the source once the destination owns the image."""

    EXIT = "exit"
    UNLINK = "unlink"  #: exit, and the image's file is deleted before the destination is told
    NOTHING = "nothing"  #: go on serving: the destination has a copy, and no claim to the image


class HandoverRule(enum.Enum):
    """How the source and the destination settle who owns the image."""

    AUTO = "auto"  #: by a session, with a journal at each end, where the destination knows it
    SESSION = "session"  #: by a session, or not at all
    PLAIN = "plain"  #: as every NBD server understands it


class VerifyRule(enum.Enum):
    """What is proved to have arrived, where there is a session (`HandoverRule`)."""

    FULL = "full"  #: both copies are compared, by their digests, before they are handed over
    DIRTY = "dirty"  #: only what clients have changed since it was first sent
    OFF = "off"  #: nothing; an attempt that follows on a lost one sends everything again


@dataclass(frozen=True)
class MirrorRequest:
    """What ``mirror`` asks for.

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
    :ivar report: absolute path of the report that is written in the end, if there is to be one.
    :ivar handover: see `HandoverRule`.
    :ivar verify: see `VerifyRule`.
    :ivar allow_old_peers: whether a session may be had with a destination that knows of no keys.
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
    report: str | None = None
    handover: HandoverRule = HandoverRule.AUTO
    verify: VerifyRule = VerifyRule.FULL
    allow_old_peers: bool = False

    def lines(self) -> list[str]:
        """Return the command that asks for it, as `parse_mirror` reads it behind ``mirror``."""
        place = self.address.path or self.address.host
        lines = ["mirror", place, str(self.address.port), self.action.value]
        if self.bind is not None or self.max_bps:
            lines.append(self.bind or _ANY_HOST)
        if self.max_bps:
            lines.append(str(self.max_bps))
        settings = {
            "export": self.export,
            "remote-export": self.remote_export or None,
            "connections": None if self.connections == USUAL_CONNECTIONS else str(self.connections),
            "drop-cache": "yes" if self.drop_cache else None,
            "handover": None if self.handover is HandoverRule.AUTO else self.handover.value,
            "allow-old-peers": "yes" if self.allow_old_peers else None,
            "verify": None if self.verify is VerifyRule.FULL else self.verify.value,
            "tls": None if self.tls.rule == "off" else self.tls.rule,
            "tls-certificates": self.tls.certificates,
            "tls-hostname": self.tls.hostname,
            "report": self.report,
        }
        return [*lines, *settings_lines(settings), *ConvergeChange.to(self.converge).lines()]


@dataclass(frozen=True)
class ConvergeChange:
    """What is said about a migration's convergence; ``None`` leaves it as it is.

    The values are those of `ConvergeConfig`.
    """

    rule: ConvergeRule | None = None
    max_downtime: float | None = None
    max_park: float | None = None
    timeout: float | None = None

    @classmethod
    def to(cls, config: ConvergeConfig) -> ConvergeChange:
        """Return what has to be said so that the usual convergence becomes *config*."""
        return cls(
            **{
                name: value
                for name, value in vars(config).items()
                if value != getattr(USUAL_CONVERGENCE, name)
            }
        )

    def of(self, config: ConvergeConfig) -> ConvergeConfig:
        """Return what *config* becomes.

        :raises CommandError: if that makes no sense.
        """
        said = {name: value for name, value in vars(self).items() if value is not None}
        changed = replace(config, **said)
        if changed.max_downtime > changed.max_park:
            raise CommandError(
                f"max-downtime {format_seconds(changed.max_downtime)} is more than "
                f"max-park {format_seconds(changed.max_park)}"
            )
        if self.timeout is not None and changed.rule != "force":
            raise CommandError(
                f"converge-timeout means nothing with converge={changed.rule}: it is for force"
            )
        return changed

    def lines(self) -> list[str]:
        """Return the settings that say this, as `parse_converge` reads them."""
        return settings_lines(
            {
                "converge": self.rule,
                "max-downtime": _said_seconds(self.max_downtime),
                "max-park": _said_seconds(self.max_park),
                "converge-timeout": _said_seconds(self.timeout),
            }
        )


def format_seconds(seconds: float) -> str:
    """Return *seconds* as `parse_seconds` reads them, to the nanosecond."""
    if 0 < seconds < 1:
        return f"{_decimal(seconds * 1000, 6)}ms"
    return f"{_decimal(seconds, 9)}s"


def _decimal(number: float, digits: int) -> str:
    return f"{number:.{digits}f}".rstrip("0").rstrip(".")


def _said_seconds(seconds: float | None) -> str | None:
    return None if seconds is None else format_seconds(seconds)


def settings_lines(settings: Mapping[str, str | None]) -> list[str]:
    """Return the lines that say *settings*; one that is ``None`` isn't said."""
    return [f"{name}={value}" for name, value in settings.items() if value is not None]

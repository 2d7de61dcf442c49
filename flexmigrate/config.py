"""What a command was told, checked and frozen: all that the rooms below know of a command line.

A library that embeds flexmigrate makes the same values itself. Nothing is checked here: what makes
them sound is `flexmigrate.commands`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from flexmigrate.log.settings import LogSettings
from flexmigrate.net.address import Address
from flexmigrate.net.polling import DEFAULT_POLL_SECONDS

CoverageRule = Literal["full", "any"]
TLSRule = Literal["off", "on", "require"]
ConvergeRule = Literal["throttle", "wait", "force"]

MAX_CLIENTS = 10000
"""Connections that a server has at the same time, unless it's told otherwise."""

# Where to listen: an address, or the description of any Twisted server endpoint.
Place = Address | str


@dataclass(frozen=True)
class ExportConfig:
    """An image and its name.

    :ivar name: what clients ask for; empty for the default export.
    :ivar file: path of the image, a file or a block device.
    :ivar device: what is served instead, for programs that embed this: it provides IBlockDevice,
        and *file* is what it is called in logs.
    """

    name: str
    file: str
    device: object = None


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
_LOG = LogSettings()


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


@dataclass(frozen=True)
class ServeConfig:
    """What ``serve`` was told.

    :ivar places: where clients connect to; port 0 takes a free one.
    :ivar exports: what is offered: at least one, all names different.
    :ivar default_export: name of the export that clients get who name none.
    :ivar sock: path of the operator's socket, if there is to be one.
    :ivar acl: entries of the access list, all of them sound.
    :ivar default_deny: an empty access list lets nobody in, instead of everybody.
    :ivar killswitch: a request that takes longer than 120 s costs the client its connection.
    :ivar oldstyle: the handshake is the oldstyle one, which has no export names.
    :ivar read_only: the images are opened for reading, and offered so.
    :ivar allow_old_peers: a handover may be settled with a source that knows of no keys.
    :ivar listable: clients may ask for the names of the exports.
    :ivar max_clients: connections at the same time.
    :ivar max_clients_per_host: how many of them one host may have; 0 leaves a quarter to others.
    :ivar poll_seconds: how long to look for the next request before sleeping; 0 for never.
    :ivar tls: see `TLSConfig`.
    :ivar metrics: where metrics are offered, over HTTP; ``None`` for nowhere.
    :ivar web: where a page to look on is offered, likewise.
    :ivar log: see `LogSettings`.
    :ivar reread: where a configuration file is a part of this: reads it again, and returns what it
        comes to now, or raises UsageError.
    """

    places: tuple[Place, ...]
    exports: tuple[ExportConfig, ...]
    default_export: str = ""
    sock: str | None = None
    acl: tuple[str, ...] = ()
    default_deny: bool = False
    killswitch: bool = False
    oldstyle: bool = False
    read_only: bool = False
    allow_old_peers: bool = False
    listable: bool = True
    max_clients: int = MAX_CLIENTS
    max_clients_per_host: int = 0
    poll_seconds: float = DEFAULT_POLL_SECONDS
    tls: TLSConfig = NO_TLS
    metrics: Place | None = None
    web: Place | None = None
    log: LogSettings = _LOG
    reread: Callable[[], ServeConfig | ListenConfig] | None = field(
        default=None, compare=False, repr=False
    )

    @property
    def subject(self) -> str:
        """The path of the image, or the first of them: what a log can be told apart by."""
        return self.exports[0].file


@dataclass(frozen=True)
class ListenConfig:
    """What ``listen`` was told; what `ServeConfig` has, too, means the same.

    :ivar places: where the source connects to.
    :ivar file: path of the image that is to be received.
    :ivar export: what the source, and later clients, can ask for; who names none gets it, too.
    :ivar rebind: where to serve after the migration; ``None`` to exit instead.
    :ivar coverage: what a sender must have written before it can give the image away: every byte
        ("full"), or something ("any").
    :ivar read_only: the image is served for reading only once it is here; so it is, too, if its
        source says that it was.
    :ivar allow_old_peers: a source may have a session that knows of no keys (``wire.keys``).
    """

    places: tuple[Place, ...]
    file: str
    export: str = ""
    sock: str | None = None
    acl: tuple[str, ...] = ()
    default_deny: bool = False
    oldstyle: bool = False
    rebind: Address | None = None
    coverage: CoverageRule = "full"
    read_only: bool = False
    allow_old_peers: bool = False
    tls: TLSConfig = NO_TLS
    metrics: Place | None = None
    web: Place | None = None
    log: LogSettings = _LOG
    reread: Callable[[], ServeConfig | ListenConfig] | None = field(
        default=None, compare=False, repr=False
    )

    @property
    def subject(self) -> str:
        """The path of the image."""
        return self.file


@dataclass(frozen=True)
class CallConfig:
    """What all commands come down to that only talk to a running server.

    :ivar sock: path of the server's operator's socket.
    :ivar lines: the command, as the socket's grammar has it.
    """

    sock: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class StatusConfig:
    """What ``status`` was told.

    :ivar sock: path of the server's operator's socket.
    :ivar lines: the command, as the socket's grammar has it.
    :ivar json: show it as a JSON object.
    :ivar watch: show it again whenever it has changed.
    """

    sock: str
    lines: tuple[str, ...]
    json: bool = False
    watch: bool = False


@dataclass(frozen=True)
class WaitConfig:
    """What ``wait`` and ``mirror --wait`` were told.

    :ivar sock: path of the server's operator's socket.
    :ivar commands: what is asked for first, as the socket's grammar has it; perhaps nothing.
    :ivar export: whose migration is waited for; ``None`` where there is only one.
    """

    sock: str
    commands: tuple[tuple[str, ...], ...] = ()
    export: str | None = None


@dataclass(frozen=True)
class TransferConfig:
    """What ``read`` and ``write`` were told.

    :ivar server: its address, or an NBD URI.
    :ivar offset: where in the export to begin, in bytes.
    :ivar size: how much to move, in bytes, at least 1.
    :ivar bind: local IP address to connect from; ``None`` leaves it to the kernel.
    :ivar tls: see `TLSConfig`.
    :ivar log: see `LogSettings`.
    """

    server: Address | str
    offset: int
    size: int
    bind: str | None = None
    tls: TLSConfig = NO_TLS
    log: LogSettings = _LOG
    subject = ""


class ReadConfig(TransferConfig):
    """What ``read`` was told: the bytes go to standard output."""


class WriteConfig(TransferConfig):
    """What ``write`` was told: the bytes come from standard input."""


@dataclass(frozen=True)
class WhoseConfig:
    """What ``whose`` was told.

    :ivar file: path of the image that is asked about.
    :ivar peer_journal: path of a copy of the other side's journal.
    :ivar peer: address of the other side's server.
    :ivar remote_export: name of the export there.
    :ivar json: the answer is to be an object in JSON.
    :ivar tls: see `TLSConfig`.
    """

    file: str
    peer_journal: str | None = None
    peer: Address | None = None
    remote_export: str = ""
    json: bool = False
    tls: TLSConfig = NO_TLS
    verbosity: int = 0


@dataclass(frozen=True)
class SettleConfig:
    """What ``take`` and ``release`` were told.

    :ivar file: path of the image.
    :ivar take: whether it is to be the image from now on; else, not to be it any more.
    :ivar sure: don't ask.
    """

    file: str
    take: bool
    sure: bool = False
    verbosity: int = 0


@dataclass(frozen=True)
class DoctorConfig:
    """What ``doctor`` was told.

    :ivar server: what a server would be told, that is to be looked at; None: only this host.
    :ivar json: the findings are told as an object in JSON.
    """

    server: ServeConfig | ListenConfig | None = None
    json: bool = False


@dataclass(frozen=True)
class CompletionConfig:
    """What ``completion`` was told.

    :ivar shell: whose script is wanted: "bash", "zsh" or "fish".
    """

    shell: str


# What a command line comes down to.
Config = (
    ServeConfig
    | ListenConfig
    | CallConfig
    | StatusConfig
    | WaitConfig
    | ReadConfig
    | WriteConfig
    | WhoseConfig
    | SettleConfig
    | DoctorConfig
    | CompletionConfig
)

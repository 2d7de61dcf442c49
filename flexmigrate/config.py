"""The configuration of a command, checked and frozen: the lower packages know no command line.

The command line makes these values, and so does a program that embeds flexmigrate. They check
themselves when they are made, each by the row of its setting (`flexmigrate.settings`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import ClassVar

from flexmigrate.errors import UsageError, check_type
from flexmigrate.log.settings import LogSettings
from flexmigrate.migration.request import NO_TLS, TLSConfig, parse_name, parse_path
from flexmigrate.net.acl import AccessList
from flexmigrate.net.address import Address
from flexmigrate.net.polling import DEFAULT_POLL_SECONDS
from flexmigrate.server.limits import MAX_CLIENTS
from flexmigrate.settings import CoverageRule, Place, parse_endpoint, server_settings

__all__ = ["CoverageRule", "ExportConfig", "ListenConfig", "Place", "ServeConfig", "ServerConfig"]


def _check_text(field: str, text: str, parse: Callable[[str], object]) -> None:
    """See that *parse* takes *text*."""
    try:
        parse(text)
    except ValueError as error:
        raise UsageError(f"{field}={text!r}: {error}") from None


def _check_places(places: tuple[Place, ...]) -> None:
    """See that *places* are addresses, or look like descriptions of endpoints."""
    check_type("places", places, tuple)
    if not places:
        raise UsageError("places=(): there has to be at least one")
    for each in places:
        check_type("places", each, Address, str)
        if isinstance(each, str):
            _check_text("places", each, parse_endpoint)


def _check_tls(tls: TLSConfig, *, oldstyle: bool) -> None:
    """Refuse what would not hold: certificates or clients that nobody would look at."""
    if tls.verify_peer and tls.rule != "require":
        raise UsageError(
            f"verify_peer with TLS {tls.rule!r}: clients without TLS show no certificate and"
            " would be let in all the same; it needs 'require'"
        )
    if tls.rule == "off":
        if tls.certificates is not None:
            raise UsageError("certificates with TLS 'off': nothing would be encrypted")
    elif oldstyle:
        raise UsageError(f"TLS {tls.rule!r}: the oldstyle handshake has no TLS")
    elif tls.certificates is None:
        raise UsageError(f"TLS {tls.rule!r} needs certificates")


@dataclass(frozen=True)
class ExportConfig:
    """An image and its name.

    :ivar name: the name that clients ask for; empty for the default export.
    :ivar file: path of the image, a file or a block device.
    :ivar device: a provider of IBlockDevice that an embedding program has served instead;
        *file* is then its name in logs.
    :raises UsageError: the name or the path can't be one.
    """

    name: str
    file: str
    device: object = None

    def __post_init__(self) -> None:
        """Refuse a name that the protocol doesn't allow, and what is no path."""
        check_type("name", self.name, str)
        check_type("file", self.file, str)
        _check_text("name", self.name, parse_name)
        if self.device is None:
            _check_text("file", self.file, parse_path)


_LOG = LogSettings()


@dataclass(frozen=True)
class ServerConfig:
    """The settings of every server; `ServeConfig` and `ListenConfig` add their own.

    :ivar places: the places to listen on; port 0 takes a free one.
    :ivar sock: path of the operator's socket, if there is to be one.
    :ivar acl: the entries of the access list.
    :ivar default_deny: whether an empty access list admits nobody instead of everybody.
    :ivar killswitch: whether a connection is closed if a request takes longer than 120 s.
    :ivar oldstyle: whether the handshake is the oldstyle one, which has no export names.
    :ivar read_only: whether the images are offered for reading only.
    :ivar allow_old_peers: whether to accept handovers of sources without keys
        (``wire.keys``).
    :ivar listable: whether clients may list the exports.
    :ivar max_clients: the maximum of connections at the same time.
    :ivar max_clients_per_host: the maximum of one host; 0 for three quarters of *max_clients*.
    :ivar poll_seconds: the time to poll for the next request before sleeping; 0: no polling.
    :ivar tls: see `TLSConfig`.
    :ivar metrics: the place to serve metrics at, over HTTP; ``None`` for none.
    :ivar web: the place to serve the page at; ``None`` for none.
    :ivar log: see `LogSettings`.
    :ivar reread: if there is a configuration file, reads it again, and returns the new
        configuration, or raises UsageError.
    :raises UsageError: (a ValueError) a value is of another type or out of its range, or doesn't
        fit another; the text names the field, the value and what is allowed.
    """

    places: tuple[Place, ...]
    _: KW_ONLY
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

    command: ClassVar[str]

    def __post_init__(self) -> None:
        """Check each value by its row in `SERVER_SETTINGS`, and those that have none."""
        defaults = {each.name: each.default for each in fields(self)}
        for setting in server_settings(self.command):
            value, default = getattr(self, setting.field), defaults[setting.field]
            # What is left out need not be sayable: None, or 0 for a limit that follows another.
            if type(value) is not type(default) or value != default:
                setting.check(value)
        _check_places(self.places)
        check_type("acl", self.acl, tuple, list)
        for entry in self.acl:
            check_type("acl", entry, str)
            _check_text("acl", entry, lambda text: AccessList([text]))
        check_type("log", self.log, LogSettings)
        if self.reread is not None and not callable(self.reread):
            raise UsageError(f"reread={self.reread!r}: it must be a function, or None")
        check_type("tls", self.tls, TLSConfig)
        _check_tls(self.tls, oldstyle=self.oldstyle)


@dataclass(frozen=True)
class ServeConfig(ServerConfig):
    """The configuration of ``serve``.

    :ivar places: the places that clients connect to.
    :ivar exports: the exports: at least one, with different names.
    :ivar default_export: the name of the export of clients that name none.
    """

    exports: tuple[ExportConfig, ...]
    default_export: str = field(default="", kw_only=True)

    command: ClassVar[str] = "serve"

    def __post_init__(self) -> None:
        """Refuse exports that could not be told apart, or not be reached."""
        super().__post_init__()
        check_type("exports", self.exports, tuple)
        for each in self.exports:
            check_type("exports", each, ExportConfig)
        names = [each.name for each in self.exports]
        if not names:
            raise UsageError("exports=(): there has to be at least one")
        for name in names:
            if names.count(name) > 1:
                raise UsageError(f"exports: the name {name!r} is given twice")
        if self.default_export and self.default_export not in names:
            raise UsageError(f"default_export={self.default_export!r}: there is no such export")

    @property
    def subject(self) -> str:
        """The path of the first image, which names the server in its log."""
        return self.exports[0].file

    @property
    def will_serve(self) -> bool:
        """Whether it serves clients."""
        return True


@dataclass(frozen=True)
class ListenConfig(ServerConfig):
    """The configuration of ``listen``.

    Settings of `ServerConfig` about clients apply once the image is here and is served, just
    as with ``serve``; the limits for clients don't bind the source.

    :ivar places: the places that the source connects to.
    :ivar file: path of the image that is to be received.
    :ivar export: the name that the source, and later clients, ask for; also for those without one.
    :ivar rebind: the address to serve at after the migration; ``None`` to exit instead.
    :ivar coverage: the part that a sender must have written before the handover: every byte
        ("full"), or any ("any").
    :ivar read_only: the image is served for reading only once it is here; so it is, too, if its
        source says that it was.
    """

    file: str
    _: KW_ONLY
    export: str = ""
    rebind: Address | None = None
    coverage: CoverageRule = "full"

    command: ClassVar[str] = "listen"

    def __post_init__(self) -> None:
        """Refuse what is no path, and a place to serve at that clients could not find."""
        super().__post_init__()
        check_type("file", self.file, str)
        _check_text("file", self.file, parse_path)
        check_type("rebind", self.rebind, Address, type(None))
        if self.rebind is not None and not self.rebind.is_unix and not self.rebind.port:
            raise UsageError(f"rebind={self.rebind}: clients could not find a port of the kernel's")

    @property
    def default_export(self) -> str:
        """The name of the export of clients that name none."""
        return self.export

    @property
    def subject(self) -> str:
        """The path of the image."""
        return self.file

    @property
    def will_serve(self) -> bool:
        """Whether it serves clients."""
        return self.rebind is not None

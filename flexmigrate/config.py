"""The configuration of a command, checked and frozen: the lower packages know no command line.

A library that embeds flexmigrate makes the same values itself. Nothing is checked here: what makes
them sound is `flexmigrate.cli.commands`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field

from flexmigrate.log.settings import LogSettings
from flexmigrate.migration.request import NO_TLS, TLSConfig
from flexmigrate.net.address import Address
from flexmigrate.net.polling import DEFAULT_POLL_SECONDS
from flexmigrate.server.limits import MAX_CLIENTS
from flexmigrate.settings import CoverageRule, Place

__all__ = ["CoverageRule", "ExportConfig", "ListenConfig", "Place", "ServeConfig", "ServerConfig"]


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


_LOG = LogSettings()


@dataclass(frozen=True)
class ServerConfig:
    """The settings of every server; `ServeConfig` and `ListenConfig` add their own.

    :ivar places: where to listen; port 0 takes a free one.
    :ivar sock: path of the operator's socket, if there is to be one.
    :ivar acl: entries of the access list, all of them sound.
    :ivar default_deny: an empty access list lets nobody in, instead of everybody.
    :ivar killswitch: a request that takes longer than 120 s costs the client its connection.
    :ivar oldstyle: the handshake is the oldstyle one, which has no export names.
    :ivar read_only: the images are offered for reading only.
    :ivar allow_old_peers: a handover may be settled with a source that knows of no keys
        (``wire.keys``).
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


@dataclass(frozen=True)
class ServeConfig(ServerConfig):
    """The configuration of ``serve``.

    :ivar places: where clients connect to.
    :ivar exports: what is offered: at least one, all names different.
    :ivar default_export: name of the export that clients get who name none.
    """

    exports: tuple[ExportConfig, ...]
    default_export: str = field(default="", kw_only=True)

    @property
    def subject(self) -> str:
        """The path of the image, or the first of them: what a log can be told apart by."""
        return self.exports[0].file

    @property
    def will_serve(self) -> bool:
        """Whether clients may come to be served."""
        return True


@dataclass(frozen=True)
class ListenConfig(ServerConfig):
    """The configuration of ``listen``.

    What it has from `ServerConfig` about clients counts once the image is here and is served, just
    as with ``serve``; the limits for clients don't bind the source.

    :ivar places: where the source connects to.
    :ivar file: path of the image that is to be received.
    :ivar export: what the source, and later clients, can ask for; who names none gets it, too.
    :ivar rebind: where to serve after the migration; ``None`` to exit instead.
    :ivar coverage: what a sender must have written before it can give the image away: every byte
        ("full"), or something ("any").
    :ivar read_only: the image is served for reading only once it is here; so it is, too, if its
        source says that it was.
    """

    file: str
    _: KW_ONLY
    export: str = ""
    rebind: Address | None = None
    coverage: CoverageRule = "full"

    @property
    def default_export(self) -> str:
        """Name of the export that clients get who name none."""
        return self.export

    @property
    def subject(self) -> str:
        """The path of the image."""
        return self.file

    @property
    def will_serve(self) -> bool:
        """Whether clients may come to be served."""
        return self.rebind is not None

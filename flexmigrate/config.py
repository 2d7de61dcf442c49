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

    :ivar name: the name that clients ask for; empty for the default export.
    :ivar file: path of the image, a file or a block device.
    :ivar device: a provider of IBlockDevice that an embedding program has served instead;
        *file* is then its name in logs.
    """

    name: str
    file: str
    device: object = None


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

    :ivar places: the places that clients connect to.
    :ivar exports: the exports: at least one, with different names.
    :ivar default_export: the name of the export of clients that name none.
    """

    exports: tuple[ExportConfig, ...]
    default_export: str = field(default="", kw_only=True)

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

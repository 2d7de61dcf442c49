"""The factories of a server's connections; they are made only here.

All factories of a server have the same access list and the same certificates. The server's settings
apply to clients whether the image was here from the start or was received.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from flexmigrate.config import ListenConfig, ServeConfig
from flexmigrate.log.settings import LogSettings
from flexmigrate.net.acl import AccessList
from flexmigrate.net.polling import Poller
from flexmigrate.net.tls import ServerCertificates
from flexmigrate.server.export import Export, ExportDirectory
from flexmigrate.server.factory import NBDServerFactory, Session
from flexmigrate.server.limits import KILLSWITCH_SECONDS, Limits
from flexmigrate.server.measuring import Meter
from flexmigrate.server.request_log import LoggedTransmission
from flexmigrate.server.transmission import Transmission
from flexmigrate.service.descriptors import fitting
from flexmigrate.wire.agreement import TLSMode
from flexmigrate.wire.handshake import HandshakeStyle


class Factories:
    """The factories of one server, and their common access list.

    :ivar certificates: the server's certificates; None without TLS.
    :ivar meter: the counters of all their requests, if there are metrics.
    :raises UsageError: the certificates can't be used.
    """

    def __init__(self, reactor: Any, config: ServeConfig | ListenConfig) -> None:
        self._reactor = reactor
        self._config = config
        self._acl = AccessList(config.acl, config.default_deny)
        self._made: list[NBDServerFactory] = []
        self._clients = fitting(config.max_clients) if config.will_serve else config.max_clients
        self.certificates = None
        if config.tls.certificates is not None:
            self.certificates = ServerCertificates(
                config.tls.certificates, verify_peer=config.tls.verify_peer
            )
        self.meter = Meter()

    def for_clients(self, exports: Iterable[Export], session: Session) -> NBDServerFactory:
        """Return a factory that serves *exports* to clients, with the server's settings."""
        config = self._config
        limits = Limits(
            request_seconds=KILLSWITCH_SECONDS if config.killswitch else None,
            clients=self._clients,
            host_clients=config.max_clients_per_host,
        )
        return self._for_exports(exports, session, limits, Poller(config.poll_seconds))

    def for_source(
        self, export: Export, session: Session, negotiation_seconds: float
    ) -> NBDServerFactory:
        """Return a factory that receives *export*. A source is bound by the timeouts of a
        migration, not by the limits for clients.
        """
        limits = Limits(negotiation_seconds=negotiation_seconds)
        return self._for_exports([export], session, limits, None)

    def _for_exports(
        self, exports: Iterable[Export], session: Session, limits: Limits, poller: Poller | None
    ) -> NBDServerFactory:
        config = self._config
        return self._kept(
            NBDServerFactory(
                self._reactor,
                ExportDirectory(exports, listable=config.listable),
                self._acl,
                session=session,
                style=HandshakeStyle.OLDSTYLE if config.oldstyle else HandshakeStyle.FIXED_NEWSTYLE,
                default_export=config.default_export,
                tls=TLSMode(config.tls.rule),
                tls_context=self.certificates,
                poller=poller,
                transmission=_transmission(config.log, self.meter if config.metrics else None),
                limits=limits,
            )
        )

    def for_confirming(self, directory: ExportDirectory, session: Session) -> NBDServerFactory:
        """Return a factory that only confirms handovers to sources; TLS is optional."""
        return self._kept(
            NBDServerFactory(
                self._reactor,
                directory,
                self._acl,
                session=session,
                tls=TLSMode.OFF if self.certificates is None else TLSMode.ON,
                tls_context=self.certificates,
            )
        )

    def _kept(self, factory: NBDServerFactory) -> NBDServerFactory:
        self._made.append(factory)
        return factory

    def set_acl(self, acl: AccessList) -> None:
        """Change the access list; clients that it doesn't admit are disconnected at once."""
        self._acl = acl
        for each in self._made:
            each.set_acl(acl)


def _transmission(log: LogSettings, meter: Meter | None) -> Callable[..., Transmission]:
    """Return the class that carries out a connection's requests, and logs or measures them."""
    if meter is not None:
        return meter.transmission(logged=log.requests)
    return LoggedTransmission if log.requests else Transmission

"""``serve``: an image is offered to clients, until it was migrated away or the process is told to
end.
"""

from __future__ import annotations

from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger

from flexmigrate.config import ServeConfig
from flexmigrate.control.grammar import MirrorRequest
from flexmigrate.control.server import listen_control
from flexmigrate.errors import FlexmigrateError, ImageError
from flexmigrate.migration.handover import MARKER_SUFFIX, incomplete
from flexmigrate.net.acl import AccessList
from flexmigrate.server.export import ExportDirectory
from flexmigrate.server.factory import KILLSWITCH_SECONDS, Limits, NBDServerFactory
from flexmigrate.service.host import ImageHost
from flexmigrate.service.lifetime import Lifetime
from flexmigrate.service.listening import Listening
from flexmigrate.service.reporting import serving_status
from flexmigrate.service.serving import Serving
from flexmigrate.status import Status
from flexmigrate.wire.handshake import HandshakeStyle

log = Logger()


def handshake_style(oldstyle: bool) -> HandshakeStyle:
    """Return the handshake that an ``--oldstyle`` option, or its absence, asks for."""
    return HandshakeStyle.OLDSTYLE if oldstyle else HandshakeStyle.FIXED_NEWSTYLE


class ServeService(Service):
    """The server behind ``serve``, and the operator that its socket commands.

    :raises ImageError: the image can't be opened, is in use, or is an unfinished copy.
    """

    def __init__(self, reactor: Any, config: ServeConfig, lifetime: Lifetime) -> None:
        if incomplete(config.file):
            raise ImageError(
                f"{config.file} is incomplete: {config.file}{MARKER_SUFFIX} says that a migration "
                "into it never finished"
            )
        self._reactor = reactor
        self._config = config
        self._lifetime = lifetime
        self._host = ImageHost(reactor, config.file, name=config.export, read_only=config.read_only)
        factory = NBDServerFactory(
            reactor,
            ExportDirectory([self._host.export]),
            AccessList(config.acl, config.default_deny),
            style=handshake_style(config.oldstyle),
            default_export=config.export,
            limits=Limits(request_seconds=KILLSWITCH_SECONDS if config.killswitch else None),
        )
        self.serving = Serving(
            reactor,
            self._host,
            factory,
            Listening(reactor, config.address, factory),
            lifetime.end,
        )
        self._control: IListeningPort | None = None

    def startService(self) -> None:
        """Open the operator's socket and the serving address; status 1 where that fails."""
        super().startService()  # type: ignore[no-untyped-call]  # Twisted's
        self._host.start()
        self._lifetime.heed_signals(self.serving.terminate)
        try:
            if self._config.sock is not None:
                self._control = listen_control(self._reactor, self._config.sock, self)
        except FlexmigrateError as error:
            self._lifetime.end(1, str(error))
            return
        opened = self.serving.listening.open()
        opened.addErrback(
            lambda failure: self._lifetime.end(
                1, f"can't listen on {self._config.address}: {failure.getErrorMessage()}"
            )
        )

    def stopService(self) -> Deferred[None]:
        """Refuse, drain, close the clients, flush, let go of the image: in this order."""
        super().stopService()  # type: ignore[no-untyped-call]  # Twisted's
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        await close_port(self._control)
        await self.serving.close()
        await self._host.close()

    # What the operator's socket commands: control.server.Operator

    def status(self) -> Status:
        """Return what is told about this server now."""
        return serving_status(self.serving, self._host.export.size, self._reactor.seconds())

    def set_acl(self, entries: list[str]) -> None:
        """Replace the access list; connected clients that it doesn't allow are closed."""
        self.serving.factory.set_acl(AccessList(entries, self._config.default_deny))

    def mirror(self, request: MirrorRequest) -> Deferred[str]:
        """Start a migration."""
        return self.serving.mirror(request)

    def set_max_bps(self, n: int) -> str:
        """Limit the migration that runs."""
        return self.serving.set_max_bps(n)

    def break_mirror(self) -> Deferred[str]:
        """End the migration that runs."""
        return maybeDeferred(self.serving.break_mirror)


def close_port(port: IListeningPort | None) -> Deferred[None]:
    """Close *port*, if there is one, and fire when that is done."""
    if port is None:
        return succeed(None)
    return maybeDeferred(port.stopListening).addCallback(lambda _: None)

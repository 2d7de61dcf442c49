"""``serve``: images are offered to clients, until they were migrated away or the process is told to
end.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.logger import Logger

from flexmigrate.config import ExportConfig, ListenConfig, Place, ServeConfig
from flexmigrate.control.server import ControlPort, listen_control
from flexmigrate.errors import FlexmigrateError, ImageError, UsageError
from flexmigrate.image.file import Image, Opener
from flexmigrate.log.settings import LogSettings
from flexmigrate.migration.ownership.policy import ServingSession
from flexmigrate.migration.ownership.status import MayServe
from flexmigrate.migration.request import ConvergeChange, MirrorRequest, TLSConfig
from flexmigrate.net.acl import AccessList
from flexmigrate.net.polling import Poller
from flexmigrate.net.tls import ServerCertificates
from flexmigrate.server.export import ExportDirectory
from flexmigrate.server.factory import NBDServerFactory
from flexmigrate.server.limits import KILLSWITCH_SECONDS, Limits
from flexmigrate.server.measuring import Meter
from flexmigrate.server.request_log import LoggedTransmission
from flexmigrate.server.transmission import Transmission
from flexmigrate.service.closing import answer_operators, close_control, take_all
from flexmigrate.service.confirming import Confirming
from flexmigrate.service.descriptors import fitting
from flexmigrate.service.host import DeviceHost, Host, ImageHost, new_pool
from flexmigrate.service.lifetime import Lifetime
from flexmigrate.service.migrating import MigratingExport
from flexmigrate.service.port import ListeningPort
from flexmigrate.service.publishing import (
    Publishing,
    clients_by_export,
    export_view,
    sending,
    server_view,
)
from flexmigrate.service.reloading import Reloading
from flexmigrate.service.reporting import serving_status
from flexmigrate.service.serving import Serving
from flexmigrate.service.supervisor import describe
from flexmigrate.telemetry.history import Summary
from flexmigrate.telemetry.status import Status
from flexmigrate.web.view import ServerView
from flexmigrate.wire.agreement import TLSMode
from flexmigrate.wire.constants import SECTOR
from flexmigrate.wire.handshake import HandshakeStyle
from flexmigrate.wire.packing import ID_LENGTH

log = Logger()


def handshake_style(oldstyle: bool) -> HandshakeStyle:
    """Return the handshake that an ``--oldstyle`` option, or its absence, asks for."""
    return HandshakeStyle.OLDSTYLE if oldstyle else HandshakeStyle.FIXED_NEWSTYLE


def beyond_oldstyle(host: Host) -> str | None:
    """Return which bytes an oldstyle client doesn't learn of, in words; None if there are none."""
    left = host.size % SECTOR
    if not left:
        return None
    return (
        f"{host.image.path} has {host.size} bytes, and --oldstyle tells of whole sectors of "
        f"{SECTOR} bytes: its last {left} bytes"
    )


def transmission_kind(log: LogSettings, meter: Meter | None) -> Callable[..., Transmission]:
    """Return what makes of a connection what carries out its requests: another one if each of
    them is to be logged, or measured by *meter*.
    """
    if meter is not None:
        return meter.transmission(logged=log.requests)
    return LoggedTransmission if log.requests else Transmission


def tls_context(config: TLSConfig, *, oldstyle: bool = False) -> ServerCertificates | None:
    """Return what a server's ``startTLS`` takes, or None without TLS.

    :param oldstyle: the handshake is the oldstyle one.
    :raises UsageError: the certificates can't be used, or something that was asked for would not
        hold.
    """
    if config.verify_peer and config.rule != "require":
        raise UsageError(
            f"verify_peer with TLS {config.rule!r}: clients without TLS show no certificate and"
            " would be let in all the same; it needs 'require'"
        )
    if config.rule == "off":
        if config.certificates is not None:
            raise UsageError("certificates with TLS 'off': nothing would be encrypted")
        return None
    if oldstyle:
        raise UsageError("the oldstyle handshake has no TLS")
    if config.certificates is None:
        raise UsageError(f"TLS {config.rule!r} needs certificates")
    return ServerCertificates(config.certificates, verify_peer=config.verify_peer)


def tell_what_has_no_effect(config: ServeConfig | ListenConfig) -> None:
    """Log that an access list lets everybody in, where all addresses are UNIX sockets."""
    if (config.acl or config.default_deny) and all(map(_is_unix, config.places)):
        log.warn(
            "the access list has no effect here: who may connect to a UNIX socket is decided by"
            " its file's mode and folder"
        )


def _is_unix(place: Place) -> bool:
    return place.startswith("unix:") if isinstance(place, str) else place.is_unix


class Committed(FlexmigrateError):
    """The image isn't served: its handover was committed, and is to be settled.

    :ivar host: the image, open.
    """

    def __init__(self, host: ImageHost) -> None:
        super().__init__(f"{host.image.path} was handed over")
        self.host = host


class ServeService(Service):
    """The server behind ``serve``, and the operator that its socket commands.

    :raises Committed: the one image that is to be served was given away, and that isn't settled.
    :raises ImageError: an image can't be opened, is in use, or is an unfinished copy.
    :raises UsageError: the certificates can't be used.
    """

    def __init__(
        self,
        reactor: Any,
        config: ServeConfig,
        lifetime: Lifetime,
        pool: Any = None,
        open_image: Opener = Image.open,
    ) -> None:
        self._reactor = reactor
        self._config = config
        self._lifetime = lifetime
        self._pool = pool or new_pool()
        self._open_image = open_image
        self._meter = Meter()
        self._control: ControlPort | None = None
        self._publishing = Publishing(reactor, config.metrics, config.web, self._look)
        context = tls_context(config.tls, oldstyle=config.oldstyle)
        self._reloading = Reloading(config, context, self._use_acl)
        with ExitStack() as undo:
            self._hosts: list[Host] = []
            for each in config.exports:
                host = self._open(each)
                self._hosts.append(host)
                if config.oldstyle and (text := beyond_oldstyle(host)) is not None:
                    log.warn("{text} are out of reach", text=text)
                if each.device is None:  # that is still the caller's
                    undo.callback(host.image.close)
            self._by_name = {host.export.name: host for host in self._hosts}
            self._instance = secrets.token_bytes(ID_LENGTH)
            acl = AccessList(config.acl, config.default_deny)
            self._confirming = Confirming(reactor, self._hosts, acl, context)
            factory = self._new_factory(context, acl)
            self.serving = Serving(
                reactor,
                self._hosts,
                factory,
                config.places,
                lifetime.end,
                instance=self._instance,
            )
            undo.pop_all()  # from here on stopService closes them

    def _new_factory(self, context: Any, acl: AccessList) -> NBDServerFactory:
        config = self._config
        return NBDServerFactory(
            self._reactor,
            ExportDirectory((host.export for host in self._hosts), listable=config.listable),
            acl,
            session=ServingSession(self._held, self._confirming.look, self._instance),
            style=handshake_style(config.oldstyle),
            default_export=config.default_export,
            tls=TLSMode(config.tls.rule),
            tls_context=context,
            poller=Poller(config.poll_seconds),
            transmission=transmission_kind(config.log, self._meter if config.metrics else None),
            limits=Limits(
                request_seconds=KILLSWITCH_SECONDS if config.killswitch else None,
                clients=fitting(config.max_clients),
                host_clients=config.max_clients_per_host,
            ),
        )

    def _open(self, export: ExportConfig) -> Host:
        if export.device is not None:
            return DeviceHost(
                self._reactor,
                self._pool,
                export.device,
                export.file,
                name=export.name,
                read_only=self._config.read_only,
            )
        host = ImageHost(
            self._reactor,
            self._pool,
            export.file,
            name=export.name,
            read_only=self._config.read_only,
            open_image=self._open_image,
        )
        host.ownership.allows_old_peers = self._config.allow_old_peers
        try:
            # Asked once it is locked: before, a migration into it could have been about to end.
            may, reason = host.ownership.standing.to_serve()
            if may is MayServe.SETTLE and len(self._config.exports) > 1:
                reason += ", which has not confirmed it: 'serve' it alone, to have that settled"
            if may is MayServe.SETTLE and len(self._config.exports) == 1:
                raise Committed(host)
            if may is not MayServe.SERVE:
                raise ImageError(reason)
            host.trust_cache()
            if not self._config.read_only:
                host.ownership.tidy()
                self._warn_of_writers(host)
            host.ownership.overlook()
        except ImageError:
            host.image.close()
            raise
        return host

    @staticmethod
    def _warn_of_writers(host: ImageHost) -> None:
        """The operator decides; but perhaps it wasn't meant."""
        record = host.ownership.record
        if record is not None and record.read_only:
            log.warn(
                "{path} was read-only where it came from ({place}), and clients may write to it "
                "here: say --read-only if they are not to",
                path=host.image.path,
                place=record.other_side,
            )

    def _held(self, name: str) -> Host | None:
        """Return what the export *name* has, as negotiation names it."""
        return self._by_name.get(name or self._config.default_export)

    def startService(self) -> None:
        """Open the operator's socket and the serving addresses; status 1 where that fails."""
        super().startService()  # type: ignore[no-untyped-call]  # Twisted's
        tell_what_has_no_effect(self._config)
        self._pool.start()
        self._lifetime.heed_signals(self.terminate, self._reloading.when_told)
        try:
            if self._config.sock is not None:
                self._control = listen_control(self._reactor, self._config.sock, self)
        except FlexmigrateError as error:
            self._lifetime.end(1, str(error))
            return
        opened = gatherResults([self._publishing.open(), self.serving.open()], consumeErrors=True)
        opened.addCallbacks(
            lambda _: self._opened(),
            lambda failure: self._lifetime.end(1, f"can't listen: {root_cause(failure)}"),
        )

    def _opened(self) -> None:
        self._lifetime.ready(self._describe)
        self._confirming.open(each.address for each in self.ports)

    @property
    def ports(self) -> list[ListeningPort]:
        """The addresses."""
        return self.serving.ports

    def find(self, export: str | None) -> MigratingExport:
        """Return what can be sent away under this name.

        :raises CommandError: nothing, or a name is needed.
        """
        return self.serving.find(export)

    def _describe(self) -> str:
        statuses = [self.status(name) for name in self.serving.exports]
        return describe(statuses, (each.place for each in self.ports))

    def _look(self) -> ServerView:
        now = self._reactor.seconds()
        clients = clients_by_export(self.serving.factory)
        return server_view(
            (
                export_view(
                    each.host.export,
                    clients[each.host.export],
                    self._meter,
                    serving_status(self.serving, each, now),
                    each.tally(now),
                    sending(each.migration, each.watch),
                )
                for each in self.serving.exports.values()
            ),
            self.serving.factory.clients,
            self._pool,
        )

    def terminate(self, reason: str) -> Deferred[int]:
        """Let no migration start, end those that run, and fire with the exit status."""
        return self.serving.terminate(reason)

    def stopService(self) -> Deferred[None]:
        """Refuse, drain, close the clients, flush, let go of the images: in this order."""
        super().stopService()  # type: ignore[no-untyped-call]  # Twisted's
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        await take_all(
            self._lifetime,
            lambda: close_control(self._control),
            lambda: self._publishing.close(self._lifetime.status, self._lifetime.reason),
            self.serving.close,
            self._confirming.close,
            *(host.close for host in self._hosts),
            self.serving.concluded,
            lambda: answer_operators(self._control),
            self._publishing.finish,
            self._pool.stop,
        )

    # What the operator's socket commands: control.server.Operator

    def status(self, export: str | None) -> Status:
        """Return what is told about this server, and about one export, now."""
        name = self._config.default_export if export is None else export
        return serving_status(self.serving, self.serving.find(name), self._reactor.seconds())

    def set_acl(self, entries: list[str]) -> None:
        """Replace the access list; connected clients that it doesn't allow are closed."""
        self._use_acl(AccessList(entries, self._reloading.default_deny))

    def _use_acl(self, acl: AccessList) -> None:
        self.serving.set_acl(acl)
        self._confirming.set_acl(acl)

    def mirror(self, request: MirrorRequest) -> Deferred[str]:
        """Start a migration."""
        return self.serving.mirror(request)

    def wait(self, export: str | None) -> Deferred[Summary]:
        """Fire once the migration that runs has ended."""
        return self.serving.find(export).wait()

    def set_max_bps(self, n: int, export: str | None) -> str:
        """Limit the migration that runs."""
        return self.serving.find(export).set_max_bps(n)

    def set_converge(self, change: ConvergeChange, export: str | None) -> str:
        """Change how the migration that runs comes to its end."""
        return self.serving.find(export).set_converge(change)

    def break_mirror(self, export: str | None) -> str:
        """End the migration that runs."""
        return self.serving.find(export).break_mirror()


def root_cause(failure: Any) -> str:
    """Return what went wrong, in the words of the one Deferred of several that failed."""
    first = failure.value
    while isinstance(first, FirstError):
        first = first.subFailure.value
    return str(first)

"""``listen``: an image is received; then the process ends with 0, or goes on as its server."""

from __future__ import annotations

import secrets
from contextlib import ExitStack
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from flexmigrate.config import ListenConfig
from flexmigrate.control.server import ControlPort, listen_control
from flexmigrate.errors import CommandError, FlexmigrateError, ImageError
from flexmigrate.image.file import Image, Opener
from flexmigrate.log import failures
from flexmigrate.migration.destination.handover import DestinationHandover
from flexmigrate.migration.destination.machine import (
    FIRST_REQUEST_SECONDS,
    Destination,
    DestinationCore,
    DestinationMachine,
)
from flexmigrate.migration.destination.policy import ReceivingSession
from flexmigrate.migration.lock import OwnedLock
from flexmigrate.migration.ownership.policy import ServingSession
from flexmigrate.migration.request import ConvergeChange, MirrorRequest
from flexmigrate.net.acl import AccessList
from flexmigrate.net.address import Address
from flexmigrate.server.export import ExportDirectory
from flexmigrate.server.factory import NBDServerFactory, Session
from flexmigrate.server.limits import MAX_CLIENTS, Limits
from flexmigrate.server.measuring import Meter
from flexmigrate.service.closing import answer_operators, close_control, take_all
from flexmigrate.service.descriptors import fitting
from flexmigrate.service.host import ImageHost, new_pool
from flexmigrate.service.images import (
    beyond_oldstyle,
    handshake_style,
    root_cause,
    tell_what_has_no_effect,
    tls_context,
    transmission_kind,
)
from flexmigrate.service.lifetime import Lifetime
from flexmigrate.service.migrating import MigratingExport
from flexmigrate.service.port import ListeningPort
from flexmigrate.service.publishing import (
    Publishing,
    clients_by_export,
    export_view,
    receiving,
    sending,
    server_view,
)
from flexmigrate.service.reloading import Reloading
from flexmigrate.service.reporting import listening_status, serving_status, with_rebind
from flexmigrate.service.serving import Serving
from flexmigrate.service.supervisor import describe
from flexmigrate.telemetry.history import Summary, Tally
from flexmigrate.telemetry.status import ListeningPhase, Status
from flexmigrate.web.view import Moving, ServerView
from flexmigrate.wire.agreement import TLSMode
from flexmigrate.wire.handover import State
from flexmigrate.wire.packing import ID_LENGTH

log = Logger()

LOOK_SECONDS = 1.0
"""Between two looks whether what is received into still has its name."""


class ListenService(Service):
    """The server behind ``listen``, and the operator that its socket commands.

    :raises ImageError: the image can't be opened, or its marker can't be written.
    """

    def __init__(
        self,
        reactor: Any,
        config: ListenConfig,
        lifetime: Lifetime,
        pool: Any = None,
        open_image: Opener = Image.open,
    ) -> None:
        self._reactor = reactor
        self._config = config
        self._lifetime = lifetime
        self._lock = OwnedLock()
        self._pool = pool or new_pool()
        self._meter = Meter()
        self._publishing = Publishing(reactor, config.metrics, config.web, self._look)
        self._tls_context = tls_context(config.tls, oldstyle=config.oldstyle)
        self._reloading = Reloading(config, self._tls_context, self._use_acl)
        self._most_clients = MAX_CLIENTS if config.rebind is None else fitting(MAX_CLIENTS)
        self._host = ImageHost(
            reactor, self._pool, config.file, name=config.export, open_image=open_image
        )
        self._host.is_destination = True
        self._host.ownership.allows_old_peers = config.allow_old_peers
        self._instance = secrets.token_bytes(ID_LENGTH)
        self._serving: Serving | None = None
        self._control: ControlPort | None = None
        with ExitStack() as undo:
            undo.callback(self._host.image.close)
            refusal = self._host.ownership.standing.to_receive()
            if refusal is not None:
                raise ImageError(refusal)
            if config.oldstyle and (text := beyond_oldstyle(self._host)) is not None:
                raise ImageError(f"{text} could not be received")
            if self._host.ownership.state is State.OWNER:
                self._host.trust_cache()  # it may be served, and isn't received
            handover = DestinationHandover(
                self._host.image,
                self._host.background,
                self._host.ownership,
                full_coverage=config.coverage == "full",
            )
            self._core = DestinationCore(reactor, self._host.export, handover)
            self._destination: Destination = DestinationMachine(self._core)
            handover.listens_at = self._listens_at
            handover.lost = self._lost
            self._looking = LoopingCall(handover.look)
            self._looking.clock = reactor
            handover.read_only = config.read_only
            self._acl = AccessList(config.acl, config.default_deny)
            self._receiving = ReceivingSession(
                reactor,
                self._destination,
                self._core,
                self._lock,
                self._host.full_name,
                self._instance,
            )
            self._factory = self._new_factory(
                self._receiving,
                Limits(negotiation_seconds=FIRST_REQUEST_SECONDS),
            )
            self._ports = [ListeningPort(reactor, place, self._factory) for place in config.places]
            self._core.complete.addCallback(lambda _: self._complete())
            # While it is received, for one sender: nothing would tell another's connections from
            # his.
            self._host.export.takes_several = False
            # The last thing here: a command line that is wrong says nothing about the image.
            handover.expect()
            self._host.ownership.tidy()
            undo.pop_all()  # from here on stopService closes it

    def _new_factory(self, session: Session, limits: Limits) -> NBDServerFactory:
        return NBDServerFactory(
            self._reactor,
            ExportDirectory([self._host.export]),
            self._acl,
            session=session,
            style=handshake_style(self._config.oldstyle),
            default_export=self._config.export,
            tls=TLSMode(self._config.tls.rule),
            tls_context=self._tls_context,
            limits=limits,
            transmission=transmission_kind(
                self._config.log, self._meter if self._config.metrics else None
            ),
        )

    def startService(self) -> None:
        """Open the operator's socket and the address for the source; what fails ends the process
        with 1.
        """
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
        opening = [self._publishing.open(), *(each.open() for each in self._ports)]
        opened = gatherResults(opening, consumeErrors=True)
        opened.addCallbacks(
            lambda _: self._opened(),
            lambda failure: self._lifetime.end(1, f"can't listen: {root_cause(failure)}"),
        )

    def _opened(self) -> None:
        """Say that we are ready, and go on where a process before us ended: the image may be ours,
        and its source may not know.
        """
        self._lifetime.ready(self._describe)
        if self._core.handover.owned:
            log.info("{path} is here already", path=self._host.image.path)
            self._destination.resume()
        elif not self._looking.running:
            self._looking.start(LOOK_SECONDS, now=False)

    def _lost(self, reason: str) -> None:
        """The file that is received into has no name any more: end, before more is sent."""
        self._stop_looking()
        self._end(reason).addCallback(lambda status: self._lifetime.end(status, reason))

    def _stop_looking(self) -> None:
        if self._looking.running:
            self._looking.stop()

    def _describe(self) -> str:
        return describe([self.status(None)], (each.place for each in self.ports))

    @property
    def ports(self) -> list[ListeningPort]:
        """The addresses: for the source, or for clients once it serves."""
        return self._ports if self._serving is None else self._serving.ports

    def _listens_at(self) -> list[str]:
        return [str(each.address) for each in self._ports if each.address is not None]

    def find(self, export: str | None) -> MigratingExport:
        """Return what can be sent away under this name.

        :raises CommandError: nothing, or nothing yet.
        """
        if self._serving is None:
            raise CommandError("Not mirroring")
        return self._serving.find(export)

    def _look(self) -> ServerView:
        serving, export = self._serving, self._host.export
        factory, tally = self._factory, Tally()
        moving: Moving | None = receiving(self._core)
        if serving is not None:
            factory, served = serving.factory, serving.exports[export.name]
            tally = served.tally(self._reactor.seconds())
            moving = sending(served.migration, served.watch) or moving
        clients = clients_by_export(factory)[export]
        view = export_view(export, clients, self._meter, self.status(None), tally, moving)
        return server_view([view], factory.clients, self._pool)

    # The migration is complete

    def _complete(self) -> None:
        """The image is ours: serve it, or leave that to whoever reads our exit status."""
        self._stop_looking()
        finishing = Deferred.fromCoroutine(self._take_over())
        finishing.addErrback(self._took_over_badly)

    def _took_over_badly(self, failure: Failure) -> None:
        """The image is ours all the same, and its sender has to be told."""
        failures.tell(self._core.logger, "after the migration", failure)
        self._core.confirm(True)
        self._lifetime.end(0, "migration complete, but the image can't be served from here")

    async def _take_over(self) -> None:
        rebind, by_session = self._config.rebind, self._core.handover.by_session
        if rebind is not None or not by_session:
            await self._close_ports()
        if rebind is not None:
            self._serve(rebind)
        # The first try is made before the sender is told, so its clients find us at their first
        # reconnection.
        self._core.confirm(True)
        if by_session:
            await self._wait_for_the_source(serving=rebind is not None)
        if rebind is None:
            await self._close_ports()
            await self._factory.close_clients("the migration is complete")
            self._lifetime.end(0, f"migration complete, the image is at {self._config.file}")

    async def _wait_for_the_source(self, *, serving: bool) -> None:
        """Stay where the source can ask again, until it knows that the image is here: for a while,
        or, if we go on serving, for as long as we do.
        """
        known = await self._receiving.acknowledged(at_once=serving)
        if not known and serving:
            # Where the serving address is the same, whoever serves there answers as well.
            await gatherResults([self._reopen(each) for each in self._ports])
        elif not known:
            log.warn("the source has not said that it knows; its journal may say 'committed'")

    def _reopen(self, listening: ListeningPort) -> Deferred[None]:
        return listening.open().addErrback(
            lambda failure: log.info(
                "not listening for the source's question on {place}: {error}",
                place=listening.place,
                error=failure.getErrorMessage(),
            )
        )

    def _serve(self, address: Address) -> None:
        export, record = self._host.export, self._host.ownership.record
        export.takes_several = True
        export.read_only = self._config.read_only or (record is not None and record.read_only)
        session = ServingSession(lambda name: self._host, instance=self._instance)
        factory = self._new_factory(session, Limits(clients=self._most_clients))
        self._serving = Serving(
            self._reactor,
            [self._host],
            factory,
            [address],
            self._lifetime.end,
            self._lock,
            self._instance,
        )
        (listening,) = self._serving.ports
        listening.open_persistently().addErrback(self._cannot_serve)

    async def _close_ports(self) -> None:
        for listening in self._ports:
            await listening.close()

    def _cannot_serve(self, failure: Failure) -> None:
        """The image is here, whatever became of its address: a status of 1 would deny that."""
        log.error(
            "can't serve on {address}: {error}",
            address=self._config.rebind,
            error=failure.getErrorMessage(),
        )
        self._lifetime.end(0, "migration complete, but the image can't be served from here")

    # The end of the process

    def terminate(self, reason: str) -> Deferred[int]:
        """Give up what is being received, or served, and fire with the exit status."""
        return self._end(reason)

    def _end(self, reason: str) -> Deferred[int]:
        return Deferred.fromCoroutine(self._give_up(reason))

    async def _give_up(self, reason: str) -> int:
        if (serving := self._served_by()) is not None:
            return await serving.terminate(reason)
        # A handover that is being settled holds the lock, and what it comes to is the truth.
        await self._lock.acquire(self)
        try:
            self._destination.cancel()
        finally:
            self._lock.release(self)
        if (serving := self._served_by()) is not None:
            # It came to be while we waited.
            return await serving.terminate(reason)
        return 0 if self._core.handover.owned else 1

    def _served_by(self) -> Serving | None:
        return self._serving

    def stopService(self) -> Deferred[None]:
        """Refuse, drain, close the clients, flush, let go of the image: in this order."""
        super().stopService()  # type: ignore[no-untyped-call]  # Twisted's
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self._stop_looking()
        await take_all(
            self._lifetime,
            lambda: close_control(self._control),
            lambda: self._publishing.close(self._lifetime.status, self._lifetime.reason),
            self._close_ports,
            lambda: self._factory.close_clients("this server ends"),
            *([self._serving.close] if self._serving is not None else []),
            self._host.close,
            *([self._serving.concluded] if self._serving is not None else []),
            lambda: answer_operators(self._control),
            self._publishing.finish,
            self._pool.stop,
        )

    # What the operator's socket commands: control.server.Operator

    def status(self, export: str | None) -> Status:
        """Return what is told about this server now."""
        now = self._reactor.seconds()
        if self._serving is not None:
            return with_rebind(
                serving_status(self._serving, self.find(export), now), self._serving, now
            )
        self._check_name(export)
        phase: ListeningPhase = "receiving"
        if self._core.phase == "waiting":
            phase = "waiting"
        elif self._core.handover.owned:
            phase = "complete"
        return listening_status(self._core, self._host.export, len(self._factory.clients), phase)

    def set_acl(self, entries: list[str]) -> None:
        """Replace the access list; connected clients that it doesn't allow are closed."""
        self._use_acl(AccessList(entries, self._reloading.default_deny))

    def _use_acl(self, acl: AccessList) -> None:
        self._acl = acl
        self._factory.set_acl(self._acl)
        if self._serving is not None:
            self._serving.set_acl(self._acl)

    def mirror(self, request: MirrorRequest) -> Deferred[str]:
        """Start a migration, once the image is here and served."""
        if self._serving is None:
            raise CommandError("the image is not here yet")
        return self._serving.mirror(request)

    def wait(self, export: str | None) -> Deferred[Summary]:
        """Fire once the migration that runs has ended."""
        return self.find(export).wait()

    def set_max_bps(self, n: int, export: str | None) -> str:
        """Limit the migration that runs."""
        return self.find(export).set_max_bps(n)

    def set_converge(self, change: ConvergeChange, export: str | None) -> str:
        """Change how the migration that runs comes to its end."""
        return self.find(export).set_converge(change)

    def break_mirror(self, export: str | None) -> str:
        """End the migration that runs."""
        return self.find(export).break_mirror()

    def _check_name(self, export: str | None) -> None:
        if export is not None and export != self._config.export:
            raise CommandError(f"there is no export {export!r}; there is {self._config.export!r}")

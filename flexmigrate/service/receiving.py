"""The role of a server that receives an image: once it is complete, the process ends with 0, or
goes on as its server (`flexmigrate.service.serving`).
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from flexmigrate.config import ListenConfig, Place
from flexmigrate.errors import CommandError
from flexmigrate.log import failures
from flexmigrate.migration.request import MirrorRequest
from flexmigrate.net.acl import AccessList
from flexmigrate.service.host import Host
from flexmigrate.service.intake import Intake
from flexmigrate.service.migrating import MigratingExport
from flexmigrate.service.port import ListeningPort
from flexmigrate.service.serving import Serving
from flexmigrate.service.shell import Role, Shell, Step
from flexmigrate.service.status_values import describe, listening_status
from flexmigrate.service.views import receiving, receiving_view
from flexmigrate.telemetry.status import Status
from flexmigrate.web.view import ServerView

log = Logger()

LOOK_SECONDS = 1.0
"""Seconds between two checks that the image still has its name."""


class Receiving:
    """The role; see the module.

    :ivar intake: the image.
    :raises ImageError: its marker can't be written.
    :raises UsageError: a place describes no endpoint.
    """

    is_reachable = True

    def __init__(self, shell: Shell, config: ListenConfig, intake: Intake) -> None:
        self._shell = shell
        self._config = config
        self.intake = intake
        self._core = intake.core
        self._successor: Role | None = None
        self._has_listened = False
        self.ports = [
            ListeningPort(shell.reactor, place, intake.factory) for place in config.places
        ]
        handover = self._core.handover
        handover.listens_at = self._listens_at
        handover.lost = self._lost
        self._looking = LoopingCall(handover.look)
        self._looking.clock = shell.reactor
        self._core.complete.addCallback(lambda _: self._complete())
        # Last, so that a wrong command line leaves the image as it is.
        intake.expect()

    @property
    def hosts(self) -> list[Host]:
        """The one image."""
        return [self.intake.host]

    def open(self) -> Deferred[Any]:
        """Open the addresses for the source."""
        return gatherResults([each.open() for each in self.ports], consumeErrors=True)

    def opened(self) -> None:
        """Go on where an earlier process ended: the image may be ours, and its source may not
        know.
        """
        self._has_listened = True
        if self._core.handover.owned:
            log.info("{path} is here already", path=self.intake.host.storage.path)
            self.intake.machine.resume()
        elif not self._looking.running:
            self._looking.start(LOOK_SECONDS, now=False)

    def _listens_at(self) -> list[str]:
        return [str(each.address) for each in self.ports if each.address is not None]

    def _lost(self, reason: str) -> None:
        """End, before more is sent, because the image has lost its name."""
        self._stop_looking()
        self.terminate(reason).addCallback(lambda status: self._shell.lifetime.end(status, reason))

    def _stop_looking(self) -> None:
        if self._looking.running:
            self._looking.stop()

    # The migration is complete

    def _complete(self) -> None:
        """Serve the image, which is ours now, or end: the supervisor decides what follows."""
        self._stop_looking()
        finishing = Deferred.fromCoroutine(self._take_over())
        finishing.addErrback(self._took_over_badly)

    def _took_over_badly(self, failure: Failure) -> None:
        """Log an error after the handover; the image is ours, and the sender is told so."""
        failures.tell(self._core.logger, "after the migration", failure)
        self._core.confirm(True)
        self._end_unserved()

    async def _take_over(self) -> None:
        rebind, by_session = self._config.rebind, self._core.handover.by_session
        if rebind is not None or not by_session:
            await self._close_ports()
        if rebind is not None:
            self._serve([rebind])
        # The first try is made before the sender is told, so its clients find us at their first
        # reconnection.
        self._core.confirm(True)
        if by_session:
            await self._wait_for_the_source(serving=rebind is not None)
        if rebind is None:
            await self._close_ports()
            await self.intake.factory.close_clients("the migration is complete")
            self._shell.lifetime.end(0, f"migration complete, the image is at {self._config.file}")

    async def _wait_for_the_source(self, *, serving: bool) -> None:
        """Listen where the source can ask again, until it knows that the image is here: for a
        while, or, if we go on serving, for as long as we do.
        """
        known = await self.intake.session.acknowledged(at_once=serving)
        if not known and serving:
            # If the serving address is the same, the server there answers, too.
            await gatherResults([self._reopen(each) for each in self.ports])
        elif not known:
            log.warn(
                "the source has not confirmed the handover; its journal may still say 'committed'"
            )

    def _reopen(self, listening: ListeningPort) -> Deferred[None]:
        return listening.open().addErrback(
            lambda failure: log.info(
                "not listening for the source's question on {place}: {error}",
                place=listening.place,
                error=failure.getErrorMessage(),
            )
        )

    def _serve(self, places: list[Place]) -> None:
        """Serve the image, as if it had been here from the start."""
        host = self.intake.host
        record = host.ownership.record
        host.export.takes_several = True
        host.export.read_only = self._config.read_only or (record is not None and record.read_only)
        serving = Serving(self._shell, [host], places, self.intake.lock, receiving(self._core))
        self._successor = serving
        self._shell.become(serving)
        for each in serving.ports:
            each.open_persistently().addErrback(self._cannot_serve)

    async def _close_ports(self) -> None:
        for listening in self.ports:
            await listening.close()

    def _cannot_serve(self, failure: Failure) -> None:
        """End with 0 although the address can't be opened: the image is here."""
        log.error(
            "can't serve on {address}: {error}",
            address=self._config.rebind,
            error=failure.getErrorMessage(),
        )
        self._end_unserved()

    def _end_unserved(self) -> None:
        self._shell.lifetime.end(0, "migration complete, but the image can't be served from here")

    # The end

    def terminate(self, reason: str) -> Deferred[int]:
        """Stop receiving, and fire with the exit status."""
        return Deferred.fromCoroutine(self._give_up(reason))

    async def _give_up(self, reason: str) -> int:
        # A handover that has begun holds the lock, and its result decides.
        await self.intake.lock.acquire(self)
        try:
            self.intake.machine.cancel(reason)
        finally:
            self.intake.lock.release(self)
        if self._successor is not None:  # made while we waited
            return await self._successor.terminate(reason)
        return 0 if self._core.handover.owned else 1

    def _take_the_marker_back(self) -> None:
        """Leave the image of a start that was in vain as it was found. A server that has listened
        leaves the marker, until the image is complete.
        """
        if not self._has_listened:
            self._core.handover.stop_expecting()

    def closing(self) -> list[Step]:
        """Return the steps that disconnect the source, and remove the marker of a start that
        was in vain.
        """
        return [
            self._stop_looking,
            self._close_ports,
            lambda: self.intake.factory.close_clients("this server ends"),
            self._take_the_marker_back,
        ]

    def concluded(self) -> Deferred[None]:
        """Fire at once: nothing is left to do."""
        return succeed(None)

    # The views of it, and the commands to it

    def describe(self) -> str:
        """Return a description of the current work."""
        return describe([self.status(None)], (each.place for each in self.ports))

    def view(self) -> ServerView:
        """Return the view for HTTP."""
        shell = self._shell
        return receiving_view(
            self._core, self.intake.factory, shell.factories.meter, self.status(None), shell.pool
        )

    def status(self, export: str | None) -> Status:
        """Return the status of the server."""
        if export is not None and export != self._config.export:
            raise CommandError(f"there is no export {export!r}; there is {self._config.export!r}")
        return listening_status(self._core, self._core.export, len(self.intake.factory.clients))

    def set_acl(self, acl: AccessList) -> None:
        """Change the access list; a source that it doesn't admit is disconnected at once."""
        self._shell.factories.set_acl(acl)

    def find(self, export: str | None) -> MigratingExport:
        """Refuse: an image can't be migrated before it is here.

        :raises CommandError: always.
        """
        raise CommandError("Not mirroring")

    def mirror(self, request: MirrorRequest) -> Deferred[str]:
        """Refuse: an image can't be migrated before it is here.

        :raises CommandError: always.
        """
        raise CommandError("the image is not here yet")

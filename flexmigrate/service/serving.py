"""The role of a server that owns its images: it serves them to clients, and sends them away.

``serve`` has it from its start, ``listen`` once it owns what it has received.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred

from flexmigrate.config import Place
from flexmigrate.migration.lock import OwnedLock
from flexmigrate.migration.ownership.policy import ServingSession
from flexmigrate.migration.request import MirrorRequest
from flexmigrate.net.acl import AccessList
from flexmigrate.service.confirming import Confirming
from flexmigrate.service.front import ServingFront
from flexmigrate.service.host import Host
from flexmigrate.service.migrating import MigratingExport
from flexmigrate.service.port import ListeningPort
from flexmigrate.service.shell import Shell, Step
from flexmigrate.service.status_values import describe, serving_status, with_rebind
from flexmigrate.service.views import serving_view
from flexmigrate.telemetry.status import Status
from flexmigrate.web.view import Moving, ServerView


class Serving:
    """See the module.

    :param hosts: the images, open and owned; they are closed by the shell.
    :param places: where clients connect to.
    :param lock: the migration lock of the one image that was received.
    :param received: what is seen of the migration that has brought it; None for images that were
        here from the start.
    :raises UsageError: a place describes no endpoint.
    """

    is_reachable = True

    def __init__(
        self,
        shell: Shell,
        hosts: Sequence[Host],
        places: Sequence[Place],
        lock: OwnedLock | None = None,
        received: Moving | None = None,
    ) -> None:
        self._shell = shell
        self._received = received
        self._confirming = Confirming(shell.reactor, hosts, shell.factories)
        self._by_name = {host.export.name: host for host in hosts}
        factory = shell.factories.for_clients(
            (host.export for host in hosts),
            ServingSession(self._held, self._confirming.look, shell.instance),
        )
        self.front = ServingFront(
            shell.reactor, hosts, factory, places, shell.lifetime.end, lock, shell.instance
        )

    def _held(self, name: str) -> Host | None:
        """Return what the export *name* has, as negotiation names it."""
        return self._by_name.get(name or self._shell.config.default_export)

    @property
    def hosts(self) -> list[Host]:
        """The images."""
        return self.front.hosts

    @property
    def ports(self) -> list[ListeningPort]:
        """The addresses that clients connect to."""
        return self.front.ports

    def open(self) -> Deferred[Any]:
        """Open all addresses, or fail as the first that can't be opened."""
        return self.front.open()

    def opened(self) -> None:
        """Confirm to the sources that were cut off that their images are here."""
        self._confirming.open(each.address for each in self.ports)

    def describe(self) -> str:
        """Return what is being done, in a sentence."""
        statuses = [self.status(name) for name in self.front.exports]
        return describe(statuses, (each.place for each in self.ports))

    def view(self) -> ServerView:
        """Return what is seen of it over HTTP."""
        shell = self._shell
        now = shell.reactor.seconds()
        meter, pool = shell.factories.meter, shell.pool
        return serving_view(self.front, self.status, meter, pool, now, self._received)

    def status(self, export: str | None) -> Status:
        """Return what is told about the server, and about one export."""
        name = self._shell.config.default_export if export is None else export
        now = self._shell.reactor.seconds()
        status = serving_status(self.front, self.find(name), now)
        return status if self._received is None else with_rebind(status, self.front, now)

    def set_acl(self, acl: AccessList) -> None:
        """Change who may connect; clients that may no longer are closed at once."""
        self._shell.factories.set_acl(acl)

    def find(self, export: str | None) -> MigratingExport:
        """Return what can be sent away under this name.

        :raises CommandError: nothing, or a name is needed.
        """
        return self.front.find(export)

    def mirror(self, request: MirrorRequest) -> Deferred[str]:
        """Start a migration of the export that *request* names."""
        return self.find(request.export).mirror(request)

    def terminate(self, reason: str) -> Deferred[int]:
        """Let no migration start, end those that run, and fire with the exit status."""
        return self.front.terminate(reason)

    def closing(self) -> list[Step]:
        """Return the steps that refuse and close clients."""
        return [self.front.close, self._confirming.close]

    def concluded(self) -> Deferred[None]:
        """Fire once nothing of a migration that has ended is left to do, like its report."""
        return self.front.concluded()

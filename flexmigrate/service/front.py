"""The front of a server's exports: the addresses at which clients reach them.

Migrations withdraw an export from it, restore it, or dismiss its clients. Once the last export has
been migrated away, the server ends.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger
from twisted.python.failure import Failure

from flexmigrate.config import Place
from flexmigrate.errors import CommandError
from flexmigrate.migration.lock import OwnedLock
from flexmigrate.net.address import Address
from flexmigrate.server.export import ExportDirectory
from flexmigrate.server.factory import NBDServerFactory
from flexmigrate.service.host import Host
from flexmigrate.service.migrating import MigratingExport
from flexmigrate.service.port import ListeningPort
from flexmigrate.wire.handover import NO_ID

log = Logger()


class ServingFront:
    """The front; see the module.

    :param ended: called with an exit status and a reason once nothing is left to serve.
    :param lock: the migration lock of the first export, if it exists already.
    :ivar instance: a random id of this server, which destinations are told.
    :ivar ports: the addresses.
    """

    def __init__(
        self,
        reactor: Any,
        hosts: Sequence[Host],
        factory: NBDServerFactory,
        places: Sequence[Place],
        ended: Callable[[int, str], None],
        lock: OwnedLock | None = None,
        instance: bytes = NO_ID,
    ) -> None:
        self._ended = ended
        self._status = 0
        self.instance = instance
        self.factory = factory
        self.ports = [ListeningPort(reactor, place, factory) for place in places]
        self.exports = {
            host.export.name: MigratingExport(reactor, host, self, lock) for host in hosts
        }

    @property
    def is_open(self) -> bool:
        """Whether clients can connect, at each of the addresses."""
        return all(each.is_open for each in self.ports)

    def open(self) -> Deferred[Any]:
        """Open all addresses, or fail like the first one that can't be opened."""
        return gatherResults([each.open() for each in self.ports], consumeErrors=True)

    def find(self, name: str | None) -> MigratingExport:
        """Return the export *name*; None is enough where there is only one.

        :raises CommandError: there is no such export, or a name is needed.
        """
        if name is None and len(self.exports) == 1:
            (only,) = self.exports.values()
            return only
        known = ", ".join(repr(each) for each in self.exports)
        if name is None:
            raise CommandError(f"there are several exports, name one of them: {known}")
        if name not in self.exports:
            raise CommandError(f"there is no export {name!r}; there are {known}")
        return self.exports[name]

    # The front of each export: service.migrating.Front

    @property
    def hosts(self) -> list[Host]:
        """The images that are served."""
        return [each.host for each in self.exports.values()]

    def withdraw(self, host: Host) -> Deferred[None]:
        """Close the export for new clients; if it is the only one, close the addresses."""
        self._directory.withdraw(host.export.name)
        if self._directory.is_empty:
            return _all(each.close() for each in self.ports)
        return _all(())

    def restore(self, host: Host) -> Deferred[None]:
        """Undo `withdraw`; addresses that can't be opened are tried again once a second."""
        self._directory.restore(host.export)
        closed = [each for each in self.ports if not each.is_open]
        return _all(each.open_persistently() for each in closed)

    def is_own_connection(self, transport: Any, address: Address) -> bool:
        """Return whether *transport* is connected to this very server, at *address*."""
        if address.is_unix:
            path = os.path.realpath(address.path)
            ours = (each.socket_path for each in self.ports)
            return any(each is not None and os.path.realpath(each) == path for each in ours)
        # Both ends: one port of this host can be that of several connections, to different places.
        ends = transport.getHost(), transport.getPeer()
        return any(
            (client.transport.getPeer(), client.transport.getHost()) == ends
            for client in self.factory.clients
        )

    def dismiss(self, host: Host) -> None:
        """Disconnect the export's clients: the image is, or soon will be, elsewhere."""
        leaving = self.factory.close_clients("the image is elsewhere", host.export)
        leaving.addErrback(self._not_let_go, host)

    def given(self, host: Host, status: int, reason: str) -> None:
        """End the server if nothing is left to serve; else disconnect only the export's own
        clients, and close its image.
        """
        self._status = max(self._status, status)
        if all(each.given_away for each in self.exports.values()):
            self._ended(self._status, reason)
        else:
            log.info("export {name!r}: {reason}", name=host.export.name, reason=reason)
            letting_go = self.factory.close_clients(reason, host.export)
            letting_go.addCallback(lambda _: host.close())
            letting_go.addErrback(self._not_let_go, host)

    def _not_let_go(self, failure: Failure, host: Host) -> None:
        log.error("{path}: {error}", path=host.storage.path, error=failure.getErrorMessage())
        self._status = 1

    @property
    def _directory(self) -> ExportDirectory:
        return self.factory.exports

    # The end of the process

    def concluded(self) -> Deferred[None]:
        """Fire once the ended migrations have finished all work, such as their reports."""
        return _all(each.concluded() for each in self.exports.values())

    def terminate(self, reason: str) -> Deferred[int]:
        """Start no more migrations, end running ones, and fire with the exit status."""
        ended = [each.terminate(reason) for each in self.exports.values()]
        return gatherResults(ended).addCallback(lambda statuses: max(self._status, *statuses))

    async def close(self) -> None:
        """Refuse new clients, finish current requests, disconnect the clients."""
        for listening in self.ports:
            await listening.close()
        for each in self.exports.values():
            await each.host.export.park()
        await self.factory.close_clients("this server ends")


def _all(results: Iterable[Deferred[None]]) -> Deferred[None]:
    """Fire when all *results* have, or fail like the first that fails; cancelling cancels all."""
    return gatherResults(list(results), consumeErrors=True).addCallback(_nothing)


def _nothing(_: object) -> None:
    """Replace a result by None."""

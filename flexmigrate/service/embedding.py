"""The servers as services of somebody else's program: what ``flexmigrate`` itself offers by name.

A program that embeds a server goes on when that has ended: nothing here stops the reactor, exits,
or heeds a signal. What the command line says by an exit status is a Deferred here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from flexmigrate.config import ExportConfig, ListenConfig, Place, ServeConfig
from flexmigrate.control.grammar import MirrorRequest
from flexmigrate.errors import FlexmigrateError
from flexmigrate.history import Sample, Summary
from flexmigrate.service import listen
from flexmigrate.service.lifetime import Lifetime
from flexmigrate.service.listening import Listening
from flexmigrate.service.migrating import MigratingExport
from flexmigrate.service.serve import Committed, ServeService
from flexmigrate.service.supervisor import Describe

log = Logger()


@dataclass(frozen=True)
class Ended:
    """How a server ended.

    :ivar status: what its process would have exited with: 0 if the image was migrated away, or was
        received; 1 for any failure.
    :ivar reason: why, for people.
    """

    status: int
    reason: str


class EndedBadly(FlexmigrateError):
    """A server could not begin to serve."""


class _Lifetime(Lifetime):
    """A server's life inside a program that goes on.

    :ivar opened: fires once it can be connected to; fails with EndedBadly where it can't.
    :ivar ended: fires with Ended once it has nothing more to do.
    """

    def __init__(self, reactor: Any) -> None:
        super().__init__(reactor)
        self.opened: Deferred[None] = Deferred()
        self.ended: Deferred[Ended] = Deferred()

    def heed_signals(self, terminate: Callable[[str], Deferred[int]]) -> None:
        """Signals are the program's."""
        self.terminate = terminate

    def ready(self, describe: Describe) -> None:
        if self.status is None:
            self.opened.callback(None)

    def end(self, status: int, reason: str, *, settled: bool = True) -> None:
        if self.status is not None:
            return
        self.status = status
        self._settled = settled
        tell = log.info if status == 0 else log.error
        tell("the server has ended with status {status}: {reason}", status=status, reason=reason)
        if not self.opened.called:
            self.opened.errback(Failure(EndedBadly(reason)))
        self.ended.callback(Ended(status, reason))


class Migration:
    """A migration that has begun: the destination has agreed.

    :ivar result: fires with the Summary once it is over, however it went; cancelling it changes
        nothing about the migration.
    """

    def __init__(self, migrating: MigratingExport) -> None:
        self._migrating = migrating
        self.result: Deferred[Summary] = migrating.wait()

    def stop(self) -> None:
        """End it; the image stays here, and clients go on.

        :raises CommandError: it is over, or the image is being handed over.
        """
        self._migrating.break_mirror()

    def limit(self, bytes_per_second: int) -> None:
        """Send no more than so many bytes a second from now on; 0 for no limit.

        :raises CommandError: it is over.
        """
        self._migrating.set_max_bps(bytes_per_second)


class _Embedded(Service):
    """One server, from its start to its end; it can't be started again."""

    def __init__(self, lifetime: _Lifetime) -> None:
        self._lifetime = lifetime
        self._server: Any = None
        self.opened = lifetime.opened
        self.ended = lifetime.ended

    def startService(self) -> None:
        """Open the addresses; ``opened`` tells when that is done."""
        super().startService()  # type: ignore[no-untyped-call]  # Twisted's
        self._server.startService()

    def stopService(self) -> Deferred[None]:
        """End a migration that runs, refuse new clients, let what is under way end, close the
        clients, flush, and let go of the images: in this order.
        """
        super().stopService()  # type: ignore[no-untyped-call]  # Twisted's
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        reason = "the service was stopped"
        status = await self._lifetime.terminate(reason)
        self._lifetime.end(status, reason, settled=False)
        await self._server.stopService()

    @staticmethod
    def _places(listenings: Iterable[Listening]) -> list[Place]:
        return [each.place for each in listenings]


class ExportService(_Embedded):
    """Offers images to NBD clients, and can send them away while they are used.

    :param reactor: Twisted's.
    :param exports: by name: the path of a file or block device, or what provides
        :class:`~flexmigrate.IBlockDevice`. Clients that name none get the export named "", or the
        only one.
    :param endpoints: where to listen: descriptions as ``serverFromString`` takes them, or
        :class:`flexmigrate.net.address.Address`.
    :param settings: others of :class:`flexmigrate.config.ServeConfig`, by name: ``acl``, ``tls``,
        ``read_only``, ``sock``, ``max_clients`` …
    :raises ImageError: an image can't be opened, is in use, was migrated away, or is no device.
    :raises UsageError: an endpoint or the TLS settings make no sense.
    :ivar opened: fires with None once clients can connect; fails with FlexmigrateError.
    :ivar ended: fires with :class:`Ended` when all was migrated away, or the service was stopped.
    """

    def __init__(
        self,
        reactor: Any,
        exports: Mapping[str, Any],
        endpoints: Iterable[Place],
        **settings: Any,
    ) -> None:
        super().__init__(_Lifetime(reactor))
        if len(exports) == 1:
            settings.setdefault("default_export", next(iter(exports)))
        config = ServeConfig(
            places=tuple(endpoints),
            exports=tuple(_export(name, of) for name, of in exports.items()),
            **settings,
        )
        try:
            self._server: ServeService = ServeService(reactor, config, self._lifetime)
        except Committed as committed:
            committed.host.image.close()
            raise

    @property
    def places(self) -> list[Place]:
        """Where it listens, with the ports that the kernel chose."""
        return self._places(self._server.serving.listenings)

    def migrate(
        self,
        request: MirrorRequest,
        progress: Callable[[Sample], object] | None = None,
    ) -> Deferred[Migration]:
        """Begin to send an export to another server.

        :param request: where to, and how; see there.
        :param progress: called several times a second with how it is going, and when it is over;
            what it raises is logged, and harms nothing.
        :return: fires once the destination has agreed; fails with CommandError if it can't begin.
        """
        migrating = self._server.serving.find(request.export)
        begun = migrating.mirror(request, progress)
        return begun.addCallback(lambda _: Migration(migrating))


class ListenService(_Embedded):
    """Receives an image, then goes on as its server if it is told where.

    :param path: of the file or device that is to be received; it exists, and has the right size.
    :param endpoints: where the source connects to; see `ExportService`.
    :param settings: others of :class:`flexmigrate.config.ListenConfig`, by name: ``rebind``,
        ``coverage``, ``acl``, ``tls``, ``sock`` …
    :raises ImageError: the image can't be opened, or must not be overwritten.
    :ivar opened: fires with None once a source can connect; fails with FlexmigrateError.
    :ivar ended: fires with :class:`Ended`, whose status is 0 if the image is here.
    """

    def __init__(
        self, reactor: Any, path: str, endpoints: Iterable[Place], **settings: Any
    ) -> None:
        super().__init__(_Lifetime(reactor))
        config = ListenConfig(places=tuple(endpoints), file=path, **settings)
        self._server: listen.ListenService = listen.ListenService(reactor, config, self._lifetime)

    @property
    def places(self) -> list[Place]:
        """Where it listens, with the ports that the kernel chose."""
        return self._places(self._server.listenings)


def _export(name: str, of: Any) -> ExportConfig:
    if isinstance(of, str):
        return ExportConfig(name, of)
    return ExportConfig(name, f"the device {name!r}", device=of)

"""The servers as services of an embedding program: the public classes of ``flexmigrate``.

The program goes on when a server has ended: nothing here stops the reactor, exits,
or handles a signal. Instead of an exit status there is a Deferred.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger

from flexmigrate.config import CoverageRule, ExportConfig, ListenConfig, Place, ServeConfig
from flexmigrate.errors import FlexmigrateError, UsageError, check_type
from flexmigrate.log.settings import LogSettings
from flexmigrate.migration.request import MAX_BPS, NO_TLS, MirrorRequest, TLSConfig
from flexmigrate.net.address import Address
from flexmigrate.net.polling import DEFAULT_POLL_SECONDS
from flexmigrate.server.limits import MAX_CLIENTS
from flexmigrate.service import build
from flexmigrate.service.host import new_pool
from flexmigrate.service.lifetime import Lifetime, Reload
from flexmigrate.service.migrating import MigratingExport
from flexmigrate.service.supervisor import Describe
from flexmigrate.telemetry.history import Sample, Summary

log = Logger()

_LOG = LogSettings()

_T = TypeVar("_T")


@dataclass(frozen=True)
class Ended:
    """The end of a server.

    :ivar status: the exit status of such a process: 0 if the image was migrated away, or was
        received; 1 for any failure.
    :ivar reason: the reason, for people.
    """

    status: int
    reason: str


class NeverServed(FlexmigrateError):
    """A server ended before anybody could connect to it; the text has the reason."""


class StartedBefore(FlexmigrateError):
    """A service was started a second time: each server needs a new one."""


class _Event(Generic[_T]):
    """An event that happens once, or fails; any number of callers may wait for it."""

    def __init__(self) -> None:
        self._outcome: Callable[[], Deferred[_T]] | None = None
        self._waiting: list[Deferred[_T]] = []

    def happen(self, value: _T) -> None:
        """Make it happen; only the first call counts."""
        self._settle(lambda: succeed(value))

    def fail(self, error: BaseException) -> None:
        """Make it fail; only the first call counts."""
        self._settle(lambda: fail(error))

    def _settle(self, outcome: Callable[[], Deferred[_T]]) -> None:
        if self._outcome is not None:
            return
        self._outcome = outcome
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            outcome().chainDeferred(each)

    def wait(self) -> Deferred[_T]:
        """Return a Deferred that fires when it happens, or at once if it has."""
        if self._outcome is not None:
            return self._outcome()
        waiting: Deferred[_T] = Deferred(self._waiting.remove)
        self._waiting.append(waiting)
        return waiting


class _Lifetime(Lifetime):
    """The lifetime of a server inside a program that goes on.

    :ivar opened: happens once clients can connect; fails with NeverServed.
    :ivar ended: happens once the server has ended.
    """

    def __init__(self, reactor: Any) -> None:
        super().__init__(reactor)
        self.opened: _Event[None] = _Event()
        self.ended: _Event[Ended] = _Event()

    def heed_signals(
        self, terminate: Callable[[str], Deferred[int]], reload: Reload | None = None
    ) -> None:
        """Do nothing: the program handles signals."""

    def ready(self, describe: Describe, *, serving: bool = True) -> None:
        if self.status is None and serving:
            self.opened.happen(None)

    def end(self, status: int, reason: str, *, settled: bool = True) -> None:
        if self.status is not None:
            return
        self.status, self.reason = status, reason
        self._settled = settled
        tell = log.info if status == 0 else log.error
        tell("the server has ended with status {status}: {reason}", status=status, reason=reason)
        self.opened.fail(NeverServed(reason))
        self.ended.happen(Ended(status, reason))


class Migration:
    """A migration that has begun: the destination has agreed.

    :ivar result: fires with the Summary once it is over, whatever its result; cancelling it changes
        nothing about the migration.
    """

    def __init__(self, migrating: MigratingExport) -> None:
        self._migrating = migrating
        self.result: Deferred[Summary] = migrating.wait()

    def stop(self) -> None:
        """Stop the migration; the image stays here, and clients go on.

        :raises CommandError: it is over, or the image is being handed over.
        """
        self._migrating.break_mirror()

    def limit(self, bytes_per_second: int) -> None:
        """Send no more than so many bytes a second from now on; 0 for no limit.

        :raises CommandError: it is over.
        :raises UsageError: (a ValueError) it isn't a whole number, or not one of 64 bits.
        """
        check_type("bytes_per_second", bytes_per_second, int)
        if not 0 <= bytes_per_second <= MAX_BPS:
            raise UsageError(f"bytes_per_second={bytes_per_second}: it must be from 0 to {MAX_BPS}")
        self._migrating.set_max_bps(bytes_per_second)


class _Embedded(Service):
    """A server of the command line, from its start to its end, as a part of a program."""

    def __init__(self, reactor: Any, config: ServeConfig | ListenConfig) -> None:
        self._lifetime = _Lifetime(reactor)
        self._pool = new_pool()
        self._server = build(reactor, config, self._lifetime, self._pool)
        self._was_started = False
        self._gone: _Event[None] | None = None

    @property
    def opened(self) -> Deferred[None]:
        """Fires once clients, or a source, can connect; fails with FlexmigrateError if the server
        ends before that. Each use of it gives another Deferred.
        """
        return self._lifetime.opened.wait()

    @property
    def ended(self) -> Deferred[Ended]:
        """Fires once the server has nothing more to do. Each use of it gives another Deferred."""
        return self._lifetime.ended.wait()

    @property
    def places(self) -> list[Place]:
        """The addresses it listens on, with the ports that the kernel chose; none while it only has
        a handover confirmed.
        """
        return [each.place for each in self._server.ports]

    def startService(self) -> None:
        """Open the addresses; ``opened`` tells when that is done.

        :raises StartedBefore: it was started, or stopped, before; a parent that runs starts its
            services itself.
        """
        if self._was_started or self._gone is not None:
            raise StartedBefore(
                "this service was started or stopped before; each server needs a new one"
            )
        self._was_started = True
        super().startService()  # type: ignore[no-untyped-call]  # Twisted's
        self._server.startService()

    def stopService(self) -> Deferred[None]:
        """End a migration that runs, refuse new clients, let what is under way end, close the
        clients, flush, and let go of the images: in this order. Twice is allowed, as is before it
        was started.
        """
        super().stopService()  # type: ignore[no-untyped-call]  # Twisted's
        if self._gone is None:
            gone = self._gone = _Event()
            stopping = Deferred.fromCoroutine(self._stop())
            stopping.addCallbacks(gone.happen, lambda failure: gone.fail(failure.value))
        return self._gone.wait()

    async def _stop(self) -> None:
        if not self._was_started:
            self._pool.start()  # what is closed is flushed, by a thread
        reason = "the service was stopped"
        status = await self._server.terminate(reason)
        self._lifetime.end(status, reason, settled=False)
        await self._server.stopService()


class ExportService(_Embedded):
    """A server that offers images to NBD clients, and can migrate them while they are used.

    :param reactor: Twisted's.
    :param exports: by name: the path of a file or block device, or a provider of
        :class:`~flexmigrate.IBlockDevice`. Clients that name none get the export named "", or the
        only one.
    :param endpoints: the places to listen on: descriptions for ``serverFromString``, or
        :class:`flexmigrate.net.address.Address`.
    :param default_export: the export of clients that name none; None: the only one, or the one
        named "".

    The other parameters are those of :class:`flexmigrate.config.ServeConfig`.

    :raises ImageError: an image can't be opened, is in use, was migrated away, or is no device.
    :raises UsageError: (a ValueError) an argument or a setting is of another type, out of its
        range, or doesn't fit another; the text names it, and tells its value and what is allowed.

    Where the one image was handed over before, and its destination has not confirmed that yet, it
    isn't served: the destination is asked once. ``opened`` fails then, and ``ended`` tells the
    answer: 0 if the image is there. Another service for the image asks again.
    """

    def __init__(
        self,
        reactor: Any,
        exports: Mapping[str, Any],
        endpoints: Iterable[Place],
        *,
        default_export: str | None = None,
        sock: str | None = None,
        acl: tuple[str, ...] = (),
        default_deny: bool = False,
        killswitch: bool = False,
        oldstyle: bool = False,
        read_only: bool = False,
        allow_old_peers: bool = False,
        listable: bool = True,
        max_clients: int = MAX_CLIENTS,
        max_clients_per_host: int = 0,
        poll_seconds: float = DEFAULT_POLL_SECONDS,
        tls: TLSConfig = NO_TLS,
        metrics: Place | None = None,
        web: Place | None = None,
        log: LogSettings = _LOG,
    ) -> None:
        check_type("exports", exports, Mapping)
        if default_export is None:
            default_export = next(iter(exports)) if len(exports) == 1 else ""
        config = ServeConfig(
            places=_places(endpoints),
            exports=tuple(_export(name, of) for name, of in exports.items()),
            default_export=default_export,
            sock=sock,
            acl=acl,
            default_deny=default_deny,
            killswitch=killswitch,
            oldstyle=oldstyle,
            read_only=read_only,
            allow_old_peers=allow_old_peers,
            listable=listable,
            max_clients=max_clients,
            max_clients_per_host=max_clients_per_host,
            poll_seconds=poll_seconds,
            tls=tls,
            metrics=metrics,
            web=web,
            log=log,
        )
        super().__init__(reactor, config)

    def migrate(
        self,
        request: MirrorRequest,
        progress: Callable[[Sample], object] | None = None,
    ) -> Deferred[Migration]:
        """Begin to send an export to another server.

        :param request: the address, and the settings of the migration.
        :param progress: called with a Sample several times a second, and when it is over;
            its exceptions are logged and otherwise ignored.
        :return: fires once the destination has agreed; fails with CommandError if it can't begin.
        :raises UsageError: (a ValueError) an argument is of another type.
        """
        check_type("request", request, MirrorRequest)
        if progress is not None and not callable(progress):
            raise UsageError(f"progress={progress!r}: it must be a function, or None")
        return Deferred.fromCoroutine(self._migrate(request, progress))

    async def _migrate(
        self, request: MirrorRequest, progress: Callable[[Sample], object] | None
    ) -> Migration:
        migrating: MigratingExport = self._server.find(request.export)
        await migrating.mirror(request, progress)
        return Migration(migrating)


class ListenService(_Embedded):
    """A server that receives an image, and then serves it if it is told where.

    :param path: the file or device to receive into; it must exist, and have the right size.
    :param endpoints: the places that the source connects to; see `ExportService`.

    The other parameters are those of :class:`flexmigrate.config.ListenConfig`.

    :raises ImageError: the image can't be opened, or must not be overwritten.
    :raises UsageError: as of `ExportService`.

    ``ended`` has the status 0 if the image was received.
    """

    def __init__(
        self,
        reactor: Any,
        path: str,
        endpoints: Iterable[Place],
        *,
        export: str = "",
        rebind: Address | None = None,
        coverage: CoverageRule = "full",
        sock: str | None = None,
        acl: tuple[str, ...] = (),
        default_deny: bool = False,
        killswitch: bool = False,
        oldstyle: bool = False,
        read_only: bool = False,
        allow_old_peers: bool = False,
        listable: bool = True,
        max_clients: int = MAX_CLIENTS,
        max_clients_per_host: int = 0,
        poll_seconds: float = DEFAULT_POLL_SECONDS,
        tls: TLSConfig = NO_TLS,
        metrics: Place | None = None,
        web: Place | None = None,
        log: LogSettings = _LOG,
    ) -> None:
        config = ListenConfig(
            places=_places(endpoints),
            file=path,
            export=export,
            rebind=rebind,
            coverage=coverage,
            sock=sock,
            acl=acl,
            default_deny=default_deny,
            killswitch=killswitch,
            oldstyle=oldstyle,
            read_only=read_only,
            allow_old_peers=allow_old_peers,
            listable=listable,
            max_clients=max_clients,
            max_clients_per_host=max_clients_per_host,
            poll_seconds=poll_seconds,
            tls=tls,
            metrics=metrics,
            web=web,
            log=log,
        )
        super().__init__(reactor, config)


def _places(endpoints: Iterable[Place]) -> tuple[Place, ...]:
    """Return *endpoints* as a tuple; a single text is refused."""
    if isinstance(endpoints, str):
        raise UsageError(f"endpoints={endpoints!r}: it must be a list of places")
    return tuple(endpoints)


def _export(name: str, of: Any) -> ExportConfig:
    if isinstance(of, str):
        return ExportConfig(name, of)
    if of is None:
        raise UsageError(f"exports={{{name!r}: None}}: it must be a path or an IBlockDevice")
    return ExportConfig(name, f"the device {name!r}", device=of)

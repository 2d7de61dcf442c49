"""The shell of every server: what it has whatever it does with its images.

That is its threads, the operator's socket, HTTP, its life as its supervisor sees it, and the order
in which it ends. What is done with the images is the affair of its `Role`: `serving`, `receiving`
or `in_doubt`. A role can have another one follow it, with the same images.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from twisted.application.service import Service
from twisted.internet.defer import Deferred, FirstError, gatherResults, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from flexmigrate.config import ListenConfig, Place, ServeConfig
from flexmigrate.control.server import ControlPort, listen_control
from flexmigrate.errors import FlexmigrateError
from flexmigrate.migration.request import ConvergeChange, MirrorRequest
from flexmigrate.net.acl import AccessList
from flexmigrate.service.factories import Factories
from flexmigrate.service.host import Host
from flexmigrate.service.http_ports import Publishing
from flexmigrate.service.lifetime import Lifetime
from flexmigrate.service.migrating import MigratingExport
from flexmigrate.service.port import ListeningPort
from flexmigrate.service.reload import Reloading
from flexmigrate.telemetry.history import Summary
from flexmigrate.telemetry.status import Status
from flexmigrate.web.view import ServerView
from flexmigrate.wire.packing import ID_LENGTH

log = Logger()

Step = Callable[[], Any]


class Role(Protocol):
    """The role of a server: its use of its images.

    :ivar is_reachable: whether clients or a source are let in. Where nobody is, there is nothing to
        reload, and an operator's socket that can't be had is only logged.
    """

    is_reachable: bool

    @property
    def hosts(self) -> Sequence[Host]:
        """The images."""

    @property
    def ports(self) -> list[ListeningPort]:
        """The addresses at which it is reached."""

    def open(self) -> Deferred[Any]:
        """Open them. Fails with CannotListenError or FlexmigrateError."""

    def opened(self) -> None:
        """Begin what can only be done once everything is open, and the supervisor knows."""

    def describe(self) -> str:
        """Return what is being done, in a sentence for ``systemctl status``."""

    def view(self) -> ServerView:
        """Return what is seen of it over HTTP."""

    def status(self, export: str | None) -> Status:
        """Return what is told of it, and of one export; None for the default one."""

    def set_acl(self, acl: AccessList) -> None:
        """Change who may connect; clients that may no longer are closed at once."""

    def find(self, export: str | None) -> MigratingExport:
        """Return what can be sent away under this name.

        :raises CommandError: nothing, or a name is needed.
        """

    def mirror(self, request: MirrorRequest) -> Deferred[str]:
        """Start a migration."""

    def terminate(self, reason: str) -> Deferred[int]:
        """Let no migration start, end those that run, and fire with the exit status."""

    def closing(self) -> Sequence[Step]:
        """Return the steps that refuse new clients, let what is under way end, and close the
        clients: each is taken, whatever became of those before it.
        """

    def concluded(self) -> Deferred[None]:
        """Fire once nothing of a migration that has ended is left to do, like its report."""


class Shell(Service):
    """A server, and the operator that its socket commands: see the module.

    `become` has to be called before it is started.

    :param pool: the threads for its images, not yet started.
    :raises UsageError: the certificates can't be used, or a place describes no endpoint.
    :ivar roles: what it has done, and last what it does now.
    :ivar instance: tells this server from every other; said to destinations.
    """

    def __init__(
        self, reactor: Any, config: ServeConfig | ListenConfig, lifetime: Lifetime, pool: Any
    ) -> None:
        self.reactor = reactor
        self.config = config
        self.lifetime = lifetime
        self.pool = pool
        self.factories = Factories(reactor, config)
        self.instance = secrets.token_bytes(ID_LENGTH)
        self.roles: list[Role] = []
        self._control: ControlPort | None = None
        self._publishing = Publishing(reactor, config.metrics, config.web, self._view)
        self._reloading = Reloading(config, self.factories.certificates, self._use_acl)

    @property
    def role(self) -> Role:
        """The current role of the server."""
        return self.roles[-1]

    def become(self, role: Role) -> None:
        """Do *role* from now on. Those before it are closed with it, in the end."""
        self.roles.append(role)

    @property
    def ports(self) -> list[ListeningPort]:
        """The addresses at which the server is reached now."""
        return self.role.ports

    def find(self, export: str | None) -> MigratingExport:
        """Return what can be sent away under this name.

        :raises CommandError: nothing, or a name is needed.
        """
        return self.role.find(export)

    def _view(self) -> ServerView:
        return self.role.view()

    # The beginning

    def startService(self) -> None:
        """Open the operator's socket and all addresses; what fails ends the process with 1."""
        super().startService()  # type: ignore[no-untyped-call]  # Twisted's
        role = self.role
        self._tell_what_has_no_effect()
        self.pool.start()
        reload = self._reloading.when_told if role.is_reachable else None
        self.lifetime.heed_signals(self.terminate, reload)
        try:
            if self.config.sock is not None:
                self._control = listen_control(self.reactor, self.config.sock, self)
        except FlexmigrateError as error:
            if role.is_reachable:
                self.lifetime.end(1, str(error))
                return
            log.warn("{error}", error=error)
        publishing = self._publishing.open()
        if not role.is_reachable:
            publishing.addErrback(
                lambda failure: log.warn(
                    "cannot serve HTTP: {error}", error=failure.getErrorMessage()
                )
            )
        opened = gatherResults([publishing, role.open()], consumeErrors=True)
        opened.addCallbacks(lambda _: self._opened(), self._not_opened)

    def _tell_what_has_no_effect(self) -> None:
        """Log that an access list lets everybody in, where all addresses are UNIX sockets."""
        config = self.config
        if (config.acl or config.default_deny) and all(map(_is_unix, config.places)):
            log.warn(
                "the access list has no effect here: who may connect to a UNIX socket is decided by"
                " its file's mode and folder"
            )

    def _opened(self) -> None:
        role = self.role
        self.lifetime.ready(self._describe, serving=role.is_reachable)
        role.opened()

    def _describe(self) -> str:
        return self.role.describe()

    def _not_opened(self, failure: Failure) -> None:
        self.lifetime.end(1, f"can't listen: {root_cause(failure)}")

    # The end

    def terminate(self, reason: str) -> Deferred[int]:
        """Let no migration start, end those that run, and fire with the exit status."""
        return self.role.terminate(reason)

    def stopService(self) -> Deferred[None]:
        """Refuse, drain, close the clients, flush, let go of the images: in this order."""
        super().stopService()  # type: ignore[no-untyped-call]  # Twisted's
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        roles = tuple(self.roles)
        hosts = dict.fromkeys(host for role in roles for host in role.hosts)
        control = self._control
        steps: list[Step] = [
            lambda: succeed(None) if control is None else control.stopListening(),
            lambda: self._publishing.close(self.lifetime.status, self.lifetime.reason),
            *(step for role in roles for step in role.closing()),
            *(host.close for host in hosts),
            *(role.concluded for role in roles),
            lambda: succeed(None) if control is None else control.finish(),
            self._publishing.finish,
            self.pool.stop,
        ]
        for step in steps:
            try:
                await maybeDeferred(step)
            except Exception as error:  # noqa: BLE001  # the image is flushed, whatever else breaks
                self.lifetime.failed(f"ending: {error}")

    # What the operator's socket commands: control.server.Operator

    def status(self, export: str | None) -> Status:
        """Return what is told about this server, and about one export, now."""
        return self.role.status(export)

    def set_acl(self, entries: list[str]) -> None:
        """Replace the access list; connected clients that it doesn't allow are closed."""
        self._use_acl(AccessList(entries, self._reloading.default_deny))

    def _use_acl(self, acl: AccessList) -> None:
        self.role.set_acl(acl)

    def mirror(self, request: MirrorRequest) -> Deferred[str]:
        """Start a migration."""
        return self.role.mirror(request)

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


def _is_unix(place: Place) -> bool:
    return place.startswith("unix:") if isinstance(place, str) else place.is_unix


def root_cause(failure: Failure) -> str:
    """Return what went wrong, in the words of the one Deferred of several that failed."""
    first: Any = failure.value
    while isinstance(first, FirstError):
        first = first.subFailure.value
    return str(first)

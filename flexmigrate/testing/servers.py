"""Servers as they are, on a machine in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.logger import Logger

from flexmigrate.client import NBDClientProtocol, connect
from flexmigrate.config import ListenConfig, ServeConfig
from flexmigrate.image.file import Image
from flexmigrate.net.address import Address
from flexmigrate.service import build
from flexmigrate.service.lifetime import Lifetime, Reload
from flexmigrate.testing.machine import Machine
from flexmigrate.testing.threads import Threads

log = Logger()


class _Lifetime(Lifetime):
    """A lifetime whose signals come from the test."""

    terminate: Callable[[str], Deferred[int]]

    def heed_signals(
        self, terminate: Callable[[str], Deferred[int]], reload: Reload | None = None
    ) -> None:
        self.terminate = terminate


class Server:
    """A simulated ``serve`` or ``listen``, from its start to its exit status.

    :ivar service: the service, for what the operator's socket would ask of it.
    :ivar status: the exit status, once that is decided.
    :ivar is_over: whether it has let go of everything.
    :raises FlexmigrateError: as ``flexmigrate.service.build``.
    """

    def __init__(self, machine: Machine, config: ServeConfig | ListenConfig) -> None:
        self.machine = machine
        self.is_over = False
        self._lifetime = _Lifetime(machine)
        self.service: Any = build(
            machine,
            config,
            self._lifetime,
            Threads(machine.world, machine),
            machine.disk.open_image if machine.disk else Image.open,
        )
        machine.stopped.addCallback(lambda _: self._stop())
        self.service.startService()

    @property
    def status(self) -> int | None:
        """Return the exit status, once that is decided."""
        return self._lifetime.status

    def signal(self, name: str = "SIGTERM") -> None:
        """Do as if the process had been sent a signal."""
        self._lifetime.terminate(name).addCallback(
            lambda status: self._lifetime.end(status, name)
        ).addErrback(lambda failure: log.failure("ending failed", failure))

    def _stop(self) -> None:
        stopping: Deferred[None] = self.service.stopService()
        stopping.addCallbacks(
            lambda _: self._stopped(), lambda failure: log.failure("stopping failed", failure)
        )

    def _stopped(self) -> None:
        self.is_over = True
        self.machine.note(f"ends with status {self.status}")


def connect_to(machine: Machine, address: Address) -> Deferred[NBDClientProtocol]:
    """Connect from *machine* to the server at *address*."""
    endpoint: Any = TCP4ClientEndpoint
    return connect(endpoint(machine, address.host, address.port), clock=machine)

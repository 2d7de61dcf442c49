"""A machine of a world in memory: a reactor, as far as servers and clients need one."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable
from typing import Any

from twisted.internet import error
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import (
    IConnector,
    IDelayedCall,
    IListeningPort,
    IReactorFromThreads,
    IReactorTCP,
    IReactorTime,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from flexmigrate.testing.connection import FIRST_PORT, Connection
from flexmigrate.testing.disk import Died, Mount
from flexmigrate.testing.world import Lane, World


@implementer(IReactorTime, IReactorFromThreads, IReactorTCP)
class Machine:
    """A reactor of one machine: time, threads and TCP, all of it the world's.

    It is one process's: when that has died, the next one on the same host has a machine of its own.

    :ivar stopped: fires when ``stop`` was called.
    :ivar disk: what the process keeps images on; None: a disk of the kernel's.
    :ivar alive: whether the process is.
    """

    def __init__(self, world: World, name: str, host: str, disk: Mount | None = None) -> None:
        self.world = world
        self.name = name
        self.host = host
        self.stopped: Deferred[None] = Deferred()
        self.disk = disk
        self.alive = True
        self._from_threads = Lane(world, self)
        self._free_port = itertools.count(FIRST_PORT)

    def __str__(self) -> str:
        return self.name

    def note(self, what: str) -> None:
        """Add to the world's trace, as this machine."""
        self.world.note(self.name, what)

    def seconds(self) -> float:
        """As IReactorTime has it."""
        return self.world.clock.seconds()

    def callLater(
        self,
        delay: float,
        callable: Callable[..., object],  # noqa: A002  # as IReactorTime names it
        *args: object,
        **kwargs: object,
    ) -> IDelayedCall:
        """As IReactorTime has it."""
        call = self.world.clock.callLater
        delayed: IDelayedCall = call(delay, self._run, callable, args, kwargs)
        return delayed

    def _run(self, call: Callable[..., object], args: Any, kwargs: Any) -> None:
        if self.alive:
            call(*args, **kwargs)

    def getDelayedCalls(self) -> Any:  # noqa: N802  # as IReactorTime has it
        """As IReactorTime has it; those of other machines, too."""
        return self.world.clock.getDelayedCalls()

    def callFromThread(  # noqa: N802  # as IReactorFromThreads has it
        self,
        callable: Callable[..., object],  # noqa: A002  # as IReactorFromThreads names it
        *args: object,
        **kwargs: object,
    ) -> None:
        """As IReactorFromThreads has it."""
        self._from_threads.add(lambda: callable(*args, **kwargs))

    def callWhenRunning(self, call: Callable[..., object], *args: Any, **kw: Any) -> None:  # noqa: N802
        """As IReactorCore has it; it is always running."""
        call(*args, **kw)

    def stop(self) -> None:
        """As IReactorCore has it."""
        self._from_threads.add(lambda: self.stopped.callback(None))

    def die(self, *, silently: bool = False) -> None:
        """Let the process die, at once: it does nothing any more, and what it had open is closed.

        :param silently: the machine dies with it, and can't close its connections: the other ends
            learn nothing of that by themselves. Its ports don't answer any more.
        """
        self.alive = False
        self.note("dies silently" if silently else "dies")
        world = self.world
        if self.disk is not None:
            self.disk.die()
        for connection in world.connections:
            if (end := connection.end_of(self)) is not None:
                end.die(silently=silently)
        for lane in [lane for lane in world.lanes if lane.owner is self]:
            lane.close()
        world.ports = {at: port for at, port in world.ports.items() if port.machine is not self}
        if silently:
            world.unreachable.add(self.host)

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Port:
        """As IReactorTCP has it."""
        if not self.alive:
            raise Died
        address = (interface or self.host, port or next(self._free_port))
        number = self.world.listen_errors.get(address)
        if number is None and address in self.world.ports:
            number = errno.EADDRINUSE
        if number is not None:
            self.note(f"can't listen on port {address[1]}")
            raise CannotListenError(interface, port, OSError(number, os.strerror(number)))
        return Port(self, address, factory)

    def connectTCP(
        self,
        host: str,
        port: int,
        factory: Any,
        timeout: float = 30,
        bindAddress: Any = None,
    ) -> Connector:
        """As IReactorTCP has it."""
        return Connector(self, (host, port), factory, timeout)


@implementer(IListeningPort)
class Port:
    """A port that is open."""

    def __init__(self, machine: Machine, address: tuple[str, int], factory: Any) -> None:
        self.machine = machine
        self.factory = factory
        self._address = address
        machine.world.ports[address] = self
        machine.note(f"listens on port {address[1]}")
        factory.doStart()

    def startListening(self) -> None:
        """As IListeningPort has it; it has begun already."""

    def getHost(self) -> IPv4Address:
        """As IListeningPort has it."""
        return IPv4Address("TCP", *self._address)

    def stopListening(self) -> Deferred[None]:
        """As IListeningPort has it."""
        closed: Deferred[None] = Deferred()

        def close() -> None:
            if self.machine.world.ports.pop(self._address, None) is not None:
                self.machine.note(f"listens no longer on port {self._address[1]}")
                self.factory.doStop()
            closed.callback(None)

        self.machine.callFromThread(close)
        return closed


@implementer(IConnector)
class Connector:
    """A connection that is being made."""

    def __init__(
        self, machine: Machine, address: tuple[str, int], factory: Any, timeout: float
    ) -> None:
        self._machine = machine
        self._address = address
        self._factory = factory
        self._open = True
        self._timer = machine.callLater(timeout, self._fail, error.TimeoutError())
        factory.doStart()
        factory.startedConnecting(self)
        if address[0] not in machine.world.unreachable:
            machine.callFromThread(self._connect)

    def connect(self) -> None:
        """As IConnector has it; it has begun already."""

    def getDestination(self) -> IPv4Address:
        """As IConnector has it."""
        return IPv4Address("TCP", *self._address)

    def stopConnecting(self) -> None:  # as IConnector has it
        """Give up."""
        self._end()

    def disconnect(self) -> None:
        """As IConnector has it, while nothing stands yet."""
        self._end()

    def _end(self) -> bool:
        was_open, self._open = self._open, False
        if self._timer.active():
            self._timer.cancel()
        return was_open

    def _fail(self, reason: Exception) -> None:
        if self._end():
            self._factory.clientConnectionFailed(self, Failure(reason))
            self._factory.doStop()

    def _connect(self) -> None:
        port = self._machine.world.ports.get(self._address)
        if port is None:
            self._fail(error.ConnectionRefusedError())
        elif self._end():
            Connection(self._machine, port, self._factory)

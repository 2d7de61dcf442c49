"""Connections of a world in memory: each byte arrives when the world comes to it, or never."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IConsumer, IDelayedCall, IPushProducer, ITransport
from twisted.python.failure import Failure
from zope.interface import implementer

from flexmigrate.testing.world import Lane

if TYPE_CHECKING:
    from flexmigrate.testing.machine import Machine, Port

FIRST_PORT = 49152
"""The first of the ports that are given to who asks for any (RFC 6335, section 6)."""

TURN_SECONDS = 0.01
"""For so long at most, a slow wire is taken by what arrives in one piece."""


class Connection:
    """A connection that stands, or stood.

    :ivar client: the end of who made it.
    :ivar server: the end of who listened.
    """

    def __init__(self, machine: Machine, port: Port, factory: Any) -> None:
        world = machine.world
        ours = IPv4Address("TCP", machine.host, FIRST_PORT + len(world.connections))
        theirs = port.getHost()
        self.client = End(self, machine, ours, theirs)
        self.server = End(self, port.machine, theirs, ours)
        world.connections.append(self)
        world.connected(self)
        # The server accepts later: until then, what the client sends waits.
        self.server.wire.blocked = True
        port.machine.callFromThread(lambda: self._accept(port))
        self.client.make(factory.buildProtocol(theirs))

    def _accept(self, port: Port) -> None:
        if self.server.is_lost:
            return
        self.server.wire.blocked = False
        if port.machine.world.ports.get((port.getHost().host, port.getHost().port)) is not port:
            self.server.abortConnection()
            return
        protocol = port.factory.buildProtocol(self.client.getHost())
        if protocol is None:
            self.server.loseConnection()
        else:
            self.server.make(protocol)

    @property
    def is_over(self) -> bool:
        """Whether both ends know that it has ended."""
        return not self.client.connected and not self.server.connected

    def end_of(self, machine: Machine) -> End | None:
        """Return the end that *machine* has of it, or None."""
        for end in (self.client, self.server):
            if end.machine is machine:
                return end
        return None

    def cut(self, *but_to: End) -> None:
        """End it as a network does: what is under way is lost, but for what is on its way to one of
        *but_to*, and both ends are told, in any order.
        """
        for end in (self.client, self.server):
            if end in but_to:
                end.wire.end(ConnectionLost())
            else:
                end.wire.clear()
                end.lose(ConnectionLost())

    def freeze(self) -> None:
        """Let nothing arrive any more, and tell nobody."""
        for end in (self.client, self.server):
            end.wire.frozen = True


class Wire(Lane):
    """The bytes on their way to one end of a connection.

    :ivar arrived: bytes that have come there.
    :ivar cut_at: the connection is cut once so many bytes have arrived; None: it isn't.
    :ivar bandwidth: bytes a second; None: as many as are sent.
    :ivar frozen: nothing arrives any more.
    :ivar has_ended: the other side's end stands behind what hasn't arrived.
    :ivar watch: called with what is about to arrive, piece by piece.
    """

    def __init__(self, end: End) -> None:
        super().__init__(end.machine.world, end.machine)
        self._end = end
        self._crossing: IDelayedCall | None = None
        self.pending = 0
        self.arrived = 0
        self.cut_at: int | None = None
        self.bandwidth: float | None = None
        self.frozen = False
        self.has_ended = False
        self.watch: Callable[[bytes], object] = lambda data: None

    @property
    def ready(self) -> bool:
        return super().ready and self._crossing is None and not self.frozen

    def send(self, data: bytes) -> None:
        """Put *data* on its way."""
        self.pending += len(data)
        self.add(data)

    def end(self, outcome: Exception) -> None:
        """Let the other side's end follow what is on its way."""
        self.has_ended = True
        self.add(lambda: self._end.lose(outcome))

    def step(self) -> None:
        """Let bytes arrive: all that are under way, as a busy receiver finds them, or with a seed
        any number of them.
        """
        number, what = self._waiting.popleft()
        if not isinstance(what, bytes):
            what()
            return
        while self._waiting and isinstance(self._waiting[0][1], bytes):
            what += self._waiting.popleft()[1]
        length = self._draw_length(len(what))
        if length < len(what):
            self._waiting.appendleft((number, what[length:]))
        if self.bandwidth is None:
            self._arrive(what[:length])
        else:
            self._crossing = self.world.clock.callLater(
                length / self.bandwidth, self._cross, what[:length]
            )

    def _draw_length(self, length: int) -> int:
        draw = self.world.random
        if draw is not None and draw.randrange(2):
            length = draw.randint(1, length)
        if self.cut_at is not None:
            length = min(length, self.cut_at - self.arrived)
        if self.bandwidth is not None:
            length = min(length, max(1, int(self.bandwidth * TURN_SECONDS)))
        return length

    def _cross(self, data: bytes) -> None:
        self._crossing = None
        if not self.frozen:
            self._arrive(data)

    def _arrive(self, data: bytes) -> None:
        self.pending -= len(data)
        self.arrived += len(data)
        if data:
            self.watch(data)
            self._end.protocol.dataReceived(data)
        if self.arrived == self.cut_at:
            self._end.connection.cut()
        elif not self.pending:
            self._end.peer.drained()

    def clear(self) -> None:
        super().clear()
        self.pending = 0
        if self._crossing is not None:
            self._crossing.cancel()
            self._crossing = None


@implementer(ITransport, IConsumer, IPushProducer)
class End:
    """One end of a connection: the transport of a protocol.

    :ivar wire: what is on its way to here.
    :ivar is_lost: the connection has ended.
    :ivar connected: the protocol was not told so yet.
    """

    protocol: Any = None
    disconnecting = False

    def __init__(
        self, connection: Connection, machine: Machine, host: IPv4Address, peer: IPv4Address
    ) -> None:
        self.connection = connection
        self.machine = machine
        self.wire = Wire(self)
        self.connected = True
        self._news = Lane(machine.world, machine)
        self._host = host
        self._peer = peer
        self._producer: Any = None
        self._paused = False
        self.is_lost = False

    @property
    def peer(self) -> End:
        """The other end."""
        connection = self.connection
        return connection.server if self is connection.client else connection.client

    @property
    def peer_has_ended(self) -> bool:
        """Whether the other side has closed the connection, as this one's kernel knows, though what
        was sent before may not have been read: see ``net.hang_ups``.
        """
        return self.wire.has_ended and not self.wire.frozen

    def make(self, protocol: Any) -> None:
        """Begin, with *protocol*."""
        self.protocol = protocol
        protocol.makeConnection(self)

    def getHost(self) -> IPv4Address:
        """As ITransport has it."""
        return self._host

    def getPeer(self) -> IPv4Address:  # as ITransport has it
        """As ITransport has it."""
        return self._peer

    # Sending

    def write(self, data: bytes) -> None:
        """As ITransport has it."""
        if self.is_lost or not data:
            return
        wire = self.peer.wire
        wire.send(bytes(data))
        if (
            self._producer is not None
            and not self._paused
            and wire.pending > self.machine.world.window
        ):
            self._paused = True
            self._producer.pauseProducing()

    def writeSequence(self, data: Any) -> None:
        """As ITransport has it."""
        self.write(b"".join(data))

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """As IConsumer has it, for push producers."""
        if not streaming:
            raise ValueError("only push producers are known here")
        self._producer = producer
        if self.is_lost:
            producer.stopProducing()

    def unregisterProducer(self) -> None:  # as IConsumer has it
        """As IConsumer has it."""
        self._producer = None
        self.drained()

    def drained(self) -> None:
        """All that was written has arrived."""
        if self._paused and self._producer is not None:
            self._paused = False
            self._producer.resumeProducing()
        if self.disconnecting and not self.is_lost and not self.peer.wire.pending:
            self._close()

    # Receiving

    def pauseProducing(self) -> None:
        """As IPushProducer has it."""
        self.wire.blocked = True

    def resumeProducing(self) -> None:
        """As IPushProducer has it."""
        self.wire.blocked = False

    def stopProducing(self) -> None:
        """As IPushProducer has it."""
        self.loseConnection()

    # The end

    def die(self, *, silently: bool) -> None:
        """The process is gone.

        What it had written still arrives. Then its kernel closes the connection, which is a reset
        if something had come that it never read; unless the machine is gone, too, and *silently*.
        """
        had_unread = self.wire.pending > 0
        was_lost, self.is_lost = self.is_lost, True
        self.connected = False
        self.wire.clear()
        if silently or was_lost:
            return
        outcome = ConnectionLost() if had_unread else ConnectionDone()
        self.peer.wire.end(outcome)

    def loseConnection(self) -> None:
        """As ITransport has it: the connection is closed once all that was written has arrived."""
        if not self.is_lost and not self.disconnecting:
            self.disconnecting = True
            self.drained()

    def abortConnection(self) -> None:
        """As ITCPTransport has it: what was written and has not arrived is lost."""
        if not self.is_lost:
            self.peer.wire.clear()
            self.peer.wire.end(ConnectionLost())
            self.lose(ConnectionAborted())

    def _close(self) -> None:
        # What has come and was not read makes a reset of the close (RFC 1122, 4.2.2.13).
        outcome = ConnectionLost() if self.wire.pending else ConnectionDone()
        self.peer.wire.end(outcome)
        self.lose(ConnectionDone())

    def lose(self, reason: Exception) -> None:
        """The connection is gone, and the protocol is told so, later than whoever caused it."""
        if self.is_lost:
            return
        self.is_lost = True
        self.wire.clear()
        self._news.add(lambda: self._tell(reason))

    def _tell(self, reason: Exception) -> None:
        self.connected = False
        for lane in (self.wire, self._news):
            lane.close()
        self.machine.note(f"is told of a connection's end: {type(reason).__name__}")
        if self._producer is not None:
            self._producer.stopProducing()
        if self.protocol is not None:
            self.protocol.connectionLost(Failure(reason))

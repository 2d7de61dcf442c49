"""For tests, of flexmigrate and of programs that embed it: servers and clients as they are, in a
world where sockets, threads and time are the test's.

A whole migration takes milliseconds here, and can be cut at any byte::

    world = World()
    source = Server(Machine(world, "source", "192.0.2.1"), ServeConfig(…))
    destination = Server(Machine(world, "destination", "192.0.2.2"), ListenConfig(…))
    world.connected = lambda connection: setattr(connection.server.wire, "cut_at", 1000)
    world.result_of(source.service.mirror(MirrorRequest(…)))
    world.run_until(lambda: destination.is_over)

Nothing happens but by the world's methods; see :mod:`flexmigrate.testing.world`.

``BlockDeviceTests`` checks storage of one's own: see :mod:`flexmigrate.testing.conformance`.
"""

from flexmigrate.testing.conformance import BlockDeviceTests
from flexmigrate.testing.connection import Connection, End, Wire
from flexmigrate.testing.machine import Connector, Machine, Port
from flexmigrate.testing.servers import Server, connect_to
from flexmigrate.testing.threads import InlineClock, InlineThreads, Threads
from flexmigrate.testing.world import Lane, Stuck, World
from flexmigrate.testing.writer import Writer

__all__ = [
    "BlockDeviceTests",
    "Connection",
    "Connector",
    "End",
    "InlineClock",
    "InlineThreads",
    "Lane",
    "Machine",
    "Port",
    "Server",
    "Stuck",
    "Threads",
    "Wire",
    "World",
    "Writer",
    "connect_to",
]

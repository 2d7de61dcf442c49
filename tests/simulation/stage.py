"""The stage on which a schedule is played: two machines with their disks, a client that writes, an
operator who asks for the migration, and supervisors that start what has ended.

All protocol code is the real one, from the services down; only sockets, threads, time and disks
are simulated (:mod:`flexmigrate.testing`).
"""

from __future__ import annotations

import random
from typing import Any

from twisted.internet.error import ConnectionLost

from flexmigrate.config import ExportConfig, ListenConfig, ServeConfig
from flexmigrate.control.grammar import Action, HandoverRule, MirrorRequest
from flexmigrate.errors import CommandError, FlexmigrateError
from flexmigrate.net.address import Address
from flexmigrate.testing import Connection, Machine, Server, World, Writer
from flexmigrate.testing.disk import Died, Mount, SimulatedDisk
from simulation.schedules import Fault, Schedule

# In a folder that is quick to look for: its program does so often.
IMAGE = "/image"
JOURNAL = IMAGE + ".handover"
MARKER = IMAGE + ".INCOMPLETE"
SERVING_PORT = 10809
INTAKE_PORT = 10810
SECTOR = 512
BLOCK = 4096

SIZE = 2 * BLOCK
"""A block of data and a hole: with each more, a schedule takes longer and shows no more."""

MOST_MOMENTS = 6000
"""More than any schedule needs: one that goes round in circles is told of."""

MANY_WRITES = 40
"""A client that is busy makes so many quickly, from the beginning and after each fault."""

MOST_STARTS = 40
"""Of one side: so often a supervisor starts it again that ends with an error each time."""

STARTS_ALONE = 2
"""The same, where the other side never comes back."""

# Calls of a disk after which something is there that wasn't, or may be lost that was written.
_COUNTED = frozenset(("write", "fsync", "fsync folder", "replace", "unlink", "fdatasync"))

# Between two of them nothing else may happen.
_FROM_PARKED = ("parked", "settling", "committing", "given")

_CHANGING = frozenset(("pwrite", "fallocate"))

_CONTENT = random.Random(3).randbytes(BLOCK) + bytes(SIZE - BLOCK)
_GARBAGE = random.Random(7).randbytes(SIZE)


class Violation(AssertionError):
    """Something has happened that must never."""


class Side:
    """A machine, and its one process, if there is one.

    :ivar role: what its supervisor starts: ``serve`` or ``listen``.
    :ivar statuses: with which status its processes have ended.
    :ivar refusal: why its process didn't start, when that was last tried.
    :ivar down_for_good: nobody starts anything there any more.
    """

    def __init__(self, stage: Stage, name: str, host: str, role: str, content: bytes) -> None:
        self.stage = stage
        self.name = name
        self.host = host
        self.role = role
        self.disk = SimulatedDisk()
        self.disk.put(IMAGE, content)
        self.disk.before = self._before
        self.machine: Machine | None = None
        self.server: Server | None = None
        self.statuses: list[int | None] = []
        self.refusal: str | None = None
        self.down_for_good = False
        self.errors = 0

    def __str__(self) -> str:
        return self.name

    def _before(self, mount: Mount, call: str, path: str) -> None:
        if call in _CHANGING:
            self.stage.has_changed = True
            self.stage.changes(self)
        if call not in _COUNTED:
            return
        self.stage.has_changed = True
        self.stage.world.moment()
        if self.errors:
            self.errors -= 1
            raise OSError(5, "Input/output error", path)

    @property
    def lives(self) -> bool:
        """Whether its process does."""
        return self.machine is not None and self.machine.alive

    def start(self, role: str | None = None) -> None:
        """Start its process."""
        self.role = role or self.role
        world = self.stage.world
        world.unreachable.discard(self.host)
        machine = Machine(world, self.name, self.host, self.disk.mount())
        self.machine, self.server = machine, None
        try:
            self.server = Server(machine, self.config())
            self.refusal = None
        except Died:
            pass  # killed while it began
        except FlexmigrateError as error:
            self.refusal = str(error)
            self.ended(1)

    def config(self) -> Any:
        """Return what its process is told."""
        serving = Address.tcp(self.host, SERVING_PORT)
        if self.role == "serve":
            return ServeConfig(places=(serving,), exports=(ExportConfig("", IMAGE),))
        rebind = serving if "rebind" in self.stage.schedule.options else None
        return ListenConfig(
            places=(Address.tcp(self.host, INTAKE_PORT),), file=IMAGE, rebind=rebind
        )

    def ended(self, status: int | None) -> None:
        """Its process has ended by itself."""
        assert self.machine is not None
        self.machine.die()
        self.statuses.append(status)
        self.stage.ended(self, status)

    def kill(self, *, host: bool) -> None:
        """Let its process die, or its whole machine."""
        if self.lives:
            assert self.machine is not None
            self.machine.die(silently=host)

    def look(self) -> None:
        """See whether its process has ended."""
        if self.server is not None and self.server.is_over and self.lives:
            self.ended(self.server.status)


class Stage:
    """See the module.

    :ivar migrations: the connections that were made to the destination.
    :ivar served_by: who acknowledged writes, in their order.
    :ivar plain: whether the handover is the plain one.
    :ivar brief: whether it is enough to see that the source serves on, once all faults have come.
    :ivar has_lived_through: whether no process of the destination was ever killed.
    :ivar has_changed: whether a disk was changed, or a client was promised something.
    :ivar starting: how many processes are about to be started.
    :ivar acknowledged_before: how many writes had been acknowledged when something last went wrong.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.draw = random.Random(schedule.seed)
        self.world = World(schedule.seed if schedule.shuffled else None)
        self.source = Side(self, "source", "192.0.2.1", "serve", _CONTENT)
        self.destination = Side(self, "destination", "192.0.2.2", "listen", _GARBAGE)
        self.sides = {"source": self.source, "destination": self.destination}
        if schedule.shuffled:
            for side in self.sides.values():
                side.disk.may_wait = lambda call: self.draw.random() < 0.25
        self.served_by: list[str] = []
        self.migrations: list[Connection] = []
        self.plain = "plain" in schedule.options
        self.brief = "brief" in schedule.options
        self.has_lived_through = True
        self.starting = 0
        self.acknowledged_before = 0
        self._waiting = list(schedule.faults)
        self.has_changed = False
        self._accusation: str | None = None
        self._hurried = MANY_WRITES
        self._events: set[str] = set()
        self.world.connected = self._connected
        self.world.every(1, self.look)
        self.source.start()
        self.destination.start()
        client = Machine(self.world, "client", "192.0.2.3")
        self.writer = Writer(
            client,
            [Address.tcp(side.host, SERVING_PORT) for side in self.sides.values()],
            _CONTENT,
            seed=schedule.seed,
            beat=2.0,
            reconnect=3.0,
            flushes=True,
            told=self._acknowledged,
        )
        if "busy" in schedule.options:
            self.world.every(5, self._write)
        self.writer.start()
        self.world.run_until(lambda: self.writer.acknowledged)
        self._happens("asked")
        self._operate()

    def _write(self) -> None:
        """Write more, for a while: time would stand still if there was always something to do."""
        if self._hurried:
            self._hurried -= 1
            self.writer.write()

    def _connected(self, connection: Connection) -> None:
        if connection.server.getHost().port == INTAKE_PORT:
            self.migrations.append(connection)

    def _acknowledged(self, server: str) -> None:
        self.has_changed = True
        if not self.served_by or self.served_by[-1] != server:
            self.served_by.append(server)
            if len(self.served_by) > 2 or self.served_by[0] != "source":
                self.accuse(f"clients were served by {', then '.join(self.served_by)}")

    # The operator and the supervisors

    def _operate(self) -> None:
        self.ask()
        self.world.clock.callLater(2.0, self._operate)

    def ask(self) -> None:
        """Ask the source to migrate, if it serves and doesn't do so already."""
        migrating = self.migrating
        if migrating is None or migrating.is_mirroring or migrating.given_away:
            return
        request = MirrorRequest(
            Address.tcp(self.destination.host, INTAKE_PORT),
            self.action,
            handover=HandoverRule.PLAIN if self.plain else HandoverRule.AUTO,
        )
        asking = self.source.server.service.mirror(request)  # type: ignore[union-attr]
        asking.addErrback(lambda failure: failure.trap(CommandError))

    @property
    def action(self) -> Action:
        """What is to become of the source."""
        return Action.UNLINK if "unlink" in self.schedule.options else Action.EXIT

    @property
    def migrating(self) -> Any:
        """The source's export that can be sent away; None where no source runs."""
        source = self.source
        if not source.lives or source.server is None or source.server.status is not None:
            return None
        serving = getattr(source.server.service, "serving", None)
        return None if serving is None else serving.find(None)

    @property
    def source_serves(self) -> bool:
        """Whether the source does, to those who connect."""
        migrating = self.migrating
        return migrating is not None and not migrating.given_away

    @property
    def moved(self) -> bool:
        """Whether the image is where it was to go, and its clients too."""
        return bool(self.served_by) and self.served_by[-1] == "destination"

    def ended(self, side: Side, status: int | None) -> None:
        """A process has ended; its supervisor knows what that means."""
        if status == 0:
            if side is self.destination and side.role == "listen":
                self._start(side, 0.1, "serve")
            else:
                side.down_for_good = True
        elif side.down_for_good:
            pass
        elif side.refusal is not None and side.role == "listen" and self.is_owner:
            # So its human has been told: there is nothing to receive any more.
            self._start(side, 1.0, "serve")
        elif side.refusal is not None and side.role == "serve":
            side.down_for_good = True  # and a human has been told why
        elif len(side.statuses) < (MOST_STARTS if self._may_both_be_back else STARTS_ALONE):
            self._start(side, 5.0)
        else:
            side.down_for_good = True

    def _start(self, side: Side, seconds: float, role: str | None = None) -> None:
        self.starting += 1

        def start() -> None:
            self.starting -= 1
            if not side.lives and not side.down_for_good:
                side.start(role)

        self.world.clock.callLater(seconds, start)

    @property
    def _may_both_be_back(self) -> bool:
        return not (self.source.down_for_good or self.destination.down_for_good)

    def changes(self, side: Side) -> None:
        """A process is about to change the image of *side*."""

    @property
    def is_owner(self) -> bool:
        """Whether the image is the destination's own."""
        raise NotImplementedError

    def canonical(self) -> str:
        """Return whose copy is canonical."""
        raise NotImplementedError

    # What befalls it

    def accuse(self, text: str) -> None:
        """Something happens that must not, under code that would take an exception for its own."""
        self._accusation = self._accusation or text

    def hear(self) -> None:
        """Raise what was accused, if anything was.

        :raises Violation: it was.
        """
        if self._accusation is not None:
            raise Violation(self._accusation)

    @property
    def has_begun(self) -> bool:
        """Whether the migration was asked for."""
        return "asked" in self._events

    def look(self) -> None:
        """See what has come of what has just happened.

        :raises Violation: what must not.
        """
        self.hear()
        self.source.look()
        self.destination.look()
        if "parked" not in self._events:
            migrating = self.migrating
            migration = None if migrating is None else migrating.migration
            if migration is not None and migration.phase in _FROM_PARKED:
                self._happens("parked")
        if self.world.moments > MOST_MOMENTS:
            raise Violation(f"no end after {MOST_MOMENTS} things have happened")

    def _happens(self, event: str) -> None:
        """Let the faults that are counted from *event* come, each in its time."""
        if event in self._events:
            return
        self._events.add(event)
        now = self.world.moments + 1
        for fault in [each for each in self._waiting if each.since == event]:
            self._waiting.remove(fault)
            moment = now + fault.after
            while moment in self.world.upon:
                moment += 1
            self.world.upon[moment] = lambda fault=fault: self._befall(fault)  # type: ignore[misc]

    def _befall(self, fault: Fault) -> None:
        self.world.note("fate", str(fault))
        self.acknowledged_before = self.writer.acknowledged
        self._hurried = MANY_WRITES
        getattr(self, f"_befall_{fault.kind}")(fault)
        self._happens("again")

    def _befall_process(self, fault: Fault) -> None:
        self._kill(fault, host=False)

    def _befall_host(self, fault: Fault) -> None:
        self._kill(fault, host=True)

    def _kill(self, fault: Fault, *, host: bool) -> None:
        side = self.sides[fault.where]
        if side is self.destination:
            self.has_lived_through = False
            if self.plain and self.is_owner:
                # Without a journal, its human has to know that there is nothing to receive.
                side.role = "serve"
        side.kill(host=host)
        if host:
            side.disk.fail(fault.fate, self.draw)
            if self.canonical() == side.name:
                self.writer.lose_unflushed()
            self._lose_later(side)
        if fault.back is None:
            side.down_for_good = True
        elif not side.down_for_good:
            self._start(side, fault.back)

    def _lose_later(self, side: Side) -> None:
        """Let whoever is connected to a machine that has failed notice it, in a while."""
        for connection in self.world.connections:
            for end in (connection.client, connection.server):
                if end.peer.machine is side.machine and not end.is_lost:
                    delay = self.draw.choice((0.0, 2.0, 40.0))
                    self.world.clock.callLater(delay, end.lose, ConnectionLost())

    def _befall_cut(self, fault: Fault) -> None:
        for connection in self.migrations:
            if not connection.is_over:
                spared = {
                    "nothing": (),
                    "to-source": (connection.client,),
                    "to-destination": (connection.server,),
                }[fault.where]
                connection.cut(*spared)

    def _befall_stall(self, fault: Fault) -> None:
        for connection in self.migrations:
            end = connection.client if fault.where == "source" else connection.server
            if not end.is_lost:
                end.wire.frozen = True
                self.world.clock.callLater(fault.back or 0.0, setattr, end.wire, "frozen", False)

    def _befall_part(self, fault: Fault) -> None:
        host = self.sides[fault.where].host
        self.world.unreachable.add(host)
        parted = [connection for connection in self.migrations if not connection.is_over]
        for connection in parted:
            connection.freeze()

        def heal() -> None:
            if self.sides[fault.where].lives:
                self.world.unreachable.discard(host)
            for connection in parted:
                connection.cut()

        self.world.clock.callLater(fault.back or 0.0, heal)

    def _befall_error(self, fault: Fault) -> None:
        if self.plain and fault.where == "source":
            return  # it would go on without a journal, and then nothing is promised
        self.sides[fault.where].errors += 1

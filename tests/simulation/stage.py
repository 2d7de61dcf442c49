"""The stage on which a schedule is played: two machines with their disks, a client that writes, an
operator who asks for the migration, and supervisors that start what has ended.

All protocol code is the real one, from the services down; only sockets, threads, time and disks
are simulated (:mod:`flexmigrate.testing`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from twisted.internet.error import ConnectionLost

from flexmigrate.client import NBDClientProtocol
from flexmigrate.errors import CommandError, FlexmigrateError
from flexmigrate.image.filesystems import Filesystem
from flexmigrate.image.probe import Probed
from flexmigrate.migration.request import Action, HandoverRule, MirrorRequest
from flexmigrate.net.address import Address
from flexmigrate.service.serving import Serving
from flexmigrate.telemetry.states import DestinationState
from flexmigrate.testing import Connection, Machine, World, Writer
from flexmigrate.testing.disk import SimulatedDisk
from flexmigrate.testing.servers import connect_to
from flexmigrate.testing.writer import SECTOR, Promises
from flexmigrate.wire.handover import SESSION_OPTION, State
from simulation.remains import BLOCK, IMAGE, Left, Remains
from simulation.schedules import Fault, Schedule
from simulation.sides import INTAKE_PORT, SERVING_PORT, Side, Violation
from simulation.strangers import HastySender, Speaker

SIZE = 2 * BLOCK
"""A block of data and a hole: with each more, a schedule takes longer and shows no more."""

SETTLED_SECONDS = 40.0
"""So long after somebody has meddled with a file's name or size, whatever comes of it has come."""

RETURNING_WRITES = 6
"""A client that leaves and returns has so many requests under way."""

OVERHEARD = 4096
"""In so many bytes of a connection all that is said of its session has come."""

PARKED_SECONDS = 11.0
"""Clients are never parked for longer before the handover has begun: --max-park, and a second."""

MOST_MOMENTS = 6000
"""More than any schedule needs: one that goes round in circles is told of."""

MANY_WRITES = 16
"""A client that is busy makes so many quickly, from the beginning and after each fault."""

LET_GO_SECONDS = 1.0
"""So long after the destination has confirmed that the image is its own, no client waits at the
source any more."""

OPERATOR_SECONDS = 2.0
"""Between two looks of the operator whether the migration is to be asked for again."""

MOST_STARTS = 40
"""Of one side: so often a supervisor starts it again that ends with an error each time."""

STARTS_ALONE = 2
"""The same, where the other side never comes back."""

# Between two of them nothing else may happen.
_FROM_PARKED = ("parked", "settling", "committing", "given")

_BEFORE_SETTLING = ("dialling", "copying", "converging", "parked", "waiting")
"""Phases of a source in which it has not asked the destination to prepare."""

OTHER = "/other"
"""Where an image is that somebody has renamed."""

FUSE_MAGIC = 0x65735546
"""Of a filesystem that is not believed when it tells of holes: statfs(2)."""

_OPENING = b"IHAVEOPT" + SESSION_OPTION.to_bytes(4, "big")

_CONTENT = random.Random(3).randbytes(BLOCK) + bytes(SIZE - BLOCK)
GARBAGE = random.Random(7).randbytes(SIZE)


def _beginning(options: frozenset[str]) -> Remains:
    """Return what there is before anything has happened."""
    sides = {}
    for name, role, content in (("source", "serve", _CONTENT), ("destination", "listen", GARBAGE)):
        disk = SimulatedDisk()
        if "hidden" in options:
            disk.filesystem, disk.hides_dirty = Filesystem("fuse", FUSE_MAGIC), True
        if "misled" in options:
            disk.probed, disk.hides_dirty = Probed(knows_dirty=False, zeroes=True), True
        disk.forgets = "forgets" in options
        disk.put(IMAGE, content)
        sides[name] = Left(disk, role, is_over=False)
    return Remains(sides, Promises.of(_CONTENT), ())


class Stage:
    """See the module.

    :ivar migrations: the connections that were made to the destination.
    :ivar served_by: who acknowledged writes, in their order.
    :ivar plain: whether the handover is the plain one.
    :ivar brief: whether it is enough to see that the source serves on, once all faults have come.
    :ivar has_lived_through: whether no process of the destination was ever killed.
    :ivar has_changed: whether a disk was changed, or a client was promised something.
    :ivar starting: how many processes are about to be started.
    :ivar strangers: ids of the sessions that are not the migration's.
    :ivar meddled: names of the sides where somebody else has renamed, replaced, removed or cut the
        image; and when that was.
    :ivar acknowledged_before: how many writes had been acknowledged when something last went wrong.
    :param remains: what is left, if everything has died at the last of the schedule's endings.
    """

    def __init__(self, schedule: Schedule, remains: Remains | None = None) -> None:
        self.schedule = schedule
        self.draw = random.Random(schedule.seed)
        is_shuffled = schedule.shuffled and remains is None
        self.world = World(schedule.seed if is_shuffled else None)
        found = remains or _beginning(schedule.options)
        self.source = Side(self, "source", "192.0.2.1", found.sides["source"])
        self.destination = Side(self, "destination", "192.0.2.2", found.sides["destination"])
        self.sides = {"source": self.source, "destination": self.destination}
        if is_shuffled:
            for side in self.sides.values():
                side.disk.may_wait = lambda call: self.draw.random() < 0.25
        self.served_by = list(found.served_by)
        self.migrations: list[Connection] = []
        self.plain = "plain" in schedule.options
        self.brief = "brief" in schedule.options
        self.has_lived_through = remains is None
        self.starting = 0
        self.strangers: set[bytes] = set()
        self.meddled: dict[str, float] = {}
        self._overheard: list[bytes] = []
        self._confirmed_at: float | None = None
        self._parked_at: float | None = None
        self.acknowledged_before = 0
        self._waiting = list(schedule.faults) if remains is None else []
        self.has_changed = False
        self._accusation: str | None = None
        self._hurried = MANY_WRITES
        self._events: set[str] = set()
        self.world.connected = self._connected
        self.world.every(1, self.look)
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
            promised=found.promises,
        )
        if remains is None:
            self._begin()
        else:
            self._come_back(schedule.endings[-1].back)
        self._happens("asked")
        if "late" in schedule.options:
            self.world.clock.callLater(OPERATOR_SECONDS, self._operate)
        else:
            self._operate()

    def _begin(self) -> None:
        self.source.start()
        self.destination.start()
        if "busy" in self.schedule.options:
            self.world.every(5, self._write)
        self.writer.start()
        self.world.run_until(lambda: self.writer.acknowledged)

    def _come_back(self, back: tuple[float | None, float | None]) -> None:
        """Start again what comes back, each in its time."""
        for side, seconds in zip(self.sides.values(), back, strict=True):
            if seconds is None:
                side.down_for_good = True
            elif not side.down_for_good:
                self._start(side, seconds)
        self.writer.start()

    def remains(self, fates: Sequence[str]) -> Remains:
        """Return what would be left if everything died now, each side as *fates* say."""
        left: dict[str, Left] = {}
        promises = self.writer.promised
        canonical = self.canonical_after(fates)
        for fate, side in zip(fates, self.sides.values(), strict=True):
            disk = side.disk.copy()
            if fate == "machine":
                disk.fail("nothing", self.draw)
                if side.name == canonical or side is self.source:
                    promises.lose_unflushed(side.name, had_image=side.name == canonical)
            left[side.name] = Left(disk, side.role, side.is_over)
        return Remains(left, promises, tuple(self.served_by))

    def _write(self) -> None:
        """Write more, for a while: time would stand still if there was always something to do."""
        if self._hurried:
            self._hurried -= 1
            self.writer.write()

    def _connected(self, connection: Connection) -> None:
        if connection.server.getHost().port != INTAKE_PORT:
            return
        self.migrations.append(connection)
        if connection.client.machine.name == "source":
            self._overhear(connection)

    def _overhear(self, connection: Connection) -> None:
        """Keep what the source says of its session."""
        heard = b""

        def arriving(data: bytes) -> None:
            nonlocal heard
            if len(heard) > OVERHEARD:
                return
            heard += data
            at = heard.find(_OPENING)
            while at >= 0:
                length = int.from_bytes(heard[at + 12 : at + 16], "big")
                opening = heard[at + 16 : at + 16 + length]
                if len(opening) == length and opening not in self._overheard:
                    self._overheard.append(opening)
                at = heard.find(_OPENING, at + 1)

        connection.server.wire.watch = arriving

    def _acknowledged(self, server: str) -> None:
        self.has_changed = True
        if not self.served_by or self.served_by[-1] != server:
            self.served_by.append(server)
            if len(self.served_by) > 2 or self.served_by[0] != "source":
                self.accuse(f"clients were served by {', then '.join(self.served_by)}")

    # The operator and the supervisors

    def _operate(self) -> None:
        self.ask()
        self.world.clock.callLater(OPERATOR_SECONDS, self._operate)

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
        role = source.server.service.role
        return role.find(None) if isinstance(role, Serving) else None

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
                side.is_over = side.down_for_good = True
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
        side.role = role or side.role

        def start() -> None:
            self.starting -= 1
            if not side.lives and not side.down_for_good:
                side.start()

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

    def canonical_after(self, fates: Sequence[str]) -> str:
        """Return whose copy would be canonical if everything died, each side as *fates* say."""
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
        self._see_who_waits()
        if self.world.moments > MOST_MOMENTS:
            raise Violation(f"no end after {MOST_MOMENTS} things have happened")

    def _see_who_waits(self) -> None:
        """See that clients are let go at once where the image is the destination's.

        :raises Violation: one waits at the source still.
        """
        migrating = self.migrating
        migration = None if migrating is None else migrating.migration
        self._see_how_long_they_are_parked(migration)
        if migration is None or migration.phase != "given" or not self._waits_at_source():
            self._confirmed_at = None
            return
        now = self.world.clock.seconds()
        if self._confirmed_at is None:
            self._confirmed_at = now
        elif now - self._confirmed_at > LET_GO_SECONDS:
            raise Violation("a client waits at the source, though the destination has confirmed")

    def _see_how_long_they_are_parked(self, migration: Any) -> None:
        if migration is None or migration.phase not in ("parked", "settling"):
            self._parked_at = None
            return
        now = self.world.clock.seconds()
        if self._parked_at is None:
            self._parked_at = now
        elif now - self._parked_at > PARKED_SECONDS:
            raise Violation("clients have been parked for longer than --max-park allows")

    def _waits_at_source(self) -> bool:
        """Whether the source has not let a client go that is connected to it."""
        return any(
            connection.server.machine is self.source.machine
            and connection.server.getHost().port == SERVING_PORT
            and not connection.server.is_lost
            for connection in self.world.connections
        )

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
        side.kill(host=host)
        if host:
            side.disk.fail(fault.fate, self.draw)
            had_image = self.canonical() == side.name
            if had_image or side is self.source:
                self.writer.lose_unflushed(side.name, had_image=had_image)
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

    def _befall_flip(self, fault: Fault) -> None:
        side = self.sides[fault.where]
        side.flip(self.draw.randrange(0, SIZE, SECTOR))

    def _befall_lost(self, fault: Fault) -> None:
        self.sides[fault.where].losing += 1

    def _befall_guest(self, fault: Fault) -> None:
        """Somebody else comes to the destination, and stays for a while without a word."""
        guest = Machine(self.world, "guest", "192.0.2.4")
        address = Address.tcp(self.sides[fault.where].host, INTAKE_PORT)

        def leave(client: NBDClientProtocol) -> None:
            self.world.clock.callLater(
                fault.back or 0.0, client.abort, FlexmigrateError("the guest leaves")
            )

        connect_to(guest, address).addCallbacks(
            leave, lambda failure: failure.trap(FlexmigrateError)
        )

    def _befall_hasty(self, fault: Fault) -> None:
        """A sender of its own comes to the destination, which says PREPARE too early."""
        address = Address.tcp(self.sides[fault.where].host, INTAKE_PORT)
        sender = HastySender(self.world, address, SIZE, self.draw)
        self.strangers.add(sender.session)
        sender.begin()

    def _befall_speaker(self, fault: Fault) -> None:
        """Somebody comes to the destination who has overheard much, and says whatever may help."""
        address = Address.tcp(self.sides[fault.where].host, INTAKE_PORT)
        speaker = Speaker(self.world, address, SIZE, self.draw, self._overheard)
        self.strangers.add(speaker.session)
        speaker.begin()

    def _befall_return(self, fault: Fault) -> None:
        """The client closes its connection with requests under way, and is back at once."""
        self.writer.leave_and_return(RETURNING_WRITES)

    def _befall_clock(self, fault: Fault) -> None:
        """Somebody sets the time of day, on all machines: forth, or back."""
        self.world.time_of_day += fault.back or 0.0

    # Somebody else meddles with an image's file

    def _befall_rename(self, fault: Fault) -> None:
        if self._can_meddle(fault):
            self.sides[fault.where].disk.move(IMAGE, OTHER)

    def _befall_replace(self, fault: Fault) -> None:
        if self._can_meddle(fault):
            disk = self.sides[fault.where].disk
            disk.move(IMAGE, OTHER)
            disk.put(IMAGE, GARBAGE)

    def _befall_remove(self, fault: Fault) -> None:
        if self._can_meddle(fault):
            self.sides[fault.where].disk.remove(IMAGE)

    def _befall_truncate(self, fault: Fault) -> None:
        if self._can_meddle(fault):
            self.sides[fault.where].disk.truncate(IMAGE, SIZE // 2)

    def _can_meddle(self, fault: Fault) -> bool:
        """Return whether it makes a difference: nobody can help who removes the image itself after
        both sides have seen that it is there, or while they do.
        """
        side = self.sides[fault.where]
        if side.disk.find(IMAGE) is None or self._is_past_meddling(side):
            return False
        self.meddled[side.name] = self.world.clock.seconds()
        return True

    def _is_past_meddling(self, side: Side) -> bool:
        if side is self.source:
            migration = None if self.migrating is None else self.migrating.migration
            return migration is None or migration.phase not in _BEFORE_SETTLING
        if not side.lives or side.role != "listen" or side.server is None:
            return True
        core = side.server.service.roles[0].intake.core
        begins = core.state in (DestinationState.WAITING, DestinationState.RECEIVING)
        return not begins or core.handover.ownership.state not in (
            State.NONE,
            State.RECEIVING,
        )

    def _befall_error(self, fault: Fault) -> None:
        self.sides[fault.where].errors += 1

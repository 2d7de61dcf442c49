"""A side of a simulated migration: a machine with its disk, and the one process that it has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

from flexmigrate.config import ExportConfig, ListenConfig, ServeConfig
from flexmigrate.errors import FlexmigrateError
from flexmigrate.net.address import Address
from flexmigrate.testing import Machine, Server, World
from flexmigrate.testing.disk import Died, Mount
from flexmigrate.testing.writer import SECTOR
from simulation.remains import IMAGE, Left, View
from simulation.schedules import Schedule

SERVING_PORT = 10809
INTAKE_PORT = 10810

# Calls of a disk after which something is there that wasn't, or may be lost that was written.
_COUNTED = frozenset(
    ("write", "fsync", "fsync folder", "replace", "unlink", "fdatasync", "setxattr", "removexattr")
)

_CHANGING = frozenset(("pwrite", "fallocate"))


class Around(Protocol):
    """The stage that a side is on.

    :ivar has_changed: whether a disk was changed, or a client was promised something.
    """

    world: World
    schedule: Schedule
    has_changed: bool

    def ended(self, side: Side, status: int | None) -> None:
        """A process has ended; its supervisor knows what that means."""

    def changes(self, side: Side) -> None:
        """A process is about to change the image of *side*."""


class Violation(AssertionError):
    """Something has happened that must never."""


class Side:
    """A machine, and its one process, if there is one.

    :ivar role: what its supervisor starts: ``serve`` or ``listen``.
    :ivar statuses: with which status its processes have ended.
    :ivar refusal: why its process didn't start, when that was last tried.
    :ivar down_for_good: nobody starts anything there any more.
    :ivar is_over: because it has ended as it was to.
    :ivar losing: so many of the next writes into its image are only said to have been done.
    :ivar wrong: what is wrong on its disk, and was not read since: where a sector begins, and what
        should be there; and what is after its machine has failed.
    """

    def __init__(self, stage: Around, name: str, host: str, left: Left) -> None:
        self.stage = stage
        self.name = name
        self.host = host
        self.role = left.role
        self.disk = left.disk.copy()
        self.disk.before = self._before
        self.disk.touched = self._touched
        self.losing = 0
        self.wrong: dict[int, bytes] = {}
        self.stably_wrong: dict[int, bytes] = {}
        self.machine: Machine | None = None
        self.server: Server | None = None
        self.statuses: list[int | None] = []
        self.refusal: str | None = None
        self.is_over = self.down_for_good = left.is_over
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
        if call == "fdatasync" and mount.alive:
            self.stably_wrong = dict(self.wrong)

    def _touched(self, call: str, offset: int, length: int, data: bytes) -> bool:
        """Know what the disk has wrong: nobody can, until it is read; and what is read to be
        compared has to be found out.
        """
        sectors = range(offset - offset % SECTOR, offset + length, SECTOR)
        if call == "pread" or not self.losing:
            for at in sectors if self.wrong else ():
                self.wrong.pop(at, None)
                if call == "pread":
                    self.stably_wrong.pop(at, None)
            return True
        self.losing -= 1
        for at in sectors:
            self.wrong[at] = data[at - offset : at - offset + SECTOR]
        return False

    def flip(self, at: int) -> None:
        """Let the disk have a bit wrong, in the sector that begins *at*."""
        image = self.disk.find(IMAGE)
        if image is not None:
            right = self.wrong.setdefault(at, image[at : at + SECTOR])
            self.stably_wrong.setdefault(at, right)
            self.disk.flip(IMAGE, at)

    def view(self, *, after_failure: bool) -> View:
        """Return what is found on its disk, now or after a failure that kept nothing."""
        view = View.of(self.disk, after_failure=after_failure)
        wrong = self.stably_wrong if after_failure else self.wrong
        return replace(view, image=_excused(view.image, wrong)) if wrong else view

    @property
    def has_lied(self) -> bool:
        """Whether its disk has anything wrong that nobody can know of."""
        return bool(self.wrong or self.stably_wrong)

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
        if host:
            self.wrong = dict(self.stably_wrong)

    def look(self) -> None:
        """See whether its process has ended."""
        if self.server is not None and self.server.is_over and self.lives:
            self.ended(self.server.status)


def _excused(image: bytes | None, wrong: dict[int, bytes]) -> bytes | None:
    """Return *image* as it would be if its disk had nothing *wrong* that nobody can know of."""
    if image is None or not wrong:
        return image
    found = bytearray(image)
    for at, right in wrong.items():
        found[at : at + SECTOR] = right
    return bytes(found)

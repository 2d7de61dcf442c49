"""A world in memory, in which nothing happens by itself.

What is to happen waits in a :class:`Lane`, and :meth:`World.step` lets one thing happen. Without a
seed, it is what has waited longest; with a seed, it is drawn from all that could be next, and the
same seed draws the same. Time stands still while anything else can happen.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from flexmigrate.testing.disk import Died

if TYPE_CHECKING:
    from flexmigrate.testing.connection import Connection
    from flexmigrate.testing.machine import Machine, Port

_T = TypeVar("_T")

# More steps than any test needs: a world that goes round in circles is told of.
MAX_STEPS = 1_000_000

# What a transport holds before it asks its producer to pause, in bytes: Twisted's own.
WINDOW = 64 * 1024


class Stuck(AssertionError):
    """The awaited event can't happen any more, or not in time."""


class Lane:
    """Things that happen in their order, one at a time. Between lanes, any order is possible.

    :ivar blocked: nothing of it can happen for now.
    :ivar owner: the machine on which they happen, and with whose end they don't any more.
    """

    def __init__(self, world: World, owner: Machine | None = None) -> None:
        self.world = world
        self.owner = owner
        self.blocked = False
        self._waiting: deque[tuple[int, Any]] = deque()
        self._is_listed = False
        self._is_open = owner is None or owner.alive
        if self._is_open:
            world.lanes.append(self)

    def add(self, what: Any) -> None:
        """Let *what*, called without arguments, happen after all that is in this lane."""
        self._waiting.append((next(self.world.numbers), what))
        if not self._is_listed:
            self._is_listed = True
            self.world.busy.append(self)

    @property
    def ready(self) -> bool:
        """Whether something of it can happen now."""
        return bool(self._waiting) and not self.blocked

    @property
    def age(self) -> int:
        """The number of the first that waits: the lowest has waited longest."""
        return self._waiting[0][0]

    def step(self) -> None:
        """Let the first happen."""
        self._waiting.popleft()[1]()

    def clear(self) -> None:
        """Forget all that waits."""
        self._waiting.clear()

    def close(self) -> None:
        """Let nothing of it happen any more."""
        if self._is_open:
            self._is_open = False
            self.world.lanes.remove(self)

    def is_next(self) -> bool:
        """Return whether something of it can happen now; if nothing waits in it, take it off the
        list of those that are busy.
        """
        if self._waiting and self._is_open:
            return self.ready
        self._is_listed = False
        return False


class World:
    """The events of a simulation, and their times.

    :ivar clock: the time, in seconds.
    :ivar time_of_day: what the time of day is ahead of that, in seconds: somebody may set it.
    :ivar lanes: all in which something may happen.
    :ivar busy: those in which something waits, and perhaps some in which nothing does any more.
    :ivar connections: all that were ever made, in their order.
    :ivar trace: what was told by ``note``, in its order: who, and what.
    :ivar listen_errors: the errno with which opening a port fails, by (host, port).
    :ivar moments: how many things have happened so far, calls of simulated disks among them.
    :ivar upon: what is to be called just before the thing with that number happens.
    :ivar unreachable: hosts whose connections are never answered.
    :ivar connected: called with each connection when it is made: the place to set what befalls it.
    :param seed: None, or what the order of all things is drawn from.
    :param window: bytes a transport holds before it asks its producer to pause.
    """

    def __init__(self, seed: int | None = None, *, window: int = WINDOW) -> None:
        self.random = None if seed is None else random.Random(seed)
        self.window = window
        self.clock = Clock()
        self.time_of_day = 1e9
        self.numbers = itertools.count()
        self.lanes: list[Lane] = []
        self.busy: list[Lane] = []
        self.ports: dict[tuple[str, int], Port] = {}
        self.connections: list[Connection] = []
        self.listen_errors: dict[tuple[str, int], int] = {}
        self.unreachable: set[str] = set()
        self.connected: Callable[[Connection], object] = lambda connection: None
        self.trace: list[tuple[str, str]] = []
        self.moments = 0
        self.upon: dict[int, Callable[[], object]] = {}
        self._each_step: list[tuple[int, Callable[[], object]]] = []
        self._steps = 0

    def note(self, who: str, what: str) -> None:
        """Add to the trace."""
        self.trace.append((who, what))

    def every(self, steps: int, call: Callable[[], object]) -> None:
        """Call *call* after each so many steps of ``run_until``: for who always does something."""
        self._each_step.append((steps, call))

    # Letting things happen

    def step(self) -> bool:
        """Let one thing happen that needs no time; return whether there was one."""
        ready = [lane for lane in self.busy if lane.is_next()]
        if len(ready) < len(self.busy):
            self.busy = [lane for lane in self.busy if lane._is_listed]
        due = self._is_due()
        if not ready and not due:
            return False
        if self.moment():
            # What happened upon it may have changed what can happen next.
            return True
        with contextlib.suppress(Died):
            self._let_happen(ready, due)
        return True

    def _let_happen(self, ready: list[Lane], due: bool) -> None:
        # Drawn in the quickest way: it is done for each thing that happens.
        if self.random is None:
            if due:
                self.clock.advance(0)
            else:
                min(ready, key=lambda lane: lane.age).step()
        else:
            number = int(self.random.random() * (len(ready) + due))
            if number == len(ready):
                self.clock.advance(0)
            else:
                ready[number].step()

    def moment(self) -> bool:
        """Count that something is about to happen; return whether something was to happen before
        it, and has.
        """
        self.moments += 1
        if self.moments not in self.upon:
            return False
        self.upon.pop(self.moments)()
        return True

    def settle(self) -> None:
        """Let all happen that needs no time."""
        for _ in range(MAX_STEPS):
            if not self.step():
                return
        raise Stuck(f"no end in {MAX_STEPS} steps")

    def advance(self, seconds: float) -> None:
        """Let *seconds* pass, and all happen that they bring."""
        end = self.clock.seconds() + seconds
        self.settle()
        while self._pass_time(end):
            self.settle()
        self.clock.advance(end - self.clock.seconds())

    def run_until(self, condition: Callable[[], object], seconds: float = 3600.0) -> None:
        """Let things happen until *condition* holds.

        :param seconds: that may pass.
        :raises Stuck: it doesn't hold by then, or nothing can happen any more.
        """
        end = self.clock.seconds() + seconds
        for _ in range(MAX_STEPS):
            if condition():
                return
            if not self.step() and not self._pass_time(end):
                raise Stuck(f"nothing leads to it within {seconds:g} s")
            self._steps += 1
            for steps, call in self._each_step:
                if self._steps % steps == 0:
                    call()
        raise Stuck(f"no end in {MAX_STEPS} steps")

    def result_of(self, waited_for: Deferred[_T], seconds: float = 3600.0) -> _T:
        """Let things happen until *waited_for* has a result; return or raise it."""
        results: list[_T | Failure] = []
        waited_for.addBoth(results.append)
        self.run_until(lambda: results, seconds)
        (result,) = results
        if isinstance(result, Failure):
            result.raiseException()
        return result

    def _is_due(self) -> bool:
        calls = self.clock.calls
        return bool(calls) and calls[0].getTime() <= self.clock.seconds()

    def _pass_time(self, end: float) -> bool:
        """Let the time pass until the next timer is due; False if that is after *end*."""
        calls = self.clock.calls
        if not calls or calls[0].getTime() > end:
            return False
        with contextlib.suppress(Died):
            self.clock.advance(max(0.0, calls[0].getTime() - self.clock.seconds()))
        return True

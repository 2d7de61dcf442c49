"""Slowing writers down: so many bytes a second that all clients of an export together may make a
migration send again, shared fairly among those who do.

What a write costs is told by a meter: not its length, but what it has made dirty. Rewriting what is
dirty already is free, and a sector costs a whole block of the dirty map.

A writer is never refused and never answered late for what is done: it pays for a batch of requests
by waiting before the next is taken. While several wait, each is paid for at the same pace, so who
owes little waits little, however much the others have (processor sharing). What one leaves
of its share goes to the others. Readers pay nothing.

By Little's law a client waits, for each request, as long as the bytes that it keeps under way take
at its share of the rate. So a wait is bounded by choosing the rate, and ``longest_wait`` is there
for whoever chooses it.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from flexmigrate.server.holds import Holdable, Holds

# Less than this, in seconds, isn't waited for but paid with the next write: timers aren't finer.
SHORTEST_WAIT = 0.001

# The most that is paid for at once, in bytes: what costs more are trims and zeroes, of which one
# request tells the destination, however long they are.
MAX_CHARGE = 1024 * 1024

# What goes unused for so long, in seconds, may be used after that: a timer that came late, or a
# client that needed a moment for its next request, costs no throughput.
LATENESS = 0.01


class Throttle:
    """See the module.

    :param rate: bytes a second, above 0.
    :param meter: tells how many bytes were made dirty so far, by anybody.
    :ivar longest_wait: the longest wait of one payer, in seconds, since the rate was last set; one
        that goes on is counted when it ends.
    """

    def __init__(self, clock: IReactorTime, rate: float, meter: Callable[[], int]) -> None:
        self._clock = clock
        self._rate = rate
        self._meter = meter
        self._metered = meter()
        self._paid_until = clock.seconds()  # the time up to which everybody has paid
        self._granted = 0.0  # what each debtor has paid so far, since there were none: its clock
        self._debts: dict[Holdable, float] = {}  # where that clock stands when all is paid
        self._waiting: dict[Holdable, float] = {}  # since when
        self._timer: IDelayedCall | None = None
        self.longest_wait = 0.0

    @property
    def rate(self) -> float:
        """Bytes a second. Setting it concerns what is still to be paid, too."""
        return self._rate

    @rate.setter
    def rate(self, rate: float) -> None:
        released = self._pay()
        self._rate = rate
        self.longest_wait = 0.0
        self._release(released)

    def charge(self, payer: Holdable) -> None:
        """*payer* has changed something, and whoever did so before was charged: it may have to slow
        down.
        """
        before, self._metered = self._metered, self._meter()
        cost = min(self._metered - before, MAX_CHARGE)
        if not cost:
            return
        released = self._pay()
        self._debts[payer] = self._debts.get(payer, self._granted) + cost
        released += self._pay()  # of what went unused a moment ago
        debt = self._debts.get(payer, self._granted) - self._granted
        if debt * len(self._debts) > SHORTEST_WAIT * self._rate and payer not in self._waiting:
            self._waiting[payer] = self._clock.seconds()
            payer.hold(Holds.THROTTLED)
        self._release(released)

    def leave(self, payer: Holdable) -> None:
        """*payer* is gone, and its debt with it."""
        released = self._pay()
        self._debts.pop(payer, None)
        self._waiting.pop(payer, None)
        self._release(released)

    def lift(self) -> None:
        """Let everybody go on; of no more use after that."""
        self._debts.clear()
        self._release(list(self._waiting))

    def _pay(self) -> list[Holdable]:
        """Pay for the time that has passed, debtor by debtor; return who need wait no longer."""
        now = self._clock.seconds()
        released: list[Holdable] = []
        while self._debts:
            payer, due = min(self._debts.items(), key=lambda debt: debt[1])
            needed = (due - self._granted) * len(self._debts) / self._rate
            if now - self._paid_until < needed:
                self._granted += (now - self._paid_until) * self._rate / len(self._debts)
                self._paid_until = now
                return released
            self._paid_until += needed
            self._granted = due
            del self._debts[payer]
            if payer in self._waiting:
                released.append(payer)
        self._granted = 0.0
        self._paid_until = max(self._paid_until, now - LATENESS)
        return released

    def _release(self, released: list[Holdable]) -> None:
        """Let them go on, and see to it that the others will be."""
        now = self._clock.seconds()
        for payer in released:
            self.longest_wait = max(self.longest_wait, now - self._waiting.pop(payer, now))
        self._set_timer()
        for payer in released:
            payer.release(Holds.THROTTLED)

    def _set_timer(self) -> None:
        """Look again when the next debt is paid, if nothing else changes; a wait may begin then."""
        if not self._waiting:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            return
        least = min(self._debts.values()) - self._granted
        # Never at once, which rounding could make an endless loop.
        delay = max(SHORTEST_WAIT / 10, least * len(self._debts) / self._rate)
        if self._timer is None:
            self._timer = self._clock.callLater(delay, self._look)
        else:
            self._timer.reset(delay)

    def _look(self) -> None:
        self._timer = None
        self._release(self._pay())

"""Convergence of a migration: the remaining data against the transfer rate, and the throttling of
writers that are faster. Arithmetic, without a clock of its own.

After each pass there are three cases. The rest fits into the downtime that is allowed: park; though
a rest that would be noticed is first made less by slowing writers down a few times, where that may
be done. The pass has left much less than it began with: another. Else passes are futile, and the
rule (`ConvergeConfig`) says what follows. Throttling ends by construction: each futile pass halves
what writers may write, until they would notice a single wait; then the downtime that is allowed is
doubled, up to half of what parking may take at all; then they are slowed down whatever they notice.

A rest that fits isn't parked for where what the destination needs to make it durable is known to
take longer than parking may: see `Convergence.obstacle`. Writers would wait in vain.

All times are in seconds, all amounts in bytes, all rates in bytes a second.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum

from flexmigrate.migration.request import ConvergeChange, ConvergeConfig
from flexmigrate.migration.source.rate import Rate, RateLimit

# Where nothing shorter can be told apart, a pass took this long.
CLOCK_RESOLUTION = 1e-6

# A pass has to shrink what is dirty at least by this factor, or it was futile. More than SLOWER, so
# that the first step is not called futile for what was dirtied while the destination flushed.
SHRINK = 0.7

# What can be sent in this time is not worth another pass.
NEGLIGIBLE_SECONDS = 0.005

# Writers are slowed to this part of the rate at which we send, and by as much again each time
# that isn't enough. Even where the rest would fit: a few passes at half of the speed are noticed
# less than being parked for all of the allowed downtime.
SLOWER = 0.5

# A rest that fits but takes longer than this, in seconds, is worth slowing them down a few times
# more: some tenths of a second at a fraction of their speed are noticed less than a pause.
COMFORTABLE_SECONDS = 0.015
MOST_SLOWED = 4

# Writers are never slowed below this, a block a second: less would be a stop, and the rest of so
# little fits into any downtime on any link worth the name.
SLOWEST = 4096

# A writer that is slowed down should not wait for longer than this before its next requests are
# taken, while there is another way. A disk may take so long, too.
LONGEST_WAIT = 0.05

# Where even the flush and the round trips take longer than is allowed, slowing writers doesn't
# help: a rest that adds no more than this part to them is small enough.
UNNOTICED = 0.25

# The allowed downtime, when it is stretched, begins with at least this, or doubling would not
# lead away from 0.
LEAST_STRETCH = 0.01

# Parked by estimate for this part of what parking may take at all: estimates err.
CAUTION = 0.5

# A pass that sent less than this says more about the time an answer takes than about the link.
MEASURABLE = 1024 * 1024

# Of so many passes the shortest flush is what one takes that has nothing to write; and so many have
# to be shorter than one that was too long before clients are parked again.
RECENT_FLUSHES = 3


@dataclass(frozen=True)
class Pass:
    """The result of a pass.

    :ivar before: bytes that were dirty when it began.
    :ivar sent: bytes that were dirty then or became so on its way, and that it sent; holes, of
        which it only told, don't count.
    :ivar seconds: how long that took, comparing it with the destination's included.
    :ivar left: bytes that are dirty after it, and after the flush behind it.
    :ivar flush_seconds: how long that flush took.
    :ivar flushed: whether there was one: where nothing was sent, there mostly is none.
    """

    before: int
    sent: int
    seconds: float
    left: int
    flush_seconds: float = 0.0
    flushed: bool = True

    @property
    def rate(self) -> float:
        """Return the rate at which it sent."""
        return self.sent / max(self.seconds, CLOCK_RESOLUTION)


class ConvergenceVerdict(Enum):
    """The verdict on a migration while clients write."""

    UNKNOWN = "unknown"  #: the first pass isn't over
    CONVERGING = "converging"  #: each pass leaves much less than it began with
    THROTTLING = "throttling"  #: likewise, or soon, since writers are slowed down
    NOT_CONVERGING = "not converging"  #: and nothing is done about it, as it was asked for


class Convergence:
    """See the module.

    :param limit: what may be sent at most.
    :ivar config: what was asked for; see ``change``.
    :ivar write_limit: how much all clients together may make dirty, or None for no limit.
    :ivar allowed: seconds for which clients may be parked, as things stand.
    :ivar overhead: seconds that parking takes beside sending the rest: the flush at the
        destination with its round trip, as the last pass that sent something had it.
    :ivar verdict: see `ConvergenceVerdict`.
    """

    def __init__(self, config: ConvergeConfig, limit: RateLimit, now: float) -> None:
        self.config = config
        self._limit = limit
        self._asked_at = now
        self._in_vain = 0.0
        self.restart(now)

    def restart(self, now: float) -> None:
        """Begin anew: nothing that was measured on another connection counts, but for a flush that
        was too long: see ``flushed_in_vain``.
        """
        self.verdict = ConvergenceVerdict.UNKNOWN
        self.write_limit: float | None = None
        self._slowed = 0
        self.allowed = self.config.max_downtime
        self.overhead = 0.0
        self._rate = 0.0
        self._dirty_rate = Rate(now)
        self._dirtied = 0
        self._began: float | None = None
        self._flushes: deque[float] = deque(maxlen=RECENT_FLUSHES)

    def change(self, change: ConvergeChange, now: float) -> None:
        """Change what was asked for, at any time; ``write_limit`` may be another after this.

        :raises CommandError: if the change makes no sense.
        """
        self.config = change.of(self.config)
        self.allowed = self.config.max_downtime
        self._asked_at = now
        if not self._may_throttle(now):
            self.write_limit = None

    # What is known

    @property
    def send_rate(self) -> float:
        """At which rate what is dirty can be expected to be sent; 0 before the first pass is
        over.
        """
        limit = self._limit.bytes_per_second
        return min(limit, self._rate) if limit else self._rate

    def dirty_rate(self, now: float) -> float:
        """Return at which rate clients dirty what was clean, as the last second or so has it."""
        return self._dirty_rate.value(now)

    def dirtied(self, total: int, now: float) -> None:
        """So many bytes were dirtied since the first pass began; to be told about once a second."""
        self._dirty_rate.add(now, total - self._dirtied)
        self._dirtied = total

    def downtime(self, left: int) -> float | None:
        """Return for how long clients would be parked for *left* bytes; None: not known yet."""
        rate = self.send_rate
        return left / rate + self.overhead if rate else None

    def fitting(self, now: float) -> int:
        """Return how many bytes may be left for clients to be parked."""
        return int(self._budget(now) * self.send_rate)

    def flushed_in_vain(self, seconds: float) -> None:
        """Clients were let go again, since the flush took *seconds* or longer."""
        self._in_vain = seconds

    def obstacle(self, left: int, *, prepares: bool) -> str | None:
        """Return why it would be in vain to park clients for *left* bytes, in words; None: it may
        come to something.

        :param prepares: whether the destination flushes once more before the handover can begin.
        """
        most, rate = self.config.max_park, self.send_rate
        # What was sent is flushed already.
        flush, least = self.overhead if left else 0.0, min(self._flushes, default=0.0)
        if len(self._flushes) < RECENT_FLUSHES:
            # One that was short says less than the one that has failed.
            flush = max(flush, self._in_vain)
        again = least if prepares else 0.0
        needed = (left / rate if rate else 0.0) + flush + again
        if needed <= most and flush < most:
            return None
        twice = ", twice," if flush and again else ""
        return (
            f"the destination takes {flush or again:.1f} s{twice} to flush what it was sent: "
            f"clients would be parked for {needed:.1f} s, and may be for {most:g} s (--max-park)"
        )

    def free_writers(self) -> None:
        """Slow nobody down: clients won't be parked for now, whatever they write."""
        self.write_limit = None
        self._slowed = 0

    # What follows

    def after(self, done: Pass, longest_wait: float, now: float) -> bool:
        """Return whether to park after *done*; if not, another pass follows, and ``write_limit``
        may have changed.

        :param longest_wait: how long a writer had to wait at most under the limit as it is.
        """
        # The first pass went in long stretches: how fast scattered blocks go isn't known yet.
        is_known = self._began is not None or not done.left
        if self._began is None:
            self._began = now
        self._learn(done)
        if self.enough(done.left, now):
            return True
        rate, fitting = self.send_rate, self.fitting(now)
        if is_known and done.left <= min(fitting, NEGLIGIBLE_SECONDS * rate):
            return True
        if not rate or done.left <= SHRINK * done.before:
            limited = self.write_limit is not None
            self.verdict = (
                ConvergenceVerdict.THROTTLING if limited else ConvergenceVerdict.CONVERGING
            )
            return False
        if done.left > fitting:
            return self._futile(done.left, longest_wait, now)
        if self._is_worth_slowing(done.left, longest_wait, now):
            self._slow_down(rate)
            return False
        return is_known

    def enough(self, left: int, now: float) -> bool:
        """Return whether a pass should end where it is, since clients may be parked for *left*."""
        return self._is_forced(now) and left <= self.fitting(now)

    def _learn(self, done: Pass) -> None:
        if done.flushed:
            self._flushes.append(done.flush_seconds)
        # What had nothing to flush tells of the next flush only that it can be as short.
        if done.before or done.flush_seconds < self.overhead:
            self.overhead = done.flush_seconds
        self._rate = done.rate if done.sent >= MEASURABLE else max(self._rate, done.rate)

    def _budget(self, now: float) -> float:
        """Return for how long the rest may be sent, clients being parked."""
        allowed = self._most if self._is_forced(now) else self.allowed
        return max(allowed - self.overhead, UNNOTICED * self.overhead)

    @property
    def _most(self) -> float:
        """For how long clients may be parked by estimate, whatever was aimed at."""
        return max(CAUTION * self.config.max_park, self.config.max_downtime)

    def _is_forced(self, now: float) -> bool:
        if self.config.rule != "force" or self._began is None:
            return False
        return now >= max(self._began, self._asked_at) + self.config.timeout

    def _may_throttle(self, now: float) -> bool:
        return self.config.rule == "throttle" or self._is_forced(now)

    def _is_worth_slowing(self, left: int, longest_wait: float, now: float) -> bool:
        """Tell whether to slow writers down though *left* fits: for more comfort."""
        if not self._may_throttle(now) or self._slowed == MOST_SLOWED:
            return False
        if self.write_limit is None:
            return True
        return (
            left > COMFORTABLE_SECONDS * self.send_rate
            and self._next_wait(longest_wait) <= LONGEST_WAIT
        )

    def _next_wait(self, longest_wait: float) -> float:
        """Return how long a writer would have to wait if they were slowed down once more."""
        if not self.write_limit:
            return 0.0
        return longest_wait * self.write_limit / slower(self.write_limit, self.send_rate)

    def _slow_down(self, rate: float) -> None:
        self.write_limit = slower(self.write_limit, rate)
        self.verdict = ConvergenceVerdict.THROTTLING
        self._slowed += 1

    def _futile(self, left: int, longest_wait: float, now: float) -> bool:
        if not self._may_throttle(now):
            self.verdict = ConvergenceVerdict.NOT_CONVERGING
            return False
        self.verdict = ConvergenceVerdict.THROTTLING
        if self._next_wait(longest_wait) > LONGEST_WAIT and self.allowed < self._most:
            self.allowed = min(max(2 * self.allowed, LEAST_STRETCH), self._most)
            return left <= self.fitting(now)
        self.write_limit = slower(self.write_limit, self.send_rate)
        return False


def slower(limit: float | None, rate: float) -> float:
    """Return what writers may write after *limit* (None: as they like) was not slow enough."""
    return max(SLOWEST, SLOWER * (rate if limit is None else min(limit, rate)))

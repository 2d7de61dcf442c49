"""The history of a migration, and its summary, as values that take a bounded amount of memory.

These dataclasses are the one source of the fields of reports and summaries, of their units and
their meaning. Nothing here has a clock: whoever takes the samples says when that was.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from flexmigrate.telemetry.fields import about

FIRST_INTERVAL: Final = 0.1
"""Seconds from one sample to the next, at first."""

MOST_SAMPLES: Final = 1025
"""As many as a plot has pixels for; odd, so that the first and the last stay when every other one
goes.
"""

MOST_CHANGES: Final = 512
"""A migration that fails and is retried every second makes three changes each time."""

MOST_TEXT: Final = 500
"""Characters of an error that are kept; a peer may send thousands."""

Verdict = Literal["complete", "copied", "broken", "failed", "unconfirmed"]


SUCCESSES: Final[tuple[Verdict, ...]] = ("complete", "copied")
"""The verdicts after which the destination has the whole image."""


@dataclass(frozen=True)
class Sample:
    """The state of a migration at one moment. ``None``: not known, or not applicable."""

    seconds: float = field(metadata=about("time since the migration was asked for", "seconds"))
    phase: str = field(metadata=about("name of the source's phase: see States"))
    attempt: int = field(metadata=about("connection to the destination, from 1"))
    pass_number: int = field(
        metadata=about(
            "pass over the data to send, from 1 in each attempt; 0 while holes are searched for"
        )
    )
    bytes_sent: int = field(metadata=about("data that all attempts have sent so far", "bytes"))
    bytes_left: int | None = field(
        default=None, metadata=about("data that is known to be still unsent", "bytes")
    )
    bytes_dirtied: int | None = field(
        default=None,
        metadata=about(
            "what clients have changed that has to be sent again, since this attempt's first pass"
            " began",
            "bytes",
        ),
    )
    write_limit: int | None = field(
        default=None,
        metadata=about(
            "rate at which clients may dirty data while they are throttled", "bytes/second"
        ),
    )
    speed_limit: int | None = field(
        default=None, metadata=about("the limit on sending, if there is one", "bytes/second")
    )
    error: str | None = field(
        default=None, metadata=about("reason why the attempt that ended now has failed")
    )
    state: str | None = field(
        default=None, metadata=about("name of the source's state, finer than its phase: see States")
    )


@dataclass(frozen=True)
class Summary:
    """The result of a migration."""

    verdict: Verdict = field(
        metadata=about(
            "how it ended: complete (given away), copied (and still the source's), broken (ended"
            " by the operator or a signal), failed (never began), or unconfirmed (see the log)"
        )
    )
    reason: str | None = field(metadata=about("reason why it did not succeed"))
    address: str = field(metadata=about("address of the destination"))
    duration: float = field(metadata=about("time from its beginning to its end", "seconds"))
    bytes_sent: int = field(metadata=about("data that all attempts have sent", "bytes"))
    speed: int = field(metadata=about("bytes sent, divided by the duration", "bytes/second"))
    passes: int = field(metadata=about("passes over the data to send, in the last attempt"))
    attempts: int = field(metadata=about("connections to the destination"))
    parked: float = field(metadata=about("time for which clients were parked, in all", "seconds"))
    verified: str | None = field(
        default=None,
        metadata=about(
            "what was compared with the destination: full, dirty, off, or unable (it can't); left"
            " out where it did not succeed"
        ),
    )
    bytes_compared: int | None = field(
        default=None,
        metadata=about(
            "data that was compared with the destination's and is equal, in all", "bytes"
        ),
    )
    digest: str | None = field(
        default=None,
        metadata=about(
            "the image's digest, where it succeeded and all of it was compared: see Verification"
        ),
    )
    flush_failed: str | None = field(
        default=None,
        metadata=about(
            "when a flush of the source's image had failed, and why: what was sent is what clients "
            "read, which its disk may not have"
        ),
    )

    @property
    def succeeded(self) -> bool:
        """Whether the destination has the whole image."""
        return self.verdict in SUCCESSES


@dataclass(frozen=True)
class Tally:
    """Totals of all migrations of an export, including one that is running.

    :ivar ends: the number of migrations that have ended, by verdict.
    :ivar bytes_sent: the data that all of them have sent.
    :ivar attempts: connections to destinations.
    :ivar parked: the time for which clients were parked, in seconds.
    """

    ends: Counter[Verdict] = field(default_factory=Counter)
    bytes_sent: int = 0
    attempts: int = 0
    parked: float = 0.0

    def after(self, summary: Summary) -> Tally:
        """Return the totals including another migration, which has ended."""
        so_far = self.with_running(summary.bytes_sent, summary.attempts, summary.parked)
        return replace(so_far, ends=self.ends + Counter([summary.verdict]))

    def with_running(self, bytes_sent: int, attempts: int, parked: float) -> Tally:
        """Return the totals including a running migration."""
        return Tally(
            self.ends, self.bytes_sent + bytes_sent, self.attempts + attempts, self.parked + parked
        )


class History:
    """The samples of one migration: at most so many, with longer intervals if it takes longer.

    :ivar samples: in order. Once they are too many, every other one is dropped, and the next are
        taken half as often.
    :ivar changes: one sample at the beginning of each phase and each pass; the first are dropped
        once they are too many.
    :ivar interval: seconds until the next sample should be taken.
    """

    def __init__(self, interval: float = FIRST_INTERVAL, most: int = MOST_SAMPLES) -> None:
        self.samples: list[Sample] = []
        self.changes: deque[Sample] = deque(maxlen=MOST_CHANGES)
        self.interval = interval
        self._most = most

    def add(self, sample: Sample) -> None:
        """Keep *sample*, taken because the interval is over."""
        self.samples.append(sample)
        if len(self.samples) >= self._most:
            del self.samples[-2::-2]
            self.interval *= 2

    def change(self, sample: Sample) -> None:
        """Keep *sample*, taken because a phase or a pass began."""
        self.changes.append(sample)

    def all(self) -> list[Sample]:
        """Return all samples and changes, in the order of time."""
        return sorted([*self.samples, *self.changes], key=lambda sample: sample.seconds)


def shortened(text: str | None) -> str | None:
    """Return *text*, cut to MOST_TEXT characters."""
    if text is None or len(text) <= MOST_TEXT:
        return text
    return f"{text[:MOST_TEXT]}…"

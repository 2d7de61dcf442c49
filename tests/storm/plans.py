"""What befalls one migration, drawn from a seed: the same seed gives the same plan."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass

MIB = 1 << 20
SIZE = 4 * MIB

PREPARE, COMMIT, DISC = (
    bytes.fromhex(f"25609513 0000 {kind}") for kind in ("f103", "f101", "0002")
)

# What can happen, and to whom. "end" is SIGTERM, as when an operator restarts a service.
KILLS = ("kill source", "kill destination", "kill both")
ACTS = (*KILLS, *KILLS, "end source", "end destination", "cut", "stall")


@dataclass(frozen=True)
class Moment:
    """When something happens.

    :ivar wire: so many bytes have gone to the destination since it was waited for; or these have
        come from the source, and connections are cut at them.
    :ivar behind: the destination still gets those, and its answer is lost.
    :ivar said: or the source or the destination has logged such a line.
    :ivar delay: seconds after that.
    """

    wire: int | bytes = 0
    behind: bool = False
    said: tuple[str, str] | None = None
    delay: float = 0.0

    def __str__(self) -> str:
        if self.said:
            place = f"{self.said[0]} says {self.said[1]!r}"
        elif isinstance(self.wire, bytes):
            name = {PREPARE: "PREPARE", COMMIT: "COMMIT", DISC: "DISC"}[self.wire]
            place = f"{'behind' if self.behind else 'before'} {name}"
        else:
            place = f"after {self.wire} bytes"
        return f"{place} + {self.delay * 1000:.0f} ms"


@dataclass(frozen=True)
class Plan:
    """One migration, and what befalls it.

    :ivar faults: moments, and what happens then: one waits for the other.
    :ivar full: the destination's disk is full for a while.
    :ivar bad: the source's disk can't be read for a while.
    :ivar abrupt: all is killed at the last fault, and nothing comes back.
    """

    seed: int
    plain: bool
    unlink: bool
    rebind: bool
    max_bps: int
    restart: float  # seconds after which a supervisor starts again what has ended
    faults: tuple[tuple[Moment, str], ...]
    full: bool
    bad: bool
    abrupt: bool

    def __str__(self) -> str:
        words = ["plain" if self.plain else "session"]
        words += [name for name in ("unlink", "rebind", "abrupt") if getattr(self, name)]
        if self.max_bps:
            words.append(f"{self.max_bps} B/s")
        told = "".join(f"\n    {moment}: {act}" for moment, act in self.faults)
        return f"seed {self.seed}: {', '.join(words)}; restart after {self.restart:.2f} s{told}"


def plan(seed: int) -> Plan:
    """Return the plan of that seed."""
    rng = random.Random(seed)
    plain = rng.random() < 0.2
    trouble = rng.choices(("", "full disk", "read error"), (6, 2, 2))[0]
    acts = rng.choices(ACTS, k=rng.choice((1, 1, 2, 2, 3)))
    faults = tuple((_moment(rng, plain), act) for act in acts)
    if trouble:
        # While clients are with the source, and there is still something to write or to read.
        early = Moment(wire=rng.randrange(SIZE // 8, SIZE // 2))
        faults = ((early, trouble), *faults)
    abrupt = rng.random() < 0.3
    if abrupt:
        faults = (*faults[:-1], (faults[-1][0], "kill both"))
    return Plan(
        seed,
        plain,
        unlink=rng.random() < 0.3 and trouble != "read error",  # what is mounted can't be unlinked
        rebind=rng.random() < 0.5,
        max_bps=4 * MIB if trouble else rng.choice((0, 0, 4 * MIB)),
        restart=rng.choice((0.0, 0.1, 0.5)),
        faults=faults,
        full=trouble == "full disk",
        bad=trouble == "read error",
        abrupt=abrupt,
    )


def _moment(rng: random.Random, plain: bool) -> Moment:
    delay = rng.choice((0.0, rng.expovariate(1 / 0.002), rng.expovariate(1 / 0.02)))
    kind = rng.random()
    if kind < 0.3:
        return Moment(wire=rng.randrange(SIZE * 5 // 4), delay=delay)
    if kind < 0.6:
        wire: Sequence[bytes] = (DISC,) if plain else (PREPARE, COMMIT, COMMIT, DISC)
        return Moment(wire=rng.choice(wire), behind=rng.random() < 0.5, delay=delay)
    lines = [("source", "clients are parked"), ("source", "no longer listening on")]
    if not plain:
        lines.append(("destination", "prepared: "))
    return Moment(said=rng.choice(lines), delay=delay)


def seeds() -> list[int]:
    """Return the seeds to try.

    STORM_SEED is one; otherwise STORM_RUNS of them (20), the same each time, or any others where
    STORM_ANYWHERE is set.
    """
    if one := os.environ.get("STORM_SEED"):
        return [int(one)]
    first = 0
    if os.environ.get("STORM_ANYWHERE"):
        # All processes of one run of pytest begin at the same one.
        first = random.Random(os.environ.get("PYTEST_XDIST_TESTRUNUID")).randrange(1 << 32)
    return list(range(first, first + int(os.environ.get("STORM_RUNS", "20"))))

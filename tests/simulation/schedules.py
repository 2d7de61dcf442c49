"""Schedules: what befalls one simulated migration, as values that can be printed and read again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from flexmigrate.testing.disk import FATES

SIDES = ("source", "destination")

CUTS = ("nothing", "to-source", "to-destination")
"""What is still let through of what was under way when a connection is cut."""


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    :ivar kind: ``process`` (it is killed), ``host`` (its machine fails), ``cut`` (the connection of
        the migration is), ``stall`` (nothing passes there for a while), ``part`` (and no other
        connection can be made), ``error`` (the next sync or change of a name on a disk fails),
        ``flip`` (a bit of its image is another), ``lost`` (the next write into its image is said to
        be done, and isn't), ``guest`` (somebody else connects there, and stays for a while),
        ``hasty`` (somebody else sends an image there, and says PREPARE too early), ``speaker``
        (somebody who has overheard what was said there says whatever may help him), ``rename``,
        ``replace``, ``remove`` and ``truncate`` (somebody does that to its image), ``return`` (the
        client closes its connection with requests under way, and is back at once), ``clock``
        (somebody sets the time of day, by *back* seconds).
    :ivar where: which side, or for ``cut`` what is let through.
    :ivar since: the event that it is counted from.
    :ivar after: so many things happen between the event and it.
    :ivar fate: of what was not synced, where a host fails; see ``FATES``.
    :ivar back: seconds after which what was killed, stalled or parted is back; None: never.
    """

    kind: str
    where: str
    since: str
    after: int
    fate: str = ""
    back: float | None = None

    def __str__(self) -> str:
        fate = f"/{self.fate}" if self.fate else ""
        back = "never" if self.back is None else f"{self.back:g}"
        return f"{self.kind}:{self.where}{fate}@{self.since}+{self.after}~{back}"

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Read what ``str`` wrote."""
        what, _, rest = text.partition("@")
        when, _, back = rest.partition("~")
        kind, _, where = what.partition(":")
        where, _, fate = where.partition("/")
        since, _, after = when.partition("+")
        seconds = None if back == "never" else float(back)
        return cls(kind, where, since, int(after), fate, seconds)


@dataclass(frozen=True)
class Ending:
    """Everything dies at once, and what is left goes on.

    :ivar fates: of the source and of the destination: ``process`` or ``machine``; see ``remains``.
    :ivar number: when: at so many changes of what is on the disks or was promised, from 1.
    :ivar back: seconds after which each is started again; None: never.
    """

    fates: tuple[str, str]
    number: int
    back: tuple[float | None, float | None]

    def __str__(self) -> str:
        back = "+".join("never" if each is None else f"{each:g}" for each in self.back)
        return f"{ALL}:{'+'.join(self.fates)}@{self.number}~{back}"

    def is_at(self, number: int, fates: tuple[str, str]) -> bool:
        """Whether it is this one that could come now."""
        return (number, fates) == (self.number, self.fates)

    @classmethod
    def parse(cls, text: str) -> Ending:
        """Read what ``str`` wrote."""
        what, _, rest = text.partition("@")
        number, _, back = rest.partition("~")
        one, other = what.partition(":")[2].split("+")
        first, second = (None if each == "never" else float(each) for each in back.split("+"))
        return cls((one, other), int(number), (first, second))


ALL = "all"

RETURNS: tuple[tuple[float | None, float | None], ...] = (
    (0.0, 0.0),
    (0.0, 3.0),
    (3.0, 0.0),
    (0.0, None),
    (None, 0.0),
)
"""Who is back after how many seconds, once everything had died: the source, the destination."""


@dataclass(frozen=True)
class Schedule:
    """One simulated migration.

    :ivar seed: what is drawn in it is drawn from this.
    :ivar shuffled: whether the order of all things is drawn, too; else what has waited longest
        happens next.
    :ivar options: ``unlink``, ``rebind``, ``plain``, ``brief``, ``busy``, ``late``, ``hidden``,
        ``misled``, ``forgets``; see ``stage``.
    :ivar endings: of the whole, one after the other. From the first on nothing is shuffled.
    """

    seed: int
    shuffled: bool
    options: frozenset[str]
    faults: tuple[Fault, ...]
    endings: tuple[Ending, ...] = ()

    def __str__(self) -> str:
        order = "shuffled" if self.shuffled else "ordered"
        words = [f"{self.seed}", order, *sorted(self.options)]
        return " ".join((*words, *map(str, self.faults), *map(str, self.endings)))

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """Read what ``str`` wrote."""
        seed, order, *words = text.split()
        options = frozenset(word for word in words if "@" not in word)
        happening = [word for word in words if "@" in word]
        endings = [word for word in happening if word.startswith(f"{ALL}:")]
        faults = [word for word in happening if word not in endings]
        return cls(
            int(seed),
            order == "shuffled",
            options,
            tuple(map(Fault.parse, faults)),
            tuple(map(Ending.parse, endings)),
        )

    def after(self, ending: Ending) -> Schedule:
        """Return the schedule that is this one up to *ending*."""
        return replace(self, endings=(*self.endings, ending))


OPTIONS = ("unlink", "rebind", "plain", "brief", "busy", "late")

STEPS = 96
"""In so many steps a handover is over that nothing befalls: from the parking of the clients to the
end of the source's process. A test sees that it is so."""

STEPS_BEFORE = 60
"""So many steps it takes, at most, from when the operator asks to where clients are parked."""

STEPS_AGAIN = 24
"""After so many further steps, whatever a first fault has caused is under way again or waits."""


def every_fault(since: str, after: int) -> Iterator[Fault]:
    """Yield all that can go wrong at one moment."""
    for side in SIDES:
        for back in (0.5, None):
            yield Fault("process", side, since, after, back=back)
            for fate in FATES:
                yield Fault("host", side, since, after, fate, back)
        yield Fault("error", side, since, after)
        yield Fault("stall", side, since, after, back=15.0)
        yield Fault("part", side, since, after, back=15.0)
    for spared in CUTS:
        yield Fault("cut", spared, since, after)
    yield from false_disks(since, after)
    yield Fault("guest", "destination", since, after, back=3.0)


def false_disks(since: str, after: int) -> Iterator[Fault]:
    """Yield what a disk can do to what it was given, so that comparing has to find it."""
    for kind in ("flip", "lost"):
        yield Fault(kind, "destination", since, after)


def main_faults(since: str, after: int) -> Iterator[Fault]:
    """Yield what those of ``every_fault`` come to that can be combined in a bearable number."""
    for side in SIDES:
        yield Fault("process", side, since, after, back=0.5)
        yield Fault("process", side, since, after)
        yield Fault("host", side, since, after, "anything", back=0.5)
    for spared in CUTS:
        yield Fault("cut", spared, since, after)


KINDS = ("", "unlink", "rebind", "plain", "plain unlink", "plain rebind")
"""Of handovers."""


def singles() -> Iterator[Schedule]:
    """Yield every fault at every step of the handover, in each kind of handover."""
    for options in KINDS:
        for after in range(STEPS_BEFORE):
            for fault in false_disks("asked", after):
                yield Schedule(after, False, frozenset((*options.split(), "busy")), (fault,))
        for after in range(STEPS):
            for fault in every_fault("parked", after):
                yield Schedule(1, False, frozenset((*options.split(), "busy")), (fault,))


def main_singles() -> Iterator[Schedule]:
    """Yield those of ``singles`` that take a bearable time: every fault at every step of a session,
    and every sixth once more in one of the other kinds of handovers.
    """
    for after in range(STEPS_BEFORE):
        for fault in false_disks("asked", after):
            yield Schedule(after, False, frozenset(("busy",)), (fault,))
    number = 0
    for after in range(STEPS):
        for fault in every_fault("parked", after):
            yield Schedule(1, False, frozenset(("busy",)), (fault,))
            number += 1
            if number % 6 == 0:
                options = KINDS[1 + number // 6 % (len(KINDS) - 1)]
                yield Schedule(1, False, frozenset((*options.split(), "busy")), (fault,))


def pairs() -> Iterator[Schedule]:
    """Yield every main fault at every step of a session's handover, and after each of them every
    main fault at every step of what comes then.
    """
    for after in range(STEPS):
        for later in range(STEPS_AGAIN):
            for first in main_faults("parked", after):
                for second in main_faults("again", later):
                    options = frozenset(("brief",))
                    yield Schedule(after * 1000 + later, False, options, (first, second))


STRANGE_SEEDS = 200
"""So many orders of all that happens are drawn where somebody else sends to the destination."""


def strange() -> Iterator[Schedule]:
    """Yield the schedules in which somebody else sends to the destination."""
    for seed in range(STRANGE_SEEDS):
        fault = Fault("hasty", "destination", "asked", 0)
        yield Schedule(seed, True, frozenset(("late",)), (fault,))


MEDDLING = ("rename", "replace", "remove", "truncate")

HOUR = 3600.0

LIE_SEEDS = 60
"""So many orders of all that happens are drawn for each kind of lie that depends on it."""


def hidden_data() -> Iterator[Schedule]:
    """Yield those in which a filesystem calls a hole what isn't written back: after a write or two,
    and with many, among which are flushes; and where nothing is compared.
    """
    for seed in range(LIE_SEEDS):
        for lie in ("hidden", "misled"):
            for options in ((lie,), (lie, "busy"), (lie, "plain")):
                yield Schedule(seed, seed % 4 > 1, frozenset(options), ())


def forgotten_flushes() -> Iterator[Schedule]:
    """Yield those in which a disk fails once, and the page cache forgets what was to go there: with
    a client that is busy at the source, and with one that leaves what was sent as it is.
    """
    for after in range(STEPS_BEFORE):
        busy = frozenset(("busy", "forgets", "late"))
        yield Schedule(after, after % 2 > 0, busy, (Fault("error", "source", "asked", after),))
        for since in ("asked", "parked"):
            error = Fault("error", "destination", since, after)
            yield Schedule(after, False, frozenset(("forgets",)), (error,))


def moving_names() -> Iterator[Schedule]:
    """Yield those in which somebody meddles with an image's file, at any step."""
    for since, most in (("asked", STEPS_BEFORE), ("parked", STEPS)):
        for after in range(most):
            for side in SIDES:
                for kind in MEDDLING:
                    if (side, kind) != ("source", "truncate"):  # what clients wrote is gone then
                        fault = Fault(kind, side, since, after)
                        yield Schedule(1, False, frozenset(("busy",)), (fault,))


def speakers() -> Iterator[Schedule]:
    """Yield those in which a stranger speaks, at any step, alone and after other faults."""
    for after in range(STEPS):
        speaker = Fault("speaker", "destination", "parked", after)
        yield Schedule(after, False, frozenset(), (speaker,))
    firsts = (
        ("cut", "nothing", None),
        ("stall", "source", 15.0),
        ("process", "source", 3.0),
        ("cut", "to-destination", None),
    )
    for after in range(STEPS):
        for kind, where, back in firsts:
            for later in (0, 4, 12):
                first = Fault(kind, where, "parked", after, back=back)
                speaker = Fault("speaker", "destination", "again", later)
                yield Schedule(after, False, frozenset(("brief",)), (first, speaker))


def set_clocks() -> Iterator[Schedule]:
    """Yield those in which somebody sets the time of day while something is waited for."""
    for after in range(STEPS):
        for seconds in (-HOUR, HOUR):
            stall = Fault("stall", "source", "parked", after, back=60.0)
            clock = Fault("clock", "source", "again", after % STEPS_AGAIN, back=seconds)
            yield Schedule(after, False, frozenset(("brief",)), (stall, clock))


def returning_clients() -> Iterator[Schedule]:
    """Yield those in which a client returns that has left requests behind."""
    for seed in range(LIE_SEEDS):
        for since, most in (("asked", STEPS_BEFORE), ("parked", STEPS)):
            fault = Fault("return", "source", since, seed * 7 % most)
            again = Fault("return", "source", "again", 3 + seed % 20)
            yield Schedule(seed, True, frozenset(("busy",)), (fault, again))


LIES = (forgotten_flushes, hidden_data, moving_names, speakers, set_clocks, returning_clients)

_LYING_OPTIONS = frozenset(("forgets", "hidden", "misled"))
_LYING_FAULTS = frozenset((*MEDDLING, "speaker", "clock", "return"))


def truthful(schedule: Schedule) -> Schedule:
    """Return *schedule* without its lies: all else that is to happen in it happens."""
    faults = tuple(each for each in schedule.faults if each.kind not in _LYING_FAULTS)
    return replace(schedule, options=schedule.options - _LYING_OPTIONS, faults=faults)


def lies() -> Iterator[Schedule]:
    """Yield what is true of less than all else takes for granted: of each kind in turn."""
    kinds = [kind() for kind in LIES]
    while kinds:
        for kind in list(kinds):
            schedule = next(kind, None)
            if schedule is None:
                kinds.remove(kind)
            else:
                yield schedule


def drawn(seed: int) -> Schedule:
    """Return the random schedule with the number *seed*."""
    draw = random.Random(seed)
    options = frozenset(option for option in OPTIONS if draw.random() < 0.3)
    # Most of what can go wrong goes wrong close to the end, and seldom alone.
    faults = tuple(draw_fault(draw) for _ in range(draw.choice((0, 1, 1, 2, 2, 3, 4))))
    if "plain" in options:
        # Nothing keeps anybody out where a plain destination forgets what it was given.
        faults = tuple(each for each in faults if each.kind not in _SENDERS)
    return Schedule(seed, draw.random() < 0.8, options, faults)


_KINDS = ("process", "process", "host", "host", "cut", "cut", "stall", "part", "error")
_LIES = ("flip", "lost")
_SENDERS = ("hasty", "speaker")
_STRANGERS = ("guest", *_SENDERS)


def draw_fault(draw: random.Random) -> Fault:
    """Return a random fault."""
    others = (*_STRANGERS, "return", "clock")
    kind = draw.choice((*_KINDS, draw.choice(_LIES), draw.choice(others)))
    where = draw.choice(CUTS if kind == "cut" else SIDES)
    if kind in (*_LIES, *_STRANGERS):
        where = "destination"
    since, most = draw.choice((("asked", 200), ("parked", 80), ("parked", 40), ("again", 60)))
    fate = draw.choice(FATES) if kind == "host" else ""
    back: float | None = None
    if kind in ("stall", "part", "guest"):
        back = draw.choice((0.5, 3.0, 15.0, 70.0))
    elif kind == "clock":
        back = draw.choice((HOUR, -HOUR, -60.0))
    elif kind in ("process", "host") and draw.random() < 0.8:
        back = draw.choice((0.0, 0.5, 3.0, 15.0))
    return Fault(kind, where, since, draw.randrange(most), fate, back)

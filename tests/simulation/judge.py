"""What must hold, whatever befalls a migration; and the schedule from its beginning to the verdict.

The invariants:

* Never two owners: of both disks, at most one can be served; the source changes nothing in its
  image once its journal says ``committed``, and a destination nothing in its own while that says
  ``prepared``; and clients, once the destination has served them, are never served by the source.
* There is one canonical copy, and ``whose`` names it. It holds every write that was acknowledged,
  where processes died; every write that was flushed, where the machine that had it failed.
* A source ends with status 0 only if the destination is prepared or owner; a destination that
  received, only if it is the owner.
* A source that isn't committed can be served again.
* A destination's image that has changed has a marker or a record.
* When everybody is back, the migration comes to its end.
* A source that unlinks its file does so only once its journal says ``done``: as long as that says
  ``committed``, whoever serves the file asks the destination to take it.
* Once the destination has confirmed that it owns the image, clients are let go at once.

Those about what lies on the disks are judged after every single thing that changes any of it, or
that promises something: as if both had died just then, each of them as a process or as a machine
that keeps only what it must. And it goes on from there: both are started again, in any order, or
one of them never, and all of this has to hold again (``Afterlife``). Where the same was left before
(``remains.likeness``), what comes of it has been played.

The plain handover has the exceptions that are documented in ``docs/migration.rst``, and no others:
they are what ``plain`` is asked for below.
"""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from flexmigrate.migration.ownership import resolve
from flexmigrate.migration.ownership.status import ImageState, MayServe
from flexmigrate.service.serving import Serving
from flexmigrate.testing.world import Stuck
from flexmigrate.wire.handover import State
from simulation.remains import (
    IMAGE,
    JOURNAL,
    MARKER,
    Likeness,
    Remains,
    View,
    decode,
    decode_attribute,
    likeness,
)
from simulation.schedules import RETURNS, SIDES, Ending, Schedule
from simulation.sides import Side, Violation
from simulation.stage import GARBAGE, SETTLED_SECONDS, SIZE, Stage

PATIENCE = 400.0
"""Seconds in which a migration ends once everybody is back."""

_GIVEN = (b'"committed"', b'"done"')


@dataclass(frozen=True)
class Beside:
    """What is beside an image, and whether that is there.

    :ivar has_image: whether it has its name.
    """

    journal: bytes | None
    marker: bool
    has_image: bool
    attribute: bytes | None

    @classmethod
    def of(cls, view: View) -> Beside:
        """Return what is beside the image there."""
        return cls(view.journal, MARKER in view.names, IMAGE in view.names, view.attribute)

    @functools.cached_property
    def image_state(self) -> ImageState:
        """Return how the image stands, as the program sees it."""
        record = None if self.journal is None else decode(self.journal)
        if self.attribute is None:
            return ImageState(IMAGE, record, self.marker)
        found = decode_attribute(self.attribute)
        image_state = ImageState(
            IMAGE, record, self.marker, file_id=found.record.file, attribute=found
        )
        return image_state.by_its_attribute(JOURNAL)

    @property
    def is_plain(self) -> bool:
        """Whether it says that the handover is a plain one: so it is where a source failed to write
        its journal once.
        """
        return self.image_state.record is not None and self.image_state.record.plain

    @property
    def is_owner(self) -> bool:
        """Whether it says that the image is a destination's own."""
        return self.image_state.state is State.OWNER


@functools.lru_cache(1000)
def judge(source: Beside, destination: Beside, plain: bool) -> str:
    """Return whose copy is canonical, as ``whose`` says.

    :raises Violation: it can't be told, or the ends contradict each other, or both or the wrong one
        can be served.
    """
    mine, theirs = source.image_state, destination.image_state
    if mine.state is State.COMMITTED and not source.has_image and not source.is_plain:
        raise Violation("the source's file is gone before its journal says that it has been taken")
    states = f"{mine.state.name}, {theirs.state.name}"
    plain = plain or source.is_plain
    here = resolve.judge(mine, theirs.record).verdict
    there = resolve.judge(theirs, mine.record).verdict
    if here is resolve.CopyVerdict.UNKNOWN:
        if not plain:
            raise Violation(f"nobody knows whose it is: {states}")
        # As docs/migration.rst tells a human to go on: by the file, then by the destination.
        is_given = not source.has_image or destination.is_owner
        canonical = "destination" if is_given else "source"
    else:
        canonical = "source" if here is resolve.CopyVerdict.THIS else "destination"
        if here is there and not plain and theirs.record is not None:
            raise Violation(f"both ends say {here.value}: {states}")
    served = [
        name
        for name, end in (("source", source), ("destination", destination))
        if end.has_image and end.image_state.to_serve()[0] is MayServe.SERVE
    ]
    if len(served) == 2 and theirs.record is None and not theirs.marker:
        served = ["source"]  # no migration has begun: what is there is nobody's image
    if len(served) == 2:
        raise Violation(f"both copies can be served: {states}")
    if served and served != [canonical]:
        raise Violation(f"the {canonical}'s copy is canonical, and the other can be served")
    if not served and not _waits_for_a_human(source, destination, plain):
        raise Violation(f"the {canonical}'s copy is canonical, and can't be served: {states}")
    return canonical


def _waits_for_a_human(source: Beside, destination: Beside, plain: bool) -> bool:
    """Whether none can be served by itself, and rightly so."""
    if plain:
        given = source.image_state.state in (State.COMMITTED, State.DONE)
        return given or not source.has_image
    # With ``done`` it would have been told to take over.
    committed = source.image_state.state is State.COMMITTED
    return committed and destination.image_state.state is State.PREPARED


class Afterlife:
    """What comes of all that is left where everything has died: each likeness of it is played once.

    :param claim: called with each likeness that is new here; whether it is for us to play it.
    :ivar ways: how many ways there are to go on from all that was seen, were it the same or not.
    """

    def __init__(self, claim: Callable[[Likeness], bool] = lambda likeness: True) -> None:
        self._claim = claim
        self._known: set[Likeness] = set()
        self._waiting: deque[tuple[Schedule, Remains]] = deque()
        self.ways = 0

    def see(self, trial: Trial, fates: tuple[str, str], seen: Likeness) -> None:
        """Everything could die in *trial* now, as *fates* say, and *seen* would be left."""
        source_is_over = trial.source.is_over
        ways = [back for back in RETURNS if not source_is_over or back == (None, 0.0)]
        self.ways += len(ways)
        options = tuple(sorted(trial.schedule.options - {"brief", "busy", "late"}))
        ends = tuple((side.role, side.is_over) for side in trial.sides.values())
        key = (options, ends, tuple(trial.served_by), seen)
        if key in self._known:
            return
        self._known.add(key)
        if not self._claim(key):
            return
        remains = trial.remains(fates)
        for back in ways:
            schedule = trial.schedule.after(Ending(fates, trial.ends, back))
            self._waiting.append((schedule, remains))

    def next(self) -> tuple[Schedule, Remains] | None:
        """Return what is to be played next, if anything is."""
        return self._waiting.popleft() if self._waiting else None


class _End(NamedTuple):
    """An end of one side: its fate, and what is found then, or after another failure."""

    fate: str
    found: tuple[View, ...]


class Trial(Stage):
    """A stage, with a judge on it.

    :param afterlife: told of all that could be left.
    :param until: the ending at which *reached* is set to what is left then.
    :ivar ends: at how many moments the end was judged.
    """

    ends = 0
    reached: Remains | None = None

    def __init__(
        self,
        schedule: Schedule,
        remains: Remains | None = None,
        *,
        afterlife: Afterlife | None = None,
        until: Ending | None = None,
    ) -> None:
        self._afterlife = afterlife
        self._until = until
        super().__init__(schedule, remains)

    # While it goes on

    def ended(self, side: Side, status: int | None) -> None:
        if status == 0 and side.name in self.meddled and side.disk.find(IMAGE) is None:
            raise Violation(f"the {side.name} ended with status 0, and its image has no name")
        if status == 0:
            found = self._beside(self.destination)
            if side is self.destination and side.role == "listen" and not found.is_owner:
                raise Violation("the destination ended with status 0, and isn't the owner")
            if side is self.source and not self._may_leave(found):
                raise Violation("the source ended with status 0, and the destination isn't ready")
        super().ended(side, status)

    def _may_leave(self, found: Beside) -> bool:
        if found.is_owner or found.image_state.state is State.PREPARED:
            return True
        # Its process was killed after it had read DISC, and so its kernel closed the connection as
        # if it had been done with it. All data had been flushed.
        is_plain = self.plain or self._beside(self.source).is_plain
        return is_plain and not self.has_lived_through

    def changes(self, side: Side) -> None:
        if side is self.source:
            if self._is_given:
                self.accuse("the source changes what it has given away")
        elif b'"prepared"' in (side.disk.find(JOURNAL) or b""):
            self.accuse("the destination changes what it has said is complete")

    def look(self) -> None:
        super().look()
        if self.has_changed and self.has_begun:
            self.has_changed = False
            self._judge()

    def _judge(self) -> None:
        """Judge it as if everything ended now: each side's process, or its machine, where that
        comes to anything else.
        """
        self.ends += 1
        if self.meddled:
            self._judge_what_was_meddled_with()
            return
        ends = [self._ends_of(side) for side in self.sides.values()]
        for source, destination in itertools.product(*ends):
            fates = source.fate, destination.fate
            self._judge_views((source.found[0], destination.found[0]), fates)
            # What a disk has wrong is not remembered where everything has died.
            # And a stranger that has died doesn't come back to take leave.
            # Whoever serves what a disk has lost empties the page cache: only what was flushed is
            # sure to be there then.
            has_lost = self.source.disk.has_lost or self.destination.disk.has_lost
            is_alone = not (self.destination.has_lied or has_lost or self._is_taken())
            if self._afterlife is not None and is_alone:
                seen = likeness((*source.found, *destination.found))
                self._afterlife.see(self, fates, (len(source.found), seen))
            if self._until is not None and self._until.is_at(self.ends, fates):
                self.reached = self.remains(fates)

    def _judge_what_was_meddled_with(self) -> None:
        """See that nothing is given away, or taken for the image, that is not at its name."""
        if "source" in self.meddled and self._is_given:
            raise Violation("the source gives away what its name doesn't lead to")
        found = View.of(self.destination.disk, after_failure=False)
        state = Beside.of(found).image_state.state
        if "destination" not in self.meddled or state not in (State.PREPARED, State.OWNER):
            return
        if found.image is None or len(found.image) != SIZE:
            raise Violation(f"the destination is {state.name}, and its image is not there")
        if faults := self.writer.faults(found.image):
            raise Violation(f"the destination is {state.name}, and {faults[0]}")

    def _is_taken(self) -> bool:
        """Whether the destination is prepared for a stranger."""
        record = self._beside(self.destination).image_state.record
        return (
            record is not None
            and record.state is State.PREPARED
            and record.session in self.strangers
        )

    @staticmethod
    def _ends_of(side: Side) -> list[_End]:
        now = side.view(after_failure=False)
        if side.disk.is_synced:
            return [_End("process", (now,))]
        failed = side.view(after_failure=True)
        return [_End("process", (now, failed)), _End("machine", (failed,))]

    def _judge_views(self, left: Sequence[View], fates: Sequence[str]) -> None:
        source, destination = map(Beside.of, left)
        is_marked = destination.marker or destination.image_state.record is not None
        if not is_marked and left[1].image not in (None, GARBAGE):
            raise Violation("the destination's image was changed, and nothing beside it says so")
        canonical = judge(source, destination, self.plain)
        at = SIDES.index(canonical)
        image = left[at].image
        if image is None:
            raise Violation(f"the {canonical}'s copy is canonical, and there is none")
        if faults := self.writer.faults(image, flushed=fates[at] == "machine", at=canonical):
            raise Violation(f"the {canonical}'s copy is canonical, and {faults[0]}")

    # What is on the disks

    @property
    def is_owner(self) -> bool:
        """Whether the image is the destination's own, as what is on its disk says."""
        return self._beside(self.destination).is_owner

    def canonical(self) -> str:
        """Return whose copy is canonical, as ``whose`` says."""
        return self.canonical_after(("process", "process"))

    def canonical_after(self, fates: Sequence[str]) -> str:
        left = [
            self._beside(side, after_failure=fate == "machine")
            for fate, side in zip(fates, self.sides.values(), strict=True)
        ]
        return judge(left[0], left[1], self.plain)

    @staticmethod
    def _beside(side: Side, *, after_failure: bool = False) -> Beside:
        return Beside.of(View.of(side.disk, after_failure=after_failure))

    @property
    def _is_given(self) -> bool:
        """Whether the source can't take the image back."""
        record = self.source.disk.find(JOURNAL)
        return record is not None and any(each in record for each in _GIVEN)

    # The end

    def is_settled(self) -> bool:
        """Whether nothing more is to be expected."""
        source, destination = self.source, self.destination
        if self.starting:
            return False
        if self.meddled and not self.world.upon:
            since = self.world.clock.seconds() - max(self.meddled.values())
            if since > SETTLED_SECONDS:
                return True
        if not source.lives:
            if not destination.lives:
                return True
            if self.is_owner:
                # Most of what comes now is the same each time.
                return destination.role == "serve" or self.served_by[-1] == "destination"
            return source.down_for_good
        if destination.down_for_good and self._is_given:
            return True
        if self.world.upon:
            return False
        if not destination.lives or self.brief:
            return self.writer.acknowledged > self.acknowledged_before + 1 and self.source_serves
        return False

    def play(self) -> None:
        """Let it all happen, and judge it.

        :raises Violation: what must not have happened.
        """
        try:
            self.world.run_until(lambda: self.reached or self.is_settled(), PATIENCE)
        except Stuck as error:
            raise Violation(f"it never ends: {error}") from error
        if self.reached is None:
            self.examine()

    def examine(self) -> None:
        """Look at what is left once all processes are dead, and what comes of starting them.

        :raises Violation: it is not as it must be.
        """
        self.hear()
        self.world.upon.clear()
        for side in self.sides.values():
            side.kill(host=False)
        self._judge()
        if self.meddled:
            return
        canonical = self.canonical()
        served = [name for name, side in self.sides.items() if self._can_serve(side)]
        if served not in ([], [canonical]):
            raise Violation(f"the {canonical}'s copy is canonical, and served is that of {served}")

    def _can_serve(self, side: Side) -> bool:
        if side.disk.find(IMAGE) is None:
            return False
        side.errors = 0
        side.start("serve")
        return side.server is not None and isinstance(side.server.service.role, Serving)


def replay(schedule: Schedule, told: Callable[[Trial], object]) -> None:
    """Play *schedule* from its beginning, through all its endings.

    :param told: called with each trial before it is played.
    :raises Violation: what must not have happened.
    """
    remains: Remains | None = None
    endings = schedule.endings
    for at in range(len(endings) + 1):
        part = replace(schedule, endings=endings[:at])
        until = endings[at] if at < len(endings) else None
        trial = Trial(part, remains, until=until)
        told(trial)
        trial.play()
        remains = trial.reached
        if until is not None and remains is None:
            raise Violation(f"it is over before {until}")

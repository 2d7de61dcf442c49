"""The real code, broken on purpose: what the simulation has to find, or it proves nothing.

A mutation names places and what stands there, and fails loudly where that stands there no more.
"""

from __future__ import annotations

import inspect
import random
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, count, islice
from types import CodeType, FunctionType, SimpleNamespace
from typing import Any

from twisted.internet.task import LoopingCall

from flexmigrate.image import disk, trust
from flexmigrate.image.durability import Durability
from flexmigrate.image.file import Image
from flexmigrate.migration.comparison import comparer
from flexmigrate.migration.comparison.verifier import Verifier
from flexmigrate.migration.destination.handover import DestinationHandover
from flexmigrate.migration.ownership.ownership import Ownership
from flexmigrate.migration.ownership.status import ImageState
from flexmigrate.migration.source import handover
from flexmigrate.migration.source.attempt import Attempt
from flexmigrate.migration.source.copier import Copier
from flexmigrate.migration.source.handover import HandoverTerms, SourceHandover
from flexmigrate.migration.source.parking import Parking
from flexmigrate.server.commands import Commands
from flexmigrate.server.connection import NBDServerProtocol
from flexmigrate.server.export import Export
from flexmigrate.server.transmission import Transmission
from simulation.schedules import (
    LIES,
    Schedule,
    drawn,
    forgotten_flushes,
    hidden_data,
    moving_names,
    pairs,
    returning_clients,
    set_clocks,
    singles,
    speakers,
    strange,
    truthful,
)

MOST = 3000
"""Schedules, in which a mutation has to be found."""


class PlaceGone(AssertionError):
    """What a mutation was to change isn't there any more: give it its new place."""


@dataclass(frozen=True)
class Change:
    """One place: a function, and what stands in it once and is to stand there instead."""

    function: Callable[..., Any]
    old: str
    new: str

    def code(self) -> CodeType:
        """Return the function's code with the change."""
        source = textwrap.dedent(inspect.getsource(self.function))
        if source.count(self.old) != 1:
            raise PlaceGone(f"{self.function.__qualname__}: {self.old!r} is not there once")
        text = "from __future__ import annotations\n" + source.replace(self.old, self.new)
        found: dict[str, Any] = {}
        exec(compile(text, f"<{self.old}>", "exec"), self.target.__globals__, found)
        code: CodeType = found[self.target.__name__].__code__
        return code

    @property
    def target(self) -> FunctionType:
        """The function as a function."""
        assert isinstance(self.function, FunctionType)
        return self.function


@dataclass(frozen=True)
class Mutation:
    """Something that somebody could do wrong one day.

    :ivar plain: it is of the plain handover.
    :ivar after: what faults have to be there, in their order, where it takes one or two that are
        rare; each as a schedule begins to name it.
    :ivar lie: the schedules of the lie by which alone it is found.
    """

    name: str
    changes: tuple[Change, ...]
    plain: bool = False
    after: tuple[str, ...] = ()
    lie: Callable[[], Iterator[Schedule]] | None = None

    def hunted_in(self) -> Iterator[Schedule]:
        """Yield the schedules in which it must be found: so many, and no more."""
        draw = random.Random(1)
        if self.lie is not None:
            found = list(self.lie())
            draw.shuffle(found)
            yield from found[:MOST]
            return
        if self.after:
            family = pairs() if len(self.after) > 1 else singles()
            found = [each for each in family if self._fits(each)]
            draw.shuffle(found)
            yield from found[:MOST]
            return
        one, two = list(singles()), draw.sample(list(pairs()), MOST)
        draw.shuffle(one)
        three = map(drawn, count())
        for each in islice(chain.from_iterable(zip(one, two, three, strict=False)), MOST):
            if self.plain == ("plain" in each.options):
                yield each

    def hunted_without(self, most: int) -> Iterator[Schedule]:
        """Yield schedules in which nobody tells this mutation's lie, *most* of each kind: its own
        without it, those of the other lies, and some without any.
        """
        assert self.lie is not None
        draw = random.Random(1)
        own = list({str(each): each for each in map(truthful, self.lie())}.values())
        others = [schedule for lie in LIES if lie is not self.lie for schedule in lie()]
        for family in (own, others, list(singles())):
            draw.shuffle(family)
            yield from family[:most]

    def _fits(self, schedule: Schedule) -> bool:
        return self.plain == ("plain" in schedule.options) and all(
            str(fault).startswith(begin)
            for fault, begin in zip(schedule.faults, self.after, strict=True)
        )

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Have the code be wrong, for a while."""
        codes = [change.code() for change in self.changes]
        before = [change.target.__code__ for change in self.changes]
        for change, code in zip(self.changes, codes, strict=True):
            change.target.__code__ = code
        try:
            yield
        finally:
            for change, code in zip(self.changes, before, strict=True):
                change.target.__code__ = code


class ByTimeOfDay:
    """Timers as Twisted's own reactors have them: they are due at a time of day.

    :param reactor: looks how late it is, every second.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def callLater(self, delay: float, call: Callable[[], object]) -> Any:
        """As IReactorTime has it, as far as a time limit needs it."""
        due = time.time() + delay

        def look() -> None:
            if time.time() >= due:
                looking.stop()
                call()

        looking = LoopingCall(look)
        looking.clock = self._reactor
        looking.start(1.0, now=False)
        return SimpleNamespace(active=lambda: looking.running, cancel=looking.stop)


def _one(name: str, function: Callable[..., Any], old: str, new: str = "pass") -> Mutation:
    return Mutation(name, (Change(function, old, new),))


_CLEARED_LATE = Change(
    Copier.send_dirty,
    "    await self._all_answered()",
    "    await self._all_answered()\n    while self.dirty.take(1 << 30) is not None: pass",
)

_LET_GO = (
    "    self._environment.dismiss()\n"
    "    # Their connections end in the reactor's next turn: "
    "before that nothing else keeps it busy.\n"
    "    await deferLater(self._reactor, 0)\n"
    "    await self._handing_over.finish(self._connection.client)\n"
)

_FORGOTTEN = Change(
    Durability.flush, "if failure is not None and not self.is_rewriting:", "if False:"
)

MUTATIONS = (
    # The disk
    _one("a record has its name before its bytes are durable", disk._fill, "disk.fsync(fd)"),
    _one("a record's name is not made durable", disk.sync_folder, "disk.fsync(folder)"),
    Mutation(
        "what a dead process wrote is acted upon before it is durable",
        (
            Change(
                Ownership._make_durable,
                "disks.sync_folder(self._disk, self._records_prefix)",
                "pass",
            ),
        ),
        after=("process:source", "host:source"),
    ),
    Mutation(
        "a failed write of 'committed' is taken for none",
        (
            Change(
                Ownership._restore,
                "if journal.load(self._disk, path, self.image_state.writers) != before:",
                "if False:",
            ),
        ),
        after=("error:source",),
    ),
    _one(
        "a flush is answered without being done",
        Commands._sync,
        "self._storage.flush()",
        "self._storage.run(int)",
    ),
    _one("FUA is not heeded", Commands._change, "if flags & _FUA:", "if False:"),
    # The copy
    _one("a change is not marked", Transmission.serve, "observer.mark(offset, length)"),
    # Within a session it is found when all is compared, nearly always.
    Mutation(
        "a change is marked a while after it is answered",
        (
            Change(
                Commands._change,
                "self._changed(offset, length)",
                "self._storage._reactor.callLater(0.01, self._changed, offset, length)",
            ),
        ),
        plain=True,
    ),
    # Within a session it takes two mistakes: what differs is found when it is compared.
    Mutation("marks are cleared after their blocks were read", (_CLEARED_LATE,), plain=True),
    Mutation(
        "marks are cleared after their blocks were read, and what differs is called equal",
        (_CLEARED_LATE, Change(Verifier._judge, "if equal:", "if True:")),
    ),
    Mutation(
        "what differs at the destination is called equal there",
        (Change(comparer.judge, "== each.digest", "!= b''"),),
        after=("lost:destination",),
    ),
    Mutation(
        "what differs at the destination is called equal at the source",
        (Change(Verifier._judge, "if equal:", "if True:"),),
        after=("lost:destination",),
    ),
    _one("clients are not parked", Attempt._send_rest, "await self._export.park()"),
    # The source
    _one(
        "the destination is not asked to prepare",
        Attempt._make_way,
        "await self._handing_over.prepare(self.passes.digest)",
    ),
    _one(
        "COMMIT is said before 'committed' is recorded",
        SourceHandover.commit,
        "await self._record_commit(digest)",
        "self._terms.storage.run(self._terms.ownership.commit, self._attempt, digest)",
    ),
    _one(
        "COMMIT is not said",
        SourceHandover.confirm,
        "await confirm(self._reactor, self._client, self._terms.ownership)",
    ),
    _one(
        "a committed image is served",
        ImageState.to_serve,
        "if record.state is State.COMMITTED and not record.plain:",
        "if record.state is State.COMMITTED:\n        return MayServe.SERVE, ''\n    if False:",
    ),
    _one(
        "an image that was given away is served",
        ImageState.to_serve,
        "}.get(record.state)",
        "}.get(record.state) if record.state is not State.DONE else None",
    ),
    _one(
        "the file is unlinked before 'done' is recorded",
        handover.finish,
        "await terms.storage.run(terms.ownership.done)",
        "if terms.action is Action.UNLINK: await terms.storage.unlink()\n"
        "        await terms.storage.run(terms.ownership.done)",
    ),
    Mutation(
        "clients are let go only after all is recorded, and the destination was told",
        (
            Change(
                Attempt.finish_giving,
                _LET_GO,
                "    await self._handing_over.finish(self._connection.client)\n"
                "    self._environment.dismiss()\n",
            ),
        ),
        after=("stall:",),
    ),
    # The destination
    Mutation(
        "a sender is prepared for though its requests are under way",
        (Change(NBDServerProtocol.seal, "or transmission.commands.under_way", ""),),
        lie=strange,
    ),
    _one(
        "PREPARE is answered before 'prepared' is recorded",
        DestinationHandover._prepare,
        "await self._storage.run(self.ownership.prepare, digest)",
        "self._storage.run(self.ownership.prepare, digest)",
    ),
    _one(
        "'prepared' is recorded and not answered for",
        DestinationHandover._prepare,
        "await self._storage.run(self.ownership.prepare, digest)",
    ),
    _one(
        "COMMIT is answered before 'owner' is recorded",
        DestinationHandover._own,
        "await self._storage.run(self.ownership.own)",
        "self._storage.run(self.ownership.own)",
    ),
    _one(
        "what is prepared is overwritten without a record",
        DestinationHandover.receive,
        "self._storage.run(receive, opening, address, self.listens_at())",
        "self._storage.run(int)",
    ),
    Mutation(
        "nobody flushes before the destination is prepared",
        (
            Change(DestinationHandover._prepare, "await self._flush()", "pass"),
            Change(Copier.flush, "await self._client.flush()", "pass"),
        ),
    ),
    Mutation(
        "nobody flushes before a plain destination takes over",
        (
            Change(DestinationHandover._take, "await self._flush()", "pass"),
            Change(Copier.flush, "await self._client.flush()", "pass"),
        ),
        plain=True,
    ),
    # What everything else takes for granted
    Mutation(
        "a flush that failed is forgotten",
        (_FORGOTTEN,),
        lie=forgotten_flushes,
    ),
    Mutation(
        "a flush that failed is forgotten, and what is received then compared with the page cache",
        (_FORGOTTEN, Change(Durability.begin_receiving, "if self.failure is None:", "if True:")),
        lie=forgotten_flushes,
    ),
    Mutation(
        "holes are believed on any filesystem",
        (Change(trust.judge, "Trust(filesystem.name, not doubt,", "Trust(filesystem.name, True,"),),
        lie=hidden_data,
    ),
    Mutation(
        "a destination doesn't look whether its image has its name and its size",
        (
            Change(
                DestinationHandover._fault,
                "await self._storage.run(self._image.given_name_fault)",
                "None",
            ),
            Change(
                DestinationHandover._look,
                "await self._storage.run(self._image.given_name_fault)",
                "None",
            ),
        ),
        lie=moving_names,
    ),
    Mutation(
        "a destination doesn't look whether somebody else has changed its image's size",
        (Change(Image.size_fault, "size == self.size", "True"),),
        lie=moving_names,
    ),
    Mutation(
        "a source doesn't look whether its image has its name",
        (Change(HandoverTerms.check_name, "if fault is not None:", "if False:"),),
        lie=moving_names,
    ),
    Mutation(
        "anybody may say COMMIT",
        (
            Change(
                Ownership._refusal_of_key,
                "if is_key(opening.key, digest, KeyKind.COMMIT, opening.session, opening.attempt):",
                "if True:",
            ),
        ),
        lie=speakers,
    ),
    Mutation(
        "anybody may replace what is prepared",
        (
            Change(
                Ownership.retracts,
                "return is_key(opening.key, given_up.retract_digest, KeyKind.RETRACT, session, "
                "attempt)",
                "return True",
            ),
        ),
        lie=speakers,
    ),
    Mutation(
        "a destination sets no marker before the first byte",
        (Change(Ownership.expect, "self._set_marker()", "pass"),),
        plain=True,
    ),
    Mutation(
        "clients are parked until it is a time of day",
        (
            Change(
                Parking.within,
                "addTimeout(left, self._reactor)",
                "addTimeout(left, __import__('simulation.mutations').mutations.ByTimeOfDay("
                "self._reactor))",
            ),
        ),
        lie=set_clocks,
    ),
    Mutation(
        "what a client has left behind is carried out when it is back",
        (Change(Export.begin, "other.abandon()", "pass"),),
        lie=returning_clients,
    ),
)

LIED = tuple(each for each in MUTATIONS if each.lie in LIES)
"""Those that are found by a lie, and only by it."""

"""Many schedules in one process, as fast as that goes; and several processes beside each other."""

from __future__ import annotations

import gc
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

from constantly import NamedConstant
from twisted.logger import Logger, globalLogBeginner
from twisted.python.failure import Failure

from flexmigrate.client import link
from flexmigrate.errors import FlexmigrateError
from flexmigrate.server import transmission
from flexmigrate.testing.disk import Died
from flexmigrate.wire import reply_parser
from simulation.judge import Afterlife, Trial
from simulation.mutations import LIED, MUTATIONS, Mutation
from simulation.remains import Remains
from simulation.schedules import Schedule, drawn, lies, main_singles, pairs, singles, strange
from simulation.sides import Violation

COLLECT_EVERY = 50
"""Schedules between two collections of garbage: each leaves a world of circles behind, and to take
new memory for more of them costs more than to collect them."""

SMALL = 16 * 1024
"""Bytes of the buffers that each connection or server has: no request here is as long, and to clear
larger ones would take a third of the time."""

CLAIMS = "FLEXMIGRATE_SIMULATE_CLAIMS"
"""The name of the folder that processes have in common; see `claimed`."""

_PATHS = (str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", ""))


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, _PATHS))}


ends_judged = 0
"""In all schedules of this process; see ``judge``."""

gone_on = 0
"""How many of them went on from an end."""

bugs: list[str] = []
"""What was logged as a failure that nobody expects, in the schedule that is played."""


def prepare() -> None:
    """Make this process one that plays schedules, and does nothing else."""
    Logger.emit = _emit  # type: ignore[method-assign]
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False, discardBuffer=True)
    # Coroutines of processes that died are closed by the collector, and complain.
    sys.unraisablehook = lambda what: None
    gc.disable()
    gc.collect()
    gc.freeze()  # what is here by now stays
    transmission.Scratch.__init__.__defaults__ = (SMALL,)
    transmission.SMALL_READ = SMALL
    reply_parser.BUFFER = SMALL
    link.HELLO_BUFFER = SMALL


def _emit(logger: Logger, level: NamedConstant, format: str | None = None, **event: Any) -> None:  # noqa: A002
    """Tell nobody what nobody hears: to make events of it would take a while."""
    failure = event.get("log_failure")
    if isinstance(failure, Failure) and not failure.check(FlexmigrateError, OSError, Died):
        bugs.append(f"{failure.type.__name__}: {failure.getErrorMessage()}")


def try_out(
    schedule: Schedule, remains: Remains | None = None, seen_by: Afterlife | None = None
) -> str | None:
    """Play *schedule*, from what is left at its last ending; return what is wrong, or None.

    :param seen_by: what is told of all its ends, to go on from them.
    """
    global ends_judged  # noqa: PLW0603  # what a process has done
    bugs.clear()
    trial: Trial | None = None
    time.time = lambda: _time_of_day(trial)
    try:
        trial = Trial(schedule, remains, afterlife=seen_by)
        trial.play()
    except Violation as violation:
        return str(violation)
    except Exception as error:  # noqa: BLE001  # it is as wrong, and the schedule is told with it
        return f"{type(error).__name__}: {error}"
    finally:
        if trial is not None:
            ends_judged += trial.ends
    return f"a bug was logged: {bugs[0]}" if bugs else None


def _time_of_day(trial: Trial | None) -> float:
    """Return what a process of *trial* is told that asks for the time of day."""
    return 0.0 if trial is None else trial.world.clock.seconds() + trial.world.time_of_day


def faults_in(
    schedules: Iterable[Schedule], seen_by: Afterlife | None = None
) -> Iterator[tuple[Schedule, str | None]]:
    """Play them all, and what comes of their ends, if *seen_by* is there to know that; yield each
    with what is wrong, or None.
    """
    global gone_on  # noqa: PLW0603  # what a process has done
    for number, schedule in enumerate(schedules):
        if number % COLLECT_EVERY == 0:
            gc.collect()
        yield schedule, try_out(schedule, seen_by=seen_by)
        while seen_by is not None and (found := seen_by.next()) is not None:
            gone_on += 1
            if gone_on % COLLECT_EVERY == 0:
                gc.collect()
            yield found[0], try_out(*found, seen_by)


def named(what: str) -> Iterator[Schedule]:
    """Return all the schedules that are called *what*; of ``random`` there is no end."""
    families = {
        "singles": singles,
        "main": main_singles,
        "pairs": pairs,
        "strange": strange,
        "lies": lies,
        "random": lambda: map(drawn, count()),
    }
    return families[what]()


def play(what: str, first: int, last: int, step: int) -> int:
    """Play each *step*-th of these; print what is wrong, at once, and then how many there were.

    :return: how many were wrong.
    """
    began, played, wrong = time.perf_counter(), 0, 0
    afterlife = Afterlife(claimed)
    for schedule, fault in faults_in(islice(named(what), first, last, step), afterlife):
        played += not schedule.endings
        if fault is not None:
            wrong += 1
            print(f"{fault}\n    make simulate SCHEDULE='{schedule}'", flush=True)
    seconds = time.perf_counter() - began
    print(
        f"{what}: {played} schedules, {ends_judged} ends, {afterlife.ways} ways to go on, "
        f"{gone_on} of them played, {wrong} wrong, {(played + gone_on) / seconds:.0f} a second",
        flush=True,
    )
    return wrong


def hunt(first: int, step: int) -> int:
    """Break the code in each *step*-th way, and see that the simulation finds it.

    :return: how many were not found.
    """
    missed = 0
    for mutation in MUTATIONS[first::step]:
        found = _found(mutation, mutation.hunted_in())
        if found is None:
            missed += 1
            print(f"not found: {mutation.name}", flush=True)
        else:
            number, schedule, fault = found
            print(f"found: {mutation.name}: by schedule {number}, {schedule}: {fault}", flush=True)
    return missed


def hunt_without(most: int, first: int, step: int) -> int:
    """Break the code in each *step*-th way that a lie has to find, and see that it isn't found
    where nobody tells that lie: see `Mutation.hunted_without`.

    :return: how many were found all the same.
    """
    found_otherwise = 0
    for mutation in LIED[first::step]:
        found = _found(mutation, mutation.hunted_without(most))
        if found is None:
            print(f"by its lie alone: {mutation.name}", flush=True)
        else:
            found_otherwise += 1
            _, schedule, fault = found
            print(f"without its lie: {mutation.name}: by {schedule}: {fault}", flush=True)
    return found_otherwise


def _found(mutation: Mutation, schedules: Iterable[Schedule]) -> tuple[int, Schedule, str] | None:
    """Return the first of *schedules* that finds the mutation, with its number and its fault."""
    with mutation.applied():
        for number, (schedule, fault) in enumerate(faults_in(schedules), 1):
            if fault is not None:
                return number, schedule, fault
    return None


def claimed(what: object) -> bool:
    """Whether *what* is for this process to do, because no process was told of it before.

    Of those that have one folder in common; a process that has none does everything itself.
    """
    folder = os.environ.get(CLAIMS)
    if folder is None:
        return True
    name = hashlib.sha256(repr(what).encode()).hexdigest()
    try:
        os.close(os.open(os.path.join(folder, name), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def beside(*arguments: object) -> tuple[int, list[str]]:
    """Run ``python -m simulation`` with *arguments* in as many processes as there are cores, of
    which each does its part; the last two arguments are where to begin, and in which steps to go.

    :return: the highest exit status, and all that was printed.
    """
    *what, first, step = arguments
    cores = len(os.sched_getaffinity(0))
    assert isinstance(first, int)
    assert isinstance(step, int)
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "simulation"]
            + [str(each) for each in (*what, first + core * step, step * cores)],
            env=_environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        for core in range(cores)
    ]
    printed = [line for process in running for line in process.communicate()[0].splitlines()]
    return max(abs(process.returncode) for process in running), printed


def told_of(schedule: str) -> list[str]:
    """Return what a process of its own tells of *schedule*, as of one that is played again."""
    return subprocess.run(
        [sys.executable, "-m", "simulation", schedule],
        env=_environment(),
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    ).stdout.splitlines()

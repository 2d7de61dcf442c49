"""Plays schedules; see docs/simulation.rst.

    python -m simulation SCHEDULE
    python -m simulation random|main|singles|pairs LAST [FIRST [STEP]]
    python -m simulation mutations [FIRST [STEP]]
    python -m simulation alone MOST [FIRST [STEP]]

With one schedule, as a failure prints it, all that happens in it is told.
"""

from __future__ import annotations

import sys

from simulation import judge
from simulation.judge import Trial
from simulation.running import hunt, hunt_without, play, prepare
from simulation.schedules import Schedule


def replay(text: str) -> int:
    """Play one schedule, and tell what happens in it."""
    fault = ""
    trials: list[Trial] = []
    try:
        judge.replay(Schedule.parse(text), trials.append)
    except Exception as error:  # noqa: BLE001  # whatever it is, it is told
        fault = f"{type(error).__name__}: {error}"
    for number, trial in enumerate(trials):
        if number:
            print(f"{'fate':12} {trial.schedule.endings[-1]}")
        for who, what in trial.world.trace:
            print(f"{who:12} {what}")
    print(fault or "all is as it must be")
    return 1 if fault else 0


def main(arguments: list[str]) -> int:
    """Do what *arguments* say; return the exit status."""
    prepare()
    if len(arguments) == 1 and " " in arguments[0]:
        return replay(arguments[0])
    what, *numbers = arguments
    if what == "mutations":
        first, step, *_ = (*map(int, numbers), *(0, 1)[len(numbers) :])
        return 1 if hunt(first, step) else 0
    last, first, step, *_ = (*map(int, numbers), *(0, 1)[len(numbers) - 1 :])
    if what == "alone":
        return 1 if hunt_without(last, first, step) else 0
    return 1 if play(what, first, last, step) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

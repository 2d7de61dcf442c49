"""``python -m bench.migrating``: how well migrations go, beside nbdcopy to nbdkit, in one run.

    python -m bench.migrating                            everything: about a quarter of an hour
    python -m bench.migrating --rounds 1 --handovers 5   the same, short
    python -m bench.migrating --rows dense --rounds 3    some rows, shown and not kept

The exit status does not depend on any figure: 0 if it came to its end, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial

from bench.figures import at_least, at_most, ratio_at_least
from bench.link import GIGABIT
from bench.migrations import (
    CLIENT,
    DENSE,
    FAR,
    HANDOVERS,
    LARGE,
    MIGRATIONS,
    OUTRUN,
    SCATTERED,
    TEBIBYTE,
    TLS,
    VERIFIED,
    Figures,
    Grounds,
    Migrating,
)
from bench.moving import PATIENCE
from bench.processes import MIB
from bench.report import (
    MEBIBYTES,
    MIB_PER_SECOND,
    MILLISECONDS,
    OF_THE_SOURCE,
    OF_UNVERIFIED,
    PER_CENT,
    SECONDS,
    Log,
    Row,
    publish,
)
from bench.running import Step, add_common_options, perform, place_for, shown_if_interrupted, take
from bench.stage import Scale, Stage, Unmeasured
from demo.screen import Screen

OURS, THEIRS = "flexmigrate", "nbdcopy to nbdkit"

ROWS = (
    Row("dense", "dense", MIB_PER_SECOND, "bandwidth", (DENSE,), ratio_at_least(1.3)),
    Row("verified", "dense, verified", OF_UNVERIFIED, "times", (VERIFIED,), at_most(2.0)),
    Row("tls", "dense, TLS", MIB_PER_SECOND, "bandwidth", (TLS,), ratio_at_least(0.7)),
    Row(
        *("sparse", "sparse, 512 pieces", MIB_PER_SECOND, "bandwidth", (SCATTERED,)),
        ratio_at_least(1.0),
    ),
    Row(
        *("sparse-allocated", "sparse, disk space of the copy", OF_THE_SOURCE, "allocated"),
        *((SCATTERED,), at_most(1.01)),
    ),
    *(
        Row(
            *(task.name, f"{delay} ms each way, 1 Gbit/s", MIB_PER_SECOND, "bandwidth", (task,)),
            at_least(0.9 * GIGABIT),
        )
        for delay, task in FAR.items()
    ),
    Row("parked", "parked, median", MILLISECONDS, "median", (HANDOVERS,), at_most(0.030)),
    Row("parked-worst", "parked, worst", MILLISECONDS, "worst", (HANDOVERS,), at_most(0.150)),
    Row("parked-large", "parked, 1 GiB", MILLISECONDS, "parked", (LARGE,), at_most(0.030)),
    Row(
        *("parked-longest", "any wait of a whole migration, median of the longest", MILLISECONDS),
        *("longest", (HANDOVERS,), at_most(0.150)),
    ),
    Row(
        *("client-share", "client in the first pass, of its rate without", PER_CENT, "share"),
        *((CLIENT,), at_least(0.5)),
    ),
    Row(
        *("outrun", "writer faster than a link of 50 MiB/s, until it ends", SECONDS, "seconds"),
        *((OUTRUN,), at_most(PATIENCE)),
    ),
    Row(
        *("tebibyte-source", "huge and sparse, memory of the source", MEBIBYTES, "source"),
        *((TEBIBYTE,), at_most(128 * MIB)),
    ),
    Row(
        *("tebibyte-destination", "huge and sparse, memory of the destination", MEBIBYTES),
        *("destination", (TEBIBYTE,), at_most(128 * MIB)),
    ),
    Row(
        *("tebibyte-first", "huge and sparse, until the first byte is sent", SECONDS, "first"),
        *((TEBIBYTE,), at_most(1.0)),
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, show and write down; return the exit status."""
    options = _options(arguments)
    rows = [row for row in ROWS if not options.rows or row.name in options.rows]
    return perform(lambda screen: _run(options, rows, screen))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench.migrating", description="Migrate, beside nbdcopy to nbdkit."
    )
    add_common_options(parser, [row.name for row in ROWS], rounds=3)
    parser.add_argument(
        "--handovers", type=int, default=50, help="to measure the parked time of (default: 50)"
    )
    parser.add_argument(
        "--size", type=int, default=1024, help="MiB of the dense image (default: 1024)"
    )
    parser.add_argument("--alone", action="store_true", help="without nbdcopy")
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace, rows: Sequence[Row], screen: Screen) -> None:
    wanted = {source.name for row in rows for source in row.sources}
    tasks = [task for task in MIGRATIONS if task.name in wanted]
    log = Log([OURS] if options.alone else [OURS, THEIRS], options.rounds)
    # No measurement here has a time that could be chosen, and two cores have three processes.
    scale = Scale(0, options.size * MIB)
    with (
        shown_if_interrupted("migrating", log, rows, screen),
        Stage(scale, options.folder, pinned=False) as stage,
    ):
        log.note(f"The images are on {stage.kind}.")
        screen.progress("writing the image")
        stage.make_image()
        grounds = Grounds(stage, options.handovers)
        steps = [
            Step(number, task.name, who, partial(_measure, task, who, grounds))
            for number, task, who in _order(tasks, options)
        ]
        take(steps, log, screen)
    publish("migrating", log, rows, screen, place_for(options))


def _measure(task: Migrating, who: str, grounds: Grounds) -> Figures:
    """Measure one contestant.

    :raises Unmeasured: if that is not possible
    """
    measure = task.ours if who == OURS else task.theirs
    try:
        return measure(grounds) if measure else {}
    except AssertionError as error:  # what support.processes raises: too late, or ended early
        raise Unmeasured(str(error)) from error


def _order(
    tasks: Sequence[Migrating], options: argparse.Namespace
) -> Iterator[tuple[int, Migrating, str]]:
    """Yield what to do: both contestants on one task, in turns the first, then the next."""
    for number in range(options.rounds):
        for place, task in enumerate(tasks):
            if number and task.once:
                continue
            both = (OURS, THEIRS) if task.theirs and not options.alone else (OURS,)
            yield from (
                (number, task, who) for who in (both if (number + place) % 2 else both[::-1])
            )


if __name__ == "__main__":
    sys.exit(main())

"""``python -m bench.serving``: how quick the server is, beside Debian's, in one run.

    python -m bench.serving                                        everything: about half an hour
    python -m bench.serving --rounds 1 --seconds 1                 the same, short: some minutes
    python -m bench.serving --rows read-4k-1,write-4k-1 --rounds 3 some rows, shown and not kept

The exit status does not depend on any figure: 0 if it came to its end, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial

from bench.processes import MIB
from bench.report import Log, Row, publish
from bench.rows import ROWS
from bench.running import Step, add_common_options, perform, place_for, shown_if_interrupted, take
from bench.servers import KINDS, Kind
from bench.stage import Scale, Stage
from bench.tasks import TASKS, Task
from demo.screen import Screen


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, show and write down; return the exit status."""
    options = _options(arguments)
    rows = [row for row in ROWS if not options.rows or row.name in options.rows]
    return perform(lambda screen: _run(options, rows, screen))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench.serving", description="Serve an image beside Debian's servers."
    )
    add_common_options(parser, [row.name for row in ROWS], rounds=5)
    add_server_options(parser, size=1024)
    return parser.parse_args(arguments)


def add_server_options(parser: argparse.ArgumentParser, size: int) -> None:
    """Add those of a measurement of servers.

    :param size: of the image, MiB, unless told otherwise.
    """
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--size", type=int, default=size, help="MiB of the image")
    parser.add_argument(
        "--servers", nargs="+", choices=[kind.name for kind in KINDS], help="only these"
    )


def chosen(options: argparse.Namespace) -> list[Kind]:
    """Return the servers that are to be measured."""
    return [kind for kind in KINDS if not options.servers or kind.name in options.servers]


def _run(options: argparse.Namespace, rows: Sequence[Row], screen: Screen) -> None:
    kinds = chosen(options)
    wanted = {source.name for row in rows for source in row.sources}
    tasks = [task for task in TASKS if task.name in wanted]
    log = Log([kind.name for kind in kinds], options.rounds)
    scale = Scale(options.seconds, options.size * MIB)
    with (
        shown_if_interrupted("serving", log, rows, screen),
        Stage(scale, options.folder, pinned=not options.no_pin) as stage,
    ):
        log.note(f"The images are on {stage.kind}.")
        screen.progress("writing the image")
        stage.make_image()
        steps = [
            Step(number, task.name, kind.name, partial(task.run, stage, kind))
            for number, task, kind in order(tasks, kinds, options.rounds)
        ]
        take(steps, log, screen)
    publish("serving", log, rows, screen, place_for(options))


def order(
    tasks: Sequence[Task], kinds: Sequence[Kind], rounds: int
) -> Iterator[tuple[int, Task, Kind]]:
    """Yield what to do: all servers on one task before the next, each time another one first."""
    for number in range(rounds):
        for place, task in enumerate(tasks):
            first = (number + place) % len(kinds)
            for kind in (*kinds[first:], *kinds[:first]):
                yield number, task, kind


if __name__ == "__main__":
    sys.exit(main())

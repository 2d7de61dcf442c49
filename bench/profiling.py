"""``python -m bench.profiling``: why a row is what it is: whose core is full, and with what.

    python -m bench.profiling                                      the rows of one kind of request
    python -m bench.profiling --rows write-1m-16 --rounds 3        some rows, shown and not kept

It needs perf, and has to run as root.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from bench.processes import MIB
from bench.report import Log, in_markdown, in_rst, machine, notes
from bench.rows import ROWS
from bench.running import Step, add_common_options, perform, place_for, take
from bench.samples import PLACES, sampled
from bench.servers import Kind, Running
from bench.serving import add_server_options, chosen, order
from bench.stage import Scale, Stage
from bench.tasks import COLD, OVER_UNIX, STREAM, TLS, Figures, Task
from demo.screen import Screen

TASKS = (*STREAM, *OVER_UNIX, COLD, TLS)

_TITLES = {source.name: row.title for row in reversed(ROWS) for source in row.sources}
_HEADER = (
    *("row", "server", "requests/s", "client's core, %", "server's core, %"),
    *(f"{place}, µs" for place in PLACES),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, show and write down; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="bench.profiling", description="Tell where the time of each row goes."
    )
    add_common_options(parser, [task.name for task in TASKS], rounds=1)
    add_server_options(parser, size=512)
    options = parser.parse_args(arguments)
    return perform(lambda screen: _run(options, screen))


def _run(options: argparse.Namespace, screen: Screen) -> None:
    kinds = chosen(options)
    tasks = [task for task in TASKS if not options.rows or task.name in options.rows]
    log = Log([kind.name for kind in kinds], options.rounds)
    scale = Scale(options.seconds, options.size * MIB)
    with Stage(scale, options.folder, pinned=not options.no_pin) as stage:
        log.note(f"The images are on {stage.kind}.")
        screen.progress("writing the image")
        stage.make_image()
        steps = [
            Step(number, task.name, kind.name, partial(profile, task, stage, kind))
            for number, task, kind in order(tasks, kinds, options.rounds)
        ]
        take(steps, log, screen)
    _publish(log, tasks, screen, place_for(options))


def profile(task: Task, stage: Stage, kind: Kind) -> Figures:
    """Measure one task; return besides its figures ``server``, of a core, what the server used, and
    for each of the `PLACES` the server's seconds for each request.
    """

    def measure(stage: Stage, server: Running) -> Figures:
        with sampled(server.pid, stage.folder) as seen:
            figures = task.measure(stage, server)
        each = figures["cpu"] / (sum(seen.values()) or 1)
        spent = {place: number * each for place, number in seen.items()}
        return {**figures, "server": figures["cpu"] * figures["rate"], **spent}

    return replace(task, measure=measure).run(stage, kind)


def _publish(log: Log, tasks: Sequence[Task], screen: Screen, out: Path | None) -> None:
    """Show the table, and write it to the folder *out*, if that is given."""
    found = [
        (task.name, kind, figures)
        for task in tasks
        for kind in log.contestants
        if (figures := log.medians(task.name, kind))
    ]
    lines = [_HEADER, *(_cells(*each) for each in found)]
    text = in_markdown(lines, notes(log))
    screen.clear()
    screen.note(text)
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / "profile.md").write_text(f"{text}\n")
    (out / "profile.inc").write_text(f"{in_rst(lines, notes(log))}\n")
    data = {
        "begun": log.begun.isoformat(timespec="seconds"),
        "machine": machine(),
        "rounds": log.rounds,
        "rows": [{"name": name, "server": kind, **figures} for name, kind, figures in found],
    }
    (out / "profile.json").write_text(f"{json.dumps(data, indent=1)}\n")
    screen.note(f"written to {out}: profile.md, profile.inc, profile.json")


def _cells(name: str, kind: str, figures: Mapping[str, float]) -> Sequence[str]:
    return (
        *(_TITLES[name], kind, f"{figures['rate']:,.0f}"),
        *(f"{100 * figures[which]:.0f}" for which in ("client", "server")),
        *(f"{1e6 * figures[place]:.1f}" for place in PLACES),
    )


if __name__ == "__main__":
    sys.exit(main())

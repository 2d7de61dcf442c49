"""The parts that both benchmarks share: options, Ctrl-C, and the final output."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.report import Log, Row, publish
from bench.stage import Unmeasured
from demo.screen import Screen

FIGURES = Path(__file__).resolve().parent.parent / "docs" / "figures"


def add_common_options(parser: argparse.ArgumentParser, rows: Sequence[str], rounds: int) -> None:
    """Add those that both take."""
    parser.add_argument(
        "--rows",
        type=_chosen(rows),
        default=(),
        metavar="ROW,…",
        help=f"only these, which are shown but not kept: {', '.join(rows)}",
    )
    parser.add_argument("--rounds", type=_positive, default=rounds, help=f"(default: {rounds})")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="where to write table, figures and plot (default: docs/figures; nowhere with --rows)",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        help="where to make the images (default: TMPDIR or /var/tmp, whichever is on a disk)",
    )
    parser.add_argument(
        "--no-pin", action="store_true", help="let servers and clients run on all cores"
    )


def place_for(options: argparse.Namespace) -> Path | None:
    """Return the folder to write to, None for none."""
    if options.out is not None:
        out: Path = options.out
        return out
    return None if options.rows else FIGURES


def perform(run: Callable[[Screen], None]) -> int:
    """Run a benchmark; return the exit status.

    SIGTERM ends it as Ctrl-C does, and both leave nothing behind.
    """
    screen = Screen(sys.stdout)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run(screen)
    except KeyboardInterrupt:
        screen.note("interrupted")
        return 130
    except Unmeasured as error:
        screen.note(f"nothing can be measured: {error}")
        return 1
    return 0


@dataclass(frozen=True)
class Step:
    """One measurement.

    :ivar round: its number, from 0.
    :ivar measure: takes it.
    """

    round: int
    source: str
    contestant: str
    measure: Callable[[], dict[str, float]]


def take(steps: Sequence[Step], log: Log, screen: Screen) -> None:
    """Take all measurements, and keep what they bring; what can't be measured stops nothing."""
    screen.note(f"{len(steps)} measurements")
    for done, step in enumerate(steps):
        screen.progress(
            f"{done}/{len(steps)}: round {step.round + 1}, {step.source}, {step.contestant}"
        )
        try:
            log.add(step.round, step.source, step.contestant, step.measure())
        except Unmeasured as error:
            log.miss(step.source, step.contestant, str(error))


@contextlib.contextmanager
def shown_if_interrupted(
    name: str, log: Log, rows: Sequence[Row], screen: Screen
) -> Iterator[None]:
    """Show what there is on Ctrl-C: half of a table is of some use, too."""
    try:
        yield
    except KeyboardInterrupt:
        publish(name, log, rows, screen, None)
        raise


def _chosen(rows: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        if unknown := set(names) - set(rows):
            raise argparse.ArgumentTypeError(f"no such row: {', '.join(sorted(unknown))}")
        return names

    return parse


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number

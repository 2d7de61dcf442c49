"""The results as tables (Markdown and reStructuredText), as JSON, and as a plot.

A `Log` keeps every figure of every round. A `Row` says which of them are shown, in which unit, and
what they are to reach. What could not be measured is in the table too, with the reason.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bench.figures import Aim, Spread, ratios
from bench.plot import Bar, draw
from bench.processes import MIB
from demo.screen import Screen


@dataclass(frozen=True)
class Unit:
    """The format of a kind of figures.

    :ivar scale: the figure is divided by it.
    :ivar digits: behind the point.
    """

    name: str
    scale: float
    digits: int

    def show(self, figure: float) -> str:
        """Return the figure without the unit's name."""
        return f"{figure / self.scale:,.{self.digits}f}"


PER_SECOND = Unit("requests/s", 1, 0)
MIB_PER_SECOND = Unit("MiB/s", MIB, 0)
MICROSECONDS = Unit("µs", 1e-6, 1)
MILLISECONDS = Unit("ms", 1e-3, 2)
SECONDS = Unit("s", 1, 2)
PER_CENT = Unit("%", 0.01, 1)
OF_THE_MEAN = Unit("of the mean", 1, 2)
OF_THE_SOURCE = Unit("of the source's", 1, 3)
OF_UNVERIFIED = Unit("of the time without", 1, 2)
MEBIBYTES = Unit("MiB", MIB, 0)
_RATIO = Unit("", 1, 2)

# Where programs and temporary files are on this machine is nobody's business; their names are.
_FOLDERS = re.compile(r"(?<![\w:/.])/(?:[\w.+-]+/)+")

# Characters of what a program complains of that are kept.
WHY = 200

# What has a meaning in reStructuredText, and may stand in what a program complains of.
_MARKS = re.compile(r"[\\*`|_]")


class Source(Protocol):
    """A program that was measured, by its name."""

    @property
    def name(self) -> str:
        """A word."""


@dataclass(frozen=True)
class Row:
    """One row.

    :ivar figure: which of the figures that its sources bring.
    :ivar sources: what it is about; of several, it is the largest of the figures.
    """

    name: str
    title: str
    unit: Unit
    figure: str
    sources: tuple[Source, ...]
    aim: Aim


class Log:
    """All figures of a run.

    :param contestants: the first is ours.
    """

    def __init__(self, contestants: Sequence[str], rounds: int) -> None:
        self.contestants = tuple(contestants)
        self.rounds = rounds
        self.begun = datetime.datetime.now(datetime.timezone.utc)
        self._figures: dict[tuple[int, str, str], dict[str, float]] = {}
        self.missed: dict[tuple[str, str], str] = {}
        self.notes: list[str] = []

    def add(self, number: int, source: str, contestant: str, figures: dict[str, float]) -> None:
        """Keep what one measurement brought, in the round *number* from 0."""
        self._figures[number, source, contestant] = figures

    def miss(self, source: str, contestant: str, why: str) -> None:
        """Keep why a measurement brought nothing."""
        self.missed[source, contestant] = _FOLDERS.sub("", " ".join(why.split()))[:WHY]

    def note(self, text: str) -> None:
        """Keep what has to be known about the figures, once."""
        if text not in self.notes:
            self.notes.append(text)

    def figures(self, row: Row, contestant: str) -> list[float | None]:
        """Return a row's figure by round, None where there is none."""
        return [self._figure(row, contestant, number) for number in range(self.rounds)]

    def _figure(self, row: Row, contestant: str, number: int) -> float | None:
        found = [
            self._figures.get((number, source.name, contestant), {}).get(row.figure)
            for source in row.sources
        ]
        return max((figure for figure in found if figure is not None), default=None)

    def medians(self, source: str, contestant: str) -> dict[str, float]:
        """Return the median over the rounds of each figure that a source brought."""
        found = [
            figures
            for (_, *which), figures in self._figures.items()
            if which == [source, contestant]
        ]
        names = found[0] if found else ()
        return {name: statistics.median(each[name] for each in found) for name in names}

    def ratios(self, row: Row) -> list[float]:
        """Return what ours is to the best of the others, for each round that tells."""
        ours, *others = (self.figures(row, contestant) for contestant in self.contestants)
        return ratios(row.aim, ours, others)

    def found(self, row: Row) -> list[float]:
        """Return what is to be compared with the row's aim."""
        if row.aim.kind == "ratio":
            return self.ratios(row)
        return _known(self.figures(row, self.contestants[0]))


def _known(figures: Sequence[float | None]) -> list[float]:
    return [figure for figure in figures if figure is not None]


def publish(name: str, log: Log, rows: Sequence[Row], screen: Screen, out: Path | None) -> None:
    """Show the table, and write it to the folder *out*, if that is given."""
    text = markdown(log, rows)
    screen.clear()
    screen.note(text)
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.md").write_text(f"{text}\n")
    (out / f"{name}.inc").write_text(f"{listed(log, rows)}\n")
    (out / f"{name}.json").write_text(f"{json.dumps(data(log, rows), indent=1)}\n")
    (out / f"{name}.svg").write_text(draw(log.contestants, list(_bars(log, rows))))
    screen.note(f"written to {out}: {name}.md, {name}.inc, {name}.json, {name}.svg")


def markdown(log: Log, rows: Sequence[Row]) -> str:
    """Return table and notes in Markdown."""
    return in_markdown(table(log, rows), notes(log))


def in_markdown(lines: Sequence[Sequence[str]], below: Iterable[str]) -> str:
    """Return a table, the header first, and what stands below it."""
    header, *others = lines
    lines = [header, ["---"] * len(header), *others]
    return "\n".join([*(f"| {' | '.join(cells)} |" for cells in lines), "", *below])


def listed(log: Log, rows: Sequence[Row]) -> str:
    """Return table and notes in reStructuredText."""
    return in_rst(table(log, rows), notes(log))


def in_rst(lines: Sequence[Sequence[str]], below: Iterable[str]) -> str:
    """Return a table, the header first, with the directive ``list-table``, and what stands below
    it, of which no character has a meaning.
    """
    text = [".. list-table::", "   :header-rows: 1", ""]
    for cells in lines:
        marks = ["* -", *["  -"] * (len(cells) - 1)]
        text += [f"   {mark} {cell}".rstrip() for mark, cell in zip(marks, cells, strict=True)]
    return "\n".join([*text, "", *(_MARKS.sub(r"\\\g<0>", line) for line in below)])


def table(log: Log, rows: Sequence[Row]) -> list[list[str]]:
    """Return the cells of all rows, the header first."""
    best = ["ratio to the best"] if len(log.contestants) > 1 else []
    header = ["row", "unit", *log.contestants, *best, "wanted", "met"]
    return [header, *([*_cells(log, row)] for row in rows)]


def _cells(log: Log, row: Row) -> Iterator[str]:
    yield row.title
    yield row.unit.name
    for contestant in log.contestants:
        yield _spread(row.unit, _known(log.figures(row, contestant))) or _reason(
            log, row, contestant
        )
    if len(log.contestants) > 1:
        yield _spread(_RATIO, log.ratios(row))
    yield _wanted(row)
    found = log.found(row)
    yield ("yes" if row.aim.is_met(statistics.median(found)) else "no") if found else "?"


def _spread(unit: Unit, figures: Sequence[float]) -> str:
    if not figures:
        return ""
    spread = Spread.of(figures)
    if len(figures) == 1:
        return unit.show(spread.median)
    return f"{unit.show(spread.median)} ({unit.show(spread.least)} to {unit.show(spread.most)})"


def _reason(log: Log, row: Row, contestant: str) -> str:
    """Refer to the note that tells why, if there is one."""
    keys = list(log.missed)
    numbers = [
        str(keys.index((source.name, contestant)) + 1)
        for source in row.sources
        if (source.name, contestant) in log.missed
    ]
    return f"[{','.join(numbers)}]" if numbers else "-"


def _wanted(row: Row) -> str:
    sign = "≥" if row.aim.at == "least" else "≤"
    if row.aim.kind == "ratio":
        return f"ratio {sign} {row.aim.limit:g}"
    return f"{sign} {row.aim.limit / row.unit.scale:g} {row.unit.name}"


def notes(log: Log) -> Iterator[str]:
    """Yield what stands below a table: lines that are the same in both kinds of table."""
    for number, ((source, contestant), why) in enumerate(log.missed.items(), 1):
        yield f"[{number}] {contestant}, {source}: {why}"
        yield ""
    for text in log.notes:
        yield from (text, "")
    yield (f"{_rounds(log.rounds)}, measured on {log.begun:%Y-%m-%d}; {machine()}.")


def _rounds(number: int) -> str:
    if number == 1:
        return "Figures of one round"
    return f"Medians of {number} rounds (the least and the most in brackets)"


def machine() -> str:
    """Return what the figures were measured on."""
    load = os.getloadavg()[2]
    return (
        f"{os.cpu_count()} cores, {platform.system()} {platform.release()},"
        f" Python {platform.python_version()}, load of the last quarter of an hour {load:.1f}"
    )


def data(log: Log, rows: Sequence[Row]) -> dict[str, Any]:
    """Return every figure of every round, and how to read them, as JSON has it."""
    return {
        "begun": log.begun.isoformat(timespec="seconds"),
        "machine": machine(),
        "rounds": log.rounds,
        "contestants": log.contestants,
        "rows": [
            {
                "name": row.name,
                "title": row.title,
                "unit": row.unit.name,
                "wanted": _wanted(row),
                "figures": {
                    contestant: [
                        None if figure is None else figure / row.unit.scale
                        for figure in log.figures(row, contestant)
                    ]
                    for contestant in log.contestants
                },
                "ratios": log.ratios(row),
            }
            for row in rows
        ],
        "notes": log.notes,
        "missed": [
            {"task": source, "contestant": contestant, "why": why}
            for (source, contestant), why in log.missed.items()
        ],
    }


def _bars(log: Log, rows: Sequence[Row]) -> Iterator[Bar]:
    """Yield what the plot shows: each contestant beside the best of the others, more is better."""
    for row in rows:
        medians = {
            contestant: statistics.median(known)
            for contestant in log.contestants
            if (known := _known(log.figures(row, contestant)))
        }
        others = [median for name, median in medians.items() if name != log.contestants[0]]
        if row.aim.kind != "ratio" or not others or not (best := row.aim.best(others)):
            continue
        more = row.aim.at == "least"
        yield Bar(
            row.title,
            {
                name: (median / best if more else best / median)
                for name, median in medians.items()
                if median
            },
            row.aim.limit if more else 1 / row.aim.limit,
        )

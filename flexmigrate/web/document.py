"""The page's data as JSON: the same for every viewer, and of a bounded size.

However large an image is, its map has at most `MOST_CELLS` cells; however long a migration took,
its plot has so many points; of many exports, clients and migrations only the first are listed, and
their number. Fields of `Status` have the same names and meanings.

The text is made in pieces, each with at most a millisecond's work on the reactor's thread, as the
metrics are (see ``exposition``): clients are served between two of them. So not all of it is
of the same moment.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Final

from flexmigrate import __version__
from flexmigrate.telemetry.fields import values_of
from flexmigrate.telemetry.history import History, Sample
from flexmigrate.telemetry.report.plot import rates, stages
from flexmigrate.telemetry.states import Stage
from flexmigrate.telemetry.terminal.progress import summary_line
from flexmigrate.web.view import Blocks, ExportView, Look, Moving, ServerView, shown

MOST_ROWS: Final = 100
"""Rows of exports, and of clients: more can't be taken in at a glance."""

MOST_MOVING: Final = 4
"""Migrations with all details: running ones, and the last ones that ended."""

MOST_CELLS: Final = 1024
"""Cells of a map: 64 by 16 fit on a telephone's screen, too."""

BLOCKS_AT_ONCE: Final = 1 << 19
"""Blocks that are counted in one piece, in 0.2 to 0.4 ms."""

COLUMNS: Final = 240
"""Columns of a plot: intervals with one stage and one value of the remaining data each."""

MOST_FAILURES: Final = 20
"""Failed attempts that are listed: the last ones."""

LEVELS: Final = 9
"""Shades of a cell: 0 if none of it is marked, 9 if all of it is."""

# The stage that is shown for an interval with several stages: the first of these.
_TELLING = tuple(
    stage.value
    for stage in (Stage.PARKED, Stage.WAITING, Stage.CONNECTING, Stage.CONVERGING, Stage.COPYING)
)


class Document:
    """Makes the document for one server.

    :param look: returns the current view of the server.
    :param name: distinguishes servers that use the same address one after the other.
    """

    def __init__(self, look: Look, name: str) -> None:
        self._look = look
        self._name = name

    def pieces(self) -> Iterator[str]:
        """Yield the text in pieces; some are empty, after work that yields no text."""
        view = self._look()
        yield f'{{"server":{_json(_server(view, self._name))},"exports":['
        yield from _listed(_row(each) for each in view.exports[:MOST_ROWS])
        yield '],"clients":['
        yield from _listed(values for values in _clients(view))
        yield '],"migrations":['
        for at, each in enumerate(_most_telling(view.exports)):
            yield "," if at else ""
            yield from _migration(each)
        yield "]}"


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _listed(values: Iterator[Any]) -> Iterator[str]:
    for at, value in enumerate(values):
        yield f"{',' if at else ''}{_json(value)}"


def _server(view: ServerView, name: str) -> dict[str, Any]:
    status = view.exports[0].status
    return {
        "name": name,
        "version": __version__,
        "pid": status.pid,
        "clients_allowed": status.clients_allowed,
        "num_clients": status.num_clients,
        "num_exports": len(view.exports),
    }


def _row(view: ExportView) -> dict[str, Any]:
    status = view.status
    return {
        "name": shown(view.name),
        "size": status.size,
        "clients": view.clients,
        "has_control": status.has_control,
        "is_mirroring": status.is_mirroring,
        "listening_phase": status.listening_phase,
        "listening_state": status.listening_state,
        "verdict": status.summary.verdict if status.summary else None,
    }


def _clients(view: ServerView) -> Iterator[dict[str, Any]]:
    for each in view.clients[:MOST_ROWS]:
        export = None if each.export is None else shown(each.export)
        yield {"number": each.number, "address": shown(each.address), "export": export}


def _most_telling(exports: Sequence[ExportView]) -> list[ExportView]:
    """Return the exports with migrations: running ones first, then the last ones that ended."""
    moving = [(each, each.moving) for each in exports if each.moving is not None]
    moving.sort(key=lambda pair: (not pair[0].status.is_mirroring, -pair[1].began))
    return [export for export, _ in moving[:MOST_MOVING]]


def _migration(view: ExportView) -> Iterator[str]:
    status, moving = view.status, view.moving
    assert moving is not None
    values = {
        name: shown(value) if isinstance(value, str) else value
        for name, value in values_of(status).items()
    }
    yield f'{{"export":{_json(shown(view.name))},"status":{_json(values)}'
    if status.summary is not None:
        yield f',"summary":{_json(summary_line(values_of(status.summary)))}'
    if moving.history is not None:
        yield ',"plot":'
        yield from _plot(moving.history)
    yield ',"map":'
    yield from _map(status.size, moving)
    yield "}"


# The map


def cell_size(size: int, layers: Mapping[str, Blocks]) -> int:
    """Return the bytes in one cell of the map of *size* bytes: a power of two."""
    cell = max((each.block_size for each in layers.values()), default=1)
    while size > cell * MOST_CELLS:
        cell *= 2
    return cell


def level(part: int, whole: int) -> int:
    """Return the shade of a cell of which *part* is marked: 0 only if nothing is."""
    return min(-(-part * LEVELS // whole), LEVELS) if part else 0


def _map(size: int, moving: Moving) -> Iterator[str]:
    """Yield a map: for each layer a digit for each cell."""
    cell = cell_size(size, moving.layers)
    yield f'{{"cell":{cell}'
    for name, blocks in moving.layers.items():
        yield f',{_json(name)}:"'
        yield from _levels(blocks, cell)
        yield '"'
    yield "}"


def _levels(blocks: Blocks, cell: int) -> Iterator[str]:
    at_once = max(BLOCKS_AT_ONCE * blocks.block_size // cell, 1) * cell
    for begin in range(0, blocks.size, at_once):
        end = min(begin + at_once, blocks.size)
        yield "".join(
            str(level(blocks.bytes_in(at, cell), min(cell, blocks.size - at)))
            for at in range(begin, end, cell)
        )


# The plot


def _plot(history: History) -> Iterator[str]:
    """Yield the plot of a migration's history."""
    samples = history.all()
    duration = samples[-1].seconds if samples else 0.0
    yield f'{{"seconds":{duration:.3f},"sent":'
    yield _json(_rounded(rates(samples, lambda sample: sample.bytes_sent)))
    yield ',"changed":'
    yield _json(_rounded(rates(samples, lambda sample: sample.bytes_dirtied)))
    columns = _columns(samples, duration)
    for name in ("bytes_left", "write_limit", "speed_limit"):
        yield f',"{name}":{_json(_rounded(_runs(columns, name)))}'
    yield f',"phases":{_json(_strip(samples, duration))}'
    failures = [
        [round(each.seconds, 3), shown(each.error)] for each in history.changes if each.error
    ]
    yield f',"failures":{_json(failures[-MOST_FAILURES:])}}}'


def _rounded(runs: list[list[tuple[float, float]]]) -> list[list[list[float]]]:
    return [[[round(seconds, 3), round(value)] for seconds, value in run] for run in runs]


def _columns(samples: Sequence[Sample], duration: float) -> list[Sample]:
    """Return the last sample of each column, in which there is one."""
    width = max(duration / COLUMNS, 0.001)
    return [list(each)[-1] for _, each in groupby(samples, lambda sample: sample.seconds // width)]


def _runs(samples: Sequence[Sample], name: str) -> list[list[tuple[float, float]]]:
    """Return the values of a field as (time, value), in intervals without gaps."""
    runs: list[list[tuple[float, float]]] = []
    for there, each in groupby(samples, lambda sample: getattr(sample, name) is not None):
        if there:
            runs.append([(sample.seconds, getattr(sample, name)) for sample in each])
    return runs


def _strip(samples: Sequence[Sample], duration: float) -> list[tuple[str | None, int]]:
    """Return the stages as (stage, columns) of one stretch after the other, None where none is
    known.

    Even the shortest parking is visible: of a column's stages the first in _TELLING is shown.
    """
    strip: list[str | None] = [None] * COLUMNS
    scale = (COLUMNS - 1) / duration if duration else 0.0
    for begin, end, kind in sorted(stages(samples), key=lambda each: -_TELLING.index(each[2])):
        first, last = int(begin * scale), int(end * scale)
        strip[first : last + 1] = [kind] * (last + 1 - first)
    return [(kind, len(list(each))) for kind, each in groupby(strip)]

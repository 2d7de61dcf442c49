"""A migration's history as a plot in SVG: its rates, the remaining data, and its phases.

One time axis carries three things: the rates, the remaining data, and between them the stages.
Colours are the page's (``page.py``), by class, so that they fit a dark page as well as a light one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from flexmigrate.telemetry.history import History, Sample
from flexmigrate.telemetry.states import SourceState, Stage
from flexmigrate.telemetry.units import duration_text, rate_text, size_text

# Pixels: the left margin has the numbers of the axes.
WIDTH, LEFT, RIGHT = 960, 90, 20
RATES_TOP, RATES_HEIGHT = 14, 210
STRIP_TOP, STRIP_HEIGHT = 242, 20
LEFT_TOP, LEFT_HEIGHT = 282, 150
HEIGHT = 470

# A rate is told over at least this part of the whole time, and this many seconds, or it would be
# the noise of single requests.
BINS, LEAST_BIN = 160, 0.2

# A stage that is shorter than a pixel is the one that matters most: the one with clients parked.
LEAST_WIDTH = 3.0

STAGES = tuple(stage.value for stage in Stage)
"""What is told apart by colours."""

_LABEL = "rates, stages, and what was left to be sent, over time"


@dataclass(frozen=True)
class Scale:
    """A linear map from values, 0 to *most*, to pixels, *zero* to *end*."""

    most: float
    zero: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the pixel of *value*."""
        return self.zero + (self.end - self.zero) * min(value / self.most, 1.0)


def draw(history: History) -> str:
    """Return the plot, as an element of a page."""
    samples = history.all()
    duration = max(samples[-1].seconds if samples else 0.0, 0.001)
    time = Scale(duration, LEFT, WIDTH - RIGHT)
    return "\n".join(
        [
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{_LABEL}">',
            *_time_axis(time),
            *_rates(samples, time),
            *_strip(samples, time),
            *_left(samples, time),
            *_failures(history, time),
            "</svg>",
        ]
    )


# The values


def rates(
    samples: Sequence[Sample], counted: Callable[[Sample], int | None]
) -> list[list[tuple[float, float]]]:
    """Return the rates at which a value grew, as (time, bytes a second) of consecutive intervals.

    :param counted: how much it was; None where that isn't known, and fewer than before where it
        began anew: there a new list begins.
    """
    if not samples:
        return []
    least = max((samples[-1].seconds - samples[0].seconds) / BINS, LEAST_BIN)
    found: list[list[tuple[float, float]]] = [[]]
    begin: tuple[float, int] | None = None
    for sample in samples:
        now, value = sample.seconds, counted(sample)
        if value is None or begin is None or value < begin[1]:
            begin = None if value is None else (now, value)
            found.append([])
        elif now - begin[0] >= least or (sample is samples[-1] and now > begin[0]):
            found[-1].append(((begin[0] + now) / 2, (value - begin[1]) / (now - begin[0])))
            begin = (now, value)
    return [run for run in found if run]


def stage_of(sample: Sample) -> str | None:
    """Return the one of `STAGES` as which a sample is drawn; None where the migration is over.

    States of another version are drawn as parts of the handover.
    """
    state = SourceState.named(sample.state or sample.phase)
    stage = Stage.PARKED if state is None else state.stage
    return None if stage is None else stage.value


def stages(samples: Sequence[Sample]) -> Iterator[tuple[float, float, str]]:
    """Yield the intervals with one stage, as (begin, end, stage)."""
    begin: Sample | None = None
    for before, sample in pairwise([*samples, samples[-1]] if samples else []):
        begin = begin or before
        stage = stage_of(begin)
        if stage_of(sample) != stage or sample is samples[-1]:
            if stage is not None:
                yield begin.seconds, sample.seconds, stage
            begin = None


# The parts of the drawing


def _time_axis(time: Scale) -> Iterator[str]:
    bottom = LEFT_TOP + LEFT_HEIGHT
    for value in _ticks(time.most, _time_step(time.most)):
        x = time(value)
        yield f'<line class="grid" x1="{x:.1f}" y1="{RATES_TOP}" x2="{x:.1f}" y2="{bottom}"/>'
        text = duration_text(value) if value else "0"
        yield f'<text x="{x:.1f}" y="{bottom + 20}" text-anchor="middle">{text}</text>'


def _rates(samples: Sequence[Sample], time: Scale) -> Iterator[str]:
    sent = rates(samples, lambda sample: sample.bytes_sent)
    changed = rates(samples, lambda sample: sample.bytes_dirtied)
    # A limit far above the rates would press everything else to the axis.
    highest = max([rate for run in (*sent, *changed) for _, rate in run], default=0.0)
    scale = _scale(highest, RATES_TOP, RATES_HEIGHT)
    yield from _value_axis(scale, rate_text)
    for run in sent:
        first, last = time(run[0][0]), time(run[-1][0])
        outline = _path(run, time, scale)
        yield (
            f'<path class="sent area" d="{outline} L{last:.1f},{scale.zero:.1f}'
            f' L{first:.1f},{scale.zero:.1f} Z"/>'
        )
        yield f'<path class="sent line" d="{outline}"/>'
    for run in changed:
        yield f'<path class="changed line" d="{_path(run, time, scale)}"/>'
    for name, values in (
        ("slowed", [(each.seconds, each.write_limit) for each in samples]),
        ("limit", [(each.seconds, each.speed_limit) for each in samples]),
    ):
        for run in _runs(values, scale.most):
            yield f'<path class="{name} line" d="{_path(run, time, scale)}"/>'


def _left(samples: Sequence[Sample], time: Scale) -> Iterator[str]:
    values = [(each.seconds, each.bytes_left) for each in samples]
    highest = max([value for _, value in values if value is not None], default=0)
    scale = _scale(highest, LEFT_TOP, LEFT_HEIGHT)
    yield from _value_axis(scale, size_text)
    for run in _runs(values, math.inf):
        yield f'<path class="left line" d="{_path(run, time, scale)}"/>'


def _strip(samples: Sequence[Sample], time: Scale) -> Iterator[str]:
    # The shortest are drawn last, on top of their neighbours.
    for begin, end, kind in sorted(stages(samples), key=lambda each: each[0] - each[1]):
        width = max(time(end) - time(begin), LEAST_WIDTH)
        x = min(time(begin), WIDTH - RIGHT - width)
        yield (
            f'<rect class="{kind}" x="{x:.1f}" y="{STRIP_TOP}" width="{width:.1f}"'
            f' height="{STRIP_HEIGHT}">'
            f"<title>{kind} for {duration_text(end - begin)}</title></rect>"
        )


def _failures(history: History, time: Scale) -> Iterator[str]:
    bottom = LEFT_TOP + LEFT_HEIGHT
    for change in history.changes:
        if change.error is not None:
            x = time(change.seconds)
            yield (
                f'<line class="failure" x1="{x:.1f}" y1="{RATES_TOP}" x2="{x:.1f}" y2="{bottom}">'
                f"<title>attempt {change.attempt} failed: {escape(change.error)}</title></line>"
            )


def _value_axis(scale: Scale, text: Callable[[float], str]) -> Iterator[str]:
    for value in _ticks(scale.most, _nice(scale.most / 4)):
        y = scale(value)
        yield f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>'
        label = text(value) if value else "0"
        yield f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'


# Lines and numbers


def _scale(highest: float, top: float, height: float) -> Scale:
    """Return a scale whose end is a number that a person would choose."""
    step = _nice(max(highest, 1.0) / 4)
    return Scale(step * math.ceil(max(highest, 1.0) / step), top + height, top)


def _nice(number: float) -> float:
    """Return the next 1, 2 or 5 times a power of ten, in the unit in which *number* is shown."""
    unit = 1024.0 ** max(math.floor(math.log(max(number, 1.0), 1024)), 0)
    power = 10.0 ** math.floor(math.log10(max(number / unit, 1e-9)))
    factor = next(each for each in (1, 2, 5, 10) if each * power * unit >= number * (1 - 1e-9))
    return factor * power * unit


def _time_step(duration: float) -> float:
    """Return the distance of about eight ticks, in seconds."""
    steps = (*(each * 10.0**power for power in (-3, -2, -1, 0) for each in (1, 2, 5)),)
    steps += (10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1800.0, 3600.0, 7200.0)
    fitting = (step for step in steps if duration / step <= 8)
    return next(fitting, 3600.0 * math.ceil(duration / 8 / 3600))


def _ticks(most: float, step: float) -> list[float]:
    return [number * step for number in range(math.floor(most / step + 1e-9) + 1)]


def _runs(
    values: Sequence[tuple[float, float | None]], most: float
) -> Iterator[list[tuple[float, float]]]:
    """Yield the intervals in which there are values, and none that is off the scale."""
    run: list[tuple[float, float]] = []
    for time, value in values:
        if value is not None and value <= most:
            run.append((time, value))
        elif run:
            yield run
            run = []
    if run:
        yield run


def _path(points: Sequence[tuple[float, float]], time: Scale, scale: Scale) -> str:
    return "M" + " L".join(f"{time(x):.1f},{scale(y):.1f}" for x, y in points)

"""The plot: for each row, how each contestant does beside the best of the others. Plain SVG."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_COLOURS = ("#c0392b", "#2471a3", "#7d8a2e", "#7d6b91")
_LEFT, _WIDTH, _RIGHT = 380, 520, 60  # pixels: titles, the scale, what is off the scale
_ROW, _TOP, _BOTTOM = 24, 56, 40
_MOST = 2.5  # the end of the scale; what lies beyond is drawn at the end, with its number


@dataclass(frozen=True)
class Bar:
    """One row of the plot.

    :ivar ratios: of each contestant to the best of the others; more is better.
    :ivar wanted: of the first contestant.
    """

    title: str
    ratios: Mapping[str, float]
    wanted: float


def draw(contestants: Sequence[str], bars: Sequence[Bar]) -> str:
    """Return the plot as an SVG document."""
    width, height = _LEFT + _WIDTH + _RIGHT, _TOP + _ROW * len(bars) + _BOTTOM
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"',
            f' width="{width}" height="{height}" font-family="sans-serif" font-size="12">',
            f'<rect width="{width}" height="{height}" fill="white"/>',
            *_legend(contestants),
            *_scale(height),
            *(line for number, bar in enumerate(bars) for line in _row(contestants, number, bar)),
            "</svg>",
            "",
        ]
    )


def _x(ratio: float) -> float:
    return _LEFT + _WIDTH * min(ratio, _MOST) / _MOST


def _text(x: float, y: float, text: str, anchor: str = "start", colour: str = "#222") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">'
        f"{escape(text)}</text>"
    )


def _legend(contestants: Sequence[str]) -> Iterator[str]:
    for number, name in enumerate(contestants):
        x = _LEFT + 130 * number
        yield f'<circle cx="{x}" cy="16" r="5" fill="{_colour(number)}"/>'
        yield _text(x + 10, 20, name)
    yield _text(10, 20, "beside the best of the others; right is better")
    yield _text(10, 36, "grey tick: what is wanted of the first", colour="#777")


def _scale(height: int) -> Iterator[str]:
    end = height - _BOTTOM
    for step in range(6):
        x = _x(step / 2)
        colour = "#555" if step == 2 else "#ddd"
        yield f'<line x1="{x:.1f}" y1="{_TOP - 8}" x2="{x:.1f}" y2="{end}" stroke="{colour}"/>'
        yield _text(x, end + 18, f"{step / 2:g}", "middle")


def _row(contestants: Sequence[str], number: int, bar: Bar) -> Iterator[str]:
    y = _TOP + _ROW * number + _ROW / 2
    yield _text(10, y + 4, bar.title)
    wanted = _x(bar.wanted)
    yield (
        f'<line x1="{wanted:.1f}" y1="{y - 9}" x2="{wanted:.1f}" y2="{y + 9}"'
        ' stroke="#999" stroke-width="3"/>'
    )
    # The first is drawn last, on top.
    for place, name in reversed(list(enumerate(contestants))):
        if (ratio := bar.ratios.get(name)) is not None:
            radius = 6 if place == 0 else 4
            yield (
                f'<circle cx="{_x(ratio):.1f}" cy="{y}" r="{radius}" fill="{_colour(place)}">'
                f"<title>{escape(name)}: {ratio:.2f}</title></circle>"
            )
            if ratio > _MOST:
                yield _text(_x(ratio) + 10, y + 4, f"{ratio:.1f}", colour=_colour(place))


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]

"""Arithmetic: rounds of figures become medians, their spread, and ratios within a round.

A ratio is taken between servers that were measured one after the other, since a machine is not
equally quick all day; the median over the rounds comes after that.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Spread:
    """Figures of the same thing: their median, and the outermost."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        """Make it from at least one figure."""
        return cls(statistics.median(figures), min(figures), max(figures))


@dataclass(frozen=True)
class Aim:
    """The target of a figure.

    :ivar kind: a ratio to the best of the others, or the figure itself.
    :ivar at: "least" if more is better, "most" if less is.
    """

    kind: Literal["ratio", "figure"]
    at: Literal["least", "most"]
    limit: float

    def is_met(self, found: float) -> bool:
        """Say whether *found* is as good as it is to be."""
        return found >= self.limit if self.at == "least" else found <= self.limit

    def best(self, figures: Sequence[float]) -> float:
        """Return the best of at least one figure."""
        return max(figures) if self.at == "least" else min(figures)


def ratio_at_least(limit: float) -> Aim:
    """More is better, and it is to be this times the best of the others."""
    return Aim("ratio", "least", limit)


def ratio_at_most(limit: float) -> Aim:
    """Less is better, and it is to be this times the best of the others."""
    return Aim("ratio", "most", limit)


def at_least(limit: float) -> Aim:
    """More is better, whatever the others reach."""
    return Aim("figure", "least", limit)


def at_most(limit: float) -> Aim:
    """Less is better, whatever the others reach."""
    return Aim("figure", "most", limit)


def ratios(
    aim: Aim, ours: Sequence[float | None], others: Sequence[Sequence[float | None]]
) -> list[float]:
    """Return for each round what ours is to the best of the others in it.

    :param ours: by round; None where it was not measured.
    :param others: of each other server the same.
    """
    found = []
    for number, mine in enumerate(ours):
        theirs = [rounds[number] for rounds in others]
        known = [figure for figure in theirs if figure is not None]
        if mine is not None and known and (best := aim.best(known)):
            found.append(mine / best)
    return found

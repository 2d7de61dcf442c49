"""Tables of what works with what, which tests fill in: the documentation has what was seen.

In a document a table stands between ``.. matrix NAME`` and ``.. end of matrix``. A test compares it
with what it has found out, or, where `WRITE` is set in the environment, puts it there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

WRITE = "FLEXMIGRATE_WRITE_MATRIX"

_PART = r"(?P<begin>^\.\. matrix {name}\n).*?(?P<end>^\.\. end of matrix$)"


class Matrix:
    """One table.

    :param impossible: why a cell can't work, by (row, column); all others have to.
    """

    def __init__(
        self,
        name: str,
        rows: Sequence[str],
        columns: Sequence[str],
        impossible: Mapping[tuple[str, str], str],
    ) -> None:
        self.name = name
        self.rows = rows
        self.columns = columns
        self.impossible = impossible
        self._seen: dict[tuple[str, str], bool] = {}

    @property
    def cells(self) -> list[tuple[str, str]]:
        """All pairs of a row and a column, column by column."""
        return [(row, column) for column in self.columns for row in self.rows]

    def fill_in(self, row: str, column: str, *, works: bool) -> None:
        """Say what was seen.

        :raises AssertionError: if it isn't what was to be expected
        """
        self._seen[row, column] = works
        assert works is ((row, column) not in self.impossible), (
            f"{row} {'works' if works else 'does not work'} with {column}"
        )

    @property
    def is_complete(self) -> bool:
        """Whether every cell has been seen."""
        return set(self._seen) == set(self.cells)

    def settle(self, document: Path) -> None:
        """Compare the table in *document* with what was seen, or write it.

        :raises AssertionError: if it says something else
        """
        text = document.read_text()
        part = re.compile(_PART.format(name=self.name), re.MULTILINE | re.DOTALL)
        assert part.search(text), f"{document.name} has no matrix {self.name}"
        new = part.sub(lambda found: f"{found['begin']}\n{self._shown()}\n\n{found['end']}", text)
        if os.environ.get(WRITE):
            document.write_text(new)
        else:
            assert new == text, f"{document.name} is not up to date: run `make matrix`"

    def _shown(self) -> str:
        reasons = list(dict.fromkeys(self.impossible.values()))
        rows = [["", *self.columns]]
        for row in self.rows:
            cells = []
            for column in self.columns:
                reason = self.impossible.get((row, column))
                cells.append("yes" if reason is None else f"no ({reasons.index(reason) + 1})")
            rows.append([row, *cells])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        rule = "  ".join("=" * width for width in widths)
        lines = [
            "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        # A simple table's first column may not be empty.
        lines[0] = lines[0].replace(" " * len("\\ "), "\\ ", 1)
        notes = [f"({number}) {reason}" for number, reason in enumerate(reasons, 1)]
        return "\n".join([rule, lines[0], rule, *lines[1:], rule, *("\n" + each for each in notes)])

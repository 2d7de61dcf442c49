"""docs/promises.rst names tests that are there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from support.processes import TESTS

PAGE = TESTS.parent / "docs" / "promises.rst"
NAMED = re.compile(r"``(tests/[\w/]+\.py(?:::\w+)+)``")


@cache
def names_in(path: Path) -> frozenset[str]:
    """Return the tests of a file, as CLASS::TEST or TEST."""
    found = set()
    for each in ast.parse(path.read_text()).body:
        if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found.add(each.name)
        elif isinstance(each, ast.ClassDef):
            found |= {
                f"{each.name}::{method.name}"
                for method in each.body
                if isinstance(method, (ast.FunctionDef, ast.AsyncFunctionDef))
            }
    return frozenset(found)


@pytest.mark.parametrize("named", NAMED.findall(PAGE.read_text()))
def test_is_there(named: str) -> None:
    file, _, name = named.partition("::")
    assert name in names_in(TESTS.parent / file)


def test_every_row_names_one() -> None:
    rows = PAGE.read_text().split("   * - ")[1:]
    promises = [row for row in rows if not row.startswith("Promise\n")]
    assert len(promises) > 30
    assert [row for row in promises if len(NAMED.findall(row)) != 1] == []

"""Programs in the documents are the files in ``examples/``, which tests run: nothing is written
twice, and nothing is shown that was not run.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.examples import EXAMPLES
from support.processes import TESTS

PAGES = sorted((TESTS.parent / "docs").glob("*.rst"))
INCLUDED = re.compile(r"^\.\. literalinclude:: (\S+)$", re.MULTILINE)
TYPED_IN = re.compile(
    r"code-block:: python|^ +(?:from \S+ import |import |(?:async )?def )", re.MULTILINE
)


def included(page: Path) -> list[Path]:
    return [(page.parent / name).resolve() for name in INCLUDED.findall(page.read_text())]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_has_a_program_of_its_own(page: Path) -> None:
    assert TYPED_IN.findall(page.read_text()) == []


@pytest.mark.parametrize("page", [page for page in PAGES if included(page)], ids=lambda p: p.name)
def test_what_a_page_includes_is_run(page: Path) -> None:
    tests = "".join(path.read_text() for path in (TESTS / "examples").glob("test_*.py"))
    for path in included(page):
        name = path.relative_to(EXAMPLES)
        assert f'"{name}"' in tests or f'"{name.with_suffix("")}"' in tests, name


def test_embedding_is_shown_by_examples() -> None:
    assert len(included(TESTS.parent / "docs" / "embedding.rst")) >= 3

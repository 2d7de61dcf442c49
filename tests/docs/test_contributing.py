"""CONTRIBUTING.md: every path, name and command in it is there."""

from __future__ import annotations

import re
import subprocess

from support.processes import TESTS

PROJECT = TESTS.parent
TEXT = (PROJECT / "CONTRIBUTING.md").read_text()
QUOTED = re.findall(r"`([^`\n]+)`", TEXT)


def paths() -> set[str]:
    """Return what looks like a path of this tree, in backquotes or linked."""
    linked = re.findall(r"\]\(([^)#]+)\)", TEXT)
    return {
        word for word in QUOTED if re.fullmatch(r"[\w.]+/[\w./-]*|[A-Z]+\.md|CHANGELOG", word)
    } | set(linked)


def commands() -> list[str]:
    """Return the commands of ``make``, in backquotes or in a block."""
    blocks = re.findall(r"^    (make [^#\n]*)", TEXT, re.MULTILINE)
    return [each.strip() for each in [*blocks, *QUOTED] if each.startswith("make ")]


def test_the_paths_are_there() -> None:
    assert len(paths()) > 30
    assert [each for each in sorted(paths()) if not (PROJECT / each).exists()] == []


def test_the_commands_of_make_are_there() -> None:
    assert len(commands()) > 10
    targets = {word for each in commands() for word in each.split()[1:] if "=" not in word}
    made = subprocess.run(
        ["make", "--dry-run", "--question", "--print-data-base", "help"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    ).stdout
    known = set(re.findall(r"^([\w-]+):", made, re.MULTILINE))
    assert targets <= known, targets - known


def test_the_names_are_where_it_says() -> None:
    """Each `NAME` that stands before "in `path`" or "to `path`"."""
    named = re.findall(r"`(\w+)`,?\s+(?:in|to|of)\s+`([\w./]+\.py)`", TEXT)
    assert len(named) >= 6
    for name, path in named:
        assert re.search(rf"\b{name}\b", (PROJECT / path).read_text()), (name, path)


def test_every_suite_that_make_offers_is_told_with_its_time() -> None:
    table = "\n".join(line for line in TEXT.splitlines() if line.startswith("|"))
    for suite in ("test", "trial", "versions", "docs", "fuzz", "storm", "simulate", "bench"):
        assert f"`make {suite}" in table, suite

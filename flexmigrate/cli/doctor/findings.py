"""The doctor's findings, and their output."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import Enum

_WIDTH = 96  # characters, of a line


class Level(str, Enum):
    """The severity of a finding."""

    OK = "ok"
    WARNING = "warning"  # it works, but less well than it could
    PROBLEM = "problem"  # a server would refuse to start, or lose something


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    :ivar about: the subject: a path, an address, or a part of the host.
    :ivar text: its state.
    :ivar advice: what to do, if anything.
    """

    level: Level
    about: str
    text: str
    advice: str = ""


def ok(about: str, text: str) -> Finding:
    """Return a finding that something is as it should be."""
    return Finding(Level.OK, about, text)


def warning(about: str, text: str, advice: str) -> Finding:
    """Return a finding that something works less well than it could."""
    return Finding(Level.WARNING, about, text, advice)


def problem(about: str, text: str, advice: str) -> Finding:
    """Return a finding that a server would fail because of."""
    return Finding(Level.PROBLEM, about, text, advice)


def is_well(findings: Iterable[Finding]) -> bool:
    """Return whether there is no problem among *findings*."""
    return all(each.level is not Level.PROBLEM for each in findings)


def as_text(findings: Iterable[Finding]) -> str:
    """Return *findings* as text for people, with their counts at the end."""
    findings = list(findings)
    lines = []
    for each in findings:
        head = f"{each.level.value:8} {each.about}: {each.text}"
        lines += textwrap.wrap(
            head, _WIDTH, subsequent_indent=" " * 9, break_long_words=False, break_on_hyphens=False
        )
        if each.advice:
            lines += textwrap.wrap(
                each.advice,
                _WIDTH,
                initial_indent=" " * 9 + "-> ",
                subsequent_indent=" " * 12,
                break_long_words=False,
                break_on_hyphens=False,
            )
    problems = sum(each.level is Level.PROBLEM for each in findings)
    warnings = sum(each.level is Level.WARNING for each in findings)
    lines.append(f"{_count(problems, 'problem')}, {_count(warnings, 'warning')}")
    return "\n".join(lines) + "\n"


def as_json(findings: Iterable[Finding]) -> str:
    """Return *findings* as JSON: ``ok``, and ``findings`` as a list of objects."""
    findings = list(findings)
    listed = [{**asdict(each), "level": each.level.value} for each in findings]
    return json.dumps({"ok": is_well(findings), "findings": listed}, indent=2) + "\n"


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"

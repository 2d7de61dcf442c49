"""The shell sessions of a document: what a reader types, and what they are told to see."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

_MARKDOWN = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_RST = re.compile(r"^\.\. code-block:: console\n\n((?:    .*\n|\n)+)", re.MULTILINE)
_ID = re.compile(r"\[migration [0-9a-f]+\]")
_NUMBER = re.compile(r"\d+(\.\d+)?")
_MADE_IN_BACKGROUND = re.compile(r"2> (?P<log>\S+) &$")

PORTS = ("10809", "10810")


@dataclass
class Step:
    """A command, and the lines that it prints."""

    command: str
    printed: list[str] = field(default_factory=list)


def sessions(document: Path) -> list[Step]:
    """Return all steps of a document, in order; a block that begins with none is an error."""
    text = document.read_text()
    pattern = _MARKDOWN if document.suffix == ".md" else _RST
    steps: list[Step] = []
    for block in pattern.findall(text):
        for line in textwrap.dedent(block).strip("\n").split("\n"):
            if line.startswith("$ "):
                steps.append(Step(line[2:]))
            else:
                steps[-1].printed.append(line)
    return steps


def script(steps: list[Step], ports: dict[str, int]) -> str:
    """Return a program for bash that does the steps, and tells them apart by a line before each.

    A reader takes longer to type than a server to start; the program waits for it.
    """
    lines = ["exec 2>&1", "trap 'kill $(jobs -p) 2>/dev/null' EXIT"]
    for step in steps:
        command = step.command
        for name, port in ports.items():
            command = command.replace(name, str(port))
        lines += ["echo '$'", command]
        if match := _MADE_IN_BACKGROUND.search(command):
            lines.append(f"until grep --quiet 'listening on' {match['log']}; do :; done")
    return "\n".join(lines) + "\n"


def outputs(printed: str) -> list[list[str]]:
    """Return what each step of a `script` printed."""
    return [part.splitlines() for part in re.split(r"^\$\n", printed, flags=re.MULTILINE)[1:]]


def blurred(lines: list[str]) -> list[str]:
    """Return lines with every number, and every id, replaced: they differ from run to run."""
    return [_NUMBER.sub("N", _ID.sub("[migration ID]", line)) for line in lines]

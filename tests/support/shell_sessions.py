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
_STARTED_SERVER = re.compile(r"^flexmigrate .* 2> (?P<log>\S+) &$")

# Programs whose name at the beginning of a line that is shown as it stands makes it a command.
_PROGRAMS = (
    *("apt", "apt-get", "flexmigrate", "grep", "jq", "make", "nbd-client", "nbdinfo", "nc"),
    *("openssl", "pip", "printf", "python", "python3", "qemu-img", "qemu-system-x86_64"),
    *("systemctl", "truncate", "twistd", "useradd"),
)
_COMMAND = re.compile(
    rf"^ *(?:/\S+/)?(?:{'|'.join(map(re.escape, _PROGRAMS))}) [^:=]", re.MULTILINE
)
_NOT_RUN = re.compile(r"^(?:\.\.|<!--) not run: (?P<reason>[^>]+?)(?: -->)?$", re.DOTALL)
_SHOWN = re.compile(r"::$|\A\.\. code-block:: (?!console)\w+$")
_GENERATED = re.compile(r"^\.\. begin (\S+)\n.*?^\.\. end \1$", re.MULTILINE | re.DOTALL)

PORTS = ("10809", "10810")


@dataclass
class Step:
    """A command, and the lines that it prints."""

    command: str
    printed: list[str] = field(default_factory=list)


@dataclass
class Untried:
    """Commands that are shown, but don't belong to a session; and why, "" if that isn't said."""

    commands: list[str]
    reason: str


def untried(document: Path) -> list[Untried]:
    """Return the commands of a document that no session has, with the reason for it.

    The reason stands in a comment, ``not run: REASON``, right before the paragraph or the directive
    that the commands belong to. What is generated from the code is left out.
    """
    chunks = re.split(r"\n\s*\n(?=\S)", _GENERATED.sub("", document.read_text()))
    found = []
    for index, chunk in enumerate(chunks):
        head, _, body = chunk.partition("\n\n    ")
        commands = [line for line in f"    {body}".split("\n") if _COMMAND.match(line)]
        if commands and (document.suffix == ".md" or _SHOWN.search(head)):
            marked = _NOT_RUN.match(chunks[index - 1].strip()) if index else None
            found.append(
                Untried([line.strip() for line in commands], marked["reason"] if marked else "")
            )
    return found


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
        if match := _STARTED_SERVER.search(command):
            lines.append(
                f"until grep --quiet --no-messages 'listening on' {match['log']}; do :; done"
            )
    return "\n".join(lines) + "\n"


def outputs(printed: str) -> list[list[str]]:
    """Return what each step of a `script` printed."""
    return [part.splitlines() for part in re.split(r"^\$\n", printed, flags=re.MULTILINE)[1:]]


def blurred(lines: list[str]) -> list[str]:
    """Return lines with every number, and every id, replaced: they differ from run to run."""
    return [_NUMBER.sub("N", _ID.sub("[migration ID]", line)) for line in lines]

"""Completion scripts for shells: shtab makes them from the options' table.

Twisted is not imported, and shtab only when a script is asked for.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from flexmigrate.cli.commands import COMMANDS
from flexmigrate.cli.parsing import add_arguments

SHELLS = ("bash", "zsh", "fish")

# The metavars that stand for a file, and for a folder.
_FILES = {"FILE", "IMAGE", "SOCK"}
_FOLDERS = {"DIR"}


def script(shell: str, prog: str) -> str:
    """Return the completion script of *prog* for *shell*, one of `SHELLS`."""
    import shtab

    kinds: Mapping[str, object] = {
        **dict.fromkeys(_FILES, shtab.FILE),
        **dict.fromkeys(_FOLDERS, shtab.DIRECTORY),
    }
    parser = argparse.ArgumentParser(prog=prog)
    parser.add_argument("--version", action="store_true", help="show the version")
    commands = parser.add_subparsers()
    for name, command in COMMANDS.items():
        about = commands.add_parser(name, help=command.summary, description=command.summary)
        add_arguments(about, command)
        for action in about._actions:  # argparse has no public access to these
            _give_values(action, kinds)
    helping = commands.add_parser("help", help="show the help on a command", add_help=False)
    helping.add_argument("command", choices=list(COMMANDS), nargs="?")
    made: str = shtab.complete(parser, shell)
    return made


def _give_values(action: argparse.Action, kinds: Mapping[str, object]) -> None:
    """Set the completion of *action*'s value, if its metavar tells its kind."""
    name = action.metavar if isinstance(action.metavar, str) else ""
    if "|" in name:
        action.choices = name.split("|")
    elif name in kinds:
        action.complete = kinds[name]  # type: ignore[attr-defined]  # shtab's own

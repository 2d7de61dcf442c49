"""Reads a command line: `argparse` for the words, `cli.commands` for what they become.

What a configuration file says fills in what the command line leaves out.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

from flexmigrate.cli.commands import COMMANDS, Subcommand
from flexmigrate.cli.option import Flag, Given, ValueOption, Words
from flexmigrate.cli.options import CONFIG, QUIET, SERVER_WORDS, VERBOSE
from flexmigrate.cli.requests import Config
from flexmigrate.config import ListenConfig, ServeConfig
from flexmigrate.errors import UsageError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def parser_of(name: str, prog: str) -> argparse.ArgumentParser:
    """Return the parser of the command *name*, which knows the help, too.

    :param prog: the words before the options: ``flexmigrate serve``.
    """
    command = COMMANDS[name]
    # An abbreviation that works today would be ambiguous after the next option.
    parser = _Parser(
        prog=prog,
        usage=textwrap.fill(
            f"{prog} {command.synopsis}",
            width=72,
            subsequent_indent=" " * 8,
            break_on_hyphens=False,
        ),
        description=f"{command.summary[0].upper()}{command.summary[1:]}.",
        allow_abbrev=False,
    )
    add_arguments(parser, command)
    return parser


def add_arguments(parser: argparse.ArgumentParser, command: Subcommand) -> None:
    """Tell *parser* what *command* can be told."""
    if command.words is not None:
        words = command.words
        parser.add_argument("words", metavar=words.metavar, nargs=words.count, help=words.help)
    for option in command.options:
        add = functools.partial(
            parser.add_argument, *_spellings(option), dest=option.long, help=option.help
        )
        if isinstance(option, Flag):
            add(action="store_true")
        else:
            add(metavar=option.metavar, action="append" if option.repeatable else "store")
    for flag, level in ((VERBOSE, 1), (QUIET, -1)):
        parser.add_argument(
            *_spellings(flag),
            dest="verbosity",
            action="store_const",
            const=level,
            default=None,
            help=flag.help,
        )


def parse(name: str, words: Sequence[str], prog: str) -> Config:
    """Return what *words* tell the command *name*; ``--help`` prints and exits with 0.

    :raises UsageError: naming the option that is wrong, missing or not known.
    """
    command = COMMANDS[name]
    parser = parser_of(name, prog)
    if command.words is not None and command.words.count == argparse.REMAINDER:
        given = vars(parser.parse_args(list(words)))
    else:
        given = vars(parser.parse_intermixed_args(list(words)))
    path = Given(given).optional(CONFIG) if CONFIG in command.options else None
    if path is None:
        server = _server(given["words"], prog) if command.words is SERVER_WORDS else None
        return command.read(Given(given, server=server))
    try:
        config = command.read(_with_file(name, given, path))
        assert isinstance(config, (ServeConfig, ListenConfig))
        return dataclasses.replace(
            config, reread=functools.partial(_server_config, name, tuple(words), prog)
        )
    except UsageError as error:
        if path in str(error):
            raise
        # What is missing, say, has no place.
        raise UsageError(f"{error} (on the command line, or in {path})") from error


def _server_config(name: str, words: Sequence[str], prog: str) -> ServeConfig | ListenConfig:
    config = parse(name, words, prog)
    assert isinstance(config, (ServeConfig, ListenConfig))
    return config


def _server(words: Sequence[str], prog: str) -> ServeConfig | ListenConfig | None:
    """Return what *words*, the command line of a server, tell it; None if there are none."""
    if not words:
        return None
    name, *others = words
    if name not in ("serve", "listen"):
        raise UsageError(f"{name!r} is neither serve nor listen")
    return _server_config(name, others, f"{prog} {name}")


def file_settings() -> dict[str, dict[str, Flag | ValueOption[Any] | Words]]:
    """Return what can stand in a configuration file: by command, and by key."""
    found: dict[str, dict[str, Flag | ValueOption[Any] | Words]] = {}
    for name, command in COMMANDS.items():
        if CONFIG in command.options:
            settings = (*command.options, VERBOSE, QUIET)
            found[name] = {each.long: each for each in settings if each is not CONFIG}
            if command.words is not None and command.words.key:
                found[name][command.words.key] = command.words
    return found


def _with_file(name: str, given: dict[str, Any], path: str) -> Given:
    """Return what is given, with what the file at *path* says where the command line is silent."""
    from flexmigrate.cli.config_file import read_file

    file = read_file(path, name, file_settings())
    words = COMMANDS[name].words
    merged = dict(given)
    places = {}
    for key, value in file.values.items():
        at = "words" if words is not None and key == words.key else key
        if not merged.get(at):
            merged[at] = value
            places[key] = file.places[key]
    if merged["verbosity"] is None:
        merged["verbosity"] = bool(merged.get("verbose")) - bool(merged.get("quiet"))
    return Given(merged, places)


def _spellings(option: Flag | ValueOption[Any]) -> list[str]:
    return [*([f"-{option.short}"] if option.short else []), f"--{option.long}"]

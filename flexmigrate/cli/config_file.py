"""The configuration file: options of a command line, in TOML (v1.0.0).

A key is the long name of an option, its value what would follow it: a text or a number, an array
of these for an option that can be repeated, ``true`` for one without a value. Keys before
any table apply to every command with such an option; the tables ``[serve]`` and ``[listen]``
apply to one, and take precedence. So one file can configure both ends of a migration.

Values are not interpreted here: each becomes the word that a command line would have,
with its place in the file for error messages. Twisted is not imported.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flexmigrate.cli.option import Flag, ValueOption, Words
from flexmigrate.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:  # the same, before it was Python's
    import tomli as tomllib

Setting = Flag | ValueOption[Any] | Words

_HEADER = re.compile(r"\s*\[\s*([\w-]+)\s*\]")
_KEY = re.compile(r"""\s*["']?([\w-]+)["']?\s*=""")


@dataclass(frozen=True)
class FromFile:
    """The settings of one command in a configuration file.

    :ivar values: a word, a list of words, or True, by key.
    :ivar places: the place of each, for messages.
    """

    values: Mapping[str, str | list[str] | bool]
    places: Mapping[str, str]


def kind_of(setting: Setting) -> str:
    """Return the expected type of a value, in words."""
    if isinstance(setting, Flag):
        return "true or false"
    if isinstance(setting, Words) or setting.repeatable:
        return "an array of texts"
    return "a text or a number"


def read_file(path: str, command: str, settings: Mapping[str, Mapping[str, Setting]]) -> FromFile:
    """Return the settings for *command* in the file at *path*.

    :param settings: for each command that takes a file, its settings by key.
    :raises UsageError: naming the file, and the line or the key of the mistake.
    """
    try:
        with open(path, "rb") as file:
            text = file.read().decode()
        document = tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: byte {error.start} is not UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: {error}") from error
    reader = _Reader(path, text, settings)
    reader.check(document)
    return reader.read(document, command)


class _Reader:
    def __init__(self, path: str, text: str, settings: Mapping[str, Mapping[str, Setting]]) -> None:
        self._path = path
        self._settings = settings
        self._lines = _lines_of(text)

    def check(self, document: Mapping[str, Any]) -> None:
        """Check that every key, of any command, is known and has a value of the right type."""
        for key, value in document.items():
            if not isinstance(value, dict):
                self._check(("", key), value, *self._settings.values())
            elif key not in self._settings:
                tables = " and ".join(f"[{name}]" for name in self._settings)
                raise UsageError(f"{self._path}: [{key}]: there are only the tables {tables}")
            else:
                for inner, held in value.items():
                    self._check((key, inner), held, self._settings[key])

    def _check(self, at: tuple[str, str], value: object, *commands: Mapping[str, Setting]) -> None:
        """Check that *value* fits the option of at least one of *commands*."""
        key = at[1]
        settings = [known[key] for known in commands if key in known]
        if not settings:
            names = sorted({name for known in commands for name in known})
            near = difflib.get_close_matches(key, names, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            of = at[0] or " or ".join(self._settings)
            raise UsageError(f"{self._place(at)}: {of} has no such option{hint}")
        if not any(_fits(value, each) for each in settings):
            kinds = " or ".join(dict.fromkeys(kind_of(each) for each in settings))
            raise UsageError(f"{self._place(at)}: {value!r} is not {kinds}")

    def read(self, document: Mapping[str, Any], command: str) -> FromFile:
        known = self._settings[command]
        values: dict[str, str | list[str] | bool] = {}
        places: dict[str, str] = {}
        for table, held in (("", document), (command, document.get(command, {}))):
            for key, value in held.items():
                if key in known and not isinstance(value, dict):
                    self._check((table, key), value, known)
                    values[key] = _worded(value)
                    places[key] = self._place((table, key))
        return FromFile(values, places)

    def _place(self, at: tuple[str, str]) -> str:
        line = self._lines.get(at)
        where = f"{self._path}, line {line}" if line else self._path
        table, key = at
        return f"{where}: {f'[{table}] ' if table else ''}{key}"


def _fits(value: object, setting: Setting) -> bool:
    if isinstance(setting, Flag):
        return isinstance(value, bool)
    if isinstance(setting, Words) or setting.repeatable:
        return isinstance(value, list) and all(_is_word(each) for each in value)
    return _is_word(value)


def _is_word(value: object) -> bool:
    return isinstance(value, (str, int)) and not isinstance(value, bool)


def _worded(value: Any) -> str | list[str] | bool:
    if isinstance(value, bool):
        return value
    return [str(each) for each in value] if isinstance(value, list) else str(value)


def _lines_of(text: str) -> dict[tuple[str, str], int]:
    """Return the line of each key, by table and key; some may be missing.

    TOML's parser doesn't tell. A line inside a text of several lines can look like a key; then a
    message names a wrong line, and the right key.
    """
    found: dict[tuple[str, str], int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            table = header[1]
        elif key := _KEY.match(line):
            found.setdefault((table, key[1]), number)
    return found

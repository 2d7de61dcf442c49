"""The definition of an option, and access to the values given on a command line.

The options themselves are in ``options.py``, the parsers of their values in ``values.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from flexmigrate.config import ListenConfig, ServeConfig
from flexmigrate.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class Flag:
    """An option without a value."""

    long: str
    short: str
    help: str


@dataclass(frozen=True)
class ValueOption(Generic[T]):
    """An option with a value.

    :ivar parse: makes the value from the word given; raises ``ValueError`` with a message that
        quotes it.
    :ivar repeatable: whether it may be given more than once; each time adds a value.
    """

    long: str
    short: str
    metavar: str
    help: str
    parse: Callable[[str], T]
    repeatable: bool = False


@dataclass(frozen=True)
class Words:
    """The words after the options.

    :ivar count: the number of words, as ``nargs`` of argparse.
    :ivar key: their name in a configuration file, if they are allowed there.
    """

    metavar: str
    help: str
    count: str | int
    key: str = ""


class Given:
    """The options given on one command line, as words. Each error names its option.

    :param places: the names in messages of options that were given in a configuration file.
    :ivar server: the configuration in the words after the options, if they are a
        server's command line; else None.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        places: Mapping[str, str] | None = None,
        server: ServeConfig | ListenConfig | None = None,
    ) -> None:
        self._values = values
        self._places = places or {}
        self.server = server

    def name(self, option: Flag | ValueOption[Any]) -> str:
        """Return the name of *option* in a message: ``--port``, or its place in a file."""
        return self._places.get(option.long, f"--{option.long}")

    @property
    def words(self) -> list[str]:
        """The words after the options."""
        words = self._values.get("words") or ()
        return [words] if isinstance(words, str) else list(words)

    def name_of(self, words: Words) -> str:
        """Return the name of *words* in a message about one of them."""
        return self._places.get(words.key, words.metavar)

    @property
    def verbosity(self) -> int:
        """-1 after ``--quiet``, 1 after ``--verbose``; of both, the last one wins."""
        return int(self._values["verbosity"] or 0)

    def flag(self, flag: Flag) -> bool:
        """Return whether *flag* was given."""
        return bool(self._values[flag.long])

    def optional(self, option: ValueOption[T]) -> T | None:
        """Return the value of *option*, or ``None`` if it was not given."""
        word = self._values[option.long]
        if word is None:
            return None
        try:
            return option.parse(word)
        except ValueError as error:
            raise UsageError(f"{self.name(option)}: {error}") from error

    def every(self, option: ValueOption[T]) -> list[T]:
        """Return the values of *option*, which is repeatable, in the order they were given."""
        try:
            return [option.parse(word) for word in self._values[option.long] or ()]
        except ValueError as error:
            raise UsageError(f"{self.name(option)}: {error}") from error

    def required(self, option: ValueOption[T], because: str = "") -> T:
        """Return the value of *option*, which has to be given (*because* of another one)."""
        value = self.optional(option)
        if value is None:
            raise UsageError(f"--{option.long} is required{because}")
        return value

    def refuse(self, option: ValueOption[Any], because: str) -> None:
        """Raise UsageError if *option* was given."""
        given = self._values[option.long] or ()
        for word in given if option.repeatable else (given,):
            if word != ():
                raise UsageError(f"{self.name(option)} {word}: {because}")

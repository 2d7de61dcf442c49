"""The settings of the log that an operator can choose. Twisted is not imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flexmigrate.errors import UsageError, check_type

LogFormat = Literal["text", "json", "flexnbd"]

FORMATS: tuple[LogFormat, ...] = ("text", "json", "flexnbd")

# Those of twisted.logger, from the least important one on.
LEVELS = ("debug", "info", "warn", "error", "critical")

OURS = "flexmigrate"


@dataclass(frozen=True)
class LogSettings:
    """The level and the layout of the log.

    :ivar verbosity: -1 for errors only, 0 for what an operator wants to know, 1 for everything.
        Twisted tells, as information, of each port and factory that starts or stops: that is
        shown with 1 only.
    :ivar form: the layout of a line.
    :ivar levels: pairs of a namespace and the lowest of `LEVELS` that is shown of it and all
        below it, whatever the verbosity; the longest namespace that fits wins. A namespace is
        written as in the log, without flexmigrate's name in front of it; ``flexmigrate`` is all
        of ours.
    :ivar requests: each request and each reply of a client is logged.
    """

    verbosity: int = 0
    form: LogFormat = "text"
    levels: tuple[tuple[str, str], ...] = ()
    requests: bool = False

    def __post_init__(self) -> None:
        """Refuse values that a field can't have."""
        check_type("verbosity", self.verbosity, int)
        check_type("requests", self.requests, bool)
        check_type("form", self.form, str)
        check_type("levels", self.levels, tuple)
        if self.verbosity not in (-1, 0, 1):
            raise UsageError(f"verbosity={self.verbosity}: it must be -1, 0 or 1")
        if self.form not in FORMATS:
            raise UsageError(f"form={self.form!r}: it is none of {', '.join(map(repr, FORMATS))}")
        for namespace, level in self.levels:
            check_type("levels", namespace, str)
            if level not in LEVELS:
                raise UsageError(f"levels: {level!r} is none of {', '.join(LEVELS)}")


def shown_namespace(namespace: str) -> str:
    """Return the name of a logger as the log shows it: ours without ``flexmigrate.``."""
    return namespace.removeprefix(f"{OURS}.")

"""The types of option values: each function parses the word that was given, or raises
``ValueError`` with a message that quotes the word.
"""

from __future__ import annotations

from flexmigrate.log.settings import FORMATS, LEVELS, LogFormat, shown_namespace
from flexmigrate.migration.request import MAX_BPS
from flexmigrate.net.address import parse_port

# off_t has 64 bits with a sign: no image is longer.
MAX_OFFSET = 2**63 - 1
_SUFFIXES = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_bytes(text: str, lowest: int = 0, highest: int = MAX_OFFSET) -> int:
    """Return the number of bytes that *text* names: digits, and perhaps K, M, G or T (2 to the
    power of 10, 20, 30, 40).

    :raises ValueError: if it names none, or none from *lowest* to *highest*.
    """
    digits, factor = text, 1
    if text[-1:].upper() in _SUFFIXES:
        digits, factor = text[:-1], _SUFFIXES[text[-1:].upper()]
    if not (digits.isascii() and digits.isdigit()):
        raise ValueError(f"{text!r} is not a number of bytes, like 4096, 64K or 1G")
    number = int(digits) * factor
    if not lowest <= number <= highest:
        raise ValueError(f"{text!r} is not from {lowest} to {highest}")
    return number


def parse_size(text: str) -> int:
    """Return a number of bytes, at least 1."""
    return parse_bytes(text, lowest=1)


def parse_bps(text: str) -> int:
    """Return a limit in bytes a second; 0 is none."""
    return parse_bytes(text, highest=MAX_BPS)


def parse_remote_port(text: str) -> int:
    """Return a port that somebody listens on."""
    return parse_port(text, lowest=1)


def parse_log_format(text: str) -> LogFormat:
    """Return a layout of log lines."""
    for form in FORMATS:
        if text == form:
            return form
    raise ValueError(f"{text!r} is none of 'text', 'json' and 'flexnbd'")


def parse_log_level(text: str) -> tuple[str, str]:
    """Return a namespace, and the level from which on its lines are logged."""
    namespace, equals, level = text.rpartition("=")
    if not equals or not namespace or level not in LEVELS:
        raise ValueError(f"{text!r} is not NAMESPACE=LEVEL with a level of {', '.join(LEVELS)}")
    return shown_namespace(namespace), level

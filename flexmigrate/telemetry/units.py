"""Formatting of numbers with three digits and a unit, and a parser of times."""

from __future__ import annotations

import re

MAX_SECONDS = 86400.0
"""The longest time that is accepted: a day."""

_TYPED_SECONDS = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|min|)", re.ASCII)
_TYPED_UNITS = {"ms": 0.001, "s": 1.0, "": 1.0, "min": 60.0}

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def size_text(number: float) -> str:
    """Return *number* bytes in the largest unit that it reaches, as in ``1.25 GiB``."""
    unit = 0
    while number >= 1000 and unit < len(_BINARY) - 1:
        number /= 1024
        unit += 1
    return f"{int(number)} B" if unit == 0 else f"{_three_digits(number)} {_BINARY[unit]}"


def rate_text(number: float) -> str:
    """Return *number* bytes a second, as in ``112 MiB/s``."""
    return f"{size_text(number)}/s"


def duration_text(seconds: float) -> str:
    """Return so many seconds as in ``0.012 s``, ``14 s``, ``3 min 20 s`` or ``2 h 05 min``."""
    if seconds < 0.9995:
        return f"{seconds:.3f} s"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def count_text(number: int, one: str, more: str = "") -> str:
    """Return *number* with the word for what is counted: ``1 pass``, ``2 passes``."""
    return f"{number} {one if number == 1 else more or one + 's'}"


def _three_digits(number: float) -> str:
    if number < 9.995:
        return f"{number:.2f}"
    return f"{number:.1f}" if number < 99.95 else f"{number:.0f}"


def parse_seconds(text: str, lowest: float = 0.0) -> float:
    """Parse a time: a decimal number, and perhaps ``ms``, ``s`` or ``min``; return seconds.

    :raises ValueError: it is not a time, or not one from *lowest* to `MAX_SECONDS`.
    """
    match = _TYPED_SECONDS.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a time, like 100ms, 2.5s or 1min")
    seconds = float(match[1]) * _TYPED_UNITS[match[2]]
    if not lowest <= seconds <= MAX_SECONDS:
        raise ValueError(
            f"{text!r} is not from {format_seconds(lowest)} to {format_seconds(MAX_SECONDS)}"
        )
    return seconds


def format_seconds(seconds: float) -> str:
    """Return *seconds* as `parse_seconds` reads them, to the nanosecond."""
    if 0 < seconds < 1:
        return f"{_decimal(seconds * 1000, 6)}ms"
    return f"{_decimal(seconds, 9)}s"


def _decimal(number: float, digits: int) -> str:
    return f"{number:.{digits}f}".rstrip("0").rstrip(".")

"""The subject of a report, and the kinds of reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from flexmigrate.telemetry.fields import about

SUFFIXES: Final = (".html", ".json")
"""How a report's name ends says what it is."""


@dataclass(frozen=True)
class Subject:
    """The migration that a report tells of."""

    version: str = field(metadata=about("of flexmigrate"))
    image: str = field(metadata=about("path of the image at the source"))
    export: str = field(metadata=about("its name; empty for the default export"))
    size: int = field(metadata=about("of the image", "bytes"))
    action: str = field(metadata=about("what was to become of the source: exit, unlink or nothing"))
    began: str = field(metadata=about("when it was asked for, in UTC (ISO 8601)"))

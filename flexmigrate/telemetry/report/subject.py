"""The subject of a report, and the kinds of reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from flexmigrate.telemetry.fields import about

SUFFIXES: Final = (".html", ".json")
"""Suffixes of a report's file name, which decide its format."""


@dataclass(frozen=True)
class Subject:
    """The migration that a report is about."""

    version: str = field(metadata=about("of flexmigrate"))
    image: str = field(metadata=about("path of the image at the source"))
    export: str = field(metadata=about("its name; empty for the default export"))
    size: int = field(metadata=about("of the image", "bytes"))
    action: str = field(
        metadata=about("the source's action after the handover: exit, unlink or nothing")
    )
    began: str = field(metadata=about("time when it was asked for, in UTC (ISO 8601)"))

"""A report as JSON: the whole history, with the meaning of each field."""

from __future__ import annotations

import json
from typing import Any

from flexmigrate.telemetry.fields import documented, values_of
from flexmigrate.telemetry.history import History, Sample, Summary
from flexmigrate.telemetry.report.subject import Subject

FORMAT = "flexmigrate migration report"
VERSION = 1
"""The version of the format. It grows when a field is removed or changes its meaning."""


def as_json(subject: Subject, history: History, summary: Summary) -> str:
    """Return the report; fields that do not apply are left out of it."""
    report = {
        "format": FORMAT,
        "version": VERSION,
        "subject": values_of(subject),
        "summary": values_of(summary),
        "changes": [values_of(each) for each in history.changes],
        "samples": [values_of(each) for each in history.samples],
        "fields": {
            "subject": _meanings(Subject),
            "summary": _meanings(Summary),
            "changes and samples": _meanings(Sample),
        },
    }
    return json.dumps(report, indent=1) + "\n"


def _meanings(kind: type) -> dict[str, Any]:
    return {
        each.name: {"meaning": each.doc, **({"unit": each.unit} if each.unit else {})}
        for each in documented(kind)
    }

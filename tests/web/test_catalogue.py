"""The metrics as they are declared, and that what is said elsewhere of them is true."""

from __future__ import annotations

import json
import re

from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.server.measuring import MEASURED, Meter
from flexmigrate.telemetry.history import Tally
from flexmigrate.telemetry.status import Status
from flexmigrate.web.catalogue import OF_EXPORTS, OF_SERVER
from flexmigrate.web.exposition import Exposition
from flexmigrate.web.view import ExportView, ServerView
from support.processes import TESTS

DOCS = TESTS.parent / "docs"


def known_names() -> set[str]:
    """Return every name that a query can ask for."""
    names = set()
    for metric in (*OF_SERVER, *OF_EXPORTS):
        if metric.kind == "histogram":
            names |= {f"{metric.full_name}_{suffix}" for suffix in ("bucket", "count", "sum")}
        else:
            names.add(metric.full_name)
    return names


class CatalogueTests(SynchronousTestCase):
    def test_names_differ_and_are_as_prometheus_has_them(self) -> None:
        names = [metric.full_name for metric in (*OF_SERVER, *OF_EXPORTS)]
        self.assertEqual(len(names), len(set(names)))
        for name in names:
            self.assertRegex(name, r"^flexmigrate_[a-z][a-z_]*[a-z]$")

    def test_the_dashboard_asks_only_for_what_there_is(self) -> None:
        board = json.loads((DOCS / "grafana-dashboard.json").read_text())
        queries = [
            target["expr"] for panel in board["panels"] for target in panel.get("targets", ())
        ]
        self.assertGreater(len(queries), 10)
        asked = {name for query in queries for name in re.findall(r"flexmigrate_\w+", query)}
        self.assertEqual(asked - known_names(), set())
        for variable in board["templating"]["list"]:
            named = re.findall(r"flexmigrate_\w+", str(variable.get("query", "")))
            self.assertEqual(set(named) - known_names(), set())

    def test_the_page_speaks_only_of_what_there_is(self) -> None:
        text = (DOCS / "monitoring.rst").read_text()
        named = set(re.findall(r"flexmigrate_\w+", text))
        families = {metric.full_name for metric in (*OF_SERVER, *OF_EXPORTS)}
        self.assertEqual(named - known_names() - families, set())
        self.assertGreater(len(named), 20)

    def test_an_answer_comes_in_short_pieces_that_stand_together(self) -> None:
        idle = Status(0, 512, True, True, 0, False)
        meter = Meter()
        views = [ExportView(name, idle, 0, 0, meter.of(name), Tally()) for name in ("a", "b")]
        pieces = [piece.decode() for piece in Exposition(lambda: ServerView(views)).pieces()]
        name = "flexmigrate_request_duration_seconds"
        found = [piece for piece in pieces if f"{name}_bucket" in piece]
        self.assertEqual(len(found), len(views) * len(MEASURED))
        first = pieces.index(found[0])
        self.assertEqual(pieces[first : first + len(found)], found)
        text = "".join(pieces)
        self.assertEqual(text.count(f"# TYPE {name} "), 1)
        self.assertTrue(found[0].startswith(f"# HELP {name} "))

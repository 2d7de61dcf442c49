"""The metrics as they are declared, and that what is said elsewhere of them is true."""

from __future__ import annotations

import json
import re

from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.migration import source
from flexmigrate.web.catalogue import OF_EXPORTS, OF_SERVER, PHASES
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

    def test_the_phases_are_those_of_the_source(self) -> None:
        states = {state.name for state in source.builder._automaton.states()}
        self.assertEqual(set(PHASES), states)

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

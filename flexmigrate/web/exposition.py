"""The metrics in Prometheus' text format.

prometheus_client makes the text. Its own counters are not used: they take a lock for each change,
which is too much for the path of a request; here plain numbers are copied upon a scrape. Nor
is its resource for Twisted, which works in another thread, where the numbers change meanwhile.

The text is made on the reactor's thread, metric by metric and export by export, and between two of
these clients are served: so they don't notice the number of exports. The time of the
longest piece is in ``docs/monitoring.rst``. In a thread it would delay clients
for longer: a computing thread keeps the interpreter for 5 ms at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from prometheus_client import ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.core import (
    Metric as Family,
)

from flexmigrate.server.measuring import BOUNDS, Measured
from flexmigrate.web.catalogue import OF_EXPORTS, OF_SERVER, PREFIX, Metric, Values
from flexmigrate.web.view import ExportView, Look, shown

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


class _Families:
    """A registry for `generate_latest` whose families exist already."""

    def __init__(self, *families: Family) -> None:
        self._families = families

    def collect(self) -> Iterator[Family]:
        return iter(self._families)


class Exposition:
    """Makes the text for one server.

    :param look: returns the current view of the server.
    """

    def __init__(self, look: Look) -> None:
        self._look = look
        # In no registry: several servers may be in one process.
        self._process = ProcessCollector(registry=None)

    def pieces(self) -> Iterator[bytes]:
        """Yield the text in pieces that each take a short time; values are of that time."""
        yield _text(*self._process.collect())
        server = self._look()
        for metric in OF_SERVER:
            yield _text(_family(metric, (), metric.values(server)))
        for metric in OF_EXPORTS:
            families = (each for export in server.exports for each in _of_export(metric, export))
            for at, family in enumerate(families):
                # All samples of a metric follow its description.
                yield _text(family) if not at else _without_description(_text(family))


def _of_export(metric: Metric, export: ExportView) -> Iterator[Family]:
    """Yield the values of *export*; those of a histogram command by command, since each is long."""
    label, values = (shown(export.name),), metric.values(export)
    if metric.kind == "histogram":
        for each in values:
            yield _family(metric, label, iter([each]))
    else:
        yield _family(metric, label, values)


def _text(*families: Family) -> bytes:
    collector: Any = _Families(*families)
    return generate_latest(collector)


def _without_description(text: bytes) -> bytes:
    """Return *text* without its HELP and TYPE lines."""
    return b"".join(line for line in text.splitlines(True) if not line.startswith(b"#"))


def _family(metric: Metric, export: tuple[str, ...], values: Values) -> Family:
    name, labels = PREFIX + metric.name, ("export",)[: len(export)] + metric.labels
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(name, metric.doc, labels=labels)
        for key, measured in values:
            histogram.add_metric((*export, *key), _buckets(measured), measured.seconds)
        return histogram
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(name, metric.doc, labels=labels)
    for key, value in values:
        family.add_metric((*export, *key), value)
    return family


def _buckets(measured: Measured) -> list[tuple[str, float]]:
    """Return the buckets as Prometheus counts them: each includes all smaller ones."""
    bounds = (*map(str, BOUNDS), "+Inf")
    return list(zip(bounds, accumulate(measured.counts), strict=True))

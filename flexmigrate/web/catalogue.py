"""The catalogue of metrics: their names, types, labels, meanings, and sources.

Names and units are as Prometheus' conventions have them (https://prometheus.io/docs/practices/naming/):
base units, counters end in ``_total``. A metric that is also a status field has the description
from `flexmigrate.telemetry.status`. ``exposition`` writes them in Prometheus' format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from flexmigrate import __version__
from flexmigrate.server.measuring import MEASURED
from flexmigrate.telemetry.fields import documented
from flexmigrate.telemetry.history import Verdict
from flexmigrate.telemetry.states import DESTINATION_STATES, SOURCE_STATES
from flexmigrate.telemetry.status import Status
from flexmigrate.web.view import ExportView, ServerView

PREFIX: Final = "flexmigrate_"

Values = Iterator[tuple[tuple[str, ...], Any]]


@dataclass(frozen=True)
class Metric:
    """One metric, of each export or of the server.

    :ivar name: without the prefix, and without the suffix that its type adds.
    :ivar labels: the labels beside ``export``.
    :ivar values: yields the values of the labels with the number that belongs to them, or with
        what was measured where it is a histogram; nothing where it doesn't apply.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    doc: str
    labels: tuple[str, ...]
    values: Callable[[Any], Values]

    @property
    def full_name(self) -> str:
        """The name in queries; a histogram's has further suffixes."""
        return f"{PREFIX}{self.name}{'_total' if self.kind == 'counter' else ''}"


_MEANING: Final[Mapping[str, str]] = {each.name: each.doc for each in documented(Status)}


def _plain(
    name: str, kind: Literal["counter", "gauge"], doc: str, value: Callable[[Any], float]
) -> Metric:
    def values(view: Any) -> Values:
        yield (), value(view)

    return Metric(name, kind, doc, (), values)


def _of_status(name: str, field: str, kind: Literal["counter", "gauge"] = "gauge") -> Metric:
    """Return a metric that is a field of the status, and is left out when the field is."""

    def values(view: ExportView) -> Values:
        value = getattr(view.status, field)
        if value is not None:
            yield (), value

    return Metric(name, kind, _MEANING[field], (), values)


def _state(end: str, known: tuple[str, ...]) -> Metric:
    """Return a metric that is 1 for the state and for the phase that an end of a migration is in,
    and 0 for all others that are *known*.
    """

    def values(view: ExportView) -> Values:
        now = (getattr(view.status, f"{end}_state"), getattr(view.status, f"{end}_phase"))
        for each in known:
            yield (each,), int(each in now)

    doc = f"{_MEANING[f'{end}_state']}; 1 for the state, and for its phase, 0 for others"
    return Metric(f"{end}_phase", "gauge", doc, ("phase",), values)


def _durations(view: ExportView) -> Values:
    for command in MEASURED:
        yield (command.name.lower(),), view.meter.commands[command]


def _sizes(view: ExportView) -> Values:
    for command in MEASURED:
        yield (command.name.lower(),), view.meter.commands[command].size


def _errors(view: ExportView) -> Values:
    for error, count in sorted(view.meter.errors.items()):
        yield (error,), count


def _ends(view: ExportView) -> Values:
    for verdict in get_args(Verdict):
        yield (verdict,), view.tally.ends[verdict]


def _version(view: ServerView) -> Values:
    yield (__version__,), 1


OF_EXPORTS: Final = (
    _of_status("export_size_bytes", "size"),
    _plain("export_clients", "gauge", "clients that use this export", lambda view: view.clients),
    _of_status("export_owned", "has_control"),
    _plain(
        "export_flush_failed",
        "gauge",
        "1 if a flush has failed, and every flush fails since then; else 0",
        lambda view: int(view.status.flush_failed is not None),
    ),
    Metric(
        "request_duration_seconds",
        "histogram",
        "time from the receipt of a request's batch to its reply; its count is that of requests",
        ("command",),
        _durations,
    ),
    Metric(
        "request_size_bytes",
        "counter",
        "bytes that successful requests have read or changed",
        ("command",),
        _sizes,
    ),
    Metric(
        "request_errors",
        "counter",
        "requests that were answered with an error, by its name in the protocol",
        ("error",),
        _errors,
    ),
    _plain(
        "background_calls",
        "gauge",
        "calls of this export that are with the thread pool, or wait for it",
        lambda view: view.waiting,
    ),
    _of_status("migration_running", "is_mirroring"),
    _state("migration", SOURCE_STATES),
    _of_status("migration_duration_seconds", "migration_duration"),
    _of_status("migration_left_bytes", "migration_bytes_left"),
    _of_status("migration_speed_bytes_per_second", "migration_speed"),
    _of_status("migration_speed_limit_bytes_per_second", "migration_speed_limit"),
    _of_status("migration_dirty_rate_bytes_per_second", "migration_dirty_rate"),
    _of_status("migration_write_limit_bytes_per_second", "migration_write_limit"),
    _of_status("migration_expected_downtime_seconds", "migration_downtime"),
    _of_status("migration_allowed_downtime_seconds", "migration_allowed_downtime"),
    _of_status("migration_pass", "migration_pass"),
    _plain(
        "migration_sent_bytes",
        "counter",
        "bytes that migrations of this export have sent",
        lambda view: view.tally.bytes_sent,
    ),
    _plain(
        "migration_attempts",
        "counter",
        "connections to destinations that migrations of this export have made",
        lambda view: view.tally.attempts,
    ),
    _plain(
        "migration_parked_seconds",
        "counter",
        "time for which migrations have parked this export's clients",
        lambda view: view.tally.parked,
    ),
    Metric(
        "migrations",
        "counter",
        "migrations that have ended, by verdict: see the summary's verdicts",
        ("verdict",),
        _ends,
    ),
    _state("listening", DESTINATION_STATES),
    _of_status("received_bytes", "covered_bytes"),
    _of_status("rebind_attempts", "rebind_attempts"),
)


def _first(field: str) -> Callable[[ServerView], Values]:
    """Return a function that yields a status field of the server."""

    def values(view: ServerView) -> Values:
        value = getattr(view.exports[0].status, field)
        if value is not None:
            yield (), value

    return values


OF_SERVER: Final = (
    Metric("build_info", "gauge", "always 1; the label has the version", ("version",), _version),
    Metric("clients", "gauge", _MEANING["num_clients"], (), _first("num_clients")),
    Metric("clients_allowed", "gauge", _MEANING["clients_allowed"], (), _first("clients_allowed")),
    Metric("poll_hits", "counter", _MEANING["poll_hits"], (), _first("poll_hits")),
    Metric("poll_misses", "counter", _MEANING["poll_misses"], (), _first("poll_misses")),
    _plain("threads_max", "gauge", "threads that the pool may have", lambda view: view.pool.most),
    _plain("threads_busy", "gauge", "threads that wait for the disk", lambda view: view.pool.busy),
    _plain(
        "thread_queue_length",
        "gauge",
        "calls that wait for a thread of the pool",
        lambda view: view.pool.queued,
    ),
)

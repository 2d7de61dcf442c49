"""A report as a self-contained page: no network, no script, light or dark."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from flexmigrate.telemetry.fields import values_of
from flexmigrate.telemetry.history import History, Sample, Summary
from flexmigrate.telemetry.report.plot import STAGES, draw
from flexmigrate.telemetry.report.subject import Subject
from flexmigrate.telemetry.states import SourceState
from flexmigrate.telemetry.terminal.progress import summary_line
from flexmigrate.telemetry.units import count_text, duration_text, rate_text, size_text

MOST_ROWS = 60
"""Rows of a table. Nobody would read more, and the JSON report has all of them."""

_STYLE = """
:root { color-scheme: light dark; --ground: #fff; --text: #222; --faint: #e4e4e4; --soft: #666;
  --sent: #2471a3; --changed: #c0392b; --slowed: #8e44ad; --limit: #7f8c8d; --left: #1e8449;
  --connecting: #aab7b8; --copying: #5499c7; --converging: #f0b429; --parked: #c0392b;
  --waiting: #909497; --good: #1e8449; --bad: #c0392b; }
@media (prefers-color-scheme: dark) { :root { --ground: #16191d; --text: #e6e6e6; --faint: #333940;
  --soft: #a5adb5; --sent: #5dade2; --changed: #ec7063; --slowed: #bb8fce; --limit: #99a3a4;
  --left: #58d68d; --connecting: #626f78; --copying: #2e7cb4; --converging: #d39e12;
  --parked: #e74c3c; --waiting: #707b7c; --good: #58d68d; --bad: #ec7063; } }
body { background: var(--ground); color: var(--text); max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin-bottom: .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin-top: 2rem; }
.good { color: var(--good); } .bad { color: var(--bad); }
.soft { color: var(--soft); }
svg { width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 12px; }
.grid { stroke: var(--faint); } .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.sent { stroke: var(--sent); } .sent.area { fill: var(--sent); stroke: none; opacity: .2; }
.changed { stroke: var(--changed); } .left { stroke: var(--left); }
.slowed { stroke: var(--slowed); stroke-dasharray: 6 3; }
.limit { stroke: var(--limit); stroke-dasharray: 2 4; }
.failure { stroke: var(--bad); stroke-width: 2; stroke-dasharray: 1 3; }
.connecting { fill: var(--connecting); } .copying { fill: var(--copying); }
.converging { fill: var(--converging); } .parked { fill: var(--parked); }
.waiting { fill: var(--waiting); }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: .3rem 0; font-size: .85rem; }
.key svg { width: 1.6rem; height: .8rem; vertical-align: baseline; margin-right: .3rem; }
table { border-collapse: collapse; font-size: .9rem; }
td, th { text-align: left; padding: .2rem 1.2rem .2rem 0; border-bottom: 1px solid var(--faint);
  overflow-wrap: anywhere; vertical-align: top; }
"""

_LINES = (
    ("sent", "sent"),
    ("changed", "changed by clients"),
    ("slowed", "what clients may write, while they are throttled"),
    ("limit", "limit on sending"),
    ("failure", "an attempt failed"),
)

_VERDICTS = {
    "complete": "The image was given away.",
    "copied": "The image was copied; it is still the source's.",
    "broken": "It was ended before its time; the image is the source's.",
    "failed": "It never began.",
    "unconfirmed": "The handover was not confirmed: see the log before either copy is used.",
}


def as_html(subject: Subject, history: History, summary: Summary) -> str:
    """Return the report."""
    title = f"{subject.image} to {summary.address}"
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width">',
            f"<title>Migration of {_text(title)}</title>",
            f"<style>{_STYLE}</style></head><body>",
            f"<h1>Migration of {_text(title)}</h1>",
            *_verdict(summary),
            *_key(),
            draw(history),
            '<p class="soft">Above: rates. The strip: stages. Below: what was left to send.</p>',
            *_facts(subject, summary),
            *_changes(history),
            "</body></html>",
            "",
        ]
    )


def _verdict(summary: Summary) -> Iterator[str]:
    kind = "good" if summary.succeeded else "bad"
    yield f'<p><strong class="{kind}">{_VERDICTS[summary.verdict]}</strong>'
    if summary.reason is not None:
        yield f" {_text(summary.reason)}."
    yield f"<br>{_text(summary_line(values_of(summary)))}</p>"


def _key() -> Iterator[str]:
    yield '<p class="key">'
    for name, text in _LINES:
        line = f'<line class="{name} line" x1="0" y1="6" x2="24" y2="6"/>'
        yield f'<span><svg viewBox="0 0 24 12" aria-hidden="true">{line}</svg>{text}</span>'
    yield '</p><p class="key">'
    for name in STAGES:
        box = f'<rect class="{name}" width="24" height="12"/>'
        label = "clients parked, and the handover" if name == "parked" else name
        yield f'<span><svg viewBox="0 0 24 12" aria-hidden="true">{box}</svg>{label}</span>'
    yield "</p>"


def _facts(subject: Subject, summary: Summary) -> Iterator[str]:
    facts = (
        ("image", subject.image),
        ("export", subject.export or "(the default export)"),
        ("size", f"{size_text(subject.size)} ({subject.size} bytes)"),
        ("destination", summary.address),
        ("afterwards", subject.action),
        ("began", subject.began),
        ("took", duration_text(summary.duration)),
        ("sent", f"{size_text(summary.bytes_sent)} at {rate_text(summary.speed)}"),
        ("passes, in the last attempt", str(summary.passes)),
        ("attempts", str(summary.attempts)),
        ("clients were parked for", duration_text(summary.parked)),
        ("made by", f"flexmigrate {subject.version}"),
    )
    yield "<h2>The migration</h2><table>"
    yield from (f"<tr><th>{name}</th><td>{_text(value)}</td></tr>" for name, value in facts)
    yield "</table>"


def _changes(history: History) -> Iterator[str]:
    changes = list(history.changes)[-MOST_ROWS:]
    yield "<h2>What happened</h2>"
    if len(changes) < len(history.changes):
        yield f'<p class="soft">The last {count_text(len(changes), "event")}.</p>'
    yield "<table><tr><th>after</th><th>attempt</th><th>what</th><th>left</th></tr>"
    for change in changes:
        left = "" if change.bytes_left is None else size_text(change.bytes_left)
        yield (
            f"<tr><td>{duration_text(change.seconds)}</td><td>{change.attempt}</td>"
            f"<td>{_text(_event(change))}</td><td>{left}</td></tr>"
        )
    yield "</table>"


def _event(change: Sample) -> str:
    if change.error is not None:
        return f"attempt failed: {change.error}"
    name = change.state or change.phase
    state = SourceState.named(name)
    if state is not None and state.sends_passes and change.pass_number:
        return f"{name}, pass {change.pass_number}"
    return name


def _text(text: str) -> str:
    # A file's name may hold bytes that are no UTF-8, which could not be written.
    return escape(text.encode("utf-8", "backslashreplace").decode())

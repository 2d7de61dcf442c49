"""A migration in a few lines, as far as its server's status tells: said honestly.

What is known of the end differs from state to state, and so does what is shown. The first pass has
so many bytes to send, and sends them: that is a bar, which only grows. What clients change
meanwhile is the next pass's. From then on nobody knows how much will have to be sent, and there is
no bar but the question itself: how long clients would be parked for what is left, and how long they
may be. Another attempt begins at nothing again, and says that it is another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from flexmigrate.telemetry.fields import Value
from flexmigrate.telemetry.states import SourceState, Stage
from flexmigrate.telemetry.units import count_text, duration_text, rate_text, size_text

BAR = 24  # characters

_NO_END = "not converging"


def topic_of(status: Mapping[str, Value]) -> tuple[Value | None, ...]:
    """Return the subject of a migration's lines; a new subject begins a new line."""
    names = ("attempt", "state", "pass", "write_limit", "verdict")
    return tuple(_get(status, name) for name in names)


def migration_lines(status: Mapping[str, Value]) -> list[str]:
    """Return a migration's progress, as one line, and its rates, as another."""
    lines = [_headline(status), "   ".join(_rates(status))]
    more = (("warning", "warning"), ("in the way", "obstacle"))
    told = ((title, _get(status, name)) for title, name in more)
    return lines + [f"{title}: {text}" for title, text in told if text is not None]


def _get(status: Mapping[str, Value], name: str) -> Value | None:
    return status.get(f"migration_{name}")


def _number(status: Mapping[str, Value], name: str) -> float:
    value = _get(status, name)
    return value if isinstance(value, (int, float)) else 0


def _headline(status: Mapping[str, Value]) -> str:
    name = _get(status, "state") or _get(status, "phase")
    state = SourceState.named(name)
    attempt = _number(status, "attempt")
    again = f"attempt {attempt:.0f}: " if attempt > 1 else ""
    if state is SourceState.UNANSWERED:
        return f"handed over, but not confirmed: {_get(status, 'error')}; it is asked again"
    stage = Stage.PARKED if state is None else state.stage
    if stage is Stage.CONNECTING:
        return f"{again}connecting to {_get(status, 'address')}"
    if stage is Stage.COPYING:
        return again + _copying(status)
    if stage is Stage.CONVERGING:
        return again + _converging(status)
    if stage is Stage.WAITING:
        return f"attempt {attempt:.0f} failed, another follows: {_get(status, 'error')}"
    parked = duration_text(_number(status, "parked"))
    return f"{again}handing over ({name}); clients have been parked for {parked}"


def _copying(status: Mapping[str, Value]) -> str:
    size, sent = _number(status, "pass_size"), _number(status, "pass_sent")
    if not size:
        return "looking for data"
    # What was written into holes meanwhile is sent on top of what there was.
    sent = min(sent, size)
    filled = int(BAR * sent / size)
    bar = "#" * filled + "-" * (BAR - filled)
    return (
        f"copying [{bar}] {int(100 * sent / size):3} %   "
        f"{size_text(sent)} of {size_text(size)}{_left(size - sent, status)}"
    )


def _left(left: float, status: Mapping[str, Value]) -> str:
    speed = _number(status, "speed")
    if not left or not speed:
        return ""
    seconds = left / speed
    return f"   about {duration_text(seconds)} left" if seconds >= 1 else "   under 1 s left"


def _converging(status: Mapping[str, Value]) -> str:
    left = f"pass {_get(status, 'pass')}: {size_text(_number(status, 'bytes_left'))} left"
    if _get(status, "verdict") == _NO_END:
        return f"NOT CONVERGING: clients change as much as is sent   {left}{_downtime(status)}"
    return f"converging   {left}{_downtime(status)}"


def _downtime(status: Mapping[str, Value]) -> str:
    if _get(status, "downtime") is None:
        return ""
    needed, allowed = _number(status, "downtime"), _number(status, "allowed_downtime")
    return (
        f"   parking clients would take {duration_text(needed)}, may take {duration_text(allowed)}"
    )


def _rates(status: Mapping[str, Value]) -> Iterator[str]:
    limit = _number(status, "speed_limit")
    limited = f" (limit {rate_text(limit)})" if limit else ""
    yield f"sent {size_text(_number(status, 'bytes_sent'))}"
    yield f"sending {rate_text(_number(status, 'speed'))}{limited}"
    if _get(status, "dirty_rate") is not None:
        yield f"clients change {rate_text(_number(status, 'dirty_rate'))}"
    if _get(status, "write_limit") is not None:
        yield f"clients are slowed to {rate_text(_number(status, 'write_limit'))}"


def summary_line(summary: Mapping[str, Value]) -> str:
    """Return the result of a migration, in one line.

    :param summary: the fields of a `flexmigrate.telemetry.history.Summary`.
    """

    def number(name: str) -> float:
        value = summary.get(name)
        return value if isinstance(value, (int, float)) else 0

    return (
        f"{summary.get('verdict')}: {size_text(number('bytes_sent'))} in "
        f"{count_text(int(number('passes')), 'pass', 'passes')}, "
        f"{duration_text(number('duration'))}, {rate_text(number('speed'))}; "
        f"clients were parked for {duration_text(number('parked'))}; "
        f"{count_text(int(number('attempts')), 'attempt')}"
    )

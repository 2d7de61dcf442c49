"""The status of a server in a few lines: its owner, its clients, and its activity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from flexmigrate.telemetry.fields import Value
from flexmigrate.telemetry.terminal.progress import migration_lines, summary_line
from flexmigrate.telemetry.units import count_text, duration_text, size_text

_PREFIX = "last_migration_"


def server_lines(status: Mapping[str, Value]) -> list[str]:
    """Return *status* as text for people."""
    return [_who(status), *_doing(status)]


def _who(status: Mapping[str, Value]) -> str:
    name = f"export {status['export']!r}, " if "export" in status else ""
    clients = count_text(_number(status, "num_clients"), "client")
    owner = "owns the image" if status.get("has_control") is True else "does not own the image"
    size = size_text(_number(status, "size"))
    return f"server {status.get('pid')}: {name}{size}, {clients}; {owner}"


def _doing(status: Mapping[str, Value]) -> Iterator[str]:
    if status.get("is_mirroring") is True:
        yield f"migration to {status.get('migration_address')}"
        yield from migration_lines(status)
        return
    phase = status.get("listening_phase")
    if phase == "waiting":
        yield "waiting for a source"
    elif phase == "receiving":
        covered, size = _number(status, "covered_bytes"), _number(status, "size")
        yield f"receiving: {size_text(covered)} of {size_text(size)} in this attempt"
    elif phase == "rebinding":
        waited = duration_text(_number(status, "rebind_seconds"))
        yield f"can't open the serving address for {waited} now: {status.get('rebind_error')}"
    elif phase is not None:
        yield str(status.get("listening_state", phase))
    yield from _before(status)


def _before(status: Mapping[str, Value]) -> Iterator[str]:
    if _PREFIX + "verdict" in status:
        fields = {
            name.removeprefix(_PREFIX): value
            for name, value in status.items()
            if name.startswith(_PREFIX)
        }
        yield f"last migration {summary_line(fields)}"
        if "reason" in fields:
            yield f"    because: {fields['reason']}"


def _number(status: Mapping[str, Value], name: str) -> int:
    value = status.get(name)
    return int(value) if isinstance(value, (int, float)) else 0

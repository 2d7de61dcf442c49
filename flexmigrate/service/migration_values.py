"""Samples and the summary of a migration, read from its state machine."""

from __future__ import annotations

from flexmigrate.migration.source.machine import Core
from flexmigrate.server.export import Export
from flexmigrate.telemetry.history import SUCCESSES, Sample, Summary, Verdict, shortened
from flexmigrate.telemetry.states import SourceState


def sample(core: Core, now: float) -> Sample:
    """Return a sample of a migration."""
    return Sample(
        seconds=now - core.began,
        phase=core.phase,
        attempt=core.attempts,
        pass_number=pass_number(core),
        bytes_sent=core.progress.sent,
        bytes_left=core.dirty.bytes if core.dirty is not None else None,
        bytes_dirtied=core.attempt.passes.dirtied if core.attempt is not None else None,
        write_limit=write_limit(core),
        speed_limit=core.limit.bytes_per_second or None,
        error=shortened(core.last_error) if core.state is SourceState.WAITING else None,
        state=core.state.label,
    )


def summary(
    core: Core, address: str, verdict: Verdict, reason: str | None, parked: float, now: float
) -> Summary:
    """Return the summary of a migration that has just ended.

    :param parked: the time for which clients were parked, in seconds.
    """
    duration = now - core.began
    # Comparisons of a migration that failed prove nothing.
    attempt = core.attempt if verdict in SUCCESSES else None
    return Summary(
        verdict=verdict,
        reason=shortened(reason),
        address=address,
        duration=duration,
        bytes_sent=core.progress.sent,
        speed=int(core.progress.sent / duration) if duration else 0,
        passes=pass_number(core),
        attempts=core.attempts,
        parked=parked,
        verified=attempt.passes.verification if attempt is not None else None,
        bytes_compared=core.progress.compared or None,
        digest=attempt.passes.digest if attempt is not None else None,
        flush_failed=flush_failure(core.export),
    )


def flush_failure(export: Export) -> str | None:
    """Return when a flush of *export*'s image failed, and why; None where none has."""
    failure = export.storage.flush_failure
    return None if failure is None else failure.text


def pass_number(core: Core) -> int:
    """Return which pass is sent, from 1 in each attempt; 0 before the first."""
    return core.attempt.passes.number if core.attempt else 0


def write_limit(core: Core) -> int | None:
    """Return what clients may dirty while they are slowed, in bytes a second; None: they aren't."""
    limit = core.convergence.write_limit
    return None if limit is None else int(limit)

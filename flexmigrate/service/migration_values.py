"""Samples and the summary of a migration, read from its state machine."""

from __future__ import annotations

from flexmigrate.migration.source.machine import Core
from flexmigrate.server.export import Export
from flexmigrate.telemetry.history import SUCCESSES, Sample, Summary, Verdict, shortened


def sample(core: Core, now: float) -> Sample:
    """Return a migration as it is now."""
    return Sample(
        seconds=now - core.began,
        phase=core.phase,
        attempt=core.attempts,
        pass_number=_passes(core),
        bytes_sent=core.progress.sent,
        bytes_left=core.dirty.bytes if core.dirty is not None else None,
        bytes_dirtied=core.attempt.dirtied if core.attempt is not None else None,
        write_limit=_write_limit(core),
        speed_limit=core.limit.bytes_per_second or None,
        error=shortened(core.last_error) if core.phase == "waiting" else None,
    )


def summary(
    core: Core, address: str, verdict: Verdict, reason: str | None, parked: float, now: float
) -> Summary:
    """Return what a migration came to that ended now.

    :param parked: for how long clients were, in seconds.
    """
    duration = now - core.began
    # What was compared until it came to nothing proves nothing.
    attempt = core.attempt if verdict in SUCCESSES else None
    return Summary(
        verdict=verdict,
        reason=shortened(reason),
        address=address,
        duration=duration,
        bytes_sent=core.progress.sent,
        speed=int(core.progress.sent / duration) if duration else 0,
        passes=_passes(core),
        attempts=core.attempts,
        parked=parked,
        verified=attempt.verification if attempt is not None else None,
        bytes_compared=core.progress.compared or None,
        digest=attempt.digest if attempt is not None else None,
        flush_failed=_flush_failed(core.export),
    )


def _flush_failed(export: Export) -> str | None:
    failure = export.image.flush_failure
    return None if failure is None else failure.text


def _passes(core: Core) -> int:
    return core.attempt.passes if core.attempt else 0


def _write_limit(core: Core) -> int | None:
    limit = core.convergence.write_limit
    return None if limit is None else int(limit)

"""The status of a server: the one definition of its fields, their units and their meaning.

The control socket, the log and the documentation all use the frozen `Status`. It is a value: who
fills it in, and when, is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from flexmigrate.telemetry.fields import about, format_fields, parse_fields, part
from flexmigrate.telemetry.history import Summary

ListeningPhase = Literal["waiting", "receiving", "complete", "rebinding", "serving", "failed"]


@dataclass(frozen=True)
class Status:
    """A server at one moment. A field that is ``None`` does not apply now, and is not told.

    Each field says what it means, and its unit, to the documentation: see
    `flexmigrate.telemetry.fields`.
    """

    pid: int = field(metadata=about("process id of the server"))
    size: int = field(metadata=about("size of the image as it is served", "bytes"))
    has_control: bool = field(
        metadata=about(
            "whether this server owns the image: false while it waits for or receives a migration"
        )
    )
    clients_allowed: bool = field(metadata=about("whether new clients are let in"))
    num_clients: int = field(metadata=about("clients that are connected", "connections"))
    is_mirroring: bool = field(metadata=about("whether a migration away from here is running"))

    size_changed: str | None = field(
        default=None,
        metadata=about("that somebody else has changed the size of the image, and to what"),
    )
    flush_failed: str | None = field(
        default=None,
        metadata=about(
            "when a flush of the image failed, and why: every flush fails since then, and what was "
            "written before may not be on the disk"
        ),
    )

    export: str | None = field(
        default=None, metadata=about("name of the export that this is about, if it has one")
    )
    num_exports: int | None = field(
        default=None, metadata=about("exports of this server", "exports")
    )
    filesystem: str | None = field(
        default=None, metadata=about("name of the filesystem that the image is on, if it is a file")
    )
    holes: Literal["trusted", "unknown"] | None = field(
        default=None,
        metadata=about(
            "trusted: the filesystem is believed where it tells of holes; unknown: it isn't, and "
            "all of the image counts as data"
        ),
    )

    poll_hits: int | None = field(
        default=None,
        metadata=about("times that a request came while it was looked for, without a sleep"),
    )
    poll_misses: int | None = field(
        default=None, metadata=about("times that none came, and the server went to sleep after all")
    )

    migration_duration: int | None = field(
        default=None, metadata=about("time since the migration was asked for", "seconds")
    )
    migration_speed: int | None = field(
        default=None, metadata=about("what is being sent", "bytes/second")
    )
    migration_speed_limit: int | None = field(
        default=None, metadata=about("the limit, if there is one", "bytes/second")
    )
    migration_seconds_left: int | None = field(
        default=None,
        metadata=about("estimated time to the end; left out where none is in sight", "seconds"),
    )
    migration_bytes_left: int | None = field(
        default=None, metadata=about("what is known to be still unsent", "bytes")
    )
    migration_phase: str | None = field(default=None, metadata=about("name of the source's state"))
    migration_pass: int | None = field(
        default=None, metadata=about("walk over what has to be sent, from 1 in each attempt")
    )
    migration_attempt: int | None = field(
        default=None, metadata=about("connection to the destination, from 1")
    )
    migration_error: str | None = field(
        default=None, metadata=about("why the attempt before this one failed")
    )
    migration_bytes_sent: int | None = field(
        default=None, metadata=about("what all attempts have sent so far", "bytes")
    )
    migration_bytes_compared: int | None = field(
        default=None,
        metadata=about("what was compared with the destination's and equal so far", "bytes"),
    )
    migration_address: str | None = field(default=None, metadata=about("where the image goes"))
    migration_handover: str | None = field(
        default=None, metadata=about("session, or plain; left out before that is known")
    )
    migration_warning: str | None = field(
        default=None,
        metadata=about("that it is a plain handover, or overwrites what may be no destination"),
    )
    migration_pass_size: int | None = field(
        default=None,
        metadata=about("what this pass had to send when it began", "bytes"),
    )
    migration_pass_sent: int | None = field(
        default=None, metadata=about("what this pass has sent so far", "bytes")
    )
    migration_verdict: str | None = field(
        default=None,
        metadata=about("unknown, converging, throttling, or not converging"),
    )
    migration_obstacle: str | None = field(
        default=None,
        metadata=about("what keeps clients from being parked, or made that in vain, if anything"),
    )
    migration_fitting: int | None = field(
        default=None,
        metadata=about("what may be left for clients to be parked, at the present speed", "bytes"),
    )
    migration_downtime: float | None = field(
        default=None,
        metadata=about("for how long parking now would take, estimated", "seconds"),
    )
    migration_allowed_downtime: float | None = field(
        default=None,
        metadata=about("for how long clients may be parked, as things stand", "seconds"),
    )
    migration_send_rate: int | None = field(
        default=None,
        metadata=about("how fast what is dirty can be expected to be sent", "bytes/second"),
    )
    migration_dirty_rate: int | None = field(
        default=None, metadata=about("how fast clients change what was sent", "bytes/second")
    )
    migration_write_limit: int | None = field(
        default=None, metadata=about("what clients may dirty while they are slowed", "bytes/second")
    )
    migration_parked: float | None = field(
        default=None, metadata=about("how long clients were parked so far, in all", "seconds")
    )
    last_migration: str | None = field(
        default=None, metadata=about("how the migration before ended")
    )
    summary: Summary | None = field(default=None, metadata=part("last_migration_"))

    listening_phase: ListeningPhase | None = field(
        default=None, metadata=about("name of the destination's state")
    )
    sender: str | None = field(
        default=None, metadata=about("where the one who sends is, while somebody does")
    )
    covered_bytes: int | None = field(
        default=None,
        metadata=about("what the sender has written, zeroed or trimmed in this attempt", "bytes"),
    )
    compared_bytes: int | None = field(
        default=None,
        metadata=about("what was compared with the sender's and equal in this attempt", "bytes"),
    )
    digest: str | None = field(
        default=None,
        metadata=about("the image's digest, once all of it was compared: see Verification"),
    )
    rebind_attempts: int | None = field(
        default=None, metadata=about("how often the serving address could not be opened")
    )
    rebind_error: str | None = field(
        default=None, metadata=about("why it could not be opened last")
    )
    rebind_seconds: int | None = field(
        default=None, metadata=about("time since it was first tried", "seconds")
    )


def format_status(status: Status) -> str:
    """Return *status* as ``key=value`` pairs in one line: see `flexmigrate.telemetry.fields`."""
    return format_fields(status)


def parse_status(text: str) -> dict[str, str]:
    """Return the pairs of a line that `format_status`, or flexnbd, has made; values are decoded.

    :raises ValueError: naming what is not a pair.
    """
    return parse_fields(text)

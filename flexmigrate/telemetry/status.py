"""The status of a server: the one definition of its fields, their units and their meaning.

The operator's socket, the log and the documentation all use the frozen `Status`. It is a value:
``service.status_values`` fills it in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from flexmigrate.telemetry.fields import about, format_fields, parse_fields, part
from flexmigrate.telemetry.history import Summary


@dataclass(frozen=True)
class Status:
    """A server at one moment. A field that is ``None`` does not apply now, and is left out.

    Each field has its meaning and its unit for the documentation: see
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

    export: str | None = field(default=None, metadata=about("name of the export, if it has one"))
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
        metadata=about("number of polls that found a request, without a sleep"),
    )
    poll_misses: int | None = field(
        default=None,
        metadata=about("number of polls without a request, after which the server went to sleep"),
    )

    migration_duration: int | None = field(
        default=None, metadata=about("time since the migration was asked for", "seconds")
    )
    migration_speed: int | None = field(
        default=None, metadata=about("transfer rate", "bytes/second")
    )
    migration_speed_limit: int | None = field(
        default=None, metadata=about("the limit, if there is one", "bytes/second")
    )
    migration_seconds_left: int | None = field(
        default=None,
        metadata=about("estimated time to the end; left out if it can't be estimated", "seconds"),
    )
    migration_bytes_left: int | None = field(
        default=None, metadata=about("data that is known to be still unsent", "bytes")
    )
    migration_phase: str | None = field(
        default=None, metadata=about("name of the source's phase: see States")
    )
    migration_state: str | None = field(
        default=None, metadata=about("name of the source's state, finer than its phase: see States")
    )
    migration_pass: int | None = field(
        default=None, metadata=about("pass over the data to send, from 1 in each attempt")
    )
    migration_attempt: int | None = field(
        default=None, metadata=about("connection to the destination, from 1")
    )
    migration_error: str | None = field(
        default=None, metadata=about("reason why the previous attempt failed")
    )
    migration_bytes_sent: int | None = field(
        default=None, metadata=about("data that all attempts have sent so far", "bytes")
    )
    migration_bytes_compared: int | None = field(
        default=None,
        metadata=about(
            "data that was compared with the destination's and is equal so far", "bytes"
        ),
    )
    migration_address: str | None = field(
        default=None, metadata=about("address of the destination")
    )
    migration_handover: str | None = field(
        default=None,
        metadata=about("kind of handover, session or plain; left out before it is known"),
    )
    migration_warning: str | None = field(
        default=None,
        metadata=about("that it is a plain handover, or overwrites what may be no destination"),
    )
    migration_pass_size: int | None = field(
        default=None,
        metadata=about("data that this pass had to send when it began", "bytes"),
    )
    migration_pass_sent: int | None = field(
        default=None, metadata=about("data that this pass has sent so far", "bytes")
    )
    migration_verdict: str | None = field(
        default=None,
        metadata=about("unknown, converging, throttling, or not converging"),
    )
    migration_obstacle: str | None = field(
        default=None,
        metadata=about("reason why clients aren't parked, or were parked in vain, if there is one"),
    )
    migration_fitting: int | None = field(
        default=None,
        metadata=about(
            "data that may remain for the switchover to fit the allowed downtime", "bytes"
        ),
    )
    migration_downtime: float | None = field(
        default=None,
        metadata=about("expected downtime if clients were parked now", "seconds"),
    )
    migration_allowed_downtime: float | None = field(
        default=None,
        metadata=about("allowed downtime at present", "seconds"),
    )
    migration_send_rate: int | None = field(
        default=None,
        metadata=about("expected transfer rate of dirty data", "bytes/second"),
    )
    migration_dirty_rate: int | None = field(
        default=None,
        metadata=about("dirty rate: how fast clients change data that was sent", "bytes/second"),
    )
    migration_write_limit: int | None = field(
        default=None,
        metadata=about(
            "rate at which clients may dirty data while they are throttled", "bytes/second"
        ),
    )
    migration_parked: float | None = field(
        default=None, metadata=about("time for which clients were parked so far, in all", "seconds")
    )
    last_migration: str | None = field(
        default=None, metadata=about("result of the previous migration")
    )
    summary: Summary | None = field(default=None, metadata=part("last_migration_"))

    listening_phase: str | None = field(
        default=None, metadata=about("name of the destination's phase: see States")
    )
    listening_state: str | None = field(
        default=None,
        metadata=about("name of the destination's state, finer than its phase: see States"),
    )
    sender: str | None = field(
        default=None, metadata=about("address of the sender, while there is one")
    )
    covered_bytes: int | None = field(
        default=None,
        metadata=about(
            "data that the sender has written, zeroed or trimmed in this attempt", "bytes"
        ),
    )
    compared_bytes: int | None = field(
        default=None,
        metadata=about(
            "data that was compared with the sender's and is equal in this attempt", "bytes"
        ),
    )
    digest: str | None = field(
        default=None,
        metadata=about("the image's digest, once all of it was compared: see Verification"),
    )
    rebind_attempts: int | None = field(
        default=None, metadata=about("how often the serving address could not be opened")
    )
    rebind_error: str | None = field(
        default=None, metadata=about("reason of the last failure to open it")
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

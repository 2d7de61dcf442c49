"""The states of the two ends of a migration, as the status, the metrics, the log, the page and
reports tell them.

The machines are in ``migration``; each enters its state by a member of these enums. Every list of
states elsewhere is made from them. A *phase* is coarser than a state: the name under which several
states are told in fields that are older than the states' own names.
"""

from __future__ import annotations

from enum import Enum


class Stage(Enum):
    """Kinds of states, each of which is drawn in one colour."""

    CONNECTING = "connecting"
    COPYING = "copying"
    CONVERGING = "converging"
    PARKED = "parked"
    WAITING = "waiting"


class SourceState(Enum):
    """A state of the source: see ``migration.source.machine``.

    :ivar label: its name, as it is told.
    :ivar stage: as what it is drawn; None where the migration is over.
    :ivar meaning: for the documentation.
    :ivar phase: the name of its phase.
    """

    NEW = ("new", Stage.CONNECTING, "The migration was asked for.")
    DIALLING = ("dialling", Stage.CONNECTING, "Connects to the destination, and negotiates.")
    COPYING = ("copying", Stage.COPYING, "Sends everything once: the first pass.")
    CONVERGING = (
        "converging",
        Stage.CONVERGING,
        "Sends what clients have changed meanwhile, in further passes.",
    )
    PARKED = ("parked", Stage.PARKED, "Clients wait, while the rest is sent and flushed.")
    SETTLING = (
        "settling",
        Stage.PARKED,
        "Clients wait, while the address is freed and the destination prepares.",
    )
    COMMITTING = (
        "committing",
        Stage.PARKED,
        "Takes the step that can't be taken back; from here on the image may be the destination's.",
    )
    CONFIRMING = (
        "confirming",
        Stage.PARKED,
        "The image is committed; asks the destination to say that it knows.",
        "committing",
    )
    UNANSWERED = (
        "unanswered",
        Stage.PARKED,
        "The image is committed, and not confirmed; asks again soon. Clients were let go.",
        "committing",
    )
    FINISHING = (
        "finishing",
        Stage.PARKED,
        "The image is the destination's; clients are let go, and the journal is completed.",
        "given",
    )
    WAITING = ("waiting", Stage.WAITING, "An attempt has failed; another follows. Clients go on.")
    REDIALLING = (
        "redialling",
        Stage.CONNECTING,
        "Connects to the destination again, in another attempt.",
        "dialling",
    )
    GIVEN = ("given", None, "Over: the image is the destination's, or may be.")
    ENDED = ("ended", None, "Over: the image has stayed here.")

    def __init__(self, label: str, stage: Stage | None, meaning: str, phase: str = "") -> None:
        self.label = label
        self.stage = stage
        self.meaning = meaning
        self.phase = phase or label

    @property
    def is_over(self) -> bool:
        """Whether the migration has ended."""
        return self in (SourceState.GIVEN, SourceState.ENDED)

    @property
    def sends_passes(self) -> bool:
        """Whether passes are sent, while clients go on."""
        return self in (SourceState.COPYING, SourceState.CONVERGING)

    @property
    def keeps_clients_waiting(self) -> bool:
        """Whether clients that are parked stay so: in all others they go on, or have to go."""
        return self in (
            SourceState.PARKED,
            SourceState.SETTLING,
            SourceState.COMMITTING,
            SourceState.CONFIRMING,
        )

    @property
    def may_be_given(self) -> bool:
        """Whether the image may be the destination's."""
        return self in (
            SourceState.COMMITTING,
            SourceState.CONFIRMING,
            SourceState.UNANSWERED,
            SourceState.FINISHING,
            SourceState.GIVEN,
        )

    @classmethod
    def named(cls, label: object) -> SourceState | None:
        """Return the state with that name; None for one of another version."""
        return next((each for each in cls if each.label == label), None)


class DestinationState(Enum):
    """A state of the destination: see ``migration.destination.machine``; the last three are those
    of the server that it becomes.

    :ivar label: its name, as it is told.
    :ivar meaning: for the documentation.
    :ivar phase: the name of its phase.
    """

    WAITING = ("waiting", "No source sends.")
    RECEIVING = ("receiving", "A source sends.")
    DRAINING = (
        "draining",
        "The source is gone, and its last requests are being finished.",
        "receiving",
    )
    SETTLING = (
        "settling",
        "A source without a session has sent all; it is decided who owns the image.",
        "receiving",
    )
    PREPARING = (
        "preparing",
        "The source has said PREPARE: all is there, and is made durable.",
        "receiving",
    )
    SEALED = ("sealed", "PREPARE is answered; COMMIT is awaited.", "receiving")
    OWNING = ("owning", "COMMIT has come; the journal is written.", "receiving")
    CANCELLED = ("cancelled", "The server ends without the image.", "receiving")
    COMPLETE = ("complete", "The image is owned here.")
    REBINDING = ("rebinding", "The image is owned here; the serving address can't be opened yet.")
    SERVING = ("serving", "The image is owned and served here.")
    FAILED = ("failed", "The image is owned here; the serving address can't ever be opened.")

    def __init__(self, label: str, meaning: str, phase: str = "") -> None:
        self.label = label
        self.meaning = meaning
        self.phase = phase or label


SOURCE_STATES = tuple(each.label for each in SourceState)
"""Their names, in the order of a migration."""

DESTINATION_STATES = tuple(each.label for each in DestinationState)
"""Their names, in the order of a migration."""

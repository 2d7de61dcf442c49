"""Why a connection takes no further request for now; its client sees nothing but a pause."""

from __future__ import annotations

from typing import Protocol


class Holds:
    """Reasons, as bits: a connection goes on when none is left."""

    OUTPUT = 1  # the client doesn't read its replies
    PARKED = 2  # the export is parked
    UNDER_WAY = 4  # enough of its requests are with the thread pool
    THROTTLED = 8  # a migration slows writers down
    PIECE = 16  # a piece of a long write is with the thread pool
    ENDING = 32  # the client said DISC, or broke the protocol
    MEMORY = 256  # what it reads is held in memory, and that is enough
    SESSION = 128  # what it agreed on is being recorded
    AHEAD = 512  # it is only looked whether its client is still there
    TURN = 1024  # others are to have their turn
    ORPHANS = 64  # changes that a lost connection asked for are still under way


class Holdable(Protocol):
    """A connection that waits while there is a reason for it."""

    def hold(self, reason: int) -> None:
        """Take no further request for *reason*, one of `Holds`."""

    def release(self, reason: int) -> None:
        """End *reason*; where it was the last, requests are taken again, perhaps at once."""

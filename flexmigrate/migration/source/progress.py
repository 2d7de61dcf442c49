"""Progress of a migration, in bytes, over all of its attempts."""

from __future__ import annotations

from collections.abc import Callable

from flexmigrate.migration.source.rate import Rate


class Progress:
    """The amount of data sent so far, over all attempts of a migration.

    :ivar sent: bytes of data whose writing was answered.
    :ivar zeroed: bytes of holes whose zeroing was answered.
    :ivar compared: bytes that were compared with the destination's, and equal.
    :ivar pass_size: bytes that the pass under way had to send when it began; what clients change
        meanwhile is the next one's.
    :ivar changed: called at each new phase and each new pass, some of which are over sooner than
        anybody could look by a timer.
    """

    def __init__(self, now: float) -> None:
        self.sent = 0
        self.zeroed = 0
        self.compared = 0
        self.rate = Rate(now)
        self.pass_size = 0
        self.changed: Callable[[], object] = _nobody_looks
        self._sent_before_pass = 0

    def restart(self, now: float) -> None:
        """An attempt is over, or begins: how fast it went on another connection says nothing."""
        self.rate = Rate(now)

    @property
    def pass_sent(self) -> int:
        """Bytes that the pass under way has sent."""
        return self.sent - self._sent_before_pass

    def begin_pass(self, size: int) -> None:
        """A pass begins that has *size* bytes to send."""
        self.pass_size = size
        self._sent_before_pass = self.sent
        self.changed()


def _nobody_looks() -> None:
    """Do nothing, at a change that nobody wants to know of."""

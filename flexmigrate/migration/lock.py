"""The migration lock: the start and the end of a migration, and SIGTERM, exclude one another.

A lock knows its owner. To release a lock without holding it is a bug, and raises: an
error path can only ever free what its own task took.
"""

from __future__ import annotations

from collections import deque

from twisted.internet.defer import Deferred, succeed


class NotTheOwner(RuntimeError):
    """A lock was released by a task that doesn't hold it."""


class OwnedLock:
    """A lock for one owner at a time; others get it in the order of their requests.

    :ivar owner: the object that holds it, or None.
    """

    def __init__(self) -> None:
        self.owner: object | None = None
        self._waiting: deque[tuple[object, Deferred[None]]] = deque()

    def acquire(self, owner: object) -> Deferred[None]:
        """Fire once *owner* holds the lock. Cancelling gives up the place in the queue.

        :raises NotTheOwner: where *owner* holds it already: it would wait for itself.
        """
        if self.owner is owner:
            raise NotTheOwner(f"{owner!r} holds the lock already")
        if self.owner is None:
            self.owner = owner
            return succeed(None)
        turn: Deferred[None] = Deferred(self._leave)
        self._waiting.append((owner, turn))
        return turn

    def release(self, owner: object) -> None:
        """Give the lock to the next in the queue.

        :raises NotTheOwner: where somebody else holds it, or nobody.
        """
        if self.owner is not owner:
            raise NotTheOwner(f"{owner!r} releases a lock that {self.owner!r} holds")
        self.owner = None
        if self._waiting:
            self.owner, turn = self._waiting.popleft()
            turn.callback(None)

    def _leave(self, turn: Deferred[None]) -> None:
        self._waiting = deque(each for each in self._waiting if each[1] is not turn)

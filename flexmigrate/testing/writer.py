"""A client that writes all the while, goes where the image goes, and knows what it was promised."""

from __future__ import annotations

import random
from collections.abc import Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from flexmigrate.client import NBDClientProtocol
from flexmigrate.errors import FlexmigrateError
from flexmigrate.net.address import Address
from flexmigrate.testing.machine import Machine
from flexmigrate.testing.servers import connect_to

log = Logger()

SECTOR = 512
"""What is written at a time, in bytes: the largest that a disk writes wholly or not at all."""

RECONNECT_SECONDS = 0.1


class Writer:
    """Writes random sectors of an image, each one again only when the last write to it is over: one
    each *beat* of the world's time, and one whenever ``write`` is called.

    :param addresses: where the image may be served; tried in turn.
    :param image: what it holds at first.
    :param beat: seconds between two writes, if nobody asks for more.
    :ivar acknowledged: writes that were answered.
    :ivar is_connected: whether there is a server to write to.
    """

    def __init__(
        self,
        machine: Machine,
        addresses: Sequence[Address],
        image: bytes,
        *,
        seed: int = 1,
        beat: float = 0.1,
    ) -> None:
        self._beat_seconds = beat
        self._machine = machine
        self._addresses = list(addresses)
        self._random = random.Random(seed)
        self._client: NBDClientProtocol | None = None
        self._stopped = False
        self._beat: IDelayedCall | None = None
        # Of each sector: what it holds, and what it may hold instead.
        self._known = [image[at : at + SECTOR] for at in range(0, len(image), SECTOR)]
        self._possible: list[list[bytes]] = [[] for _ in self._known]
        self._busy: set[int] = set()
        self.acknowledged = 0

    @property
    def is_connected(self) -> bool:
        """Whether there is a server to write to."""
        return self._client is not None

    def start(self) -> None:
        """Begin."""
        self._connect()
        self._next_beat()

    def _next_beat(self) -> None:
        self.write()
        self._beat = self._machine.callLater(self._beat_seconds, self._next_beat)

    def _connect(self) -> None:
        if self._stopped:
            return
        address = self._addresses[0]
        self._addresses.append(self._addresses.pop(0))
        connect_to(self._machine, address).addCallbacks(self._connected, self._lost).addErrback(
            lambda failure: log.failure("a bug of the writer", failure)
        )

    def stop(self) -> None:
        """Disconnect, and stay away."""
        self._stopped = True
        if self._beat is not None:
            self._beat.cancel()
            self._beat = None
        client, self._client = self._client, None
        if client is not None:
            client.abort(FlexmigrateError("the writer has stopped"))

    def _connected(self, client: NBDClientProtocol) -> None:
        self._client = client
        client.when_closed().addCallback(lambda _: self._lost(None))

    def _lost(self, failure: Failure | None) -> None:
        self._client = None
        if failure is not None:
            failure.trap(FlexmigrateError)
        if not self._stopped:
            self._machine.callLater(RECONNECT_SECONDS, self._connect)

    def write(self) -> None:
        """Write one sector, if there is a server and a sector that isn't being written."""
        client = self._client
        free = [sector for sector in range(len(self._known)) if sector not in self._busy]
        if client is None or not free:
            return
        sector = self._random.choice(free)
        data = self._random.randbytes(SECTOR)
        if self._random.randrange(4) == 0:
            data = bytes(SECTOR)
        self._busy.add(sector)
        self._possible[sector].append(data)
        if not any(data):
            writing: Deferred[None] = client.zero(sector * SECTOR, SECTOR)
        else:
            writing = client.write(sector * SECTOR, data)
        writing.addCallbacks(lambda _: self._done(sector, data), self._unanswered)
        writing.addBoth(lambda _: self._busy.discard(sector))

    def _done(self, sector: int, data: bytes) -> None:
        self.acknowledged += 1
        self._known[sector] = data
        self._possible[sector] = []

    def _unanswered(self, failure: Failure) -> None:
        """What the sector holds now isn't known until another write to it is answered."""
        failure.trap(FlexmigrateError)

    def faults(self, image: bytes) -> list[str]:
        """Return what *image* doesn't hold of what was acknowledged, sector by sector."""
        found = [image[at : at + SECTOR] for at in range(0, len(image), SECTOR)]
        return [
            f"sector {sector} has neither its last acknowledged write nor a later one"
            for sector, data in enumerate(found)
            if data != self._known[sector] and data not in self._possible[sector]
        ]

"""A client that writes all the while, goes where the image goes, and knows what it was promised."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
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

_ZEROES = bytes(SECTOR)


@dataclass
class Promises:
    """The promises that a client was given.

    :ivar history: of each sector all that it was ever to hold.
    :ivar known: which of these was the last to be acknowledged, of each sector.
    :ivar durable: which was the last to be flushed.
    :ivar known_at: the same as *known*, on a machine that has failed while another had the image.
    """

    history: list[list[bytes]]
    known: list[int]
    durable: list[int]
    known_at: dict[str, list[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, image: bytes) -> Promises:
        """Return those of a client that has found *image*, and it was durable."""
        history = [[image[at : at + SECTOR]] for at in range(0, len(image), SECTOR)]
        return cls(history, [0] * len(history), [0] * len(history))

    def copy(self) -> Promises:
        """Return others that are the same now."""
        known_at = {name: list(known) for name, known in self.known_at.items()}
        history = [list(each) for each in self.history]
        return Promises(history, list(self.known), list(self.durable), known_at)

    def lose_unflushed(self, name: str, *, had_image: bool) -> None:
        """The machine *name* has failed: only what was flushed is sure to be there; if it *had
        image*, or anywhere.
        """
        if had_image:
            self.known = list(self.durable)
            self.known_at = {}
        else:
            self.known_at[name] = list(self.durable)


class Writer:
    """Writes random sectors of an image, each one again only when the last write to it is over: one
    each *beat* of the world's time, and one whenever ``write`` is called.

    :param addresses: where the image may be served; tried in turn.
    :param image: what it holds at first.
    :param beat: seconds between two writes, if nobody asks for more.
    :param reconnect: seconds until it tries the next address, where the last one failed.
    :param flushes: whether some writes are to be durable once they are answered (FUA), and some
        flushes are between them.
    :param promised: what an earlier client was promised, who is gone; else nothing was.
    :param told: called with the name of the machine that acknowledged a write, each time.
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
        reconnect: float = RECONNECT_SECONDS,
        flushes: bool = False,
        told: Callable[[str], object] = lambda name: None,
        promised: Promises | None = None,
    ) -> None:
        self._beat_seconds = beat
        self._machine = machine
        self._addresses = list(addresses)
        self._random = random.Random(seed)
        self._client: NBDClientProtocol | None = None
        self._stopped = False
        self._beat: IDelayedCall | None = None
        self._reconnect_seconds = reconnect
        self._flushes = flushes
        self._told = told
        self._is_flushing = False
        self._failed: NBDClientProtocol | None = None
        self._again: list[int] = []  # sectors to be written as soon as there is a server
        self._promises = promised.copy() if promised else Promises.of(image)
        self._busy: set[int] = set()
        self.acknowledged = 0

    @property
    def is_connected(self) -> bool:
        """Whether there is a server to write to."""
        return self._client is not None

    @property
    def promised(self) -> Promises:
        """Return what it was promised so far."""
        return self._promises.copy()

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
            lambda failure: log.failure("the writer failed with an unexpected error", failure)
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
        for _ in range(len(self._again)):
            self.write()

    def leave_and_return(self, writes: int) -> None:
        """Ask for some more writes, close the connection behind them without waiting for answers,
        connect to the same server at once, and write the same sectors again.
        """
        client = self._client
        if client is None:
            return
        before = set(self._busy)
        for _ in range(writes):
            self.write()
        asked = sorted(self._busy - before)
        transport: Any = client.transport
        self._addresses.insert(0, self._addresses.pop())
        reconnect, self._reconnect_seconds = self._reconnect_seconds, 0.0
        # As the kernel does when a process closes a socket: what was written arrives all the same.
        transport.die(silently=False)
        client.connectionLost(Failure(ConnectionDone()))
        self._reconnect_seconds = reconnect
        self._again = asked

    def _lost(self, failure: Failure | None) -> None:
        self._client = None
        if failure is not None:
            failure.trap(FlexmigrateError)
        if not self._stopped:
            self._machine.callLater(self._reconnect_seconds, self._connect)

    def write(self) -> None:
        """Write one sector, if there is a server and a sector that isn't being written."""
        client = self._client
        free = [sector for sector in range(len(self._promises.known)) if sector not in self._busy]
        if client is None or not free:
            return
        if self._flushes and not self._is_flushing and self._random.randrange(6) == 0:
            self._flush(client)
        again = [sector for sector in self._again if sector in free]
        sector = again[0] if again else self._random.choice(free)
        if again:
            self._again.remove(sector)
        data = self._random.randbytes(SECTOR)
        if self._random.randrange(4) == 0:
            data = bytes(SECTOR)
        self._busy.add(sector)
        history = self._promises.history[sector]
        number = len(history)
        history.append(data)
        fua = self._flushes and self._random.randrange(6) == 0
        if data == _ZEROES:
            writing: Deferred[None] = client.zero(sector * SECTOR, SECTOR, fua=fua)
        else:
            writing = client.write(data, sector * SECTOR, fua=fua)
        writing.addCallbacks(lambda _: self._done(client, sector, number, fua), self._unanswered)
        writing.addBoth(lambda _: self._busy.discard(sector))

    def _done(self, client: NBDClientProtocol, sector: int, number: int, fua: bool) -> None:
        self.acknowledged += 1
        transport: Any = client.transport
        self._told(transport.peer.machine.name)
        promises = self._promises
        if fua:
            promises.durable[sector] = number
        elif client is not self._failed:
            for known in (promises.known, *promises.known_at.values()):
                known[sector] = number

    def _flush(self, client: NBDClientProtocol) -> None:
        promises = self._promises
        covered = list(map(max, promises.known, promises.durable))

        def done(_: object) -> None:
            promises.durable = list(map(max, promises.durable, covered))

        def over(_: object) -> None:
            self._is_flushing = False

        self._is_flushing = True
        client.flush().addCallbacks(done, self._unanswered).addBoth(over)

    def lose_unflushed(self, name: str, *, had_image: bool) -> None:
        """The machine *name* has failed; see :meth:`Promises.lose_unflushed`."""
        self._promises.lose_unflushed(name, had_image=had_image)
        # What it still had to say may be under way.
        self._failed = self._client

    def _unanswered(self, failure: Failure) -> None:
        """Note that the sector's content is unknown until another write to it is answered."""
        failure.trap(FlexmigrateError)

    def faults(self, image: bytes, *, flushed: bool = False, at: str = "") -> list[str]:
        """Return what *image*, on the machine *at*, doesn't hold of what was acknowledged, or, if
        *flushed*, of what was flushed; sector by sector.
        """
        found = [image[at : at + SECTOR] for at in range(0, len(image), SECTOR)]
        promises = self._promises
        since = promises.durable
        if not flushed:
            since = list(map(max, promises.known_at.get(at, promises.known), since))
        what = "flushed" if flushed else "acknowledged"
        return [
            f"sector {sector} has neither its last {what} write nor a later one"
            for sector, data in enumerate(found)
            if data not in promises.history[sector][since[sector] :]
        ]

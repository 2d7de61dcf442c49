"""What connections mean to a server whose image comes, or came, by a migration: the policies that a
server's factory asks (``server.factory.Session``).

* ``ReceivingSession``, of a destination: one sender at a time. A plain one gives the image by its
  DISC, a session's by COMMIT; and whoever committed before, and was not answered, is let in to ask
  again.
* ``ServingSession``, of a server that has its images: clients come and go. One that is in fact the
  source by whose session an image came here is told so, and anybody may ask what a journal says.
* ``AnsweringSession``, of the same server, where only that source is awaited.

Which answer is right is ``ownership``'s affair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred, DeferredSemaphore, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from flexmigrate.errors import RemoteProtocolError, RequestFailed
from flexmigrate.image.background import Background
from flexmigrate.image.file import Image
from flexmigrate.migration.destination import Destination, DestinationCore
from flexmigrate.migration.lock import OwnedLock
from flexmigrate.migration.openings import Replies, answer, opening_in, opening_of
from flexmigrate.migration.ownership import Ownership
from flexmigrate.migration.taking import acknowledge
from flexmigrate.migration.verifying import fault_in, judge, tell
from flexmigrate.server.connection import NBDServerProtocol
from flexmigrate.server.factory import OpenSession
from flexmigrate.wire.constants import ErrorCode, OptionReply
from flexmigrate.wire.handshake import PrivateOption
from flexmigrate.wire.session import (
    SESSION_OPTION,
    Opening,
    Outcome,
    PrivateCommand,
    Purpose,
    encode_verdicts,
    is_private,
    parse_claims,
    parse_image_digest,
    parse_opening,
)

log = Logger()

LINGER_SECONDS = 10.0
"""How long a destination that owns the image stays for its source to ask again, once the source's
connection has ended without a word that it knows."""


JUDGED_AT_ONCE = 4
"""Requests to compare that are carried out side by side; the others wait."""


class ReceivingSession(OpenSession):
    """See the module.

    :param name: of this side, for people.
    """

    def __init__(
        self,
        reactor: Any,
        destination: Destination,
        core: DestinationCore,
        lock: OwnedLock,
        name: str = "",
    ) -> None:
        self._reactor = reactor
        self._destination = destination
        self._core = core
        self._lock = lock
        self._name = name
        self._settling: set[NBDServerProtocol] = set()
        self._linger: IDelayedCall | None = None
        self._waiter: Deferred[bool] | None = None
        self._is_acknowledged = False
        # What is written meanwhile needs threads, too.
        self._judging = DeferredSemaphore(JUDGED_AT_ONCE)
        self._linger_seconds = LINGER_SECONDS

    # Who gets in

    def admits(self, host: str | None) -> str | None:
        """One sender at a time; while one has brought everything, others may come to settle."""
        return self._core.busy

    def connected(self, connection: NBDServerProtocol) -> None:
        """It is the sender now, if there is none."""
        if self._core.phase == "waiting":
            self._destination.sender_connected(connection)

    def options(self) -> Mapping[int, PrivateOption]:
        """A session can be had."""
        return {SESSION_OPTION: self._answer}

    def _answer(self, data: bytes) -> Replies:
        opening = parse_opening(data)
        return answer(
            opening,
            self._ownership,
            self._core.export.size,
            self._name,
            self._refusal(opening),
            compares=isinstance(self._core.export.image, Image),
        )

    def gate(self, export: str, private: Mapping[int, bytes]) -> str | None:
        """Who may send, and who may settle."""
        opening = opening_in(private)
        if opening is not None and opening.purpose is Purpose.ASK:
            return "what was asked is answered"
        refusal = self._refusal(opening)
        if refusal is not None:
            log.warn("a sender is refused: {refusal}", refusal=refusal)
        return refusal

    def _refusal(self, opening: Opening | None) -> str | None:
        if opening is not None and opening.purpose is Purpose.ASK:
            return None
        refusal = self._ownership.refusal(opening)
        settles = opening is not None and opening.purpose is Purpose.SETTLE
        if refusal is None and not settles and self._core.phase not in ("waiting", "receiving"):
            return "a sender is connected already"
        if refusal is None and not settles:
            return self._core.export.image.size_fault()
        return refusal

    def transmitting(self, connection: NBDServerProtocol) -> Deferred[None] | None:
        """A session's sender is recorded before the first byte comes."""
        opening = opening_of(connection)
        if opening is not None and opening.purpose is Purpose.SETTLE:
            self._settles(connection)
            return None
        if self._core.phase == "waiting":
            self._destination.sender_connected(connection)  # it came while another was settling
        if not self._core.is_from(connection):
            connection.abort("a sender is connected already")
            return None
        if opening is None:
            return None
        peer = connection.transport.getPeer()
        address = f"{peer.host}:{peer.port}" if hasattr(peer, "host") else "a UNIX socket"
        return self._core.handover.receive(opening, address)

    def _settles(self, connection: NBDServerProtocol) -> None:
        """*connection* has come to say COMMIT; it doesn't send, so it need not be the sender."""
        connection.seal()
        self._settling.add(connection)
        self._stop_lingering()
        if self._core.is_from(connection):
            self._destination.sender_settles(connection)

    # What senders say

    def private(
        self,
        connection: NBDServerProtocol,
        command: int,
        offset: int,
        length: int,
        payload: bytes,
    ) -> Deferred[bytes] | None:
        """PREPARE, COMMIT and VERIFY, within a session."""
        opening = opening_of(connection)
        if opening is None or not is_private(command):
            return None
        if command == PrivateCommand.VERIFY:
            return self._verify(connection, payload)
        if offset or length:
            return _refused("neither offset nor length belong there")
        if command == PrivateCommand.COMMIT:
            work = self._commit(connection, opening)
        elif command == PrivateCommand.PREPARE:
            work = self._prepare(connection, None)
        else:
            try:
                work = self._prepare(connection, parse_image_digest(payload))
            except RemoteProtocolError as error:
                return _refused(str(error))
        return Deferred.fromCoroutine(work).addCallback(Outcome.encode)

    def _verify(self, connection: NBDServerProtocol, payload: bytes) -> Deferred[bytes]:
        """Compare ranges with what their source says that they hold; what is equal is covered."""
        core = self._core
        if not core.is_from(connection) or core.phase != "receiving":
            return _refused("nothing is being received that could be verified")
        try:
            claims = parse_claims(payload)
        except RemoteProtocolError as error:
            return _refused(str(error))
        fault = fault_in(claims, core.export.size)
        if fault is not None:
            return _refused(fault)
        coverage, digest = core.coverage, core.digest  # of this attempt, however long it takes

        def found(verdicts: list[bool]) -> bytes:
            for claim, equal in zip(claims, verdicts, strict=True):
                if equal:
                    coverage.mark(claim.offset, claim.length)
                    tell(digest, claim)
            return encode_verdicts(verdicts)

        image = core.export.image
        if not isinstance(image, Image):
            return _refused("storage that is no file can't be compared")
        judging: Deferred[list[bool]] = self._judging.run(
            core.export.background.run, judge, image, claims
        )
        return judging.addCallback(found)

    async def _prepare(self, connection: NBDServerProtocol, claimed: str | None) -> Outcome:
        if not connection.seal():
            return self._refuse(connection, "requests are under way")
        await self._lock.acquire(connection)
        try:
            if not self._core.is_from(connection) or self._core.phase != "receiving":
                return self._refuse(connection, "there is nothing to prepare")
            outcome: Deferred[Outcome] = Deferred()
            self._destination._prepare(connection, outcome, claimed)
            return await outcome
        finally:
            self._lock.release(connection)

    async def _commit(self, connection: NBDServerProtocol, opening: Opening) -> Outcome:
        await self._lock.acquire(connection)
        try:
            refusal = self._ownership.settles(opening.as_committed())
            if refusal is not None:
                return self._refuse(connection, refusal)
            self._settling.add(connection)
            if self._core.handover.owned:
                return Outcome(self._ownership.state)
            committed: Deferred[Outcome] = Deferred()
            self._destination._commit(committed)
            return await committed
        finally:
            self._lock.release(connection)

    def _refuse(self, connection: NBDServerProtocol, text: str) -> Outcome:
        connection.log.warn("refused: {text}", text=text)
        return Outcome(self._ownership.state, text)

    def disconnecting(self, connection: NBDServerProtocol) -> Deferred[bool]:
        """Settle under the migration lock who owns the image; the sender's connection waits for
        it.
        """
        if opening_of(connection) is not None:
            return self._farewell()
        return Deferred.fromCoroutine(self._settle(connection))

    async def _settle(self, connection: NBDServerProtocol) -> bool:
        await self._lock.acquire(connection)
        try:
            if not self._core.is_from(connection):
                return False  # it was lost while it waited
            answered: Deferred[bool] = Deferred()
            self._destination._goodbye(connection, answered)
            return await answered
        finally:
            self._lock.release(connection)

    def _farewell(self) -> Deferred[bool]:
        """A session's source takes leave: where the image is ours, it knows that."""
        if not self._core.handover.owned:
            return succeed(False)
        return self._core.handover.acknowledge().addCallback(self._said_farewell)

    def _said_farewell(self, _: None) -> bool:
        self._end_waiting(True)
        return True

    def lost(self, connection: NBDServerProtocol) -> None:
        """Its attempt ends, unless it said DISC."""
        self._settling.discard(connection)
        if self._core.is_from(connection):
            self._destination.sender_lost(connection)
        if self._core.handover.owned:
            self._linger_if_alone()

    # After the migration

    def acknowledged(self, *, at_once: bool = False) -> Deferred[bool]:
        """Fire once the source knows that the image is ours (True), or wasn't heard of for
        LINGER_SECONDS (False). To be called once.

        :param at_once: don't linger: no connection of the source's is reason enough for False.
        """
        self._linger_seconds = 0.0 if at_once else LINGER_SECONDS
        self._waiter = Deferred()
        waiter = self._waiter
        if self._is_acknowledged:
            self._end_waiting(True)
        else:
            self._linger_if_alone()
        return waiter

    def _linger_if_alone(self) -> None:
        if self._waiter is not None and not self._settling and self._linger is None:
            self._linger = self._reactor.callLater(self._linger_seconds, self._lingered)

    def _lingered(self) -> None:
        self._linger = None
        self._end_waiting(False)

    def _stop_lingering(self) -> None:
        linger, self._linger = self._linger, None
        if linger is not None:
            linger.cancel()

    def _end_waiting(self, known: bool) -> None:
        self._is_acknowledged = self._is_acknowledged or known
        self._stop_lingering()
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.callback(known)

    @property
    def _ownership(self) -> Ownership:
        return self._core.handover.ownership


class Held(Protocol):
    """An image that a server has."""

    ownership: Ownership
    background: Background

    @property
    def size(self) -> int:
        """Of the image, in bytes."""

    @property
    def full_name(self) -> str:
        """Of the image, for people."""


class ServingSession(OpenSession):
    """See the module.

    :param find: returns what the export of that name has; None if there is none.
    :param told: called once a source has been told that its image is here.
    """

    def __init__(
        self, find: Callable[[str], Held | None], told: Callable[[], object] = lambda: None
    ) -> None:
        self._find = find
        self._told = told

    def options(self) -> Mapping[int, PrivateOption]:
        """It can be asked, and a handover can be settled; a migration finds a plain server."""
        return {SESSION_OPTION: self._answer}

    def _answer(self, data: bytes) -> Replies:
        opening = parse_opening(data)
        held = self._find(opening.export)
        if held is None:
            return [(OptionReply.ERR_UNKNOWN, b"there is no such export")]
        if opening.purpose is Purpose.MIGRATE:
            return [(OptionReply.ERR_UNSUP, b"no migration is waited for here")]
        refusal = None
        if opening.purpose is Purpose.SETTLE:
            refusal = held.ownership.settles(opening)
        return answer(opening, held.ownership, held.size, held.full_name, refusal)

    def gate(self, export: str, private: Mapping[int, bytes]) -> str | None:
        """Who only asks, or can't settle, goes no further."""
        opening = opening_in(private)
        if opening is None:
            return None
        held = self._find(export)
        if held is None or opening.purpose is not Purpose.SETTLE:
            return "what was asked is answered"
        return held.ownership.settles(opening)

    def transmitting(self, connection: NBDServerProtocol) -> Deferred[None] | None:
        """Who has come to settle changes nothing of the image."""
        if opening_of(connection) is not None:
            connection.seal()
        return None

    def private(
        self,
        connection: NBDServerProtocol,
        command: int,
        offset: int,
        length: int,
        payload: bytes,
    ) -> Deferred[bytes] | None:
        """COMMIT is answered: the image is here."""
        held, opening = self._held(connection), opening_of(connection)
        if held is None or opening is None or command != PrivateCommand.COMMIT:
            return None
        if offset or length:
            return _refused("neither offset nor length belong there")
        refusal = held.ownership.settles(opening)
        return succeed(Outcome(held.ownership.state, refusal or "").encode())

    def disconnecting(self, connection: NBDServerProtocol) -> Deferred[bool]:
        """A client that says DISC is done; a source, too, and knows that the image is here."""
        held = self._held(connection)
        if held is None or opening_of(connection) is None:
            return succeed(True)
        return acknowledge(held.ownership, held.background).addCallback(self._was_told)

    def _was_told(self, _: None) -> bool:
        self._told()
        return True

    def _held(self, connection: NBDServerProtocol) -> Held | None:
        export = connection.export
        return None if export is None else self._find(export.name)


class AnsweringSession(ServingSession):
    """Of an address at which nothing is served: only sources are awaited there, whose images are
    here, and that don't know. An image is found by its session, whatever name it is served under.

    :param held: the images.
    :param told: as of ``ServingSession``.
    """

    def __init__(self, held: Sequence[Held], told: Callable[[], object]) -> None:
        super().__init__(lambda name: None, told)
        self._all = held

    def _answer(self, data: bytes) -> Replies:
        opening = parse_opening(data)
        held = self._of(opening)
        if held is None:
            return [(OptionReply.ERR_POLICY, b"only a committed handover is settled here")]
        return answer(opening, held.ownership, held.size, held.full_name, None)

    def gate(self, export: str, private: Mapping[int, bytes]) -> str | None:
        """Nobody else goes any further."""
        known = self._of(opening_in(private)) is not None
        return None if known else "nothing is served at this address"

    def _held(self, connection: NBDServerProtocol) -> Held | None:
        return self._of(opening_of(connection))

    def _of(self, opening: Opening | None) -> Held | None:
        """Return the image that came by the session that *opening* is to settle."""
        if opening is None or opening.purpose is not Purpose.SETTLE:
            return None
        fitting = (each for each in self._all if each.ownership.settles(opening) is None)
        return next(fitting, None)


def _refused(text: str) -> Deferred[bytes]:
    failed: Deferred[bytes] = Deferred()
    failed.errback(Failure(RequestFailed(int(ErrorCode.EINVAL), text)))
    return failed

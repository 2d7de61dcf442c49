"""The policy of a destination: what a connection may do while an image is received
(``server.factory.Session``).

There is one sender at a time. A plain one hands the image over by DISC, one with a session by
COMMIT. A source that committed before, and got no answer, may ask again. Servers that have their
images follow ``ownership.policy``; ``ownership`` decides on the answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import Deferred, DeferredSemaphore, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from flexmigrate.errors import RemoteProtocolError, in_words, to_nbd
from flexmigrate.migration.comparison.comparer import fault_in, judge, tell
from flexmigrate.migration.destination.machine import Destination, DestinationCore, Sender
from flexmigrate.migration.lock import OwnedLock
from flexmigrate.migration.ownership.offer import (
    OURSELVES,
    Replies,
    answer,
    opening_in,
    opening_of,
    refused,
)
from flexmigrate.migration.ownership.ownership import Ownership
from flexmigrate.server.connection import NBDServerProtocol
from flexmigrate.server.factory import OpenSession
from flexmigrate.telemetry.states import DestinationState
from flexmigrate.wire.constants import ErrorCode, ServerRole
from flexmigrate.wire.handover import (
    NO_ID,
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
from flexmigrate.wire.handshake import PrivateOption

log = Logger()

LINGER_SECONDS = 10.0
"""How long a destination that owns the image stays for its source to ask again, once the source's
connection has ended without a word that it knows."""


JUDGED_AT_ONCE = 4
"""Requests to compare that are carried out side by side; the others wait."""


class ReceivingSession(OpenSession):
    """The policy; see the module.

    :param name: the name of this side, for people.
    :param instance: a random id of this server; NO_ID: it sends nothing itself.
    """

    def __init__(
        self,
        reactor: Any,
        destination: Destination,
        core: DestinationCore,
        lock: OwnedLock,
        name: str = "",
        instance: bytes = NO_ID,
    ) -> None:
        self._reactor = reactor
        self._destination = destination
        self._core = core
        self._lock = lock
        self._name = name
        self._instance = instance
        # Those that have shown that the source has committed; and the one that waits for the place.
        self._settling: set[NBDServerProtocol] = set()
        self._told_refusal = ("", "")
        self._coming: NBDServerProtocol | None = None
        self._linger: IDelayedCall | None = None
        self._waiter: Deferred[bool] | None = None
        self._has_lingered = False
        self._is_acknowledged = False
        # What is written meanwhile needs threads, too.
        self._judging = DeferredSemaphore(JUDGED_AT_ONCE)
        self._linger_seconds = LINGER_SECONDS

    # Who gets in

    tells_refusals = True
    role = ServerRole.RECEIVING

    def options(self) -> Mapping[int, PrivateOption]:
        """A session can be had."""
        return {SESSION_OPTION: self._answer}

    def _answer(self, data: bytes) -> Replies:
        opening = parse_opening(data)
        refusal = self._refusal(opening)
        if refusal is not None:
            self._tell_refusal(opening.name, refusal)
        return answer(
            opening,
            self._ownership,
            self._core.export.size,
            self._name,
            refusal,
            compares=self._core.export.storage.blocking is not None,
        )

    def gate(self, export: str, private: Mapping[int, bytes]) -> str | None:
        """Decide which peers may send, and which may ask for confirmation."""
        opening = opening_in(private)
        if opening is not None and opening.purpose is Purpose.ASK:
            return "what was asked is answered"
        refusal = self._refusal(opening)
        if refusal is not None:
            self._tell_refusal("a sender", refusal)
        return refusal

    def _tell_refusal(self, name: str, refusal: str) -> None:
        """Warn of it, unless it is the last one again: a source tries once a second, and may show
        its key when it was refused without.
        """
        if (name, refusal) == self._told_refusal:
            log.debug("{name} is refused again: {refusal}", name=name, refusal=refusal)
            return
        self._told_refusal = (name, refusal)
        log.warn("{name} is refused: {refusal}", name=name, refusal=refusal)

    def _refusal(self, opening: Opening | None) -> str | None:
        """Return why whoever says *opening*, or nothing, gets no further; None if it does."""
        if opening is not None and opening.purpose is Purpose.ASK:
            return None
        if opening is not None and opening.purpose is Purpose.SETTLE:
            return self._ownership.refusal(opening)
        if opening is not None and opening.instance == self._instance != NO_ID:
            return OURSELVES
        size = self._core.export.size
        if opening is not None and opening.size != size:
            return f"the image here has {size} bytes, that of the source {opening.size}"
        session = opening if opening is not None and opening.purpose is Purpose.MIGRATE else None
        refusal = self._ownership.refusal(session) or self._busy(session)
        return refusal or self._core.export.storage.size_fault() or self._unrecorded()

    def _unrecorded(self) -> str | None:
        """Return why nobody could be recorded the last time, and see whether it is so still."""
        handover = self._core.handover
        if handover.unrecorded is not None:
            handover.look_for_room()
        return handover.unrecorded

    def _busy(self, opening: Opening | None) -> str | None:
        """Return who has the sender's place, if whoever says *opening* can't have it instead."""
        core, sender = self._core, self._core.sender
        if core.state is DestinationState.WAITING or (
            opening is not None and self._may_replace(opening, sender)
        ):
            return None
        if sender is not None:
            sender.probe()  # so that one that is dead won't have it for long
        return core.busy or core.taken

    def _may_replace(self, opening: Opening, sender: Sender | None) -> bool:
        """Return whether *opening* shows that what is being received was given up."""
        if self._core.state not in (
            DestinationState.RECEIVING,
            DestinationState.SEALED,
            DestinationState.DRAINING,
        ):
            return False
        earlier = opening_of(sender) if isinstance(sender, NBDServerProtocol) else None
        return self._ownership.retracts(opening, earlier)

    def transmitting(self, connection: NBDServerProtocol) -> Deferred[None] | None:
        """It is the sender now. Before the first byte comes, what is here has to be what the disk
        has, and the sender of a session is recorded.
        """
        opening = opening_of(connection)
        if opening is not None and opening.purpose is Purpose.SETTLE:
            self._settles(connection)
            return None
        if self._core.state is DestinationState.WAITING:
            return self._enter(connection, opening)
        return Deferred.fromCoroutine(self._replace(connection, opening))

    def _enter(self, connection: NBDServerProtocol, opening: Opening | None) -> Deferred[None]:
        self._told_refusal = ("", "")
        self._destination.sender_connected(connection)
        return Deferred.fromCoroutine(self._begin(connection, opening))

    async def _begin(self, connection: NBDServerProtocol, opening: Opening | None) -> None:
        is_believed = await self._core.handover.begin()
        if not self._core.is_from(connection):
            return
        self._core.is_believed = is_believed
        if opening is not None:
            peer = connection.transport.getPeer()
            address = f"{peer.host}:{peer.port}" if hasattr(peer, "host") else "a UNIX socket"
            try:
                await self._core.handover.receive(opening, address)
            except OSError as error:
                text = self._core.handover.unrecorded or in_words(error)
                connection.log.error("cannot keep to what was negotiated: {text}", text=text)
                connection.turn_away(ErrorCode(to_nbd(error)), text)

    async def _replace(self, connection: NBDServerProtocol, opening: Opening | None) -> None:
        """Have *connection* send, once what its source has given up is over."""
        self._coming = connection
        if self._core.sender is not None:
            self._core.sender.abort("its source has given that up, and has come again")
        await self._core.vacant()
        if self._coming is not connection:
            connection.abort("its source has come again")
            return
        self._coming = None
        refusal = self._refusal(opening)
        if refusal is not None:
            connection.dismiss(refusal)
        else:
            await self._enter(connection, opening)

    def _settles(self, connection: NBDServerProtocol) -> None:
        """*connection* has shown that its source has committed; it has come to say so."""
        connection.seal()
        self._settling.add(connection)

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
            return refused("neither offset nor length belong there")
        if command == PrivateCommand.COMMIT:
            work = self._commit(connection, opening.as_committed(payload))
        elif command == PrivateCommand.PREPARE:
            work = self._prepare(connection, None)
        else:
            try:
                work = self._prepare(connection, parse_image_digest(payload))
            except RemoteProtocolError as error:
                return refused(str(error))
        return Deferred.fromCoroutine(work).addCallback(Outcome.encode)

    def _verify(self, connection: NBDServerProtocol, payload: bytes) -> Deferred[bytes]:
        """Compare ranges with what their source says that they hold; what is equal is covered."""
        core = self._core
        if not core.is_from(connection) or core.state is not DestinationState.RECEIVING:
            return refused("nothing is being received that could be verified")
        try:
            claims = parse_claims(payload)
        except RemoteProtocolError as error:
            return refused(str(error))
        fault = fault_in(claims, core.export.size)
        if fault is not None:
            return refused(fault)
        coverage, digest = core.coverage, core.digest  # of this attempt, however long it takes
        # What this attempt has written is in the page cache, and on the disk once it is flushed.
        believed = [
            core.is_believed or coverage.covers(each.offset, each.length) for each in claims
        ]

        def found(judged: list[bool]) -> bytes:
            verdicts = [each and may for each, may in zip(judged, believed, strict=True)]
            for claim, equal in zip(claims, verdicts, strict=True):
                if equal:
                    coverage.mark(claim.offset, claim.length)
                    tell(digest, claim)
            return encode_verdicts(verdicts)

        readable = core.export.storage.blocking
        if readable is None:
            return refused("storage that is no file can't be compared")
        judging: Deferred[list[bool]] = self._judging.run(
            core.export.storage.run, judge, readable, claims
        )
        return judging.addCallback(found)

    async def _prepare(self, connection: NBDServerProtocol, claimed: str | None) -> Outcome:
        if not connection.seal():
            return self._refuse(connection, "requests are under way")
        owner = object()  # a connection may ask again before it was answered
        await self._lock.acquire(owner)
        try:
            if (
                not self._core.is_from(connection)
                or self._core.state is not DestinationState.RECEIVING
            ):
                return self._refuse(connection, "there is nothing to prepare")
            outcome: Deferred[Outcome] = Deferred()
            self._destination._prepare(connection, outcome, claimed)
            return await outcome
        finally:
            self._lock.release(owner)

    async def _commit(self, connection: NBDServerProtocol, opening: Opening) -> Outcome:
        owner = object()  # a connection may ask again before it was answered
        await self._lock.acquire(owner)
        try:
            refusal = self._ownership.refusal_to_confirm(opening)
            if refusal is not None:
                return self._refuse(connection, refusal)
            self._settling.add(connection)
            if self._core.handover.owned:
                return Outcome(self._ownership.state)
            committed: Deferred[Outcome] = Deferred()
            self._destination._commit(committed)
            return await committed
        finally:
            self._lock.release(owner)

    def _refuse(self, connection: NBDServerProtocol, text: str) -> Outcome:
        connection.log.warn("refused: {text}", text=text)
        return Outcome(self._ownership.state, text)

    def disconnecting(self, connection: NBDServerProtocol) -> Deferred[bool]:
        """Settle under the migration lock who owns the image; the sender's connection waits for
        it.
        """
        if opening_of(connection) is not None:
            return self._farewell(connection)
        return Deferred.fromCoroutine(self._settle(connection))

    async def _settle(self, connection: NBDServerProtocol) -> bool:
        owner = object()  # a connection may ask again before it was answered
        await self._lock.acquire(owner)
        try:
            if not self._core.is_from(connection):
                return False  # it was lost while it waited
            answered: Deferred[bool] = Deferred()
            self._destination._goodbye(connection, answered)
            return await answered
        finally:
            self._lock.release(owner)

    def _farewell(self, connection: NBDServerProtocol) -> Deferred[bool]:
        """A session's source takes leave: where the image is ours, it knows that."""
        if not self._core.handover.owned or connection not in self._settling:
            return succeed(False)
        return self._core.handover.acknowledge().addCallback(self._said_farewell)

    def _said_farewell(self, _: None) -> bool:
        self._end_waiting(True)
        return True

    def lost(self, connection: NBDServerProtocol) -> None:
        """Its attempt ends, unless it said DISC."""
        self._settling.discard(connection)
        if self._coming is connection:
            self._coming = None
        if self._core.is_from(connection):
            self._destination.sender_lost(connection)
        if self._core.handover.owned:
            self._linger_on()

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
            self._linger_on()
        return waiter

    def _linger_on(self) -> None:
        """Wait for the source to say that it knows, but not for ever: whoever has overheard its key
        could stay without a word.
        """
        if self._waiter is None:
            return
        if not self._settling and not self._linger_seconds:
            self._stop_lingering()
            self._linger = self._reactor.callLater(0, self._lingered)
        elif self._linger is None:
            self._linger = self._reactor.callLater(LINGER_SECONDS, self._lingered)

    def _lingered(self) -> None:
        self._linger = None
        if self._settling and not self._has_lingered:
            # Somebody has just come: so long, and no longer.
            self._has_lingered = True
            self._linger_on()
        else:
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

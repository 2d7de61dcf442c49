"""Policies of a server that has its images: what connections mean to it that open a session.

* ``ServingSession``: clients come and go. The source by whose session an image came here is told
  so, and anybody may ask what a journal says.
* ``ConfirmingSession``, of the same server, where only that source is awaited.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from flexmigrate.image.storage import Storage
from flexmigrate.log import failures
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
from flexmigrate.wire.constants import OptionReply, ServerRole
from flexmigrate.wire.handover import (
    NO_ID,
    SESSION_OPTION,
    Opening,
    Outcome,
    PrivateCommand,
    Purpose,
    parse_opening,
)
from flexmigrate.wire.handshake import PrivateOption


class OwnedImage(Protocol):
    """An image that a server has."""

    ownership: Ownership

    @property
    def storage(self) -> Storage:
        """Its bytes."""

    @property
    def size(self) -> int:
        """The size of the image in bytes."""

    @property
    def full_name(self) -> str:
        """The name of the image, for people."""


class ServingSession(OpenSession):
    """See the module.

    :param find: returns what the export of that name has; None if there is none.
    :param told: called once a source has been told that its image is here.
    :param instance: tells this server from every other; NO_ID: it sends nothing itself.
    """

    def __init__(
        self,
        find: Callable[[str], OwnedImage | None],
        told: Callable[[], object] = lambda: None,
        instance: bytes = NO_ID,
    ) -> None:
        self._find = find
        self._told = told
        self._instance = instance

    role = ServerRole.SERVING

    def options(self) -> Mapping[int, PrivateOption]:
        """It can be asked, and a handover can be settled; a migration is declined."""
        return {SESSION_OPTION: self._answer}

    def _answer(self, data: bytes) -> Replies:
        opening = parse_opening(data)
        held = self._find(opening.export)
        if held is None:
            return [(OptionReply.ERR_UNKNOWN, b"there is no such export")]
        refusal = None
        if opening.purpose is Purpose.SETTLE:
            refusal = held.ownership.refusal_to_confirm(opening)
        elif opening.purpose is not Purpose.ASK:
            export = f"the export {opening.export!r}" if opening.export else "its image"
            refusal = f"it serves {export} to clients, and waits for no migration"
            if opening.instance == self._instance != NO_ID:
                refusal = OURSELVES
        return answer(opening, held.ownership, held.size, held.full_name, refusal)

    def gate(self, export: str, private: Mapping[int, bytes]) -> str | None:
        """Refuse peers that only ask, or that can't have a handover confirmed."""
        opening = opening_in(private)
        if opening is None:
            return None
        held = self._find(export)
        if held is None or opening.purpose is not Purpose.SETTLE:
            return "what was asked is answered"
        return held.ownership.refusal_to_confirm(opening)

    def transmitting(self, connection: NBDServerProtocol) -> Deferred[None] | None:
        """Refuse changes by a peer that came to have a handover confirmed."""
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
            return refused("neither offset nor length belong there")
        refusal = held.ownership.refusal_to_confirm(opening.as_committed(payload))
        return succeed(Outcome(held.ownership.state, refusal or "").encode())

    def disconnecting(self, connection: NBDServerProtocol) -> Deferred[bool]:
        """A client that says DISC is done; a source, too, and knows that the image is here."""
        held = self._held(connection)
        if held is None or opening_of(connection) is None:
            return succeed(True)
        return acknowledge(held.ownership, held.storage).addCallback(self._was_told)

    def _was_told(self, _: None) -> bool:
        self._told()
        return True

    def _held(self, connection: NBDServerProtocol) -> OwnedImage | None:
        export = connection.export
        return None if export is None else self._find(export.name)


class ConfirmingSession(ServingSession):
    """The policy of an address at which nothing is served, and which only confirms to sources that
    their images have arrived. An image is found by its session, whatever its export's name.

    :param held: the images.
    :param told: as of ``ServingSession``.
    """

    def __init__(self, held: Sequence[OwnedImage], told: Callable[[], object]) -> None:
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

    def _held(self, connection: NBDServerProtocol) -> OwnedImage | None:
        return self._of(opening_of(connection))

    def _of(self, opening: Opening | None) -> OwnedImage | None:
        """Return the image that came by the session that *opening* is to settle."""
        if opening is None or opening.purpose is not Purpose.SETTLE:
            return None
        fitting = (each for each in self._all if each.ownership.refusal_to_confirm(opening) is None)
        return next(fitting, None)


log = Logger()


def acknowledge(ownership: Ownership, storage: Storage) -> Deferred[None]:
    """Record that the source knows that the image is ours. Never fails: it may be asked again."""
    recording = storage.run(ownership.acknowledge)
    return recording.addErrback(
        lambda failure: failures.tell(log, "that the source knows can't be recorded", failure)
    )

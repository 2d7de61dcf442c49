"""Strangers: machines that connect to the destination and are no part of the migration."""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from flexmigrate.client import NBDClientProtocol, connect
from flexmigrate.errors import FlexmigrateError
from flexmigrate.net.address import Address
from flexmigrate.testing import Machine, World
from flexmigrate.testing.writer import SECTOR
from flexmigrate.wire.client_handshake import ClientOptions, SessionRequest
from flexmigrate.wire.handover import (
    Opening,
    PrivateCommand,
    Purpose,
    State,
    parse_opening,
    parse_outcome,
)
from flexmigrate.wire.keys import KEY_LENGTH, NO_KEY, KeyKind, derive_key, key_digest

log = Logger()

RETRY_SECONDS = 0.5
"""Between two tries of a stranger that was not let in."""

TRIES = 60
"""How often a stranger tries to be let in."""


def _bug(failure: Failure) -> None:
    """Tell of it: who plays a schedule looks for that."""
    log.failure("a bug of the stranger", failure)


class Stranger:
    """A machine that opens sessions with the destination.

    :param draw: what it makes up is drawn from this.
    """

    def __init__(self, world: World, address: Address, size: int, draw: random.Random) -> None:
        self._machine = Machine(world, "stranger", "192.0.2.5")
        self._address = address
        self._size = size
        self._draw = draw
        self._secret = draw.randbytes(KEY_LENGTH)

    def open(self, opening: Opening) -> Deferred[NBDClientProtocol]:
        """Connect with *opening*; fails as ``flexmigrate.client.connect``."""
        session = SessionRequest(opening.encode())
        wish = ClientOptions(structured=False, extended=False, session=session)
        endpoint = TCP4ClientEndpoint(self._machine, self._address.host, self._address.port)
        return connect(endpoint, options=wish, clock=self._machine)

    def opening(self, session: bytes, attempt: int) -> Opening:
        """Return an opening of a migration of its own, which gives up the attempt before."""

        def digest(kind: KeyKind) -> bytes:
            key = derive_key(self._secret, kind, session, attempt)
            return key_digest(key, kind, session, attempt)

        return Opening(
            Purpose.MIGRATE,
            session,
            attempt,
            State.SENDING,
            self._size,
            commit_digest=digest(KeyKind.COMMIT),
            retract_digest=digest(KeyKind.RETRACT),
            key=derive_key(self._secret, KeyKind.RETRACT, session, attempt - 1),
        )

    async def let_in(self, opening: Opening) -> NBDClientProtocol | None:
        """Connect with *opening* as soon as it is let in; None: it never was."""
        for _ in range(TRIES):
            try:
                return await self.open(opening)
            except FlexmigrateError:
                await deferLater(self._machine, RETRY_SECONDS)
        return None


class HastySender(Stranger):
    """A sender that says PREPARE before its last writes were answered. If that is accepted, it
    begins another attempt and leaves, so that the destination is free again.

    :ivar session: its session.
    """

    def __init__(self, world: World, address: Address, size: int, draw: random.Random) -> None:
        super().__init__(world, address, size, draw)
        self.session = draw.randbytes(16)

    def begin(self) -> None:
        """Let it come, once."""
        Deferred.fromCoroutine(self._send_and_leave()).addErrback(_bug)

    async def _send_and_leave(self) -> None:
        client = await self.let_in(self.opening(self.session, 1))
        if client is None:
            return
        try:
            is_prepared = await self._send(client)
        except FlexmigrateError:
            is_prepared = True  # it may be
        client.abort(FlexmigrateError("the hasty sender leaves"))
        if is_prepared and (client := await self.let_in(self.opening(self.session, 2))):
            client.abort(FlexmigrateError("the hasty sender leaves for good"))

    async def _send(self, client: NBDClientProtocol) -> bool:
        """Send an image, then other sectors of it with PREPARE right behind them; return whether
        that was done.
        """
        await client.write(self._draw.randbytes(self._size), 0)
        writing = gatherResults(
            (client.write(self._draw.randbytes(SECTOR), at) for at in range(0, self._size, SECTOR)),
            consumeErrors=True,
        )
        outcome = parse_outcome(await client.private(PrivateCommand.PREPARE))
        await writing
        return not outcome.refusal


GUESSES = (b"", NO_KEY)
"""What a stranger says for a key, beside what it draws."""


class Speaker(Stranger):
    """Somebody who has overheard all openings so far, and says whatever may have an effect: asks,
    settles, commits with guessed keys, repeats an opening, sends in a session that follows.

    :param overheard: the openings of the migration's sessions, as they were sent, the latest last.
    :ivar session: of its own.
    """

    def __init__(
        self,
        world: World,
        address: Address,
        size: int,
        draw: random.Random,
        overheard: Sequence[bytes],
    ) -> None:
        super().__init__(world, address, size, draw)
        self.session = draw.randbytes(16)
        self._overheard = list(overheard)

    def begin(self) -> None:
        """Let it speak, once."""
        Deferred.fromCoroutine(self._speak()).addErrback(_bug)

    async def _speak(self) -> None:
        heard = [parse_opening(data) for data in self._overheard]
        known = heard[-1] if heard else self.opening(self.session, 1)
        asking = replace(known, purpose=Purpose.ASK, state=State.NONE)
        words: list[Callable[[], Coroutine[Any, Any, None]]] = [
            lambda: self._say(asking),
            lambda: self._follow(known),
            lambda: self._say(known),
        ]
        self._draw.shuffle(words)
        # First, for there is not much time between two steps of a handover.
        for word in (lambda: self._settle(known), *words):
            with suppress(FlexmigrateError):
                await word()

    def _guess(self) -> bytes:
        return self._draw.choice((*GUESSES, self._draw.randbytes(KEY_LENGTH)))

    async def _settle(self, known: Opening) -> None:
        """Come as the source that has committed."""
        for guess in (NO_KEY, self._draw.randbytes(KEY_LENGTH)):
            with suppress(FlexmigrateError):
                await self._say(known.as_committed(guess))

    async def _follow(self, known: Opening) -> None:
        """Come as a source that has given up what it sent before."""
        opening = replace(
            self.opening(self.session, 1),
            superseded=(known.session,),
            key=self._draw.randbytes(KEY_LENGTH),
        )
        await self._say(opening)

    async def _say(self, opening: Opening) -> None:
        """Connect with *opening*, and if it is let in, try to send, to prepare and to commit."""
        client = await self.open(opening)
        try:
            with suppress(FlexmigrateError):
                await client.write(self._draw.randbytes(self._size), 0)
            with suppress(FlexmigrateError):
                await client.private(PrivateCommand.COMMIT, payload=self._guess())
        finally:
            client.abort(FlexmigrateError("the stranger leaves"))

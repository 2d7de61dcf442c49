"""Answering the source of an image that is here, and served here, but of which it doesn't know.

It was sent to another address than clients are served at, and asks there. The ``listen`` that
received the image has ended, so that it could be served; whoever serves it listens there, too,
until the source has been told. Not for ever, though: the next image may be meant to come that way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from flexmigrate.migration.sessions import AnsweringSession, Held
from flexmigrate.net.address import Address, BadAddress, parse_shown
from flexmigrate.server.factory import NBDServerFactory, Session
from flexmigrate.service.host import Host
from flexmigrate.service.port import ListeningPort

log = Logger()

ANSWERING_SECONDS = 3600.0
"""How long that may take, from when the server is started."""


class Answering:
    """The addresses at which sources may ask, as far as they can be had.

    :param find: returns what the export of that name has; None if there is none.
    :param new_factory: makes the factory of a session.
    """

    def __init__(
        self,
        reactor: Any,
        find: Callable[[str], Held | None],
        new_factory: Callable[[Session], NBDServerFactory],
    ) -> None:
        self._reactor = reactor
        self._find = find
        self._new_factory = new_factory
        self._ports: list[tuple[ListeningPort, NBDServerFactory]] = []
        self._end: IDelayedCall | None = None

    def open(self, hosts: Iterable[Host]) -> None:
        """Listen for the sources of *hosts*; what can't be had is told of, and no more."""
        for host in hosts:
            for text in host.ownership.awaited_at:
                try:
                    self._listen(parse_shown(text), host)
                except BadAddress as error:
                    log.warn("{path}: {error}", path=host.image.path, error=error)
        if self._ports:
            self._end = self._reactor.callLater(ANSWERING_SECONDS, self._give_up)

    def _give_up(self) -> None:
        self._end = None
        for listening, _ in self._ports:
            listening.close()

    def _listen(self, place: Address, host: Host) -> None:
        def answered() -> None:
            log.info("the source of {path} knows that it is here", path=host.image.path)
            listening.close()

        factory = self._new_factory(AnsweringSession(self._find, answered))
        listening = ListeningPort(
            self._reactor, place, factory, what="the source is answered, which may ask"
        )
        self._ports.append((listening, factory))
        listening.open().addErrback(self._not_open, place)

    def _not_open(self, failure: Failure, place: Address) -> None:
        log.info(
            "not listening for the source's question on {place}: {error}",
            place=place,
            error=failure.getErrorMessage(),
        )

    async def close(self) -> None:
        """Answer no more."""
        if self._end is not None:
            self._end.cancel()
            self._end = None
        for listening, factory in self._ports:
            await listening.close()
            closing: Deferred[None] = factory.close_clients("this server ends")
            await closing

"""Confirmation of ownership to sources that don't know yet that their images arrived here.

Such a source was cut off before its destination's answer came. It asks at the address to which it
sent the image, which may not be the one that clients are served at: the ``listen`` that received it
has ended, so that it could be served. So the server listens there, too, until the source has been
told. It stops after a while: the next image may be meant to come to that address.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from flexmigrate.migration.ownership.policy import ConfirmingSession
from flexmigrate.net.address import Address, BadAddress, parse_shown
from flexmigrate.server.export import Export, ExportDirectory
from flexmigrate.server.factory import NBDServerFactory
from flexmigrate.service.factories import Factories
from flexmigrate.service.host import Host
from flexmigrate.service.port import ListeningPort
from flexmigrate.wire.handshake import ExportInfo

log = Logger()

CONFIRMING_SECONDS = 3600.0
"""Seconds from the server's start for which it waits for sources."""


class _AnyName(ExportDirectory):
    """A directory with one export under any name: the image may be served under another name than
    it was received under. Its connections only ask for confirmation.
    """

    def __init__(self, export: Export) -> None:
        super().__init__([export], listable=False)
        self._export = export

    def export(self, name: str) -> Export:
        """Return the export."""
        return self._export

    def find(self, name: str) -> ExportInfo | None:
        """Return the export's description."""
        return self._export.info


class _Place(NamedTuple):
    """An address at which sources may ask, from a journal, with its port and factory."""

    text: str
    listening: ListeningPort
    factory: NBDServerFactory


class Confirming:
    """The addresses at which sources may ask, as far as they can be opened.

    :param factories: the server's factories.
    """

    def __init__(self, reactor: Any, hosts: Sequence[Host], factories: Factories) -> None:
        self._reactor = reactor
        self._hosts = hosts
        self._factories = factories
        self._places: list[_Place] = []
        self._end: IDelayedCall | None = None

    def open(self, served_at: Iterable[Address | None]) -> None:
        """Listen for the sources; an address that can't be opened is only logged.

        :param served_at: the server's own addresses, where sources are answered anyway.
        """
        known = {str(each) for each in served_at}
        texts = {text for host in self._hosts for text in host.ownership.awaited_at}
        for text in sorted(texts - known):
            try:
                self._listen(text, parse_shown(text))
            except BadAddress as error:
                log.warn("cannot listen for a source that may ask: {error}", error=error)
        if self._places:
            self._end = self._reactor.callLater(CONFIRMING_SECONDS, self._give_up)

    def _listen(self, text: str, address: Address) -> None:
        hosts = [host for host in self._hosts if text in host.ownership.awaited_at]
        one = hosts[0]
        export = Export(one.export.name, one.storage, read_only=True)
        session = ConfirmingSession(hosts, self.look)
        factory = self._factories.for_confirming(_AnyName(export), session)
        listening = ListeningPort(
            self._reactor, address, factory, what="answering a source that may ask"
        )
        self._places.append(_Place(text, listening, factory))
        listening.open().addErrback(self._not_open, address)

    def _not_open(self, failure: Failure, address: Address) -> None:
        log.info(
            "not listening for the source's question on {place}: {error}",
            place=address,
            error=failure.getErrorMessage(),
        )

    def look(self) -> None:
        """Close the addresses at which no source is expected any more: one may have been told."""
        for place in self._places:
            if not any(place.text in host.ownership.awaited_at for host in self._hosts):
                place.listening.close()

    def _give_up(self) -> None:
        self._end = None
        for place in self._places:
            place.listening.close()

    async def close(self) -> None:
        """Stop answering."""
        if self._end is not None:
            self._end.cancel()
            self._end = None
        for place in self._places:
            await place.listening.close()
        for place in self._places:
            await place.factory.close_clients("this server ends")

"""A connection on which one flexmigrate asks another for its journal, and which then ends."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from flexmigrate.errors import (
    ConnectionGone,
    FlexmigrateError,
    LocalProtocolError,
    RemoteProtocolError,
)
from flexmigrate.wire.agreement import Close, CloseKind, Event, PrivateReply, Send, StartTLS
from flexmigrate.wire.client_handshake import ClientOptions, QueryHandshake


class Asker(Protocol):
    """The protocol of `flexmigrate.client.ask`.

    :ivar answer: fires with the answer's data, or fails with the reason why there is none.
    """

    transport: Any  # what it provides beyond ITransport depends on the endpoint

    def __init__(self, options: ClientOptions, tls: Any = None) -> None:
        self.answer: Deferred[bytes] = Deferred(lambda _: self._close())
        self._handshake = QueryHandshake(options)
        self._tls = tls
        self._over = False

    def dataReceived(self, data: bytes) -> None:
        if not self._over:
            self._obey(self._handshake.receive(data))

    def _obey(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Send):
                self.transport.write(event.data)
            elif isinstance(event, StartTLS):
                self._start_tls()
            elif isinstance(event, PrivateReply):
                self._over = True
                self.answer.callback(event.data)
            elif isinstance(event, Close) and event.kind is CloseKind.ENDED:
                self.transport.loseConnection()
            elif isinstance(event, Close):
                self.give_up(RemoteProtocolError(event.reason))

    def _start_tls(self) -> None:
        if self._tls is None:
            self.give_up(LocalProtocolError("TLS was asked for, and no certificates were given"))
            return
        self.transport.startTLS(self._tls)
        self._obey(self._handshake.tls_started())

    def give_up(self, reason: FlexmigrateError) -> None:
        """End the connection; the answer fails with *reason*, unless it has come already."""
        if not self._over:
            self._over = True
            self.answer.errback(reason)
        self._close()

    def _close(self) -> None:
        self._over = True
        if self.transport is not None:
            self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self._over:
            self.give_up(ConnectionGone(f"the connection ended: {reason.getErrorMessage()}"))

"""One connection to an NBD server: its negotiation, its requests and replies, and its end.

A request that was accepted is answered exactly once: by the server, or by the reason for which the
connection ended. :mod:`flexmigrate.client.connection` checks and divides requests;
:mod:`flexmigrate.wire` knows the format of messages.

It works on any transport of Twisted. On a stream transport (:mod:`flexmigrate.net.stream`) received
bytes land directly in their buffers; ``dataReceived`` copies them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IDelayedCall,
    IPushProducer,
    IReactorTime,
    ISSLTransport,
    ITCPTransport,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from flexmigrate.errors import (
    ConnectionGone,
    FlexmigrateError,
    LocalProtocolError,
    Rejected,
    RemoteProtocolError,
    SessionDeclined,
    TLSFailed,
)
from flexmigrate.net.interfaces import IBufferedProtocol
from flexmigrate.net.outlet import outlet_for
from flexmigrate.net.tuning import tune
from flexmigrate.wire.agreement import Agreement, Close, CloseKind, Event, Ready, Send, StartTLS
from flexmigrate.wire.client_handshake import ClientHandshake, ClientOptions
from flexmigrate.wire.constants import Command, ErrorCode, TransmissionFlag
from flexmigrate.wire.pending import PendingRequest
from flexmigrate.wire.reply_parser import ReplyParser
from flexmigrate.wire.requests import pack_request

HELLO_BUFFER = 16 * 1024
"""Bytes received at once in negotiation: enough for a whole negotiation with a usual server."""

LEAVE_SECONDS = 5.0
"""Seconds in which sent data may still leave, once the connection isn't needed any more."""


@implementer(IBufferedProtocol, IPushProducer)
class Link(Protocol):
    """The life of a connection, without the commands.

    :ivar ready: fires with this protocol once requests can be made, or fails with the reason:
        `Rejected` (the server closed the connection before its greeting), `RemoteProtocolError`,
        `SessionDeclined`, or the one given to `abort`. Cancelling it ends the connection.
    :ivar agreement: the result of the negotiation; valid from `ready` on.
    :ivar failure: the reason for the connection's end; None while it is open, and after a
        `disconnect` that the server answered properly.
    :ivar last_progress: the time, by *clock* in seconds, when a byte last came in, waiting data had
        left, or a request was made while none was in flight. It tells a slow server from a dead one
        while `requests_in_flight` is above 0.
    :ivar writable: whether all sent data has left this process. A caller that goes on sending makes
        this process hold the data that the server doesn't take.
    """

    agreement: Agreement
    failure: FlexmigrateError | None = None
    writable = True
    poller = None  # no polling: a caller can wait for the reactor
    waits = False
    _outlet: Any  # IOutlet, from `ready` on

    def __init__(self, options: ClientOptions, clock: IReactorTime, *, tls: Any = None) -> None:
        """Prepare a connection that will negotiate by *options*.

        :param clock: tells the time, and closes the connection after `leave`.
        :param tls: the context for ``ITLSTransport.startTLS`` at a client; needed if *options* asks
            for TLS.
        """
        self.ready: Deferred[Any] = Deferred(self._cancelled)
        self.last_progress = clock.seconds()
        self._clock = clock
        self._tls = tls
        self._handshake = ClientHandshake(options)
        self._parser: ReplyParser | None = None
        self._hello = memoryview(bytearray(HELLO_BUFFER))
        self._heard = False
        self._calls: dict[int, Deferred[PendingRequest]] = {}
        self._cookies = itertools.count(1)
        self._closed = False
        self._leaving: IDelayedCall | None = None
        self._refusal: str | None = "is not negotiated yet"
        self._goodbye_said = False
        self._goodbye_left = False
        self._goodbyes: list[Deferred[None]] = []
        self._close_waiters: list[Deferred[None]] = []
        self._write_waiters: list[Deferred[None]] = []

    @property
    def size(self) -> int:
        """The size of the export in bytes."""
        return self.agreement.export.size

    @property
    def flags(self) -> TransmissionFlag:
        """The features of the export, as the server advertises them."""
        return self.agreement.export.flags

    @property
    def requests_in_flight(self) -> int:
        """The number of requests, after division, that were sent and not answered."""
        return len(self._calls)

    # The end

    def disconnect(self) -> Deferred[None]:
        """Accept no more requests, and send DISC after the last reply.

        DISC is sent even if one of these last requests fails. A caller that needs them waits for
        them first, or calls `abort` in their errbacks, which run before DISC is sent.

        :return: fires once the server has closed the connection without an error, after DISC has
            left this process and nothing was unanswered; fails with `failure` if the connection
            ends in any other way. (DISC has no answer: a server that dies at that moment looks like
            one that obeys.) There is no time limit; cancelling it ends the connection.
        """
        if self.failure is not None:
            return fail(self.failure)
        if self._closed:
            return succeed(None)
        goodbye: Deferred[None] = Deferred(self._cancelled)
        self._goodbyes.append(goodbye)
        if self._parser is None:
            self.abort(ConnectionGone("the connection was given up before it was negotiated"))
        else:
            self._refusal = "is being closed"
            self._say_goodbye()
        return goodbye

    def abort(self, reason: FlexmigrateError) -> None:
        """End the connection at once, without DISC; every request in flight fails with *reason*.

        Does nothing if the connection has ended already.
        """
        if self._closed:
            return
        self._end(reason)
        if self.transport is not None:
            _abort(self.transport)

    def leave(self, reason: FlexmigrateError) -> None:
        """End the connection like `abort`, but in good order if nothing is in flight: sent data
        still leaves, for at most LEAVE_SECONDS, and the server sees an end instead of a reset.
        """
        if self._closed:
            return
        if self.transport is None or self._calls or not self.writable:
            self.abort(reason)
            return
        self._end(reason)
        self._leaving = self._clock.callLater(LEAVE_SECONDS, _abort, self.transport)
        self.transport.loseConnection()

    def when_closed(self) -> Deferred[None]:
        """Return a Deferred that fires when the connection is over; `failure` has the reason."""
        if self._closed:
            return succeed(None)
        waiter: Deferred[None] = Deferred()
        self._close_waiters.append(waiter)
        return waiter

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._leaving is not None and self._leaving.active():
            self._leaving.cancel()
        if self._closed:
            return
        clean = isinstance(reason.value, ConnectionDone)
        if self._goodbye_left and (clean or self._ended_in_order):
            self._end(None)
        else:
            self._end(self._loss(clean, reason))

    @property
    def _ended_in_order(self) -> bool:
        """Whether the server ended the connection below TLS, without TLS's own close message.

        Servers of other projects do so after DISC. It means as much as the end of a connection
        without TLS. A reset, with which a destination refuses, is different.
        """
        return bool(getattr(self.transport, "ended_in_order", False))

    def _loss(self, clean: bool, reason: Failure) -> FlexmigrateError:
        """Return the error for the loss of a connection that we didn't end."""
        how = "the server closed the connection"
        if not clean:
            how = f"the connection was lost: {reason.getErrorMessage()}"
        if self._parser is not None:
            return ConnectionGone(how)
        if not self._heard:
            return Rejected(
                f"{how} before it said a word: its access list may not have us, or all its places "
                "are taken"
            )
        if not clean and ISSLTransport.providedBy(self.transport):
            from flexmigrate.net.tls import fault  # imported late: most connections have no TLS

            return TLSFailed(f"TLS failed: {fault(reason.value)}")
        return RemoteProtocolError(f"negotiation was cut short: {how}")

    def _end(self, failure: FlexmigrateError | None) -> None:
        """Record the reason, then inform everybody who waits for anything; at most once."""
        self._closed = True
        self.failure = failure
        self._refusal = "has ended" if failure is None else f"has ended: {failure}"
        self.writable = False
        if self._parser is not None:
            self._parser.abandon()
        waiters: list[Deferred[Any]] = [*self._calls.values(), *self._write_waiters]
        self._calls = {}
        self._write_waiters = []
        goodbyes, self._goodbyes = self._goodbyes, []
        closers, self._close_waiters = self._close_waiters, []
        reason = failure or ConnectionGone("the connection was closed")
        for waiter in waiters:
            waiter.errback(reason)
        for goodbye in goodbyes:
            goodbye.callback(None) if failure is None else goodbye.errback(failure)
        if not self.ready.called:
            self.ready.errback(reason)
        for closer in closers:
            closer.callback(None)

    def _cancelled(self, _: Deferred[Any]) -> None:
        self.abort(ConnectionGone("the connection was given up by its user"))

    # Received bytes

    def connectionMade(self) -> None:
        # A UNIX socket's transport claims to be ITCPTransport, too; its address shows what it is.
        is_tcp = isinstance(self._transport.getHost(), (IPv4Address, IPv6Address))
        if is_tcp and ITCPTransport.providedBy(self.transport):
            tune(self._transport)

    def get_buffer(self) -> memoryview:
        """Return the buffer for the next bytes."""
        return self._hello if self._parser is None else self._parser.get_buffer()

    def buffer_updated(self, size: int) -> None:
        """Process *size* bytes at the beginning of the last `get_buffer`."""
        if self._closed:
            return
        self.last_progress = self._clock.seconds()
        if self._parser is not None:
            self._take_replies(self._parser, size)
        else:
            self._heard = True
            self._obey(self._handshake.receive(bytes(self._hello[:size])))

    def dataReceived(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest and not self._closed:
            buffer = self.get_buffer()
            size = min(len(buffer), len(rest))
            buffer[:size] = rest[:size]
            rest = rest[size:]
            self.buffer_updated(size)

    # Negotiation

    def _obey(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Send):
                self._transport.write(event.data)
            elif isinstance(event, StartTLS):
                self._start_tls()
            elif isinstance(event, Ready):
                self._begin(event.agreement)
            elif isinstance(event, Close):
                declined = event.kind is CloseKind.DECLINED
                reason = (SessionDeclined if declined else RemoteProtocolError)(event.reason)
                # A server that broke no rule sees an end in good order, after any message for it.
                (self.abort if event.kind is CloseKind.VIOLATION else self.leave)(reason)

    def _start_tls(self) -> None:
        if self._tls is None:
            self.abort(LocalProtocolError("TLS was asked for, and no certificates were given"))
            return
        self._transport.startTLS(self._tls)
        self._obey(self._handshake.tls_started())

    def _begin(self, agreement: Agreement) -> None:
        self.agreement = agreement
        self._parser = ReplyParser(structured=agreement.structured, extended=agreement.extended)
        if self._handshake.leftover:
            self.abort(RemoteProtocolError("the server answered before it was asked anything"))
            return
        self._outlet = outlet_for(self.transport, self)
        self._refusal = None
        self.ready.callback(self)

    # Requests and replies

    def _ask(
        self,
        pending: PendingRequest,
        flags: int,
        payload_length: int | None = None,
        send_payload: Callable[[Any], None] | None = None,
    ) -> Deferred[PendingRequest]:
        """Send one request; return a Deferred that fires with *pending* once it is answered.

        :param payload_length: the length in the header, if it isn't that of the effect.
        :param send_payload: is called with the outlet to send the data after the header.
        """
        parser = self._parser
        if self._refusal is not None or parser is None:
            return fail(ConnectionGone(f"the connection {self._refusal}"))
        if not self._calls:
            self.last_progress = self._clock.seconds()
        cookie = next(self._cookies)
        length = pending.length if payload_length is None else payload_length
        header = pack_request(
            self.agreement.extended, flags, pending.command, cookie, pending.offset, length
        )
        parser.expect(cookie, pending)
        answer: Deferred[PendingRequest] = Deferred()
        self._calls[cookie] = answer
        self._outlet.send(header, more=send_payload is not None)
        if send_payload is not None:
            send_payload(self._outlet)
        return answer

    def _take_replies(self, parser: ReplyParser, size: int) -> None:
        violation: RemoteProtocolError | None = None
        try:
            parser.buffer_updated(size)
        except RemoteProtocolError as error:
            violation = error
        for cookie, pending in parser.take():
            self._answer(cookie, pending)
        if violation is not None:
            self.abort(violation)
        elif self._goodbyes:
            self._say_goodbye()

    def _answer(self, cookie: int, pending: PendingRequest) -> None:
        answer = self._calls.pop(cookie, None)
        if answer is None:  # an earlier callback in this batch has called abort()
            return
        if pending.failure is None:
            answer.callback(pending)
            return
        if pending.failure.errno == ErrorCode.ESHUTDOWN and self._refusal is None:
            # proto.md, "Terminating the transmission phase": no more requests now, but DISC. The
            # user has to decide on that: a migration's destination takes DISC as the handover.
            self._refusal = "takes no more requests: the server is shutting down"
        answer.errback(pending.failure)

    def _say_goodbye(self) -> None:
        if self._goodbye_said or self._calls or self._closed:
            return
        self._goodbye_said = True
        self._outlet.send(pack_request(self.agreement.extended, 0, Command.DISC, 0, 0, 0))
        self._goodbye_left = self.writable

    # Back-pressure

    def when_writable(self) -> Deferred[None]:
        """Return a Deferred that fires once all sent data has left this process, or at once.

        It fails if the connection ends first.
        """
        if self._closed:
            return fail(self.failure or ConnectionGone("the connection was closed"))
        if self.writable:
            return succeed(None)
        waiter: Deferred[None] = Deferred()
        self._write_waiters.append(waiter)
        return waiter

    def pauseProducing(self) -> None:
        self.writable = False

    def resumeProducing(self) -> None:
        if self._closed:
            return
        self.last_progress = self._clock.seconds()
        self.writable = True
        self._goodbye_left = self._goodbye_said
        waiters, self._write_waiters = self._write_waiters, []
        for waiter in waiters:
            waiter.callback(None)

    def stopProducing(self) -> None:
        self.writable = False

    @property
    def _transport(self) -> Any:
        """The transport; its interfaces (ITCPTransport, ITLSTransport) depend on the endpoint."""
        return self.transport


def _abort(transport: Any) -> None:
    """End a connection now; or soon, on transports that can't, such as a child process's pipes."""
    getattr(transport, "abortConnection", transport.loseConnection)()

"""A client's connection: a Twisted protocol that negotiates, then passes requests to an export.

It handles the transport: the buffer for received bytes, pausing and resuming reception,
and the connection's end. It works on any transport: a stream transport fills its buffer
(``get_buffer``), any other calls ``dataReceived``, which copies into the same buffer. From
there on both are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPushProducer, ISSLTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from flexmigrate.errors import RequestFailed, in_words, to_nbd
from flexmigrate.log import failures
from flexmigrate.net.interfaces import IBufferedProtocol, IGatheringProtocol, IOutlet
from flexmigrate.net.outlet import outlet_for
from flexmigrate.net.stream import RECORDS_AT_ONCE
from flexmigrate.net.tuning import probe, tune
from flexmigrate.server.export import Export
from flexmigrate.server.holds import Holds
from flexmigrate.server.transmission import Transmission
from flexmigrate.wire.agreement import Agreement, Close, Ready, Send, StartTLS
from flexmigrate.wire.constants import ErrorCode
from flexmigrate.wire.handshake import ServerHandshake
from flexmigrate.wire.requests import Refusal

if TYPE_CHECKING:
    from flexmigrate.server.factory import NBDServerFactory

# Bytes that are received at once while negotiating, also of TLS records: data after an
# option is kept until its answer is read.
HAGGLED_AT_ONCE = 16 * 1024

# Seconds in which a peer may still read sent data when we close the connection.
LINGER_SECONDS = 5.0

# The same for a client that sent DISC, with replies still on their way: as
# long as it takes to notice that it has vanished (net.tuning).
GOODBYE_SECONDS = 60.0


DISMISS_SECONDS = 1.0
"""Seconds in which a dismissed sender may read the reason, and disconnect."""


@implementer(IBufferedProtocol, IGatheringProtocol, IPushProducer)
class NBDServerProtocol(Protocol):
    """A client's connection.

    :ivar number: the number of the connection, in logs.
    :ivar address: the client's address, for logs: host and port, or ``unix``.
    :ivar export: the export that it uses, or None while it negotiates.
    :ivar agreement: what was negotiated, or None until then.
    :ivar age: ticks of the factory's clock for which its current request has been incomplete.
    """

    factory: NBDServerFactory
    transport: Any  # what it provides beyond ITransport depends on the endpoint

    def __init__(
        self,
        factory: NBDServerFactory,
        number: int,
        handshake: ServerHandshake,
        address: str = "unix",
    ) -> None:
        self.factory = factory
        self.number = number
        self.address = address
        self.log = Logger(source=self)
        self.export: Export | None = None
        self.agreement: Agreement | None = None
        self.age = 0
        self.poller = factory.poller
        self._scratch = factory.scratch
        self._handshake = handshake
        self._transmission: Transmission | None = None
        self._outlet: Any = None  # an IOutlet, once there is a transmission
        self._left = b""  # received, but incomplete or held back
        self._behind = memoryview(b"")  # received after that, if it was too much to serve
        self._gathered: list[bytes] | None = None  # received, while more is coming
        self._has_begun = False  # its first request was accepted
        self._serving = False
        self._resumed = False  # a hold was released
        self._paused = False
        self._ending = False
        self._served_before = 0
        self._connected = False
        self._negotiation_timeout: Any = None
        self._turn: Any = None  # goes on with the negotiation
        self._unread = False  # answers to options wait until the client reads them
        self._agreed: Agreement | None = None  # once it has read them
        self._linger: Any = None
        self._dismissal: Any = None
        self.turned_away: Refusal | None = None

    def __str__(self) -> str:
        return f"client {self.log_about['client']}"

    @property
    def log_about(self) -> Mapping[str, str]:
        """The connection's number and address: see ``log.layouts.About``."""
        return {"client": f"{self.number} {self.address}"}

    # The beginning

    def connectionMade(self) -> None:
        """Send the greeting, and start the time limit for choosing an export."""
        self._connected = True
        tune(self.transport)
        self.factory.connected(self)
        self._negotiation_timeout = self.factory.reactor.callLater(
            self.factory.limits.negotiation_seconds, self._negotiation_timed_out
        )
        self.transport.registerProducer(self, True)
        self._react(self._handshake.greeting())

    def _negotiate(self, data: bytes | memoryview) -> None:
        """Take *data*, and answer as much of what was received as the client reads."""
        if self._agreed is not None:
            self._behind = memoryview(b"".join((self._behind, data)))  # requests
            return
        self._react(self._handshake.receive(data))
        if self._transmission is not None:
            self._apply_holds(self._transmission.holds)
            return
        more = self._handshake.has_more
        self._apply_holds(self._ending or self._unread or more)
        if more and not self._unread and self._turn is None:
            # Others have theirs.
            self._turn = self.factory.reactor.callLater(0, self._go_on_negotiating)

    def _go_on_negotiating(self) -> None:
        self._turn = None
        if self._connected and not self._ending and self._transmission is None:
            self._negotiate(b"")

    def _answers_are_read(self) -> None:
        """Go on with the negotiation: all answers have left."""
        self._unread = False
        if self._ending:
            return
        agreed, self._agreed = self._agreed, None
        if agreed is None:
            self._negotiate(b"")
        else:
            self._transmit(agreed)
            assert self._transmission is not None
            self._apply_holds(self._transmission.holds)

    def _negotiation_timed_out(self) -> None:
        self._negotiation_timeout = None
        self.end("the client did not choose an export in time")

    def _react(self, events: list[Any]) -> None:
        for event in events:
            if isinstance(event, Send):
                self.transport.write(event.data)
            elif isinstance(event, Ready):
                if self._unread:
                    self._agreed = event.agreement
                    self._behind = memoryview(self._handshake.leftover)
                else:
                    self._transmit(event.agreement)
            elif isinstance(event, StartTLS):
                self.factory.start_tls(self.transport)
                self._take_records(HAGGLED_AT_ONCE)
                self._react(self._handshake.tls_started())
            elif isinstance(event, Close):
                self.end(event.reason)

    def _transmit(self, agreement: Agreement) -> None:
        """Begin the transmission phase; the first requests may have come already."""
        if self._negotiation_timeout is not None:
            self._negotiation_timeout.cancel()
            self._negotiation_timeout = None
        self.agreement = agreement
        self._behind = self._behind or memoryview(self._handshake.leftover)
        self._take_records(RECORDS_AT_ONCE)
        self.transport.unregisterProducer()
        self.export = self.factory.exports.export(agreement.export.name)
        self._outlet = outlet_for(self.transport, self)
        self._transmission = self.factory.transmission(
            self.export, agreement, self._outlet, self._scratch, self
        )
        self.log.info("uses the export {export!r}", export=agreement.export.name)
        self.export.join(self)
        self._wait_for(self.factory.session.transmitting(self))
        if self._behind:
            self._serve_left()

    def _take_records(self, size: int) -> None:
        """Make a stream transport receive so many bytes of TLS records at once."""
        stream: Any = self.transport
        if IOutlet.providedBy(self.transport) and stream.TLS:
            stream.bufferSize = size

    def _wait_for(self, recorded: Deferred[None] | None) -> None:
        """Hold requests until the session's preparations are done."""
        if recorded is None:
            return
        assert self._transmission is not None
        self._transmission.hold(Holds.SESSION)
        recorded.addCallbacks(lambda _: self.release(Holds.SESSION), self._not_recorded)

    def _not_recorded(self, failure: Failure) -> None:
        failures.tell(self.log, "cannot keep to what was negotiated", failure)
        self.abort(failures.reason(failure))

    # Receiving

    def get_buffer(self) -> memoryview:
        """Return the buffer for the next bytes: the space behind those left from the last time."""
        buffer = self._scratch.received_view
        left = len(self._left)
        if left:
            buffer[:left] = self._left
        if self._transmission is not None:
            return buffer[left : self._transmission.room()]
        return buffer[left : left + HAGGLED_AT_ONCE]

    @property
    def waits(self) -> bool:
        """Whether a request of this client waits for the disk."""
        return self._transmission is not None and self._transmission.commands.under_way > 0

    def buffer_updated(self, size: int) -> None:
        """Take *size* received bytes, after those left from before."""
        if self._transmission is None:
            self._negotiate(self._scratch.received_view[:size])
        else:
            self._serve(len(self._left) + size)

    def dataReceived(self, data: bytes) -> None:
        """Copy data from any other transport into the same buffer, piece by piece."""
        if self._gathered is None:
            self._receive(data)
        else:
            self._gathered.append(data)

    def gather(self) -> None:
        """See ``net.interfaces.IGatheringProtocol``."""
        self._gathered = []

    def deliver(self) -> None:
        """See ``net.interfaces.IGatheringProtocol``."""
        gathered, self._gathered = self._gathered, None
        if gathered:
            self._receive(b"".join(gathered))

    def _receive(self, data: bytes) -> None:
        if self._ending:
            return
        if self._transmission is None:
            self._negotiate(data)
            return
        rest = memoryview(data)
        while rest and not self._transmission.holds:
            buffer = self.get_buffer()
            size = min(len(buffer), len(rest))
            buffer[:size] = rest[:size]
            rest = rest[size:]
            self.buffer_updated(size)
        if rest and not self._transmission.holds & Holds.ENDING:
            # Such a transport may deliver more data although it is paused.
            self._behind = memoryview(b"".join((self._behind, rest)))

    def _serve(self, end: int) -> None:
        """Let the transmission serve the buffer's first *end* bytes, and keep the rest."""
        transmission = self._transmission
        assert transmission is not None
        assert self.export is not None
        self.export.turns += 1
        at = 0
        self._serving = self._scratch.is_taken = self._resumed = True
        try:
            if not self._has_begun and end and not transmission.holds:
                self._has_begun = True
                self.export.begin(self)
            # What is behind a hold that came and went meanwhile is offered again at once: nobody
            # else would do so before the client sends more.
            while self._resumed:
                self._resumed = False
                at = transmission.serve(at, end)
            self._left = bytes(self._scratch.received_view[at:end]) if at < end else b""
        finally:
            self._serving = self._scratch.is_taken = False
        if bool(transmission.holds) != self._paused and self._connected:
            self._apply_holds(transmission.holds)

    def _serve_left(self) -> None:
        """Serve held back data, buffer by buffer: a plain transport may leave more."""
        transmission = self._transmission
        assert transmission is not None
        buffer = self._scratch.received_view
        while True:
            left, behind = len(self._left), self._behind
            buffer[:left] = self._left
            more = min(len(buffer) - left, len(behind))
            buffer[left : left + more] = behind[:more]
            self._behind = behind[more:]
            self._serve(left + more)
            progress = len(self._left) < left + more
            if not self._behind or transmission.holds or not progress:
                return

    # Holding: the transmission decides, the transport does it

    def hold(self, reason: int) -> None:
        """See ``holds.Holdable``; while it negotiates, there is no request to be held."""
        if self._transmission is not None:
            self._transmission.hold(reason)

    def release(self, reason: int) -> None:
        """See ``holds.Holdable``."""
        if self._transmission is not None:
            self._transmission.release(reason)

    def pause(self) -> None:
        """See ``transmission.TransmissionHost``; while requests are served, ``_serve`` sees to it
        itself.
        """
        if not self._serving:
            self._apply_holds(1)

    def resume(self) -> None:
        """See ``transmission.TransmissionHost``; while requests are served, ``_serve`` sees to it
        itself.
        """
        self._resumed = True
        if self._serving or not self._connected:
            return
        if self._scratch.is_taken:
            # Another connection's request has brought this about, and what came behind it stands in
            # the buffer that we need.
            self.factory.reactor.callLater(0, self.resume)
        else:
            self._serve_left()
            transmission = self._transmission
            if transmission is not None and not transmission.holds:
                self._apply_holds(0)

    def turn_over(self) -> None:
        """See ``transmission.TransmissionHost``."""
        self.factory.reactor.callLater(0, self.release, Holds.TURN)

    def _apply_holds(self, holds: int) -> None:
        # TLS ends when each side has told the other, and so has to read to the end.
        hold = bool(holds) and not (self._ending and ISSLTransport.providedBy(self.transport))
        if self._connected and hold != self._paused:
            self._paused = hold
            if hold:
                self.transport.pauseProducing()
            else:
                self.transport.resumeProducing()

    def pauseProducing(self) -> None:
        """Stop receiving: the client doesn't read its replies, so its requests aren't read,
        either.
        """
        if self._transmission is not None:
            self._transmission.hold(Holds.OUTPUT)
        else:
            self._unread = True

    def resumeProducing(self) -> None:
        """Go on receiving: the transport can send again."""
        if self._transmission is not None:
            self._transmission.release(Holds.OUTPUT)
        else:
            self._answers_are_read()

    def stopProducing(self) -> None:
        """Do nothing: the transport is gone, and ``connectionLost`` follows."""

    @property
    def backlog(self) -> int:
        """See ``export.Gated``."""
        return len(self._left) + len(self._behind)

    def has_hung_up(self, most: int) -> bool:
        """See ``export.Gated``."""
        read_ahead = getattr(self.transport, "read_ahead", None)
        if read_ahead is None or self._transmission is None or self._ending:
            return False
        self._transmission.hold(Holds.AHEAD)
        self.gather()
        try:
            return read_ahead(most) is None
        finally:
            self.deliver()
            self._transmission.release(Holds.AHEAD)

    def abandon(self) -> None:
        """See ``export.Gated``: neither what was received, nor what stands behind it in the kernel,
        is looked at any more.
        """
        assert self._transmission is not None
        self._drop_backlog()
        self._transmission.gone()
        if not self._ending:
            self.abort("its client has hung up, and has another connection")

    def _drop_backlog(self) -> None:
        self._left = b""
        self._behind = memoryview(b"")

    def private(
        self, command: int, offset: int, length: int, payload: bytes
    ) -> Deferred[bytes] | None:
        """See ``transmission.TransmissionHost``: the session carries the command out."""
        if self.turned_away is not None:
            return fail(RequestFailed(int(self.turned_away.code), self.turned_away.text))
        return self.factory.session.private(self, command, offset, length, payload)

    def seal(self) -> bool:
        """Refuse all further changes; return False, and do nothing, where a request is under way,
        since what it does to the export isn't over.
        """
        transmission = self._transmission
        if transmission is None or transmission.commands.under_way:
            return False
        transmission.seal()
        return True

    def probe(self) -> None:
        """Check soon whether the client is still there."""
        probe(self.transport)

    def fail_changes(self, error: OSError) -> None:
        """Answer all further changes with *error*, and carry none of them out."""
        if self._transmission is not None:
            refusal = Refusal(ErrorCode(to_nbd(error)), in_words(error))
            self._transmission.fail_changes(refusal)

    def turn_away(self, code: ErrorCode, text: str) -> None:
        """Answer with this error whatever the client asks for that would change something, or is
        the session's affair: it is to read why nothing more is done for it.
        """
        self.turned_away = Refusal(code, text)
        if self._transmission is not None:
            self._transmission.fail_changes(self.turned_away)

    def dismiss(self, reason: str) -> None:
        """Turn the client away since this server ends its work for it, and close the connection
        once it has had the time to read that, and to leave.
        """
        if not self._connected or self._ending or self._dismissal is not None:
            return
        self.log.info("refusing all requests: {reason}", reason=reason)
        self.turn_away(ErrorCode.ESHUTDOWN, reason)
        self._dismissal = self.factory.reactor.callLater(DISMISS_SECONDS, self._dismissed, reason)

    def _dismissed(self, reason: str) -> None:
        self._dismissal = None
        self.end(reason)

    @property
    def requests_taken(self) -> int:
        """The number of requests that this client has made."""
        return self._transmission.served if self._transmission is not None else 0

    def changed(self, length: int) -> None:
        """Charge the client for a change: if a migration throttles writers, it has to wait."""
        assert self.export is not None
        if self.export.throttle is not None and self._connected:
            self.export.throttle.charge(self)

    def tick(self) -> int:
        """Return for how many ticks its current request has been incomplete through the client's
        doing.

        It may send slowly, or not read its replies (and then isn't read from). All other reasons
        to hold it are ours: a disk that takes its time, say.
        """
        transmission = self._transmission
        if transmission is None:
            return 0
        incomplete = bool(self.backlog) or transmission.in_payload or bool(transmission.holds)
        ours = transmission.holds & ~Holds.OUTPUT
        if not incomplete or ours or transmission.served != self._served_before:
            self._served_before = transmission.served
            self.age = 0
        else:
            self.age += 1
        return self.age

    # The end

    def disconnect_requested(self) -> None:
        """Handle DISC, once all requests are done: the session decides what it
        means.
        """
        settled: Deferred[bool] = self.factory.session.disconnecting(self)
        settled.addCallback(self._disconnect)
        settled.addErrback(self._settling_failed)

    def _disconnect(self, accepted: bool) -> None:
        if accepted:
            self.log.info("disconnected")
            self._close(GOODBYE_SECONDS)
        else:
            # A reset: a peer that waits for the result would take a plain close for consent.
            self.abort("its DISC is not accepted")

    def _settling_failed(self, failure: Failure) -> None:
        failures.tell(self.log, "DISC could not be handled", failure)
        self.abort("its DISC could not be handled")

    def broken(self, reason: str) -> None:
        """See ``transmission.TransmissionHost``."""
        self.end(reason)

    def end(self, reason: str) -> None:
        """Close the connection, once what was sent has left, for a *reason* that the log tells; one
        that is being dismissed has its time.
        """
        if self._dismissal is not None:
            return
        self.log.info("closing the connection: {reason}", reason=reason)
        self._close(LINGER_SECONDS)

    def _close(self, linger: float) -> None:
        """Close the connection once what was sent has left, or after *linger* seconds."""
        if self._stop():
            self._linger = self.factory.reactor.callLater(
                linger, self.abort, "the client doesn't read its replies"
            )
            if self._outlet is not None:
                self._outlet.finish()
            else:
                self.transport.unregisterProducer()  # with one, it would not be closed
                self.transport.loseConnection()

    def abort(self, reason: str) -> None:
        """Abort the connection."""
        self.log.info("aborting the connection: {reason}", reason=reason)
        self._stop()
        self.transport.abortConnection()

    def _stop(self) -> bool:
        """Stop receiving; return whether the connection is open and was not ending before."""
        if not self._connected or self._ending:
            return False
        self._ending = True
        if self._transmission is not None:
            self._transmission.hold(Holds.ENDING)
        # Now: a transport that was told to close can't be told to pause.
        self._apply_holds(Holds.ENDING)
        return True

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Clean up; only calls that are with the disk go on."""
        self._connected = False
        self._drop_backlog()
        for timer in (self._negotiation_timeout, self._turn, self._linger, self._dismissal):
            if timer is not None and timer.active():
                timer.cancel()
        if self._transmission is not None:
            self._transmission.gone()
        if self.export is not None:
            self.export.leave(self)
        if not self._ending and not reason.check(ConnectionDone):
            # Of one that was ending, the log says why, and a reset behind a DISC means nothing.
            self.log.info("lost: {error}", error=reason.value)
        self.factory.lost(self)

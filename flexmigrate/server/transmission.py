"""Requests in, replies out: the transmission phase of one connection, without its transport.

``serve`` is the path of every request. It walks all whole requests that one wake-up brought,
answers those whose data is in the page cache at once, into one buffer that leaves with one send,
and hands every other to ``Commands``.

The order of events that must never change, for a write: it is done; it is marked with the
export's observer; only then may its reply be sent. A reader of this file should be able to see
that.

Not here: what a request must satisfy (``wire.requests``), how a reply looks (``wire.replies``),
what may wait for the disk (``server.commands``), sockets (``server.connection``).
"""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from flexmigrate.image.pace import SLOW, WRITE
from flexmigrate.server.commands import SMALL_READ, Commands
from flexmigrate.server.export import Export
from flexmigrate.server.holds import Holds
from flexmigrate.server.payloads import (
    MOST_AT_ONCE,
    MOST_OF_NEW,
    Drained,
    LongWrite,
    Message,
    Payload,
    Pieces,
    StatusFilter,
)
from flexmigrate.wire.agreement import Agreement
from flexmigrate.wire.constants import (
    MAX_REQUEST,
    Command,
    CommandFlag,
    ErrorCode,
    TransmissionFlag,
)
from flexmigrate.wire.handover import (
    MAX_PRIVATE_PAYLOAD,
    SESSION_OPTION,
    command_name,
    has_payload,
)
from flexmigrate.wire.replies import ReplyStyle, reply_style
from flexmigrate.wire.requests import (
    MAX_DRAIN,
    MAX_STATUS_PAYLOAD,
    RULES,
    Refusal,
    Terms,
    payload_length,
    refuse,
)

_READ = int(Command.READ)
_WRITE = int(Command.WRITE)
_FUA = int(CommandFlag.FUA)


REQUESTS_A_TURN = 256
"""So many requests of one connection are taken before others have their turn, whose requests would
have to wait: what is done at once for each takes 2 to 4 us. A client that has more under way is
served in several turns, which costs it 20 us for each.
"""

COSTLY_A_TURN = 16
"""Likewise, of requests that take 20 to 60 us: those that are refused, those that fail, and those
that are handed to a thread. Of BLOCK_STATUS, which takes longer still, there is one."""

COST_OF_REPLIES = 4
"""What counts as so many of these: to fill and to send ``REPLIES`` bytes."""

_TURN = range(REQUESTS_A_TURN)
_BLOCK_STATUS = int(Command.BLOCK_STATUS)

REPLIES = 256 * 1024
"""Bytes of replies that are gathered before they are sent, though more requests are there."""


class Scratch:
    """The buffers in which connections receive and answer; one connection uses them at a time.

    :ivar is_taken: one does, whose requests stand there.

    :param size: of the receive buffer, in bytes: a piece of a long write, and the header of the
        request behind it. That is as much as a core's second-level cache holds; and what is done
        for each piece costs us as much as copying 64 KiB. (1 MiB writes with 128, 256, 512 and 1024
        KiB: 0.80, 1, 1.10 and 1.10 times as fast.)
    """

    def __init__(self, size: int = MOST_AT_ONCE + 64) -> None:
        self.is_taken = False
        self.received = bytearray(size)
        self.received_view = memoryview(self.received)
        self.replies = bytearray(REPLIES + SMALL_READ)
        self.replies_view = memoryview(self.replies)


class TransmissionHost(Protocol):
    """The parts of a connection that its transmission needs."""

    def pause(self) -> None:
        """No further request is taken."""

    def resume(self) -> None:
        """Requests are taken again: offer what was left, and receive."""

    def turn_over(self) -> None:
        """Release ``Holds.TURN`` once other connections have had their turn."""

    def changed(self, length: int) -> None:
        """The client changed so many bytes: the throttle's measure."""

    def disconnect_requested(self) -> None:
        """The client said DISC, and every request before it is answered."""

    def private(
        self, command: int, offset: int, length: int, payload: bytes
    ) -> Deferred[bytes] | None:
        """Carry out a command that isn't the specification's, or return None: there is none."""

    def broken(self, reason: str) -> None:
        """The client broke the protocol so that its stream can't be understood any more."""


class Transmission:
    """One connection's requests on one export.

    :ivar holds: the Holds that are in force; requests are taken only while it is 0.
    :ivar reads: short reads that were answered at once.
    :ivar bytes_read: what these had.
    :ivar writes: whole writes that were carried out at once, or failed at once.
    :ivar bytes_written: what these had; those that failed don't count.
    """

    def __init__(
        self,
        export: Export,
        agreement: Agreement,
        outlet: Any,
        scratch: Scratch,
        host: TransmissionHost,
    ) -> None:
        self._export = export
        self._outlet = outlet
        self._host = host
        self._fast = export.storage.fast
        self._style = self._chosen_style(agreement)
        # What serve needs at each call, in two pieces.
        self._buffers = (
            *(scratch.received, scratch.received_view, scratch.replies, scratch.replies_view),
            len(scratch.replies) - SMALL_READ - 64,
        )
        self._layout = self._laid_out(self._style)
        self._terms = Terms(
            size=export.size,
            flags=agreement.export.flags,
            extended=agreement.extended,
            context_ids=tuple(number for number, _ in agreement.contexts),
        )
        self._size = export.size
        self._writable = not self._terms.flags & TransmissionFlag.READ_ONLY
        self.commands = self._new_commands(dict(agreement.contexts))
        self._in_session = SESSION_OPTION in dict(agreement.private)
        self._payload: Payload | None = None
        self._pieces = Pieces(self._fast)
        self._disconnecting = False
        self._broken: str | None = None
        self._failing: Refusal | None = None
        self.holds = 0
        self.reads = self.bytes_read = 0
        self.writes = self.bytes_written = 0
        self._others = 0

    # What a transmission of another kind chooses otherwise

    def _chosen_style(self, agreement: Agreement) -> ReplyStyle:
        return reply_style(agreement.structured, agreement.extended)

    def _new_commands(self, context_names: dict[int, str]) -> Commands:
        return Commands(
            self._export, self._style, self._terms, context_names, self._outlet, self, self._host
        )

    @staticmethod
    def _laid_out(style: ReplyStyle) -> tuple[Any, int, int, int, int, Any, Any, bool]:
        """Return how requests and the commonest replies look, and what flags a plain write has."""
        return (
            *(style.request.unpack_from, style.request.size, style.request_magic),
            int(CommandFlag.PAYLOAD_LEN) if style.extended else 0,
            *(style.data_prefix, style.pack_read, style.ok, style.fragments),
        )

    @property
    def served(self) -> int:
        """Requests taken so far, a measure of progress."""
        return self.reads + self.writes + self._others

    @property
    def in_payload(self) -> bool:
        """Whether a request's payload has arrived in part."""
        return self._payload is not None

    def room(self) -> int:
        """Return how many bytes there should be at most, those that are left included, when they
        are offered next.

        Where a long payload is under way, these are a whole piece of it, or its rest and the header
        of the next request: what comes after that then begins where the next payload does, and the
        pieces need not be cut where a buffer happens to end.
        """
        payload = self._payload
        if payload is None or not payload.is_long:
            return len(self._buffers[0])
        if payload.remaining > MOST_AT_ONCE:
            return MOST_AT_ONCE
        return payload.remaining + self._style.request.size

    # The path of a request

    # One function, with its many cases, because each call would cost a request a tenth of its time,
    # and because the order of events is to be seen in one place.
    def serve(self, at: int, end: int) -> int:  # noqa: C901
        """Carry out the requests in ``scratch.received[at:end]``; return where the first
        incomplete one begins.

        Stops early where something holds the connection, or where others are to have their turn;
        what is left is offered again later.
        """
        received, received_view, replies, replies_view, full = self._buffers
        unpack, header, magic, plain_write, prefix, pack_read, ok, fragments = self._layout
        size, fast, commands = self._size, self._fast, self.commands
        writable = self._writable
        observer = self._export.observer
        filled = 0  # bytes of replies that wait to be sent
        reads = bytes_read = writes = bytes_written = 0  # of this batch; see the class
        changed = 0  # bytes of pieces of long writes in this batch, and of its writes in the end
        began = 0.0  # when the first write of this batch did
        costly = COSTLY_A_TURN  # so many more of those that take long

        for _ in _TURN:
            if self.holds:
                break
            payload = self._payload
            if payload is not None:
                portion = payload.portion(end - at)
                if portion:
                    changed += payload.take(received_view[at : at + portion])
                    at += portion
                if not payload.remaining and not self.holds & Holds.PIECE:
                    self._payload = None
                    self._others += 1
                    payload.complete()
                elif not portion or at == end:
                    break
                continue
            body = at + header
            if body > end:
                break
            seen, flags, command, cookie, offset, length = unpack(received, at)
            if seen != magic:
                self._outlet.send(replies_view[:filled])
                filled = 0
                self._bad_magic(seen, cookie)
                break
            if filled > full:
                self._outlet.send(replies_view[:filled])
                filled = 0
                costly -= COST_OF_REPLIES
                if costly <= 0:
                    self._end_turn()
                continue

            if (
                command == _READ
                and not flags
                and offset + length <= size
                and 0 < length <= SMALL_READ
            ):
                data = filled + prefix
                piece = replies_view[data : data + length]
                at = body
                if not fast.try_read_into(piece, offset):
                    commands.read_cold(cookie, offset, length)
                    self._others += 1
                    continue
                if fragments and fast.is_hole(piece, offset):
                    commands.reply_hole(cookie, offset, length)
                    costly -= 1
                    if costly <= 0:
                        self._end_turn()
                else:
                    pack_read(replies, filled, cookie, offset, length)
                    filled = data + length
                reads += 1
                bytes_read += length

            elif (
                command == _WRITE
                and flags == plain_write
                and body + length <= end
                and offset + length <= size
                and 0 < length <= MOST_OF_NEW
                and writable
            ):
                piece = received_view[body : body + length]
                at = body + length
                if fast.may_block_write(offset, length):
                    commands.write_later(cookie, offset, bytes(piece))
                    self._others += 1
                    costly -= 1
                    if costly <= 0:
                        self._end_turn()
                    continue
                if not writes:
                    began = perf_counter()
                writes += 1
                try:
                    fast.write(piece, offset)
                except OSError as error:
                    if observer is not None:
                        observer.failed(offset, length, error)
                    commands.failed(cookie, offset, length, error)
                    costly -= 1
                    if costly <= 0:
                        self._end_turn()
                    continue
                if observer is not None:
                    observer.mark(offset, length)
                bytes_written += length
                reply = ok(cookie, offset)
                replies[filled : filled + len(reply)] = reply
                filled += len(reply)

            else:
                at = body
                self._serve_other(command, flags, cookie, offset, length)
                writable = self._writable  # or sealed by that
                costly -= 1
                if costly <= 0 or command == _BLOCK_STATUS:
                    self._end_turn()
        else:
            self._end_turn()

        if filled:
            self._outlet.send(replies_view[:filled])
        if commands.cold:
            commands.begin_reads()
        if reads:
            self.reads += reads
            self.bytes_read += bytes_read
        if writes:
            self.writes += writes
            self.bytes_written += bytes_written
            changed += bytes_written
            took = perf_counter() - began
            if took > SLOW + writes * WRITE:
                fast.pace.turn_was_slow(took)
        if changed:
            self._host.changed(changed)
        if self.holds & Holds.ENDING:
            self._end_if_due()
        return at

    def _end_turn(self) -> None:
        """Let other connections have theirs before the next request is taken."""
        if not self.holds:
            self.holds = Holds.TURN
            self._host.turn_over()

    def _serve_other(self, command: int, flags: int, cookie: int, offset: int, length: int) -> None:
        """Judge and begin a request that isn't a small read or a whole write."""
        plain_write = self._layout[3]
        fits = 0 < length <= MAX_REQUEST and offset + length <= self._size
        if command == _WRITE and flags == plain_write and fits and self._writable:
            # The commonest, which needs no further judge. (Behind a long write's data, no code is
            # in the processor's caches: to judge it took as long as to copy 100 KiB.)
            self._expect_write(cookie, offset, length)
            return
        if command == Command.DISC:
            self._disconnect(flags, offset, length)
            return
        if command not in RULES and not flags:
            if self._in_session and length and has_payload(command):
                self._expect_message(command, cookie, offset, length)
                return
            answer = self._host.private(command, offset, length, b"")
            if answer is not None:
                self._others += 1
                self.commands.begin_private(cookie, offset, answer)
                return
        payload = payload_length(self._terms.extended, flags, command, length)
        filtered = command == Command.BLOCK_STATUS and payload
        refusal = self._refusal(command, flags, offset, 1 if filtered else length)
        if refusal is None and filtered and payload > MAX_STATUS_PAYLOAD:
            refusal = Refusal(ErrorCode.EINVAL, f"BLOCK_STATUS with {payload} bytes of payload")
        if refusal is not None:
            self._refuse(refusal, command, cookie, offset, payload)
        elif filtered:
            self._payload = StatusFilter(self.commands, cookie, offset, payload, flags)
        elif command == Command.WRITE:
            self._expect_write(cookie, offset, payload, durable=bool(flags & _FUA))
        else:
            self._others += 1
            self.commands.begin(command, flags, cookie, offset, length)

    def _refusal(self, command: int, flags: int, offset: int, length: int) -> Refusal | None:
        refusal = refuse(command, flags, offset, length, self._terms)
        if refusal is None and self._failing is not None and RULES[command].changes:
            return self._failing
        return refusal

    def _expect_write(
        self, cookie: int, offset: int, length: int, *, durable: bool = False
    ) -> None:
        most = self._pieces.most(offset, length)
        self._payload = LongWrite(self.commands, cookie, offset, length, most, durable=durable)

    def _expect_message(self, command: int, cookie: int, offset: int, length: int) -> None:
        """Begin a private command once its payload of *length* bytes is here."""
        if length > MAX_PRIVATE_PAYLOAD:
            text = f"{command_name(command)} with {length} bytes of payload"
            self._refuse(Refusal(ErrorCode.EINVAL, text), command, cookie, offset, length)
            return

        def begin(payload: bytes) -> None:
            answer = self._host.private(command, offset, 0, payload)
            if answer is None:
                text = f"{command_name(command)} has no place here"
                self.commands.refuse(cookie, offset, Refusal(ErrorCode.EINVAL, text))
            else:
                self.commands.begin_private(cookie, offset, answer)

        self._payload = Message(self.commands, cookie, offset, length, begin)

    def _refuse(
        self, refusal: Refusal, command: int, cookie: int, offset: int, payload: int
    ) -> None:
        rule = RULES.get(command)
        if rule is not None and rule.changes and self._export.observer is not None:
            self._export.observer.refused(refusal.text)
        if payload > MAX_DRAIN:
            self._break(f"{refusal.text}; its payload of {payload} bytes is not worth reading")
        else:
            self._payload = Drained(self.commands, cookie, offset, payload, refusal)

    # Holding and the end

    def hold(self, reason: int) -> None:
        """Take no further request for *reason*, one of Holds."""
        if not self.holds:
            self._host.pause()
        self.holds |= reason

    def release(self, reason: int) -> None:
        """*reason* is gone; if it was the last, go on."""
        if self.holds & reason:
            self.holds &= ~reason
            if not self.holds:
                self._host.resume()

    def seal(self) -> None:
        """Refuse all further changes, as if the export were read-only."""
        self._terms = replace(self._terms, flags=self._terms.flags | TransmissionFlag.READ_ONLY)
        self._writable = False

    def fail_changes(self, refusal: Refusal) -> None:
        """Answer all further changes with *refusal*: they would be of no use."""
        self._failing = refusal
        self._writable = False

    def changed(self, length: int) -> None:
        """The client changed so many bytes by something that this thread didn't do."""
        self._host.changed(length)

    def idle(self) -> None:
        """No request of this connection is with the thread pool any more."""
        self._end_if_due()

    def gone(self) -> None:
        """The connection is lost: nothing more is sent; nothing more is begun, unless the client
        said DISC behind it; what is under way ends by itself. Twice is allowed.
        """
        is_abandoned, self._disconnecting = not self._disconnecting, False
        self._payload = None
        self.holds |= Holds.ENDING
        self.commands.gone(is_abandoned=is_abandoned)

    def _bad_magic(self, seen: int, cookie: int) -> None:
        text = f"bad magic {seen:#010x} where a request should begin"
        self.commands.refuse(cookie, 0, Refusal(ErrorCode.EINVAL, text))
        self._break(text)

    def _break(self, reason: str) -> None:
        self.hold(Holds.ENDING)
        self._broken = reason

    def _disconnect(self, flags: int, offset: int, length: int) -> None:
        if flags or offset or length:
            # Only a proper DISC means what it says: at a destination it gives away an image.
            self._break("DISC with flags, offset or length")
            return
        self.hold(Holds.ENDING)
        self._disconnecting = True

    def _end_if_due(self) -> None:
        """Tell the host of the end, once every request before it is answered: a transport may
        drop what comes behind its ``loseConnection``.
        """
        if self._broken is not None:
            reason, self._broken = self._broken, None
            self._host.broken(reason)
        elif self._disconnecting and not self.commands.under_way:
            self._disconnecting = False
            self._host.disconnect_requested()

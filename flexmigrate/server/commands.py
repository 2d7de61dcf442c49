"""The commands that may wait for the disk, or are rare: carried out off the reactor's
thread, then answered.

Each begins with ``begin``, and is answered when it ends, in any order. A change is
marked with the export's observer after it is done, or failed in part, and before it is answered.
Requests were checked before they come here.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from time import perf_counter
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from flexmigrate.errors import RequestFailed, to_nbd
from flexmigrate.image.extents import Extent
from flexmigrate.image.kernel.ring_reader import Wanted
from flexmigrate.image.pace import SLOW
from flexmigrate.image.storage import NotBegun, Outcome, Sendable
from flexmigrate.server import contexts
from flexmigrate.server.export import DIRTY_CONTEXT, Export
from flexmigrate.server.holds import Holdable, Holds
from flexmigrate.wire.constants import (
    BASE_ALLOCATION,
    MAX_PAYLOAD,
    Command,
    CommandFlag,
    ErrorCode,
    name_of,
)
from flexmigrate.wire.replies import ReplyStyle
from flexmigrate.wire.requests import Refusal, Terms, refuse

# Reads up to this size are copied into a batch of replies and leave with it in one send; longer
# ones leave by sendfile, which costs two more system calls but copies nothing.
SMALL_READ = 64 * 1024

# Requests of one connection that may be with the thread pool, or wait for it, at once. A client may
# have more under way; the rest waits in its socket.
MAX_UNDER_WAY = 64

# Bytes of this process's memory that long reads of one connection may hold before no further
# request is taken: as much as the longest request that we advertise. Such reads are those of
# devices; a file is sent from the page cache. A request that was taken with nearly all
# of this in use may hold MAX_REQUEST bytes more.
MOST_HELD = MAX_PAYLOAD

_FUA = int(CommandFlag.FUA)


class Requests(Holdable, Protocol):
    """The transmission whose commands these are."""

    def changed(self, length: int) -> None:
        """Note that a change of so many bytes is done."""

    def idle(self) -> None:
        """Note that no request is in progress any more."""


class FailingWrite(Protocol):
    """A write whose payload arrives in pieces."""

    def fail(self, error: OSError) -> None:
        """Note that a piece could not be written."""


class Commands:
    """The requests of one connection that are not answered yet.

    :param about: the connection, for logs.
    :ivar under_way: the number of requests that are with the thread pool.
    :ivar cold: short reads that have to wait for the disk, for ``begin_reads``.
    """

    def __init__(
        self,
        export: Export,
        style: ReplyStyle,
        terms: Terms,
        context_names: dict[int, str],
        outlet: Any,
        requests: Requests,
        about: object = None,
    ) -> None:
        self._export = export
        self._storage = export.storage
        self._fast = export.storage.fast
        self._style = style
        self._terms = terms
        self._contexts = context_names
        self._outlet = outlet
        self._requests = requests
        self._log = Logger(source=about)
        self._gone = False
        self._changing = 0
        self.cold: list[Wanted] = []
        self._held = 0
        self.under_way = 0

    def begin(self, command: int, flags: int, cookie: int, offset: int, length: int) -> None:
        """Begin a request that was accepted and has no payload."""
        if not length and command != Command.FLUSH:
            self._reply_empty(command, cookie, offset)
        else:
            self._BEGIN[command](self, flags, cookie, offset, length)

    def gone(self, *, is_abandoned: bool) -> None:
        """The connection is lost: nothing more is sent; what is under way ends by itself. Twice is
        allowed.

        :param is_abandoned: so that what waits for a thread will not be done. Else the client had
            said DISC, behind all of it.
        """
        if self._gone:
            return
        self._gone = True
        self._export.orphaned(self, self._changing)
        if is_abandoned:
            self._storage.forget(self)

    # Payloads that arrive in pieces

    def write_piece(self, offset: int, piece: memoryview, write: FailingWrite) -> int:
        """Write a piece of a long write, on this thread unless that might wait for the disk; return
        how many bytes it has changed by now.
        """
        length = len(piece)
        if self._fast.may_block_write(offset, length):
            self._requests.hold(Holds.PIECE)
            done = self._begun(self._storage.write(bytes(piece), offset, self))
            done.addCallbacks(
                lambda _: self._changed(offset, length),
                lambda failure: self._piece_failed(offset, length, failure, write),
            )
            self._track_change(done)
            done.addBoth(self._piece_ended)
            self._ended(done)
            return 0
        began = perf_counter()
        try:
            self._fast.write(piece, offset)
        except OSError as error:
            self._failed_change(offset, length, error)
            write.fail(error)
            return 0
        took = perf_counter() - began
        if took > SLOW:
            self._fast.pace.turn_was_slow(took)
        if self._export.observer is not None:
            self._export.observer.mark(offset, length)
        return length

    def _piece_failed(
        self, offset: int, length: int, failure: Failure, write: FailingWrite
    ) -> None:
        self._failed_change(offset, length, failure.value)
        write.fail(self._as_os_error(failure))

    def _piece_ended(self, result: Any) -> Any:
        self._requests.release(Holds.PIECE)
        return result

    def written(self, cookie: int, offset: int, durable: bool) -> None:
        """All pieces of a write are done and marked: answer it, after a flush where FUA asked for
        one.
        """
        if not durable:
            self._send(self._style.ok(cookie, offset))
            return
        self._later(cookie, offset, 0, self._sync(), self._reply_ok)

    # Reads

    def _read(self, flags: int, cookie: int, offset: int, length: int) -> None:
        whole = bool(flags & CommandFlag.DF) or not self._style.fragments
        try:
            found = self._storage.ready(offset, length, whole=whole)
        except OSError as error:
            self.failed(cookie, offset, length, error)
            return
        if found is not None:
            self._send_read(cookie, offset, found)
            return
        brought = self._storage.bring_in(offset, length, whole=whole, asker=self)
        if self._storage.holds_reads:
            self._hold_memory(length)
        self._later(cookie, offset, length, brought, self._send_read)
        if self._storage.holds_reads:
            # Once it was answered: what the client doesn't take then holds the connection itself.
            brought.addBoth(self._free_memory, length)

    def _hold_memory(self, length: int) -> None:
        self._held += length
        if self._held >= MOST_HELD:
            self._requests.hold(Holds.MEMORY)

    def _free_memory(self, result: Any, length: int) -> Any:
        self._held -= length
        if self._held < MOST_HELD:
            self._requests.release(Holds.MEMORY)
        return result

    def _send_read(self, cookie: int, offset: int, found: Sendable) -> None:
        style, outlet = self._style, self._outlet
        source, pieces = found
        if self._gone:
            return
        for piece in pieces:
            if piece.data:
                opening = style.read_opening(cookie, offset, piece.offset, piece.length)
                outlet.send(opening, more=True)
                outlet.send_file(source, piece.offset, piece.length)
            else:
                outlet.send(style.hole(cookie, offset, piece.offset, piece.length), more=True)
        closing = style.read_closing(cookie, offset)
        if closing:
            outlet.send(closing)

    def read_cold(self, cookie: int, offset: int, length: int) -> None:
        """Queue a short read that has to wait for the disk; ``begin_reads``
        begins it.
        """
        cold = self.cold
        cold.append((cookie, offset, length))
        if self.under_way + len(cold) >= MAX_UNDER_WAY:
            self._requests.hold(Holds.UNDER_WAY)

    def begin_reads(self) -> None:
        """Begin all queued short reads at once; there must be some."""
        cold, self.cold = self.cold, []
        self._more(len(cold))
        whole = not self._style.fragments
        self._storage.read_short(cold, self._answer_reads, whole=whole, asker=self)

    def _answer_reads(self, outcomes: list[tuple[Wanted, Outcome]]) -> None:
        replies: list[bytes | bytearray] = []
        prefix, pack_read = self._style.data_prefix, self._style.pack_read
        try:
            for (cookie, offset, length), outcome in outcomes:
                if isinstance(outcome, bytes):
                    head = bytearray(prefix)
                    pack_read(head, 0, cookie, offset, length)
                    replies += (head, outcome)
                elif outcome is None:
                    replies.append(self._hole(cookie, offset, length))
                else:
                    self.failed(cookie, offset, length, outcome)
            if replies:
                self._send(b"".join(replies))
        finally:
            self._fewer(len(outcomes))

    def reply_hole(self, cookie: int, offset: int, length: int) -> None:
        """Answer a read that lies in a hole."""
        self._send(self._hole(cookie, offset, length))

    def _hole(self, cookie: int, offset: int, length: int) -> bytes:
        style = self._style
        return style.hole(cookie, offset, offset, length) + style.read_closing(cookie, offset)

    def _reply_empty(self, command: int, cookie: int, offset: int) -> None:
        """Answer a request of no bytes, which the specification leaves open: it succeeds."""
        if command == Command.READ:
            self._send(self._style.read_closing(cookie, offset) or self._style.ok(cookie, offset))
        else:
            self._send(self._style.ok(cookie, offset))

    # Changes that may wait for the disk

    def write_later(self, cookie: int, offset: int, data: bytes) -> None:
        """Carry out a whole write that may have to wait for the disk."""
        self._change(cookie, offset, len(data), self._storage.write(data, offset, self), 0)

    def _trim(self, flags: int, cookie: int, offset: int, length: int) -> None:
        self._change(cookie, offset, length, self._storage.trim(offset, length, self), flags)

    def _write_zeroes(self, flags: int, cookie: int, offset: int, length: int) -> None:
        zeroed = self._storage.zero(
            offset,
            length,
            may_punch=not flags & CommandFlag.NO_HOLE,
            fast_only=bool(flags & CommandFlag.FAST_ZERO),
            asker=self,
        )
        self._change(cookie, offset, length, zeroed, flags)

    def _change(
        self, cookie: int, offset: int, length: int, done: Deferred[None], flags: int
    ) -> None:
        """Mark a change once it is done, make it durable where FUA asks for it, then answer."""

        def mark(_: None) -> None:
            self._changed(offset, length)

        def spoil(failure: Failure) -> Failure:
            self._failed_change(offset, length, failure.value)
            return failure

        done.addCallbacks(mark, spoil)
        self._track_change(done)
        if flags & _FUA:
            done.addCallback(lambda _: self._sync())
        self._later(cookie, offset, length, done, self._reply_ok)

    def _track_change(self, done: Deferred[Any]) -> None:
        """Know how many changes are under way, and tell the export of those that outlive us."""
        self._changing += 1

        def ended(result: Any) -> Any:
            self._changing -= 1
            if self._gone:
                self._export.orphan_ended(self)
            return result

        done.addBoth(ended)

    def _changed(self, offset: int, length: int) -> None:
        if self._export.observer is not None:
            self._export.observer.mark(offset, length)
        self._requests.changed(length)

    def _failed_change(self, offset: int, length: int, error: BaseException | None) -> None:
        # ENOTSUP is a fast zero that wouldn't be fast: nothing happened.
        nothing = isinstance(error, NotBegun) or getattr(error, "errno", None) == errno.ENOTSUP
        if self._export.observer is not None and error is not None and not nothing:
            self._export.observer.failed(offset, length, error)

    # The other commands

    def _flush(self, flags: int, cookie: int, offset: int, length: int) -> None:
        self._later(cookie, offset, length, self._sync(), self._reply_ok)

    def _sync(self) -> Deferred[None]:
        """Flush, and tell the observer if that fails: it is unknown which change was lost."""

        def spoil(failure: Failure) -> Failure:
            if self._export.observer is not None and failure.value is not None:
                self._export.observer.flush_failed(failure.value)
            return failure

        return self._storage.flush().addErrback(spoil)

    def _cache(self, flags: int, cookie: int, offset: int, length: int) -> None:
        advised = self._storage.will_need([(offset, length)], self)
        self._later(cookie, offset, length, advised, self._reply_ok)

    def filtered_status(self, cookie: int, flags: int, offset: int, payload: bytes) -> None:
        """Answer a BLOCK_STATUS that named its effect length and the meta contexts it wants."""
        length, ids = contexts.parse_filter(payload, self._contexts)
        if not ids:
            text = "the payload isn't a list of different negotiated contexts"
            self.refuse(cookie, offset, Refusal(ErrorCode.EINVAL, text))
            return
        refusal = refuse(
            Command.BLOCK_STATUS, flags & ~int(CommandFlag.PAYLOAD_LEN), offset, length, self._terms
        )
        if refusal is not None:
            self.refuse(cookie, offset, refusal)
            return
        self._answer_status(cookie, flags, offset, length, ids)

    def _block_status(self, flags: int, cookie: int, offset: int, length: int) -> None:
        self._answer_status(cookie, flags, offset, length, list(self._contexts))

    def _answer_status(
        self, cookie: int, flags: int, offset: int, length: int, ids: list[int]
    ) -> None:
        limit = 1 if flags & CommandFlag.REQ_ONE else contexts.MAX_DESCRIPTORS

        def answer(cookie: int, offset: int, extents: list[Extent]) -> None:
            replies = []
            for context in ids:
                described = contexts.allocation(extents)
                if self._contexts[context] == DIRTY_CONTEXT:
                    described = self._describe_dirty(offset, length, limit)
                last = context == ids[-1]
                replies.append(self._style.status(cookie, offset, context, described, last))
            self._send(b"".join(replies))

        if BASE_ALLOCATION in {self._contexts[context] for context in ids}:
            walked = self._storage.extents(offset, length, limit, self)
            self._later(cookie, offset, length, walked, answer)
        else:
            answer(cookie, offset, [])

    def _describe_dirty(self, offset: int, length: int, limit: int) -> contexts.Descriptors:
        runs = self._export.dirty_runs
        return contexts.dirty(runs(offset, length) if runs else iter(()), offset, length, limit)

    _BEGIN: dict[int, Callable[[Commands, int, int, int, int], None]] = {
        Command.READ: _read,
        Command.FLUSH: _flush,
        Command.TRIM: _trim,
        Command.CACHE: _cache,
        Command.WRITE_ZEROES: _write_zeroes,
        Command.BLOCK_STATUS: _block_status,
    }

    # Requests that are with the thread pool

    def _later(
        self,
        cookie: int,
        offset: int,
        length: int,
        result: Deferred[Any],
        answer: Callable[[int, int, Any], None],
    ) -> None:
        """Answer once *result* is there; other requests go on meanwhile."""
        self._begun(result)
        result.addCallbacks(
            lambda value: answer(cookie, offset, value),
            lambda failure: self._failed_later(cookie, offset, length, failure),
        )
        self._ended(result)

    def _begun(self, result: Deferred[Any]) -> Deferred[Any]:
        self._more(1)
        return result

    def _more(self, count: int) -> None:
        self._export.begun(count)
        self.under_way += count
        if self.under_way + len(self.cold) >= MAX_UNDER_WAY:
            self._requests.hold(Holds.UNDER_WAY)

    def _ended(self, result: Deferred[Any]) -> None:
        """Count it as ended however it ends, last of all: whoever waits for it sees its mark."""

        def ended(value: Any) -> Any:
            self._fewer(1)
            return value

        result.addBoth(ended)
        result.addErrback(lambda failure: self._log.failure("a request failed", failure))

    def _fewer(self, count: int) -> None:
        self.under_way -= count
        self._export.ended(count)
        if self.under_way + len(self.cold) < MAX_UNDER_WAY:
            self._requests.release(Holds.UNDER_WAY)
        if not self.under_way:
            self._requests.idle()

    def begin_private(self, cookie: int, offset: int, payload: Deferred[bytes]) -> None:
        """Answer a private command with its *payload*, once that is there; RequestFailed has the
        error that the client is told.
        """
        self._begun(payload)
        payload.addCallbacks(
            lambda value: self._send(self._style.private(cookie, offset, value)),
            lambda failure: self._refused_private(cookie, offset, failure),
        )
        self._ended(payload)

    def _refused_private(self, cookie: int, offset: int, failure: Failure) -> None:
        if isinstance(failure.value, RequestFailed):
            code = ErrorCode(failure.value.errno)
            self.refuse(cookie, offset, Refusal(code, str(failure.value)))
        else:
            self.failed(cookie, offset, 0, self._as_os_error(failure))

    # Replies

    def _send(self, data: bytes | bytearray) -> None:
        if not self._gone:
            self._outlet.send(data)

    def _reply_ok(self, cookie: int, offset: int, _: object) -> None:
        self._send(self._style.ok(cookie, offset))

    def refuse(self, cookie: int, offset: int, refusal: Refusal) -> None:
        """Refuse a request, with a reason for the client."""
        self._log.info("request refused: {text}", text=refusal.text)
        self._send(self._style.error(cookie, offset, refusal.code, refusal.text))

    def _failed_later(self, cookie: int, offset: int, length: int, failure: Failure) -> None:
        self.failed(cookie, offset, length, self._as_os_error(failure))

    def failed(self, cookie: int, offset: int, length: int, error: OSError) -> None:
        """Tell the client that a request failed, narrowed to what it may know; log the real
        error.
        """
        if isinstance(error, NotBegun):
            return  # the client is gone
        self._export.look()
        code = to_nbd(error)
        self._log.error(
            "request of {length} bytes at {offset} failed: {error}; the client is told {code}",
            length=length,
            offset=offset,
            error=error,
            code=name_of(ErrorCode, code),
        )
        self._send(self._style.error(cookie, offset, code, os.strerror(code)))

    def _as_os_error(self, failure: Failure) -> OSError:
        """Return the error for the client; log it if it is a bug instead of the disk's error."""
        if isinstance(failure.value, OSError):
            return failure.value
        self._log.failure("a request failed with an unexpected error", failure)
        return OSError(errno.EIO, "internal error")

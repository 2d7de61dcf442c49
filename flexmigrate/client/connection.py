"""The commands of NBD, as methods that return Deferreds.

A request is checked completely before anything is sent, so that a mistake of ours never reaches a
server. A request that is too large for the server is divided. :mod:`flexmigrate.client.link` sends
the requests, and ends them when the connection ends.

Specification: proto.md, "Request types" and "Size constraints".
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator
from functools import cached_property
from struct import Struct
from typing import Any, overload

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorTime

from flexmigrate.client.link import Link
from flexmigrate.client.splitting import all_of, pieces
from flexmigrate.errors import LocalProtocolError
from flexmigrate.net.sendable import FileSource
from flexmigrate.wire.client_handshake import ClientOptions
from flexmigrate.wire.constants import (
    MAX_MIN_BLOCK,
    MAX_PAYLOAD,
    Command,
    CommandFlag,
    TransmissionFlag,
)
from flexmigrate.wire.handover import SESSION_OPTION, PrivateCommand
from flexmigrate.wire.pending import PendingRequest
from flexmigrate.wire.requests import Terms, refuse

LARGEST_EFFECT = 2**32 - MAX_MIN_BLOCK
"""Bytes that one request without payload may affect: the most that the compact header can express
and that is a multiple of any block size. The same with extended headers, as servers may well refuse
more."""

_EFFECT_LENGTH = Struct(">Q")
_CONTEXT_ID = Struct(">I")

Extents = list[tuple[int, int]]
"""(length in bytes, status flags) of consecutive extents."""


class NBDClientProtocol(Link):
    """A connection to one export: the client library.

    Make one with :func:`flexmigrate.client.connect` or :func:`flexmigrate.client.connect_uri`. Any
    number of requests may be in flight. A server may carry them out and answer in any order, so a
    request that depends on another must wait for its answer. All offsets and lengths are in bytes.
    A request fails with

    * `LocalProtocolError`, without being sent, if it doesn't fit what was negotiated: it is outside
      the export, not in whole blocks, not advertised in `flags`, or empty;
    * `RequestFailed`, with its `errno`, if the server answered with an error;
    * `ConnectionGone`, or the reason given to `abort`, if the connection has ended;
    * `RemoteProtocolError` if the server broke the protocol, which ends the connection.

    Cancelling a request withdraws nothing: the server may still carry it out, and a read may still
    fill its buffer, until `requests_in_flight` is back at 0 or the connection has ended.

    :ivar strict: False sends even invalid requests, to test a server's reaction.
    """

    def __init__(
        self, options: ClientOptions, clock: IReactorTime, *, tls: Any = None, strict: bool = True
    ) -> None:
        """Prepare a connection; see :class:`Link`."""
        super().__init__(options, clock, tls=tls)
        self.strict = strict

    @overload
    def read(
        self, offset: int, length: int, buffer: None = None, *, unfragmented: bool = False
    ) -> Deferred[bytearray]: ...

    @overload
    def read(
        self,
        offset: int,
        length: int,
        buffer: bytearray | memoryview,
        *,
        unfragmented: bool = False,
    ) -> Deferred[memoryview]: ...

    def read(
        self,
        offset: int,
        length: int,
        buffer: bytearray | memoryview | None = None,
        *,
        unfragmented: bool = False,
    ) -> Deferred[Any]:
        """Read, into *buffer* if one is given; large reads are received directly into it.

        :param buffer: writable and contiguous, of *length* bytes; it can't be resized until the
            Deferred has fired, and what it holds is unspecified if that fails.
        :param unfragmented: make the server send each request's data in one piece
            (NBD_CMD_FLAG_DF); more than 64 KiB may then fail with EOVERFLOW.
        :return: fires with *buffer* as a memoryview of bytes, or with a new bytearray.
        """
        flags = CommandFlag.DF if unfragmented else CommandFlag(0)
        largest = self._largest_payload
        refusal = self._judge(Command.READ, flags, offset, length, largest)
        if refusal is not None:
            return _refused(refusal)
        place = bytearray(length) if buffer is None else buffer
        view = memoryview(place).cast("B")
        if view.readonly or len(view) != length:
            return _refused(f"{length} bytes can't be read into a buffer of {len(view)}")

        def send(at: int, size: int) -> Deferred[PendingRequest]:
            piece = view[at - offset : at - offset + size]
            pending = PendingRequest(Command.READ, at, size, view=piece, unfragmented=unfragmented)
            return self._ask(pending, flags)

        def result(_: None) -> bytearray | memoryview:
            if buffer is not None:
                return view
            view.release()  # so that the caller may resize it
            return place

        return _divided(offset, length, largest, send).addCallback(result)

    def write(
        self, data: bytes | bytearray | memoryview, offset: int, *, fua: bool = False
    ) -> Deferred[None]:
        """Write *data* at *offset*; large data leaves piece by piece, as the server takes it.

        The order is that of pwrite(2) and of ``IBlockDevice.write``. The offset first, as it was
        before, works in this release, with a DeprecationWarning.

        :param data: must not change until the Deferred has fired.
        :param fua: answer only once the data is on stable storage.
        """
        data, offset = _in_order(data, offset)
        view = memoryview(data).cast("B")
        flags = self._payload_flag() | _fua(fua)

        def send(at: int, size: int) -> Deferred[PendingRequest]:
            piece = view[at - offset : at - offset + size]
            pending = PendingRequest(Command.WRITE, at, size)
            return self._ask(pending, flags, send_payload=lambda outlet: outlet.send(piece))

        largest = self._largest_payload
        refusal = self._judge(Command.WRITE, flags, offset, len(view), largest)
        if refusal is not None:
            return _refused(refusal)
        if len(view) <= largest:
            return send(offset, len(view)).addCallback(_nothing)
        ranges = pieces(offset, len(view), largest)
        return Deferred.fromCoroutine(self._send_paced(ranges, send))

    def write_from(
        self, source: FileSource, offset: int, length: int, *, fua: bool = False
    ) -> Deferred[None]:
        """Write data from *source*, at the same offset; on a stream transport, with sendfile(2).

        The bytes are read while they are sent: if the source changes before the Deferred has fired,
        old or new data may be sent. A source that is too short ends the connection.
        """
        flags = self._payload_flag() | _fua(fua)

        def send(at: int, size: int) -> Deferred[PendingRequest]:
            pending = PendingRequest(Command.WRITE, at, size)
            return self._ask(
                pending, flags, send_payload=lambda outlet: outlet.send_file(source, at, size)
            )

        largest = self._largest_payload
        refusal = self._judge(Command.WRITE, flags, offset, length, largest)
        if refusal is not None:
            return _refused(refusal)
        return _divided(offset, length, largest, send)

    def zero(
        self,
        offset: int,
        length: int,
        *,
        punch: bool = True,
        fast: bool = False,
        fua: bool = False,
    ) -> Deferred[None]:
        """Make a range read as zeroes (NBD_CMD_WRITE_ZEROES).

        :param punch: allow the server to make a hole; otherwise the space stays allocated.
        :param fast: fail with ENOTSUP if this isn't faster than writing zeroes.
        """
        flags = _fua(fua)
        if not punch:
            flags |= CommandFlag.NO_HOLE
        if fast:
            flags |= CommandFlag.FAST_ZERO
        return self._affect(Command.WRITE_ZEROES, flags, offset, length, LARGEST_EFFECT)

    def trim(self, offset: int, length: int, *, fua: bool = False) -> Deferred[None]:
        """Discard a range; its content is unspecified afterwards."""
        return self._affect(Command.TRIM, _fua(fua), offset, length, LARGEST_EFFECT)

    def cache(self, offset: int, length: int) -> Deferred[None]:
        """Announce that a range will be read soon."""
        # Some servers limit it like a payload, since they read the data to carry it out.
        largest = self._largest_payload
        return self._affect(Command.CACHE, CommandFlag(0), offset, length, largest)

    def flush(self) -> Deferred[None]:
        """Have everything that was *answered* before this call put on stable storage."""
        refusal = self._judge(Command.FLUSH, CommandFlag(0), 0, 0, 0)
        if refusal is not None:
            return _refused(refusal)
        return self._ask(PendingRequest(Command.FLUSH), 0).addCallback(_nothing)

    def block_status(
        self,
        offset: int,
        length: int,
        *,
        req_one: bool = False,
        contexts: Collection[str] | None = None,
    ) -> Deferred[dict[str, Extents]]:
        """Ask for the status of a range, in each negotiated meta context.

        :param req_one: one extent for each context is enough.
        :param contexts: the names of the contexts of interest; None: all that were negotiated.
        :return: fires with the extents by context. They begin at *offset*, cover at least a byte,
            and may end before or after the range, but not beyond the export.
        """
        wanted = {
            name: number
            for number, name in self.agreement.contexts
            if contexts is None or name in contexts
        }
        if contexts is not None and len(wanted) != len(set(contexts)):
            return _refused(f"not all of {', '.join(contexts)} were negotiated")
        # The length is only a hint here, so it is cut to what one request can express.
        length = min(length, LARGEST_EFFECT)
        flags = CommandFlag.REQ_ONE if req_one else CommandFlag(0)
        refusal = self._judge(Command.BLOCK_STATUS, flags, offset, length, LARGEST_EFFECT)
        if refusal is not None:
            return _refused(refusal)
        room = self.size - offset
        return self._ask_status(offset, length, flags, list(wanted.values())).addCallback(
            lambda answer: {name: _clip(answer.extents[wanted[name]], room) for name in wanted}
        )

    def _ask_status(
        self, offset: int, length: int, flags: CommandFlag, wanted: list[int]
    ) -> Deferred[PendingRequest]:
        """Ask for the contexts *wanted* only, if the server supports that; otherwise for all."""
        everything = [number for number, _ in self.agreement.contexts]
        payload = None
        if len(wanted) < len(everything) and self.flags & TransmissionFlag.BLOCK_STATUS_PAYLOAD:
            everything = wanted
            payload = _EFFECT_LENGTH.pack(length) + b"".join(map(_CONTEXT_ID.pack, wanted))
        pending = PendingRequest(
            Command.BLOCK_STATUS,
            offset,
            length,
            contexts=everything,
            one_extent=bool(flags & CommandFlag.REQ_ONE),
        )
        if payload is None:
            return self._ask(pending, flags)
        flags |= CommandFlag.PAYLOAD_LEN
        return self._ask(pending, flags, len(payload), lambda outlet: outlet.send(payload))

    def private(
        self, command: PrivateCommand, offset: int = 0, length: int = 0, payload: bytes = b""
    ) -> Deferred[bytes]:
        """Send a private command, which needs a session (``wire.handover``).

        :param offset: in bytes, as *length*; their meaning depends on the command.
        :param payload: for commands with one (``wire.handover.has_payload``), at most
            MAX_PRIVATE_PAYLOAD bytes. *length* must then be 0.
        :return: fires with the payload of the reply, at most MAX_PRIVATE_PAYLOAD bytes.
        """
        if self.session is None:
            return _refused(f"{command.name} without a session")
        if not (0 <= offset < 1 << 64 and 0 <= length < 1 << 32):
            return _refused(f"{command.name} of {length} bytes at {offset}")
        pending = PendingRequest(command, offset, length)
        if not payload:
            return self._ask(pending, 0).addCallback(_payload)
        sent = self._ask(pending, 0, len(payload), lambda outlet: outlet.send(payload))
        return sent.addCallback(_payload)

    @property
    def session(self) -> bytes | None:
        """The server's answer to the session that was asked for; None if it knows none."""
        return dict(self.agreement.private).get(SESSION_OPTION)

    # Checks and division

    def _judge(
        self, command: Command, flags: CommandFlag, offset: int, length: int, largest: int
    ) -> str | None:
        """Return the reason why a request must not be sent, or None."""
        if not self.strict:
            return None
        export = self.agreement.export
        if command != Command.FLUSH:
            block = export.block_sizes[0]
            what = f"{command.name} of {length} bytes at {offset}"
            if length <= 0 or offset < 0:
                return f"{what} is no range"
            if offset % block or length % block:
                return f"{what}: the server's blocks are of {block} bytes"
            if offset + length > export.size:
                return f"{what} ends after the export's {export.size} bytes"
        refusal = refuse(command, flags, offset, min(length, largest), self._terms)
        return None if refusal is None else refusal.text

    async def _send_paced(
        self,
        ranges: Iterator[tuple[int, int]],
        send: Callable[[int, int], Deferred[PendingRequest]],
    ) -> None:
        """Send one piece after the other, holding at most one that the server hasn't taken."""
        answers = []
        for at, size in ranges:
            answers.append(send(at, size))
            if not self.writable:
                await self.when_writable().addErrback(_nothing)  # the answers fail, too
        await all_of(answers)

    def _affect(
        self, command: Command, flags: CommandFlag, offset: int, length: int, largest: int
    ) -> Deferred[None]:
        """Check and send a command that has a range, but neither data nor a result."""
        refusal = self._judge(command, flags, offset, length, largest)
        if refusal is not None:
            return _refused(refusal)
        return _divided(
            offset,
            length,
            largest,
            lambda at, size: self._ask(PendingRequest(command, at, size), flags),
        )

    @cached_property
    def _largest_payload(self) -> int:
        minimum, _, maximum = self.agreement.export.block_sizes
        largest = min(maximum, MAX_PAYLOAD)
        return largest - largest % minimum

    @cached_property
    def _terms(self) -> Terms:
        return Terms(
            self.size,
            self.flags,
            self.agreement.extended,
            tuple(number for number, _ in self.agreement.contexts),
        )

    def _payload_flag(self) -> CommandFlag:
        return CommandFlag.PAYLOAD_LEN if self.agreement.extended else CommandFlag(0)


def _fua(fua: bool) -> CommandFlag:
    return CommandFlag.FUA if fua else CommandFlag(0)


def _divided(
    offset: int, length: int, largest: int, send: Callable[[int, int], Deferred[PendingRequest]]
) -> Deferred[None]:
    """Call *send* for pieces of a range of at most *largest* bytes, all at once."""
    if length <= largest:
        return send(offset, length).addCallback(_nothing)
    return all_of([send(at, size) for at, size in pieces(offset, length, largest)]).addCallback(
        _nothing
    )


def _clip(extents: Extents, room: int) -> Extents:
    """Return *extents*, cut off *room* bytes after their beginning."""
    clipped = []
    for length, flags in extents:
        if room <= 0:
            break
        clipped.append((min(length, room), flags))
        room -= length
    return clipped


def _refused(text: str) -> Deferred[Any]:
    return fail(LocalProtocolError(text))


def _payload(answered: PendingRequest) -> bytes:
    assert answered.payload is not None, "the reply was parsed"
    return answered.payload


def _in_order(data: Any, offset: Any) -> tuple[Any, Any]:
    """Return the data and the offset of a write, which may have been given in the old order."""
    if not isinstance(data, int):
        return data, offset
    warnings.warn(
        "write(offset, data) is now write(data, offset); the old order will not work in the next "
        "release",
        DeprecationWarning,
        stacklevel=3,
    )
    return offset, data


def _nothing(_: object) -> None:
    """Replace an unneeded result by None."""

"""Counters of requests for the metrics: their number by command, their bytes, their durations, and
their errors.

A transmission of its own kind, which a server chooses when a connection starts, as with
``request_log``: the path of a request never asks whether it is to be measured. What a batch did at
once is counted as a whole when the batch is done; of the requests that take longer, each is noted
when it is taken and counted when its reply is made, which is what passes through the reply style.

The time of a request is that from the moment at which its batch was received to the moment at which
its reply is given to the transport. For what was done at once that is the time of the whole batch,
since the replies leave with it; nobody's is shorter than what is told. Not in it: the time for
which a request waited in the socket, because this process was busy, its connection parked or
slowed down. In it: the time that a client took to send a long write's payload.

Plain integers on the reactor's thread, no locks: whoever wants them copies them there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from time import perf_counter
from typing import Any, Final

from flexmigrate.server.commands import Commands
from flexmigrate.server.export import Export
from flexmigrate.server.observed_replies import ObservedReplies
from flexmigrate.server.request_log import LoggedTransmission
from flexmigrate.server.transmission import Scratch, Transmission, TransmissionHost
from flexmigrate.wire.agreement import Agreement
from flexmigrate.wire.constants import Command, ErrorCode, name_of

MEASURED: Final = (
    Command.READ,
    Command.WRITE,
    Command.FLUSH,
    Command.TRIM,
    Command.CACHE,
    Command.WRITE_ZEROES,
    Command.BLOCK_STATUS,
)

BOUNDS: Final = (
    *(0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005),
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 10.0),
)
"""Upper bounds of the histograms' buckets, in seconds: from a read in the page cache to a disk that
hangs. The last bucket, of all beyond, has none."""


class Measured:
    """The requests of one command on one export that were answered so far.

    :ivar counts: of requests, by bucket: one more than ``BOUNDS``.
    :ivar seconds: how long they took, in all.
    :ivar size: bytes that were read or changed, in all; those of failed requests don't count.
    """

    __slots__ = ("counts", "seconds", "size")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.seconds = 0.0
        self.size = 0

    def add(self, seconds: float, size: int, count: int = 1) -> None:
        """*count* requests were answered, of *size* bytes in all, each after *seconds*."""
        self.counts[bisect_left(BOUNDS, seconds)] += count
        self.seconds += seconds * count
        self.size += size


class ExportMeter:
    """The counters of one export.

    :ivar commands: by command.
    :ivar errors: error replies, by the name of their error.
    """

    def __init__(self) -> None:
        self.commands = {int(command): Measured() for command in MEASURED}
        self.errors: Counter[str] = Counter()


class Meter:
    """The counters of one server, by export: they outlive connections and factories."""

    def __init__(self) -> None:
        self._exports: dict[str, ExportMeter] = {}

    def of(self, export: str) -> ExportMeter:
        """Return what is measured of the export of this name."""
        return self._exports.setdefault(export, ExportMeter())

    def transmission(self, *, logged: bool = False) -> Callable[..., Transmission]:
        """Return what makes the transmissions that are measured here.

        :param logged: they are logged, too.
        """
        kind = _LoggedAndMeasured if logged else MeasuredTransmission

        def made(
            export: Export,
            agreement: Agreement,
            outlet: Any,
            scratch: Scratch,
            host: TransmissionHost,
        ) -> Transmission:
            return kind(self.of(export.name), export, agreement, outlet, scratch, host)

        return made


class MeasuredTransmission(Transmission):
    """A transmission whose requests are measured."""

    def __init__(
        self,
        meter: ExportMeter,
        export: Export,
        agreement: Agreement,
        outlet: Any,
        scratch: Scratch,
        host: TransmissionHost,
    ) -> None:
        self._meter = meter
        self._read, self._write = meter.commands[Command.READ], meter.commands[Command.WRITE]
        super().__init__(export, agreement, outlet, scratch, host)

    def _new_commands(self, context_names: dict[int, str]) -> Commands:
        self._measured = _Measurements(self._meter)
        style = ObservedReplies(self._style, self._measured)
        host, outlet = self._host, self._outlet
        commands = _MeasuredCommands(
            self._export, style, self._terms, context_names, outlet, self, host
        )
        commands.measured = self._measured
        return commands

    def serve(self, at: int, end: int) -> int:
        began = self._measured.now = perf_counter()
        reads, bytes_read = self.reads, self.bytes_read
        writes, bytes_written = self.writes, self.bytes_written
        at = super().serve(at, end)
        seconds = perf_counter() - began
        if self.reads != reads:
            self._read.add(seconds, self.bytes_read - bytes_read, self.reads - reads)
        if self.writes != writes:
            self._write.add(seconds, self.bytes_written - bytes_written, self.writes - writes)
        return at

    def _serve_other(self, command: int, flags: int, cookie: int, offset: int, length: int) -> None:
        self._measured.taken(command, cookie, length)
        super()._serve_other(command, flags, cookie, offset, length)


class _LoggedAndMeasured(MeasuredTransmission, LoggedTransmission):
    """A transmission whose requests are measured and logged."""


class _MeasuredCommands(Commands):
    """Commands that note what the path of a request leaves to them."""

    measured: _Measurements

    def read_cold(self, cookie: int, offset: int, length: int) -> None:
        self.measured.taken(Command.READ, cookie, length)
        super().read_cold(cookie, offset, length)

    def write_later(self, cookie: int, offset: int, data: bytes) -> None:
        self.measured.taken(Command.WRITE, cookie, len(data))
        super().write_later(cookie, offset, data)


class _Measurements:
    """Counts each reply (``ReplyObserver``) to the requests of one connection that are answered by
    themselves.

    :ivar now: when the batch began whose requests are taken, by ``perf_counter``.
    """

    def __init__(self, meter: ExportMeter) -> None:
        self._meter = meter
        # The command, time and length of each that isn't answered, by its cookie: as many as a
        # connection may have under way. A client may give several the same cookie.
        self._taken: dict[int, list[tuple[int, float, int]]] = {}
        self.now = 0.0

    def taken(self, command: int, cookie: int, length: int) -> None:
        """A request was taken, and is answered by itself."""
        if command in self._meter.commands:
            self._taken.setdefault(cookie, []).append((command, self.now, length))

    def replied(self, cookie: int, code: int, *, is_private: bool = False) -> None:
        """Count a reply."""
        if is_private:
            return
        if code:
            self._meter.errors[name_of(ErrorCode, code)] += 1
        taken = self._taken.get(cookie)
        if not taken:
            return  # it is counted with its batch
        command, began, length = taken.pop(0)
        if not taken:
            del self._taken[cookie]
        self._meter.commands[command].add(perf_counter() - began, 0 if code else length)

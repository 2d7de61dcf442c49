"""A client that trusts nobody: writes, reads back, and holds the server to every answer it gave.

    python -m support.verifying_writer write ADDRESS PORT --journal FILE [--depth N] …
    python -m support.verifying_writer verify --journal FILE --image FILE [--original FILE]

`write` goes on until it gets SIGTERM or SIGINT, or has what `--writes` or `--seconds` ask for. When
its connection ends it makes another, and sends again what was not answered, as a kernel's NBD
client does. It ends with 0 if all went well; with 1 if a byte was wrong, a request failed, or no
server could be reached for `--patience` seconds. `verify` ends with 1 if the image misses a write
that was acknowledged, or holds a byte that nobody wrote.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from support import raw_nbd
from support.raw_nbd import READ, WRITE, WRITE_ZEROES, RawClient
from support.record import BLOCK, ZEROES_EVERY, Journal, Record, content, read_journal

READS = 0.3  # part of the requests
TOLD_EVERY = 250  # acknowledged writes
RETRY = 0.002  # seconds


class Wrong(Exception):
    """The server broke its word."""


@dataclass
class Request:
    """One request of ours; *seq* is 0 for a read."""

    command: int
    block: int
    seq: int
    since: float = field(default_factory=time.monotonic)


@dataclass
class Tally:
    """The counts for the final line of output."""

    writes: int = 0
    reads: int = 0
    connections: int = 0
    longest_wait: float = 0.0  # seconds, from a request to its answer, over reconnections too

    def __str__(self) -> str:
        return (
            f"writes={self.writes} reads={self.reads} connections={self.connections}"
            f" longest_wait_ms={self.longest_wait * 1000:.1f}"
        )


def _print(text: str) -> None:
    print(text, flush=True)


class Writer:
    """Keeps *depth* requests in flight, never two on one block.

    :param blocks: numbers of those that it may write, more than *depth*; None: all of the export
    :param forgiven: errors after which a request is sent again, as one that wasn't answered
    :param tell: what says how far it is
    """

    def __init__(
        self,
        dial: Callable[[], RawClient],
        journal: Journal,
        depth: int,
        blocks: Sequence[int] | None = None,
        forgiven: frozenset[int] = frozenset(),
        tell: Callable[[str], object] = _print,
    ) -> None:
        self.dial = dial
        self.journal = journal
        self.depth = depth
        self.blocks = blocks
        self.forgiven = forgiven
        self.tell = tell
        self.tally = Tally()
        self._random = random.Random(journal.record.seed)
        self._in_flight: dict[int, Request] = {}
        self._unanswered: list[Request] = []  # by a connection that ended
        self._written: list[int] = []
        self._seq = 0

    def run(self, enough: Callable[[Tally], bool]) -> None:
        """Write and verify until *enough* says so and everything is answered; then flush.

        :raises Wrong: if a byte differs from what was written, or a request fails
        :raises OSError: if *dial* gives up
        """
        while True:
            client = self.dial()
            self.tally.connections += 1
            try:
                self._converse(client, enough)
                if error := client.flush():
                    raise Wrong(f"flush: error {error}")
                client.say_goodbye()
                return
            except (raw_nbd.Ended, ConnectionError) as error:
                self.tell(f"connection {self.tally.connections} ended: {error}")
                self._unanswered += self._in_flight.values()
                self._in_flight.clear()
            finally:
                client.close()

    def _converse(self, client: RawClient, enough: Callable[[Tally], bool]) -> None:
        blocks = self.blocks or range(client.size // BLOCK)
        while True:
            while self._unanswered and len(self._in_flight) < self.depth:
                self._send(client, self._unanswered.pop(0))
            while not enough(self.tally) and len(self._in_flight) < self.depth:
                self._send(client, self._invent(blocks, client.flags))
            if not self._in_flight and not self._unanswered:
                return
            self._take_answer(client)

    def _invent(self, blocks: Sequence[int], flags: int) -> Request:
        busy = {request.block for request in (*self._in_flight.values(), *self._unanswered)}
        if self._written and self._random.random() < READS:
            block = self._random.choice(self._written)
            if block not in busy:
                return Request(READ, block, 0)
        while (block := self._random.choice(blocks)) in busy:
            pass
        self._seq += 1
        zeroes = self._seq % ZEROES_EVERY == 0 and flags & raw_nbd.SEND_WRITE_ZEROES
        self.journal.sent(self._seq, block)
        return Request(WRITE_ZEROES if zeroes else WRITE, block, self._seq)

    def _send(self, client: RawClient, request: Request) -> None:
        payload = b""
        if request.command == WRITE:
            payload = content(self.journal.record.seed, request.seq, request.block)
        # Noted as in flight even if sending fails halfway: the server may have got it.
        cookie = client.next_cookie()
        self._in_flight[cookie] = request
        client.send(request.command, request.block * BLOCK, BLOCK, payload, cookie=cookie)

    def _take_answer(self, client: RawClient) -> None:
        error, cookie = client.reply()
        request = self._in_flight.get(cookie)
        if request is None:
            raise Wrong(f"an answer to {cookie}, which was not asked")
        if error in self.forgiven:
            self._unanswered.append(self._in_flight.pop(cookie))
            return
        if error:
            raise Wrong(f"{request}: error {error}")
        if request.command == READ:
            data = raw_nbd.receive(client.sock, BLOCK)
            if fault := self.journal.record.fault(request.block, data):
                raise Wrong(f"read back: {fault}")
            self.tally.reads += 1
        else:
            self.journal.done(request.seq, request.block)
            self._written.append(request.block)
            self.tally.writes += 1
            if self.tally.writes % TOLD_EVERY == 0:
                self.tell(f"acknowledged {self.tally.writes}")
        del self._in_flight[cookie]
        waited = time.monotonic() - request.since
        self.tally.longest_wait = max(self.tally.longest_wait, waited)


def dialler(options: argparse.Namespace) -> Callable[[], RawClient]:
    """Return what makes a connection, trying until the options' patience is at an end."""

    def dial() -> RawClient:
        deadline = time.monotonic() + options.patience
        while True:
            try:
                return RawClient.to(
                    options.address, options.port, export=options.export, timeout=options.patience
                )
            except (TimeoutError, raw_nbd.Ended, ConnectionError, FileNotFoundError) as error:
                if time.monotonic() > deadline:
                    raise ConnectionAbortedError(f"no server for {options.patience} s") from error
                time.sleep(RETRY)

    return dial


def write(options: argparse.Namespace) -> int:
    """Carry out the command `write`; return the exit status."""
    ended: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: ended.append(number))
    deadline = time.monotonic() + options.seconds

    def enough(tally: Tally) -> bool:
        return bool(ended) or tally.writes >= options.writes or time.monotonic() >= deadline

    journal = Journal(options.journal, Record(options.seed, options.original))
    blocks = options.blocks and [int(line) for line in options.blocks.read_text().split()]
    writer = Writer(dialler(options), journal, options.depth, blocks)
    try:
        writer.run(enough)
    except (Wrong, OSError, raw_nbd.ProtocolViolation) as error:
        print(f"WRONG {error} ({writer.tally})", file=sys.stderr, flush=True)
        return 1
    finally:
        journal.close()
    print(f"verified {writer.tally}", flush=True)
    return 0


def verify(options: argparse.Namespace) -> int:
    """Carry out the command `verify`; return the exit status."""
    record = read_journal(options.journal, options.original)
    faults = list(record.faults(options.image))
    for fault in faults[:10]:
        print(f"WRONG {fault}", file=sys.stderr)
    blocks = len(record.acknowledged)
    print(f"{blocks} blocks were written and acknowledged; {len(faults)} blocks are wrong")
    return 1 if faults else 0


def main(arguments: Iterable[str] | None = None) -> int:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(required=True)

    writing = commands.add_parser("write")
    writing.add_argument("address", help="a path beginning with / is a UNIX socket")
    writing.add_argument("port", type=int)
    writing.add_argument("--export", default="")
    writing.add_argument("--seed", type=int, default=1)
    writing.add_argument("--depth", type=int, default=8, help="requests in flight")
    writing.add_argument(
        "--blocks", type=Path, help="file with the numbers of those that may be written"
    )
    writing.add_argument("--writes", type=float, default=float("inf"))
    writing.add_argument("--seconds", type=float, default=float("inf"))
    writing.add_argument("--patience", type=float, default=30.0, help="seconds without a server")
    writing.set_defaults(run=write)

    verifying = commands.add_parser("verify")
    verifying.add_argument("--image", type=Path, required=True)
    verifying.set_defaults(run=verify)

    for command in (writing, verifying):
        command.add_argument("--journal", type=Path, required=True)
        command.add_argument("--original", type=Path, help="the image before the first write")
    options = parser.parse_args(None if arguments is None else list(arguments))
    return int(options.run(options))


if __name__ == "__main__":
    sys.exit(main())

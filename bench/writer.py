"""``python -m bench.writer HOST PORT``: writes as fast as it can, and records when it was answered.

4 KiB each, anywhere in the export, always eight under way. When its connection ends it makes a new
one, tries that every 2 ms, and repeats what was not answered. It says ``connection N answers`` with
the first answer on each. SIGTERM ends it; then it says one line of JSON:

``answers``
    How many came in each hundredth of a second of the monotonic clock, by the number of that.
``waits``
    Those longer than 2 ms: when the request was first sent, and when it was answered, in seconds of
    that clock; and whether that was on another connection.
"""

from __future__ import annotations

import collections
import json
import os
import random
import signal
import sys
import time
from types import FrameType
from typing import NoReturn

from support.raw_nbd import REPLY, WRITE, Ended, RawClient, request

DEPTH = 8
BLOCK = 4096
RETRY = 0.002  # seconds
TICKS = 100  # a second
LONG = 0.002  # seconds


class Told(Exception):
    """By SIGTERM, to end."""


class Writer:
    """See the module."""

    def __init__(self, host: str, port: int) -> None:
        self._place = host, port
        self._random = random.Random(1)
        self._payload = os.urandom(BLOCK)
        # By cookie: block, when first sent, and on which connection.
        self._since: dict[int, tuple[int, float, int]] = {}
        self._cookie = 0
        self._connections = 0
        self.answers: collections.Counter[int] = collections.Counter()
        self.waits: list[tuple[float, float, bool]] = []

    def run(self) -> NoReturn:
        """Write until something is raised."""
        while True:
            try:
                client = RawClient.to(*self._place)
            except (OSError, Ended):
                time.sleep(RETRY)
                continue
            try:
                self._converse(client)
            except (ConnectionError, Ended):
                client.close()

    def _converse(self, client: RawClient) -> NoReturn:
        blocks = client.size // BLOCK
        self._connections += 1
        client.sock.sendall(
            b"".join(
                request(WRITE, cookie, block * BLOCK, BLOCK) + self._payload
                for cookie, (block, *_) in self._since.items()
            )
        )
        client.sock.sendall(b"".join(self._next(blocks) for _ in range(DEPTH - len(self._since))))
        rest = b""
        greeted = False
        while True:
            if not (data := client.sock.recv(65536)):
                raise Ended("by the server")
            if not greeted:
                sys.stdout.write(f"connection {self._connections} answers\n")
                sys.stdout.flush()
                greeted = True
            data = rest + data
            whole = len(data) - len(data) % REPLY.size
            requests = [
                self._answered(data, place, blocks) for place in range(0, whole, REPLY.size)
            ]
            rest = data[whole:]
            client.sock.sendall(b"".join(requests))

    def _answered(self, data: bytes, place: int, blocks: int) -> bytes:
        """Take one reply; return the next request."""
        _, error, cookie = REPLY.unpack_from(data, place)
        if error:
            raise SystemExit(f"a write was answered with error {error}")
        now = time.monotonic()
        _, since, connection = self._since.pop(cookie)
        self.answers[int(now * TICKS)] += 1
        if now - since > LONG:
            self.waits.append((since, now, connection != self._connections))
        return self._next(blocks)

    def _next(self, blocks: int) -> bytes:
        self._cookie += 1
        block = self._random.randrange(blocks)
        self._since[self._cookie] = block, time.monotonic(), self._connections
        return request(WRITE, self._cookie, block * BLOCK, BLOCK) + self._payload


def main(host: str, port: int) -> None:
    """Write until SIGTERM."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Told

    writer = Writer(host, port)
    signal.signal(signal.SIGTERM, stop)
    try:
        writer.run()
    except Told:
        sys.stdout.write(json.dumps({"answers": writer.answers, "waits": writer.waits}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

"""``python -m bench.long_link HOST PORT DELAY RATE``: a TCP relay that is as slow as a long link.

What comes in at one end leaves at the other DELAY seconds later, at RATE bytes a second at most.
It holds as much as such a link has under way, and the queue of a router more; then it stops
receiving. It says ``port N`` when it listens on 127.0.0.1, and goes on until it is killed.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import sys
import threading
import time

_PIECE = 65536
_QUEUE = 2**20  # bytes, of the router


class Line:
    """One direction of the link, which all connections share."""

    def __init__(self, delay: float, rate: float) -> None:
        self._delay = delay
        self._rate = rate
        self._lock = threading.Lock()
        self._free = time.monotonic()  # when all that came before has been sent
        self.pieces = int(rate * delay + _QUEUE) // _PIECE + 1

    def carry(self, length: int) -> float:
        """Take so many bytes, once there is place for them; return when they arrive."""
        with self._lock:
            now = time.monotonic()
            self._free = free = max(self._free, now) + length / self._rate
        time.sleep(max(0.0, free - now - _QUEUE / self._rate))
        return free + self._delay


class Way:
    """One direction of a connection."""

    def __init__(self, giver: socket.socket, taker: socket.socket, line: Line) -> None:
        self._giver = giver
        self._taker = taker
        self._line = line
        self._under_way: queue.Queue[tuple[float, bytes]] = queue.Queue(line.pieces)

    def start(self) -> None:
        """Forward, in threads, until both are closed."""
        threading.Thread(target=self._take, daemon=True).start()
        threading.Thread(target=self._give, daemon=True).start()

    def _take(self) -> None:
        piece = b"?"
        while piece:
            try:
                piece = self._giver.recv(_PIECE)
            except OSError:
                piece = b""
            self._under_way.put((self._line.carry(len(piece)), piece))

    def _give(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                due, piece = self._under_way.get()
                time.sleep(max(0.0, due - time.monotonic()))
                if not piece:
                    self._taker.shutdown(socket.SHUT_WR)
                    return
                self._taker.sendall(piece)


def main(host: str, port: int, delay: float, rate: float) -> None:
    """Relay to that place for ever."""
    there, back = Line(delay, rate), Line(delay, rate)
    with socket.create_server(("127.0.0.1", 0)) as server:
        sys.stdout.write(f"port {server.getsockname()[1]}\n")
        sys.stdout.flush()
        while True:
            near, _ = server.accept()
            far = socket.create_connection((host, port))
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            Way(near, far, there).start()
            Way(far, near, back).start()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))

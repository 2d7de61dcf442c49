"""A bad network between two processes, in threads of the test's own: it can cut, stall and go on.

A TCP relay: who connects to it is connected to the target, and bytes go both ways until the test
says otherwise. Nothing here knows of NBD.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable

from support.processes import PATIENCE

_PIECE = 65536

# Closing with this linger sends a reset, which is what the peers of a host that died get.
_RESET = struct.pack("ii", 1, 0)


class Relay:
    """See the module; a context manager.

    :ivar port: on 127.0.0.1.
    :ivar forwarded: bytes that went from clients to the target, over all connections.
    :ivar connections: how many there have been.
    """

    def __init__(self, address: str, port: int) -> None:
        self._target = (address, port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.forwarded = 0
        self.connections = 0
        self._changed = threading.Condition()
        self._stalled = False
        self._secretive = False
        self._cut_at: int | None = None
        self._stop_at: bytes | None = None
        self._stall_at: bytes | None = None
        self._stop_behind = False
        self._stopped = False
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._run(self._accept)

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        # Closing alone would not wake the thread that is in accept().
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.resume()
        self.cut()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()

    # What a test does

    def cut(self) -> None:
        """Reset every connection now; later ones are forwarded."""
        with self._changed:
            doomed, self._open = self._open, set()
        for sock in doomed:
            _reset(sock)

    def cut_after(self, count: int) -> None:
        """Reset every connection once *count* more bytes have gone to the target; once."""
        with self._changed:
            self._cut_at = self.forwarded + count

    def stall(self) -> None:
        """Forward nothing more, and close nothing."""
        with self._changed:
            self._stalled = True

    def resume(self) -> None:
        """Forward again, what has come meanwhile first."""
        with self._changed:
            self._stalled = False
            self._changed.notify_all()

    def stop_at(self, pattern: bytes, *, behind: bool = False) -> None:
        """Reset every connection, and every later one, once *pattern* has come from a client; once.

        :param behind: forward it before; what is answered to it isn't forwarded.
        """
        with self._changed:
            self._stop_at, self._stop_behind = pattern, behind

    def stall_at(self, pattern: bytes) -> None:
        """Stall, as ``stall`` does, once *pattern* has come from a client, which isn't forwarded
        yet; once.
        """
        with self._changed:
            self._stall_at = pattern

    def wait_until_stalled(self) -> None:
        """Wait until that has happened."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._stalled, PATIENCE)

    def wait_until_stopped(self) -> None:
        """Wait until that has happened."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._stopped, PATIENCE)

    def start_again(self) -> None:
        """Forward later connections again, and stop at nothing."""
        with self._changed:
            self._stopped, self._stop_at = False, None

    @property
    def has_stopped(self) -> bool:
        """Whether it has, and was not started again."""
        return self._stopped

    def lead_to(self, address: str, port: int) -> None:
        """Forward later connections there."""
        self._target = (address, port)

    def keep_the_end_secret(self) -> None:
        """Don't tell clients that the target has closed its connection."""
        self._secretive = True

    def wait_for_connection(self, number: int) -> None:
        """Wait until there have been so many connections."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.connections >= number, PATIENCE)

    def wait_for_bytes(self, count: int) -> None:
        """Wait until so many bytes have gone to the target."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.forwarded >= count, PATIENCE)

    # How it is done

    def _run(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            if self._stopped:
                _reset(client)
                continue
            try:
                target = socket.create_connection(self._target, PATIENCE)
            except OSError:
                _reset(client)
                continue
            target.settimeout(None)
            with self._changed:
                self.connections += 1
                self._open |= {client, target}
                self._changed.notify_all()
            self._run(self._forward, client, target, True)
            self._run(self._forward, target, client, False)

    def _forward(self, giver: socket.socket, taker: socket.socket, to_target: bool) -> None:
        try:
            while piece := giver.recv(_PIECE):
                if to_target:
                    self._stall_if_at(piece)
                self._wait_while_stalled()
                if to_target and self._stops(piece, taker):
                    self.cut()
                    return
                if not to_target and self._stopped:
                    return
                taker.sendall(piece)
                if to_target:
                    self._count(len(piece))
            # Not what looks like an end because it was cut: no network tells one side of a close
            # that the other side has not made.
            if (to_target or not self._secretive) and self._is_open(giver):
                taker.shutdown(socket.SHUT_WR)
        except OSError:
            # What one end sees is what the other end is to see.
            _reset(giver)
            _reset(taker)

    def _is_open(self, sock: socket.socket) -> bool:
        with self._changed:
            return sock in self._open

    def _stops(self, piece: bytes, target: socket.socket) -> bool:
        """Return whether the awaited request is in *piece*; the last requests come one by one."""
        with self._changed:
            if self._stop_at is None or self._stop_at not in piece:
                return False
            self._stop_at, self._stopped = None, True
            if self._stop_behind:
                target.sendall(piece)
            self._changed.notify_all()
            return True

    def _stall_if_at(self, piece: bytes) -> None:
        with self._changed:
            if self._stall_at is not None and self._stall_at in piece:
                self._stall_at, self._stalled = None, True
                self._changed.notify_all()

    def _wait_while_stalled(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._stalled)

    def _count(self, length: int) -> None:
        with self._changed:
            self.forwarded += length
            self._changed.notify_all()
            due = self._cut_at is not None and self.forwarded >= self._cut_at
            if due:
                self._cut_at = None
        if due:
            self.cut()


def _reset(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        sock.shutdown(socket.SHUT_RD)
    sock.close()

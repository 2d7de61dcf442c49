"""Writes lines to a descriptor: each whole, in their order, whatever threads they come from; and
without waiting for whoever reads them, where that can be told.

A pipe that nobody reads is full after 64 KiB, and a terminal can be stopped: whoever writes there
is stopped, too, and a server may not be. So lines that can't be written wait, up to `MOST_WAITING`
bytes. Those beyond are lost; how many is told once the others were written.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import threading
import time
from collections import deque
from collections.abc import Callable

MOST_WAITING = 1024 * 1024
"""Bytes of lines that wait."""

_AGAIN = (0.01, 0.5)
"""Seconds, until it is tried again to write them: the first time, and at most; twice as long each
time when nothing could be written."""

_AT_THE_END = 1.0
"""Seconds, that a process waits in the end for them to be written."""

Later = Callable[[float, Callable[[], None]], object]
"""Calls back after so many seconds; called from any thread."""


class LineWriter:
    """See the module.

    :param fd: stays open, and is not closed here.
    :param write: ``os.write``, or what stands for it.
    :param lost: returns the line that says that so many were lost.
    :param later: tries again where *write* raises BlockingIOError; None: it is waited for.
    """

    def __init__(
        self,
        fd: int,
        write: Callable[[int, bytes], int],
        lost: Callable[[int], bytes],
        later: Later | None = None,
    ) -> None:
        self._fd = fd
        self._write = write
        self._line_about = lost
        self._later = later
        self._lines: deque[bytes] = deque()
        self._waiting = 0  # bytes of them
        self._lost = 0
        self._is_full = False
        self._is_called_later = False
        self._delay = _AGAIN[0]
        self._is_writing = False
        # Reentrant, because the thread that writes can be interrupted by a signal's handler or a
        # finalizer that logs: with a plain lock it would wait for itself. What such a one has to
        # say waits in the queue for the line under way.
        self._lock = threading.RLock()

    def write(self, line: bytes) -> None:
        """Write *line*, now or later. An error of the descriptor is no error here: lines are lost,
        and how many is the first that is written once it works again.
        """
        with self._lock:
            self._is_full = self._is_full or self._waiting + len(line) > MOST_WAITING
            if self._is_full:
                self._lost += 1
                return
            self._lines.append(line)
            self._waiting += len(line)
            if not self._is_called_later:
                self._drain()

    def finish(self) -> None:
        """Write what waits still, for a second at most: the process is about to end."""
        ends = time.monotonic() + _AT_THE_END
        with self._lock:
            while self._lines and (left := ends - time.monotonic()) > 0:
                self._poll(left)
                self._drain()

    def _again(self) -> None:
        with self._lock:
            self._is_called_later = False
            self._drain()

    def _drain(self) -> None:
        # The condition is asked again after the flag is down: a line that an interruption has
        # queued between the last pop and that moment is still seen.
        while self._lines and not self._is_writing:
            self._is_writing = True
            try:
                while self._lines:
                    if not self._write_next():
                        self._try_later()
                        return
                    if self._is_full and not self._lines:
                        self._is_full = False
                        self._put_first(self._take_lost())
            finally:
                self._is_writing = False

    def _try_later(self) -> None:
        if self._later is not None and not self._is_called_later:
            self._is_called_later = True
            self._later(self._delay, self._again)
            self._delay = min(2 * self._delay, _AGAIN[1])

    def _write_next(self) -> bool:
        """Write the next line; return False if that would have to wait."""
        rest = self._lines.popleft()
        self._waiting -= len(rest)
        lost = 0 if self._is_full else self._lost
        if lost:
            rest = self._take_lost() + rest
        try:
            while rest:
                try:
                    rest = rest[self._write(self._fd, rest) :]
                    self._delay = _AGAIN[0]
                except BlockingIOError:
                    if self._later is not None:
                        self._put_first(rest)
                        return False
                    # Whoever gave us a descriptor that doesn't block has made it so for another
                    # process that shares it (an ssh session, a test runner): wait as it would.
                    self._poll(None)
        except OSError:
            self._lost += lost + 1
        return True

    def _put_first(self, line: bytes) -> None:
        self._lines.appendleft(line)
        self._waiting += len(line)

    def _take_lost(self) -> bytes:
        lost, self._lost = self._lost, 0
        return self._line_about(lost)

    def _poll(self, seconds: float | None) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        poll.poll(None if seconds is None else seconds * 1000)


def never_blocking(fd: int) -> tuple[int, Callable[[int, bytes], int]]:
    """Return a descriptor of the same file, and what writes to it without waiting for whoever reads
    it; other processes that have *fd*, too, are not concerned.

    A file on a disk is waited for: so is one by this name whose mode can't be had (a pipe of
    another user's, without /proc).
    """
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISSOCK(mode):
            sending = socket.socket(fileno=os.dup(fd))
            return fd, lambda _, data: sending.send(data, socket.MSG_DONTWAIT)
        if stat.S_ISFIFO(mode) or os.isatty(fd):
            # An open file of its own: that it doesn't block is a matter of the open file.
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            return os.open(f"/proc/self/fd/{fd}", flags), os.write
    except OSError:
        pass  # it is as it is
    return fd, os.write

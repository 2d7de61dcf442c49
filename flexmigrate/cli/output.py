"""Standard input, output and error of a process that may have been given none, or a full disk.

A descriptor below 3 that is closed would be the next file's: the log would be written into the
image. So these three are always open. What can't be written to standard output is an error of the
command; what can't be written to standard error is nobody's, since nobody would be told.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
from typing import Any, TextIO

from flexmigrate.errors import FlexmigrateError


class OutputError(FlexmigrateError):
    """Standard output can't be written to.

    :ivar errno: the error number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"standard output: {os.strerror(number)}")
        self.errno = number


def prepare() -> None:
    """See to it that the process has standard streams, and that what can't be written to them is
    an `OutputError`, or nothing. Streams that somebody has put in their place are left alone.
    """
    was_open = {fd for fd in range(3) if _is_open(fd)}
    open_missing()
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115  # for as long as the process lives
    if sys.stdout is None or sys.stdout is sys.__stdout__:
        sys.stdout = _stream(_Output(1, is_open=1 in was_open), sys.stdout)
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        sys.stderr = _stream(_Errors(2), sys.stderr, line_buffering=True)


def open_missing() -> None:
    """Open /dev/null in the place of each standard stream that is closed."""
    for fd in range(3):
        if not _is_open(fd):
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest that is free: this one
            os.set_inheritable(opened, True)


def give_up() -> None:
    """Write nothing more to standard output: the interpreter would try once more at its end."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # for as long as the process lives


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _stream(raw: _Output, like: TextIO | None, *, line_buffering: bool = False) -> TextIO:
    """Return a text stream to *raw*, with the encoding and the buffering of *like*."""
    model: Any = like
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(model, "encoding", None),
        errors=getattr(model, "errors", "backslashreplace"),
        line_buffering=line_buffering or getattr(model, "line_buffering", False),
        write_through=getattr(model, "write_through", False),
    )


class _Output(io.RawIOBase):
    """Standard output, which is written to or isn't."""

    def __init__(self, fd: int, *, is_open: bool = True) -> None:
        self._fd = fd
        self._is_open = is_open
        self._is_interrupted = False

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self._is_interrupted:
            return len(data)
        if not self._is_open:
            raise OutputError(errno.EBADF)
        while True:
            try:
                return os.write(self._fd, data)
            except BlockingIOError:
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll()
            except OSError as error:
                raise OutputError(error.errno or errno.EIO) from error
            except KeyboardInterrupt:
                # It may come after the write and before its return. The stream doesn't know then
                # that it has written, and would write the same again at its end.
                self._is_interrupted = True
                raise


class _Errors(_Output):
    """Standard error, of which it doesn't matter."""

    def write(self, data: Any) -> int:
        with contextlib.suppress(OutputError):
            return super().write(data)
        return len(data)

"""Real processes under test: start them, wait for what they say, end them, see how they ended.

Nothing here sleeps: a thread per stream reads lines as they come, and whoever waits for a line is
woken by it. Every wait has a limit in seconds, and an error tells all that the process has said.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

TESTS = Path(__file__).resolve().parent.parent

# Generous, for a busy machine: a wait that is met costs nothing, however long its limit is.
PATIENCE = 60.0

# One of our servers is ready when it has logged this; a UNIX socket has a path for an address.
LISTENING = re.compile(r"listening on (?:\[?(?P<host>[^\s\]]+)\]?:(?P<port>\d+)|(?P<path>/\S+))")


def script(name: str) -> str:
    """Return the path of the program *name* that stands beside this Python."""
    return str(Path(sys.executable).with_name(name))


class Child:
    """One process that a test has started."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self.argv = list(argv)
        self.process = subprocess.Popen(
            self.argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
        )
        self._lines: list[str] = []
        self._said = threading.Condition()
        self._readers = [
            threading.Thread(target=self._listen_to, args=(stream,), daemon=True)
            for stream in (self.process.stdout, self.process.stderr)
            if stream is not None
        ]
        self._open = len(self._readers)
        for reader in self._readers:
            reader.start()

    def _listen_to(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                with self._said:
                    self._lines.append(line.rstrip("\n"))
                    self._said.notify_all()
        with self._said:
            self._open -= 1
            self._said.notify_all()

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    @property
    def lines(self) -> list[str]:
        """All lines said so far, on standard output and standard error, in the order they came."""
        with self._said:
            return list(self._lines)

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self.process.poll() is None

    def story(self) -> str:
        """Tell what was started, how it ended if it has, and all that it said."""
        status = self.process.poll()
        state = "running" if status is None else f"ended with {status}"
        said = [f"    {line}" for line in self.lines] or ["    (it said nothing)"]
        return "\n".join([f"$ {' '.join(self.argv)}   [pid {self.pid}, {state}]", *said])

    def wait_for(self, pattern: str | re.Pattern[str], timeout: float = PATIENCE) -> re.Match[str]:
        """Return the first match of *pattern* in a line, those already said included.

        :param timeout: seconds
        :raises AssertionError: if the process ends, or the time is up, without such a line
        """
        wanted = re.compile(pattern)
        deadline = time.monotonic() + timeout
        looked_at = 0
        with self._said:
            while True:
                for line in self._lines[looked_at:]:
                    if match := wanted.search(line):
                        return match
                looked_at = len(self._lines)
                left = deadline - time.monotonic()
                if not self._open or left <= 0:
                    break
                self._said.wait(left)
        why = f"not within {timeout} s" if self._open else "it ended first"
        raise AssertionError(f"no line matches {wanted.pattern!r}: {why}\n{self.story()}")

    def listening(self, timeout: float = PATIENCE) -> tuple[str, int]:
        """Wait until the server listens; return its address and port (0 for a UNIX socket)."""
        match = self.wait_for(LISTENING, timeout)
        return match["host"] or match["path"], int(match["port"] or 0)

    def send(self, number: signal.Signals) -> None:
        """Send the process a signal."""
        self.process.send_signal(number)

    def wait(self, timeout: float = PATIENCE) -> int:
        """Return the exit status once the process has ended and all it said has been read.

        :raises AssertionError: if it has not ended after *timeout* seconds
        """
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} s\n{self.story()}") from None
        for reader in self._readers:
            reader.join(PATIENCE)
        return status

    def expect_exit(self, status: int, timeout: float = PATIENCE) -> None:
        """Wait for the end; anything but *status* is an error (minus N: ended by signal N)."""
        found = self.wait(timeout)
        assert found == status, f"exit status {found}, not {status}\n{self.story()}"

    def end(self) -> None:
        """End the process at once, whatever it is doing; harmless if it has ended."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.wait()


class Children:
    """The processes of one test; a context manager that leaves none of them behind."""

    def __init__(self) -> None:
        self._family: list[Child] = []

    def __enter__(self) -> Children:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for child in self._family:
            child.end()
            print(child.story())  # pytest shows it if the test failed

    def start(self, *argv: str, env: Mapping[str, str] | None = None) -> Child:
        """Start any program."""
        child = Child(argv, env)
        self._family.append(child)
        return child

    def flexmigrate(self, *arguments: str, env: Mapping[str, str] | None = None) -> Child:
        """Start `flexmigrate ARGUMENTS`."""
        return self.start(script("flexmigrate"), *arguments, env=env)

    def twistd(self, *arguments: str, env: Mapping[str, str] | None = None) -> Child:
        """Start `twistd -n flexmigrate ARGUMENTS`, without a pid file."""
        return self.start(
            script("twistd"), "--nodaemon", "--pidfile=", "flexmigrate", *arguments, env=env
        )

    def python(self, *arguments: str, env: Mapping[str, str] | None = None) -> Child:
        """Start a Python program that may import `support`."""
        return self.start(sys.executable, *arguments, env={"PYTHONPATH": str(TESTS), **(env or {})})


def run(
    *argv: str, stdin: bytes = b"", timeout: float = PATIENCE
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end; return its status, and its output as bytes.

    :raises AssertionError: if it has not ended after *timeout* seconds
    """
    try:
        return subprocess.run(argv, input=stdin, capture_output=True, timeout=timeout)
    except subprocess.TimeoutExpired as expired:
        raise AssertionError(
            f"still running after {timeout} s: {' '.join(argv)}\n{expired.stdout!r}\n"
            f"{expired.stderr!r}"
        ) from None


def flexmigrate(
    *arguments: str, stdin: bytes = b"", timeout: float = PATIENCE
) -> subprocess.CompletedProcess[bytes]:
    """Run `flexmigrate ARGUMENTS` to its end, as `run` does."""
    return run(script("flexmigrate"), *arguments, stdin=stdin, timeout=timeout)

"""``mirror --wait``, ``wait`` and ``status --watch`` beside real servers: what is shown, and the
exit status, however the migration and its server end.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import signal
import socket
import struct
import subprocess
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.images import random_image
from support.operator import ask, status, wait_until
from support.processes import PATIENCE, Child, flexmigrate, script
from support.relay import Relay
from support.servers import SIZE, SLOWLY, Servers, stop

UNKNOWN = 3
COLUMNS = 200


class OnTerminal:
    """A command of ours on a terminal of its own, and all that it has written there."""

    def __init__(self, *words: str, term: str = "xterm") -> None:
        self._end, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, COLUMNS, 0, 0))
        self.process = subprocess.Popen(
            ["setsid", "--ctty", script("flexmigrate"), *words],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": term},
        )
        os.close(theirs)
        self._text = ""
        self._said = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # EIO: nobody has the other end open any more
            while data := os.read(self._end, 65536):
                with self._said:
                    self._text += data.decode()
                    self._said.notify_all()

    @property
    def text(self) -> str:
        with self._said:
            return self._text

    def wait_for(self, text: str) -> None:
        with self._said:
            assert self._said.wait_for(lambda: text in self._text, PATIENCE), self._text

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        os.write(self._end, b"\x03")

    def wait(self) -> int:
        found = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return found

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(PATIENCE)
        os.close(self._end)


@pytest.fixture
def on_terminal() -> Iterator[type[OnTerminal]]:
    started: list[OnTerminal] = []

    class Started(OnTerminal):
        def __init__(self, *words: str, term: str = "xterm") -> None:
            super().__init__(*words, term=term)
            started.append(self)

    yield Started
    for each in started:
        each.close()


def mirror_words(servers: Servers, *more: str) -> tuple[str, ...]:
    return ("mirror", *servers.place, "--sock", str(servers.source_sock), "--wait", *more)


def begin(servers: Servers, *more: str) -> Child:
    """Start `mirror --wait`, slowly, and wait until it is under way."""
    waiting = servers.children.flexmigrate(*mirror_words(servers, *SLOWLY, *more))
    waiting.wait_for("Mirror started")
    wait_until(servers.source_sock, migration_phase="copying")
    return waiting


class TestTheExitStatus:
    def test_of_one_that_succeeds(self, servers: Servers, twistd: bool) -> None:
        source, destination = servers.serve(twistd=twistd), servers.listen(twistd=twistd)
        done = flexmigrate(*mirror_words(servers))
        assert done.returncode == 0, done
        started, summary = done.stdout.decode().splitlines()
        assert started == "Mirror started"
        assert summary.startswith("complete: 4.00 MiB in 1 pass, ")
        servers.complete(source, destination)

    def test_of_many_that_are_over_before_anybody_can_look(self, servers: Servers) -> None:
        for number in range(8):  # an image that was given away is not served again
            servers.image = random_image(servers.folder / f"image-{number}", 4096)
            servers.copy = random_image(servers.folder / f"copy-{number}", 4096)
            source, destination = servers.serve(), servers.listen()
            done = flexmigrate(*mirror_words(servers))
            assert (done.returncode, done.stderr) == (0, b""), done
            assert b"complete: " in done.stdout
            servers.complete(source, destination)

    def test_of_one_that_is_refused(self, servers: Servers) -> None:
        servers.serve()
        servers.listen("127.0.0.2")
        done = flexmigrate(*mirror_words(servers))
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr.startswith(b"Mirror was rejected: ")

    def test_of_one_that_is_broken_off(self, servers: Servers) -> None:
        servers.serve()
        servers.listen()
        waiting = begin(servers)
        assert ask(servers.source_sock, "break") == (0, "mirror stopped")
        waiting.expect_exit(1)
        waiting.wait_for("^broken: ")
        waiting.wait_for("flexmigrate: broken off by the operator")

    def test_of_one_whose_server_is_told_to_end(self, servers: Servers, twistd: bool) -> None:
        source = servers.serve(twistd=twistd)
        servers.listen()
        waiting = begin(servers)
        stop(source, status=1)
        waiting.expect_exit(1)
        waiting.wait_for("SIGTERM")

    def test_of_one_whose_server_is_killed_is_that_nobody_knows(self, servers: Servers) -> None:
        source = servers.serve()
        servers.listen()
        waiting = begin(servers)
        source.send(signal.SIGKILL)
        waiting.expect_exit(UNKNOWN)
        waiting.wait_for("what became of the migration is unknown")

    def test_of_two_that_wait_for_the_same(self, servers: Servers) -> None:
        source, destination = servers.serve(), servers.listen()
        first = begin(servers)
        second = servers.children.flexmigrate("wait", "--sock", str(servers.source_sock))
        second.wait_for("copying")
        ask(servers.source_sock, "mirror_max_bps", "0")
        for waiting in (first, second):
            waiting.expect_exit(0)
            waiting.wait_for("^complete: ")
        servers.complete(source, destination)

    def test_of_waiting_for_nothing(self, servers: Servers) -> None:
        servers.serve()
        done = flexmigrate("wait", "--sock", str(servers.source_sock))
        assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"Not mirroring\n")

    def test_of_waiting_for_what_is_over(self, servers: Servers) -> None:
        servers.serve()
        servers.listen()
        servers.start_mirroring_slowly()
        ask(servers.source_sock, "break")
        done = flexmigrate("wait", "--sock", str(servers.source_sock))
        assert done.returncode == 1
        assert b"broken off by the operator" in done.stderr

    def test_waiters_that_went_away_leave_nothing_behind(self, servers: Servers) -> None:
        source = servers.serve()
        servers.listen()
        servers.start_mirroring_slowly()
        descriptors = Path(f"/proc/{source.pid}/fd")
        before = len(list(descriptors.iterdir()))
        for _ in range(20):
            waiter_at(servers.source_sock).close()
        # A question is a round trip through the server's reactor; one more descriptor is its own.
        while len(list(descriptors.iterdir())) > before + 1:
            assert status(servers.source_sock)["is_mirroring"] == "true"

    def test_who_only_ends_its_input_is_answered(self, servers: Servers) -> None:
        servers.serve()
        servers.listen()
        servers.start_mirroring_slowly()
        with waiter_at(servers.source_sock) as waiter:
            waiter.shutdown(socket.SHUT_WR)
            assert status(servers.source_sock)["is_mirroring"] == "true"
            ask(servers.source_sock, "break")
            assert waiter.recv(4096).startswith(b"1: verdict=broken ")


def waiter_at(sock: Path) -> socket.socket:
    """Ask for the end of the migration, as a script does."""
    waiter = socket.socket(socket.AF_UNIX)
    waiter.settimeout(PATIENCE)
    waiter.connect(str(sock))
    waiter.sendall(b"wait\n\n")
    return waiter


class TestOnATerminal:
    def test_the_progress_is_redrawn_and_ends_with_the_summary(
        self, servers: Servers, on_terminal: type[OnTerminal]
    ) -> None:
        source, destination = servers.serve(), servers.listen()
        waiting = on_terminal(*mirror_words(servers, *SLOWLY))
        waiting.wait_for(" % ")
        waiting.wait_for("limit 1.00 MiB/s")
        waiting.wait_for("\x1b[2F\x1b[J")
        ask(servers.source_sock, "mirror_max_bps", "0")
        assert waiting.wait() == 0
        last = waiting.text.rpartition("\x1b[J")[2].splitlines()
        assert last[0].startswith("complete: 4.00 MiB")
        servers.complete(source, destination)

    def test_ctrl_c_leaves_the_migration_running_and_says_so(
        self, servers: Servers, on_terminal: type[OnTerminal]
    ) -> None:
        servers.serve()
        servers.listen()
        waiting = on_terminal(*mirror_words(servers, *SLOWLY))
        waiting.wait_for(" % ")
        waiting.interrupt()
        assert waiting.wait() == UNKNOWN
        assert "The migration goes on." in waiting.text
        stopping = f"flexmigrate break --sock {servers.source_sock}"
        assert stopping in waiting.text
        assert status(servers.source_sock)["is_mirroring"] == "true"
        assert flexmigrate(*stopping.split()[1:]).returncode == 0

    def test_a_dumb_one_gets_lines(self, servers: Servers, on_terminal: type[OnTerminal]) -> None:
        servers.serve()
        servers.listen()
        waiting = on_terminal(*mirror_words(servers, *SLOWLY), term="dumb")
        waiting.wait_for("copying [")
        waiting.interrupt()
        assert waiting.wait() == UNKNOWN
        assert "\x1b" not in waiting.text

    def test_an_attempt_that_failed(self, servers: Servers, on_terminal: type[OnTerminal]) -> None:
        servers.serve()
        servers.listen()
        with Relay("127.0.0.1", int(servers.place[3])) as relay:
            servers.send_to("127.0.0.1", relay.port)
            waiting = on_terminal(*mirror_words(servers, *SLOWLY))
            waiting.wait_for(" % ")
            relay.cut()
            waiting.wait_for("attempt 1 failed, another follows: ")
            waiting.wait_for("attempt 2: ")
            waiting.interrupt()
            assert waiting.wait() == UNKNOWN


class TestTheStatus:
    def test_as_json(self, servers: Servers) -> None:
        server = servers.serve()
        done = flexmigrate("status", "--sock", str(servers.source_sock), "--json")
        assert done.returncode == 0
        told = json.loads(done.stdout)
        assert (told["pid"], told["size"], told["is_mirroring"]) == (server.pid, SIZE, False)

    def test_watched_through_a_pipe_is_a_line_for_each_change(self, servers: Servers) -> None:
        servers.serve()
        servers.listen()
        sock = str(servers.source_sock)
        plain = servers.children.flexmigrate("status", "--sock", sock, "--watch")
        lines = servers.children.flexmigrate("status", "--sock", sock, "--watch", "--json")
        plain.wait_for("is_mirroring=false")
        lines.wait_for('"is_mirroring": false')
        servers.start_mirroring_slowly()
        plain.wait_for("migration_phase=copying")
        lines.wait_for('"migration_phase": "copying"')
        ask(servers.source_sock, "break")
        plain.wait_for("last_migration_verdict=broken")
        for each in (plain, lines):
            each.send(signal.SIGINT)
            each.expect_exit(0)
            assert len(each.lines) == len(set(each.lines))

    def test_watched_until_the_server_ends(self, servers: Servers) -> None:
        server = servers.serve()
        watching = servers.children.flexmigrate(
            "status", "--sock", str(servers.source_sock), "--watch"
        )
        watching.wait_for("pid=")
        stop(server)
        watching.expect_exit(1)
        watching.wait_for("no server answers")

    def test_watched_on_a_terminal(self, servers: Servers, on_terminal: type[OnTerminal]) -> None:
        server = servers.serve()
        watching = on_terminal("status", "--sock", str(servers.source_sock), "--watch")
        watching.wait_for(f"server {server.pid}: 4.00 MiB, 0 clients; owns the image")
        servers.listen()
        servers.start_mirroring_slowly()
        watching.wait_for("copying [")
        watching.interrupt()
        assert watching.wait() == 0

    def test_of_which_nobody_reads_more_than_the_beginning(self, servers: Servers) -> None:
        servers.serve()
        words = (script("flexmigrate"), "status", "--sock", str(servers.source_sock), "--watch")
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as watching:
            assert watching.stdout is not None
            assert watching.stderr is not None
            assert watching.stdout.readline().startswith(b"pid=")
            watching.stdout.close()
            # A change is what it writes of next.
            servers.listen()
            servers.start_mirroring_slowly()
            assert watching.wait(PATIENCE) == 1
            assert b"Traceback" not in watching.stderr.read()

from __future__ import annotations

import shutil
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks, succeed
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from flexmigrate.control.caller import MAX_ANSWER, call
from flexmigrate.control.grammar import mirror_command
from flexmigrate.control.server import listen_control
from flexmigrate.errors import CommandError, ConnectFailed
from flexmigrate.migration.request import ConvergeChange, MirrorRequest
from flexmigrate.net.address import Address
from flexmigrate.telemetry.status import Status, parse_status

STATUS = Status(
    pid=1, size=512, has_control=True, clients_allowed=True, num_clients=0, is_mirroring=False
)


class Steady:
    """An operator that agrees to everything at once."""

    def __init__(self) -> None:
        self.acl: list[str] = []
        self.requests: list[MirrorRequest] = []

    def status(self, export: str | None) -> Status:
        return STATUS

    def set_acl(self, entries: list[str]) -> None:
        self.acl = entries

    def mirror(self, request: MirrorRequest) -> Deferred[str]:
        self.requests.append(request)
        return succeed("Mirror started")

    def set_max_bps(self, n: int, export: str | None) -> str:
        raise CommandError("Not mirroring")

    def set_converge(self, change: ConvergeChange, export: str | None) -> str:
        raise CommandError("Not mirroring")

    def break_mirror(self, export: str | None) -> str:
        return "mirror stopped"


class RealSocketTests(TestCase):
    """The command line's call meets the server over a socket of the kernel."""

    def setUp(self) -> None:
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        self.path = f"{folder}/sock"
        self.operator = Steady()
        port = listen_control(reactor, self.path, self.operator)
        self.addCleanup(port.stopListening)

    def call(self, *lines: str) -> Deferred[Any]:
        return deferToThread(call, self.path, list(lines), 10.0)

    def send(self, data: bytes, *, half_close: bool) -> Deferred[bytes]:
        """What a script with netcat does: send, perhaps half-close, read to the end."""

        def talk() -> bytes:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(60)
                client.connect(self.path)
                client.sendall(data)
                if half_close:
                    client.shutdown(socket.SHUT_WR)
                return b"".join(iter(lambda: client.recv(4096), b""))

        return deferToThread(talk)

    @inlineCallbacks
    def test_status(self):
        code, text = yield self.call("status")
        self.assertEqual(code, 0)
        self.assertEqual(parse_status(text)["size"], "512")

    @inlineCallbacks
    def test_mirror(self):
        destination = Address.tcp("10.0.0.2", 10809)
        request = MirrorRequest(destination, bind="10.0.0.1", max_bps=1 << 40)
        answer = yield self.call(*mirror_command(request))
        self.assertEqual(answer, (0, "Mirror started"))
        self.assertEqual(self.operator.requests, [request])

    @inlineCallbacks
    def test_a_refusal(self):
        answer = yield self.call("mirror_max_bps", "1")
        self.assertEqual(answer, (1, "Not mirroring"))

    @inlineCallbacks
    def test_a_large_access_list(self):
        entries = [f"10.0.{n >> 8}.{n & 255}" for n in range(1000)]
        answer = yield self.call("acl", *entries)
        self.assertEqual(answer, (0, "updated"))
        self.assertEqual(self.operator.acl, entries)

    @inlineCallbacks
    def test_a_script_that_ends_its_command_by_the_end_of_input(self):
        answer = yield self.send(b"break\n", half_close=True)
        self.assertEqual(answer, b"0: mirror stopped\n")

    @inlineCallbacks
    def test_a_script_that_waits_for_the_server_to_close(self):
        answer = yield self.send(b"break\n\n", half_close=False)
        self.assertEqual(answer, b"0: mirror stopped\n")

    @inlineCallbacks
    def test_many_calls_at_once(self):
        calls = [self.call("status") for _ in range(20)]
        for each in calls:
            code, _ = yield each
            self.assertEqual(code, 0)


class StrangeServerTests(SynchronousTestCase):
    """Each way in which what listens there can be no server of ours."""

    def setUp(self) -> None:
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        self.path = Path(folder) / "sock"

    def serve(self, behave: Callable[[socket.socket], None]) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.path))
        listener.listen()

        def serve() -> None:
            with listener, listener.accept()[0] as connection:
                behave(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        self.addCleanup(thread.join)

    def assert_fails(self, kind: type[Exception], text: str, timeout: float = 10.0) -> None:
        with self.assertRaises(kind) as caught:
            call(str(self.path), ["status"], timeout)
        self.assertIn(text, str(caught.exception))

    def test_nobody_is_there(self) -> None:
        self.assert_fails(ConnectFailed, f"{self.path}: No such file or directory")

    def test_the_server_has_died(self) -> None:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(self.path))
        self.assert_fails(ConnectFailed, f"{self.path}: Connection refused")

    def test_the_path_is_too_long_for_a_socket(self) -> None:
        self.path = self.path / ("x" * 200)
        self.assert_fails(ConnectFailed, "path too long")

    def test_it_has_others_to_accept_first_and_never_does(self) -> None:
        with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
            busy.bind(str(self.path))
            busy.listen(0)
            first.connect(str(self.path))
            self.assert_fails(ConnectFailed, "temporarily unavailable", timeout=0.05)

    def test_it_has_others_to_accept_first_and_does(self) -> None:
        with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
            busy.bind(str(self.path))
            busy.listen(0)
            first.connect(str(self.path))

            def accept() -> None:
                with busy.accept()[0], busy.accept()[0] as connection:
                    connection.sendall(b"0: at last\n")
                    connection.recv(4096)

            thread = threading.Timer(0.01, accept)
            thread.start()
            self.addCleanup(thread.join)
            self.assertEqual(call(str(self.path), ["status"], 10.0), (0, "at last"))

    def test_it_closes_without_an_answer(self) -> None:
        self.serve(lambda connection: connection.recv(4096) and None)
        self.assert_fails(CommandError, "closed the connection without an answer")

    def test_it_never_answers(self) -> None:
        gone = threading.Event()
        self.serve(lambda connection: gone.wait() and None)
        self.addCleanup(gone.set)
        self.assert_fails(CommandError, "no answer within 0.05 s", timeout=0.05)
        gone.set()

    def test_it_never_comes_to_the_end_of_its_answer(self) -> None:
        def babble(connection: socket.socket) -> None:
            connection.recv(4096)
            connection.sendall(b"0" * (MAX_ANSWER + 1))
            connection.recv(4096)

        self.serve(babble)
        self.assert_fails(CommandError, f"more than {MAX_ANSWER} bytes")

    def test_its_answer_comes_in_pieces(self) -> None:
        def stutter(connection: socket.socket) -> None:
            connection.recv(4096)
            for byte in b"0: pid=1 \n":
                connection.sendall(bytes([byte]))

        self.serve(stutter)
        self.assertEqual(call(str(self.path), ["status"], 10.0), (0, "pid=1"))

    def test_it_speaks_something_else(self) -> None:
        def greet(connection: socket.socket) -> None:
            connection.sendall(b"220 mail.example\n")
            connection.recv(4096)

        self.serve(greet)
        self.assert_fails(CommandError, "makes no sense")

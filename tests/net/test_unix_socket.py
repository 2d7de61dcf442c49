from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import tempfile
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import inlineCallbacks
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory
from twisted.trial.unittest import TestCase

from flexmigrate.net.unix_socket import SocketPathError, listen_private


class ListenPrivateTests(TestCase):
    def setUp(self) -> None:
        # trial's own folders can have longer names than a socket may.
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.path = self.folder / "sock"

    def listen(self) -> IListeningPort:
        port = listen_private(reactor, str(self.path), Factory())
        self.addCleanup(port.stopListening)
        return port

    def leave_behind(self) -> None:
        """What a server that was killed leaves: the file of a socket on which nobody listens."""
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(os.fspath(self.path))

    def assert_refused(self, reason: str, number: int | None = None) -> None:
        with self.assertRaises(SocketPathError) as caught:
            listen_private(reactor, str(self.path), Factory())
        self.assertEqual(str(caught.exception), f"{self.path}{reason}")
        self.assertEqual(caught.exception.errno, number)

    def test_the_file_is_for_its_owner_alone_whatever_the_umask(self) -> None:
        old = os.umask(0)
        try:
            self.listen()
        finally:
            os.umask(old)
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)

    def test_the_file_of_a_dead_server_is_replaced(self) -> None:
        self.leave_behind()
        self.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(os.fspath(self.path))

    def test_a_living_server_is_left_alone(self) -> None:
        self.listen()
        self.assert_refused(" is in use by another server", errno.EADDRINUSE)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(os.fspath(self.path))

    def test_a_living_server_too_busy_to_accept_is_left_alone(self) -> None:
        with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as client:
            busy.bind(os.fspath(self.path))
            busy.listen(0)
            client.connect(os.fspath(self.path))
            self.assert_refused(" is in use by another server", errno.EADDRINUSE)

    def test_a_file_that_is_no_socket_is_left_alone(self) -> None:
        self.path.write_text("precious")
        self.assert_refused(" exists, and is not a socket")
        self.assertEqual(self.path.read_text(), "precious")

    def test_a_link_to_a_socket_is_left_alone(self) -> None:
        self.path.symlink_to("elsewhere")
        self.assert_refused(" exists, and is not a socket")

    def test_a_folder_that_does_not_exist(self) -> None:
        self.path = self.folder / "missing" / "sock"
        self.assert_refused(": No such file or directory", errno.ENOENT)

    @inlineCallbacks
    def test_the_file_goes_away_with_the_port(self):
        yield self.listen().stopListening()
        self.assertFalse(self.path.exists())

    @inlineCallbacks
    def test_a_file_that_has_gone_is_no_reason_not_to_close(self):
        port = self.listen()
        self.path.unlink()
        yield port.stopListening()
        self.listen()

    @inlineCallbacks
    def test_the_file_of_another_server_is_not_removed(self):
        port = self.listen()
        self.path.unlink()
        self.leave_behind()
        yield port.stopListening()
        self.assertTrue(self.path.is_socket())

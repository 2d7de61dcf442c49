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
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory
from twisted.trial.unittest import TestCase

from flexmigrate.net.unix_socket import OwnedPort, SocketPathError, listen_private


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
        self.assertEqual(str(caught.exception), reason.format(path=self.path))
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
        self.assert_refused("{path} is in use by another server", errno.EADDRINUSE)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(os.fspath(self.path))

    def test_a_living_server_too_busy_to_accept_is_left_alone(self) -> None:
        with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as client:
            busy.bind(os.fspath(self.path))
            busy.listen(0)
            client.connect(os.fspath(self.path))
            self.assert_refused("{path} is in use by another server", errno.EADDRINUSE)

    def test_a_file_that_is_no_socket_is_left_alone(self) -> None:
        self.path.write_text("precious")
        self.assert_refused("{path} exists, and is not a socket")
        self.assertEqual(self.path.read_text(), "precious")

    def test_a_link_to_a_socket_is_left_alone(self) -> None:
        self.path.symlink_to("elsewhere")
        self.assert_refused("{path} exists, and is not a socket")

    def test_a_folder_that_does_not_exist(self) -> None:
        self.path = self.folder / "missing" / "sock"
        self.assert_refused(
            "cannot open the socket {path}: No such file or directory", errno.ENOENT
        )

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


class EndpointPortTests(TestCase):
    """The port behind ``unix:`` endpoints, which has a lock file, and behind ``systemd:`` ones."""

    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.path = self.folder / "sock"

    def listen(self) -> IListeningPort:
        port = OwnedPort(os.fsencode(self.path), Factory(), 50, 0o600, reactor, wantPID=True)
        port.startListening()
        self.addCleanup(port.stopListening)
        return port

    @inlineCallbacks
    def test_what_was_closed_can_be_opened_again_by_the_same_process(self):
        port = self.listen()
        yield port.stopListening()
        self.assertEqual(list(self.folder.iterdir()), [])
        self.listen()

    def test_a_lock_that_another_has_is_left_to_it(self) -> None:
        port = self.listen()
        with self.assertRaises(CannotListenError):
            self.listen()
        self.assertTrue(self.path.is_socket())
        self.assertTrue(port.lockFile.locked)

    def test_where_binding_fails_the_lock_is_freed(self) -> None:
        self.path.write_text("precious")
        for _ in range(2):
            with self.assertRaises(CannotListenError) as caught:
                self.listen()
            self.assertEqual(caught.exception.socketError.errno, errno.EADDRINUSE)
        self.assertEqual([each.name for each in self.folder.iterdir()], ["sock"])

    @inlineCallbacks
    def test_a_socket_that_was_handed_over_keeps_its_file_and_its_mode(self):
        with socket.socket(socket.AF_UNIX) as theirs:
            theirs.bind(os.fspath(self.path))
            theirs.listen()
            theirs.setblocking(False)
            self.path.chmod(0o640)
            port = OwnedPort.adopt(reactor, theirs.fileno(), Factory())
            port.startListening()
            self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o640)
            yield port.stopListening()
            self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o640)
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(os.fspath(self.path))  # its owner still listens

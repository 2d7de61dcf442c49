"""A listening UNIX socket that only its owner can use, and whose file is cleaned up.

Twisted's own UNIX port has three defects here: for a moment its file is accessible to everybody
whom the umask lets in; the file of a killed server blocks its successor forever (its lock file
helps until another process gets the same number, which in a container is soon); and it can't be
closed cleanly once its file is gone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from typing import Any

from twisted.internet import tcp, unix
from twisted.internet.address import UNIXAddress
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from flexmigrate.errors import FlexmigrateError
from flexmigrate.net.accepting import AcceptingPort
from flexmigrate.net.twisted_private import adopt_unix_port

# Anybody who can write to the socket can have the image sent away and deleted.
SOCKET_MODE = 0o600


class SocketPathError(FlexmigrateError):
    """A UNIX socket can't be opened; the text names its path and the cause.

    :ivar errno: the error number, as of an OSError, if there is one; a server that tries again to
        listen decides by it.
    """

    def __init__(self, text: str, number: int | None = None) -> None:
        super().__init__(text)
        self.errno = number


def listen_private(reactor: Any, path: str, factory: Factory) -> IListeningPort:
    """Listen on the UNIX socket *path*, mode 0600, for *factory*.

    The file of a dead server is replaced. The port removes its file when it closes.

    :param reactor: one that watches file descriptors (``IReactorFDSet``).
    :raises SocketPathError: a server listens there, the path is taken by something else, or the
        socket can't be made.
    """
    try:
        remove_stale_socket(path)
        port = OwnedPort(os.fsencode(path), factory, mode=SOCKET_MODE, reactor=reactor)
        port.startListening()
    except CannotListenError as failed:
        error = failed.socketError
        raise SocketPathError(
            f"cannot open the socket {path}: {error.strerror or error}", error.errno
        ) from failed
    except OSError as failed:
        raise SocketPathError(
            f"cannot open the socket {path}: {failed.strerror or failed}", failed.errno
        ) from failed
    return port


def remove_stale_socket(path: str) -> None:
    """Unlink the socket *path* if nobody listens on it."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise SocketPathError(f"{path} exists, and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # A server with a full backlog is alive, and must not make us wait.
        probe.setblocking(False)
        outcome = probe.connect_ex(path)
    if outcome != errno.ECONNREFUSED:
        raise SocketPathError(f"{path} is in use by another server", errno.EADDRINUSE)
    os.unlink(path)


class OwnedPort(AcceptingPort, unix.Port):
    """A UNIX port whose file has the right mode from the start, and which removes only its own
    file: one that was handed to it belongs to its creator.
    """

    _is_adopted = False
    _created: socket.socket | None = None
    _identity: tuple[int, int] | None = None

    def __init__(self, path: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(path, *args, **kwargs)
        self._path = UNIXAddress(path).name or b""

    @classmethod
    def adopt(cls, reactor: Any, fd: int, factory: Any) -> OwnedPort:
        """Return a port for a copy of the listening socket *fd*, not yet started."""
        port = adopt_unix_port(cls, reactor, fd, factory)
        port._is_adopted = True
        return port

    def startListening(self) -> None:
        has_file = not self._path.startswith(b"\0")  # unix(7), "abstract"
        if self._is_adopted and has_file:
            # unix.Port would give everybody access.
            self.mode = stat.S_IMODE(os.stat(self._path).st_mode)
        try:
            super().startListening()
        except CannotListenError:
            self._take_back()
            raise
        if self._created is not None and has_file:
            self._identity = _identity(self._path)

    def _take_back(self) -> None:
        """Undo what Twisted leaves behind when it can't bind: the socket, the file's lock, and a
        started factory.
        """
        if self._created is None:  # the lock is another server's
            self.lockFile = None
            return
        self._created.close()
        assert self.factory is not None  # It has just been started.
        self.factory.doStop()
        self._unlock()

    def _unlock(self) -> None:
        if self.lockFile is not None:
            self.lockFile.unlock()
            self.lockFile = None

    def createInternetSocket(self) -> socket.socket:
        created: socket.socket = super().createInternetSocket()  # type: ignore[no-untyped-call]  # Twisted's
        # On bind, Linux gives the file the socket's mode. A chmod afterwards would leave it
        # accessible for a moment to everybody whom the umask lets in.
        os.fchmod(created.fileno(), self.mode)
        self._created = created
        return created

    def connectionLost(self, reason: Failure) -> None:
        # Unlike in unix.Port, the port is closed even if the file is gone, or belongs to another
        # server by now.
        with contextlib.suppress(FileNotFoundError):
            if self._identity and _identity(self._path) == self._identity:
                os.unlink(self._path)
        self._unlock()
        tcp.Port.connectionLost(self, reason)


def _identity(path: bytes) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino

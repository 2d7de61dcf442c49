"""Other projects' NBD servers, each behind a socket that the test has opened before they start.

So nobody waits for a server to listen: who connects is answered once it runs. nbdkit and qemu-nbd
take the listening socket by socket activation (sd_listen_fds(3)); nbd-server takes one accepted
connection, as inetd would give it.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

# Puts descriptor argv[1] where socket activation expects it, and becomes the program argv[2:].
_ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execvp(sys.argv[2], sys.argv[2:])
"""

_NBD_SERVER_CONFIG = """
[generic]
{tls}
[disk]
exportname = {image}
flush = true
fua = true
trim = true
"""

PATIENCE = 60.0  # seconds

Serving = contextlib.AbstractContextManager[None]


@dataclass(frozen=True)
class Peer:
    """A server of another project.

    :ivar program: what has to be installed.
    :ivar serve: serves an image behind a listening socket while its context lasts; what the server
        says goes to a file beside the image.
    :ivar export: the name of its export.
    :ivar unix: whether it can serve a UNIX socket.
    :ivar honest: whether it can do all that it advertises.
    """

    program: str
    serve: Callable[[socket.socket, Path], Serving]
    export: str = ""
    unix: bool = True
    honest: bool = True

    @property
    def missing(self) -> bool:
        """Whether it is not installed."""
        return shutil.which(self.program) is None


@contextlib.contextmanager
def _activated(listening: socket.socket, image: Path, *argv: str) -> Iterator[None]:
    """Run a server that takes over *listening*."""
    descriptor = listening.fileno()
    with image.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _ACTIVATE, str(descriptor), *argv],
            pass_fds=[descriptor],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield
    finally:
        process.kill()
        process.wait(PATIENCE)


@contextlib.contextmanager
def _inetd(listening: socket.socket, image: Path, *argv: str) -> Iterator[None]:
    """Run a server for the first connection to *listening*."""
    started: list[subprocess.Popen[bytes]] = []

    def serve_first() -> None:
        with contextlib.suppress(OSError):  # nobody came
            connection, _ = listening.accept()
            with connection, image.with_suffix(".log").open("wb") as log:
                started.append(
                    subprocess.Popen(argv, stdin=connection.fileno(), stdout=log, stderr=log)
                )

    thread = threading.Thread(target=serve_first)
    thread.start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
        thread.join(PATIENCE)
        for process in started:
            process.kill()
            process.wait(PATIENCE)


def _nbdkit(*plugin: str) -> Callable[[socket.socket, Path], Serving]:
    def serve(listening: socket.socket, image: Path) -> Serving:
        arguments = [argument.format(image=image, size=image.stat().st_size) for argument in plugin]
        return _activated(listening, image, "nbdkit", "--foreground", *arguments)

    return serve


def _qemu_nbd(*more: str) -> Callable[[socket.socket, Path], Serving]:
    def serve(listening: socket.socket, image: Path) -> Serving:
        options = ("--format=raw", "--discard=unmap", "--persistent", *more)
        return _activated(listening, image, "qemu-nbd", *options, str(image))

    return serve


def _nbd_server(tls: str = "") -> Callable[[socket.socket, Path], Serving]:
    def serve(listening: socket.socket, image: Path) -> Serving:
        config = image.with_suffix(".conf")
        config.write_text(_NBD_SERVER_CONFIG.format(image=image, tls=tls))
        # -d: don't fork, or it would look for its client's address in vain.
        return _inetd(listening, image, "nbd-server", "0", str(image), "-d", "-C", str(config))

    return serve


PEERS: dict[str, Peer] = {
    "nbdkit-file": Peer("nbdkit", _nbdkit("file", "{image}")),
    "nbdkit-memory": Peer("nbdkit", _nbdkit("memory", "{size}")),
    "nbdkit-simple-replies": Peer("nbdkit", _nbdkit("--no-sr", "file", "{image}")),
    # nbdkit 1.32 advertises flush, trim and zeroes here, and answers them with EINVAL.
    "nbdkit-oldstyle": Peer("nbdkit", _nbdkit("--oldstyle", "file", "{image}"), honest=False),
    "qemu-nbd": Peer("qemu-nbd", _qemu_nbd()),
    "nbd-server": Peer("nbd-server", _nbd_server(), export="disk", unix=False),
}


def peers_with_tls(certificates: Path) -> dict[str, Peer]:
    """Return servers that let nobody in without TLS.

    :param certificates: the folder with the server's, see `support.certificates`.
    """
    credentials = f"tls-creds-x509,id=tls,dir={certificates},endpoint=server,verify-peer=off"
    tls = (
        f"certfile = {certificates}/server-cert.pem\n"
        f"keyfile = {certificates}/server-key.pem\n"
        f"cacertfile = {certificates}/ca-cert.pem\n"
        "force_tls = true\n"
    )
    return {
        "nbdkit": Peer(
            "nbdkit",
            _nbdkit("--tls=require", f"--tls-certificates={certificates}", "file", "{image}"),
        ),
        "qemu-nbd": Peer("qemu-nbd", _qemu_nbd("--object", credentials, "--tls-creds=tls")),
        "nbd-server": Peer("nbd-server", _nbd_server(tls), export="disk", unix=False),
    }

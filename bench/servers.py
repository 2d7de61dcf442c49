"""The servers that are compared: how each is started on an image, and where it is reached.

All run as Debian has them, with the options that make them do the same thing: serve one file for
writing, to many clients, through the page cache.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.processes import cpu_seconds, is_alive, peak_memory
from bench.stage import Stage, Unmeasured
from support.ports import held_port
from support.processes import PATIENCE, Child, Children, script
from support.raw_nbd import RawClient

HOST = "127.0.0.1"

_ROOT = Path(__file__).resolve().parent.parent

_NBD_SERVER = """
[generic]
listenaddr = {host}
port = {port}
{generic}
[disk]
exportname = {image}
flush = true
fua = true
trim = true
"""


@dataclass(frozen=True)
class Place:
    """An address to listen on, and the image to serve.

    :ivar path: of a UNIX socket; None for TCP.
    :ivar port: TCP.
    :ivar certificates: a folder; None for no TLS.
    """

    image: Path
    folder: Path
    port: int
    path: Path | None = None
    certificates: Path | None = None

    def uri(self, export: str = "") -> str:
        """Return what libnbd and fio take (the NBD project's doc/uri.md)."""
        scheme = "nbds" if self.certificates else "nbd"
        if self.path:
            return f"{scheme}+unix:///{export}?socket={self.path}"
        query = f"?tls-certificates={self.certificates}" if self.certificates else ""
        return f"{scheme}://{HOST}:{self.port}/{export}{query}"


@dataclass(frozen=True)
class Kind:
    """One of the servers.

    :ivar command: that serves a place; it may write files into the place's folder.
    :ivar export: the name of what it serves.
    :ivar forks: it goes into the background, and leaves its process id in the file ``pid``.
    """

    name: str
    program: str
    command: Callable[[Place], list[str]]
    export: str = ""
    forks: bool = False

    @property
    def missing(self) -> bool:
        """Whether it is not installed."""
        return shutil.which(self.program) is None


@dataclass(frozen=True)
class Running:
    """A server at work."""

    kind: Kind
    place: Place
    pid: int

    @property
    def uri(self) -> str:
        """The server's URI."""
        return self.place.uri(self.kind.export)

    def cpu(self) -> float:
        """Return the seconds of CPU that it has used."""
        return cpu_seconds(self.pid)

    def memory(self) -> int:
        """Return the bytes that it had resident at most."""
        return peak_memory(self.pid)

    def client(self) -> RawClient:
        """Connect by hand."""
        address = str(self.place.path) if self.place.path else HOST
        return RawClient.to(address, self.place.port, export=self.kind.export)


@dataclass(frozen=True)
class _Options:
    """The parts of a command that depend on the place."""

    tcp: Callable[[Place], list[str]]
    unix: Callable[[Place], list[str]]
    tls: Callable[[Path], list[str]]
    rest: Callable[[Place], list[str]] = field(default=lambda place: [str(place.image)])

    def __call__(self, place: Place) -> list[str]:
        return [
            *(self.unix(place) if place.path else self.tcp(place)),
            *(self.tls(place.certificates) if place.certificates else ()),
            *self.rest(place),
        ]


_OURS = _Options(
    tcp=lambda place: ["--addr", HOST, "--port", str(place.port)],
    unix=lambda place: ["--addr", str(place.path)],
    tls=lambda folder: ["--tls", "require", "--tls-certificates", str(folder)],
    rest=lambda place: ["--file", str(place.image)],
)
_NBDKIT = _Options(
    tcp=lambda place: ["--ipaddr", HOST, "--port", str(place.port)],
    unix=lambda place: ["--unix", str(place.path)],
    tls=lambda folder: ["--tls=require", f"--tls-certificates={folder}"],
    rest=lambda place: ["file", str(place.image)],
)
_QEMU_NBD = _Options(
    tcp=lambda place: ["--bind", HOST, "--port", str(place.port)],
    unix=lambda place: ["--socket", str(place.path)],
    tls=lambda folder: [
        "--object",
        f"tls-creds-x509,id=tls,endpoint=server,dir={folder},verify-peer=no",
        "--tls-creds=tls",
    ],
)


def _nbd_server(place: Place) -> list[str]:
    generic = []
    if place.path:
        generic.append(f"unixsock = {place.path}")
    if place.certificates:
        generic.append(f"certfile = {place.certificates}/server-cert.pem")
        generic.append(f"keyfile = {place.certificates}/server-key.pem")
        generic.append("force_tls = true")
    config = place.folder / "nbd-server.conf"
    config.write_text(
        _NBD_SERVER.format(
            host=HOST, port=place.port, image=place.image, generic="\n".join(generic)
        )
    )
    return ["nbd-server", "-C", str(config), "-p", str(place.folder / "pid")]


OURS = Kind(
    "flexmigrate",
    script("flexmigrate"),
    lambda place: [script("flexmigrate"), "serve", "--quiet", *_OURS(place)],
)
NBDKIT = Kind(
    "nbdkit",
    "nbdkit",
    lambda place: ["nbdkit", "--foreground", "--exit-with-parent", *_NBDKIT(place)],
)
QEMU_NBD = Kind(
    "qemu-nbd",
    "qemu-nbd",
    lambda place: [
        *("qemu-nbd", "--format=raw", "--discard=unmap", "--persistent", "--shared=0"),
        *_QEMU_NBD(place),
    ],
)
NBD_SERVER = Kind("nbd-server", "nbd-server", _nbd_server, export="disk", forks=True)

PEERS = (NBDKIT, QEMU_NBD, NBD_SERVER)
KINDS = (OURS, *PEERS)


@contextlib.contextmanager
def serving(
    kind: Kind, stage: Stage, *, unix: bool = False, tls: bool = False
) -> Iterator[Running]:
    """Run a server on the stage's image while the context lasts.

    :raises Unmeasured: if it isn't installed, or doesn't come up
    """
    if kind.missing:
        raise Unmeasured(f"{kind.name} is not installed")
    with contextlib.ExitStack() as ends:
        folder = stage.folder / "server"
        folder.mkdir()
        ends.callback(shutil.rmtree, folder)
        place = Place(
            stage.image,
            folder,
            ends.enter_context(held_port(HOST)),
            stage.sockets / "server" if unix else None,
            stage.certificates if tls else None,
        )
        if place.path:
            ends.callback(place.path.unlink, missing_ok=True)
        children = ends.enter_context(crew())
        child = children.start(*stage.server_pin, *kind.command(place))
        pid = child.pid
        if kind.forks:
            pid = await_pid(folder / "pid")
            ends.callback(_end_daemon, pid)
        try:
            await_listener(place, kind.name)
        except Unmeasured as error:
            raise Unmeasured(f"{error}: {child.story()}") from None
        yield Running(kind, place, pid)


@contextlib.contextmanager
def crew() -> Iterator[Children]:
    """Have children that are ended with the context, without telling their stories."""
    children = Children()
    try:
        yield children
    finally:
        with contextlib.redirect_stdout(None):
            children.__exit__(None, None, None)


def start_module(children: Children, module: str, *arguments: str) -> Child:
    """Start ``python -m MODULE ARGUMENTS`` with one of this package's modules."""
    return children.start(sys.executable, "-m", module, *arguments, env={"PYTHONPATH": str(_ROOT)})


def await_listener(place: Place, name: str) -> None:
    """Wait until somebody listens there."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(ConnectionRefusedError, FileNotFoundError):
            if place.path:
                with socket.socket(socket.AF_UNIX) as one:
                    one.connect(str(place.path))
            else:
                socket.create_connection((HOST, place.port), PATIENCE).close()
            return
        time.sleep(0.01)  # nothing else tells when another project's server is ready
    raise Unmeasured(f"{name} does not listen")


def await_pid(path: Path) -> int:
    """Wait for the file and return the process id in it."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int(path.read_text())
        time.sleep(0.01)
    raise Unmeasured(f"no process id in {path} after {PATIENCE:.0f} s")


def _end_daemon(pid: int) -> None:
    """End a process that isn't our child, and wait until it is gone."""
    deadline = time.monotonic() + PATIENCE
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        while is_alive(pid):
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

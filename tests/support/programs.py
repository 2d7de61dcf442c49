"""Other people's programs, and an image served to them."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from support.processes import PATIENCE, Child, run
from support.servers import Servers

_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"


class Programs:
    """Runs programs that may not be installed; the test is skipped then, and says so."""

    def path(self, name: str) -> str:
        """Return the path of a program."""
        found = shutil.which(name, path=_PATH)
        if found is None:
            pytest.skip(f"{name} is not installed")
        return found

    def run(self, name: str, *words: str, status: int | None = 0, timeout: float = 60) -> str:
        """Run a program to its end, and return what it said on standard output.

        :param status: how it has to end; None for anything but success
        """
        done = run(self.path(name), *words, timeout=timeout)
        expected = done.returncode != 0 if status is None else done.returncode == status
        assert expected, f"{name} {' '.join(words)}: {done}"
        return done.stdout.decode()

    def python(self, script: str, *words: str) -> str:
        """Run a script with libnbd's Python bindings, in the Python that has them."""
        system = "/usr/bin/python3"
        if not Path(system).exists() or subprocess.run([system, "-c", "import nbd"]).returncode:
            pytest.skip("python3-libnbd is not installed")
        done = run(system, "-c", script, *words, timeout=60)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()


class Served:
    """The image, served.

    :ivar image: its file.
    :ivar uri: where it is to be found.
    """

    def __init__(self, servers: Servers, way: str) -> None:
        self.image = servers.image
        self.sock = servers.source_sock
        path = servers.folder / "nbd"
        place = ("-l", str(path)) if way == "unix" else ("-l", "127.0.0.1", "-p", "0")
        more = ("--oldstyle",) if way == "oldstyle" else ()
        self.process = servers.start(
            "serve", *place, "-f", str(servers.image), "-s", str(servers.source_sock), *more
        )
        self.host, self.port = self.process.listening()
        tcp = f"nbd://{self.host}:{self.port}"
        self.uri = f"nbd+unix:///?socket={path}" if way == "unix" else tcp


def wait_until_it_listens(server: Child, port: int) -> None:
    """Wait; none of them says it, and one does not survive being knocked at (proc(5): state 0A)."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and server.running:
        for line in Path("/proc/net/tcp").read_text().splitlines():
            _, local, _, state, *_ = line.split()
            if local.endswith(f":{port:04X}") and state == "0A":
                return
    raise AssertionError(server.story())

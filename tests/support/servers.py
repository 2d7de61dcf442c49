"""A source and a destination as an operator has them: two processes, two images, two sockets."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import CompletedProcess

from support.images import MIB, assert_same, blank_image, random_image
from support.operator import wait_until
from support.processes import Child, Children, flexmigrate
from support.raw_nbd import RawClient

SIZE = 4 * MIB

# Slow enough that a migration of SIZE bytes is under way for seconds, quick enough to wait for.
SLOWLY = ("--max-bps", str(MIB))


class Servers:
    """The servers that the tests of one migration start, and their state afterwards.

    :ivar image: the source's, full of random data.
    :ivar copy: the destination's, as large and empty.
    :ivar marker: stands beside the copy while that is incomplete.
    :ivar place: address and port of the destination, as the options of ``mirror``.
    """

    def __init__(self, folder: Path, children: Children, connections: ExitStack) -> None:
        self.folder = folder
        self.children = children
        self._connections = connections
        self.image = random_image(folder / "image", SIZE)
        self.copy = blank_image(folder / "copy", SIZE)
        self.marker = folder / "copy.INCOMPLETE"
        self.source_sock = folder / "source.sock"
        self.destination_sock = folder / "destination.sock"
        self.place: tuple[str, ...] = ()

    # The servers

    def start(
        self, *words: str, twistd: bool = False, env: Mapping[str, str] | None = None
    ) -> Child:
        """Start one of our servers, under the runner that is wanted."""
        runner = self.children.twistd if twistd else self.children.flexmigrate
        return runner(*words, env=env)

    def start_program(self, *argv: str) -> Child:
        """Start any program."""
        return self.children.start(*argv)

    def serve(
        self,
        *more: str,
        port: int = 0,
        twistd: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> Child:
        """Start the source, and wait until it listens."""
        place = ("--addr", "127.0.0.1", "--port", str(port), "--sock", str(self.source_sock))
        source = self.start(
            "serve", *place, "--file", str(self.image), *more, twistd=twistd, env=env
        )
        source.listening()
        return source

    def listen(
        self,
        *more: str,
        port: int = 0,
        twistd: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> Child:
        """Start the destination, and wait until it listens."""
        place = ("--addr", "127.0.0.1", "--port", str(port), "--sock", str(self.destination_sock))
        destination = self.start(
            "listen", *place, "--file", str(self.copy), *more, twistd=twistd, env=env
        )
        self.send_to(*destination.listening())
        return destination

    def send_to(self, address: str, port: int) -> None:
        """Have `mirror` send the image there."""
        self.place = ("--addr", address, "--port", str(port))

    def client(self, server: Child) -> RawClient:
        """Connect to a server; the test's end closes the connection."""
        client = RawClient.to(*server.listening())
        self._connections.callback(client.close)
        return client

    # The operator

    def mirror(self, *more: str) -> CompletedProcess[bytes]:
        """Tell the source to migrate, and hear the answer."""
        return flexmigrate("mirror", *self.place, "--sock", str(self.source_sock), *more)

    def start_mirroring(self, *more: str) -> None:
        """Tell the source to migrate, and be told that it does."""
        answer = self.mirror(*more)
        assert answer.returncode == 0, answer
        assert answer.stdout.startswith(b"Mirror started"), answer

    def start_mirroring_slowly(self, *more: str) -> None:
        """Do so with a limit, and wait until a part of the image has been sent."""
        self.start_mirroring(*SLOWLY, *more)
        wait_until(self.source_sock, migration_phase="copying")
        wait_until_some(self.destination_sock)

    # The ends

    def complete(self, source: Child, destination: Child) -> None:
        """Check that both have ended as after a success, and the copy is the image."""
        source.expect_exit(0)
        destination.expect_exit(0)
        self.is_copied()

    def is_copied(self) -> None:
        """Check that the copy is the image, and known to be complete."""
        assert not self.marker.exists()
        assert_same(self.image, self.copy)

    def try_again(self, twistd: bool = False) -> None:
        """With new servers, migrate as if nothing had ever happened."""
        source, destination = self.serve(twistd=twistd), self.listen(twistd=twistd)
        self.start_mirroring()
        self.complete(source, destination)


def stop(server: Child, status: int = 0) -> None:
    """End a server as a supervisor does, and check how it ends."""
    server.send(signal.SIGTERM)
    server.expect_exit(status)


def wait_until_some(sock: Path) -> None:
    """Wait until the destination has received something."""
    while int(wait_until(sock, listening_phase="receiving")["covered_bytes"]) == 0:
        pass


@contextmanager
def servers_in(folder: Path, children: Children) -> Iterator[Servers]:
    """Make the images, and close the clients at the end."""
    with ExitStack() as connections:
        yield Servers(folder, children, connections)

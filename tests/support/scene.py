"""A whole migration in memory: a source, a destination, and a client that writes all the while."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.config import ExportConfig, ListenConfig, ServeConfig
from flexmigrate.migration.ownership.status import look
from flexmigrate.migration.request import Action, HandoverRule, MirrorRequest
from flexmigrate.net.address import Address
from flexmigrate.testing import Connection, Machine, Server, World, Writer
from flexmigrate.wire.handover import State

INTAKE = Address.tcp("192.0.2.2", 10810)
# Of the source at first, then of the destination: an address that moves with the image.
SERVING = Address.tcp("192.0.2.1", 10809)

# Where flushing costs nothing, if there is such a place: thousands of migrations are run.
MEMORY = "/dev/shm"

# The request that means the end, as it stands on the wire (proto.md, "Request message").
DISC = bytes.fromhex("25609513 0000 0002") + bytes(20)
FLUSH = bytes.fromhex("25609513 0000 0003")


class Scene:
    """A source that serves, a destination that waits, and a client that is connected.

    :ivar migrations: the connections that were made to the destination.
    :param image: what the source has, and where it has holes, as (offset, length).
    :param rebind: whether the destination serves afterwards, at the source's address.
    :param handover: what ``mirror`` says of it.
    :param write_every: steps of the world between two writes, while something is sent; 0: only the
        writer's own, one each *beat* seconds.
    """

    def __init__(
        self,
        folder: Path,
        image: bytes,
        *,
        seed: int | None = None,
        rebind: bool = True,
        handover: HandoverRule = HandoverRule.AUTO,
        write_every: int = 3,
        beat: float = 0.1,
    ) -> None:
        self.world = World(seed)
        self.source_image = folder / "source.img"
        self.destination_image = folder / "destination.img"
        self.marker = folder / "destination.img.INCOMPLETE"
        for left in (self.marker, *folder.glob("*.handover*")):
            left.unlink(missing_ok=True)
        for left in (self.source_image, self.destination_image):
            left.unlink(missing_ok=True)  # with what its attributes say
        self.handover = handover
        _write_sparsely(self.source_image, image)
        # Garbage, so that whatever isn't sent is seen.
        self.destination_image.write_bytes(random.Random(7).randbytes(len(image)))
        self.start_source()
        self._rebind = rebind
        self.start_destination()
        client = Machine(self.world, "client", "192.0.2.3")
        self.writer = Writer(client, [SERVING], image, seed=seed or 1, beat=beat)
        self.migrations: list[Connection] = []
        self._tail = b""
        self._cuts: list[tuple[str, int]] = []
        self.world.connected = self._connected
        if write_every:
            self.world.every(write_every, self._write)
        self.writer.start()
        self.world.run_until(lambda: self.writer.acknowledged)

    def start_source(self) -> None:
        """Start it, or start it again."""
        self.source_machine = Machine(self.world, "source", SERVING.host)
        export = ExportConfig("", str(self.source_image))
        self.source = Server(self.source_machine, ServeConfig(places=(SERVING,), exports=(export,)))

    def start_destination(self) -> None:
        """Start it, or start it again."""
        self.destination_machine = Machine(self.world, "destination", INTAKE.host)
        config = ListenConfig(
            places=(INTAKE,),
            file=str(self.destination_image),
            rebind=SERVING if self._rebind else None,
        )
        self.destination = Server(self.destination_machine, config)

    def _connected(self, connection: Connection) -> None:
        if connection.server.getHost().port != INTAKE.port:
            return
        self.migrations.append(connection)
        connection.server.wire.watch = self._arriving
        if self._cuts:
            side, at = self._cuts.pop(0)
            end = connection.server if side == "destination" else connection.client
            end.wire.cut_at = at

    def _arriving(self, data: bytes) -> None:
        self._tail = (self._tail + data)[-2 * len(DISC) :]
        if self._tail.endswith(DISC):
            flushed = self._tail.startswith(FLUSH)
            self.destination_machine.note("receives DISC")
            self.destination_machine.note("had a flush before" if flushed else "had no flush")

    def _write(self) -> None:
        """Write, as long as something is sent; else only the writer's beats do, with the time."""
        if self.migrations and not self.migrations[-1].is_over:
            self.writer.write()

    # What can be done to it

    def cut(self, side: str, at: int) -> None:
        """Cut the next migration's connection once *at* bytes have arrived at *side*."""
        self._cuts.append((side, at))

    def mirror(self, action: Action = Action.EXIT, max_bps: int = 0) -> Deferred[str]:
        """Ask for the migration."""
        asked: Deferred[str] = self.source.service.mirror(
            MirrorRequest(INTAKE, action, max_bps=max_bps, handover=self.handover)
        )
        return asked

    def reach(self, phase: str, action: Action = Action.EXIT) -> None:
        """Ask for the migration, and let it come so far."""
        self.world.result_of(self.mirror(action))
        self.world.run_until(lambda: self.migrating.migration.phase == phase)

    def finish(self) -> None:
        """Wait until the destination has the image, the source has ended, and the client has found
        its way.
        """
        self.world.run_until(lambda: self.source.is_over and self.owned, 600)
        self.wait_for_writes()

    def wait_for_writes(self) -> None:
        """Wait until the client was acknowledged something new."""
        before = self.writer.acknowledged
        self.world.run_until(lambda: self.writer.acknowledged > before + 3, 60)

    def close(self) -> None:
        """End everything that is still there."""
        self.writer.stop()
        for server in (self.source, self.destination):
            if server.status is None:
                server.signal()
            self.world.run_until(lambda server=server: server.is_over, 60)  # type: ignore[misc]

    # What is seen of it

    @property
    def migrating(self) -> Any:
        """The source's export that can be sent away."""
        return self.source.service.find(None)

    @property
    def serves(self) -> bool:
        """Whether the source has the image, and clients may use it."""
        away = self.migrating.host.ownership.state in (State.COMMITTED, State.DONE)
        return self.source.status is None and not self.migrating.given_away and not away

    @property
    def owned(self) -> bool:
        """Whether the image is the destination's, as whoever looks at its disk would say."""
        if self.marker.exists():
            return False
        return look(str(self.destination_image)).state is State.OWNER

    def faults(self, image: Path) -> list[str]:
        """Return what *image* doesn't hold of what was acknowledged."""
        return self.writer.faults(image.read_bytes())


class SceneCase(SynchronousTestCase):
    """Scenes, each of which is closed."""

    image = random.Random(3).randbytes(512) + bytes(512)
    handover = HandoverRule.AUTO

    def setUp(self) -> None:
        place = MEMORY if os.access(MEMORY, os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="flexmigrate-test-", dir=place))
        self.addCleanup(shutil.rmtree, self.folder)

    def scene(self, **more: Any) -> Scene:
        """Make a scene; it ends with the test."""
        image = more.pop("image", self.image)
        scene = Scene(self.folder, image, **{"handover": self.handover, **more})
        self.addCleanup(scene.close)
        return scene

    def assert_moved(self, scene: Scene) -> None:
        """The image is the destination's, whole, and nobody else's."""
        self.assertTrue(scene.owned)
        self.assertFalse(scene.serves)
        self.assertEqual(scene.source.status, 0)
        self.assertEqual(scene.faults(scene.destination_image), [])

    def assert_kept(self, scene: Scene) -> None:
        """The image is the source's, whole, and nobody else's; clients use it."""
        self.assertTrue(scene.serves)
        self.assertFalse(scene.owned)
        self.assertEqual(scene.faults(scene.source_image), [])
        scene.wait_for_writes()


def _write_sparsely(path: Path, image: bytes) -> None:
    """Write *image*, leaving holes where it has blocks of zeroes."""
    with path.open("wb") as file:
        file.truncate(len(image))
        for at in range(0, len(image), 4096):
            block = image[at : at + 4096]
            if any(block):
                file.seek(at)
                file.write(block)

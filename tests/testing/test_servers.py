from __future__ import annotations

import errno

from flexmigrate.config import ExportConfig, ServeConfig
from flexmigrate.errors import ConnectFailed
from flexmigrate.net.address import Address
from flexmigrate.testing import Machine, Server, World, Writer, connect_to
from support.scene import SERVING, SceneCase

SECTOR = 512


class ServerTests(SceneCase):
    image = bytes(8 * SECTOR)

    def test_serves_from_its_start_to_its_exit_status(self) -> None:
        scene = self.scene()
        client = scene.world.result_of(connect_to(scene.destination_machine, SERVING))
        scene.world.result_of(client.write(b"x" * SECTOR, 0))
        self.assertEqual(scene.source_image.read_bytes()[:SECTOR], b"x" * SECTOR)
        self.assertIsNone(scene.source.status)
        scene.source.signal()
        scene.world.run_until(lambda: scene.source.is_over)
        self.assertEqual(scene.source.status, 0)
        scene.world.run_until(lambda: client.failure is not None)
        with self.assertRaises(ConnectFailed):
            scene.world.result_of(connect_to(scene.destination_machine, SERVING))

    def test_a_server_that_can_not_listen_ends_with_1(self) -> None:
        path = self.folder / "disk.img"
        path.write_bytes(self.image)
        world = World()
        world.listen_errors[SERVING.host, SERVING.port] = errno.EADDRINUSE
        machine = Machine(world, "server", SERVING.host)
        server = Server(
            machine, ServeConfig(places=(SERVING,), exports=(ExportConfig("", str(path)),))
        )
        world.run_until(lambda: server.is_over)
        self.assertEqual(server.status, 1)
        self.assertEqual(world.trace[-1], ("server", "ends with status 1"))


class WriterTests(SceneCase):
    image = bytes(8 * SECTOR)

    def test_knows_what_it_was_promised(self) -> None:
        scene = self.scene()
        scene.world.run_until(lambda: scene.writer.acknowledged >= 50)
        scene.world.settle()
        found = scene.source_image.read_bytes()
        self.assertEqual(scene.writer.faults(found), [])
        for sector in range(8):
            broken = bytearray(found)
            broken[sector * SECTOR + 100] ^= 1
            self.assertEqual(
                scene.writer.faults(bytes(broken)),
                [f"sector {sector} has neither its last acknowledged write nor a later one"],
            )

    def test_takes_a_write_without_an_answer_for_possible(self) -> None:
        scene = self.scene()
        scene.world.settle()
        before = scene.source_image.read_bytes()
        (connection,) = scene.world.connections
        connection.client.wire.frozen = True
        scene.writer.write()
        scene.world.settle()
        after = scene.source_image.read_bytes()
        self.assertNotEqual(before, after)
        self.assertEqual((scene.writer.faults(before), scene.writer.faults(after)), ([], []))

    def test_goes_where_the_image_is(self) -> None:
        other = Address.tcp("192.0.2.8", 1)
        scene = self.scene()
        machine = Machine(scene.world, "roamer", "192.0.2.9")
        writer = Writer(machine, [other, SERVING], self.image)
        writer.start()
        scene.world.run_until(lambda: writer.acknowledged)
        (first, second) = scene.world.connections
        second.cut()
        before = writer.acknowledged
        scene.world.run_until(lambda: writer.acknowledged > before)
        writer.stop()
        scene.world.settle()
        self.assertFalse(writer.is_connected)
        self.assertFalse(first.is_over)

    def test_does_nothing_after_it_was_stopped(self) -> None:
        scene = self.scene()
        scene.writer.stop()
        scene.world.settle()
        before = scene.writer.acknowledged
        scene.world.advance(10)
        scene.writer.write()
        scene.world.settle()
        self.assertEqual(scene.writer.acknowledged, before)

"""What the writer takes for lost, and what it doesn't."""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.config import ExportConfig, ServeConfig
from flexmigrate.net.address import Address
from flexmigrate.testing import Machine, Server, World, Writer
from flexmigrate.testing.disk import SimulatedDisk

PLACE = Address.tcp("192.0.2.1", 10809)
SECTOR = 512
IMAGE = b"i" * SECTOR


class WriterTests(SynchronousTestCase):
    """One sector, so that each write is of it."""

    def start(self, *, flushes: bool, seed: int = 1) -> None:
        self.world = World()
        self.disk = SimulatedDisk()
        self.disk.put("/image", IMAGE)
        self.machine = Machine(self.world, "server", PLACE.host, self.disk.mount())
        Server(self.machine, ServeConfig(places=(PLACE,), exports=(ExportConfig("", "/image"),)))
        self.told: list[str] = []
        self.writer = Writer(
            Machine(self.world, "client", "192.0.2.3"),
            [PLACE],
            IMAGE,
            seed=seed,
            flushes=flushes,
            told=self.told.append,
        )
        self.writer.start()
        self.world.run_until(lambda: self.writer.acknowledged == 5)
        self.world.settle()

    def test_knows_who_acknowledged(self) -> None:
        self.start(flushes=False)
        self.assertEqual(self.told, ["server"] * 5)

    def test_what_was_acknowledged_has_to_be_there(self) -> None:
        self.start(flushes=False)
        image = self.disk.find("/image") or b""
        self.assertEqual(self.writer.faults(image), [])
        for other in (IMAGE, os.urandom(SECTOR)):
            self.assertEqual(len(self.writer.faults(other)), 1)

    def test_after_a_failure_what_was_never_flushed_need_not_be(self) -> None:
        self.start(flushes=False)
        self.writer.lose_unflushed("server", had_image=True)
        self.assertEqual(self.writer.faults(IMAGE), [])
        self.assertEqual(len(self.writer.faults(os.urandom(SECTOR))), 1)

    def test_a_failed_machine_that_had_not_the_image_is_excused_alone(self) -> None:
        self.start(flushes=False)
        self.writer.lose_unflushed("server", had_image=False)
        self.assertEqual(self.writer.faults(IMAGE, at="server"), [])
        self.assertEqual(len(self.writer.faults(IMAGE, at="another")), 1)

    def test_another_client_can_be_told_of_the_promises(self) -> None:
        self.start(flushes=False)
        promised = self.writer.promised
        other = Writer(
            Machine(self.world, "other", "192.0.2.9"), [], IMAGE, seed=2, promised=promised
        )
        self.assertEqual(len(other.faults(IMAGE)), 1)
        other.lose_unflushed("server", had_image=True)
        self.assertEqual(len(self.writer.faults(IMAGE)), 1)

    def test_what_was_flushed_has_to_be_there_after_a_failure(self) -> None:
        found = 0
        for seed in range(20):
            self.start(flushes=True, seed=seed)
            self.machine.die(silently=True)
            self.writer.lose_unflushed("server", had_image=True)
            synced = bytes(self.disk.named("/image").stable)
            self.assertEqual(self.writer.faults(synced), [])
            if synced != IMAGE:
                found += 1
                self.assertEqual(len(self.writer.faults(IMAGE)), 1)
        self.assertGreater(found, 5)

"""What the benchmarks stand on: images, the page cache, certificates, the long link."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from unittest import SkipTest

from cryptography import x509
from twisted.trial.unittest import SynchronousTestCase

from bench.certificates import issue
from bench.link import long_link
from bench.long_link import Line
from bench.migrations import scattered
from bench.processes import cpu_seconds, family, is_alive, peak_memory
from bench.servers import crew
from bench.stage import Scale, Stage, Unmeasured, dense, warm, warm_data
from support.images import MIB, allocated


class Temporary(SynchronousTestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)


class Images(Temporary):
    def test_a_dense_one_has_neither_a_hole_nor_a_block_of_zeroes(self) -> None:
        dense(self.folder / "image", 2 * MIB + 512)
        content = (self.folder / "image").read_bytes()
        self.assertEqual(len(content), 2 * MIB + 512)
        self.assertTrue(all(any(content[at : at + 512]) for at in range(0, len(content), 512)))
        self.assertGreaterEqual(allocated(self.folder / "image"), len(content))

    def test_a_scattered_one_has_its_data_and_nothing_else(self) -> None:
        image = scattered(self.folder / "image", 64 * MIB, MIB, 16)
        self.assertEqual(image.stat().st_size, 64 * MIB)
        self.assertLess(allocated(image), 2 * MIB)
        content = image.read_bytes()
        for at in range(0, 64 * MIB, 4 * MIB):
            self.assertTrue(any(content[at : at + 65536]))
            self.assertFalse(any(content[at + 65536 : at + 4 * MIB]))

    def test_warming_reads_data_and_comes_to_an_end_at_a_hole(self) -> None:
        for extent in (0, MIB):
            image = scattered(self.folder / "image", 4 * MIB, extent, 2)
            warm(image)
            warm_data(image)

    def test_a_stage_leaves_nothing_behind(self) -> None:
        with Stage(Scale(1, MIB), self.folder) as stage:
            stage.make_image()
            self.assertEqual(stage.image.stat().st_size, MIB)
            self.assertTrue((stage.certificates / "server-key.pem").is_file())
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_the_servers_certificate_is_signed_by_the_authority(self) -> None:
        folder = self.folder / "certificates"
        issue(folder)
        authority, server = (
            x509.load_pem_x509_certificate((folder / f"{name}-cert.pem").read_bytes())
            for name in ("ca", "server")
        )
        server.verify_directly_issued_by(authority)


class Processes(SynchronousTestCase):
    def test_a_family_is_a_process_with_all_its_descendants(self) -> None:
        with crew() as children:
            parent = children.start("sh", "-c", "sleep 60 & echo $!; wait")
            child = int(parent.wait_for(r"^\d+$")[0])
            self.assertEqual(set(family(parent.pid)), {parent.pid, child})
            os.kill(child, 9)

    def test_time_that_is_spent_is_counted(self) -> None:
        before = cpu_seconds(os.getpid())
        while cpu_seconds(os.getpid()) < before + 0.02:
            pass

    def test_memory_is_told_in_bytes(self) -> None:
        self.assertGreater(peak_memory(os.getpid()), MIB)

    def test_who_has_ended_has_neither_time_nor_memory(self) -> None:
        with crew() as children:
            gone = children.start("true")
            gone.wait()
            self.assertFalse(is_alive(gone.pid))
            self.assertEqual((cpu_seconds(gone.pid), peak_memory(gone.pid)), (0, 0))


class LongLink(SynchronousTestCase):
    def test_what_goes_in_comes_out_in_its_order_and_not_before_its_time(self) -> None:
        line = Line(0.05, 1e9)
        line.take(b"one", 10.0)
        line.take(b"two", 10.0)
        self.assertIsNone(line.arrived(10.0499))
        self.assertAlmostEqual(line.due, 10.05, places=6)
        self.assertEqual([line.arrived(10.0501) for _ in range(3)], [b"one", b"two", None])
        self.assertEqual(line.due, float("inf"))

    def test_it_has_its_rate_and_no_more(self) -> None:
        line = Line(0.0, 10e6)
        for number in range(5):
            line.take(bytes(9000), 1.0 + number * 1e-4)  # nine times as fast
        last = 0.0
        while (due := line.due) != float("inf"):
            line.arrived(due)
            last = due
        self.assertAlmostEqual(last, 1.0 + 5 * 9000 / 10e6, places=6)

    def test_what_finds_no_place_is_dropped(self) -> None:
        line = Line(0.01, 10e6)  # 200,000 bytes may wait
        for _ in range(100):
            line.take(bytes(9000), 1.0)
        kept = 200_000 // 9000 + 1
        self.assertEqual(line.dropped, 100 - kept)
        line.take(bytes(9000), 2.0)
        self.assertEqual(line.dropped, 100 - kept)

    def test_two_namespaces_are_joined_by_it(self) -> None:
        try:
            with long_link(0.02) as link, crew() as children:
                children.start(*link.far, sys.executable, "-c", _ECHOES).wait_for("^ready$")
                near = children.start(*link.near, sys.executable, "-c", _ASKS)
                taken = float(near.wait_for(r"^took (\d+\.\d+)$")[1])
        except Unmeasured as error:
            raise SkipTest(str(error)) from None
        # To connect and to be answered: there and back, twice.
        self.assertGreaterEqual(taken, 2 * 2 * 0.02)


_ECHOES = """
import socket
server = socket.create_server(("192.0.2.2", 1))
print("ready", flush=True)
near, _ = server.accept()
near.sendall(near.recv(100))
near.recv(100)
"""

_ASKS = """
import socket, time
begun = time.monotonic()
near = socket.create_connection(("192.0.2.2", 1), 20)
near.sendall(b"hello")
assert near.recv(100) == b"hello"
print("took", time.monotonic() - begun)
"""

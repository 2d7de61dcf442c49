"""What the benchmarks stand on: images, the page cache, certificates, the long link."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509
from twisted.trial.unittest import SynchronousTestCase

from bench.certificates import issue
from bench.link import relayed
from bench.long_link import Line, Way
from bench.migrations import scattered
from bench.processes import cpu_seconds, family, is_alive, peak_memory
from bench.servers import crew
from bench.stage import Scale, Stage, dense, warm, warm_data
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


@contextlib.contextmanager
def relay_to(port: int) -> Iterator[socket.socket]:
    """Connect to a server on this host through the relay."""
    with relayed(0.001) as link, socket.create_connection(link.through(port), 20) as near:
        yield near


class LongLink(SynchronousTestCase):
    def test_what_goes_in_comes_out_and_not_before_its_time(self) -> None:
        near, giver = socket.socketpair()
        taker, far = socket.socketpair()
        with near, giver, taker, far:
            Way(giver, taker, Line(0.05, 1e9)).start()
            begun = time.monotonic()
            near.sendall(b"hello")
            near.shutdown(socket.SHUT_WR)
            self.assertEqual(far.recv(100), b"hello")
            self.assertGreaterEqual(time.monotonic() - begun, 0.05)
            self.assertEqual(far.recv(100), b"")

    def test_all_connections_together_get_its_rate(self) -> None:
        line = Line(0.0, 10e6)
        begun = time.monotonic()
        threads = [threading.Thread(target=line.carry, args=(MIB,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertGreaterEqual(line.carry(MIB) - begun, 4 * MIB / 10e6)

    def test_it_leads_to_the_far_end_and_back(self) -> None:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            relay_to(server.getsockname()[1]) as near,
        ):
            far, _ = server.accept()
            with far:
                near.sendall(b"there")
                self.assertEqual(far.recv(100), b"there")
                far.sendall(b"back")
                self.assertEqual(near.recv(100), b"back")

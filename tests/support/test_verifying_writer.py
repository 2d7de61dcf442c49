"""The writer catches a server that breaks its word, and forgives one that only goes away."""

from __future__ import annotations

import contextlib
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import raw_nbd
from support.images import assert_same, random_image
from support.processes import Child, Children
from support.raw_nbd import DISC, READ, WRITE
from support.record import read_journal
from support.scripted_destination import Request, Sender

SIZE = 256 * 4096
WRITER = ("-m", "support.verifying_writer")

# What a server does instead of obeying: returns whether it has dealt with the request.
Treason = Callable[[Sender, int, Request], bool]


class Scene:
    """An image, a server for it in this process, and writers in others."""

    def __init__(self, folder: Path, children: Children) -> None:
        self.children = children
        self.image = random_image(folder / "image", SIZE)
        self.original = random_image(folder / "original", SIZE)
        self.journal = folder / "journal"
        self.port = socket.create_server(("127.0.0.1", 0))
        self.address, self.number = self.port.getsockname()

    def serve(self, treason: Treason) -> None:
        """Serve connections, one after the other, until the port is closed."""
        threading.Thread(target=self._serve, args=(treason,), daemon=True).start()

    def _serve(self, treason: Treason) -> None:
        number = 0
        while True:
            try:
                sock, _ = self.port.accept()
            except OSError:
                return
            server = Sender(sock, self.image, "newstyle")
            try:
                server.say_hello()
                while (request := server.request()).command != DISC:
                    number += 1
                    if not treason(server, number, request):
                        server.answer(request, server.obey(request))
            except (raw_nbd.Ended, ConnectionError):
                pass
            finally:
                server.close()

    def write(self, *options: str) -> Child:
        """Start a writer."""
        journal = ("--journal", str(self.journal), "--original", str(self.original))
        return self.children.python(
            *WRITER, "write", self.address, str(self.number), *journal, *options
        )

    def verify(self) -> Child:
        """Start a comparison of the image with the journal."""
        journal = ("--journal", str(self.journal), "--original", str(self.original))
        return self.children.python(*WRITER, "verify", "--image", str(self.image), *journal)

    def close(self) -> None:
        """Stop accepting; harmless if that was done."""
        with contextlib.suppress(OSError):
            self.port.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in accept()
        self.port.close()


@pytest.fixture
def scene(tmp_path: Path, children: Children) -> Iterator[Scene]:
    made = Scene(tmp_path, children)
    yield made
    made.close()


def faithful(server: Sender, number: int, request: Request) -> bool:
    return False


def test_a_faithful_server_is_verified(scene: Scene) -> None:
    scene.serve(faithful)
    writer = scene.write("--writes", "600", "--depth", "8")
    writer.expect_exit(0)
    assert int(writer.wait_for(r"verified writes=(\d+)")[1]) >= 600
    assert int(writer.wait_for(r"verified .*reads=(\d+)")[1]) > 100
    scene.verify().expect_exit(0)
    assert len(read_journal(scene.journal).acknowledged) > 200
    assert not read_journal(scene.journal).unanswered


def test_the_same_seed_writes_the_same_image(scene: Scene, tmp_path: Path) -> None:
    scene.serve(faithful)
    scene.write("--writes", "100", "--depth", "1").expect_exit(0)
    first = scene.image.rename(tmp_path / "first")
    random_image(scene.image, SIZE)
    scene.journal.unlink()
    scene.write("--writes", "100", "--depth", "1").expect_exit(0)
    assert_same(first, scene.image)


def test_a_write_that_is_acknowledged_and_lost_is_caught(scene: Scene) -> None:
    def lose_the_last(server: Sender, number: int, request: Request) -> bool:
        if request.command != WRITE or number < 100:
            return False
        raw_nbd.receive(server.sock, request.length)
        server.answer(request)
        return True

    scene.serve(lose_the_last)
    # Reading back may catch it first: then the writer is the one to say so.
    found = scene.write("--writes", "100", "--depth", "4").wait()
    verifier = scene.verify()
    verifier.expect_exit(1)
    verifier.wait_for("WRONG block .*last acknowledged write")
    assert found in (0, 1)


def test_a_wrong_byte_in_a_read_is_caught_at_once(scene: Scene) -> None:
    def lie(server: Sender, number: int, request: Request) -> bool:
        if request.command != READ:
            return False
        data = bytearray(server.obey(request))
        data[4000] ^= 0x80
        server.answer(request, bytes(data))
        return True

    scene.serve(lie)
    writer = scene.write()
    writer.wait_for("WRONG read back: block")
    writer.expect_exit(1)


def test_a_byte_broken_afterwards_is_caught_wherever_it_is(scene: Scene) -> None:
    scene.serve(faithful)
    scene.write("--writes", "50").expect_exit(0)
    written = read_journal(scene.journal).acknowledged
    for block in (next(iter(written)), next(n for n in range(256) if n not in written)):
        data = bytearray(scene.image.read_bytes())
        data[block * 4096 + 9] ^= 4
        scene.image.write_bytes(data)
        verifier = scene.verify()
        verifier.expect_exit(1)
        verifier.wait_for(f"WRONG block {block},")
        data[block * 4096 + 9] ^= 4
        scene.image.write_bytes(data)
    scene.verify().expect_exit(0)


def test_an_error_reply_is_a_broken_word(scene: Scene) -> None:
    def fail(server: Sender, number: int, request: Request) -> bool:
        if number < 20:
            return False
        server.obey(request)
        server.answer(request, error=raw_nbd.EIO)
        return True

    scene.serve(fail)
    writer = scene.write()
    writer.wait_for("WRONG .*error 5")
    writer.expect_exit(1)


def test_requests_that_a_lost_connection_left_unanswered_are_sent_again(scene: Scene) -> None:
    def hang_up(server: Sender, number: int, request: Request) -> bool:
        if number % 60:
            return False
        if number % 120:
            server.obey(request)  # done, and not answered; otherwise: neither
        # Reset, so that answers on their way are lost, too.
        server.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise raw_nbd.Ended("on purpose")

    scene.serve(hang_up)
    writer = scene.write("--writes", "400", "--depth", "8")
    writer.expect_exit(0)
    assert int(writer.wait_for(r"connections=(\d+)")[1]) > 5
    assert not read_journal(scene.journal).unanswered
    scene.verify().expect_exit(0)


def test_sigterm_ends_it_when_all_is_answered(scene: Scene) -> None:
    scene.serve(faithful)
    writer = scene.write()
    writer.wait_for("acknowledged 500")
    writer.send(signal.SIGTERM)
    writer.expect_exit(0)
    assert not read_journal(scene.journal).unanswered
    scene.verify().expect_exit(0)


def test_a_writer_that_is_killed_leaves_a_journal_that_is_right(scene: Scene) -> None:
    scene.serve(faithful)
    writer = scene.write()
    writer.wait_for("acknowledged 500")
    writer.send(signal.SIGKILL)
    writer.expect_exit(-signal.SIGKILL)
    scene.close()
    scene.verify().expect_exit(0)


def test_it_gives_up_when_no_server_comes_back(scene: Scene) -> None:
    scene.close()
    writer = scene.write("--patience", "0.2")
    writer.wait_for(r"WRONG no server for 0\.2 s")
    writer.expect_exit(1)


def test_only_the_blocks_that_it_is_told_are_written(scene: Scene, tmp_path: Path) -> None:
    scene.serve(faithful)
    allowed = {3, 5, 8, 13, 21, 34, 55, 89}
    blocks = tmp_path / "blocks"
    blocks.write_text("".join(f"{block}\n" for block in sorted(allowed)))
    scene.write("--writes", "200", "--depth", "4", "--blocks", str(blocks)).expect_exit(0)
    assert read_journal(scene.journal).acknowledged.keys() == allowed
    scene.verify().expect_exit(0)

"""An image whose size somebody else changes while it is served."""

from __future__ import annotations

import errno
import os
import subprocess
from urllib.parse import unquote

from support.images import MIB
from support.operator import ask, status, wait_until
from support.privileges import block_device, needs_root
from support.servers import SIZE, Servers, stop

GROWN = SIZE + MIB + 100


def test_new_clients_are_told_that_it_has_grown(servers: Servers) -> None:
    server = servers.serve()
    old = servers.client(server)
    os.truncate(servers.image, GROWN)
    new = servers.client(server)
    assert (old.size, new.size) == (SIZE, GROWN)
    assert old.write(SIZE, b"x" * 512) == errno.ENOSPC
    assert new.write(GROWN - 512, b"x" * 512) == 0
    assert new.write(GROWN - 5000, b"y" * 100) == 0
    assert new.flush() == 0
    assert old.read(0, 512) == servers.image.read_bytes()[:512]
    assert servers.client(server).read(GROWN - 512, 512) == b"x" * 512
    found = status(servers.source_sock)
    assert found["size"] == str(GROWN)
    assert "size_changed" not in found
    assert len([line for line in server.lines if "new clients are told so" in line]) == 1
    os.truncate(servers.copy, GROWN)
    destination = servers.listen()
    servers.start_mirroring()
    servers.complete(server, destination)


@needs_root
def test_a_device_grows_as_well(servers: Servers) -> None:
    with block_device(servers.image) as device:
        content = servers.image
        servers.image = device
        server = servers.serve()
        assert servers.client(server).size == SIZE
        os.truncate(content, SIZE + MIB)
        subprocess.run(["losetup", "--set-capacity", str(device)], check=True)
        client = servers.client(server)
        assert client.size == SIZE + MIB
        assert client.write(SIZE, b"x" * 4096) == 0
        assert client.read(SIZE, 4096) == b"x" * 4096
        stop(server)


def test_what_is_not_there_any_more_can_not_be_read(servers: Servers) -> None:
    server = servers.serve()
    client = servers.client(server)
    os.truncate(servers.image, SIZE - MIB)
    for at in (SIZE - MIB, SIZE - 4096):
        cookie = client.send(0, at, 4096)
        reply = client.reply()
        assert (reply.cookie, reply.error) == (cookie, errno.EIO)
    assert client.read(0, 512) == servers.image.read_bytes()[:512]
    assert servers.client(server).size == SIZE
    assert f"{SIZE - MIB} bytes, not {SIZE}" in unquote(status(servers.source_sock)["size_changed"])
    server.wait_for("somebody else has changed the size")
    assert len([line for line in server.lines if "somebody else has changed" in line]) == 1
    stop(server)


def test_a_migration_has_one_size(servers: Servers) -> None:
    server, destination = servers.serve(), servers.listen()
    servers.start_mirroring_slowly()
    os.truncate(servers.image, GROWN)
    assert servers.client(server).size == SIZE
    assert ask(servers.source_sock, "mirror_max_bps", "0")[0] == 0
    seen = wait_until(servers.source_sock, migration_phase="waiting")
    error = unquote(seen["migration_error"])
    assert error.startswith("at the source: somebody else has changed the size")
    # And it may be given its size back.
    os.truncate(servers.image, SIZE)
    server.expect_exit(0)
    destination.expect_exit(0)
    servers.is_copied()


def test_a_migration_begins_with_the_size_that_there_is(servers: Servers) -> None:
    servers.serve()
    os.truncate(servers.image, GROWN)
    servers.listen()
    answer = servers.mirror()
    assert answer.returncode == 1
    assert str(GROWN).encode() in answer.stderr


def test_what_was_cut_is_not_whole_because_a_client_has_lengthened_it(servers: Servers) -> None:
    server, destination = servers.serve(), servers.listen()
    client = servers.client(server)
    os.truncate(servers.image, MIB)
    cookie = client.send(0, MIB, 4096)
    assert (reply := client.reply()).cookie == cookie
    assert reply.error == errno.EIO
    assert client.write(SIZE - 4096, b"x" * 4096) == 0
    assert servers.image.stat().st_size == SIZE
    assert f"{MIB} bytes, not {SIZE}" in unquote(status(servers.source_sock)["size_changed"])
    answer = servers.mirror()
    assert answer.returncode == 1
    assert f"{MIB} bytes, not {SIZE}; what it had there is gone" in answer.stderr.decode()
    stop(server)
    # Whoever starts it again takes it as it is.
    server = servers.serve()
    assert "size_changed" not in status(servers.source_sock)
    assert servers.mirror().returncode == 0
    server.expect_exit(0)
    destination.expect_exit(0)


def test_a_migration_of_what_was_cut_meanwhile_ends(servers: Servers) -> None:
    server = servers.serve()
    servers.listen()
    servers.start_mirroring_slowly()
    client = servers.client(server)
    os.truncate(servers.image, MIB)
    client.send(0, MIB, 4096)
    assert client.reply().error == errno.EIO
    assert client.write(SIZE - 4096, b"x" * 4096) == 0
    assert ask(servers.source_sock, "mirror_max_bps", "0")[0] == 0
    seen = wait_until(servers.source_sock, is_mirroring="false")
    assert seen["last_migration_verdict"] != "complete"
    assert server.running
    stop(server)

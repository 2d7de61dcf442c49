"""A migration is nothing but NBD: to any server, from any client."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from support.images import BLOCK, MIB, assert_same, random_image, sparse_image
from support.operator import status, wait_until
from support.processes import Child
from support.programs import Programs, wait_until_it_listens
from support.servers import SIZE, Servers, stop

EXTENTS = [(0, MIB), (2 * MIB, 64 * 1024), (SIZE - BLOCK, BLOCK)]

# nbdkit's oldstyle is not among them: it advertises flush and zeroing, and refuses both (1.32).
Starter = Callable[[Programs, Servers, int], Child]


def nbdkit(programs: Programs, servers: Servers, port: int) -> Child:
    path = programs.path("nbdkit")
    words = ("-f", "-i", "127.0.0.1", "-p", str(port), "file", str(servers.copy))
    return servers.children.start(path, *words)


def qemu_nbd(programs: Programs, servers: Servers, port: int) -> Child:
    path = programs.path("qemu-nbd")
    words = ("-t", "-f", "raw", "-b", "127.0.0.1", "-p", str(port), str(servers.copy))
    return servers.children.start(path, *words)


def nbd_server(programs: Programs, servers: Servers, port: int) -> Child:
    config = servers.folder / "nbd-server.conf"
    config.write_text(
        f"[generic]\nlistenaddr = 127.0.0.1\nport = {port}\n"
        f"[default]\nexportname = {servers.copy}\nflush = true\nfua = true\ntrim = true\n"
    )
    path = programs.path("nbd-server")
    return servers.children.start(path, "-d", "-C", str(config))


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("start", [nbdkit, qemu_nbd, nbd_server])
def test_to_a_server_that_others_have_written(
    programs: Programs, servers: Servers, port: int, start: Starter, sparse: bool
) -> None:
    if sparse:
        servers.image.unlink()
        sparse_image(servers.image, SIZE, iter(EXTENTS))
    random_image(servers.copy, SIZE, seed=5)
    source = servers.serve()
    client = servers.client(source)
    assert client.write(MIB, b"i" * BLOCK) == 0
    destination = start(programs, servers, port)
    wait_until_it_listens(destination, port)
    servers.send_to("127.0.0.1", port)
    # The last of them has no export without a name.
    name = ("--remote-export", "default") if start is nbd_server else ()
    answer = servers.mirror("--handover", "plain", *name)
    warning = f"127.0.0.1:{port} doesn't say that it waits for a migration: all that it has is"
    assert answer.stdout.decode().startswith(f"Mirror started: {warning}"), answer
    source.expect_exit(0)
    assert warning in source.story()
    assert_same(servers.image, servers.copy)


def qemu_nbd_for_two(programs: Programs, servers: Servers, port: int) -> Child:
    """Start one that lets further clients wait, without a word."""
    path = programs.path("qemu-nbd")
    words = ("-t", "-e", "2", "-f", "raw", "-b", "127.0.0.1", "-p", str(port), str(servers.copy))
    return servers.children.start(path, *words)


@pytest.mark.parametrize(("start", "used"), [(nbdkit, 4), (qemu_nbd_for_two, 2)])
def test_over_as_many_connections_as_a_server_takes(
    programs: Programs, servers: Servers, port: int, start: Starter, used: int
) -> None:
    random_image(servers.copy, SIZE, seed=5)
    source = servers.serve()
    destination = start(programs, servers, port)
    wait_until_it_listens(destination, port)
    servers.send_to("127.0.0.1", port)
    servers.start_mirroring("--handover", "plain", "--connections", "4", "--max-bps", "32M")
    source.wait_for(f"{used} connections are used")
    source.expect_exit(0)
    assert f"{used + 1} connections are used" not in source.story()
    assert_same(servers.image, servers.copy)


class TestListen:
    @pytest.mark.parametrize("sparse", [False, True])
    @pytest.mark.parametrize("style", [(), ("--oldstyle",)])
    def test_fed_by_nbdcopy(
        self, programs: Programs, servers: Servers, style: tuple[str, ...], sparse: bool
    ) -> None:
        if sparse:
            servers.image.unlink()
            sparse_image(servers.image, SIZE, iter(EXTENTS))
        destination = servers.listen(*style)
        programs.run(
            *("nbdcopy", str(servers.image)),
            f"nbd://127.0.0.1:{servers.place[3]}",
        )
        destination.expect_exit(0)
        servers.is_copied()

    @pytest.mark.parametrize("style", [(), ("--oldstyle",)])
    def test_fed_by_qemu_img(
        self, programs: Programs, servers: Servers, style: tuple[str, ...]
    ) -> None:
        destination = servers.listen(*style)
        self.convert(programs, servers)
        destination.expect_exit(0)
        servers.is_copied()

    def test_fed_by_a_client_that_leaves_holes_out(
        self, programs: Programs, servers: Servers
    ) -> None:
        servers.image.unlink()
        sparse_image(servers.image, SIZE, iter(EXTENTS))
        destination = servers.listen()
        self.convert(programs, servers, "--target-is-zero")
        seen = wait_until(servers.destination_sock, listening_phase="waiting", num_clients="0")
        assert seen["has_control"] == "false"
        destination.wait_for(r"were never written, zeroed or trimmed: not taking over")
        assert servers.marker.exists()
        stop(destination, status=1)

        # The image is empty, and the operator knows that it is.
        destination = servers.listen("--coverage", "any")
        self.convert(programs, servers, "--target-is-zero")
        destination.expect_exit(0)
        servers.is_copied()

    def test_looked_at_by_nbdinfo(self, programs: Programs, servers: Servers) -> None:
        destination = servers.listen("--coverage", "any")
        said = programs.run("nbdinfo", "--size", f"nbd://127.0.0.1:{servers.place[3]}")
        assert int(said) == SIZE
        wait_until(servers.destination_sock, listening_phase="waiting", num_clients="0")
        assert status(servers.destination_sock)["has_control"] == "false"
        assert servers.marker.exists()
        stop(destination, status=1)

    def convert(self, programs: Programs, servers: Servers, *more: str) -> None:
        programs.run(
            *("qemu-img", "convert", "-n", *more, "-f", "raw", "-O", "raw", str(servers.image)),
            f"nbd://127.0.0.1:{servers.place[3]}",
        )


def test_a_client_of_others_is_followed_through_a_migration(
    programs: Programs, servers: Servers
) -> None:
    """The client of qemu reconnects to the same address, and never sees an error."""
    source = servers.serve()
    port = source.listening()[1]
    destination = servers.listen("--rebind-port", str(port))
    programs.path("qemu-io")
    writes = [f"write -P {k % 250 + 1} {k * 64}k 64k" for k in range(SIZE // 65536)]
    options = f"driver=nbd,server.type=inet,server.host=127.0.0.1,server.port={port}"
    client = servers.children.start(
        *(programs.path("qemu-io"), "--image-opts"),
        *(word for each in writes * 12 for word in ("-c", each)),
        f"{options},reconnect-delay=20,open-timeout=20",
    )
    client.wait_for("wrote 65536/65536")
    servers.start_mirroring("--max-bps", "8M")
    source.expect_exit(0)
    client.expect_exit(0, timeout=60)
    assert not [line for line in client.lines if re.search("error|failed", line, re.IGNORECASE)]
    stop(destination)
    assert servers.copy.read_bytes() == b"".join(
        bytes([k % 250 + 1]) * 65536 for k in range(SIZE // 65536)
    )
    assert Path(servers.image).exists()

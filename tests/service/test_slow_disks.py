"""A disk that takes its time is felt by its own export's clients, and by nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support import raw_nbd
from support.faulty_filesystem import FaultyFilesystem, faulty_filesystem
from support.processes import Child, Children
from support.raw_nbd import FLUSH, READ, WRITE, WRITE_ZEROES, RawClient, request
from support.servers import stop

MIB = 1 << 20


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[FaultyFilesystem]:
    with faulty_filesystem(tmp_path / "mounted") as mounted:
        (mounted.beneath / "image").write_bytes(bytes(8 * MIB))
        yield mounted
        mounted.release()


@pytest.fixture
def server(slow: FaultyFilesystem, tmp_path: Path, children: Children) -> Iterator[Child]:
    quick = tmp_path / "quick"
    quick.write_bytes(b"q" * MIB)
    exports = ("--export", f"slow={slow.folder / 'image'}", "--export", f"quick={quick}")
    started = children.flexmigrate("serve", "--addr", "127.0.0.1", "--port", "0", *exports)
    started.listening()
    yield started
    slow.release()
    stop(started)


def reach(server: Child, export: str) -> RawClient:
    client = RawClient(raw_nbd.connect(*server.listening()))
    client.hello(export)
    return client


@pytest.mark.parametrize(
    ("operation", "asked"),
    [
        ("write", [request(WRITE, 1, 4096 * n, 4096) + b"w" * 4096 for n in range(60)]),
        ("write", [request(WRITE, 1, 0, MIB) + b"w" * MIB]),
        ("read", [request(READ, 1, 4096 * n, 4096) for n in range(60)]),
        ("read", [request(READ, 1, MIB * n, MIB) for n in range(8)] * 6),
        ("fsync", [request(FLUSH, 1)] * 60),
        ("fallocate", [request(WRITE_ZEROES, 1, 4096 * n, 4096) for n in range(60)]),
    ],
    ids=["writes", "a long write", "reads", "long reads", "flushes", "zeroes"],
)
def test_another_export_is_served(
    operation: str, asked: list[bytes], server: Child, slow: FaultyFilesystem
) -> None:
    hanging, other = reach(server, "slow"), reach(server, "quick")
    slow.hold(operation)
    hanging.sock.sendall(b"".join(asked))
    slow.wait_for(operation)
    assert other.read(0, 4096) == b"q" * 4096
    assert other.write(4096, b"w" * 4096) == 0
    assert other.write(1, b"w") == 0
    assert other.flush() == 0
    assert other.call(WRITE_ZEROES, 0, 4096) == 0
    # The others of the same image, too, as far as the disk does what they ask for.
    neighbour = reach(server, "slow")
    if operation not in ("read", "fallocate"):
        assert neighbour.read(0, 4096)
    slow.release()
    other.close()
    neighbour.close()
    hanging.close()

"""An error of a disk that ends an attempt says which side it was, which file, and where in it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from support.faulty_filesystem import FaultyFilesystem, faulty_filesystem
from support.images import MIB, random_image
from support.operator import status, wait_until
from support.privileges import needs_root
from support.servers import SIZE, Servers

pytestmark = needs_root

AT = MIB + 4096


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[FaultyFilesystem]:
    """Mount a FUSE filesystem with a disk on it that is full of data."""
    with faulty_filesystem(tmp_path / "mounted") as mounted:
        random_image(mounted.beneath / "disk", SIZE)
        yield mounted


def error_of(servers: Servers, *more: str) -> str:
    """Migrate, and return why the first attempt failed."""
    servers.start_mirroring(*more)
    wait_until(servers.source_sock, migration_phase="waiting")
    return unquote(status(servers.source_sock)["migration_error"])


def drop_cached(path: Path) -> None:
    """Have nothing of the file in memory."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


@pytest.mark.parametrize("verify", ["full", "off"])
def test_what_the_source_can_not_read(
    servers: Servers, faulty: FaultyFilesystem, verify: str
) -> None:
    servers.image = faulty.folder / "disk"
    source = servers.serve()
    servers.listen()
    drop_cached(servers.image)
    faulty.fail("read", "disk", start=AT, end=AT + 1)
    error = error_of(servers, "--verify", verify)
    assert error.startswith("at the source: reading ")
    assert f" of {servers.image} failed: Input/output error" in error
    faulty.clear()
    source.expect_exit(0)


@pytest.mark.parametrize(
    ("operation", "wanted"),
    [
        ("write", r"WRITE of \d+ bytes at 1048576 failed: Input/output error"),
        ("fsync", "FLUSH failed: Input/output error"),
    ],
)
def test_what_the_destination_can_not_do(
    servers: Servers, faulty: FaultyFilesystem, operation: str, wanted: str
) -> None:
    servers.copy = faulty.folder / "disk"
    source, destination = servers.serve(), servers.listen()
    faulty.fail(operation, "disk", start=AT, end=AT + 1)
    error = error_of(servers, "--verify", "off")
    assert re.search(f"^at the destination, .*:{servers.copy} .*: {wanted}", error)
    doing = "writing .* bytes at .* of" if operation == "write" else "flushing"
    destination.wait_for(f"{doing} {servers.copy} failed.*: Input/output error")
    faulty.clear()
    source.expect_exit(0)
    destination.expect_exit(0)


def test_what_the_destination_can_not_compare(servers: Servers, faulty: FaultyFilesystem) -> None:
    servers.copy = faulty.folder / "disk"
    source = servers.serve()
    destination = servers.listen()
    servers.start_mirroring_slowly()
    faulty.fail("read", "disk")
    destination.wait_for(f"reading .* bytes at .* of {servers.copy} failed: Input/output error")
    error = unquote(status(servers.source_sock).get("migration_error", ""))
    assert not error or "the destination could not compare what it has between" in error
    assert source.running


def test_a_client_s_request_is_logged_with_it(servers: Servers, faulty: FaultyFilesystem) -> None:
    servers.image = faulty.folder / "disk"
    server = servers.serve()
    client = servers.client(server)
    faulty.fail("write", "disk")
    assert client.write(8192, b"x" * 4096) != 0
    server.wait_for(f"writing 4096 bytes at 8192 of {servers.image} failed: Input/output error")

"""Requests of up to 64 MiB, as libnbd's clients may send them whatever a server advertises."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from support.images import MIB, blank_image, random_image
from support.processes import Child
from support.programs import Programs
from support.raw_nbd import READ, WRITE
from support.servers import Servers

LONGEST = 64 * MIB
SIZE = 2 * LONGEST

# What the server may need beside its own code for such a request, whose bytes it streams.
ROOM = 24 * MIB

COPY = """
import nbd, sys
uri, simple = sys.argv[1:]
h = nbd.NBD()
h.set_strict_mode(h.get_strict_mode() & ~getattr(nbd, "STRICT_PAYLOAD", 0))
h.set_request_structured_replies(not int(simple))
h.connect_uri(uri)
assert h.get_block_size(nbd.SIZE_MAXIMUM) == 32 << 20
data = h.pread(64 << 20, 0)
h.pwrite(data, 64 << 20)
h.flush()
assert h.pread(64 << 20, 64 << 20) == data
"""


def peak(server: Child) -> int:
    """Return the most memory that a process has had to itself so far, in bytes (proc(5))."""
    lines = Path(f"/proc/{server.pid}/status").read_text().splitlines()
    return next(int(each.split()[1]) * 1024 for each in lines if each.startswith("VmHWM"))


@pytest.fixture
def long(servers: Servers) -> Servers:
    """Have an image with data in its first half."""
    random_image(servers.image, LONGEST)
    os.truncate(servers.image, SIZE)
    return servers


@pytest.mark.parametrize("simple", ["0", "1"])
def test_they_are_carried_out(programs: Programs, long: Servers, simple: str) -> None:
    server = long.serve()
    before = peak(server)
    host, port = server.listening()
    programs.python(COPY, f"nbd://{host}:{port}", simple)
    assert peak(server) - before < ROOM
    with long.image.open("rb") as image:
        content = image.read(LONGEST)
        assert image.read(LONGEST) == content


def test_longer_ones_are_refused_and_the_connection_lives(servers: Servers) -> None:
    blank_image(servers.image, SIZE)
    client = servers.client(servers.serve())
    assert client.call(READ, 0, LONGEST + 1) == errno.EINVAL
    assert client.call(WRITE, 0, LONGEST + 1, bytes(LONGEST + 1)) == errno.EINVAL
    assert client.read(0, 512) == bytes(512)


def test_one_that_nobody_reads_the_answer_of_holds_no_memory(long: Servers) -> None:
    server = long.serve()
    client = long.client(server)
    before = peak(server)
    for _ in range(8):
        client.send(READ, 0, LONGEST)
    assert client.reply().error == 0
    assert peak(server) - before < ROOM

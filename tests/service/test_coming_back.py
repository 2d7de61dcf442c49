"""A client that gives up its connection and comes back, over each kind of socket, while a slow disk
has work of the old connection's.
"""

from __future__ import annotations

import os
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import raw_nbd
from support.certificates import PKI
from support.faulty_filesystem import FaultyFilesystem, faulty_filesystem
from support.processes import Child, Children
from support.raw_nbd import WRITE, RawClient, receive, request
from support.servers import stop

MIB = 1 << 20
OLD, NEW = b"O" * 4096, b"N" * 4096
OPT_STARTTLS, REP_ACK = 5, 1


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[FaultyFilesystem]:
    with faulty_filesystem(tmp_path / "mounted") as mounted:
        with open(mounted.beneath / "image", "wb") as image:
            image.truncate(64 * MIB)
        yield mounted
        mounted.release()


class Way:
    """How a client reaches the server: "tcp", "unix" or "tls"."""

    def __init__(self, name: str, folder: Path, pki: PKI) -> None:
        self.name = name
        self.address = str(folder / "nbd.sock") if name == "unix" else "127.0.0.1"
        self.options: tuple[str, ...] = ("--addr", self.address)
        if name != "unix":
            self.options += ("--port", "0")
        if name == "tls":
            self.options += ("--tls", "require", "--tls-certificates", str(pki.ours))

    def connect(self, server: Child) -> RawClient:
        sock = raw_nbd.connect(*server.listening())
        client = RawClient(sock)
        if self.name != "tls":
            client.hello()
            return client
        assert receive(sock, 16) == raw_nbd.INIT_MAGIC + raw_nbd.OPTION_MAGIC
        assert receive(sock, 2) == struct.pack(">H", 3)
        sock.sendall(struct.pack(">I", 3))
        assert client.option(OPT_STARTTLS)[-1][0] == REP_ACK
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        client.sock = context.wrap_socket(sock)
        replies = client.option(raw_nbd.OPT_GO, struct.pack(">IH", 0, 0))
        assert replies[-1][0] == REP_ACK
        return client


@pytest.fixture(params=["tcp", "unix", "tls"])
def way(request: pytest.FixtureRequest, tmp_path: Path, pki: PKI) -> Way:
    return Way(request.param, tmp_path, pki)


def test_what_it_had_asked_for_undoes_nothing(
    way: Way, slow: FaultyFilesystem, children: Children
) -> None:
    server = children.flexmigrate("serve", *way.options, "--file", str(slow.folder / "image"))
    server.listening()
    old = way.connect(server)
    slow.hold("write")
    # With TCP, more than the server takes while a piece of it waits for the disk, and more than its
    # kernel has room for: what is behind it, and the connection's end, wait in the client's kernel.
    size = 64 * 1024 if way.name == "unix" else MIB
    old.sock.sendall(request(WRITE, 1, 16 * MIB + 1, size) + os.urandom(size))
    slow.wait_for("write")
    old.sock.sendall(request(WRITE, 2, 0, 4096) + OLD)
    old.sock.close()
    new = way.connect(server)
    new.sock.sendall(request(WRITE, 3, 0, 4096) + OLD)
    slow.release()
    assert new.reply().error == 0
    assert new.write(0, NEW) == 0
    written = slow.begun("write")
    assert new.read(0, 4096) == NEW
    assert new.flush() == 0
    assert slow.begun("write") == written
    assert new.read(0, 4096) == NEW
    new.say_goodbye()
    new.close()
    stop(server)

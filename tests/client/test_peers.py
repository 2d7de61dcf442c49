"""Our client against the servers of other projects, over UNIX sockets and loopback TCP."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_twisted
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint

from flexmigrate.client import NBDClientProtocol, connect
from flexmigrate.client.splitting import all_of
from flexmigrate.errors import RequestFailed
from flexmigrate.net.streaming import streaming
from flexmigrate.wire.client_handshake import ClientOptions
from flexmigrate.wire.constants import TransmissionFlag
from support.nbd_peers import PEERS, Peer
from support.processes import PATIENCE

MIB = 1 << 20
SIZE = 34 * MIB  # so that a read or write of all of it must be divided
CONTEXT = "base:allocation"

CASES = [
    pytest.param(
        peer,
        family,
        fed,
        id=f"{name}-{family}-{fed}",
        marks=pytest.mark.skipif(peer.missing, reason=f"{peer.program} is not installed"),
    )
    for name, peer in PEERS.items()
    for family in ("unix", "tcp")
    if peer.unix or family != "unix"
    for fed in ("stream", "plain")
    if fed == "stream" or family == "tcp"
]


class Served(NamedTuple):
    """A server that runs, and how it is reached."""

    endpoint: Any
    wish: ClientOptions
    clock: Any
    peer: Peer

    def can(self, client: NBDClientProtocol, flag: TransmissionFlag) -> bool:
        return self.peer.honest and bool(client.flags & flag)

    async def connect(self, **options: Any) -> NBDClientProtocol:
        # Not in 5 s, as on a busy machine: nbd-server took longer, and this isn't about time.
        options.setdefault("hello_timeout", PATIENCE)
        return await connect(self.endpoint, options=self.wish, clock=self.clock, **options)


@pytest.fixture
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    """Run the peer, and make an endpoint with our stream transport or Twisted's own."""
    from twisted.internet import reactor

    peer: Peer
    peer, family, fed = request.param
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(SIZE)
    chosen: Any = streaming(reactor) if fed == "stream" else reactor
    endpoint: Any
    with socket.socket(socket.AF_UNIX if family == "unix" else socket.AF_INET) as listening:
        if family == "unix":
            path = str(tmp_path / "sock")
            listening.bind(path)
            endpoint = UNIXClientEndpoint(chosen, path)
        else:
            listening.bind(("127.0.0.1", 0))
            endpoint = HostnameEndpoint(chosen, *listening.getsockname())
        listening.listen()
        wish = ClientOptions(peer.export, contexts=(CONTEXT,))
        with peer.serve(listening, image):
            yield Served(endpoint, wish, reactor, peer)


def every_peer(function: Any) -> Any:
    cases = [pytest.param(case.values, id=case.id, marks=case.marks) for case in CASES]
    return pytest.mark.parametrize("served", cases, indirect=True)(
        pytest_twisted.ensureDeferred(function)
    )


class Model:
    """What an export must hold, and the commands that its server offers."""

    def __init__(self, served: Served, client: NBDClientProtocol, seed: int) -> None:
        self.client = client
        self.random = random.Random(seed)
        self.bytes = bytearray(SIZE)
        self.fua = served.can(client, TransmissionFlag.SEND_FUA)
        self.zeroes = served.can(client, TransmissionFlag.SEND_WRITE_ZEROES)

    async def step(self) -> None:
        """Do something to the export, or ask it something."""
        length = self.random.choice([1, 512, 4096, 5000, 65536, MIB])
        offset = self.random.randrange(SIZE - length)
        await self.random.choice([self.write, self.write, self.zero, self.check])(offset, length)

    async def write(self, offset: int, length: int) -> None:
        data = self.random.randbytes(length)
        await self.client.write(data, offset, fua=self.fua and length == 512)
        self.bytes[offset : offset + length] = data

    async def zero(self, offset: int, length: int) -> None:
        if self.zeroes:
            await self.client.zero(offset, length, punch=length > 512)
            self.bytes[offset : offset + length] = bytes(length)

    async def check(self, offset: int, length: int) -> None:
        data = await self.client.read(offset, length)
        assert data == self.bytes[offset : offset + length]


@every_peer
async def test_an_export_holds_what_was_written_and_zeroed(served: Served) -> None:
    client = await served.connect()
    assert client.size == SIZE
    model = Model(served, client, seed=1)
    for _ in range(60):
        await model.step()
    buffer = bytearray(SIZE)
    await client.read(0, SIZE, buffer)
    assert buffer == model.bytes
    assert client.requests_in_flight == 0
    await client.disconnect()


@every_peer
async def test_large_and_small_requests_are_in_flight_together(served: Served) -> None:
    client = await served.connect()
    image = random.Random(2).randbytes(33 * MIB)
    sectors = {33 * MIB + at: bytes([at % 251]) * 512 for at in range(0, 65536, 512)}
    small_writes = [client.write(sector, at) for at, sector in sectors.items()]
    await all_of([client.write(image, 0), *small_writes])
    large_reads = [client.read(at, MIB) for at in range(0, 33 * MIB, MIB)]
    small_reads = [client.read(at, 512) for at in sectors]
    large, small = await all_of([all_of(large_reads), all_of(small_reads)])
    assert b"".join(large) == image
    assert small == list(sectors.values())
    await client.disconnect()


class OpenFile:
    """The source of a write_from."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self.fd = self._file.fileno()

    def read(self, offset: int, length: int) -> bytes:
        content = os.pread(self.fd, length, offset)
        assert len(content) == length
        return content

    def close(self) -> None:
        self._file.close()


@every_peer
async def test_a_file_arrives_as_it_is(served: Served, tmp_path: Path) -> None:
    content = random.Random(3).randbytes(SIZE)
    original = tmp_path / "original"
    original.write_bytes(content)
    source = OpenFile(original)
    client = await served.connect()
    sent = [client.write_from(source, at, MIB) for at in range(MIB, SIZE, MIB)]
    await all_of(sent)
    await client.write_from(source, 0, MIB)
    assert await client.read(0, SIZE) == content
    source.close()
    await client.disconnect()


@every_peer
async def test_advice_and_flush_are_taken(served: Served) -> None:
    client = await served.connect()
    await client.write(b"x" * 65536, 0)
    if served.can(client, TransmissionFlag.SEND_FLUSH):
        await client.flush()
    if served.can(client, TransmissionFlag.SEND_CACHE):
        await client.cache(0, SIZE)
    if served.can(client, TransmissionFlag.SEND_TRIM):
        await client.trim(4096, 8192)
    if served.can(client, TransmissionFlag.SEND_DF):
        assert await client.read(0, 512, unfragmented=True) == b"x" * 512
    assert await client.read(0, 4096) == b"x" * 4096
    await client.disconnect()


@every_peer
async def test_block_status_tells_data_from_holes(served: Served) -> None:
    client = await served.connect()
    await client.write(b"x" * MIB, 16 * MIB)
    if client.agreement.contexts:
        extents: list[tuple[int, int]] = []
        at = 0
        while at < SIZE:
            extents += (await client.block_status(at, SIZE - at))[CONTEXT]
            at = sum(length for length, _ in extents)
        assert at == SIZE
        data = sum(length for length, flags in extents if not flags)
        assert MIB <= data < 2 * MIB
        one = (await client.block_status(16 * MIB, MIB, req_one=True))[CONTEXT]
        assert len(one) == 1
        assert 0 < one[0][0] <= MIB
        assert one[0][1] == 0
    await client.disconnect()


@every_peer
async def test_a_mistake_that_is_let_through_fails_alone(served: Served) -> None:
    client = await served.connect(strict=False)
    good = client.write(b"x" * 512, 0)
    with pytest.raises(RequestFailed) as caught:
        await client.read(SIZE, 512)
    assert caught.value.errno in (22, 5)
    await good
    assert await client.read(0, 512) == b"x" * 512
    await client.disconnect()

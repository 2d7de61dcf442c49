"""The host's clock is set while something is waited for: nothing waits longer for it, or shorter.

Each test has both ends go by a clock that it sets, under libfaketime.
"""

from __future__ import annotations

import itertools
import re
import time
from pathlib import Path

import pytest

from support.images import BLOCK, MIB
from support.operator import status
from support.processes import Child
from support.relay import Relay
from support.servers import SIZE, Servers
from support.wall_clock import WallClock

# As it stands on the wire (docs/handover-protocol.rst).
PREPARE = bytes.fromhex("25609513 0000 f103")

# What would take this long, in seconds, has waited for the clock that was set: a busy machine
# doesn't need it.
TOO_LONG = 300.0


@pytest.fixture
def clock(tmp_path: Path) -> WallClock:
    """Make a clock that can be set."""
    return WallClock(tmp_path)


@pytest.fixture(params=[-3600, 3600])
def jump(request: pytest.FixtureRequest) -> int:
    """Set it by so many seconds."""
    return int(request.param)


def started(servers: Servers, clock: WallClock, twistd: bool = False) -> tuple[Child, Child]:
    """Start a source and a destination that go by *clock*."""
    source = servers.serve(twistd=twistd, env=clock.env)
    return source, servers.listen(twistd=twistd, env=clock.env)


def is_as_long_as_it_was(source: Child, began: float) -> None:
    """Check what the source tells of a migration that is over and was begun at *began*."""
    told = source.wait_for(r"migration complete: \d+ bytes in \d+ pass(?:es)?, ([\d.]+) s")
    assert 0 <= float(told[1]) <= time.monotonic() - began
    assert not [line for line in source.lines if re.search(r"(?<![\w.:-])-\d+(\.\d+)? ?s\b", line)]


class TestWhileItIsSent:
    def test_what_a_limit_lets_wait_goes_on(
        self, servers: Servers, clock: WallClock, jump: int
    ) -> None:
        source, destination = started(servers, clock, twistd=jump < 0)
        began = time.monotonic()
        servers.start_mirroring_slowly()
        clock.set(jump)
        servers.complete(source, destination)
        assert SIZE / MIB / 2 < time.monotonic() - began < TOO_LONG
        is_as_long_as_it_was(source, began)

    def test_an_attempt_that_is_waited_for_comes(
        self, servers: Servers, clock: WallClock, jump: int
    ) -> None:
        source, destination = started(servers, clock)
        with Relay("127.0.0.1", int(servers.place[3])) as relay:
            servers.send_to("127.0.0.1", relay.port)
            began = time.monotonic()
            relay.cut_after(MIB)
            servers.start_mirroring()
            source.wait_for("attempt 1 failed")
            clock.set(jump)
            servers.complete(source, destination)
        assert time.monotonic() - began < TOO_LONG
        is_as_long_as_it_was(source, began)


class TestClients:
    def test_that_are_parked_are_let_go_when_it_is_time(
        self, servers: Servers, clock: WallClock, jump: int
    ) -> None:
        source, destination = started(servers, clock)
        client = servers.client(source)
        with Relay("127.0.0.1", int(servers.place[3])) as relay:
            servers.send_to("127.0.0.1", relay.port)
            relay.stall_at(PREPARE)
            began = time.monotonic()
            servers.start_mirroring("--max-park", "2s")
            relay.wait_until_stalled()
            clock.set(jump)
            assert client.write(0, b"p" * BLOCK) == 0
            assert 1 < time.monotonic() - began < TOO_LONG
            assert 0 <= float(status(servers.source_sock)["migration_parked"]) < TOO_LONG
            relay.resume()
            servers.complete(source, destination)

    def test_that_are_slowed_down_go_on(
        self, servers: Servers, clock: WallClock, jump: int
    ) -> None:
        source, destination = started(servers, clock)
        client = servers.client(source)
        servers.start_mirroring("--max-bps", str(MIB), "--max-downtime", "1ms")
        numbers = itertools.count()
        while "migration_write_limit" not in status(servers.source_sock):
            assert client.write(next(numbers) * BLOCK % SIZE, bytes(BLOCK)) == 0
        clock.set(jump)
        began = time.monotonic()
        for number in itertools.islice(numbers, MIB // 4 // BLOCK):
            assert client.write(number * BLOCK % SIZE, bytes(BLOCK)) == 0
        assert time.monotonic() - began < TOO_LONG
        client.say_goodbye()
        servers.complete(source, destination)

"""The log of real servers: every line is whole, and says which client or migration it is about."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.processes import PATIENCE, script
from support.raw_nbd import RawClient
from support.servers import Servers

FLEXNBD = re.compile(r"\d+:[DIWEF]:\d+ 0x[0-9a-f]+ \S+ \S+\.py:0: .+")
TEXT = re.compile(r"\S+Z (debug|info|warn|error|critical) +[\w.]+( \[[^\]]+\])?: .+")


def migrate(servers: Servers, *options: str) -> tuple[list[str], list[str]]:
    """Migrate once; return what source and destination have logged."""
    source, destination = servers.serve(*options), servers.listen(*options)
    servers.start_mirroring()
    servers.complete(source, destination)
    return source.lines, destination.lines


def test_each_line_of_text_has_its_parts(servers: Servers) -> None:
    for lines in migrate(servers, "--verbose"):
        assert len(lines) > 5
        for line in lines:
            assert TEXT.fullmatch(line), line


def test_flexnbds_layout_names_the_image(servers: Servers) -> None:
    logs = migrate(servers, "--log-format", "flexnbd", "--verbose")
    for image, lines in zip((servers.image, servers.copy), logs, strict=True):
        for line in lines:
            assert FLEXNBD.fullmatch(line), line
            assert f" {image} " in line


def test_every_line_about_a_migration_or_a_client_says_which(servers: Servers) -> None:
    logs = [
        [json.loads(line) for line in lines]
        for lines in migrate(servers, "--log-format", "json", "--verbose", "--log-requests")
    ]
    source, destination = logs
    ids = {line["migration"] for line in source if "migration" in line}
    assert len(ids) == 1
    assert without_id(source, "migration", "migration", "client") == []
    senders = {line["client"] for line in destination if "client" in line}
    assert len(senders) == 1
    assert next(iter(senders)).startswith("1 127.0.0.1:")
    assert without_id(destination, "client", "migration", "server") == []
    requests = [line for line in destination if line["namespace"] == "server.request_log"]
    assert {line["fields"].get("command") for line in requests} >= {"FLUSH", "DISC"}


def without_id(lines: list[dict[str, Any]], which: str, *rooms: str) -> list[dict[str, Any]]:
    return [
        line for line in lines if line["namespace"].split(".")[0] in rooms and which not in line
    ]


@pytest.mark.parametrize("level", ["error", "debug"])
def test_the_level_of_a_namespace(servers: Servers, level: str) -> None:
    chosen = ("flexmigrate=error", "service.port=info", f"migration={level}")
    options = [word for each in chosen for word in ("--log-level", each)]
    source, _ = migrate(servers, *options)
    assert any("migration: copying" in line for line in source) == (level == "debug")
    assert not any("ending with status" in line for line in source)


def test_twistd_takes_the_same(servers: Servers) -> None:
    server = servers.serve("--log-format", "json", twistd=True)
    server.process.terminate()
    server.expect_exit(0)
    assert any("listening on" in json.loads(line)["message"] for line in server.lines)


def test_repeated_lines_are_counted_under_each_runner(servers: Servers, twistd: bool) -> None:
    server = servers.serve(twistd=twistd)
    client = servers.client(server)
    for _ in range(60):
        assert client.call(command=0xBAD)
    server.wait_for(r"request refused: .* … and \d+ more in 1 s")
    assert sum("request refused" in line for line in server.lines) < 60


@pytest.mark.parametrize("kind", ["pipe", "terminal", "socket"])
def test_a_log_that_nobody_reads_stops_no_client(
    kind: str, servers: Servers, twistd: bool, tmp_path: Path
) -> None:
    server_socket = tmp_path / "nbd.sock"
    words = ["serve", "-l", str(server_socket), "-f", str(servers.image), "--log-requests"]
    runner = [script("flexmigrate")]
    if twistd:
        runner = [script("twistd"), "--nodaemon", "--pidfile=", "flexmigrate"]
    reader, writer = LOGS[kind]()
    with contextlib.ExitStack() as closing:
        closing.callback(os.close, reader)
        with subprocess.Popen([*runner, *words], stdout=writer, stderr=writer) as server:
            closing.callback(server.kill)
            os.close(writer)
            while (client := connected(server_socket)) is None:
                assert server.poll() is None
            closing.callback(client.close)
            for _ in range(12_000):  # two lines each, more than what is kept
                assert client.read(0, 1) != b""
            said = reading(reader)
            server.send_signal(signal.SIGTERM)
            assert server.wait(PATIENCE) == 0
            log = b"".join(said).decode()
    lines = log.replace("\r\n", "\n").splitlines()
    assert all(TEXT.fullmatch(line) for line in lines)
    assert re.search(r"log: \d+ lines of the log were lost", log) is not None
    assert sum("server.request_log" in line for line in lines) < 24_000
    assert any("listening on" in line for line in lines)


def connected(server: Path) -> RawClient | None:
    """Return a client of the server at that socket; None as long as it isn't there."""
    try:
        return RawClient.to(str(server), 0)
    except (FileNotFoundError, ConnectionRefusedError):
        os.sched_yield()
        return None


def reading(reader: int) -> Iterator[bytes]:
    """Read until nobody writes there any more."""
    pieces: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        with contextlib.suppress(OSError):  # a terminal's end
            while piece := os.read(reader, 65536):
                pieces.put(piece)
        pieces.put(b"")

    threading.Thread(target=read, daemon=True).start()
    return iter(pieces.get, b"")


def terminal() -> tuple[int, int]:
    return os.openpty()


def stream_socket() -> tuple[int, int]:
    return tuple(each.detach() for each in socket.socketpair())  # type: ignore[return-value]


LOGS = {"pipe": os.pipe, "terminal": terminal, "socket": stream_socket}

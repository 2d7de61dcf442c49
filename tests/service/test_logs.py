"""The log of real servers: every line is whole, and says which client or migration it is about."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

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

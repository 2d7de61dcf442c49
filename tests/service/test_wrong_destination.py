"""``mirror`` to a server that waits for no migration, or doesn't say that it does, is refused at
once, and nothing is sent; unless it was said that this is meant.
"""

from __future__ import annotations

import urllib.parse
from pathlib import Path

import pytest

from support.images import assert_same, random_image
from support.operator import ask, status, wait_until
from support.processes import Child
from support.relay import Relay
from support.servers import SIZE, Servers, stop

WAYS = [
    (),
    ("--handover", "session"),
    ("--handover", "plain"),
    ("--unlink",),
    ("--allow-old-peers",),
]


def other_server(servers: Servers, *more: str, name: str = "") -> tuple[Child, Path]:
    """Start a server of another image, as large, and have ``mirror`` go there.

    :param name: of its export.
    """
    image = random_image(servers.folder / "other", SIZE, seed=9)
    offered = ("--export", f"{name}={image}") if name else ("--file", str(image))
    server = servers.start("serve", "--addr", "127.0.0.1", "--port", "0", *offered, *more)
    servers.send_to(*server.listening())
    return server, image


def assert_refused(servers: Servers, cause: str, *more: str) -> None:
    refused = servers.mirror(*more)
    assert refused.returncode == 1, refused
    text = refused.stderr.decode()
    assert text.startswith("Mirror was rejected: "), text
    assert cause in text, text
    assert status(servers.source_sock)["is_mirroring"] == "false"


@pytest.mark.parametrize("options", [(), ("--read-only",)])
def test_a_server_of_its_own_image_is_not_overwritten(
    servers: Servers, options: tuple[str, ...]
) -> None:
    servers.serve()
    server, image = other_server(servers, *options)
    before = image.read_bytes()
    for way in WAYS:
        cause = f"{image}: it serves its image to clients, and waits for no migration"
        assert_refused(servers, cause, *way)
    host, port = server.listening()
    code, text = ask(servers.source_sock, "mirror", host, str(port), "nothing")
    assert code == 1
    assert "waits for no migration" in text
    assert image.read_bytes() == before
    stop(server)


def test_nor_is_one_of_its_exports(servers: Servers) -> None:
    servers.serve()
    server, image = other_server(servers, name="a")
    before = image.read_bytes()
    for way in WAYS:
        assert_refused(servers, "it serves the export 'a' to", *way, "--remote-export", "a")
        assert_refused(servers, "there is no such export", *way, "--remote-export", "b")
    assert image.read_bytes() == before
    stop(server)


@pytest.mark.parametrize("options", [(), ("--read-only",)])
def test_nor_is_one_with_the_oldstyle_handshake(servers: Servers, options: tuple[str, ...]) -> None:
    servers.serve()
    server, image = other_server(servers, "--oldstyle", *options)
    before = image.read_bytes()
    for way in WAYS:
        assert_refused(servers, "it serves its image to clients, and waits for no migration", *way)
    host, port = server.listening()
    for action in ("exit", "unlink", "nothing"):
        code, text = ask(servers.source_sock, "mirror", host, str(port), action)
        assert (code, "waits for no migration" in text) == (1, True), text
    assert image.read_bytes() == before
    stop(server)


def silent_server(servers: Servers, style: str) -> Child:
    """Start a server that says nothing of itself, as others' servers do, and have ``mirror`` go
    there.
    """
    program = Path(__file__).parents[1] / "peers" / "destinations" / "does_everything_right.py"
    place = (str(program), "127.0.0.1", "0", str(servers.copy), "--style", style)
    server = servers.children.python(*place)
    servers.send_to("127.0.0.1", int(server.wait_for(r"listening on 127\.0\.0\.1:(\d+)")[1]))
    return server


NOT_SAID = "doesn't say that it waits for a migration"


@pytest.mark.parametrize("style", ["oldstyle", "newstyle"])
@pytest.mark.parametrize("rule", ["auto", "plain"])
def test_who_says_nothing_of_itself_is_overwritten_with_a_warning(
    servers: Servers, style: str, rule: str
) -> None:
    source, server = servers.serve(), silent_server(servers, style)
    before = servers.copy.read_bytes()
    refused = servers.mirror("--handover", "session")
    assert (refused.returncode, b"support sessions" in refused.stderr) == (1, True), refused
    assert servers.copy.read_bytes() == before
    servers.start_mirroring("--handover", rule, "--max-bps", "1M")
    seen = wait_until(servers.source_sock, migration_handover="plain")
    warning = urllib.parse.unquote(seen["migration_warning"])
    assert NOT_SAID in warning
    assert "handing over plainly" in warning
    source.wait_for(f"warn .*{NOT_SAID}")
    assert ask(servers.source_sock, "mirror_max_bps", "0") == (0, "updated")
    source.expect_exit(0)
    server.expect_exit(0)
    assert_same(servers.image, servers.copy)


@pytest.mark.parametrize("style", ["oldstyle", "newstyle"])
def test_what_flexnbd_is_told_is_answered_with_the_warning(servers: Servers, style: str) -> None:
    source, server = servers.serve(), silent_server(servers, style)
    host, port = servers.place[1], servers.place[3]
    code, text = ask(servers.source_sock, "mirror", host, port, "exit")
    assert (code, text.startswith("Mirror started: ")) == (0, True), text
    assert NOT_SAID in text
    source.expect_exit(0)
    server.expect_exit(0)
    assert_same(servers.image, servers.copy)


def test_a_destination_that_serves_by_now_is_not_overwritten(servers: Servers, port: int) -> None:
    source, destination = servers.serve(), servers.listen("--rebind-port", str(port))
    servers.start_mirroring()
    source.expect_exit(0)
    destination.wait_for("migration complete")
    servers.image = random_image(servers.folder / "another", SIZE, seed=9)
    servers.serve()
    servers.send_to("127.0.0.1", port)
    before = servers.copy.read_bytes()
    for way in WAYS:
        assert_refused(servers, "waits for no migration", *way)
    assert servers.copy.read_bytes() == before
    stop(destination)


def test_a_server_knows_itself_behind_a_port_that_is_forwarded(servers: Servers) -> None:
    source = servers.serve()
    before = servers.image.read_bytes()
    with Relay("127.0.0.1", source.listening()[1]) as relay:
        servers.send_to("127.0.0.1", relay.port)
        for way in WAYS:
            assert_refused(servers, "the very server that the image is to be migrated from", *way)
    assert "parked" not in source.story()
    assert servers.image.read_bytes() == before
    stop(source)

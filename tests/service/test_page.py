"""``--web`` on real servers, looked at with a real browser and without one."""

from __future__ import annotations

import json
import re
import signal
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from support.browser import browser
from support.operator import ask
from support.processes import Child, Children
from support.servers import SIZE, Servers, stop

PLACE = re.compile(r"the page at (?P<place>\S+)")
WEB = ("--web", "127.0.0.1:0")
SLOW = ("--max-bps", "256K")


def page_of(server: Child) -> str:
    """Wait until the page is offered; return its address."""
    return f"http://{server.wait_for(PLACE)['place']}/"


def get(address: str, method: str = "GET") -> Any:
    return urllib.request.urlopen(urllib.request.Request(address, method=method), timeout=60)


def refused(address: str, method: str = "GET") -> int:
    """Return the status with which a request is refused."""
    with pytest.raises(urllib.error.HTTPError) as error:
        get(address, method)
    error.value.close()
    return error.value.code


def state_of(server: Child) -> dict[str, Any]:
    with get(page_of(server) + "state.json") as answer:
        assert answer.headers["Content-Type"] == "application/json"
        told: dict[str, Any] = json.load(answer)
    return told


class TestWithoutABrowser:
    def test_it_asks_nobody_else_for_anything_and_may_be_framed_by_nobody(
        self, servers: Servers
    ) -> None:
        server = servers.serve(*WEB)
        for name in ("", "page.css", "page.js", "icon.svg"):
            with get(page_of(server) + name) as answer:
                policy = answer.headers["Content-Security-Policy"]
                text = answer.read().decode()
            assert "default-src 'none'" in policy
            assert "frame-ancestors 'none'" in policy
            assert not re.findall(r"(?:src|href)=.?https?:|url\(|@import|\.innerHTML", text)
        stop(server)

    def test_only_looking_is_allowed(self, servers: Servers) -> None:
        server = servers.serve(*WEB)
        for path in ("", "state.json", "events"):
            with get(page_of(server) + path, "HEAD") as answer:
                assert answer.read() == b""
            assert refused(page_of(server) + path, "POST") == 405
        assert refused(page_of(server) + "../etc/passwd") == 404
        stop(server)

    def test_exports_and_clients_are_told(self, servers: Servers) -> None:
        server = servers.serve(*WEB)
        client = servers.client(server)
        told = state_of(server)
        assert told["server"]["pid"] == server.pid
        (export,), (seen,) = told["exports"], told["clients"]
        assert (export["size"], export["clients"], export["verdict"]) == (SIZE, 1, None)
        assert seen["address"].startswith("127.0.0.1:")
        assert told["migrations"] == []
        client.close()
        stop(server)

    def test_who_looks_on_without_reading_keeps_no_server_from_ending(
        self, servers: Servers
    ) -> None:
        server = servers.serve(*WEB)
        with get(page_of(server) + "events"):
            stop(server)


class TestInABrowser:
    def test_a_migration_is_seen_from_its_beginning_to_the_end_of_the_process(
        self, servers: Servers, children: Children, tmp_path: Path
    ) -> None:
        source, destination = servers.serve(*WEB), servers.listen(*WEB)
        with browser(children, tmp_path / "profile") as window:
            window.open(page_of(source))
            window.wait_for("#link", "live")
            assert "served" in window.text("#exports")
            servers.start_mirroring(*SLOW)
            window.wait_for("#migrations dd", "copying")
            window.wait_for(".percent", "% of pass 1")
            width = "return parseFloat(document.querySelector('.bar div').style.width)"
            first = window.run(width)
            cells = "return document.querySelectorAll('rect.left').length"
            left = window.run(cells)
            window.wait_for(".key", "still to send")
            while window.run(cells) >= left:  # each takes as long as the server takes to answer
                assert source.process.poll() is None
            assert window.run(width) >= first
            assert ask(servers.source_sock, "mirror_max_bps", "0") == (0, "updated")
            window.wait_for("#link", "The server has ended with status 0")
            assert "complete: " in window.text(".summary")
            assert "migrated away" in window.text("#link")
        servers.complete(source, destination)

    def test_a_destination_shows_what_has_come_and_who_sends(
        self, servers: Servers, children: Children, tmp_path: Path
    ) -> None:
        source, destination = servers.serve(), servers.listen(*WEB)
        with browser(children, tmp_path / "profile") as window:
            window.open(page_of(destination))
            window.wait_for("#migrations dd", "waiting")
            servers.start_mirroring(*SLOW)
            window.wait_for("#migrations dd", "receiving")
            window.wait_for("#migrations dd", "127.0.0.1:")
            assert ask(servers.source_sock, "mirror_max_bps", "0") == (0, "updated")
            window.wait_for("#link", "The server has ended with status 0")
        servers.complete(source, destination)

    def test_a_name_is_text_whatever_is_in_it(
        self, servers: Servers, children: Children, tmp_path: Path
    ) -> None:
        name = "<b>bold</b><script>alert(1)</script>"
        source = servers.serve("--export", name, *WEB)
        with browser(children, tmp_path / "profile") as window:
            window.open(page_of(source))
            assert name in window.wait_for("#exports", "bold")
            assert window.run("return document.querySelectorAll('main b, main script').length") == 0
            source.send(signal.SIGKILL)
            window.wait_for("#link", "No answer from the server")

    def test_a_server_that_says_nothing_is_not_shown_as_live(
        self, servers: Servers, children: Children, tmp_path: Path
    ) -> None:
        server = servers.serve(*WEB)
        with browser(children, tmp_path / "profile") as window:
            window.open(page_of(server))
            window.wait_for("#link", "live")
            server.send(signal.SIGSTOP)
            try:
                window.wait_for("#link", "Nothing is heard of the server")
                assert "What is shown is from" in window.text("#link")
            finally:
                server.send(signal.SIGCONT)
            window.wait_for("#link", "live")
            assert "another process" not in window.text("#link")
        stop(server)

    def test_another_server_at_the_same_address_is_told_from_the_first(
        self, servers: Servers, children: Children, tmp_path: Path
    ) -> None:
        first = servers.serve(*WEB)
        with browser(children, tmp_path / "profile") as window:
            window.open(page_of(first))
            window.wait_for("#link", "live")
            stop(first)
            window.wait_for("#link", "The server has ended")
            place = page_of(first).removeprefix("http://").removesuffix("/")
            second = servers.serve("--web", place)
            window.wait_for("#link", "live (another process, since")
            window.wait_for("#server", f"process {second.pid}")
            stop(second)

    def test_what_a_figure_means_is_said(
        self, servers: Servers, children: Children, tmp_path: Path
    ) -> None:
        destination = servers.listen(*WEB)
        with browser(children, tmp_path / "profile") as window:
            window.open(page_of(destination))
            window.wait_for("#migrations dd", "waiting")
            title = "return document.querySelector('#migrations dl div').title"
            while not window.run(title):  # the meanings come by a request of their own
                assert destination.running
        stop(destination, 1)

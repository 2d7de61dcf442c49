"""A real browser, without a window: Chromium, told what to do by the WebDriver protocol.

https://www.w3.org/TR/webdriver2/ is plain JSON over HTTP. The browser is told to leave the network
alone, since it may be closed.
"""

from __future__ import annotations

import base64
import json
import shutil
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.ports import held_port
from support.processes import PATIENCE, Children

_QUIET = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--hide-scrollbars",
)

# Between two looks at a page: nothing else tells when it has changed.
LOOK_AGAIN_SECONDS = 0.05


class Browser:
    """One window.

    :param session: its address at the driver.
    """

    def __init__(self, session: str) -> None:
        self._session = session

    def open(self, address: str) -> None:
        """Load a page."""
        _call("POST", f"{self._session}/url", {"url": address})

    def run(self, script: str) -> Any:
        """Return what the body of a function in JavaScript returns."""
        return _call("POST", f"{self._session}/execute/sync", {"script": script, "args": []})

    def text(self, selector: str) -> str:
        """Return the text of all that *selector* finds, as it is seen."""
        found: str = self.run(
            f"return [...document.querySelectorAll({json.dumps(selector)})]"
            ".map((each) => each.innerText).join('\\n')"
        )
        return found

    def wait_for(self, selector: str, text: str) -> str:
        """Wait until *text* is part of what *selector* finds, and return all of that."""
        deadline = time.monotonic() + PATIENCE
        while text not in (found := self.text(selector)):
            assert time.monotonic() < deadline, f"{selector} has no {text!r}: {found!r}"
            time.sleep(LOOK_AGAIN_SECONDS)
        return found

    def screenshot(self, path: Path) -> None:
        """Keep a picture (PNG) of what is seen."""
        path.write_bytes(base64.b64decode(_call("GET", f"{self._session}/screenshot")))


def _call(method: str, address: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        address, data, {"Content-Type": "application/json"}, method=method
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.load(answer)["value"]


def _driver(children: Children) -> str:
    """Start a driver, and return its address."""
    with held_port() as port:
        children.start("chromedriver", f"--port={port}").wait_for("started successfully")
    return f"http://127.0.0.1:{port}"


@contextmanager
def browser(
    children: Children, folder: Path, *, width: int = 900, height: int = 1000
) -> Iterator[Browser]:
    """Have a browser while the context lasts; what it keeps goes into *folder*."""
    chromium = shutil.which("chromium")
    if chromium is None or shutil.which("chromedriver") is None:
        pytest.skip("chromium and chromedriver are not installed")
    arguments = [*_QUIET, f"--user-data-dir={folder}", f"--window-size={width},{height}"]
    wanted = {"goog:chromeOptions": {"binary": chromium, "args": arguments}}
    base = f"{_driver(children)}/session"
    made = _call("POST", base, {"capabilities": {"alwaysMatch": wanted}})
    session = f"{base}/{made['sessionId']}"
    try:
        yield Browser(session)
    finally:
        _call("DELETE", session)

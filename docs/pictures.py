"""Take the pictures of docs/watching.rst again: ``PYTHONPATH=.:tests python docs/pictures.py``.

A migration of 64 MiB, whose client writes, is looked at in the middle and at its end. It needs
Debian's packages chromium and chromium-driver.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from support.browser import browser
from support.images import blank_image, random_image
from support.operator import ask
from support.processes import Children, flexmigrate
from support.raw_nbd import RawClient

FIGURES = Path(__file__).parent / "figures"
SIZE = 64 << 20
BLOCK = 64 * 1024
MIDDLE = 55  # per cent of the first pass


def main() -> None:
    """Take them."""
    with tempfile.TemporaryDirectory() as name, Children() as children:
        folder = Path(name)
        image, copy = random_image(folder / "disk.img", SIZE), blank_image(folder / "copy", SIZE)
        sock = folder / "sock"
        place = ("--addr", "127.0.0.1", "--port", "0")
        source = children.flexmigrate(
            *("serve", *place, "--file", str(image), "--sock", str(sock), "--web", "127.0.0.1:0")
        )
        destination = children.flexmigrate("listen", *place, "--file", str(copy))
        page = source.wait_for(r"the page at (?P<place>\S+)")["place"]
        client = RawClient.to(*source.listening())
        host, port = destination.listening()
        with browser(children, folder / "profile", width=860, height=1180) as window:
            window.open(f"http://{page}/")
            done = flexmigrate(
                *("mirror", "--addr", host, "--port", str(port), "--sock", str(sock)),
                *("--max-bps", "8M"),
            )
            assert done.returncode == 0, done
            window.wait_for("#migrations dd", "copying")
            at = 0
            while int(window.text(".percent").split()[0]) < MIDDLE:
                client.write(at * BLOCK % (SIZE // 4), bytes(BLOCK))
                at += 7
            window.screenshot(FIGURES / "page-running.png")
            assert ask(sock, "mirror_max_bps", "0") == (0, "updated")
            window.wait_for("#link", "The server has ended with status 0")
            window.screenshot(FIGURES / "page-ended.png")
        client.close()


if __name__ == "__main__":
    main()

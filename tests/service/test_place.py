"""The place of a destination's sender, once its host is cut off: others have it soon, and not
before.
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

from support.images import blank_image
from support.privileges import linked_namespaces, needs_root
from support.processes import TESTS, Child, Children, script
from support.servers import SIZE

SENDER = """
import itertools, signal, sys, time
sys.path.insert(0, sys.argv[1])
from support.raw_nbd import ProtocolViolation, RawClient
for number in itertools.count(1):
    try:
        client = RawClient.to(sys.argv[2], int(sys.argv[3]))
        break
    except ProtocolViolation as error:
        print(number, error, flush=True)
        time.sleep(0.2)
client.write(0, b"x" * 4096)
print("it is the sender", flush=True)
signal.pause()
"""

PATIENCE = 120.0
"""In seconds: far less than the kernel's own patience with a peer that is silent."""


def sender(children: Children, within: tuple[str, ...], address: str, port: int) -> Child:
    """Start a plain sender, which tries again until it is let in."""
    return children.start(*within, sys.executable, "-c", SENDER, str(TESTS), address, str(port))


@needs_root
def test_one_that_died_loses_it_and_one_that_lives_does_not(
    children: Children, tmp_path: Path
) -> None:
    with linked_namespaces() as link:
        copy = blank_image(tmp_path / "copy", SIZE)
        place = ("--addr", link.FAR, "--port", "0", "--file", str(copy))
        destination = children.start(*link.within("far"), script("flexmigrate"), "listen", *place)
        address, port = destination.listening()
        first = sender(children, link.within("near"), address, port)
        first.wait_for("it is the sender")
        second = sender(children, link.within("far"), address, port)
        # For longer than a dead one is given.
        second.wait_for(f"^40 .*a sender is connected already: {re.escape(link.NEAR)}:")
        assert "it is the sender" not in second.lines
        assert "lost: " not in destination.story()
        link.cut()
        began = time.monotonic()
        second.wait_for("it is the sender", PATIENCE)
        assert time.monotonic() - began < PATIENCE

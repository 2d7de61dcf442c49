"""The demonstration, small: it succeeds, it tells the truth, and it leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.processes import TESTS, Child, Children

# A lost write is a server's worst fault: the demonstration has to see it. Python imports this
# module before anything else in each process that finds it.
# What is lost before the handover is found by the digests, and sent again: so lose what clients
# write after it, all of it that goes to one block, or a later write would hide that.
SABOTAGE = """
import os, sys
if "listen" in sys.orig_argv:
    from flexmigrate.image.file import Image
    write, lost = Image.write, []
    def lose_some(self, view, offset):
        if not lost and any(view) and not os.path.exists(self.real_path + ".INCOMPLETE"):
            lost.append(offset)
        return None if offset in lost else write(self, view, offset)
    Image.write = lose_some
"""

Demo = Callable[..., Child]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Have a folder whose path is short: a UNIX socket's has at most 107 bytes, and pytest-xdist's
    folders have long ones.
    """
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture
def demo(folder: Path, children: Children) -> Demo:
    def start(*options: str, pythonpath: str = "") -> Child:
        path = os.pathsep.join(each for each in (pythonpath, str(TESTS.parent), str(TESTS)) if each)
        return children.start(
            *(sys.executable, "-m", "demo", "--data", "8", "--seconds", "0.3"),
            *options,
            env={"PYTHONPATH": path, "TMPDIR": str(folder)},
        )

    return start


def running_in(folder: Path) -> list[str]:
    """Return the command lines of processes that use the folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if str(folder).encode() in words:
            found.append(words.replace(b"\0", b" ").decode())
    return found


def test_it_moves_an_image_and_finds_every_write(demo: Demo, folder: Path) -> None:
    run = demo("--max-mib", "0")
    run.expect_exit(0, timeout=60)
    run.wait_for("verdict +every acknowledged write is there")
    assert int(run.wait_for(r"writes verified +([\d,]+)")[1].replace(",", "")) > 0
    assert int(run.wait_for(r"over (\d+) connections")[1]) >= 2
    assert float(run.wait_for(r"bytes sent +([\d.]+) MiB")[1]) > 7
    assert int(run.wait_for(r"passes +(\d+),")[1]) >= 1
    assert not list(folder.iterdir())


def test_a_lost_write_fails_it_and_the_files_are_kept(demo: Demo, tmp_path: Path) -> None:
    saboteur = tmp_path / "saboteur"
    saboteur.mkdir()
    (saboteur / "sitecustomize.py").write_text(SABOTAGE)
    run = demo("--max-mib", "0", pythonpath=str(saboteur))
    run.expect_exit(1, timeout=60)
    run.wait_for("FAILED: ")
    kept = Path(run.wait_for("was kept: (.+)")[1])
    assert re.search("WRONG|e2fsck", (kept / "story.txt").read_text() + "\n".join(run.lines))
    assert not any("verdict" in line for line in run.lines)
    assert running_in(kept) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_mid_migration_leaves_nothing_behind(
    demo: Demo, folder: Path, number: signal.Signals
) -> None:
    run = demo("--max-mib", "1")  # slow enough to be interrupted
    run.wait_for("copying|converging")
    run.send(number)
    run.expect_exit(130)
    assert not list(folder.iterdir())
    assert running_in(folder) == []


def test_an_image_that_cannot_be_made_fails_it(demo: Demo) -> None:
    run = demo("--data", "0")
    run.expect_exit(1, timeout=60)
    run.wait_for("FAILED")

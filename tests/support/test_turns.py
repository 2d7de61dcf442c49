"""Turns, taken by processes, each of which holds its own until it is told to let it go."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.processes import TESTS

HOLDER = """
import sys
from pathlib import Path
from support.turns import turn

with turn(Path(sys.argv[1]), alone=sys.argv[2] == "alone"):
    print("has it", flush=True)
    sys.stdin.readline()
"""


class Holder:
    """Somebody who wants a turn."""

    def __init__(self, folder: Path, how: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(folder), how],
            env={"PYTHONPATH": str(TESTS)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def gets_it(self) -> None:
        """Wait for the turn."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "has it\n"

    def lets_go(self) -> None:
        """Give the turn back, and end."""
        self.process.communicate("\n", timeout=60)
        assert self.process.returncode == 0


Wants = Callable[[str], Holder]


@pytest.fixture
def wants(tmp_path: Path) -> Iterator[Wants]:
    with ExitStack() as stack:

        def start(how: str) -> Holder:
            holder = Holder(tmp_path, how)
            stack.enter_context(holder.process)
            stack.callback(holder.process.kill)
            return holder

        yield start


def is_free(path: Path) -> bool:
    """Return whether nobody holds the lock of this file."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def test_many_have_theirs_beside_each_other(wants: Wants) -> None:
    holders = [wants("beside") for _ in range(3)]
    for holder in holders:
        holder.gets_it()
    for holder in holders:
        holder.lets_go()


def test_who_wants_to_be_alone_waits_for_the_others_and_is_not_overtaken(
    wants: Wants, tmp_path: Path
) -> None:
    first = wants("beside")
    first.gets_it()
    alone = wants("alone")
    while is_free(tmp_path / "queue"):
        pass
    late = wants("beside")
    first.lets_go()
    alone.gets_it()
    assert late.process.poll() is None
    alone.lets_go()
    late.gets_it()
    late.lets_go()


def test_a_turn_ends_with_its_process(wants: Wants) -> None:
    dies = wants("alone")
    dies.gets_it()
    dies.process.kill()
    next_one = wants("alone")
    next_one.gets_it()
    next_one.lets_go()

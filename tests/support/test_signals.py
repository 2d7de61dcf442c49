"""Tests of how the processes that tests start take signals."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__)
CHECKED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)


def ignored_by_a_child() -> set[signal.Signals]:
    """Return which of the checked signals a process ignores that is started now (proc(5))."""
    told = subprocess.run(
        ["cat", "/proc/self/status"], capture_output=True, text=True, check=True
    ).stdout
    (mask,) = (line.split()[1] for line in told.splitlines() if line.startswith("SigIgn:"))
    return {each for each in CHECKED if int(mask, 16) >> (each - 1) & 1}


def test_a_child_ignores_no_signal() -> None:
    assert ignored_by_a_child() == set()


def test_the_same_where_the_shell_that_started_the_tests_has_them_ignored() -> None:
    again = f"{HERE}::{test_a_child_ignores_no_signal.__name__}"
    command = [sys.executable, "-m", "pytest", "--quiet", "-p", "no:cacheprovider", again]
    ended = subprocess.run(
        ["sh", "-c", "trap '' HUP INT QUIT; exec \"$@\"", "sh", *command],
        cwd=HERE.parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr

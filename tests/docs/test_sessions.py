"""Whatever README and the tutorial tell a reader to type works, and prints what they show."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from support.processes import TESTS, Child, Children, script
from support.shell_sessions import PORTS, blurred, outputs, sessions
from support.shell_sessions import script as program

PROJECT = TESTS.parent


def free_ports() -> dict[str, int]:
    """Find a free port for each that the documents name."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in PORTS]
    found = {name: int(each.getsockname()[1]) for name, each in zip(PORTS, sockets, strict=True)}
    for each in sockets:
        each.close()
    return found


def play(children: Children, folder: Path, text: str) -> Child:
    (folder / "script").write_text(text)
    path = f"{Path(script('flexmigrate')).parent}{os.pathsep}{os.environ['PATH']}"
    return children.start(*("bash", "-c", 'cd "$0" && . ./script', str(folder)), env={"PATH": path})


@pytest.mark.parametrize("name", ["README.md", "docs/tutorial.rst"])
def test_each_command_prints_what_is_shown(name: str, children: Children, tmp_path: Path) -> None:
    steps = sessions(PROJECT / name)
    assert len(steps) > 5
    shell = play(children, tmp_path, program(steps, free_ports()))
    shell.wait(timeout=60)
    found = outputs("".join(f"{line}\n" for line in shell.lines))
    assert len(found) == len(steps)
    for step, printed in zip(steps, found, strict=True):
        assert blurred(printed) == blurred(step.printed), step.command

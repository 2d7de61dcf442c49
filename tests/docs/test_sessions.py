"""Whatever the documents tell a reader to type works, and prints what they show.

A page's shell sessions (``code-block:: console``) are run as they stand, in one shell and an empty
folder. A command that stands anywhere else is marked as not run, with the reason, and only uses
options that there are.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from flexmigrate.cli.commands import COMMANDS
from support.ports import held_port
from support.processes import TESTS, Child, Children, script
from support.programs import Programs
from support.shell_sessions import PORTS, blurred, outputs, sessions, untried
from support.shell_sessions import script as program

PROJECT = TESTS.parent
PAGES = ["README.md", *(f"docs/{page.name}" for page in sorted(PROJECT.glob("docs/*.rst")))]
KILLED = re.compile(r"script: line [0-9]+: +[0-9]+ Killed ")

TRIED = [name for name in PAGES if sessions(PROJECT / name)]

# What a page tells its reader to have, or to download.
NEEDS = {
    "docs/guest.rst": ("qemu-system-x86_64", "apt-get", "dpkg-deb"),
    "docs/tls.rst": ("openssl",),
    "docs/flexnbd.rst": ("nc",),
}
DOWNLOADS = ("build-guest.sh",)


@contextmanager
def held_ports() -> Iterator[dict[str, int]]:
    """Hold a port for each that the documents name."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(held_port()) for name in PORTS}


def play(children: Children, folder: Path, text: str) -> Child:
    for name in DOWNLOADS:
        shutil.copy(PROJECT / "docs" / name, folder)
    # Elsewhere than the folder, which a reader finds empty but for downloads.
    play = folder.with_name(f"{folder.name}.script")
    play.write_text(text)
    path = f"{Path(script('flexmigrate')).parent}{os.pathsep}{os.environ['PATH']}"
    return children.start(
        *("bash", "-c", 'cd "$0" && . "$1"', str(folder), str(play)), env={"PATH": path}
    )


@pytest.fixture(scope="module")
def packages() -> None:
    """Have apt know what there is to download; on a fresh machine its lists may be empty."""
    if shutil.which("apt-get") and os.getuid() == 0:
        known = subprocess.run(["apt-cache", "show", "busybox-static"], capture_output=True)
        if known.returncode != 0:
            subprocess.run(["apt-get", "update", "-qq"], check=True, timeout=120)


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("name", TRIED)
def test_each_command_prints_what_is_shown(name: str, children: Children, tmp_path: Path) -> None:
    for needed in NEEDS.get(name, ()):
        Programs().path(needed)
    steps = sessions(PROJECT / name)
    with held_ports() as ports:
        shell = play(children, tmp_path, program(steps, ports))
        shell.wait(timeout=120)  # the longest takes 20 s on a quiet machine
    found = outputs("".join(f"{line}\n" for line in shell.lines))
    assert len(found) == len(steps), shell.story()
    for step, told in zip(steps, found, strict=True):
        # Whether bash still tells of a job that was killed depends on when it notices.
        printed = [line for line in told if not KILLED.search(line)]
        assert blurred(printed) == blurred(step.printed), step.command


def test_the_pages_that_teach_have_sessions() -> None:
    assert {"README.md", "docs/tutorial.rst", "docs/guest.rst"} <= set(TRIED)


@pytest.mark.parametrize("name", PAGES)
def test_a_command_that_is_not_run_is_marked_so(name: str) -> None:
    unmarked = [block.commands for block in untried(PROJECT / name) if not block.reason]
    assert unmarked == []


@pytest.mark.parametrize("name", PAGES)
def test_what_is_not_run_only_uses_options_that_there_are(name: str) -> None:
    for block in untried(PROJECT / name):
        for command in block.commands:
            words = shlex.split(command, comments=True)
            if Path(words[0]).name != "flexmigrate" or words[1] not in COMMANDS:
                continue
            known = {option.long for option in COMMANDS[words[1]].options}
            if words[1] == "doctor":  # it takes the command line of a server
                known |= (
                    {option.long for option in COMMANDS[words[2]].options} if words[2:] else set()
                )
            given = {word[2:].partition("=")[0] for word in words if word.startswith("--")}
            assert given <= known, command

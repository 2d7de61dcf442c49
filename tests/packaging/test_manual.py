"""The page of the manual: made without a complaint, and whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flexmigrate.cli.commands import COMMANDS
from support.processes import TESTS
from support.programs import Programs

pytest.importorskip("docutils")  # an environment that was made before it was needed


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("manual") / "man1" / "flexmigrate.1"
    program = TESTS.parent / "docs" / "manual.py"
    subprocess.run([sys.executable, str(program), str(target)], check=True, timeout=60)
    return target


@pytest.fixture
def shown(page: Path, programs: Programs, monkeypatch: pytest.MonkeyPatch) -> str:
    """The page as a terminal shows it."""
    for name, value in {"MANWIDTH": "100", "LC_ALL": "C.UTF-8", "MAN_KEEP_FORMATTING": ""}.items():
        monkeypatch.setitem(os.environ, name, value)
    # Hyphens at the ends of lines would cut words in two.
    return programs.run("man", "--no-hyphenation", "--local-file", str(page))


def test_groff_has_nothing_to_complain_of(page: Path, programs: Programs) -> None:
    done = subprocess.run(
        [programs.path("man"), "--warnings", "--local-file", str(page)],
        env={**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "80"},
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_each_command_and_option_is_in_it(shown: str) -> None:
    for name, command in COMMANDS.items():
        assert f"\n   {name}\n" in shown
        for option in command.options:
            assert f"--{option.long}" in shown


def test_sections_of_the_reference_are_in_it(shown: str) -> None:
    for title in ("Exit statuses", "Files", "Certificates", "See also"):
        assert f"\n{title}\n" in shown
    assert "SIGTERM, SIGINT and SIGQUIT end a server" in " ".join(shown.split())
    assert "IMAGE.INCOMPLETE" in shown

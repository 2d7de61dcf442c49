"""What shells complete, asked of the shells themselves."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from flexmigrate.cli.commands import COMMANDS
from flexmigrate.cli.completion import script
from support.processes import flexmigrate
from support.programs import Programs

BASH = """
. "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
_shtab_flexmigrate "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """A folder with each shell's script, as flexmigrate prints it."""
    for shell in ("bash", "zsh", "fish"):
        done = flexmigrate("completion", shell)
        assert (done.returncode, done.stderr) == (0, b"")
        (tmp_path / shell).write_bytes(done.stdout)
    return tmp_path


def in_bash(scripts: Path, *words: str) -> list[str]:
    asked = ["bash", "-c", BASH, "bash", str(scripts / "bash"), *words]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    return done.stdout.split()


def test_bash(scripts: Path) -> None:
    assert in_bash(scripts, "flexmigrate", "mirror") == ["mirror", "mirror-max-bps"]
    assert set(in_bash(scripts, "flexmigrate", "")) == {*COMMANDS, "help"}
    tls = ["--tls", "--tls-certificates", "--tls-verify-peer"]
    assert in_bash(scripts, "flexmigrate", "serve", "--tls") == tls
    assert in_bash(scripts, "flexmigrate", "serve", "--tls", "") == ["off", "on", "require"]


def test_bash_completes_files(scripts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(scripts)
    (scripts / "disk.img").touch()
    assert in_bash(scripts, "flexmigrate", "serve", "--file", "di") == ["disk.img"]


def test_fish(scripts: Path, programs: Programs) -> None:
    def completed(line: str) -> list[str]:
        asked = f"source {scripts}/fish; complete -C '{line}'"
        said = programs.run("fish", "--no-config", "-c", asked)
        return [each.split("\t")[0] for each in said.splitlines()]

    assert set(completed("flexmigrate mirror")) == {"mirror", "mirror-max-bps"}
    assert set(completed("flexmigrate listen --cov")) == {"--coverage"}
    assert set(completed("flexmigrate listen --coverage ")) == {"full", "any"}


def test_zsh_takes_it(scripts: Path, programs: Programs) -> None:
    (scripts / "_flexmigrate").write_bytes((scripts / "zsh").read_bytes())
    load = f"fpath=({scripts} $fpath); autoload -Uz compinit; compinit -D -u"
    asked = f"{load}; print $_comps[flexmigrate]; autoload +X _flexmigrate && print loaded"
    said = programs.run("zsh", "-f", "-c", asked)
    assert said.split() == ["_flexmigrate", "loaded"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_option_is_known_to_every_shell(shell: str) -> None:
    made = script(shell, "flexmigrate")
    for command in COMMANDS.values():
        for option in command.options:
            shown = f"-l {option.long}" if shell == "fish" else f"--{option.long}"
            assert shown in made, (shell, option.long)


def test_a_shell_that_there_is_not() -> None:
    done = flexmigrate("completion", "tcsh")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"'tcsh' is none of bash|zsh|fish" in done.stderr

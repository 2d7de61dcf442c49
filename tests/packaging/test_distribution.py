"""A wheel that is made from the source archive works in an environment of its own.

The environment sees the libraries of the one that runs the tests, and not its flexmigrate, which
stands beside the tests. Only what builds is fetched from the package index.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import flexmigrate
from support.images import random_image
from support.processes import TESTS, Children

PROJECT = TESTS.parent

# What the archive is made of; not .venv, nor what tests have left behind.
SOURCES = (
    "CHANGELOG",
    "CONTRIBUTING.md",
    "LICENSE",
    "MANIFEST.in",
    "Makefile",
    "README.md",
    "pyproject.toml",
)
FOLDERS = (".ci", "bench", "demo", "docs", "examples", "flexmigrate", "systemd", "tests", "twisted")

BUILD_ARCHIVE = (
    "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
)


def run(*argv: str, cwd: Path, timeout: float = 100) -> str:
    done = subprocess.run(
        argv,
        cwd=cwd,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


class Installed:
    """An environment with the wheel.

    :ivar archive: the source archive.
    :ivar wheel: what was made of it, and installed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = folder / "environment"
        run(sys.executable, "-m", "venv", str(self.environment), cwd=folder)
        self.install("setuptools>=77")
        source = folder / "source"
        source.mkdir()
        for name in (*SOURCES, "setup.cfg"):
            shutil.copy(PROJECT / name, source)
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        for name in FOLDERS:
            shutil.copytree(PROJECT / name, source / name, ignore=ignored)
        page = source / "share" / "man" / "man1" / "flexmigrate.1"
        page.parent.mkdir(parents=True)
        page.write_text("")  # another test makes the page
        run(self.program("python"), "-c", BUILD_ARCHIVE, str(folder), cwd=source)
        (self.archive,) = folder.glob("*.tar.gz")
        pip = ("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet")
        run(self.program("python"), *pip, str(self.archive), cwd=folder)
        (self.wheel,) = folder.glob("*.whl")
        self.install("--no-deps", "--no-index", str(self.wheel))
        (site,) = (self.environment / "lib").glob("python*/site-packages")
        libraries = Path(pytest.__file__).parents[1]
        (site / "libraries.pth").write_text(f"{libraries}\n")

    def install(self, *words: str) -> None:
        pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        run(self.program("python"), *pip, *words, cwd=self.folder)

    def program(self, name: str) -> str:
        return str(self.environment / "bin" / name)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("distribution"))


def test_what_is_in_the_wheel(installed: Installed) -> None:
    names = set(zipfile.ZipFile(installed.wheel).namelist())
    modules = {str(path.relative_to(PROJECT)) for path in (PROJECT / "flexmigrate").rglob("*.py")}
    assert names >= modules
    assert names >= {"flexmigrate/py.typed", "twisted/plugins/flexmigrate_plugin.py"}
    # Twisted's own folders must not become packages of ours.
    assert not names & {"twisted/__init__.py", "twisted/plugins/__init__.py"}
    tops = {name.split("/")[0] for name in names}
    assert {each.partition("-")[0] for each in tops} == {"flexmigrate", "twisted"}


def test_what_is_in_the_archive(installed: Installed) -> None:
    with tarfile.open(installed.archive) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {"tests/conftest.py", "docs/index.rst", "systemd/flexmigrate-serve@.service"}
    examples = [path for end in ("py", "tac") for path in PROJECT.glob(f"examples/**/*.{end}")]
    assert names >= {str(path.relative_to(PROJECT)) for path in examples} != set()
    assert names >= {"Makefile", ".ci/run", "share/man/man1/flexmigrate.1"}


def test_it_is_this_version_and_nobody_elses_code(installed: Installed) -> None:
    said = run(installed.program("flexmigrate"), "--version", cwd=installed.folder)
    assert said == f"flexmigrate {flexmigrate.__version__}\n"
    where = "import flexmigrate; print(flexmigrate.__file__)"
    found = run(installed.program("python"), "-c", where, cwd=installed.folder)
    assert found.startswith(str(installed.environment))
    run(installed.program("flexmigrate"), "doctor", cwd=installed.folder)


def test_units_and_manual_are_below_its_prefix(installed: Installed) -> None:
    units = {path.name for path in (PROJECT / "systemd").iterdir()}
    assert {path.name for path in (installed.environment / "lib/systemd/system").iterdir()} == units
    assert (installed.environment / "share/man/man1/flexmigrate.1").is_file()


def test_its_servers_serve(installed: Installed, children: Children, tmp_path: Path) -> None:
    image = random_image(tmp_path / "image", 1 << 20)
    words = ("--addr", "127.0.0.1", "--port", "0", "--file", str(image))
    plugin = "import sys; from twisted.scripts.twistd import run; sys.argv[0] = 'twistd'; run()"
    for start in (
        (installed.program("flexmigrate"),),
        (installed.program("python"), "-c", plugin, "-n", "--pidfile=", "flexmigrate"),
    ):
        server = children.start(*start, "serve", *words)
        host, port = server.listening()
        place = ("--addr", host, "--port", str(port), "--from", "0", "--size", "4096")
        read = [installed.program("flexmigrate"), "read", *place]
        done = subprocess.run(read, capture_output=True, timeout=60)
        assert done.stdout == image.read_bytes()[:4096], done.stderr
        server.process.terminate()
        server.expect_exit(0)

"""The units for systemd: sound, closed to what they don't need, and true to the exit statuses."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest

from support.processes import TESTS, script
from support.programs import Programs

UNITS = TESTS.parent / "systemd"
SERVICES = ("flexmigrate-serve@.service", "flexmigrate-listen@.service")


@pytest.fixture
def unit_folder(tmp_path: Path) -> Path:
    """Instances, as of flexmigrate-serve@vm7, of the program that is tested."""
    for path in UNITS.iterdir():
        text = path.read_text().replace(
            "ExecStart=flexmigrate", f"ExecStart={script('flexmigrate')}"
        )
        tmp_path.joinpath(path.name).write_text(text)
        tmp_path.joinpath(path.name.replace("@", "@vm7")).write_text(text)
    return tmp_path


def service(name: str) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None, comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]  # the documented way
    parser.read_string((UNITS / name).read_text())
    return parser["Service"]


def test_systemd_finds_nothing_wrong(unit_folder: Path, programs: Programs) -> None:
    units = sorted(str(path) for path in unit_folder.glob("*@vm7*"))
    assert len(units) == 3
    assert programs.run("systemd-analyze", "verify", "--man=no", *units) == ""


@pytest.mark.parametrize("name", SERVICES)
def test_the_exposure_is_low(unit_folder: Path, programs: Programs, name: str) -> None:
    unit = unit_folder / name.replace("@", "@vm7")
    # In tenths; what is left is the network, and files of the host.
    programs.run("systemd-analyze", "security", "--offline=yes", "--threshold=15", str(unit))


@pytest.mark.parametrize("name", SERVICES)
def test_readiness_is_told_by_the_server(name: str) -> None:
    assert service(name)["Type"] == "notify"
    command = name.split("@", maxsplit=1)[0].removeprefix("flexmigrate-")
    assert service(name)["ExecStart"].startswith(f"flexmigrate {command} --config ")


def test_a_server_that_has_given_its_image_away_is_not_started_again() -> None:
    serve = service("flexmigrate-serve@.service")
    assert serve["Restart"] == "on-abnormal"
    assert set(serve["RestartPreventExitStatus"].split()) == {"0", "1", "2"}


def test_a_destination_is_never_started_again_by_itself() -> None:
    assert service("flexmigrate-listen@.service")["Restart"] == "no"


def test_the_documentation_has_every_unit() -> None:
    text = (TESTS.parent / "docs" / "systemd.rst").read_text()
    named = set(re.findall(r"``(flexmigrate-\w+@\.\w+)``", text))
    assert named == {path.name for path in UNITS.iterdir()}

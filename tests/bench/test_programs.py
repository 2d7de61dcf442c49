"""The benchmarks, tiny: they come to their end, write what they promise, and leave nothing behind.

No figure is judged here but by whether there is one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bench.samples import PLACES
from support.processes import TESTS, Child, Children

# Some seconds each; the machine may be busy with other tests.
PATIENCE = 120.0

Bench = Callable[..., Child]


@pytest.fixture
def grounds(tmp_path: Path) -> Path:
    """Where the images are made."""
    folder = tmp_path / "grounds"
    folder.mkdir()
    return folder


@pytest.fixture
def bench(children: Children, grounds: Path, tmp_path: Path) -> Bench:
    def start(module: str, rows: str, *options: str) -> Child:
        return children.start(
            *(sys.executable, "-m", f"bench.{module}", "--rows", rows, "--rounds", "1"),
            *("--size", "8", "--folder", str(grounds), "--out", str(tmp_path / "out"), *options),
            env={"PYTHONPATH": str(TESTS.parent)},
        )

    return start


def figures_of(program: Child, out: Path, name: str) -> Mapping[str, Mapping[str, Any]]:
    """Check that it wrote all that it promises; return each row's figures."""
    program.expect_exit(0, PATIENCE)
    data = json.loads((out / f"{name}.json").read_text())
    assert not data["missed"], program.story()
    table = (out / f"{name}.md").read_text()
    page = (out / f"{name}.inc").read_text()
    for row in data["rows"]:
        assert f"| {row['title']} | {row['unit']} |" in table
        assert f"   * - {row['title']}\n     - {row['unit']}\n" in page
        assert f"| {row['title']} |" in "\n".join(program.lines)
    ElementTree.parse(out / f"{name}.svg")
    return {row["name"]: row["figures"] for row in data["rows"]}


def installed(*programs: str) -> bool:
    return all(map(shutil.which, programs))


@pytest.mark.skipif(not installed("fio", "nbdcopy"), reason="fio or nbdcopy is not installed")
def test_serving_has_a_figure_for_every_kind_of_row(
    bench: Bench, tmp_path: Path, grounds: Path
) -> None:
    rows = [
        *("read-4k-1", "unix-write-1m-16", "copy-in", "cold-read-4k-32", "tls-read-1m-16"),
        *("clients-16", "warm-beside-cold"),
    ]
    program = bench("serving", ",".join(rows), "--seconds", "0.1", "--servers", "flexmigrate")
    figures = figures_of(program, tmp_path / "out", "serving")
    assert list(figures) == rows
    for row in figures.values():
        assert row["flexmigrate"][0] > 0
    assert not list(grounds.iterdir())


@pytest.mark.skipif(
    not installed("fio", "nbdkit", "qemu-nbd"), reason="fio, nbdkit or qemu-nbd is not installed"
)
def test_serving_compares_the_servers(bench: Bench, tmp_path: Path) -> None:
    servers = ["flexmigrate", "nbdkit", "qemu-nbd"]
    if installed("nbd-server"):
        servers.append("nbd-server")
    program = bench("serving", "read-4k-64", "--seconds", "0.1", "--servers", *servers)
    figures = figures_of(program, tmp_path / "out", "serving")["read-4k-64"]
    assert list(figures) == servers
    assert all(figure > 0 for (figure,) in figures.values())


@pytest.mark.skipif(not installed("fio"), reason="fio is not installed")
def test_idle_connections_are_measured_without_a_request(bench: Bench, tmp_path: Path) -> None:
    program = bench("serving", "idle-64", "--seconds", "0.2", "--servers", "flexmigrate")
    assert figures_of(program, tmp_path / "out", "serving")["idle-64"]["flexmigrate"][0] >= 0


@pytest.mark.skipif(
    not installed("fio", "perf") or os.geteuid() != 0, reason="needs fio, perf, and root"
)
def test_profiling_tells_where_the_time_goes(bench: Bench, tmp_path: Path, grounds: Path) -> None:
    more = ("--seconds", "1", "--servers", "flexmigrate")
    program = bench("profiling", "write-1m-16,unix-read-4k-1", *more)
    program.expect_exit(0, PATIENCE)
    if "perf: " in program.story():
        pytest.skip("perf may not look here")
    rows = json.loads((tmp_path / "out" / "profile.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["write-1m-16", "unix-read-4k-1"]
    for row in rows:
        assert sum(row[place] for place in PLACES) == pytest.approx(row["cpu"])
        assert 0 < row["client"] < 2
        assert 0 < row["server"] < 2
    for name in ("profile.md", "profile.inc"):
        assert "4 KiB random read, depth 1, UNIX socket" in (tmp_path / "out" / name).read_text()
    assert not list(grounds.iterdir())


def test_migrating_has_a_figure_for_every_kind_of_row(
    bench: Bench, tmp_path: Path, grounds: Path
) -> None:
    rows = ["sparse-allocated", "delay-25", "parked", "tebibyte-source", "tebibyte-first"]
    program = bench("migrating", ",".join(rows), "--handovers", "1", "--alone")
    figures = figures_of(program, tmp_path / "out", "migrating")
    assert list(figures) == rows
    for row in figures.values():
        assert row["flexmigrate"][0] is not None
    assert not list(grounds.iterdir())


@pytest.mark.skipif(not installed("nbdcopy", "nbdkit"), reason="nbdcopy or nbdkit is not installed")
def test_migrating_compares_with_nbdcopy(bench: Bench, tmp_path: Path) -> None:
    program = bench("migrating", "dense,tls")
    for row in figures_of(program, tmp_path / "out", "migrating").values():
        assert all(figure > 0 for (figure,) in row.values())


def test_what_cannot_be_measured_is_in_the_table_with_the_reason(
    children: Children, grounds: Path
) -> None:
    program = children.start(
        *(sys.executable, "-m", "bench.serving", "--rows", "read-4k-1", "--rounds", "1"),
        *("--size", "1", "--seconds", "0.1", "--folder", str(grounds), "--servers", "nbdkit"),
        env={"PYTHONPATH": str(TESTS.parent), "PATH": "/nowhere"},
    )
    program.expect_exit(0, PATIENCE)
    program.wait_for(r"^\| 4 KiB random read, depth 1 \| requests/s \| \[1\] \|")
    program.wait_for(r"^\[1\] nbdkit, read-4k-1: nbdkit is not installed$")


@pytest.mark.skipif(not installed("fio"), reason="fio is not installed")
def test_sigterm_ends_it_and_all_that_it_started(bench: Bench, grounds: Path) -> None:
    program = bench("serving", "read-4k-1", "--seconds", "60", "--servers", "flexmigrate")
    program.wait_for("0/1: round 1, read-4k-1, flexmigrate")
    program.send(signal.SIGTERM)
    program.expect_exit(130, PATIENCE)
    program.wait_for(r"^\| 4 KiB random read, depth 1 \| requests/s \| - \|")
    assert not list(grounds.iterdir())


def test_an_unknown_row_is_refused_by_name(bench: Bench) -> None:
    program = bench("serving", "no-such-row")
    program.expect_exit(2)
    program.wait_for("no such row: no-such-row")

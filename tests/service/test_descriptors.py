"""How many clients the descriptors are enough for, and what is told of it."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from flexmigrate.net import accepting
from flexmigrate.service import descriptors
from flexmigrate.service.descriptors import SPARE, clients_for, fitting


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect what is logged."""
    found: list[str] = []
    monkeypatch.setattr(
        descriptors.log, "warn", lambda text, **values: found.append(text.format(**values))
    )
    return found


@pytest.mark.parametrize(
    ("limit", "clients"),
    [(20000, 20000 - SPARE), (1024, 1024 - SPARE), (64, 16), (3, 1)],
)
def test_some_are_never_for_clients(limit: int, clients: int) -> None:
    assert clients_for(limit) == clients
    assert clients_for(resource.RLIM_INFINITY) > 1 << 30


def test_where_all_fit_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, warned: list[str]
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (20000, 20000))
    monkeypatch.setattr(accepting, "SOMAXCONN", tmp_path / "missing")
    assert fitting(10000) == 10000
    (tmp_path / "missing").write_text("2048\n")
    assert fitting(10000) == 10000
    assert warned == []


def test_where_they_do_not_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, warned: list[str]
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    monkeypatch.setattr(accepting, "SOMAXCONN", tmp_path / "somaxconn")
    (tmp_path / "somaxconn").write_text("128\n")
    assert fitting(10000) == 1024 - SPARE
    assert warned == [
        "768 clients can be connected at once, not 10000: this process may have 1024 open files",
        (
            "if more than 128 clients connect at once, some may never be greeted:"
            " net.core.somaxconn is 128, and 2048 or more would be enough"
        ),
    ]
    warned.clear()
    assert fitting(100) == 100
    assert warned == []

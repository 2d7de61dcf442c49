"""What a program may import is documented, and what the documents name can be imported."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re

import pytest

import flexmigrate
from flexmigrate.config import ListenConfig, ServeConfig
from support.processes import TESTS

DOCS = TESTS.parent / "docs"
API = (DOCS / "api.rst").read_text()
OPTION = r"(?:\n +:[\w-]+:(?: [^\n:]*(?:\n {6}[^\n]*)*)?)*"
DIRECTIVES = re.findall(rf"^\.\. auto(module|class):: (\S+)({OPTION})", API, re.MULTILINE)


def documented(name: str) -> bool:
    """Whether api.rst shows ``flexmigrate.NAME``, there or with the module that it is from."""
    home = getattr(flexmigrate, name).__module__
    for kind, what, options in DIRECTIVES:
        left_out = re.search(r":exclude-members:([^:]*)", options)
        excluded = re.findall(r"\w+", left_out[1]) if left_out else []
        if kind == "class" and what == f"flexmigrate.{name}":
            return True
        if kind == "module" and what in ("flexmigrate", home) and name not in excluded:
            return True
    return False


@pytest.mark.parametrize("name", flexmigrate.__all__)
def test_each_name_is_documented(name: str) -> None:
    assert inspect.getdoc(getattr(flexmigrate, name))
    assert documented(name)


def test_what_is_needed_beside_the_services_is_there() -> None:
    needed = {"ClientOptions", "HandoverRule", "NeverServed", "StartedBefore", "VerifyRule"}
    assert needed <= set(flexmigrate.__all__)
    assert sorted(flexmigrate.__all__) == flexmigrate.__all__


@pytest.mark.parametrize("name", ["ExportService", "ListenService"])
def test_what_both_services_have_in_common_is_shown_of_each(name: str) -> None:
    shown = [options for _, what, options in DIRECTIVES if what == f"flexmigrate.{name}"]
    assert [":inherited-members: Service" in options for options in shown] == [True]
    for each in ("opened", "ended", "places", "startService", "stopService"):
        assert inspect.getdoc(getattr(getattr(flexmigrate, name), each))


def test_what_the_page_on_embedding_names_can_be_imported() -> None:
    page = (DOCS / "embedding.rst").read_text()
    classes = set(re.findall(r"``((?:I[A-Z]|[A-Z])[a-z]\w*[A-Z]\w*)(?:\(|``)", page))
    assert {"IBlockDevice", "ListenService"} <= classes
    assert classes - {"ValueError"} <= set(flexmigrate.__all__)
    for dotted in re.findall(r"(?:``|:\w+:`)(flexmigrate(?:\.\w+)+)`", page):
        module, _, name = dotted.rpartition(".")
        assert hasattr(importlib.import_module(module), name), dotted


@pytest.mark.parametrize(
    ("service", "config", "own"),
    [
        (flexmigrate.ExportService, ServeConfig, {"exports", "default_export"}),
        (flexmigrate.ListenService, ListenConfig, {"file"}),
    ],
)
def test_a_service_takes_every_setting_of_its_configuration(
    service: type, config: type, own: set[str]
) -> None:
    taken = {
        name: each.default
        for name, each in inspect.signature(service).parameters.items()
        if each.kind is each.KEYWORD_ONLY
    }
    assert not any(
        each.kind is each.VAR_KEYWORD for each in inspect.signature(service).parameters.values()
    )
    # A program reads its own configuration again.
    known = {
        each.name: each.default
        for each in dataclasses.fields(config)
        if each.init and each.name not in own | {"places", "reread"}
    }
    taken.pop("default_export", None)
    assert taken == known

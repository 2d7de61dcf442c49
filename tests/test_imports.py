"""The rooms of the house, and that nobody looks up from one: imports point downwards only.

Every import is looked at, at the top of a module or inside a function; only those for the type
checker (``if TYPE_CHECKING``) are let pass, since they aren't there when the program runs.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import flexmigrate

PACKAGE = Path(flexmigrate.__file__).parent

# From the ground up. What stands in one line may know of each other, but not in a circle.
STOREYS = (
    ("errors", "log"),
    ("wire", "net", "telemetry"),
    ("image",),
    ("server", "client"),
    ("migration",),
    ("config", "settings", "control", "web"),
    ("service",),
    ("cli", "testing"),
    ("__main__",),
)
HEIGHT = {room: height for height, rooms in enumerate(STOREYS) for room in rooms}

# What must not be looked at even from above, and why.
STRANGERS = {
    ("image", "wire"): "the image knows nothing of NBD",
    ("migration", "net"): "a migration knows of the client protocol, not of sockets",
    ("migration.source", "migration.destination"): "each end knows the other by the wire only",
    ("migration.destination", "migration.source"): "each end knows the other by the wire only",
}
# Plain values, which open nothing.
VALUES = {"flexmigrate.net.address", "flexmigrate.net.sendable"}

# sans-IO: bytes in, values out. None of these has a place there.
NOT_IN_WIRE = {"asyncio", "os", "pathlib", "select", "socket", "threading", "time", "twisted"}

# Before one of these has been told what to do, no reactor is loaded: the answer has to be quick.
WITHOUT_TWISTED = ("cli", "config", "errors", "settings", "telemetry", "wire")
EXCEPT = ("flexmigrate.cli.transfer", "flexmigrate.cli.twistd")
WITHOUT_TWISTED_EITHER = (
    "flexmigrate.control.caller",
    "flexmigrate.control.grammar",
    "flexmigrate.net.acl",
    "flexmigrate.net.address",
    "flexmigrate.image.disk",
    "flexmigrate.image.opening",
    "flexmigrate.migration.ownership.journal",
    "flexmigrate.migration.ownership.ownership",
    "flexmigrate.migration.ownership.resolve",
    "flexmigrate.migration.ownership.status",
    "flexmigrate.migration.request",
)


def modules() -> dict[str, Path]:
    """Return the file of every module of ours."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        words = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(words).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imported(path: Path, *, late: bool = True) -> Iterator[str]:
    """Yield the full name of each module that *path* imports.

    :param late: those that are imported inside a function, too.
    """
    return imported_by(path.read_text(), late=late)


def imported_by(text: str, *, late: bool = True) -> Iterator[str]:
    """Do so for a module's *text*."""
    pending: list[ast.AST] = [ast.parse(text)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
        elif isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from _imported_from(node)
        elif late or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            pending += ast.iter_child_nodes(node)


def _imported_from(node: ast.ImportFrom) -> Iterator[str]:
    assert node.module is not None
    assert not node.level, "imports are absolute"
    for each in node.names:
        inner = f"{node.module}.{each.name}"
        yield inner if inner in MODULES else node.module


def room(module: str) -> str:
    """Return the room that a module of ours is in; the package itself is the ground."""
    words = module.split(".")
    return words[1] if len(words) > 1 else "errors"


def stranger(module: str, name: str) -> str | None:
    """Return why *module* must not import *name*, or None if it may."""
    for (looking, seen), reason in STRANGERS.items():
        if is_within(module, looking) and is_within(name, seen):
            return reason
    return None


def is_within(module: str, part: str) -> bool:
    """Return whether *module* is *part* of the package, or in it."""
    return f"{module}.".startswith(f"flexmigrate.{part}.")


def ours(names: Iterator[str]) -> Iterator[str]:
    """Yield those of *names* that are flexmigrate's."""
    return (name for name in names if name.split(".")[0] == "flexmigrate")


EXAMPLE = """
import socket
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from flexmigrate.service import build
def late():
    from flexmigrate import cli
"""


class ExampleTests(SynchronousTestCase):
    def test_what_is_seen_of_a_module(self) -> None:
        self.assertEqual(set(imported_by(EXAMPLE)), {"socket", "typing", "flexmigrate.cli"})
        self.assertEqual(set(imported_by(EXAMPLE, late=False)), {"socket", "typing"})


class RoomsTests(SynchronousTestCase):
    def test_every_module_is_in_a_room(self) -> None:
        self.assertEqual([each for each in MODULES if room(each) not in HEIGHT], [])
        self.assertGreater(len(MODULES), 50)

    def test_imports_point_downwards(self) -> None:
        upwards = [
            f"{module} imports {name}"
            for module, path in MODULES.items()
            for name in ours(imported(path))
            if HEIGHT[room(name)] > HEIGHT[room(module)]
        ]
        self.assertEqual(upwards, [])

    def test_some_rooms_do_not_know_of_each_other_at_all(self) -> None:
        found = [
            f"{module} imports {name}: {reason}"
            for module, path in MODULES.items()
            for name in ours(imported(path))
            if name not in VALUES and (reason := stranger(module, name))
        ]
        self.assertEqual(found, [])

    def test_no_modules_import_each_other_in_a_circle(self) -> None:
        graph = {module: set(ours(imported(path))) for module, path in MODULES.items()}
        while leaves := {module for module in graph if not graph[module] & graph.keys()}:
            graph = {module: names for module, names in graph.items() if module not in leaves}
        self.assertEqual(graph, {})


class ForeignersTests(SynchronousTestCase):
    def test_the_wire_is_sans_io(self) -> None:
        found = [
            f"{module} imports {name}"
            for module, path in MODULES.items()
            if room(module) == "wire"
            for name in imported(path)
            if name.split(".")[0] in NOT_IN_WIRE
        ]
        self.assertEqual(found, [])

    def test_calls_to_a_running_server_load_no_reactor(self) -> None:
        found = [
            f"{module} imports {name}"
            for module, path in MODULES.items()
            if room(module) in WITHOUT_TWISTED or module in WITHOUT_TWISTED_EITHER
            if module not in EXCEPT
            for name in imported(path, late=False)
            if name.split(".")[0] in ("twisted", "zope", "automat", "asyncio")
        ]
        self.assertEqual(found, [])

    def test_only_what_starts_a_process_imports_the_reactor(self) -> None:
        """Everything else is given one."""
        found = {
            module
            for module, path in MODULES.items()
            if any(
                isinstance(node, ast.ImportFrom)
                and node.module == "twisted.internet"
                and any(each.name == "reactor" for each in node.names)
                for node in ast.walk(ast.parse(path.read_text()))
            )
        }
        expected = {"flexmigrate.cli.doctor.run", "flexmigrate.cli.transfer"}
        self.assertLessEqual(found, expected | {"flexmigrate.service", "flexmigrate.service.run"})

"""Private names of Twisted: the installed Twisted has those that we use, and one module uses them.

A Twisted without one of them, or with other parameters, fails here by name.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

import flexmigrate
import twisted
from flexmigrate.net import twisted_private
from flexmigrate.net.twisted_private import PRIVATE_NAMES, PrivateName

PACKAGE = Path(flexmigrate.__file__).parent
LIBRARIES = ("twisted", "OpenSSL")

ADVICE = (
    "Twisted {version}: {owner}.{name} {problem}. flexmigrate.net.twisted_private.{user} uses it; "
    "its docstring says why. Mend it so that it works with this Twisted and the oldest one that "
    "pyproject.toml allows, then its row in PRIVATE_NAMES."
)


def problem(used: PrivateName) -> str | None:
    """Return what is wrong with *used* in the installed Twisted, or None."""
    owner = resolve(used.owner)
    if owner is None:
        return "has gone with its owner"
    if used.name not in names_of(owner):
        return "has gone"
    if used.parameters is None:
        return None
    found = tuple(inspect.signature(getattr(owner, used.name)).parameters)
    return None if found == used.parameters else f"takes {found} instead of {used.parameters}"


def resolve(dotted: str) -> Any:
    """Return the module or class *dotted*, or None if there is none."""
    if dotted in sys.modules:
        return sys.modules[dotted]
    module, _, name = dotted.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None


def names_of(owner: Any) -> set[str]:
    """Return the names that a module or class has, those that its methods set, too."""
    if inspect.ismodule(owner):
        return set(vars(owner))
    return {name for each in owner.__mro__ if each is not object for name in own_names(each)}


@cache
def own_names(kind: type) -> frozenset[str]:
    return frozenset(vars(kind)) | attributes_set_in(kind.__module__)


@cache
def attributes_set_in(module: str) -> frozenset[str]:
    return frozenset(
        node.attr
        for node in ast.walk(ast.parse(inspect.getsource(sys.modules[module])))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    )


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def modules() -> dict[str, Path]:
    """Return the file of every module of ours."""
    return {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(
            ".__init__"
        ): path
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def private_imports(text: str) -> Iterator[str]:
    """Yield each private name that a module's *text* imports from one of the libraries."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{each.name}" for each in node.names]
        else:
            continue
        for name in names:
            words = name.split(".")
            if words[0] in LIBRARIES and any(is_private(word) for word in words):
                yield name


def private_attributes(text: str) -> Iterator[tuple[int, str]]:
    """Yield the line and name of each private attribute, ``getattr`` with a literal included."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            yield node.lineno, node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            asks = node.func.id in ("getattr", "setattr", "hasattr")
            for name in node.args[1:2] if asks else ():
                if isinstance(name, ast.Constant) and is_private(str(name.value)):
                    yield node.lineno, str(name.value)


def defined_names(text: str) -> set[str]:
    """Return what a module's *text* gives a name to."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def heirs() -> Iterator[type]:
    """Yield each class of ours that inherits from one of the libraries."""
    for module in MODULES:
        if module == "flexmigrate.__main__":
            continue
        for kind in vars(importlib.import_module(module)).values():
            if inspect.isclass(kind) and kind.__module__ == module and library_bases(kind):
                yield kind


def library_bases(kind: type) -> list[type]:
    return [each for each in kind.__mro__ if each.__module__.split(".")[0] in LIBRARIES]


MODULES = modules()
TEXTS = {module: path.read_text() for module, path in MODULES.items()}
HERE = twisted_private.__name__
ELSEWHERE = {module: text for module, text in TEXTS.items() if module != HERE}

# argparse has no other way to the arguments of a parser.
OF_OTHERS = {("flexmigrate.cli.completion", "_actions")}


class NamesTests(SynchronousTestCase):
    def test_the_installed_twisted_has_what_we_use(self) -> None:
        version = twisted.__version__
        changed = [
            ADVICE.format(version=version, problem=what, **used._asdict())
            for used in PRIVATE_NAMES
            if (what := problem(used))
        ]
        self.assertEqual(changed, [])

    def test_a_name_that_has_gone_is_told_with_advice(self) -> None:
        for used, expected in (
            (PrivateName("twisted.internet.tcp.Port", "_gone", None, "x"), "has gone"),
            (PrivateName("twisted.internet.tcp.Gone", "_x", None, "x"), "has gone with its owner"),
            (PrivateName("twisted.internet._gone", "x", None, "x"), "has gone with its owner"),
            (
                PrivateName("twisted.internet.tcp.Port", "_buildAddr", ("self",), "x"),
                "takes ('self', 'address') instead of ('self',)",
            ),
        ):
            self.assertEqual(problem(used), expected)

    def test_the_list_has_what_the_module_uses_and_no_more(self) -> None:
        text = TEXTS[HERE]
        used = {name for _, name in private_attributes(text)}
        used |= {name for name in defined_names(text) if name == "_makeTransport"}
        used |= {name.rpartition(".")[2] for name in private_imports(text)}
        self.assertEqual(used, {each.name for each in PRIVATE_NAMES})

    def test_each_has_a_user_that_says_why(self) -> None:
        for each in PRIVATE_NAMES:
            self.assertTrue(inspect.getdoc(getattr(twisted_private, each.user)), each.user)


class ElsewhereTests(SynchronousTestCase):
    def test_no_other_module_imports_a_private_name(self) -> None:
        found = [
            f"{module} imports {name}: it belongs into {HERE}"
            for module, text in ELSEWHERE.items()
            for name in private_imports(text)
        ]
        self.assertEqual(found, [])

    def test_no_other_module_uses_a_private_attribute_of_somebody_else(self) -> None:
        """One that nobody here defines is Twisted's, or another library's."""
        ours = set().union(*(defined_names(text) for text in ELSEWHERE.values()))
        found = [
            f"{MODULES[module]}:{line} uses {name}: it belongs into {HERE}"
            for module, text in ELSEWHERE.items()
            for line, name in private_attributes(text)
            if name not in ours and (module, name) not in OF_OTHERS
        ]
        self.assertEqual(found, [])

    def test_no_private_name_of_ours_is_one_that_twisted_has_for_the_same_object(self) -> None:
        """Neither used, nor taken for something else by accident."""
        found = [
            f"{kind.__qualname__} uses {name}, which {base.__qualname__} has for itself"
            for kind in heirs()
            if kind.__module__ != HERE
            for base in library_bases(kind)
            for name in names_in(kind) & {name for name in own_names(base) if is_private(name)}
        ]
        self.assertEqual(found, [])

    def test_what_is_looked_at(self) -> None:
        text = "from twisted.internet._newtls import startTLS\nx._y\ngetattr(x, '_z')\nself._w = 1"
        self.assertEqual(list(private_imports(text)), ["twisted.internet._newtls.startTLS"])
        self.assertEqual({name for _, name in private_attributes(text)}, {"_y", "_z", "_w"})
        self.assertEqual(defined_names(text), {"_w"})
        self.assertGreater(len(list(heirs())), 20)


def names_in(kind: type) -> set[str]:
    """Return the private names that the class's own text has."""
    text = inspect.cleandoc("\n" + inspect.getsource(kind))
    used = {name for _, name in private_attributes(text)} | defined_names(text)
    return {name for name in used if is_private(name)}

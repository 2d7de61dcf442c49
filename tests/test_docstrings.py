"""Docstrings say what a thing does or is, beginning with a verb or a noun, and nothing public lacks
one. A method may take its docstring from a base class or an interface.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable
from pathlib import Path

from twisted.trial import unittest

TOP = Path(__file__).resolve().parents[1]
OPENINGS = {"What", "Whatever", "Who", "Whoever", "Whose", "Whom", "How", "Where", "Of", "That"}

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def modules() -> list[Path]:
    """Return the modules to look at: the library, the programs of the docs, and both benchmarks."""
    folders = ("flexmigrate", "examples", "bench", "tests/support")
    return sorted(path for folder in folders for path in (TOP / folder).rglob("*.py"))


def riddles(tree: ast.Module) -> list[str]:
    """Return the first lines of docstrings that begin with a word of OPENINGS."""
    documented = (node for node in ast.walk(tree) if isinstance(node, Documented))
    texts = (ast.get_docstring(node) or "It" for node in documented)
    return [text.splitlines()[0] for text in texts if text.split()[0] in OPENINGS]


def promised(trees: Iterable[ast.Module]) -> set[str]:
    """Return the names of the methods of all protocols and interfaces, which document them."""
    classes = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    kinds = {"Protocol", "Interface"}
    abstract = (
        c for c in classes if any(isinstance(b, ast.Name) and b.id in kinds for b in c.bases)
    )
    return {each.name for c in abstract for each in c.body if isinstance(each, Documented)}


def undocumented(
    node: Documented, known: Collection[str] = (), *, is_derived: bool = False
) -> list[str]:
    """Return the names of public things below *node* that should have a docstring.

    :param known: names of methods that an interface documents.
    """
    missing = []
    for child in node.body:
        if isinstance(child, Documented) and not child.name.startswith("_"):
            is_method = isinstance(node, ast.ClassDef)
            is_setter = any(isinstance(each, ast.Attribute) for each in child.decorator_list)
            is_told = is_method and (is_derived or is_setter or child.name in known)
            if ast.get_docstring(child) is None and not is_told:
                missing.append(child.name)
            if isinstance(child, ast.ClassDef):
                has_bases = bool(child.bases or child.decorator_list)
                missing += undocumented(child, known, is_derived=has_bases)
    return missing


class DocstringTests(unittest.TestCase):
    def test_none_begins_with_a_riddle(self) -> None:
        found = {str(p): riddles(ast.parse(p.read_text())) for p in modules()}
        self.assertEqual({}, {path: lines for path, lines in found.items() if lines})

    def test_everything_public_has_one(self) -> None:
        library = [path for path in modules() if path.is_relative_to(TOP / "flexmigrate")]
        trees = {path: ast.parse(path.read_text()) for path in library}
        known = promised(trees.values())
        found = {str(path): undocumented(tree, known) for path, tree in trees.items()}
        self.assertEqual({}, {path: names for path, names in found.items() if names})

    def test_both_are_found(self) -> None:
        tree = ast.parse('class A:\n    """What it is."""\n    def b(self): ...\n')
        self.assertEqual((["What it is."], ["b"]), (riddles(tree), undocumented(tree)))

"""What the documentation says of the code is what the code does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.cli.commands import COMMANDS
from flexmigrate.control.server import COMMANDS as OPERATORS_COMMANDS
from flexmigrate.migration.request import SETTINGS
from flexmigrate.service.migrating import REQUEST_LIMIT_VARIABLE
from support.processes import TESTS

DOCS = TESTS.parent / "docs"

# Constant words of lines in the log that the reference tells people to look for.
LINES = (
    "clients were parked for",
    "bytes were changed meanwhile",
    "clients write faster than can be sent",
    "the sender went away before it was done; what it sent",
    "the sender said DISC, but",
    "can't open the serving address yet",
    "the serving address is open, at try",
    "the migration ended:",
    "ending with status",
    "listening on",
)


def text(name: str) -> str:
    return (DOCS / name).read_text()


class Tables(SynchronousTestCase):
    def test_the_tables_that_follow_from_the_code_are_up_to_date(self) -> None:
        check = [sys.executable, str(DOCS / "regenerate.py"), "--check"]
        ran = subprocess.run(check, capture_output=True, text=True, cwd=DOCS.parent)
        self.assertEqual(ran.returncode, 0, f"{ran.stderr}: run `make tables`")

    def test_the_states_in_which_the_image_is_given_away_are_in_the_tables(self) -> None:
        self.assertRegex(text("states.rst"), r"committing +``given`` +finishing")
        self.assertRegex(text("states.rst"), r"confirming +``given`` +finishing")
        self.assertRegex(text("states.rst"), r"owning +``ours`` +complete")
        self.assertRegex(text("states.rst"), r"settling +``ours`` +complete")

    def test_every_field_of_the_status_has_a_row(self) -> None:
        self.assertRegex(text("status.rst"), r"``migration_bytes_left`` +bytes +data that is known")

    def test_every_command_has_its_section(self) -> None:
        for name in COMMANDS:
            self.assertIn(f"\n{name}\n{'-' * len(name)}\n", text("commands.rst"))

    def test_every_command_of_the_operators_socket_has_its_paragraph(self) -> None:
        for name in OPERATORS_COMMANDS:
            self.assertRegex(text("operators.rst"), rf"(?m)^``{name}``")

    def test_every_setting_of_a_migration_is_named(self) -> None:
        for setting in SETTINGS:
            self.assertRegex(text("operators.rst"), rf"``{setting.name}(=NAME)?``")

    def test_the_environment_variable_is_named_as_the_code_has_it(self) -> None:
        self.assertIn(f"\n``{REQUEST_LIMIT_VARIABLE}``\n", text("operators.rst"))


class Pages(SynchronousTestCase):
    def test_every_page_is_in_the_index(self) -> None:
        pages = {path.stem for path in DOCS.glob("*.rst")} - {"index"}
        self.assertEqual(pages, set(re.findall(r"(?m)^   ([\w-]+)$", text("index.rst"))))

    def test_every_page_that_the_readme_names_is_there(self) -> None:
        named = re.findall(r"\]\((docs/\S+?)\)", (DOCS.parent / "README.md").read_text())
        self.assertTrue(named)
        for name in named:
            self.assertTrue(Path(DOCS.parent, name).is_file(), name)

    def test_every_file_that_a_page_names_is_there(self) -> None:
        root = DOCS.parent
        for page in DOCS.glob("*.rst"):
            for name in re.findall(r"``((?:\w+/)+\w+\.py)``", page.read_text()):
                found = (root / name).is_file() or (root / "flexmigrate" / name).is_file()
                self.assertTrue(found, f"{page.name}: {name}")


class LogLines(SynchronousTestCase):
    def test_what_is_said_in_the_log_is_said_in_the_code(self) -> None:
        code = " ".join(
            re.sub(r'"\s*\n\s*"', "", path.read_text())
            for path in Path(TESTS.parent, "flexmigrate").rglob("*.py")
        )
        reference = re.sub(r"\s+", " ", text("log.rst"))
        for words in LINES:
            self.assertIn(words, code)
            self.assertTrue(words in reference, f"log.rst doesn't have {words!r}")

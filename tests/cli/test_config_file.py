from __future__ import annotations

import re
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.cli import main as cli
from flexmigrate.cli.commands import COMMANDS
from flexmigrate.cli.option import Flag, Words
from flexmigrate.cli.parsing import file_settings, parse
from flexmigrate.cli.requests import Config
from flexmigrate.config import ListenConfig, ServeConfig
from flexmigrate.errors import UsageError
from support.processes import TESTS

SERVE = 'addr = "10.0.0.1"\nport = 10809\nfile = "disk"\n'


class FileTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name, "vm7.toml")

    def read(self, text: str, line: str = "serve") -> Config:
        self.path.write_text(text)
        name, *words = line.split()
        return parse(name, [*words, "--config", str(self.path)], f"flexmigrate {name}")

    def assert_wrong(self, text: str, *named: str, line: str = "serve") -> None:
        with self.assertRaises(UsageError) as caught:
            self.read(text, line)
        for each in named:
            self.assertIn(each.replace("FILE", str(self.path)), str(caught.exception))


class MeaningTests(FileTestCase):
    def test_a_file_means_what_a_command_line_means(self) -> None:
        text = """
            sock = "/run/s"              # a comment
            default-deny = true
            killswitch = false
            export = ["vm7", "b=/images/b"]
            poll-us = 0
            log-level = ["migration=debug"]
            verbose = true
            acl = ["10.0.0.0/8", "::1"]
        """
        line = (
            "--addr 10.0.0.1 --port 10809 --file disk --sock /run/s --default-deny --export vm7"
            " --export b=/images/b --poll-us 0 --log-level migration=debug -v 10.0.0.0/8 ::1"
        )
        self.assertEqual(self.read(SERVE + text), parse("serve", line.split(), ""))

    def test_the_command_line_comes_first(self) -> None:
        text = SERVE + 'export = ["a"]\nacl = ["10.0.0.0/8"]\nverbose = true\n'
        config = self.read(text, "serve 192.0.2.1 --port 1 --export b --quiet")
        line = "-l 10.0.0.1 -p 1 -f disk --export b -q 192.0.2.1"
        self.assertEqual(config, parse("serve", line.split(), ""))

    def test_a_table_comes_before_what_is_said_for_all(self) -> None:
        text = f"{SERVE}[listen]\nport = 10810\nrebind-port = 10809\n[serve]\nread-only = true\n"
        serving, listening = self.read(text), self.read(text, "listen")
        assert isinstance(serving, ServeConfig)
        assert isinstance(listening, ListenConfig)
        self.assertTrue(serving.read_only)
        self.assertEqual([str(each) for each in serving.places], ["10.0.0.1:10809"])
        self.assertEqual([str(each) for each in listening.places], ["10.0.0.1:10810"])
        self.assertEqual(str(listening.rebind), "10.0.0.1:10809")

    def test_an_option_of_one_command_only_does_not_disturb_the_other(self) -> None:
        text = f'{SERVE}coverage = "any"\nkillswitch = true\n'
        serving, listening = self.read(text), self.read(text, "listen")
        assert isinstance(serving, ServeConfig)
        assert isinstance(listening, ListenConfig)
        self.assertTrue(serving.killswitch)
        self.assertEqual(listening.coverage, "any")

    def test_every_option_can_stand_in_a_file(self) -> None:
        for name, settings in file_settings().items():
            options = {each.long for each in COMMANDS[name].options} - {"config"}
            self.assertEqual(set(settings), options | {"verbose", "quiet", "acl"})
        self.assertEqual(set(file_settings()), {"serve", "listen"})


class DocumentedTests(FileTestCase):
    def test_the_example_in_the_documentation_is_sound(self) -> None:
        document = TESTS.parent / "docs" / "configuration.rst"
        (example,) = re.findall(r"code-block:: toml\n\n((?:    .*\n|\n)+)", document.read_text())
        serving, listening = self.read(textwrap.dedent(example)), self.read(example, "listen")
        assert isinstance(serving, ServeConfig)
        assert isinstance(listening, ListenConfig)
        self.assertEqual(serving.max_clients, 10)
        self.assertEqual(serving.places[0], listening.rebind)


class MistakeTests(FileTestCase):
    def test_a_value_that_means_nothing(self) -> None:
        self.assert_wrong(
            'addr = "10.0.0.1"\n\nport = 99999\nfile = "disk"\n', "FILE, line 3: port: '99999'"
        )
        self.assert_wrong(f'{SERVE}acl = ["10.0.0.300"]', "FILE, line 4: acl: ", "'10.0.0.300'")
        self.assert_wrong(
            f'{SERVE}[serve]\ntls = "yes"\n', "FILE, line 5: [serve] tls: 'yes' is none of"
        )

    def test_a_value_of_another_kind(self) -> None:
        for value, text in (
            ("port = true", "port: True is not a text or a number"),
            ("port = 1.5", "port: 1.5 is not a text or a number"),
            ("port = [1]", "port: [1] is not a text or a number"),
            ('killswitch = "no"', "killswitch: 'no' is not true or false"),
            ("[serve]\nkillswitch = 1", "killswitch: 1 is not true or false"),
            ('[serve]\nexport = "a"', "export: 'a' is not an array of texts"),
            ("export = true", "export: True is not an array of texts or a text or a number"),
            ("acl = [true]", "acl: [True] is not an array of texts"),
            ("port = {a = 1}", "there are only the tables [serve] and [listen]"),
            ("[serve]\nport = {a = 1}", "[serve] port: {'a': 1} is not"),
        ):
            self.assert_wrong(value, str(self.path), text)

    def test_an_option_that_there_is_not(self) -> None:
        self.assert_wrong(f"{SERVE}prot = 1", "line 4: prot: serve or listen has no such", "port?")
        self.assert_wrong(
            f'{SERVE}[serve]\ncoverage = "any"', "[serve] coverage: serve has no such"
        )
        self.assert_wrong(f"{SERVE}[mirror]\nport = 1", "[mirror]", "[serve] and [listen]")

    def test_a_mistake_for_the_other_command_is_one_too(self) -> None:
        self.assert_wrong(f"{SERVE}[listen]\nfly = 1", "line 5: [listen] fly: listen has no such")

    def test_what_does_not_go_together(self) -> None:
        text = 'addr = "/run/nbd"\nport = 1\nfile = "disk"'
        self.assert_wrong(text, "FILE, line 2: port 1: /run/nbd is a UNIX socket")
        self.assert_wrong('addr = "::1"\nport = 1', "--file is required", "or in FILE")

    def test_what_is_no_toml(self) -> None:
        self.assert_wrong("addr = \n", "FILE: ", "line 1")
        self.assert_wrong("port = 1\nport = 2\nport = 3\n", "FILE: ", "line 2")

    def test_a_file_that_cannot_be_read(self) -> None:
        self.path.write_bytes(b"port = 1 # \xff\n")
        for path, text in (
            (self.path, f"{self.path}: byte 11 is not UTF-8"),
            (self.path / "x", f"--config {self.path}/x: Not a directory"),
            (self.path.parent, f"--config {self.path.parent}: Is a directory"),
            (self.path.with_name("no"), "No such file or directory"),
        ):
            with self.assertRaises(UsageError) as caught:
                parse("serve", ["--config", str(path)], "")
            self.assertIn(text, str(caught.exception))

    def test_a_wrong_file_is_a_wrong_command_line(self) -> None:
        self.path.write_text("fly = 1")
        self.assertEqual(cli.main(["serve", "--config", str(self.path)]), 2)

    @given(st.text(max_size=60))
    def test_any_text_is_taken_or_refused_with_its_place(self, text: str) -> None:
        try:
            self.read(text)
        except UsageError as error:
            self.assertIn(str(self.path), str(error))


class SettingsTests(SynchronousTestCase):
    def values(self) -> Iterator[tuple[str, str, object]]:
        for name, settings in file_settings().items():
            for key, setting in settings.items():
                if isinstance(setting, Flag):
                    yield name, key, "true"
                elif isinstance(setting, Words) or setting.repeatable:
                    yield name, key, "[]"
                else:
                    yield name, key, '"\\u0000"'

    def test_each_key_reaches_its_option(self) -> None:
        """A value that no option takes is refused under its own name, and so was looked at."""
        for name, key, value in self.values():
            with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
                file.write(f"{key} = {value}\n")
                file.flush()
                with self.assertRaises(UsageError) as caught:
                    parse(name, ["--config", file.name], "")
            self.assertIn(file.name, str(caught.exception))

from __future__ import annotations

import contextlib
import io
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

import flexmigrate
from flexmigrate.cli import main as cli
from flexmigrate.cli.commands import COMMANDS
from flexmigrate.cli.requests import ReadConfig, WriteConfig
from flexmigrate.config import ListenConfig, ServeConfig
from flexmigrate.errors import ImageError, UsageError
from flexmigrate.log import observer

ROOT = Path(flexmigrate.__file__).parents[1]
TO_SERVE = "--addr 10.0.0.1 --port 10809 --file disk"
TO_TRANSFER = "--addr 10.0.0.1 --port 10809 --from 0 --size 1"


class CliTestCase(SynchronousTestCase):
    def run_main(self, line: str) -> tuple[int, str, str]:
        """Return the exit status, standard output and standard error of a command line."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = cli.main(line.split())
        return status, out.getvalue(), err.getvalue()


class HelpTests(CliTestCase):
    def test_the_overview_lists_every_command(self) -> None:
        for line in ("help", "--help", "-h"):
            status, out, err = self.run_main(line)
            self.assertEqual((status, err), (0, ""))
            for name, command in COMMANDS.items():
                self.assertRegex(out, rf"(?m)^  {name} +{command.summary}$")

    def test_help_on_a_command_is_that_commands_help(self) -> None:
        for name in COMMANDS:
            status, out, err = self.run_main(f"help {name}")
            self.assertEqual((status, err), (0, ""))
            self.assertTrue(out.startswith(f"usage: flexmigrate {name} "))
            with self.assertRaises(SystemExit) as ended:
                self.run_main(f"{name} --help")
            self.assertEqual(ended.exception.code, 0)

    def test_help_on_what_is_no_command(self) -> None:
        status, out, err = self.run_main("help fly")
        self.assertEqual((status, out), (2, ""))
        self.assertIn("'fly'", err)
        self.assertEqual(self.run_main("help serve listen")[0], 2)

    def test_version(self) -> None:
        expected = f"flexmigrate {flexmigrate.__version__}\n"
        self.assertEqual(self.run_main("--version"), (0, expected, ""))


class UsageTests(CliTestCase):
    def test_no_command(self) -> None:
        status, out, err = self.run_main("")
        self.assertEqual((status, out), (2, ""))
        self.assertIn("Try 'flexmigrate help'.", err)

    def test_an_unknown_command(self) -> None:
        status, _, err = self.run_main("fly --high")
        self.assertEqual(status, 2)
        self.assertIn("'fly' is not a command", err)

    def test_a_wrong_option_is_named_and_where_to_read_on(self) -> None:
        status, out, err = self.run_main("serve --addr here")
        self.assertEqual((status, out), (2, ""))
        self.assertIn("--addr: 'here' is neither", err)
        self.assertIn("Try 'flexmigrate help serve'.", err)


class CallTests(CliTestCase):
    def answering(self, answer: bytes) -> tuple[str, list[bytes]]:
        """Start a server that gives *answer* to one command; return its path and what it heard."""
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        path = f"{folder}/sock"
        heard: list[bytes] = []
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            with listener, listener.accept()[0] as connection:
                heard.append(connection.recv(4096))
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        self.addCleanup(thread.join)
        return path, heard

    def test_success_goes_to_standard_output(self) -> None:
        sock, heard = self.answering(b"0: Mirror started\n")
        ended = self.run_main(f"mirror -l 10.0.0.2 -p 10809 -s {sock}")
        self.assertEqual(ended, (0, "Mirror started\n", ""))
        self.assertEqual(heard, [b"mirror\n10.0.0.2\n10809\nexit\n\n"])

    def test_a_refusal_goes_to_standard_error(self) -> None:
        for code in (1, 10):
            sock, _ = self.answering(b"%d: Not mirroring\n" % code)
            self.assertEqual(self.run_main(f"break -s {sock}"), (1, "", "Not mirroring\n"))

    def test_a_server_that_is_not_there(self) -> None:
        status, out, err = self.run_main("status --sock /nonexistent/sock")
        self.assertEqual((status, out), (1, ""))
        self.assertIn("/nonexistent/sock: No such file or directory", err)

    def test_a_call_never_imports_twisted(self) -> None:
        """What makes ``flexmigrate status`` fast, without measuring a busy machine."""
        sock, _ = self.answering(b"0: pid=1\n")
        ended = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "flexmigrate", "status", "--sock", sock],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual((ended.returncode, ended.stdout), (0, "pid=1\n"))
        imported = {line.split("|")[-1].strip() for line in ended.stderr.splitlines()}
        self.assertIn("flexmigrate.control.caller", imported)
        heavy = {"twisted", "zope", "automat", "asyncio", "ssl", "urllib.parse"}
        self.assertEqual(imported & heavy, set())


class ServiceTests(CliTestCase):
    """The commands that need a reactor, with a recorder in the service's place."""

    def setUp(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.outcome: int | Exception = 0
        run, transfer = (
            ModuleType("flexmigrate.service.run"),
            ModuleType("flexmigrate.cli.transfer"),
        )
        for module, name in ((run, "run_service"), (transfer, "run_read"), (transfer, "run_write")):
            setattr(module, name, self.recorder(name))
        run.later = None  # type: ignore[attr-defined]  # a module made by hand has no attributes
        modules = mock.patch.dict(sys.modules, {each.__name__: each for each in (run, transfer)})
        modules.start()
        self.addCleanup(modules.stop)
        self.patch(
            observer,
            "start_logging",
            lambda settings, **_: self.calls.append(("log", settings.verbosity)),
        )

    def recorder(self, name: str) -> Any:
        def record(config: object) -> int:
            self.calls.append((name, type(config)))
            if isinstance(self.outcome, Exception):
                raise self.outcome
            return self.outcome

        return record

    def test_each_command_runs_its_own_part_after_the_log_has_begun(self) -> None:
        for line, name, kind in (
            (f"serve {TO_SERVE}", "run_service", ServeConfig),
            (f"listen {TO_SERVE}", "run_service", ListenConfig),
            (f"read {TO_TRANSFER}", "run_read", ReadConfig),
            (f"write {TO_TRANSFER}", "run_write", WriteConfig),
        ):
            self.calls.clear()
            self.assertEqual(self.run_main(f"{line} -v"), (0, "", ""))
            self.assertEqual(self.calls, [("log", 1), (name, kind)])

    def test_the_services_exit_status_is_the_commands(self) -> None:
        self.outcome = 1
        self.assertEqual(self.run_main(f"serve {TO_SERVE}")[0], 1)

    def test_a_failure_is_told_in_one_line(self) -> None:
        self.outcome = ImageError("disk is in use by another server")
        ended = self.run_main(f"serve {TO_SERVE}")
        self.assertEqual(ended, (1, "", "flexmigrate: disk is in use by another server\n"))

    def test_what_only_the_service_can_find_wrong_with_the_command_line(self) -> None:
        self.outcome = UsageError("--file: disk is a folder")
        self.assertEqual(self.run_main(f"serve {TO_SERVE}")[0], 2)

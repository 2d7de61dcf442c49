from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from twisted.application.service import IServiceMaker, Service
from twisted.plugin import IPlugin
from twisted.python.reflect import namedAny
from twisted.trial.unittest import SynchronousTestCase

import flexmigrate
from flexmigrate.cli import twistd as tap
from flexmigrate.cli.commands import COMMANDS
from flexmigrate.cli.option import Flag
from flexmigrate.cli.parsing import parse
from flexmigrate.errors import ImageError, UsageError
from flexmigrate.log.settings import LogSettings
from flexmigrate.service.run import later

ROOT = Path(flexmigrate.__file__).parents[1]
SERVE = "serve 10.0.0.0/8 --addr 10.0.0.1 -p 10809 --file disk ::1"
LISTEN = "listen --addr /run/nbd -f disk --rebind-addr ::1 --rebind-port 1 -q"


def options(line: str) -> tap.Options:
    parsed = tap.Options()
    parsed.parseOptions(line.split())
    return parsed


class TapTestCase(SynchronousTestCase):
    def assert_exits(self, status: int, text: str, line: str) -> None:
        err = io.StringIO()
        with contextlib.redirect_stderr(err), self.assertRaises(SystemExit) as ended:
            tap.makeService(options(line))
        self.assertEqual(ended.exception.code, status)
        self.assertIn(text, err.getvalue())


class OptionsTests(TapTestCase):
    def test_a_command_line_means_what_it_means_without_twistd(self) -> None:
        for line in (SERVE, LISTEN):
            name, *words = line.split()
            self.assertEqual(options(line).subOptions.config, parse(name, words, "flexmigrate"))

    def test_a_wrong_command_line_ends_with_2_and_names_the_mistake(self) -> None:
        self.assert_exits(2, "--port: '99999'", "serve --addr ::1 --port 99999 --file disk")
        self.assert_exits(2, "unrecognized arguments: --fly", f"{SERVE} --fly")
        self.assert_exits(2, "Unknown command: mirror", "mirror --sock /s")
        self.assert_exits(2, "serve or listen?", "")
        self.assert_exits(2, "--fly", "--fly")

    def test_the_shells_completion_knows_every_option(self) -> None:
        for name, kind in (("serve", tap.ServeOptions), ("listen", tap.ListenOptions)):
            flags = {row[0] for row in kind.optFlags} - {"verbose", "quiet"}
            parameters = {row[0] for row in kind.optParameters}
            table = COMMANDS[name].options
            self.assertEqual(flags, {each.long for each in table if isinstance(each, Flag)})
            self.assertEqual(parameters, {each.long for each in table} - flags)
            kind()  # Twisted accepts the lists.

    def test_help_and_version(self) -> None:
        for line, text in (
            ("--help", "Usage: twistd flexmigrate serve|listen"),
            ("serve --help", "usage: twistd flexmigrate serve --addr A"),
            ("--version", f"flexmigrate {flexmigrate.__version__}\n"),
        ):
            out = io.StringIO()
            with contextlib.redirect_stdout(out), self.assertRaises(SystemExit) as ended:
                options(line)
            self.assertIn(ended.exception.code, (None, 0))
            self.assertTrue(out.getvalue().startswith(text), out.getvalue())


class LogChoiceTests(SynchronousTestCase):
    def logger(self, line: str = SERVE, **twistd: Any) -> object:
        parsed = tap.Options()
        parsed.parent = twistd  # type: ignore[assignment]  # all that is used is that it is a dict
        parsed.parseOptions(line.split())
        return twistd.get("logger")

    def test_in_the_foreground_the_log_is_flexmigrates(self) -> None:
        for line, verbosity in ((SERVE, 0), (LISTEN, -1)):
            made: list[object] = []
            self.patch(tap, "observer_of", lambda *how, made=made: made.append(how))
            namedAny(self.logger(f"{line} --log-format json", nodaemon=1))()
            self.assertEqual(made, [(LogSettings(verbosity, "json"), 1, "disk", later)])

    def test_what_twistd_was_told_holds(self) -> None:
        self.assertIsNone(self.logger(nodaemon=1, logfile="/var/log/disk"))
        self.assertIsNone(self.logger(nodaemon=1, syslog=1))
        self.assertEqual(self.logger(nodaemon=1, logger="their.own"), "their.own")

    def test_a_daemon_logs_where_twistd_puts_it(self) -> None:
        self.assertIsNone(self.logger(nodaemon=0))


class MakeServiceTests(TapTestCase):
    def setUp(self) -> None:
        self.made: list[object] = []
        self.refusal: Exception | None = None
        module = ModuleType("flexmigrate.service")
        setattr(module, "make_service", self.make)  # noqa: B010  # a module made by hand
        modules = mock.patch.dict(sys.modules, {module.__name__: module})
        modules.start()
        self.addCleanup(modules.stop)

    def make(self, config: object) -> Service:
        if self.refusal is not None:
            raise self.refusal
        self.made.append(config)
        return Service()

    def test_the_service_is_made_of_what_was_said(self) -> None:
        parsed = options(SERVE)
        self.assertIsInstance(tap.makeService(parsed), Service)
        self.assertEqual(self.made, [parsed.subOptions.config])

    def test_what_stands_in_its_way_ends_the_process(self) -> None:
        self.refusal = ImageError("disk is in use by another server")
        self.assert_exits(1, "disk is in use", SERVE)
        self.refusal = UsageError("--file: disk is a folder")
        self.assert_exits(2, "--file: disk", SERVE)


class PluginTests(SynchronousTestCase):
    def test_the_plugin_is_one_that_twistd_takes(self) -> None:
        from twisted.plugins.flexmigrate_plugin import flexmigrate as plugin

        self.assertTrue(IPlugin.providedBy(plugin))
        self.assertTrue(IServiceMaker.providedBy(plugin))
        self.assertEqual(plugin.tapname, "flexmigrate")
        self.assertIs(plugin.options, tap.Options)
        self.assertIs(plugin.makeService, tap.makeService)

    def test_twistd_finds_it_and_ends_with_2_for_a_wrong_command_line(self) -> None:
        twistd = "import sys; from twisted.scripts.twistd import run; sys.argv[0] = 'twistd'; run()"
        words = ["-n", "flexmigrate", "serve", "--addr", "10.0.0.1"]
        with tempfile.TemporaryDirectory() as elsewhere:
            ended = subprocess.run(
                [sys.executable, "-c", twistd, *words],
                cwd=elsewhere,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                check=False,
            )
        self.assertEqual((ended.returncode, ended.stdout), (2, ""))
        self.assertEqual(
            ended.stderr,
            "twistd flexmigrate: --port is required with --addr 10.0.0.1\n"
            "Try 'twistd flexmigrate serve --help'.\n",
        )

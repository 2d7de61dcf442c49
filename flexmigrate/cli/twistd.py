"""``twistd flexmigrate serve|listen``: the same command line as without twistd.

twistd hands over the words and is given a service. Its own exit status for a wrong command line
is 1, which a supervisor would read as a migration that failed; here it is 2, as with
``flexmigrate``.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from twisted.application.service import IService
from twisted.python import usage

from flexmigrate import __version__
from flexmigrate.cli import output
from flexmigrate.cli.commands import COMMANDS
from flexmigrate.cli.option import Flag, ValueOption
from flexmigrate.cli.options import QUIET, VERBOSE
from flexmigrate.cli.parsing import parse
from flexmigrate.config import ListenConfig, ServeConfig
from flexmigrate.errors import FlexmigrateError, UsageError
from flexmigrate.log.observer import LineObserver, observer_of

PROG = "twistd flexmigrate"


class _CommandOptions(usage.Options):
    """The words behind the name of one command; they become `config`."""

    command: str
    config: ServeConfig | ListenConfig

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        prog = f"{PROG} {self.command}"
        try:
            config = parse(self.command, options or (), prog)
        except UsageError as error:
            _exit(2, f"{error}\nTry '{prog} --help'.")
        assert isinstance(config, (ServeConfig, ListenConfig))
        self.config = config


def _flags(command: str) -> list[list[str | None]]:
    flags = [each for each in COMMANDS[command].options if isinstance(each, Flag)]
    return [[each.long, each.short or None, each.help] for each in (*flags, VERBOSE, QUIET)]


def _parameters(command: str) -> list[list[str | None]]:
    options = [each for each in COMMANDS[command].options if isinstance(each, ValueOption)]
    return [[each.long, each.short or None, None, each.help] for each in options]


class ServeOptions(_CommandOptions):
    """``twistd flexmigrate serve``; the lists are for the shell's completion."""

    command = "serve"
    optFlags = _flags("serve")
    optParameters = _parameters("serve")


class ListenOptions(_CommandOptions):
    """``twistd flexmigrate listen``; the lists are for the shell's completion."""

    command = "listen"
    optFlags = _flags("listen")
    optParameters = _parameters("listen")


class Options(usage.Options):
    """The words behind ``twistd flexmigrate``."""

    longdesc = "Serve a disk image over NBD, or receive one that is migrated here."
    subCommands = [
        [name, None, options, COMMANDS[name].summary]
        for name, options in (("serve", ServeOptions), ("listen", ListenOptions))
    ]

    def getSynopsis(self) -> str:  # noqa: N802  # Twisted's name
        return f"Usage: {PROG} serve|listen [OPTIONS]"

    def opt_version(self) -> None:
        """Show flexmigrate's version, and exit."""
        sys.stdout.write(f"flexmigrate {__version__}\n")
        raise SystemExit(0)

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        output.open_missing()
        try:
            super().parseOptions(options)  # type: ignore[no-untyped-call]  # Twisted's
        except usage.UsageError as error:
            _exit(2, f"{error}\nTry '{PROG} --help'.")

    def postOptions(self) -> None:
        if self.subCommand is None:
            raise usage.UsageError("which command, serve or listen?")
        if self.parent is not None:
            _choose_log(self.parent, self.subOptions.config)


# twistd is told how to log by a name, which it imports once all options are read: what they came to
# is kept where that name leads. twistd reads one command line in its life.
_chosen: ServeConfig | ListenConfig


def stdout_observer() -> LineObserver:
    """Return an observer that writes to standard output, as twistd's own does; to nowhere, if that
    was closed: its descriptor may be another file's.
    """
    out = 1 if sys.stdout is not None else os.open(os.devnull, os.O_WRONLY)
    from flexmigrate.service.run import later

    return observer_of(_chosen.log, out, _chosen.subject, later)


def _choose_log(twistd: usage.Options, config: ServeConfig | ListenConfig) -> None:
    """In the foreground, log as flexmigrate does, unless twistd was told how to log."""
    told = twistd.get("logger") or twistd.get("logfile") or twistd.get("syslog")
    if twistd.get("nodaemon") and not told:
        global _chosen  # noqa: PLW0603  # see there
        _chosen = config
        twistd["logger"] = f"{__name__}.{stdout_observer.__name__}"


def makeService(options: Options) -> IService:
    """Return the service that *options* ask for; what stands in its way ends the process."""
    from flexmigrate.service import make_service

    try:
        return make_service(options.subOptions.config)
    except UsageError as error:
        _exit(2, str(error))
    except FlexmigrateError as error:
        _exit(1, str(error))


def _exit(status: int, text: str) -> NoReturn:
    with contextlib.suppress(OSError, AttributeError):  # there may be no standard error
        sys.stderr.write(f"{PROG}: {text}\n")
    raise SystemExit(status)

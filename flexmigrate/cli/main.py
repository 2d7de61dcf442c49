"""``flexmigrate COMMAND``: the execution of each command, and its exit status.

0 is success, 1 a failure, 2 a wrong command line; ``whose`` has more. Commands that only
talk to a running server never import Twisted: a supervisor asks for the status every second.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import MutableMapping, Sequence

from flexmigrate import __version__
from flexmigrate.cli import output, watch
from flexmigrate.cli.commands import COMMANDS
from flexmigrate.cli.output import OutputError
from flexmigrate.cli.parsing import parse, parser_of
from flexmigrate.cli.requests import (
    CallConfig,
    CompletionConfig,
    Config,
    DoctorConfig,
    ReadConfig,
    SettleConfig,
    StatusConfig,
    WaitConfig,
    WhoseConfig,
    WriteConfig,
)
from flexmigrate.control import caller
from flexmigrate.control.grammar import OK
from flexmigrate.errors import FlexmigrateError, UsageError

PROG = "flexmigrate"


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line *words* (by default the process's own); return the exit status."""
    words = sys.argv[1:] if words is None else words
    output.prepare()
    name_sockets(os.environ)
    try:
        try:
            return _dispatch(*words)
        finally:
            sys.stdout.flush()
    except OutputError as error:
        output.give_up()
        if error.errno != errno.EPIPE:  # whoever doesn't read on knows that
            _complain(f"{PROG}: {error}")
        return 1
    except UsageError as error:
        hint = f"{PROG} help {words[0]}" if words and words[0] in COMMANDS else f"{PROG} help"
        _complain(f"{PROG}: {error}\nTry '{hint}'.")
        return 2
    except FlexmigrateError as error:
        _complain(f"{PROG}: {error}")
        return 1
    except KeyboardInterrupt:
        return 1


def name_sockets(environ: MutableMapping[str, str]) -> None:
    """Name the sockets that were passed without names, as systemd-socket-activate does unless it is
    told to, or Twisted would take none of them; sd_listen_fds(3) has the name for one without.
    """
    passed = environ.get("LISTEN_FDS", "")
    if passed.isdecimal() and not environ.get("LISTEN_FDNAMES"):
        environ["LISTEN_FDNAMES"] = ":".join(["unknown"] * int(passed))


def _dispatch(name: str = "", *words: str) -> int:
    if name in ("help", "-h", "--help"):
        print(_help(*words), end="")
        return 0
    if name == "--version":
        print(f"{PROG} {__version__}")
        return 0
    if name not in COMMANDS:
        raise UsageError(f"{name!r} is not a command" if name else "which command?")
    return _run(parse(name, words, f"{PROG} {name}"))


def _help(name: str = "", *others: str) -> str:
    if others:
        raise UsageError(f"help takes one command, not {name!r} and {others[0]!r}")
    if not name:
        return _overview()
    if name not in COMMANDS:
        raise UsageError(f"there is no help on {name!r}")
    return parser_of(name, f"{PROG} {name}").format_help()


def _overview() -> str:
    rows = [(name, command.summary) for name, command in COMMANDS.items()]
    rows.append(("help", "show this, or the help on a command"))
    width = max(len(name) for name, _ in rows) + 2
    lines = [
        f"usage: {PROG} COMMAND [OPTIONS]",
        f"       {PROG} help [COMMAND]",
        f"       {PROG} --version",
        "",
        "Serve a disk image over NBD, and migrate it to another host while it is used.",
        "",
        *(f"  {name:{width}}{summary}" for name, summary in rows),
    ]
    return "\n".join(lines) + "\n"


def _run(config: Config) -> int:
    if isinstance(config, CallConfig):
        return _call(config)
    if isinstance(config, (StatusConfig, WaitConfig)):
        return _look_on(config)
    if isinstance(config, WhoseConfig):
        from flexmigrate.cli import ownership

        return ownership.run_whose(config)
    if isinstance(config, SettleConfig):
        from flexmigrate.cli import ownership

        return ownership.run_settle(config)
    if isinstance(config, DoctorConfig):
        from flexmigrate.cli.doctor import run as doctor

        return doctor.run(config)
    if isinstance(config, CompletionConfig):
        from flexmigrate.cli import completion

        print(completion.script(config.shell, PROG), end="")
        return 0
    # Only from here on is there a reactor.
    from flexmigrate.log.observer import start_logging
    from flexmigrate.service.run import later, run_service

    start_logging(config.log, context=config.subject, later=later)
    if isinstance(config, ReadConfig):
        from flexmigrate.cli.transfer import run_read

        return run_read(config)
    if isinstance(config, WriteConfig):
        from flexmigrate.cli.transfer import run_write

        return run_write(config)
    return run_service(config)


def _call(config: CallConfig) -> int:
    """Print nothing but the server's answer, to the stream that flexnbd uses for it."""
    code, text = caller.call(config.sock, list(config.lines))
    if code == OK:
        print(text)
        return 0
    _complain(text)
    return 1


def _look_on(config: StatusConfig | WaitConfig) -> int:
    if isinstance(config, StatusConfig):
        return watch.show_status(config, sys.stdout)
    return watch.wait_for_end(config, sys.stdout, sys.stderr)


def _complain(text: str) -> None:
    print(text, file=sys.stderr)

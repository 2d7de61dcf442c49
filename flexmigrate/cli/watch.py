"""Commands that look on until something is over: ``mirror --wait``, ``wait``, ``status --watch``.

They only look. Whoever ends them, or loses the terminal that they run in, changes nothing about the
server or its migration; and they never import Twisted.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import time
from collections.abc import Iterator, Mapping
from typing import TextIO

from flexmigrate.cli.requests import StatusConfig, WaitConfig
from flexmigrate.control.caller import Conversation, NoAnswer, call
from flexmigrate.control.grammar import OK, export_lines
from flexmigrate.errors import CommandError, FlexmigrateError
from flexmigrate.telemetry.fields import Value, parse_fields, typed
from flexmigrate.telemetry.history import Summary
from flexmigrate.telemetry.status import Status
from flexmigrate.telemetry.terminal.progress import migration_lines, summary_line, topic_of
from flexmigrate.telemetry.terminal.screen import Screen, Terminal, screen_on
from flexmigrate.telemetry.terminal.server import server_lines

UNKNOWN = 3
"""Exit status: what became of the migration isn't known here."""

START_SECONDS = 180.0
"""For the answer to ``mirror``, as for any call (`flexmigrate.control.caller`)."""

REDRAW_SECONDS = 0.25
"""Between two looks at the status, where what is shown is redrawn."""

LOOK_SECONDS = 1.0
"""Between two looks, where it isn't."""

STATUS_SECONDS = 5.0
"""For the answer to one look."""


def wait_for_end(config: WaitConfig, out: TextIO, errors: TextIO) -> int:
    """Carry out the commands of *config*, wait for the migration's end and show its progress;
    return the exit status: 0 if it succeeded, 1 if not, `UNKNOWN` if nobody knows.

    All is asked for on one connection, so that the verdict is about the migration that was started
    here, even if that was over, and its server gone, before anybody could ask.
    """
    with Conversation(config.sock, [*map(list, config.commands), ["wait", *_about(config)]]) as say:
        for _ in config.commands:
            code, text = _answer_in_time(say, config)
            if code != OK:
                errors.write(f"{text}\n")
                return 1
            out.write(f"{text}\n")
            out.flush()
        screen = screen_on(errors)
        try:
            code, text = _watched(say, config, screen)
        except NoAnswer as error:
            screen.clear()
            errors.write(f"{_no_verdict(config, error)}\n")
            return UNKNOWN
        except KeyboardInterrupt:
            screen.clear()
            errors.write(f"{_goes_on(config)}\n")
            return UNKNOWN
        screen.clear()
        return _tell(code, text, out, errors)


def _answer_in_time(say: Conversation, config: WaitConfig) -> tuple[int, str]:
    answer = say.answer(START_SECONDS)
    if answer is None:
        raise CommandError(f"{config.sock}: no answer within {START_SECONDS:g} s")
    return answer


def _watched(say: Conversation, config: WaitConfig, screen: Screen) -> tuple[int, str]:
    """Return the verdict, and show what the status tells until it is there."""
    pause = REDRAW_SECONDS if isinstance(screen, Terminal) else LOOK_SECONDS
    while (answer := say.answer(pause)) is None:
        try:
            status = _status(config.sock, config.export)
        except FlexmigrateError:
            # It may be ending, and tells how that went on the connection that stands.
            continue
        if status.get("is_mirroring") is True:
            screen.show(migration_lines(status), topic_of(status))
    return answer


def _tell(code: int, text: str, out: TextIO, errors: TextIO) -> int:
    try:
        summary = typed(parse_fields(text), Summary)
    except ValueError:
        errors.write(f"{text}\n")  # "Not mirroring", for example
        return 1
    if code == OK:
        out.write(f"{summary_line(summary)}\n")
        return 0
    errors.write(f"{summary_line(summary)}\nflexmigrate: {summary.get('reason')}\n")
    return UNKNOWN if summary.get("verdict") == "unconfirmed" else 1


def _about(config: WaitConfig) -> list[str]:
    return export_lines(config.export)


def _goes_on(config: WaitConfig) -> str:
    return (
        "The migration goes on. To watch it again, or to stop it:\n"
        f"    flexmigrate wait {_options(config)}\n"
        f"    flexmigrate break {_options(config)}"
    )


def _no_verdict(config: WaitConfig, error: Exception) -> str:
    return (
        f"flexmigrate: what became of the migration is unknown: {error}.\n"
        "The server's process may have been killed; its supervisor knows. If nobody does, ask the"
        " destination for its status before either image is used."
    )


def _options(config: WaitConfig) -> str:
    words = ["--sock", config.sock]
    if config.export is not None:
        words += ["--export", config.export]
    return shlex.join(words)


# The status


def show_status(config: StatusConfig, out: TextIO) -> int:
    """Show a server's status, once or until it ends; return the exit status.

    :raises FlexmigrateError: no server answers, or it refuses to.
    """
    if not config.watch:
        out.write(_shown(_status_text(config), config))
        return 0
    with contextlib.suppress(KeyboardInterrupt):
        _watch_status(config, out)
    return 0


def _watch_status(config: StatusConfig, out: TextIO) -> None:
    screen = screen_on(out)
    redraws = isinstance(screen, Terminal) and not config.json
    last = ""
    for text in _texts(config):
        if redraws:
            screen.show(server_lines(_typed(text)), None)
        elif text != last:
            out.write(_shown(text, config))
            out.flush()
        last = text


def _texts(config: StatusConfig) -> Iterator[str]:
    """Tell the status over and over."""
    while True:
        yield _status_text(config)
        time.sleep(LOOK_SECONDS)


def _shown(text: str, config: StatusConfig) -> str:
    if not config.json:
        return f"{text}\n"
    return json.dumps(_typed(text), indent=None if config.watch else 2) + "\n"


def _status_text(config: StatusConfig) -> str:
    code, text = call(config.sock, list(config.lines))
    if code != OK:
        raise CommandError(text)
    return text


def _status(sock: str, export: str | None) -> Mapping[str, Value]:
    code, text = call(sock, ["status", *export_lines(export)], STATUS_SECONDS)
    if code != OK:
        raise CommandError(text)
    return _typed(text)


def _typed(text: str) -> dict[str, Value]:
    try:
        return typed(parse_fields(text), Status)
    except ValueError as error:
        raise CommandError(f"the server's status makes no sense: {error}") from error

"""The commands: which options each takes, and what they become.

What was said becomes a frozen value that is known to be sound, or a `UsageError` that names the
option and what is wrong with it. ``flexmigrate serve`` and ``twistd flexmigrate serve`` are read by
the same `parse`, so that a command line that works for one works for the other. Nothing is opened
or connected to, and Twisted is not imported.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from flexmigrate.config import (
    CallConfig,
    CompletionConfig,
    Config,
    DoctorConfig,
    ListenConfig,
    ReadConfig,
    ServeConfig,
    SettleConfig,
    StatusConfig,
    WaitConfig,
    WhoseConfig,
    WriteConfig,
)
from flexmigrate.control.grammar import (
    USUAL_CONNECTIONS,
    Action,
    ConvergeChange,
    HandoverRule,
    MirrorRequest,
    VerifyRule,
    settings_lines,
)
from flexmigrate.errors import UsageError
from flexmigrate.log.settings import LogSettings
from flexmigrate.net.address import Address
from flexmigrate.option_kinds import Flag, Given, Option, Words
from flexmigrate.options import (
    ACL_WORDS,
    BIND,
    CALL_SOCK,
    CONFIG,
    CONNECTIONS,
    CONVERGE,
    CONVERGE_TIMEOUT,
    CONVERGE_WORD,
    COVERAGE,
    DEFAULT_DENY,
    DEFAULT_EXPORT,
    DROP_CACHE,
    ENDPOINT,
    EXPORT,
    EXPORTS,
    FILE,
    FROM,
    HANDOVER,
    IMAGE_WORD,
    JSON,
    KILLSWITCH,
    LIMIT,
    LIMIT_WORD,
    LISTEN_ADDR,
    LISTEN_EXPORT,
    LISTEN_PORT,
    LOG_FORMAT,
    LOG_LEVEL,
    LOG_REQUESTS,
    MAX_CLIENTS,
    MAX_CLIENTS_PER_HOST,
    MAX_DOWNTIME,
    MAX_PARK,
    METRICS,
    NO_LIST,
    OLD_PEERS,
    OLDSTYLE,
    OPEN_SOCK,
    PEER,
    PEER_JOURNAL,
    POLL,
    QUIET,
    READ_ONLY,
    REBIND_ADDR,
    REBIND_PORT,
    RECEIVED_READ_ONLY,
    REMOTE_ADDR,
    REMOTE_EXPORT,
    REMOTE_PORT,
    REPORT,
    SERVER_WORDS,
    SHELL_WORD,
    SIZE,
    STATUS_EXPORT,
    STATUS_JSON,
    TLS,
    TLS_CERTIFICATES,
    TLS_HOSTNAME,
    TLS_VERIFY_PEER,
    UNLINK,
    URI_WORD,
    VERBOSE,
    VERIFY,
    WAIT,
    WATCH,
    WEB,
    YES,
)
from flexmigrate.together import (
    acl_of,
    address_of,
    bind_of,
    converge_change_of,
    converge_of,
    default_export_of,
    exports_of,
    log_of,
    places_of,
    rebind_of,
    report_of,
    seen_from_elsewhere,
    tls_of,
)

_Transfer = TypeVar("_Transfer", ReadConfig, WriteConfig)


def _poll_seconds(given: Given) -> float:
    microseconds = given.optional(POLL)
    return ServeConfig.poll_seconds if microseconds is None else microseconds / 1e6


def _serve(given: Given) -> ServeConfig:
    oldstyle = given.flag(OLDSTYLE)
    if oldstyle:
        given.refuse(EXPORTS, "the handshake of --oldstyle has no export names")
        given.refuse(TLS, "the handshake of --oldstyle has no TLS")
    places, exports = places_of(given), exports_of(given)
    return ServeConfig(
        places=places,
        exports=exports,
        default_export=default_export_of(given, exports),
        sock=given.optional(OPEN_SOCK),
        acl=acl_of(given),
        default_deny=given.flag(DEFAULT_DENY),
        killswitch=given.flag(KILLSWITCH),
        oldstyle=oldstyle,
        read_only=given.flag(READ_ONLY),
        allow_old_peers=given.flag(OLD_PEERS),
        listable=not given.flag(NO_LIST),
        max_clients=given.optional(MAX_CLIENTS) or ServeConfig.max_clients,
        max_clients_per_host=given.optional(MAX_CLIENTS_PER_HOST) or 0,
        poll_seconds=_poll_seconds(given),
        tls=tls_of(given, server=True),
        metrics=given.optional(METRICS),
        web=given.optional(WEB),
        log=log_of(given),
    )


def _listen(given: Given) -> ListenConfig:
    places = places_of(given)
    oldstyle = given.flag(OLDSTYLE)
    if oldstyle:
        given.refuse(LISTEN_EXPORT, "the handshake of --oldstyle has no export names")
        given.refuse(TLS, "the handshake of --oldstyle has no TLS")
    return ListenConfig(
        places=places,
        file=given.required(FILE),
        export=given.optional(LISTEN_EXPORT) or "",
        sock=given.optional(OPEN_SOCK),
        acl=acl_of(given),
        default_deny=given.flag(DEFAULT_DENY),
        oldstyle=oldstyle,
        rebind=rebind_of(given, places[0]),
        coverage=given.optional(COVERAGE) or "full",
        read_only=given.flag(RECEIVED_READ_ONLY),
        allow_old_peers=given.flag(OLD_PEERS),
        tls=tls_of(given, server=True),
        metrics=given.optional(METRICS),
        web=given.optional(WEB),
        log=log_of(given),
    )


def _call(given: Given, *lines: str) -> CallConfig:
    return CallConfig(given.required(CALL_SOCK), lines)


def _call_export(given: Given, *lines: str) -> CallConfig:
    """A command about one export."""
    return _call(given, *lines, *settings_lines({"export": given.optional(EXPORT)}))


def _mirror(given: Given) -> CallConfig | WaitConfig:
    address = address_of(given, REMOTE_ADDR, REMOTE_PORT)
    request = MirrorRequest(
        address=address,
        action=Action.UNLINK if given.flag(UNLINK) else Action.EXIT,
        bind=bind_of(given, address),
        max_bps=given.optional(LIMIT) or 0,
        export=given.optional(EXPORT),
        remote_export=given.optional(REMOTE_EXPORT) or "",
        handover=given.optional(HANDOVER) or HandoverRule.AUTO,
        verify=given.optional(VERIFY) or VerifyRule.FULL,
        allow_old_peers=given.flag(OLD_PEERS),
        tls=seen_from_elsewhere(tls_of(given)),
        converge=converge_of(given),
        connections=given.optional(CONNECTIONS) or USUAL_CONNECTIONS,
        drop_cache=given.flag(DROP_CACHE),
        report=report_of(given),
    )
    lines = tuple(request.lines())
    if given.flag(WAIT):
        return WaitConfig(given.required(CALL_SOCK), (lines,), request.export)
    return _call(given, *lines)


def _wait(given: Given) -> WaitConfig:
    return WaitConfig(given.required(CALL_SOCK), export=given.optional(EXPORT))


def _status(given: Given) -> StatusConfig:
    call = _call_export(given, "status")
    return StatusConfig(call.sock, call.lines, given.flag(STATUS_JSON), given.flag(WATCH))


def _converge(given: Given) -> CallConfig:
    change = converge_change_of(given)
    if change == ConvergeChange():
        raise UsageError("nothing is to change: say throttle, wait or force, or another limit")
    return _call_export(given, "converge", *change.lines())


def _set_limit(given: Given) -> CallConfig:
    (word,) = given.words
    try:
        return _call_export(given, "mirror_max_bps", str(LIMIT.parse(word)))
    except ValueError as error:
        raise UsageError(f"N: {error}") from error


def _whose(given: Given) -> WhoseConfig:
    (file,) = given.words
    peer = given.optional(PEER)
    if peer is None:
        for option in (REMOTE_EXPORT, TLS, TLS_CERTIFICATES, TLS_HOSTNAME):
            given.refuse(option, "without --peer, nobody is connected to")
    else:
        given.refuse(PEER_JOURNAL, "with --peer, the other side's journal is asked for there")
    return WhoseConfig(
        file=file,
        peer_journal=given.optional(PEER_JOURNAL),
        peer=peer,
        remote_export=given.optional(REMOTE_EXPORT) or "",
        json=given.flag(JSON),
        tls=tls_of(given),
        verbosity=given.verbosity,
    )


def _settle(given: Given, *, take: bool) -> SettleConfig:
    (file,) = given.words
    return SettleConfig(file, take, sure=given.flag(YES), verbosity=given.verbosity)


def _doctor(given: Given) -> DoctorConfig:
    json, words = given.flag(JSON), given.words
    if not words:
        return DoctorConfig(json=json)
    name, *others = words
    if name not in ("serve", "listen"):
        raise UsageError(f"{name!r} is neither serve nor listen")
    server = parse(name, others, f"flexmigrate doctor {name}")
    assert isinstance(server, (ServeConfig, ListenConfig))
    return DoctorConfig(server, json)


def _completion(given: Given) -> CompletionConfig:
    (shell,) = given.words
    if shell not in SHELL_WORD.metavar.split("|"):
        raise UsageError(f"{shell!r} is none of {SHELL_WORD.metavar}")
    return CompletionConfig(shell)


def _transfer(kind: type[_Transfer], given: Given) -> _Transfer:
    server: Address | str
    if given.words:
        (server,) = given.words
        for option in (REMOTE_ADDR, REMOTE_PORT, BIND):
            given.refuse(option, f"the URI {server} says where the server is")
    else:
        server = address_of(given, REMOTE_ADDR, REMOTE_PORT)
    return kind(
        server=server,
        offset=given.required(FROM),
        size=given.required(SIZE),
        bind=bind_of(given, server) if isinstance(server, Address) else None,
        tls=tls_of(given, uri=server if isinstance(server, str) else None),
        log=LogSettings(given.verbosity),
    )


@dataclass(frozen=True)
class Command:
    """A command: what may be said behind its name, and what that becomes.

    :ivar read: makes the configuration of what was given, or raises `UsageError`.
    """

    summary: str
    synopsis: str
    options: tuple[Flag | Option[Any], ...]
    read: Callable[[Given], Config]
    words: Words | None = None


# Both ends of the synopses.
_LOG = "[--log-format text|json|flexnbd] [--log-level NAMESPACE=LEVEL]... [--log-requests]"
_TOLD = "[--metrics PLACE] [--web PLACE]"
_TLS = "[--tls off|on|require] [--tls-certificates DIR]"
_TLS_SERVER = f"{_TLS} [--tls-verify-peer]"
_TLS_CLIENT = f"{_TLS} [--tls-hostname NAME]"

COMMANDS = {
    "serve": Command(
        "serve images to NBD clients, until they have been migrated away",
        "--addr A --port P [--endpoint DESCRIPTION]... --file F [--export NAME[=FILE]]..."
        " [--default-export NAME] [--no-list] [--sock S] [--default-deny] [--killswitch]"
        " [--oldstyle] [--read-only] [--max-clients N] [--max-clients-per-host N] [--poll-us N]"
        f" [--allow-old-peers] {_TLS_SERVER} {_TOLD} {_LOG}"
        " [--config FILE] [ACL_ENTRY...]",
        (
            *(CONFIG, LISTEN_ADDR, LISTEN_PORT, ENDPOINT, FILE, EXPORTS, DEFAULT_EXPORT, NO_LIST),
            *(OPEN_SOCK, DEFAULT_DENY, KILLSWITCH, OLDSTYLE, READ_ONLY),
            *(MAX_CLIENTS, MAX_CLIENTS_PER_HOST, POLL, OLD_PEERS),
            *(TLS, TLS_CERTIFICATES, TLS_VERIFY_PEER, METRICS, WEB),
            *(LOG_FORMAT, LOG_LEVEL, LOG_REQUESTS),
        ),
        _serve,
        ACL_WORDS,
    ),
    "listen": Command(
        "receive a migrated image; then exit, or serve it",
        "--addr A --port P [--endpoint DESCRIPTION]... --file F [--export NAME] [--sock S]"
        " [--default-deny] [--oldstyle] [--rebind-addr A] [--rebind-port P] [--read-only]"
        " [--coverage full|any] [--allow-old-peers]"
        f" {_TLS_SERVER} {_TOLD} {_LOG} [--config FILE] [ACL_ENTRY...]",
        (
            *(CONFIG, LISTEN_ADDR, LISTEN_PORT, ENDPOINT, FILE, LISTEN_EXPORT, OPEN_SOCK),
            *(DEFAULT_DENY, OLDSTYLE, REBIND_ADDR, REBIND_PORT, RECEIVED_READ_ONLY, COVERAGE),
            OLD_PEERS,
            *(TLS, TLS_CERTIFICATES, TLS_VERIFY_PEER, METRICS, WEB),
            *(LOG_FORMAT, LOG_LEVEL, LOG_REQUESTS),
        ),
        _listen,
        ACL_WORDS,
    ),
    "mirror": Command(
        "have a serve start to migrate its image to a listen",
        "--addr A --port P --sock S [--unlink] [--bind A] [--max-bps N] [--max-downtime TIME]"
        " [--max-park TIME] [--converge throttle|wait|force] [--converge-timeout TIME]"
        f" [--connections N] [--drop-cache] [--export NAME] [--remote-export NAME] [--wait]"
        " [--handover auto|session|plain] [--allow-old-peers] [--verify full|dirty|off]"
        f" [--report FILE] {_TLS_CLIENT}",
        (
            *(REMOTE_ADDR, REMOTE_PORT, CALL_SOCK, UNLINK, BIND, LIMIT, CONNECTIONS, DROP_CACHE),
            *(MAX_DOWNTIME, MAX_PARK, CONVERGE, CONVERGE_TIMEOUT, EXPORT, REMOTE_EXPORT),
            *(HANDOVER, OLD_PEERS, VERIFY, WAIT, REPORT),
            *(TLS, TLS_CERTIFICATES, TLS_HOSTNAME),
        ),
        _mirror,
    ),
    "break": Command(
        "stop the migration that is running",
        "--sock S [--export NAME]",
        (CALL_SOCK, EXPORT),
        lambda given: _call_export(given, "break"),
    ),
    "wait": Command(
        "wait for the end of the migration that is running, and show its progress",
        "--sock S [--export NAME]",
        (CALL_SOCK, EXPORT),
        _wait,
    ),
    "acl": Command(
        "replace a server's access list, for connected clients too",
        "--sock S [ACL_ENTRY...]",
        (CALL_SOCK,),
        lambda given: _call(given, "acl", *acl_of(given)),
        ACL_WORDS,
    ),
    "status": Command(
        "show a server's state, and how far its migration is",
        "--sock S [--export NAME] [--json] [--watch]",
        (CALL_SOCK, STATUS_EXPORT, STATUS_JSON, WATCH),
        _status,
    ),
    "mirror-max-bps": Command(
        "change the limit of the migration that is running",
        "N --sock S [--export NAME]",
        (CALL_SOCK, EXPORT),
        _set_limit,
        LIMIT_WORD,
    ),
    "converge": Command(
        "change how the migration that is running comes to its end",
        "[throttle|wait|force] --sock S [--max-downtime TIME] [--max-park TIME]"
        " [--converge-timeout TIME] [--export NAME]",
        (CALL_SOCK, MAX_DOWNTIME, MAX_PARK, CONVERGE_TIMEOUT, EXPORT),
        _converge,
        CONVERGE_WORD,
    ),
    "whose": Command(
        "say which copy of an image is canonical, after a migration that went wrong",
        "IMAGE [--peer-journal FILE | --peer HOST:PORT [--remote-export NAME]] [--json]"
        f" {_TLS_CLIENT}",
        (PEER_JOURNAL, PEER, REMOTE_EXPORT, JSON, TLS, TLS_CERTIFICATES, TLS_HOSTNAME),
        _whose,
        IMAGE_WORD,
    ),
    "take": Command(
        "settle by hand that this copy is the image",
        "IMAGE [--yes]",
        (YES,),
        lambda given: _settle(given, take=True),
        IMAGE_WORD,
    ),
    "release": Command(
        "settle by hand that this copy is not the image any more",
        "IMAGE [--yes]",
        (YES,),
        lambda given: _settle(given, take=False),
        IMAGE_WORD,
    ),
    "read": Command(
        "copy bytes from a server to standard output",
        f"(--addr A --port P | URI) --from OFFSET --size N [--bind A] {_TLS_CLIENT}",
        (REMOTE_ADDR, REMOTE_PORT, FROM, SIZE, BIND, TLS, TLS_CERTIFICATES, TLS_HOSTNAME),
        lambda given: _transfer(ReadConfig, given),
        URI_WORD,
    ),
    "write": Command(
        "copy bytes from standard input to a server",
        f"(--addr A --port P | URI) --from OFFSET --size N [--bind A] {_TLS_CLIENT}",
        (REMOTE_ADDR, REMOTE_PORT, FROM, SIZE, BIND, TLS, TLS_CERTIFICATES, TLS_HOSTNAME),
        lambda given: _transfer(WriteConfig, given),
        URI_WORD,
    ),
    "doctor": Command(
        "look at this host, and at what a server needs, and say what to do",
        "[--json] [COMMAND...]",
        (JSON,),
        _doctor,
        SERVER_WORDS,
    ),
    "completion": Command(
        "print a script that has a shell complete command lines",
        "bash|zsh|fish",
        (),
        _completion,
        SHELL_WORD,
    ),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def parser_of(name: str, prog: str) -> argparse.ArgumentParser:
    """Return the parser of the command *name*, which knows the help, too.

    :param prog: the words before the options: ``flexmigrate serve``.
    """
    command = COMMANDS[name]
    # An abbreviation that works today would be ambiguous after the next option.
    parser = _Parser(
        prog=prog,
        usage=textwrap.fill(
            f"{prog} {command.synopsis}",
            width=72,
            subsequent_indent=" " * 8,
            break_on_hyphens=False,
        ),
        description=f"{command.summary[0].upper()}{command.summary[1:]}.",
        allow_abbrev=False,
    )
    add_arguments(parser, command)
    return parser


def add_arguments(parser: argparse.ArgumentParser, command: Command) -> None:
    """Tell *parser* what *command* can be told."""
    if command.words is not None:
        words = command.words
        parser.add_argument("words", metavar=words.metavar, nargs=words.count, help=words.help)
    for option in command.options:
        add = functools.partial(
            parser.add_argument, *_spellings(option), dest=option.long, help=option.help
        )
        if isinstance(option, Flag):
            add(action="store_true")
        else:
            add(metavar=option.metavar, action="append" if option.repeatable else "store")
    for flag, level in ((VERBOSE, 1), (QUIET, -1)):
        parser.add_argument(
            *_spellings(flag),
            dest="verbosity",
            action="store_const",
            const=level,
            default=None,
            help=flag.help,
        )


def parse(name: str, words: Sequence[str], prog: str) -> Config:
    """Return what *words* tell the command *name*; ``--help`` prints and exits with 0.

    :raises UsageError: naming the option that is wrong, missing or not known.
    """
    command = COMMANDS[name]
    parser = parser_of(name, prog)
    if command.words is not None and command.words.count == argparse.REMAINDER:
        given = vars(parser.parse_args(list(words)))
    else:
        given = vars(parser.parse_intermixed_args(list(words)))
    path = Given(given).optional(CONFIG) if CONFIG in command.options else None
    if path is None:
        return command.read(Given(given))
    try:
        config = command.read(_with_file(name, given, path))
        assert isinstance(config, (ServeConfig, ListenConfig))
        return dataclasses.replace(
            config, reread=functools.partial(_parse_again, name, tuple(words), prog)
        )
    except UsageError as error:
        if path in str(error):
            raise
        # What is missing, say, has no place.
        raise UsageError(f"{error} (on the command line, or in {path})") from error


def _parse_again(name: str, words: Sequence[str], prog: str) -> ServeConfig | ListenConfig:
    config = parse(name, words, prog)
    assert isinstance(config, (ServeConfig, ListenConfig))
    return config


def file_settings() -> dict[str, dict[str, Flag | Option[Any] | Words]]:
    """Return what can stand in a configuration file: by command, and by key."""
    found: dict[str, dict[str, Flag | Option[Any] | Words]] = {}
    for name, command in COMMANDS.items():
        if CONFIG in command.options:
            settings = (*command.options, VERBOSE, QUIET)
            found[name] = {each.long: each for each in settings if each is not CONFIG}
            if command.words is not None and command.words.key:
                found[name][command.words.key] = command.words
    return found


def _with_file(name: str, given: dict[str, Any], path: str) -> Given:
    """Return what is given, with what the file at *path* says where the command line is silent."""
    from flexmigrate.config_file import read_file

    file = read_file(path, name, file_settings())
    words = COMMANDS[name].words
    merged = dict(given)
    places = {}
    for key, value in file.values.items():
        at = "words" if words is not None and key == words.key else key
        if not merged.get(at):
            merged[at] = value
            places[key] = file.places[key]
    if merged["verbosity"] is None:
        merged["verbosity"] = bool(merged.get("verbose")) - bool(merged.get("quiet"))
    return Given(merged, places)


def _spellings(option: Flag | Option[Any]) -> list[str]:
    return [*([f"-{option.short}"] if option.short else []), f"--{option.long}"]

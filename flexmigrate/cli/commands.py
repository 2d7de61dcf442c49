"""The commands, their options, and the configurations made of them.

The options become a frozen, valid configuration, or raise a `UsageError` that names the
option and its fault. ``flexmigrate serve`` and ``twistd flexmigrate serve`` are both
parsed by `flexmigrate.cli.parsing`, so a command line that works for one works for the other.
Nothing is opened or connected to, and Twisted is not imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from flexmigrate.cli.combined import (
    acl_of,
    address_of,
    bind_of,
    converge_change_of,
    default_export_of,
    exports_of,
    log_of,
    places_of,
    rebind_of,
    server_settings_of,
    settings_of,
    tls_of,
)
from flexmigrate.cli.option import Flag, Given, ValueOption, Words
from flexmigrate.cli.options import (
    ACL_WORDS,
    BIND,
    CALL_SOCK,
    CONFIG,
    CONVERGE_TIMEOUT,
    CONVERGE_WORD,
    ENDPOINT,
    EXPORT,
    EXPORTS,
    FILE,
    FROM,
    IMAGE_WORD,
    JSON,
    LIMIT,
    LIMIT_WORD,
    LISTEN_ADDR,
    LISTEN_PORT,
    LOG_FORMAT,
    LOG_LEVEL,
    LOG_REQUESTS,
    MAX_DOWNTIME,
    MAX_PARK,
    PEER,
    PEER_JOURNAL,
    REBIND_ADDR,
    REBIND_PORT,
    REMOTE_ADDR,
    REMOTE_EXPORT,
    REMOTE_PORT,
    SERVER_OPTIONS,
    SERVER_WORDS,
    SETTING_OPTIONS,
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
    WAIT,
    WATCH,
    YES,
)
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
from flexmigrate.config import ListenConfig, ServeConfig
from flexmigrate.control.grammar import export_lines, mirror_command
from flexmigrate.errors import UsageError
from flexmigrate.log.settings import LogSettings
from flexmigrate.migration.request import Action, ConvergeChange, MirrorRequest
from flexmigrate.net.address import Address

_Transfer = TypeVar("_Transfer", ReadConfig, WriteConfig)


def _server_settings(given: Given, command: str, export: ValueOption[Any]) -> dict[str, Any]:
    """Return what both servers take alike, by the fields of `ServerConfig`.

    :param export: the option by which *command* names what it offers.
    """
    settings = server_settings_of(given, command)
    if settings.get("oldstyle"):
        given.refuse(export, "the handshake of --oldstyle has no export names")
        given.refuse(TLS, "the handshake of --oldstyle has no TLS")
    return {
        **settings,
        "places": places_of(given),
        "acl": acl_of(given),
        "tls": tls_of(given, server=True),
        "log": log_of(given),
    }


def _serve(given: Given) -> ServeConfig:
    settings = _server_settings(given, "serve", EXPORTS)
    exports = exports_of(given)
    default_export = default_export_of(given, exports)
    return ServeConfig(**{**settings, "exports": exports, "default_export": default_export})


def _listen(given: Given) -> ListenConfig:
    export = SERVER_OPTIONS["listen"]["export"]
    assert isinstance(export, ValueOption)
    settings = _server_settings(given, "listen", export)
    rebind = rebind_of(given, settings["places"][0])
    return ListenConfig(**settings, file=given.required(FILE), rebind=rebind)


def _call(given: Given, *lines: str) -> CallConfig:
    return CallConfig(given.required(CALL_SOCK), lines)


def _call_export(given: Given, *lines: str) -> CallConfig:
    """Return the call of a command about one export."""
    return _call(given, *lines, *export_lines(given.optional(EXPORT)))


def _mirror(given: Given) -> CallConfig | WaitConfig:
    address = address_of(given, REMOTE_ADDR, REMOTE_PORT)
    tls_of(given)  # errors name the options
    request = MirrorRequest.of(
        address,
        settings_of(given),
        action=Action.UNLINK if given.flag(UNLINK) else Action.EXIT,
        bind=bind_of(given, address),
        max_bps=given.optional(LIMIT) or 0,
    )
    lines = tuple(mirror_command(request))
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
        raise UsageError("nothing to change: give throttle, wait or force, or a limit")
    return _call_export(given, "converge", *change.setting_lines())


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
            given.refuse(option, "it is of use only with --peer")
    else:
        given.refuse(PEER_JOURNAL, "with --peer, the other side's server gives its journal")
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
    return DoctorConfig(given.server, given.flag(JSON))


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
            given.refuse(option, f"the URI {server} names the server")
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
class Subcommand:
    """A command, with its options and its configuration.

    :ivar read: makes the configuration of the options given, or raises `UsageError`.
    """

    summary: str
    synopsis: str
    options: tuple[Flag | ValueOption[Any], ...]
    read: Callable[[Given], Config]
    words: Words | None = None


# Parts of several synopses.
_LOG = "[--log-format text|json|flexnbd] [--log-level NAMESPACE=LEVEL]... [--log-requests]"
_TLS = "[--tls off|on|require] [--tls-certificates DIR]"
_TLS_SERVER = f"{_TLS} [--tls-verify-peer]"
_TLS_CLIENT = f"{_TLS} [--tls-hostname NAME]"


def _synopsis_of(options: Mapping[str, Flag | ValueOption[Any]]) -> str:
    """Return a synopsis of options that may all be left out."""
    shown = (
        f"--{each.long}" if isinstance(each, Flag) else f"--{each.long} {each.metavar}"
        for each in options.values()
    )
    return " ".join(f"[{each}]" for each in shown)


COMMANDS = {
    "serve": Subcommand(
        "serve images to NBD clients, until they have been migrated away",
        "--addr A --port P [--endpoint DESCRIPTION]... --file F [--export NAME[=FILE]]..."
        f" {_synopsis_of(SERVER_OPTIONS['serve'])} {_TLS_SERVER} {_LOG}"
        " [--config FILE] [ACL_ENTRY...]",
        (
            *(CONFIG, LISTEN_ADDR, LISTEN_PORT, ENDPOINT, FILE, EXPORTS),
            *SERVER_OPTIONS["serve"].values(),
            *(TLS, TLS_CERTIFICATES, TLS_VERIFY_PEER, LOG_FORMAT, LOG_LEVEL, LOG_REQUESTS),
        ),
        _serve,
        ACL_WORDS,
    ),
    "listen": Subcommand(
        "receive a migrated image; then exit, or serve it",
        "--addr A --port P [--endpoint DESCRIPTION]... --file F [--rebind-addr A] [--rebind-port P]"
        f" {_synopsis_of(SERVER_OPTIONS['listen'])} {_TLS_SERVER} {_LOG}"
        " [--config FILE] [ACL_ENTRY...]",
        (
            *(CONFIG, LISTEN_ADDR, LISTEN_PORT, ENDPOINT, FILE, REBIND_ADDR, REBIND_PORT),
            *SERVER_OPTIONS["listen"].values(),
            *(TLS, TLS_CERTIFICATES, TLS_VERIFY_PEER, LOG_FORMAT, LOG_LEVEL, LOG_REQUESTS),
        ),
        _listen,
        ACL_WORDS,
    ),
    "mirror": Subcommand(
        "start the migration of a served image to a server that runs listen",
        f"--addr A --port P --sock S [--unlink] [--bind A] [--max-bps N] [--wait]"
        f" {_synopsis_of(SETTING_OPTIONS)}",
        (
            *(REMOTE_ADDR, REMOTE_PORT, CALL_SOCK, UNLINK, BIND, LIMIT, WAIT),
            *SETTING_OPTIONS.values(),
        ),
        _mirror,
    ),
    "break": Subcommand(
        "stop the running migration",
        "--sock S [--export NAME]",
        (CALL_SOCK, EXPORT),
        lambda given: _call_export(given, "break"),
    ),
    "wait": Subcommand(
        "wait for the end of the running migration, and show its progress",
        "--sock S [--export NAME]",
        (CALL_SOCK, EXPORT),
        _wait,
    ),
    "acl": Subcommand(
        "replace a server's access list, for connected clients too",
        "--sock S [ACL_ENTRY...]",
        (CALL_SOCK,),
        lambda given: _call(given, "acl", *acl_of(given)),
        ACL_WORDS,
    ),
    "status": Subcommand(
        "show a server's status, and the progress of its migration",
        "--sock S [--export NAME] [--json] [--watch]",
        (CALL_SOCK, STATUS_EXPORT, STATUS_JSON, WATCH),
        _status,
    ),
    "mirror-max-bps": Subcommand(
        "change the transfer limit of the running migration",
        "N --sock S [--export NAME]",
        (CALL_SOCK, EXPORT),
        _set_limit,
        LIMIT_WORD,
    ),
    "converge": Subcommand(
        "change how the running migration converges",
        "[throttle|wait|force] --sock S [--max-downtime TIME] [--max-park TIME]"
        " [--converge-timeout TIME] [--export NAME]",
        (CALL_SOCK, MAX_DOWNTIME, MAX_PARK, CONVERGE_TIMEOUT, EXPORT),
        _converge,
        CONVERGE_WORD,
    ),
    "whose": Subcommand(
        "say which copy of an image is canonical, after a migration that went wrong",
        "IMAGE [--peer-journal FILE | --peer HOST:PORT [--remote-export NAME]] [--json]"
        f" {_TLS_CLIENT}",
        (PEER_JOURNAL, PEER, REMOTE_EXPORT, JSON, TLS, TLS_CERTIFICATES, TLS_HOSTNAME),
        _whose,
        IMAGE_WORD,
    ),
    "take": Subcommand(
        "decide by hand that this copy is the canonical one",
        "IMAGE [--yes]",
        (YES,),
        lambda given: _settle(given, take=True),
        IMAGE_WORD,
    ),
    "release": Subcommand(
        "decide by hand that this copy is no longer the canonical one",
        "IMAGE [--yes]",
        (YES,),
        lambda given: _settle(given, take=False),
        IMAGE_WORD,
    ),
    "read": Subcommand(
        "copy bytes from a server to standard output",
        f"(--addr A --port P | URI) --from OFFSET --size N [--bind A] {_TLS_CLIENT}",
        (REMOTE_ADDR, REMOTE_PORT, FROM, SIZE, BIND, TLS, TLS_CERTIFICATES, TLS_HOSTNAME),
        lambda given: _transfer(ReadConfig, given),
        URI_WORD,
    ),
    "write": Subcommand(
        "copy bytes from standard input to a server",
        f"(--addr A --port P | URI) --from OFFSET --size N [--bind A] {_TLS_CLIENT}",
        (REMOTE_ADDR, REMOTE_PORT, FROM, SIZE, BIND, TLS, TLS_CERTIFICATES, TLS_HOSTNAME),
        lambda given: _transfer(WriteConfig, given),
        URI_WORD,
    ),
    "doctor": Subcommand(
        "check this host, and what a server needs, and give advice",
        "[--json] [COMMAND...]",
        (JSON,),
        _doctor,
        SERVER_WORDS,
    ),
    "completion": Subcommand(
        "print a script that makes a shell complete command lines",
        "bash|zsh|fish",
        (),
        _completion,
        SHELL_WORD,
    ),
}

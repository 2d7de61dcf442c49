"""Values made of several options: addresses, exports, certificates.

Single options are defined in `flexmigrate.cli.options`, and the options of each command in
`flexmigrate.cli.commands`. Twisted is not imported.
"""

from __future__ import annotations

import os
from typing import Any

from flexmigrate.cli.option import Flag, Given, ValueOption
from flexmigrate.cli.options import (
    ACL_WORDS,
    BIND,
    CONVERGE,
    CONVERGE_TIMEOUT,
    ENDPOINT,
    EXPORTS,
    FILE,
    LISTEN_ADDR,
    LISTEN_PORT,
    LOG_FORMAT,
    LOG_LEVEL,
    LOG_REQUESTS,
    MAX_DOWNTIME,
    MAX_PARK,
    REBIND_ADDR,
    REBIND_PORT,
    SERVER_OPTIONS,
    SETTING_OPTIONS,
    TLS,
    TLS_CERTIFICATES,
    TLS_HOSTNAME,
    TLS_VERIFY_PEER,
)
from flexmigrate.config import ExportConfig, Place
from flexmigrate.control.grammar import WILDCARDS
from flexmigrate.errors import UsageError
from flexmigrate.log.settings import LogSettings
from flexmigrate.migration.request import SETTINGS, ConvergeChange, TLSConfig, TLSRule
from flexmigrate.net.acl import AccessList, BadEntry
from flexmigrate.net.address import Address
from flexmigrate.settings import server_settings

_NOT_ENCRYPTED = "without --tls on or --tls require, nothing is encrypted"


def log_of(given: Given) -> LogSettings:
    """Return the settings of a server's log."""
    return LogSettings(
        verbosity=given.verbosity,
        form=given.optional(LOG_FORMAT) or "text",
        levels=tuple(given.every(LOG_LEVEL)),
        requests=given.flag(LOG_REQUESTS),
    )


def address_of(given: Given, addr: ValueOption[str], port: ValueOption[int]) -> Address:
    """Return the address in two options."""
    place = given.required(addr)
    if place.startswith("/"):
        given.refuse(port, f"{place} is a UNIX socket, which has no port")
        return Address.unix(place)
    return Address.tcp(place, given.required(port, f" with --{addr.long} {place}"))


def converge_change_of(given: Given) -> ConvergeChange:
    """Return the change of a running migration's convergence."""
    rule = None
    for word in given.words:
        try:
            rule = CONVERGE.parse(word)
        except ValueError as error:
            raise UsageError(str(error)) from error
    if rule != "force":
        because = "without the word force, there is no timeout"
        given.refuse(CONVERGE_TIMEOUT, because)
    timeout = given.optional(CONVERGE_TIMEOUT)
    return ConvergeChange(
        rule=rule,
        max_downtime=given.optional(MAX_DOWNTIME),
        max_park=given.optional(MAX_PARK),
        timeout=0.0 if rule == "force" and timeout is None else timeout,
    )


def rebind_of(given: Given, listening: Place) -> Address | None:
    """Return the address to serve at after the migration; missing parts are as in *listening*."""
    place, port = given.optional(REBIND_ADDR), given.optional(REBIND_PORT)
    if place is None and port is None:
        return None
    if isinstance(listening, str):
        listening = Address.tcp(given.required(REBIND_ADDR, " with --endpoint"), 0)
    place = place or listening.path or listening.host
    if place.startswith("/"):
        given.refuse(REBIND_PORT, f"{place} is a UNIX socket, which has no port")
        return Address.unix(place)
    port = port or listening.port
    if not port:
        raise UsageError(f"--rebind-port is required with --rebind-addr {place}")
    return Address.tcp(place, port)


def bind_of(given: Given, address: Address) -> str | None:
    """Return the local address to connect to *address* from, if one is given."""
    host = given.optional(BIND)
    if host is None or host in WILDCARDS:
        return None
    if address.is_unix:
        given.refuse(BIND, f"{address} is a UNIX socket, to which no address is bound")
    if (":" in host) != (":" in address.host):
        given.refuse(BIND, f"one of it and --addr {address.host} is IPv4, the other IPv6")
    return host


def acl_of(given: Given) -> tuple[str, ...]:
    """Return the entries of an access list, all of them valid."""
    try:
        AccessList(given.words)
    except BadEntry as error:
        raise UsageError(f"{given.name_of(ACL_WORDS)}: {error}") from error
    return tuple(given.words)


def places_of(given: Given) -> tuple[Place, ...]:
    """Return the addresses to listen on: ``--addr``, each ``--endpoint``, or both."""
    endpoints = given.every(ENDPOINT)
    if endpoints and given.optional(LISTEN_ADDR) is None:
        given.refuse(LISTEN_PORT, "without --addr, only --endpoint is listened on")
        return tuple(endpoints)
    if given.optional(LISTEN_ADDR) is None:
        raise UsageError(f"--{LISTEN_ADDR.long} is required, or --{ENDPOINT.long}")
    return (address_of(given, LISTEN_ADDR, LISTEN_PORT), *endpoints)


def exports_of(given: Given) -> tuple[ExportConfig, ...]:
    """Return the exports: ``--file`` under the name without a file, and all names with one."""
    pairs = [word.partition("=") for word in given.every(EXPORTS)]
    for name, equals, file in pairs:
        if equals and not file:
            raise UsageError(f"--export {name}=: the file is missing")
    exports = [ExportConfig(name, file) for name, equals, file in pairs if equals]
    bare = [name for name, equals, _ in pairs if not equals]
    if len(bare) > 1:
        raise UsageError(
            f"--export {bare[1]}: the file is missing: only one name can be without =FILE"
        )
    if bare or not exports or given.optional(FILE) is not None:
        exports.insert(0, ExportConfig(bare[0] if bare else "", given.required(FILE)))
    names = [export.name for export in exports]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"--export {name}: the name is given twice")
    return tuple(exports)


def default_export_of(given: Given, exports: tuple[ExportConfig, ...]) -> str:
    """Return the name of the default export among *exports*."""
    name: str | None = server_settings_of(given, "serve").get("default_export")
    names = {export.name for export in exports}
    if name is None:
        # A client that names no export asks for the empty name.
        return "" if "" in names else exports[0].name
    if name not in names:
        raise UsageError(f"--default-export {name}: there is no such export")
    if name and "" in names:
        raise UsageError(f"--default-export {name}: the export without a name could not be reached")
    return name


def tls_of(given: Given, *, server: bool = False, uri: str | None = None) -> TLSConfig:
    """Return the TLS settings; a *uri* may require TLS.

    Certificates without a rule are refused: nothing would be encrypted.
    """
    rule: TLSRule = given.optional(TLS) or "off"
    because = f"--tls {rule}"
    if uri is not None and uri.partition(":")[0].lower() in ("nbds", "nbds+unix"):
        if rule != "require":
            given.refuse(TLS, f"the URI {uri} requires it")
        rule, because = "require", f"the URI {uri}"
    certificates = given.optional(TLS_CERTIFICATES)
    verify = server and given.flag(TLS_VERIFY_PEER)
    hostname = None if server else given.optional(TLS_HOSTNAME)
    if rule == "off":
        given.refuse(TLS_CERTIFICATES, _NOT_ENCRYPTED)
        if not server:
            given.refuse(TLS_HOSTNAME, _NOT_ENCRYPTED)
        if verify:
            raise UsageError(f"{given.name(TLS_VERIFY_PEER)}: {_NOT_ENCRYPTED}")
    elif certificates is None:
        raise UsageError(f"--tls-certificates is required with {because}")
    elif verify and rule != "require":
        raise UsageError(
            f"{given.name(TLS_VERIFY_PEER)}: with --tls {rule}, clients without TLS show no"
            " certificate and are let in all the same; say --tls require"
        )
    return TLSConfig(rule, certificates, verify, hostname)


def settings_of(given: Given) -> dict[str, Any]:
    """Return the settings of a migration that were given, by their fields; paths are absolute, so
    that any process finds them.
    """
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        option = SETTING_OPTIONS[setting.field]
        value: Any = (given.flag(option) or None) if isinstance(option, Flag) else None
        if isinstance(option, ValueOption):
            value = given.optional(option)
        if value is not None:
            values[setting.field] = os.path.abspath(value) if setting.is_path else value
    return values


def server_settings_of(given: Given, command: str) -> dict[str, Any]:
    """Return the settings of a server that were given, by their fields.

    :param command: ``serve`` or ``listen``.
    """
    values: dict[str, Any] = {}
    for setting in server_settings(command):
        option = SERVER_OPTIONS[command][setting.field]
        if isinstance(option, Flag):
            if given.flag(option):
                values[setting.field] = not setting.clears
        elif (value := given.optional(option)) is not None:
            values[setting.field] = value
    return values

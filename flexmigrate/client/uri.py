"""A parser of NBD URIs; Twisted isn't imported.

Specification: the NBD project's doc/uri.md; RFC 3986. The choices that they leave to a client:
``nbd://`` without a host means this host. A host in a URI of a UNIX socket, a port without a host,
and an unknown query parameter are errors, since each may be a mistake that would lead to the wrong
disk.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from flexmigrate.errors import UsageError
from flexmigrate.net.address import parse_host
from flexmigrate.wire.agreement import TLSMode
from flexmigrate.wire.client_handshake import ClientOptions
from flexmigrate.wire.constants import DEFAULT_PORT, MAX_STRING

MAX_PARAMETERS = 16
"""Query parameters in a URI; four are known, and others are errors."""


class URIError(UsageError, ValueError):
    """The text is not an NBD URI that we support; the message quotes it and gives the reason."""


# Scheme: whether TLS is required, and whether it goes over a UNIX socket.
_SCHEMES = {
    "nbd": (False, False),
    "nbds": (True, False),
    "nbd+unix": (False, True),
    "nbds+unix": (True, True),
}


@dataclass(frozen=True)
class NBDURI:
    """The parts of an NBD URI.

    :ivar host: a name or address, without brackets; empty with `socket`.
    :ivar port: TCP; 0 with `socket`.
    :ivar socket: the path of a UNIX socket, or an abstract name, which begins with NUL; or None.
    :ivar export: its name; empty for the server's default.
    :ivar tls: True: only with TLS; False: with TLS if both sides have it.
    :ivar username: for the kinds of TLS that need one; empty if not given.
    :ivar tls_type: ``anon``, ``x509``, ``psk`` or None.
    :ivar tls_hostname: the name that the server's certificate must have, if not `host`.
    :ivar tls_verify_peer: whether the certificate is verified.
    """

    host: str = ""
    port: int = 0
    socket: str | None = None
    export: str = ""
    tls: bool = False
    username: str = ""
    tls_type: str | None = None
    tls_hostname: str | None = None
    tls_verify_peer: bool = True

    def client_options(self, options: ClientOptions, *, with_tls: bool) -> ClientOptions:
        """Return *options* for this export, with the TLS mode that the URI demands.

        :param with_tls: whether there are certificates; without them, `tls` raises URIError.
        """
        if self.tls and not with_tls:
            raise URIError("this URI requires TLS, and no certificates were given")
        mode = TLSMode.REQUIRE if self.tls else TLSMode.ON if with_tls else TLSMode.OFF
        return replace(options, name=self.export, tls=mode)


def parse_uri(text: str) -> NBDURI:
    """Parse a URI; raise URIError if it isn't an NBD URI that we support."""
    try:
        return _parse(text)
    except ValueError as error:
        raise URIError(f"{text!r}: {error}") from None


def _parse(text: str) -> NBDURI:
    if not text.isascii() or not text.isprintable() or " " in text:
        # RFC 3986 demands to percent-encode these; urlsplit would silently drop some of them.
        raise ValueError("spaces and characters outside ASCII must be percent-encoded")
    parts = urlsplit(text)
    if parts.scheme not in _SCHEMES:
        raise ValueError(f"the scheme must be one of {', '.join(_SCHEMES)}")
    if parts.fragment:
        raise ValueError("an NBD URI has no fragment; encode # as %23")
    tls, over_unix = _SCHEMES[parts.scheme]
    parameters = _parameters(parts.query)
    socket = parameters.pop("socket", None)
    if over_unix:
        place = _unix_place(parts, socket)
    elif socket is not None:
        raise ValueError(f"a socket goes with nbd+unix, not with {parts.scheme}")
    else:
        place = _tcp_place(parts)
    return replace(
        place,
        export=_export(parts.path),
        tls=tls,
        username=_decoded(parts.username or ""),
        **_tls_parameters(parameters),
    )


def _unix_place(parts: SplitResult, socket: str | None) -> NBDURI:
    if not socket:
        raise ValueError("which socket? (socket=PATH is missing)")
    if parts.hostname or parts.port is not None:
        raise ValueError("a UNIX socket is on no host and no port")
    if "\0" in socket[1:]:
        raise ValueError("the path of a socket has no NUL")
    return NBDURI(socket=socket)


def _tcp_place(parts: SplitResult) -> NBDURI:
    host = _host(parts)
    if not host and parts.port is not None:
        raise ValueError("a port without a host")
    port = DEFAULT_PORT if parts.port is None else parts.port
    if not port:
        raise ValueError("port 0 can't be connected to")
    return NBDURI(host=host or "localhost", port=port)


def _host(parts: SplitResult) -> str:
    """Return the name or address of the host.

    A link-local address may be followed by ``%25`` and the percent-encoded name of a link
    (RFC 6874), or by a plain ``%`` and the name, as people type it, and as libnbd accepts it.
    """
    place = parts.netloc.rpartition("@")[2]
    if not place.startswith("["):
        if place.count(":") > 1:
            raise ValueError("an IPv6 address stands in brackets")
        return _decoded(parts.hostname or "")
    text, bracket, behind = place[1:].partition("]")
    if not bracket or behind[:1] not in ("", ":"):
        raise ValueError("only a port may stand behind the brackets")
    address, percent, zone = text.partition("%")
    if ":" not in address:
        raise ValueError("only an IPv6 address stands in brackets")
    if zone.startswith("25"):
        zone = _decoded(zone[2:])
    return parse_host(f"{address}{percent}{zone}")


def _export(path: str) -> str:
    name = _decoded(path[1:])
    if "\0" in name:
        raise ValueError("the name of an export has no NUL")
    if len(name.encode()) > MAX_STRING:
        raise ValueError(f"the name of an export is at most {MAX_STRING} bytes long")
    return name


def _parameters(query: str) -> dict[str, str]:
    # A + in a URI's query stands for itself; parse_qsl would decode it as a space.
    pairs = parse_qsl(
        query.replace("+", "%2B"),
        keep_blank_values=True,
        errors="strict",
        max_num_fields=MAX_PARAMETERS,
    )
    parameters = dict(pairs)
    if len(parameters) != len(pairs):
        raise ValueError("a parameter is given twice")
    return parameters


def _tls_parameters(parameters: dict[str, str]) -> dict[str, Any]:
    known: dict[str, Any] = {}
    for name, value in parameters.items():
        if name == "tls-type" and value in ("anon", "x509", "psk"):
            known["tls_type"] = value
        elif name == "tls-hostname" and value:
            known["tls_hostname"] = value
        elif name == "tls-verify-peer" and value in ("0", "1"):
            known["tls_verify_peer"] = value == "1"
        else:
            raise ValueError(f"the parameter {name}={value} is not known")
    return known


def _decoded(text: str) -> str:
    return unquote(text, errors="strict")

"""Checks of the addresses and sockets that a server is to listen on."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from typing import Any

from flexmigrate.cli.doctor.findings import Finding, ok, problem, warning
from flexmigrate.config import Place
from flexmigrate.errors import UsageError
from flexmigrate.net.address import Address
from flexmigrate.net.endpoints import check_description


def look(reactor: Any, place: Place) -> Iterator[Finding]:
    """Check whether a server can listen on *place*."""
    if isinstance(place, str):
        yield _description(reactor, place)
    elif place.is_unix:
        yield _unix_socket(place.path)
    else:
        yield _tcp(place)


def look_at_later(address: Address) -> Iterator[Finding]:
    """Check the address that a destination is to serve at; until then the source may use it."""
    about = f"{address}, later"
    if address.is_unix:
        finding = _unix_socket(address.path)
        held = "in use" in finding.text
        yield ok(about, "in use now; tried until it is free") if held else finding
        return
    number = _bind(address)
    if number == errno.EADDRINUSE:
        yield ok(about, "in use now; tried until it is free")
    elif number == errno.EADDRNOTAVAIL:
        yield warning(
            about,
            "not an address of this host now",
            "it is tried until it is one: right if it moves with the image, wrong otherwise",
        )
    else:
        yield _told(address, about, number)


def _tcp(address: Address) -> Finding:
    return _told(address, str(address), _bind(address))


def _bind(address: Address) -> int:
    """Try to bind to *address*, as a server would; return 0 or the error's number."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address.host, address.port))
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _told(address: Address, about: str, number: int) -> Finding:
    if not number:
        return ok(about, "free")
    advice = {
        errno.EADDRINUSE: f"find out who has it: ss -ltnp 'sport = {address.port}'",
        errno.EADDRNOTAVAIL: "it is not an address of this host; list them with: ip address",
        errno.EACCES: "ports below 1024 need CAP_NET_BIND_SERVICE",
    }.get(number, "choose another one")
    return problem(about, f"can't listen here: {os.strerror(number)}", advice)


def _unix_socket(path: str) -> Finding:
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        return problem(path, f"there is no folder {folder}", f"mkdir {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        return problem(
            path, f"{folder} can't be written to", "let the user that runs the server write to it"
        )
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return ok(path, "free")
    if not stat.S_ISSOCK(mode):
        return problem(path, "something that is no socket is there", "choose another path")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        if probe.connect_ex(path) != errno.ECONNREFUSED:
            return problem(path, "in use by another server", "end that first")
    return ok(path, "a dead server's socket, which will be replaced")


def socket_for_the_operator(path: str) -> Iterator[Finding]:
    """Check whether the operator's socket can be opened at *path*."""
    yield _unix_socket(path)


def _description(reactor: Any, description: str) -> Finding:
    try:
        check_description(reactor, description)
    except UsageError as error:
        if description.startswith("systemd:"):
            return warning(
                description,
                "no socket was passed to this process",
                "a server that systemd starts by its .socket unit gets one: not known here",
            )
        text = str(error).removeprefix(f"--endpoint {description}: ")
        return problem(description, text, "see 'Where a server listens' in the manual")
    return ok(description, "is valid; whether it is free is unknown")

"""The command ``doctor``: it makes all checks and prints the findings."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from flexmigrate.cli.doctor import certificates, findings, host, images, places
from flexmigrate.cli.doctor.findings import Finding
from flexmigrate.cli.requests import DoctorConfig
from flexmigrate.config import ListenConfig, ServeConfig


def run(config: DoctorConfig) -> int:
    """Print the findings; return 0 if there is no problem, else 1."""
    found = list(look(config.server))
    sys.stdout.write(findings.as_json(found) if config.json else findings.as_text(found))
    return 0 if findings.is_well(found) else 1


def look(server: ServeConfig | ListenConfig | None) -> Iterator[Finding]:
    """Check this host, and what *server* needs, if it is given."""
    most = server.max_clients if isinstance(server, ServeConfig) else ServeConfig.max_clients
    yield from host.look(most)
    if server is None:
        return
    if isinstance(server, ServeConfig):
        for export in server.exports:
            yield from images.look(export.file, read_only=server.read_only)
    else:
        yield from images.look(server.file, receives=True)
    from twisted.internet import reactor

    for place in server.places:
        yield from places.look(reactor, place)
    if isinstance(server, ListenConfig) and server.rebind is not None:
        yield from places.look_at_later(server.rebind)
    if server.sock is not None:
        yield from places.socket_for_the_operator(server.sock)
    yield from certificates.look(server.tls)

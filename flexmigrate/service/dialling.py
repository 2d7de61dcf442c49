"""Connections of a source to its destination."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from flexmigrate.client import NBDClientProtocol, connect
from flexmigrate.migration.request import MirrorRequest, TLSConfig
from flexmigrate.migration.source.proposal import Proposal
from flexmigrate.net.endpoints import client_endpoint
from flexmigrate.net.tls import client_context
from flexmigrate.wire.agreement import TLSMode
from flexmigrate.wire.client_handshake import ClientOptions
from flexmigrate.wire.handover import Purpose

CONNECT_SECONDS = 5.0
"""Seconds for a connection to the destination: time for a few lost packets."""


def dial(
    reactor: Any,
    request: MirrorRequest,
    proposal: Proposal | None,
    hello_seconds: float,
    tls: Any,
) -> Deferred[NBDClientProtocol]:
    """Connect to the destination that *request* names.

    :param proposal: the session to propose, or None.
    :param hello_seconds: the time from the connection's start to the end of its negotiation.
    :param tls: the context for ``startTLS``, or None.
    """
    options = ClientOptions(
        name=request.remote_export,
        # Where a destination may have reasons to tell, reply chunks carry them; nothing here needs
        # long headers.
        structured=proposal is not None and proposal.opening.purpose is Purpose.MIGRATE,
        extended=False,
        tls=TLSMode(request.tls.rule),
        session=None if proposal is None else proposal.session_request(request.remote_export),
    )
    endpoint = client_endpoint(reactor, request.address, bind=request.bind, timeout=CONNECT_SECONDS)
    return connect(endpoint, options=options, clock=reactor, hello_timeout=hello_seconds, tls=tls)


def client_tls(config: TLSConfig, host: str) -> Any:
    """Return the context for a client's ``startTLS``, or None if *config* wants no TLS.

    :param host: the server's address; empty for a UNIX socket.
    :raises UsageError: the certificates can't be used.
    """
    if config.rule == "off" or config.certificates is None:
        return None
    return client_context(config.certificates, config.hostname or host or "localhost")

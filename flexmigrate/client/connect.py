"""Functions to connect to an NBD server, by an endpoint or a URI.

They fail with distinct errors, because an operator acts on them differently: `ConnectFailed` (no
server there), `Rejected` (the server hung up before its greeting, most often because of an access
list), `NoHello` (the server stays silent), `RemoteProtocolError` (it is no NBD server, or refuses
something that the client insists on), `TLSFailed` (the server's certificate or ours isn't
accepted), `LocalProtocolError` (TLS was asked for without certificates).
"""

from __future__ import annotations

import warnings
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory

from flexmigrate.client.asker import Asker
from flexmigrate.client.connection import NBDClientProtocol
from flexmigrate.client.uri import NBDURI, parse_uri
from flexmigrate.errors import ConnectFailed, NoHello
from flexmigrate.net.endpoints import IPv6ClientEndpoint
from flexmigrate.net.streaming import streaming
from flexmigrate.wire.client_handshake import ClientOptions

HELLO_TIMEOUT = 5.0
"""Seconds from a connection's start to the end of negotiation: a few round trips, even far away."""


def connect(
    endpoint: IStreamClientEndpoint,
    *,
    options: ClientOptions | None = None,
    clock: IReactorTime,
    hello_timeout: float = HELLO_TIMEOUT,
    tls: Any = None,
    strict: bool = True,
    wish: ClientOptions | None = None,
) -> Deferred[NBDClientProtocol]:
    """Connect to an NBD server and negotiate.

    :param endpoint: the server's; one made on ``streaming(reactor)`` avoids copies. The endpoint
        itself limits the time to connect.
    :param options: the export, and the options to negotiate; None: the default export, and all
        options.
    :param hello_timeout: seconds that the server has from then on until negotiation is over.
    :param tls: see :class:`flexmigrate.client.link.Link`.
    :param strict: see :class:`NBDClientProtocol`.
    :param wish: the earlier name of *options*; the next release will not have it.
    :return: fires with a connection that takes requests. Cancelling it ends the attempt.
    """
    options = _by_new_name(options, wish)
    attempt = _connect(
        endpoint,
        NBDClientProtocol(options or ClientOptions(), clock, tls=tls, strict=strict),
        clock,
        hello_timeout,
    )
    return Deferred.fromCoroutine(attempt)


def _by_new_name(options: ClientOptions | None, wish: ClientOptions | None) -> ClientOptions | None:
    if wish is None:
        return options
    warnings.warn("use options instead of wish", DeprecationWarning, stacklevel=3)
    return wish if options is None else options


async def _connect(
    endpoint: IStreamClientEndpoint,
    protocol: NBDClientProtocol,
    clock: IReactorTime,
    hello_timeout: float,
) -> NBDClientProtocol:
    factory = Factory.forProtocol(lambda: protocol)
    factory.noisy = False
    try:
        await endpoint.connect(factory)
    except (ConnectError, OSError) as error:
        raise ConnectFailed(f"no connection to the server: {error}") from error
    silence = NoHello(f"the server did not complete its hello within {hello_timeout:g} s")
    timer = clock.callLater(hello_timeout, protocol.abort, silence)
    try:
        await protocol.ready
    finally:
        if timer.active():
            timer.cancel()
    return protocol


def ask(
    endpoint: IStreamClientEndpoint,
    *,
    options: ClientOptions,
    clock: IReactorTime,
    timeout: float = HELLO_TIMEOUT,
    tls: Any = None,
) -> Deferred[bytes]:
    """Ask another flexmigrate for its journal, and end the connection.

    :param options: its *session* is the query (``wire.handover``); of the rest, only *tls* counts.
    :param timeout: seconds from the connection's start to the answer.
    :return: fires with the answer's data; fails as `connect` does.
    """
    asker = Asker(options, tls)
    return Deferred.fromCoroutine(_ask(endpoint, asker, clock, timeout))


async def _ask(
    endpoint: IStreamClientEndpoint, asker: Asker, clock: IReactorTime, timeout: float
) -> bytes:
    factory = Factory.forProtocol(lambda: asker)
    factory.noisy = False
    try:
        await endpoint.connect(factory)
    except (ConnectError, OSError) as error:
        raise ConnectFailed(f"no connection to the server: {error}") from error
    silence = NoHello(f"the server did not answer within {timeout:g} s")
    timer = clock.callLater(timeout, asker.give_up, silence)
    try:
        return await asker.answer
    finally:
        if timer.active():
            timer.cancel()


def connect_uri(
    reactor: Any,
    uri: str | NBDURI,
    *,
    options: ClientOptions | None = None,
    connect_timeout: float = 30.0,
    hello_timeout: float = HELLO_TIMEOUT,
    tls: Any = None,
    wish: ClientOptions | None = None,
) -> Deferred[NBDClientProtocol]:
    """Connect to the export that an NBD URI names.

    :param uri: ``nbd://HOST[:PORT]/EXPORT``, ``nbd+unix:///EXPORT?socket=PATH``, or the same with
        ``nbds``, which needs *tls*; text is parsed by `parse_uri`.
    :param options: the options to negotiate; the URI replaces its name and TLS mode.
    :param connect_timeout: seconds for the connection itself.
    :param wish: the earlier name of *options*; the next release will not have it.
    :raises URIError: *uri* is not of this form, or needs TLS and there is no *tls*.
    """
    options = _by_new_name(options, wish)
    target = parse_uri(uri) if isinstance(uri, str) else uri
    return connect(
        _endpoint(streaming(reactor), target, connect_timeout),
        options=target.client_options(options or ClientOptions(), with_tls=tls is not None),
        clock=reactor,
        hello_timeout=hello_timeout,
        tls=tls,
    )


def _endpoint(reactor: Any, uri: NBDURI, timeout: float) -> IStreamClientEndpoint:
    if uri.socket is not None:
        endpoint_class: Any = UNIXClientEndpoint  # its methods have no types
        endpoint: IStreamClientEndpoint = endpoint_class(reactor, uri.socket, timeout=timeout)
        return endpoint
    if ":" in uri.host:
        # HostnameEndpoint would lose the link of a link-local address.
        return IPv6ClientEndpoint(reactor, uri.host, uri.port, timeout=timeout)
    return HostnameEndpoint(reactor, uri.host, uri.port, timeout=timeout)

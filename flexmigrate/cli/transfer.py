"""Commands that connect to a server as a client: `read`, `write`, and `whose --peer`."""

from __future__ import annotations

import dataclasses
import os
import select
import sys
from collections.abc import Coroutine, Sequence
from typing import Any, BinaryIO

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from flexmigrate.cli.output import OutputError
from flexmigrate.cli.requests import ReadConfig, TransferConfig, WhoseConfig, WriteConfig
from flexmigrate.client import NBDClientProtocol, ask, connect, connect_uri, parse_uri
from flexmigrate.errors import FlexmigrateError, UsageError
from flexmigrate.net.endpoints import client_endpoint
from flexmigrate.service import process_reactor
from flexmigrate.service.dialling import CONNECT_SECONDS, client_tls
from flexmigrate.wire.agreement import TLSMode
from flexmigrate.wire.client_handshake import ClientOptions, SessionRequest
from flexmigrate.wire.handover import (
    MAX_SUPERSEDED,
    NO_ID,
    Answer,
    Capability,
    Opening,
    Purpose,
    State,
    parse_answer,
)

PIECE = 1024 * 1024
"""Bytes that ``read`` and ``write`` move at a time."""


INPUT_SECONDS = 0.01
"""Between two looks whether standard input has something: nobody notices, and it costs nothing."""


def run_read(config: ReadConfig) -> int:
    """Copy a range of an export to standard output."""
    return _run_transfer(config, lambda client: _read(client, config, sys.stdout.buffer))


def run_write(config: WriteConfig) -> int:
    """Copy standard input into a range of an export, and flush it."""
    return _run_transfer(config, lambda client: _write(client, config, sys.stdin.fileno()))


async def _read(client: NBDClientProtocol, config: TransferConfig, output: BinaryIO) -> None:
    for at in range(config.offset, config.offset + config.size, PIECE):
        length = min(PIECE, config.offset + config.size - at)
        output.write(await client.read(at, length))
    output.flush()


async def _write(client: NBDClientProtocol, config: TransferConfig, source: int) -> None:
    reactor = process_reactor()
    at, end = config.offset, config.offset + config.size
    while at < end:
        # A terminal, or a pipe, may keep us waiting, and files can't be given to a reactor.
        while not select.select([source], [], [], 0)[0]:
            await deferLater(reactor, INPUT_SECONDS)
        data = os.read(source, min(PIECE, end - at))
        if not data:
            raise FlexmigrateError(
                f"standard input ended after {at - config.offset} of {config.size} bytes"
            )
        await client.write(data, at)
        at += len(data)
    await client.flush()


def _run_transfer(config: TransferConfig, transfer: Any) -> int:
    the_reactor = process_reactor()
    outcome: list[int] = []
    no_output: list[OutputError] = []

    def ended(status: int) -> None:
        outcome.append(status)
        the_reactor.stop()

    def failed(failure: Failure) -> None:
        if isinstance(failure.value, OutputError):
            no_output.append(failure.value)
            return ended(1)
        failure.trap(FlexmigrateError, OSError)
        sys.stderr.write(f"flexmigrate: {failure.getErrorMessage()}\n")
        return ended(2 if failure.check(UsageError) else 1)

    def met_a_bug(failure: Failure) -> None:
        failure.printTraceback(sys.stderr)
        ended(1)

    def begin() -> None:
        done = Deferred.fromCoroutine(_transfer(the_reactor, config, transfer))
        done.addCallbacks(lambda _: ended(0), failed)
        done.addErrback(met_a_bug)

    the_reactor.callWhenRunning(begin)
    the_reactor.run()
    if no_output:
        raise no_output[0]
    return outcome[0] if outcome else 1


async def _transfer(reactor: Any, config: TransferConfig, transfer: Any) -> None:
    client = await _connect(reactor, config)
    try:
        _check_range(client, config)
        work: Coroutine[Any, Any, None] = transfer(client)
        await work
        await client.disconnect()
    except BaseException:
        client.abort(FlexmigrateError("given up"))
        raise


def _check_range(client: NBDClientProtocol, config: TransferConfig) -> None:
    """See that all of the range is there before a part of it is read, or changed."""
    if config.offset + config.size > client.size:
        raise FlexmigrateError(
            f"{config.size} bytes from {config.offset} on are more than there are: the export has "
            f"{client.size}"
        )


def ask_peer(config: WhoseConfig, named: Sequence[bytes]) -> Answer:
    """Ask another server what the journal of its image says.

    :param named: the sessions that our own journal knows: of others we aren't told.
    :raises FlexmigrateError: it can't be asked, or its answer makes no sense.
    """
    the_reactor = process_reactor()
    assert config.peer is not None
    opening = Opening(
        Purpose.ASK,
        NO_ID,
        0,
        State.NONE,
        0,
        superseded=tuple(named[:MAX_SUPERSEDED]),
        export=config.remote_export,
        capabilities=Capability.JOURNAL,
    )
    tls = client_tls(config.tls, config.peer.host)
    options = ClientOptions(tls=TLSMode(config.tls.rule), session=SessionRequest(opening.encode()))
    endpoint = client_endpoint(the_reactor, config.peer, timeout=CONNECT_SECONDS)
    results: list[Any] = []

    def ended(result: Any) -> None:
        results.append(result)
        the_reactor.stop()

    def begin() -> None:
        ask(endpoint, options=options, clock=the_reactor, tls=tls).addBoth(ended)

    the_reactor.callWhenRunning(begin)
    the_reactor.run()
    if not results:
        raise FlexmigrateError("interrupted")
    (result,) = results
    if isinstance(result, Failure):
        result.raiseException()
    return parse_answer(result)


def _connect(reactor: Any, config: TransferConfig) -> Deferred[NBDClientProtocol]:
    if isinstance(config.server, str):
        uri = parse_uri(config.server)
        if config.tls.rule == "require":
            uri = dataclasses.replace(uri, tls=True)  # a server without TLS is not good enough
        return connect_uri(reactor, uri, tls=client_tls(config.tls, uri.tls_hostname or uri.host))
    endpoint = client_endpoint(reactor, config.server, bind=config.bind)
    tls = client_tls(config.tls, config.server.host)
    options = ClientOptions(tls=TLSMode(config.tls.rule))
    return connect(endpoint, options=options, clock=reactor, tls=tls)

"""Looks at an export and copies its first MiB: ``python client.py nbd://127.0.0.1/disk``."""

import sys
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import react

from flexmigrate import connect_uri

MIB = 1024 * 1024


async def main(reactor: Any, uri: str) -> None:
    server = await connect_uri(reactor, uri)
    first = await server.read(0, min(MIB, server.size))
    await server.disconnect()
    print(f"{server.size} bytes; of the first {len(first)}, {len(first) - first.count(0)} aren't 0")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} nbd://HOST/EXPORT")
    react(lambda reactor, uri: Deferred.fromCoroutine(main(reactor, uri)), sys.argv[1:])

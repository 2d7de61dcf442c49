"""A client of NBD servers, for Twisted programs: connect, then read and write by Deferreds.

::

    from flexmigrate.client import connect_uri

    async def first_sector(reactor):
        server = await connect_uri(reactor, "nbd://example.com/disk")
        sector = await server.read(0, 512)
        await server.disconnect()
        return sector

:class:`~flexmigrate.client.connection.NBDClientProtocol` documents the requests, and
:mod:`flexmigrate.errors` the errors.
"""

from flexmigrate.client.connect import ask, connect, connect_uri
from flexmigrate.client.connection import NBDClientProtocol
from flexmigrate.client.uri import NBDURI, URIError, parse_uri

__all__ = ["NBDURI", "NBDClientProtocol", "URIError", "ask", "connect", "connect_uri", "parse_uri"]

"""Matching of a client's metadata queries (proto.md, "Metadata querying").

Every namespace of ours has the query syntax of ``base:``: a full name or, for LIST_META_CONTEXT
only, the namespace with its colon as a wildcard.
"""

from __future__ import annotations

from collections.abc import Sequence

from flexmigrate.errors import RemoteProtocolError
from flexmigrate.wire.frames import ContextRequest, parse_context_request


def parse_queries(data: bytes) -> ContextRequest:
    """Parse an option's data; RemoteProtocolError if a query is not in any namespace."""
    request = parse_context_request(data)
    for query in request.queries:
        if query.find(":") < 1:
            raise RemoteProtocolError("a query that doesn't start with a namespace and a colon")
    return request


def listed(available: Sequence[str], queries: Sequence[str]) -> list[str]:
    """Return the contexts that *queries* match, each once; all if there are no queries."""
    if not queries:
        return list(available)
    wanted = set(queries)
    return [name for name in available if name in wanted or _wildcard(name) in wanted]


def selected(available: Sequence[str], queries: Sequence[str]) -> tuple[tuple[int, str], ...]:
    """Return (id, name) of the contexts that *queries* name; wildcards select nothing."""
    wanted = set(queries)
    return tuple((number, name) for number, name in enumerate(available, 1) if name in wanted)


def _wildcard(name: str) -> str:
    return name.partition(":")[0] + ":"

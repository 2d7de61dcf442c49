"""The page: its files, the document as it is now (``/state.json``), and as it changes
(``/events``).

Events are those of a browser's ``EventSource``: one named ``state`` with each document, and ``end``
with the process's result. The page loads nothing from other origins.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any, Final

from twisted.internet.interfaces import IPushProducer
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

from flexmigrate.telemetry.fields import documented
from flexmigrate.telemetry.status import Status
from flexmigrate.web.feed import Feed

FILES: Final = {
    "page.html": b"text/html; charset=utf-8",
    "page.css": b"text/css; charset=utf-8",
    "page.js": b"text/javascript; charset=utf-8",
    "icon.svg": b"image/svg+xml",
}
"""The files of the page, in ``flexmigrate/web/files``."""

JSON: Final = b"application/json"

POLICY: Final = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
    b" connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class _Still(Resource):
    """A resource that never changes."""

    isLeaf = True  # noqa: N815  # Twisted's name

    def __init__(self, content: bytes, kind: bytes) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._content = content
        self._kind = kind

    def render_GET(self, request: Any) -> bytes:  # noqa: N802  # Twisted's name
        request.setHeader(b"content-type", self._kind)
        request.setHeader(b"content-security-policy", POLICY)
        request.setHeader(b"content-length", b"%d" % len(self._content))
        return b"" if request.method == b"HEAD" else self._content


class _State(Resource):
    """The current document."""

    isLeaf = True  # noqa: N815  # Twisted's name

    def __init__(self, feed: Feed) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._feed = feed

    def render_GET(self, request: Any) -> object:  # noqa: N802  # Twisted's name
        answer = self._feed.ask()
        gone: list[Failure] = []
        request.notifyFinish().addErrback(gone.append)

        def made(document: str) -> None:
            request.setHeader(b"content-type", JSON)
            request.write(document.encode())

        def failed(failure: Failure) -> None:
            request.setResponseCode(500)

        def finish(_: object) -> None:
            if not gone:
                request.finish()

        answer.addCallbacks(made, failed).addCallback(finish)
        return NOT_DONE_YET


@implementer(IPushProducer)
class _Listener:
    """A receiver of events: see ``feed.Watcher``."""

    def __init__(self, request: Any) -> None:
        self._request = request
        self.behind = False
        request.registerProducer(self, True)

    def send(self, document: str) -> None:
        self._event("state", document)

    def end(self, farewell: str | None) -> None:
        if farewell is not None:
            self._event("end", farewell)
        self._request.unregisterProducer()
        self._request.finish()

    def abort(self) -> None:
        self._request.transport.abortConnection()

    def _event(self, name: str, data: str) -> None:
        self._request.write(f"event: {name}\ndata: {data}\n\n".encode())

    # IPushProducer: called as the peer stops and goes on reading.

    def pauseProducing(self) -> None:
        self.behind = True

    def resumeProducing(self) -> None:
        self.behind = False

    def stopProducing(self) -> None:
        """Do nothing: ``notifyFinish`` reports the connection's end."""


class _Events(Resource):
    """The stream of documents."""

    isLeaf = True  # noqa: N815  # Twisted's name

    def __init__(self, feed: Feed) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._feed = feed

    def render_HEAD(self, request: Any) -> bytes:  # noqa: N802  # Twisted's name
        request.setHeader(b"content-type", b"text/event-stream")
        return b""

    def render_GET(self, request: Any) -> object:  # noqa: N802  # Twisted's name
        request.setHeader(b"content-type", b"text/event-stream")
        request.goes_on()
        request.write(b"retry: 2000\n\n")
        listener = _Listener(request)
        request.notifyFinish().addBoth(lambda _: self._feed.leave(listener))
        self._feed.join(listener)
        return NOT_DONE_YET


def page_root(feed: Feed) -> Resource:
    """Return the root resource of a server for the page."""
    root = Resource()
    folder = files("flexmigrate.web") / "files"
    for name, kind in FILES.items():
        root.putChild(name.encode(), _Still((folder / name).read_bytes(), kind))
    root.putChild(b"", root.children[b"page.html"])
    root.putChild(b"fields.json", _Still(_fields(), JSON))
    root.putChild(b"state.json", _State(feed))
    root.putChild(b"events", _Events(feed))
    return root


def _fields() -> bytes:
    """Return the meanings of the status fields, as JSON."""
    told = [{"name": each.name, "unit": each.unit, "doc": each.doc} for each in documented(Status)]
    return json.dumps(told).encode()


def farewell(status: int | None, reason: str | None) -> str:
    """Return the message with the process's result."""
    return json.dumps({"status": status, "reason": reason})

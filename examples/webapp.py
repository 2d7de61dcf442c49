"""A web application that also serves a disk, moves it when it is told to, and shows how that goes.

``Disks`` is a resource of the application, to be put wherever it likes:

    GET  /disks          a page: the disk, or how its migration goes
    POST /disks          host=HOST port=PORT: move it there
"""

from html import escape

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from flexmigrate import Address, ExportService, MirrorRequest, Sample

PAGE = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="1"><title>Disks</title>
<h1>The disk {name}</h1>
<p id="state">{state}</p>
</html>
"""


class Disks(Resource):
    """One export of a service.

    :param service: that offers it; running.
    """

    isLeaf = True

    def __init__(self, service: ExportService, name: str) -> None:
        super().__init__()
        self._service = service
        self._name = name
        self._state = "It is served here."

    def render_GET(self, request: Request) -> bytes:
        page = PAGE.format(name=escape(self._name), state=escape(self._state))
        return page.encode()

    def render_POST(self, request: Request) -> object:
        host = request.args.get(b"host", [b""])[0].decode(errors="replace")
        port = request.args.get(b"port", [b""])[0].decode(errors="replace")
        if not (host and port.isdecimal() and 0 < int(port) < 65536):
            request.setResponseCode(400)
            return b"host and port, please\n"
        moving = Deferred.fromCoroutine(self._move(Address.tcp(host, int(port)), request))
        moving.addErrback(self._failed)
        return NOT_DONE_YET

    async def _move(self, address: Address, request: Request) -> None:
        gone: list[Failure] = []
        request.notifyFinish().addErrback(gone.append)
        try:
            migration = await self._service.migrate(
                MirrorRequest(address, export=self._name), self._show
            )
        finally:
            # The destination has agreed, or the page says why it did not begin.
            if not gone:
                request.redirect(request.uri)
                request.finish()
        summary = await migration.result
        self._state = f"The migration to {summary.address} is over: {summary.verdict}."

    def _show(self, sample: Sample) -> None:
        left = "" if sample.bytes_left is None else f", {sample.bytes_left} are left"
        self._state = f"It moves ({sample.phase}): {sample.bytes_sent} bytes are sent{left}."

    def _failed(self, failure: Failure) -> None:
        self._state = f"It is served here. It was not moved: {failure.getErrorMessage()}."

"""The example of a web application, with a server and requests of its own."""

import random
from pathlib import Path

import treq
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import Site

from flexmigrate import Address, ExportService, ListenService
from support.examples import example
from support.ports import held_port

ANYWHERE = Address.tcp("127.0.0.1", 0)
SIZE = 1 << 20

Disks = example("webapp").Disks


class WebApplication(TestCase):
    async def setUp(self):
        self.content = random.Random(6).randbytes(SIZE)
        disk = self.file(self.content)
        self.source = await self.started(ExportService(reactor, {"<disk>": disk}, [ANYWHERE]))
        root = Resource()
        root.putChild(b"disks", Disks(self.source, "<disk>"))
        port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(Site(root))
        self.addCleanup(port.stopListening)
        self.page = f"http://127.0.0.1:{port.getHost().port}/disks"

    async def stop(self, service):
        await service.stopService()
        await deferLater(reactor, 0)  # trial must not turn the reactor within a thread's message

    async def started(self, service):
        service.startService()
        self.addCleanup(self.stop, service)
        await service.opened
        return service

    def file(self, content):
        path = Path(self.mktemp())
        path.write_bytes(content)
        return str(path)

    async def ask(self, method, **data):
        response = await treq.request(
            method, self.page, data=data or None, persistent=False, allow_redirects=False
        )
        return response.code, await response.text()

    async def test_it_moves_the_disk_and_shows_how_that_went(self):
        _, text = await self.ask("GET")
        self.assertIn("The disk &lt;disk&gt;", text)
        self.assertIn("It is served here.", text)
        copy = self.file(bytes(SIZE))
        destination = await self.started(ListenService(reactor, copy, [ANYWHERE]))
        (place,) = destination.places
        code, _ = await self.ask("POST", host=place.host, port=str(place.port))
        self.assertEqual(code, 302)
        self.assertEqual((await destination.ended).status, 0)
        self.assertEqual((await self.source.ended).status, 0)
        _, text = await self.ask("GET")
        self.assertIn("is over: complete.", text)
        self.assertEqual(Path(copy).read_bytes(), self.content)

    async def test_what_can_not_begin_is_told_and_the_disk_is_served_on(self):
        code, text = await self.ask("POST", host="127.0.0.1", port="disk")
        self.assertEqual((code, text), (400, "host and port, please\n"))
        with held_port() as port:
            code, _ = await self.ask("POST", host="127.0.0.1", port=str(port))
        self.assertEqual(code, 302)
        _, text = await self.ask("GET")
        self.assertIn("It was not moved: Mirror failed to connect: ", text)

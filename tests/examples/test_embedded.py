"""The example that moves an export of a service."""

import contextlib
import io
import random

from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from flexmigrate import Address, ExportService, ListenService
from support.examples import example

ANYWHERE = Address.tcp("127.0.0.1", 0)
SIZE = 1 << 20

move = example("move").move


class Moving(TestCase):
    async def stop(self, service):
        await service.stopService()
        await deferLater(reactor, 0)  # trial must not turn the reactor within a thread's message

    async def started(self, service):
        service.startService()
        self.addCleanup(self.stop, service)
        await service.opened
        return service

    def file(self, content):
        path = self.mktemp()
        with open(path, "wb") as file:
            file.write(content)
        return path

    async def test_an_export_is_moved(self):
        content = random.Random(5).randbytes(SIZE)
        disk = self.file(content)
        copy = self.file(bytes(SIZE))
        source = await self.started(ExportService(reactor, {"disk": disk}, [ANYWHERE]))
        destination = await self.started(ListenService(reactor, copy, [ANYWHERE]))
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            verdict = await move(source, "disk", *destination.places)
        self.assertEqual(verdict, "complete")
        self.assertEqual((await destination.ended).status, 0)
        self.assertIn(f": {SIZE} bytes are sent", said.getvalue())
        with open(copy, "rb") as file:
            self.assertEqual(file.read(), content)

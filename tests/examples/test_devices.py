"""The conformance suite, put to a file, and to every device of the examples."""

import treq
from twisted.internet import reactor
from twisted.internet.defer import maybeDeferred
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.client import Agent, HTTPConnectionPool
from twisted.web.server import Site
from twisted.web.static import Data, File

from flexmigrate.image.file import Image
from flexmigrate.testing import BlockDeviceTests
from support.examples import example

MemoryDevice = example("devices/memory").MemoryDevice
Overlay = example("devices/overlay").Overlay
http_image = example("devices/http_image")


class FileTests(BlockDeviceTests, TestCase):
    def make_device(self, content):
        path = self.mktemp()
        with open(path, "wb") as file:
            file.write(content)
        return Image.open(path)


class ReadOnlyFileTests(BlockDeviceTests, TestCase):
    def make_device(self, content):
        path = self.mktemp()
        with open(path, "wb") as file:
            file.write(content)
        return Image.open(path, read_only=True)


class MemoryTests(BlockDeviceTests, TestCase):
    def make_device(self, content):
        return MemoryDevice(content)


class OverlayTests(BlockDeviceTests, TestCase):
    def make_device(self, content):
        return Overlay(MemoryDevice(content))

    async def test_what_lies_below_stays_as_it_is(self):
        below = MemoryDevice(bytes(8192))
        overlay = Overlay(below)
        await overlay.write(b"changed", 4090)
        self.assertEqual(await overlay.read(4090, 7), b"changed")
        self.assertEqual(below.read(0, 8192), bytes(8192))


class WebServer:
    """Serves a folder; with ``client``, whose connections end with it."""

    def __init__(self, case, resource):
        self.port = reactor.listenTCP(0, Site(resource), interface="127.0.0.1")
        pool = HTTPConnectionPool(reactor, persistent=False)
        self.client = treq.client.HTTPClient(Agent(reactor, pool=pool))
        case.addCleanup(self.port.stopListening)
        self.url = f"http://127.0.0.1:{self.port.getHost().port}/disk"


class HTTPImageTests(BlockDeviceTests, TestCase):
    async def make_device(self, content):
        folder = self.mktemp()
        path = self.mktemp()
        with open(path, "wb") as file:
            file.write(content)
        root = File(folder)
        root.putChild(b"disk", File(path, defaultType="application/octet-stream"))
        self.web = WebServer(self, root)
        return await http_image.open_http_image(self.web.url, self.web.client)

    async def test_a_server_that_gives_no_parts_is_refused(self):
        root = File(self.mktemp())
        root.putChild(b"disk", Data(bytes(512), "application/octet-stream"))
        web = WebServer(self, root)
        with self.assertRaisesRegex(OSError, r"can't be read in parts \(status 200\)"):
            await http_image.open_http_image(web.url, web.client)

    async def test_an_image_that_is_gone_is_an_error_of_reading(self):
        device = await self._new()
        device._url += "-gone"
        with self.assertRaisesRegex(OSError, "status 404"):
            await device.read(0, 1)


class LyingDevice(MemoryDevice):
    """Loses the last byte of each write, and knows nothing of its extents."""

    def write(self, data, offset):
        super().write(data[:-1], offset)

    def extents(self, offset, length):
        return []


class SuiteTests(SynchronousTestCase):
    def test_it_finds_what_is_wrong(self):
        class Tests(BlockDeviceTests, TestCase):
            def make_device(self, content):
                return LyingDevice(content)

        for name in (
            "test_writes_change_these_bytes_and_no_others",
            "test_extents_are_ascending_without_gaps_and_holes_are_zeroes",
            "test_any_sequence_of_changes",
        ):
            running = maybeDeferred(getattr(Tests(name), name))
            self.failureResultOf(running, AssertionError)

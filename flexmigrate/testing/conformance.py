"""A test suite for block devices, which any class that provides the interface can be put to.

A mixin for a test case of trial, which pytest runs, too::

    class MyDeviceTests(BlockDeviceTests, twisted.trial.unittest.TestCase):
        def make_device(self, content):
            return MyDevice(content)

The tests call the device as a server does, and compare with bytes that they keep themselves.
"""

from __future__ import annotations

import errno
import random
from typing import Any

from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from zope.interface.verify import verifyObject

from flexmigrate.image.extents import Extent
from flexmigrate.image.interfaces import IBlockDevice, IReadyBlockDevice

BLOCK = 4096
SIZE = 64 * BLOCK
OPERATIONS = 200


class BlockDeviceTests:
    """See the module; mixed into a ``twisted.trial.unittest.TestCase``.

    Each test has a device of its own, of 256 KiB, and closes it.
    """

    def make_device(self, content: bytes) -> Any:
        """Return a new device that holds *content*, or a Deferred of one. To be overridden."""
        raise NotImplementedError

    async def _new(self, *, writable: bool = False) -> Any:
        case: Any = self
        generator = random.Random(7)
        # Data and zeroes in turn, so that there is something to be a hole.
        self.content = bytearray(
            b"".join(
                bytes(4 * BLOCK) if index % 4 == 1 else generator.randbytes(4 * BLOCK)
                for index in range(SIZE // (4 * BLOCK))
            )
        )
        device = await maybeDeferred(self.make_device, bytes(self.content))
        case.addCleanup(device.close)
        if writable and device.read_only:
            case.skipTest("the device is read-only")
        return device

    @staticmethod
    def _ask(function: Any, *args: Any, **kwargs: Any) -> Deferred[Any]:
        return maybeDeferred(function, *args, **kwargs)

    async def _assert_content(self, device: Any) -> None:
        case: Any = self
        found = bytes(await self._ask(device.read, 0, SIZE))
        case.assertTrue(found == bytes(self.content), "the device holds other bytes")

    def _blocks(self) -> list[tuple[int, int]]:
        return [(at, BLOCK) for at in range(0, SIZE, BLOCK)]

    async def test_it_provides_the_interface(self) -> None:
        """Every method is there, and takes what it is given."""
        case: Any = self
        device = await self._new()
        case.assertTrue(verifyObject(IBlockDevice, device))
        if IReadyBlockDevice.providedBy(device):
            case.assertTrue(verifyObject(IReadyBlockDevice, device))
        case.assertEqual(device.size, SIZE)
        case.assertIn(device.read_only, (False, True))

    async def test_reads_give_the_bytes(self) -> None:
        """Wherever they begin and end."""
        case: Any = self
        device = await self._new()
        for offset, length in ((0, 1), (SIZE - 1, 1), (511, 514), (BLOCK, 3 * BLOCK), (0, SIZE)):
            found = bytes(await self._ask(device.read, offset, length))
            case.assertTrue(found == self.content[offset : offset + length], (offset, length))

    async def test_many_reads_may_be_under_way(self) -> None:
        """Each gets its own bytes, in whatever order they are answered."""
        case: Any = self
        device = await self._new()
        answers = await gatherResults([self._ask(device.read, *each) for each in self._blocks()])
        case.assertTrue(b"".join(bytes(each) for each in answers) == bytes(self.content))

    async def test_what_was_read_does_not_change(self) -> None:
        """A write that comes later doesn't reach into an earlier answer."""
        case: Any = self
        device = await self._new(writable=True)
        found = await self._ask(device.read, 0, BLOCK)
        await self._ask(device.write, b"\xff" * BLOCK, 0)
        case.assertTrue(bytes(found) == bytes(self.content[:BLOCK]))

    async def test_writes_change_these_bytes_and_no_others(self) -> None:
        """And the buffer that they came in can be used again."""
        device = await self._new(writable=True)
        for offset, length in ((0, 1), (SIZE - 1, 1), (511, 514), (BLOCK, BLOCK), (7, 5 * BLOCK)):
            buffer = bytearray(random.Random(length).randbytes(length))
            self.content[offset : offset + length] = buffer
            await self._ask(device.write, memoryview(buffer), offset)
            buffer[:] = b"\xee" * length
            await self._assert_content(device)

    async def test_many_writes_may_be_under_way(self) -> None:
        """Neighbours don't harm each other."""
        device = await self._new(writable=True)
        self.content[:] = random.Random(8).randbytes(SIZE)
        await gatherResults(
            [
                self._ask(device.write, bytes(self.content[at : at + length]), at)
                for at, length in self._blocks()
            ]
        )
        await self._assert_content(device)

    async def test_zeroed_ranges_read_as_zeroes_to_the_byte(self) -> None:
        """It makes no difference whether their storage is given back."""
        device = await self._new(writable=True)
        for may_punch in (True, False):
            for offset, length in ((1, 1), (700, 2 * BLOCK), (8 * BLOCK, 2 * BLOCK)):
                await self._ask(device.zero, offset, length, may_punch=may_punch)
                self.content[offset : offset + length] = bytes(length)
                await self._assert_content(device)

    async def test_a_fast_zero_is_done_or_refused(self) -> None:
        """After a refusal nothing has changed."""
        case: Any = self
        device = await self._new(writable=True)
        try:
            await self._ask(device.zero, 100, BLOCK, may_punch=True, fast_only=True)
        except OSError as error:
            case.assertEqual(error.errno, errno.ENOTSUP)
        else:
            self.content[100 : 100 + BLOCK] = bytes(BLOCK)
        await self._assert_content(device)

    async def test_trim_leaves_the_rest_alone(self) -> None:
        """The trimmed range may read as anything, and can be written again."""
        device = await self._new(writable=True)
        offset, length = 3 * BLOCK + 5, 2 * BLOCK
        await self._ask(device.trim, offset, length)
        found = bytes(await self._ask(device.read, 0, SIZE))
        self.content[offset : offset + length] = found[offset : offset + length]
        await self._assert_content(device)
        await self._ask(device.write, b"\x5a" * length, offset)
        self.content[offset : offset + length] = b"\x5a" * length
        await self._assert_content(device)

    async def test_a_flush_ends(self) -> None:
        """And changes nothing."""
        device = await self._new()
        await self._ask(device.flush)
        await self._assert_content(device)

    async def test_extents_are_ascending_without_gaps_and_holes_are_zeroes(self) -> None:
        """From any offset; after changes, too."""
        device = await self._new()
        await self._check_extents(device, 0, SIZE)
        await self._check_extents(device, BLOCK + 1, 9 * BLOCK)
        if not device.read_only:
            await self._ask(device.zero, 8 * BLOCK, 8 * BLOCK, may_punch=True)
            self.content[8 * BLOCK : 16 * BLOCK] = bytes(8 * BLOCK)
            await self._check_extents(device, 0, SIZE)
            await self._ask(device.write, b"\x01", 10 * BLOCK)
            self.content[10 * BLOCK] = 1
            await self._check_extents(device, 0, SIZE)

    async def _check_extents(self, device: Any, offset: int, length: int) -> None:
        case: Any = self
        end = offset + length
        while offset < end:
            found = list(await self._ask(device.extents, offset, end - offset))
            case.assertTrue(found, f"nothing is told of what begins at {offset}")
            for extent in found:
                case.assertIsInstance(extent, Extent)
                case.assertEqual(extent.offset, offset)
                case.assertGreater(extent.length, 0)
                if not extent.data:
                    hole = self.content[offset : min(extent.end, end)]
                    case.assertFalse(any(hole), f"data is said to be a hole: {extent}")
                offset = extent.end

    async def test_what_is_done_at_once_is_the_same(self) -> None:
        """Only for devices that offer immediate operations."""
        case: Any = self
        device = await self._new()
        if not IReadyBlockDevice.providedBy(device):
            case.skipTest("the device does nothing at once")
        view = memoryview(bytearray(BLOCK))
        for at, _ in self._blocks():
            if device.try_read_into(view, at):
                case.assertTrue(view == self.content[at : at + BLOCK], at)
        if not device.read_only and not device.may_block_write(5, 100):
            device.write_now(memoryview(b"\x21" * 100), 5)
            self.content[5:105] = b"\x21" * 100
        await self._assert_content(device)

    async def test_any_sequence_of_changes(self) -> None:
        """Seeded, against bytes that are kept beside."""
        device = await self._new(writable=True)
        generator = random.Random(9)
        for _ in range(OPERATIONS):
            offset = generator.randrange(SIZE)
            length = generator.randint(1, min(SIZE - offset, 3 * BLOCK))
            if generator.random() < 0.7:
                data = generator.randbytes(length)
                await self._ask(device.write, data, offset)
            else:
                data = bytes(length)
                await self._ask(device.zero, offset, length, may_punch=generator.random() < 0.5)
            self.content[offset : offset + length] = data
        await self._assert_content(device)

"""A server as part of another program, with real sockets: devices, migrations, their end."""

from __future__ import annotations

import contextlib
import errno
import random
import socket
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

import flexmigrate
from flexmigrate import Action, Address, ExportService, ListenService, MirrorRequest, connect_uri
from flexmigrate.errors import CommandError, ImageError, RequestFailed, UsageError
from flexmigrate.migration.request import TLSConfig
from flexmigrate.service.embedding import NeverServed, StartedBefore
from flexmigrate.telemetry.history import Sample
from flexmigrate.wire.handover import State
from support.examples import example
from support.journals import leave_committed, leave_owner, state_of
from support.ports import held_port
from support.raw_nbd import RawClient

MIB = 1024 * 1024
ANYWHERE = Address.tcp("127.0.0.1", 0)

MemoryDevice: Any = example("devices/memory").MemoryDevice


class SlowDevice(MemoryDevice):  # type: ignore[misc]  # it is loaded as a module of no known type
    """Nothing is there at once."""

    def try_read_into(self, view: memoryview, offset: int) -> bool:
        return False

    def may_block_write(self, offset: int, length: int) -> bool:
        return True


class BrokenDevice(SlowDevice):
    """Has no space left, and bugs."""

    def write(self, data: Any, offset: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    def read(self, offset: int, length: int) -> bytes:
        return b"too short"


class Embedded(TestCase):
    def content(self, size: int = 4 * MIB) -> bytes:
        return random.Random(3).randbytes(size)

    async def stop(self, service: Any) -> None:
        await service.stopService()
        # trial turns the reactor by hand when a test is over, and must not do so from within what
        # a thread has told it.
        await deferLater(reactor, 0)

    def file(self, content: bytes) -> Path:
        path = Path(self.mktemp())
        path.write_bytes(content)
        return path

    async def served(self, exports: Any, **settings: Any) -> ExportService:
        service = ExportService(reactor, exports, [ANYWHERE], **settings)
        service.startService()
        self.addCleanup(self.stop, service)
        await service.opened
        return service

    async def client(self, service: Any) -> Any:
        (place,) = service.places
        client = await connect_uri(reactor, f"nbd://127.0.0.1:{place.port}")
        self.addCleanup(lambda: client.disconnect().addErrback(lambda _: None))
        return client


class Devices(Embedded):
    async def test_a_device_is_served_at_once_and_not(self) -> None:
        for kind in (MemoryDevice, SlowDevice):
            content = bytearray(self.content())
            service = await self.served({"disk": kind(bytes(content))})
            client = await self.client(service)
            self.assertEqual(await client.read(0, len(content)), content)
            for offset, length in ((0, 512), (4096, 4096), (512, 3 * MIB)):
                data = random.Random(length).randbytes(length)
                await client.write(data, offset, fua=True)
                content[offset : offset + length] = data
            await client.zero(MIB, MIB)
            content[MIB : 2 * MIB] = bytes(MIB)
            await client.flush()
            self.assertEqual(await client.read(0, len(content)), content)
            self.assertEqual(await client.read(5 * 512, 512), content[5 * 512 : 6 * 512])

    async def test_its_errors_cost_a_request_and_no_connection(self) -> None:
        service = await self.served({"": BrokenDevice(bytes(MIB))})
        client = await self.client(service)
        failure = await self.assertFailure(client.write(b"x" * 512, 0), RequestFailed)
        self.assertEqual(failure.errno, errno.ENOSPC)
        for length in (512, MIB):
            failure = await self.assertFailure(client.read(0, length), RequestFailed)
            self.assertEqual(failure.errno, errno.EIO)
        await client.flush()

    async def test_long_reads_hold_no_more_than_they_may(self) -> None:
        service = await self.served({"": SlowDevice(bytes(32 * MIB))})
        client = await self.client(service)
        reads = [client.read(0, 32 * MIB) for _ in range(4)]
        for read in reads:
            self.assertEqual(len(await read), 32 * MIB)

    async def test_it_is_never_asked_for_more_than_it_was_told(self) -> None:
        asked: list[int] = []

        class RecordedDevice(SlowDevice):
            def read(self, offset: int, length: int) -> bytes:
                asked.append(length)
                return bytes(super().read(offset, length))

        content = self.content(64 * MIB)
        service = await self.served({"": RecordedDevice(content)})
        (place,) = service.places
        assert isinstance(place, Address)
        port = place.port

        def read() -> bytes:
            client = RawClient.to("127.0.0.1", port)
            with contextlib.closing(client):
                return client.read(0, 64 * MIB)

        self.assertEqual(await deferToThread(read), content)
        self.assertEqual(asked, [32 * MIB, 32 * MIB])

    def test_what_is_no_device_is_refused(self) -> None:
        with self.assertRaisesRegex(ImageError, "does not provide IBlockDevice"):
            ExportService(reactor, {"": object()}, [ANYWHERE])


class Migrations(Embedded):
    async def listening(self, size: int, **settings: Any) -> tuple[ListenService, Path]:
        path = self.file(bytes(size))
        service = ListenService(reactor, str(path), [ANYWHERE], **settings)
        service.startService()
        self.addCleanup(self.stop, service)
        await service.opened
        return service, path

    async def test_an_image_moves_and_both_ends_say_so(self) -> None:
        content = self.content()
        source = await self.served({"": str(self.file(content))})
        destination, copy = await self.listening(len(content))
        (address,) = destination.places
        assert isinstance(address, Address)
        samples: list[Sample] = []
        migration = await source.migrate(MirrorRequest(address), samples.append)
        summary = await migration.result
        self.assertEqual(summary.verdict, "complete")
        self.assertEqual((await source.ended).status, 0)
        self.assertEqual((await destination.ended).status, 0)
        self.assertEqual(copy.read_bytes(), content)
        self.assertIn("copying", {sample.phase for sample in samples})
        self.assertEqual(samples[-1].bytes_sent, len(content))
        with self.assertRaises(CommandError):
            migration.stop()

    @staticmethod
    def raise_an_error(sample: Sample) -> None:
        raise ZeroDivisionError(sample.phase)

    async def test_a_device_moves_with_what_clients_wrote(self) -> None:
        for kind in (MemoryDevice, SlowDevice):
            content = bytearray(self.content())
            source = await self.served({"": kind(bytes(content))})
            client = await self.client(source)
            destination, copy = await self.listening(len(content))
            (address,) = destination.places
            assert isinstance(address, Address)
            begun = source.migrate(MirrorRequest(address, max_bps=8 * MIB), self.raise_an_error)
            migration = await begun
            await client.write(b"new" * 512, 4096)
            content[4096 : 4096 + 1536] = b"new" * 512
            for wrong in ("5", -1, 2**64, 1.5, None):
                with self.assertRaisesRegex(ValueError, "^bytes_per_second="):
                    migration.limit(wrong)  # type: ignore[arg-type]
            migration.limit(0)
            self.assertEqual((await migration.result).verdict, "complete")
            self.assertEqual((await destination.ended).status, 0)
            self.assertTrue(copy.read_bytes() == content)
            # Whoever looks on raised each time, which was logged and harmed nothing.
            self.assertTrue(self.flushLoggedErrors(ZeroDivisionError))

    async def test_a_device_can_not_be_unlinked(self) -> None:
        source = await self.served({"": MemoryDevice(bytes(MIB))})
        request = MirrorRequest(Address.tcp("127.0.0.1", 1), Action.UNLINK)
        await self.assertFailure(source.migrate(request), CommandError)

    async def test_stopping_the_service_ends_a_migration_first(self) -> None:
        content = self.content()
        path = self.file(content)
        source = await self.served({"": str(path)})
        destination, _ = await self.listening(len(content))
        (address,) = destination.places
        assert isinstance(address, Address)
        migration = await source.migrate(MirrorRequest(address, max_bps=MIB))
        await source.stopService()
        self.assertEqual((await migration.result).verdict, "broken")
        self.assertEqual((await source.ended).status, 1)
        self.assertEqual(path.read_bytes(), content)


class Beginnings(Embedded):
    async def test_an_address_that_is_taken(self) -> None:
        first = await self.served({"": MemoryDevice(bytes(MIB))})
        second = ExportService(reactor, {"": MemoryDevice(bytes(MIB))}, first.places)
        second.startService()
        opened: Deferred[Any] = second.opened
        error = await self.assertFailure(opened, flexmigrate.FlexmigrateError)
        self.assertIn("can't listen", str(error))
        self.assertEqual((await second.ended).status, 1)
        await second.stopService()

    async def test_endpoints_as_twisted_describes_them(self) -> None:
        path = self.mktemp()
        service = ExportService(reactor, {"": MemoryDevice(bytes(MIB))}, [f"unix:{path}"])
        service.startService()
        await service.opened
        client = await connect_uri(reactor, f"nbd+unix:///?socket={path}")
        self.assertEqual(await client.read(0, 512), bytes(512))
        await client.disconnect()
        await service.stopService()
        ended: Deferred[Any] = service.ended
        self.assertEqual((await ended).status, 0)

    async def test_nothing_is_kept_open_by_a_service_that_could_not_be_made(self) -> None:
        path = str(self.file(bytes(MIB)))
        for exports, endpoints, error in (
            ({"a": path, "b": self.mktemp()}, [ANYWHERE], ImageError),
            ({"a": path}, ["nowhere"], UsageError),
        ):
            with self.assertRaises(error):
                ExportService(reactor, exports, endpoints)
        with self.assertRaises(UsageError):
            ListenService(reactor, path, ["nowhere"])
        await self.served({"": path})  # it isn't in use

    def test_a_wrong_value_is_refused_where_it_is_given(self) -> None:
        path = str(self.file(bytes(MIB)))
        exports: Any
        for exports, endpoints, settings, text in (
            ({"": path}, [ANYWHERE], {"max_clients": "5"}, "max_clients='5': it must be a whole"),
            ({"": path}, [ANYWHERE], {"max_clients": 0}, "max_clients=0: '0' is not a number of"),
            ({"": path}, [ANYWHERE], {"poll_seconds": 1}, "poll_seconds=1: '1000000' is not"),
            ({"": path}, "tcp:0", {}, "endpoints='tcp:0': it must be a list of places"),
            ({"": path}, [], {}, "places=.*: there has to be at least one"),
            ({}, [ANYWHERE], {}, "exports=.*: there has to be at least one"),
            (path, [ANYWHERE], {}, "exports='.*': it must be Mapping"),
            ({"": None}, [ANYWHERE], {}, "exports={'': None}: it must be a path or"),
            ({1: path}, [ANYWHERE], {}, "name=1: it must be a text"),
            ({"x" * 4097: path}, [ANYWHERE], {}, "name='x*': .* is not a name of at most 4096"),
        ):
            with self.assertRaisesRegex(ValueError, f"^{text}"):
                ExportService(reactor, exports, endpoints, **settings)
        for name, value in (("max_clients", "5"), ("rebind", "::1"), ("coverage", "most")):
            with self.assertRaisesRegex(ValueError, f"^{name}="):
                wrong: Any = {name: value}
                ListenService(reactor, path, [ANYWHERE], **wrong)
        unknown: Any = {"max_client": 5}
        with self.assertRaises(TypeError):
            ExportService(reactor, {"": path}, [ANYWHERE], **unknown)
        self.assertFalse(Path(f"{path}.INCOMPLETE").exists())

    def test_what_would_not_hold_is_refused(self) -> None:
        path = str(self.file(bytes(MIB)))
        for tls, oldstyle in (
            (TLSConfig("on", "folder", verify_peer=True), False),
            (TLSConfig("off", verify_peer=True), False),
            (TLSConfig("off", "folder"), False),
            (TLSConfig("require"), False),
            (TLSConfig("on", "folder"), True),
        ):
            with self.assertRaises(UsageError):
                ExportService(reactor, {"": path}, [ANYWHERE], tls=tls, oldstyle=oldstyle)
            with self.assertRaises(UsageError):
                ListenService(reactor, path, [ANYWHERE], tls=tls, oldstyle=oldstyle)

    async def test_it_is_started_once(self) -> None:
        service = await self.served({"": str(self.file(bytes(MIB)))})
        with self.assertRaisesRegex(StartedBefore, "each server needs a new one"):
            service.startService()
        client = await self.client(service)
        self.assertEqual(await client.read(0, 512), bytes(512))
        await client.disconnect()
        await service.stopService()
        await service.stopService()
        with self.assertRaises(StartedBefore):
            service.startService()

    async def test_it_is_stopped_without_having_been_started(self) -> None:
        path = self.file(bytes(MIB))
        service = ExportService(reactor, {"": str(path)}, [ANYWHERE])
        opened = service.opened
        await service.stopService()
        self.assertEqual((await service.ended).status, 0)
        for each in (opened, service.opened):
            await self.assertFailure(each, NeverServed)
        listening = ListenService(reactor, str(path), [ANYWHERE])
        await listening.stopService()
        # Nothing was received, and nobody has touched the image.
        self.assertEqual((await listening.ended).status, 1)
        self.assertFalse(path.with_name(f"{path.name}.INCOMPLETE").exists())
        with self.assertRaises(StartedBefore):
            listening.startService()
        await deferLater(reactor, 0)

    async def test_whoever_waits_may_give_up_and_others_go_on(self) -> None:
        service = ExportService(reactor, {"": MemoryDevice(bytes(MIB))}, [ANYWHERE])
        self.addCleanup(self.stop, service)
        first, second = service.opened, service.opened
        first.addErrback(lambda _: None).cancel()
        service.startService()
        await second
        await service.opened

    async def test_no_such_export_is_said_by_the_deferred(self) -> None:
        service = await self.served({"": MemoryDevice(bytes(MIB))})
        request = MirrorRequest(Address.tcp("127.0.0.1", 1), export="other")
        begun: Deferred[Any] = service.migrate(request)
        self.assertIn("no export", str(await self.assertFailure(begun, CommandError)))


class Settling(Embedded):
    """The image was handed over before, and its destination has not confirmed that."""

    def committed(self, address: Address) -> Path:
        path = self.file(self.content(MIB))
        leave_committed(path, address)
        return path

    async def settle(self, path: Path) -> ExportService:
        service = ExportService(reactor, {"": str(path)}, [ANYWHERE])
        self.addCleanup(self.stop, service)
        self.assertEqual(service.places, [])
        opened = service.opened
        service.startService()
        await self.assertFailure(opened, NeverServed)
        return service

    async def test_the_destination_says_that_the_image_is_there(self) -> None:
        copy = self.file(self.content(MIB))
        leave_owner(copy)
        destination = await self.served({"": str(copy)})
        (address,) = destination.places
        assert isinstance(address, Address)
        path = self.committed(address)
        service = await self.settle(path)
        self.assertEqual((await service.ended).status, 0)
        self.assertEqual(state_of(path), State.DONE)
        await service.stopService()
        with self.assertRaisesRegex(ImageError, "was migrated to"):
            ExportService(reactor, {"": str(path)}, [ANYWHERE])

    async def test_it_can_not_be_asked_and_another_service_asks_again(self) -> None:
        with held_port() as port:
            path = self.committed(Address.tcp("127.0.0.1", port))
            for _ in range(2):
                service = await self.settle(path)
                ended = await service.ended
                self.assertEqual(ended.status, 1)
                self.assertIn("has not confirmed it", ended.reason)
                await service.stopService()
        self.assertEqual(state_of(path), State.COMMITTED)

    async def test_it_is_stopped_while_it_asks(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            address = Address.tcp("127.0.0.1", silent.getsockname()[1])
            path = self.committed(address)
            service = ExportService(reactor, {"": str(path)}, [ANYWHERE])
            service.startService()
            begun: Deferred[Any] = service.migrate(MirrorRequest(address))
            error = await self.assertFailure(begun, CommandError)
            self.assertIn("was handed over to other", str(error))
            await service.stopService()
            self.assertEqual(await service.ended, flexmigrate.Ended(1, "the service was stopped"))
            await deferLater(reactor, 0)
        self.assertEqual(state_of(path), State.COMMITTED)

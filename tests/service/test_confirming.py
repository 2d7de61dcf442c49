"""Where sources are answered whose images are served elsewhere, and until when."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.config import ExportConfig, ServeConfig
from flexmigrate.net.acl import AccessList
from flexmigrate.net.address import Address
from flexmigrate.service import confirming
from flexmigrate.service.confirming import CONFIRMING_SECONDS, Confirming
from flexmigrate.service.factories import Factories

HERE, THERE = "127.0.0.1:10810", "[::1]:10811"


class Port:
    """Stands for a ``ListeningPort``, and knows whether it is open."""

    all: dict[str, Port] = {}  # emptied by each test

    def __init__(self, reactor: Any, address: Address, factory: Any, what: str) -> None:
        self.factory = factory
        self.is_open = False
        Port.all[str(address)] = self

    def open(self) -> Any:
        self.is_open = True
        return SimpleNamespace(addErrback=lambda *_: None)

    def close(self) -> None:
        self.is_open = False


def host(*awaited_at: str) -> Any:
    """Return what has an image whose source asks at these addresses."""
    export = SimpleNamespace(name="")
    storage = SimpleNamespace(size=512, read_only=False)
    ownership = SimpleNamespace(awaited_at=awaited_at)
    return SimpleNamespace(export=export, storage=storage, ownership=ownership)


class ConfirmingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.patch(confirming, "ListeningPort", Port)
        Port.all = {}
        self.clock: Any = Clock()
        config = ServeConfig(
            places=(Address.tcp("127.0.0.1", 0),), exports=(ExportConfig("", "image"),)
        )
        self.factories = Factories(self.clock, config)

    def open(self, *hosts: Any, served_at: tuple[Address | None, ...] = ()) -> Confirming:
        found = Confirming(self.clock, hosts, self.factories)
        found.open(served_at)
        return found

    def opened(self) -> list[str]:
        return sorted(place for place, port in Port.all.items() if port.is_open)

    def test_nothing_is_opened_or_timed_where_nobody_is_awaited(self) -> None:
        self.open(host(), host())
        self.assertEqual((self.opened(), self.clock.getDelayedCalls()), ([], []))

    def test_where_the_server_serves_it_answers_anyway(self) -> None:
        self.open(host(HERE, THERE), served_at=(Address.tcp("127.0.0.1", 10810), None))
        self.assertEqual(self.opened(), [THERE])

    def test_each_address_is_left_once_nobody_is_awaited_there(self) -> None:
        one, other = host(HERE, THERE), host(HERE)
        answers = self.open(one, other)
        self.assertEqual(self.opened(), [HERE, THERE])
        one.ownership.awaited_at = ()
        answers.look()
        self.assertEqual(self.opened(), [HERE])
        other.ownership.awaited_at = ()
        answers.look()
        self.assertEqual(self.opened(), [])

    def test_it_is_over_after_a_while(self) -> None:
        self.open(host(HERE))
        self.clock.advance(CONFIRMING_SECONDS - 1)
        self.assertEqual(self.opened(), [HERE])
        self.clock.advance(1)
        self.assertEqual(self.opened(), [])

    def test_what_is_no_address_is_passed_over(self) -> None:
        self.open(host("nowhere", HERE))
        self.assertEqual(self.opened(), [HERE])

    def test_a_new_access_list_holds_there_too(self) -> None:
        self.open(host(HERE))
        factory = Port.all[HERE].factory
        self.assertIsNotNone(factory.buildProtocol(SimpleNamespace(host="192.0.2.1", port=1)))
        self.factories.set_acl(AccessList(["10.0.0.0/8"], default_deny=True))
        self.assertIsNone(factory.buildProtocol(SimpleNamespace(host="192.0.2.1", port=1)))

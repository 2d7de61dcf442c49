"""A serving address: it can be opened, closed for its next owner, and opened again."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory
from twisted.logger import Logger

from flexmigrate.config import Place
from flexmigrate.net.address import Address
from flexmigrate.net.endpoints import check_description, server_endpoint
from flexmigrate.service.rebind import Rebind, RebindCore, RebindMachine

log = Logger()


class ListeningPort:
    """An address with its factory.

    :param option: the option that gave *place*, for errors.
    :param what: the service that is offered there, for the log; empty for the images.
    :raises UsageError: *place* describes no endpoint.
    :ivar place: the place, with the port that the kernel chose, once it is known.
    :ivar rebind: the attempts to open an address that can't be opened yet, or None.
    """

    def __init__(
        self,
        reactor: Any,
        place: Place,
        factory: Factory,
        option: str = "--endpoint",
        what: str = "",
    ) -> None:
        if isinstance(place, str):
            check_description(reactor, place, option)
        self._reactor = reactor
        self._factory = factory
        self._port: IListeningPort | None = None
        self._rebinding: Rebind | None = None
        self._what = what
        self.place = place
        self.rebind: RebindCore | None = None

    @property
    def is_open(self) -> bool:
        """Whether clients can connect."""
        return self._port is not None

    @property
    def socket_path(self) -> str | None:
        """The path of the UNIX socket that clients can connect to, if it is one."""
        address = self.address
        return address.path if address is not None and address.is_unix else None

    @property
    def address(self) -> Address | None:
        """The address that clients can connect to, however it was given; None if it isn't open, or
        has no name.
        """
        port: Any = self._port
        return None if port is None else _address_of(port.getHost())

    def open(self) -> Deferred[None]:
        """Listen. Fails with CannotListenError or FlexmigrateError."""
        if self._port is not None:
            return succeed(None)
        return maybeDeferred(self._listen).addCallback(self._opened)

    def _listen(self) -> Deferred[IListeningPort]:
        listening: Deferred[IListeningPort] = server_endpoint(self._reactor, self.place).listen(
            self._factory
        )
        return listening

    def _opened(self, port: IListeningPort) -> None:
        self._port = port
        bound: Any = port.getHost()
        place = self.place
        if isinstance(place, Address) and not place.is_unix and not place.port:
            self.place = Address.tcp(place.host, bound.port)
        if self._what:
            log.info("{what} at {place}", what=self._what, place=shown(self.place, bound))
        else:
            log.info("listening on {place}", place=shown(self.place, bound))

    def open_persistently(self) -> Deferred[None]:
        """Listen, now or once a second until it works; fail only if it can't ever work."""
        self.rebind = RebindCore(self._reactor, self.open)
        self._rebinding = RebindMachine(self.rebind)
        self._rebinding.start()
        return self.rebind.bound

    def close(self) -> Deferred[None]:
        """Stop listening; connections go on. The address is free when this fires."""
        if self._rebinding is not None:
            self._rebinding.cancel()
            self._rebinding = None
        port, self._port = self._port, None
        if port is None:
            return succeed(None)
        if self._what:
            log.info("{what} no longer at {place}", what=self._what, place=self.place)
        else:
            log.info("no longer listening on {place}", place=self.place)
        # The caller may stop waiting, but must not cancel the closing: cancelling a port's
        # own Deferred leaves its socket open, and the address taken for ever.
        closed: Deferred[None] = Deferred(lambda given_up: None)
        stopping = maybeDeferred(port.stopListening)
        stopping.addErrback(lambda failure: log.failure("closing a port failed", failure))
        stopping.addBoth(lambda _: None if closed.called else closed.callback(None))
        return closed


def shown(place: Place, bound: Any) -> str:
    """Return the address of a place for the log, also if an endpoint's description gave it."""
    return str(place if isinstance(place, Address) else _address_of(bound) or "")


def _address_of(bound: Any) -> Address | None:
    """Return the address in a port's ``getHost``; None for a UNIX socket without a name."""
    if not isinstance(bound, UNIXAddress):
        return Address.tcp(bound.host, bound.port)
    return Address.unix(os.fsdecode(bound.name)) if bound.name else None

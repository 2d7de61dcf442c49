"""The intake of an image: it is opened, marked as incomplete, and given a state machine."""

from __future__ import annotations

from contextlib import ExitStack

from flexmigrate.config import ListenConfig
from flexmigrate.errors import ImageError
from flexmigrate.image.file import Opener
from flexmigrate.migration.destination.handover import DestinationHandover
from flexmigrate.migration.destination.machine import (
    FIRST_REQUEST_SECONDS,
    Destination,
    DestinationCore,
    DestinationMachine,
)
from flexmigrate.migration.destination.policy import ReceivingSession
from flexmigrate.migration.lock import OwnedLock
from flexmigrate.service.host import ImageHost
from flexmigrate.service.images import beyond_oldstyle
from flexmigrate.service.shell import Shell
from flexmigrate.wire.handover import State


class Intake:
    """The image of a destination, and its state machine.

    :param undo: closes the image, unless the caller takes that over.
    :raises ImageError: the image can't be opened, must not be overwritten, or is longer than can be
        received by the oldstyle handshake.
    :ivar lock: the migration lock.
    :ivar machine: its inputs.
    :ivar core: the data that all its states share.
    :ivar session: its policy for connections.
    :ivar factory: the factory of its source's connections.
    """

    def __init__(
        self, shell: Shell, config: ListenConfig, open_image: Opener, undo: ExitStack
    ) -> None:
        host = ImageHost(
            shell.reactor, shell.pool, config.file, name=config.export, open_image=open_image
        )
        undo.callback(host.discard)
        host.is_destination = True
        host.ownership.allows_old_peers = config.allow_old_peers
        refusal = host.ownership.image_state.to_receive()
        if refusal is not None:
            raise ImageError(refusal)
        if config.oldstyle and (text := beyond_oldstyle(host)) is not None:
            raise ImageError(f"{text} could not be received")
        if host.ownership.state is State.OWNER:
            host.trust_cache()  # it may be served, and isn't received
        # While it is received there is one sender: other connections could not be told from its
        # own.
        host.export.takes_several = False
        handover = DestinationHandover(
            host.storage, host.ownership, full_coverage=config.coverage == "full"
        )
        handover.read_only = config.read_only
        self.host = host
        self.lock = OwnedLock()
        self.core = DestinationCore(shell.reactor, host.export, handover)
        self.machine: Destination = DestinationMachine(self.core)
        self.session = ReceivingSession(
            shell.reactor, self.machine, self.core, self.lock, host.full_name, shell.instance
        )
        self.factory = shell.factories.for_source(host.export, self.session, FIRST_REQUEST_SECONDS)

    def expect(self) -> None:
        """Mark the image as incomplete.

        :raises ImageError: the marker can't be written.
        """
        self.core.handover.expect()
        self.host.ownership.tidy()

"""The servers, as services of ``twisted.application``, assembled from the packages below."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Any

from twisted.application.service import IService

from flexmigrate.config import ListenConfig, ServeConfig
from flexmigrate.image.file import Image, Opener
from flexmigrate.net.clock import use_monotonic_clock
from flexmigrate.service.descriptors import raise_limit
from flexmigrate.service.host import new_pool
from flexmigrate.service.images import Committed, open_images
from flexmigrate.service.in_doubt import InDoubt
from flexmigrate.service.intake import Intake
from flexmigrate.service.lifetime import Lifetime, exit_with_status_of
from flexmigrate.service.receiving import Receiving
from flexmigrate.service.serving import Serving
from flexmigrate.service.shell import Role, Shell
from flexmigrate.service.supervisor import Supervisor


def process_reactor() -> Any:
    """Return the reactor of this process, with a monotonic clock."""
    from twisted.internet import reactor

    use_monotonic_clock(reactor)
    return reactor


def make_service(config: ServeConfig | ListenConfig) -> IService:
    """Return a service for twistd, which makes the process exit with the server's status.

    :raises FlexmigrateError: the server can't be started.
    """
    reactor = process_reactor()
    raise_limit()
    lifetime = Lifetime(reactor, Supervisor(reactor, os.environ))
    exit_with_status_of(lifetime)
    return build(reactor, config, lifetime)


def build(
    reactor: Any,
    config: ServeConfig | ListenConfig,
    lifetime: Lifetime,
    pool: Any = None,
    open_image: Opener = Image.open,
) -> Shell:
    """Return the service that *config* describes, which ends by *lifetime*.

    :param pool: the threads for its images, not yet started; None for its own.
    :param open_image: opens its images, each with the disk of its records.
    :raises FlexmigrateError: the server can't be started.
    """
    shell = Shell(reactor, config, lifetime, pool or new_pool())
    with ExitStack() as undo:
        shell.become(_first_role(shell, config, open_image, undo))
        undo.pop_all()  # from here on stopService closes the images
    return shell


def _first_role(
    shell: Shell, config: ServeConfig | ListenConfig, open_image: Opener, undo: ExitStack
) -> Role:
    if isinstance(config, ListenConfig):
        return Receiving(shell, config, Intake(shell, config, open_image, undo))
    try:
        hosts = open_images(shell.reactor, shell.pool, config, open_image, undo)
    except Committed as committed:
        undo.callback(committed.host.discard)
        return InDoubt(shell, committed.host)
    return Serving(shell, hosts, config.places)

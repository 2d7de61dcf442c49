"""Everything below, assembled into services of ``twisted.application``."""

from __future__ import annotations

import os
from typing import Any

from twisted.application.service import IService

from flexmigrate.config import ListenConfig, ServeConfig
from flexmigrate.errors import FlexmigrateError
from flexmigrate.image.file import Image, Opener
from flexmigrate.net.clock import use_monotonic_clock
from flexmigrate.service.descriptors import raise_limit
from flexmigrate.service.host import ImageHost, new_pool
from flexmigrate.service.images import Committed, ServeService
from flexmigrate.service.in_doubt import SettleService
from flexmigrate.service.lifetime import Lifetime, exit_with_status_of
from flexmigrate.service.receiving import ListenService
from flexmigrate.service.supervisor import Supervisor


def process_reactor() -> Any:
    """Return the reactor of this process, with a clock that nobody can set."""
    from twisted.internet import reactor

    use_monotonic_clock(reactor)
    return reactor


def make_service(config: ServeConfig | ListenConfig) -> IService:
    """Return the service for twistd, whose process will exit with its status.

    :raises FlexmigrateError: what stands in its way.
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
) -> ServeService | ListenService | SettleService:
    """Return the service that *config* describes, which ends by *lifetime*.

    :param pool: the threads for its images, not yet started; None for its own.
    :param open_image: opens its images, and gives each the disk that its records are on.
    :raises FlexmigrateError: what stands in its way.
    """
    pool = pool or new_pool()
    if isinstance(config, ServeConfig):
        try:
            return ServeService(reactor, config, lifetime, pool, open_image)
        except Committed as committed:
            return _settle(reactor, committed.host, config, lifetime, pool)
    return ListenService(reactor, config, lifetime, pool, open_image)


def _settle(
    reactor: Any, host: ImageHost, config: ServeConfig, lifetime: Lifetime, pool: Any
) -> SettleService:
    try:
        return SettleService(reactor, host, config, lifetime, pool)
    except FlexmigrateError:
        host.image.close()
        raise

"""Opening of a server's images, with checks that it may serve them."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from twisted.logger import Logger

from flexmigrate.config import ExportConfig, ServeConfig
from flexmigrate.errors import FlexmigrateError, ImageError
from flexmigrate.image.file import Opener
from flexmigrate.migration.ownership.status import MayServe
from flexmigrate.service.host import DeviceHost, Host, ImageHost
from flexmigrate.wire.constants import SECTOR

log = Logger()


def beyond_oldstyle(host: Host) -> str | None:
    """Return the bytes that an oldstyle client can't see, in words; None if there are none."""
    left = host.size % SECTOR
    if not left:
        return None
    return (
        f"{host.storage.path} has {host.size} bytes, and --oldstyle tells of whole sectors of "
        f"{SECTOR} bytes: its last {left} bytes"
    )


class Committed(FlexmigrateError):
    """The image isn't served: its handover was committed, and its destination has to confirm it.

    :ivar host: the image, open.
    """

    def __init__(self, host: ImageHost) -> None:
        super().__init__(f"{host.storage.path} was handed over")
        self.host = host


def open_images(
    reactor: Any, pool: Any, config: ServeConfig, open_image: Opener, undo: ExitStack
) -> list[Host]:
    """Return the images of a server, each of them open and ours to serve.

    :param undo: closes those that were opened here; a device that is given is still the caller's.
    :raises Committed: the one image that is to be served was given away, and its destination has
        not confirmed that.
    :raises ImageError: an image can't be opened, is in use, or is an unfinished copy.
    """
    hosts: list[Host] = []
    for export in config.exports:
        if export.device is None:
            host: Host = _open_file(reactor, pool, config, export, open_image)
            undo.callback(host.discard)
        else:
            host = DeviceHost(
                reactor,
                pool,
                export.device,
                export.file,
                name=export.name,
                read_only=config.read_only,
            )
        hosts.append(host)
        if config.oldstyle and (text := beyond_oldstyle(host)) is not None:
            log.warn("{text} are not accessible", text=text)
    return hosts


def _open_file(
    reactor: Any, pool: Any, config: ServeConfig, export: ExportConfig, open_image: Opener
) -> ImageHost:
    host = ImageHost(
        reactor,
        pool,
        export.file,
        name=export.name,
        read_only=config.read_only,
        open_image=open_image,
    )
    host.ownership.allows_old_peers = config.allow_old_peers
    try:
        # Checked with the lock held: before, a migration into it could have been about to end.
        may, reason = host.ownership.image_state.to_serve()
        if may is MayServe.SETTLE and len(config.exports) > 1:
            reason += ", which has not confirmed it: 'serve' it alone, to have that settled"
        if may is MayServe.SETTLE and len(config.exports) == 1:
            raise Committed(host)
        if may is not MayServe.SERVE:
            raise ImageError(reason)
        host.trust_cache()
        if not config.read_only:
            host.ownership.tidy()
            _warn_of_writers(host)
        host.ownership.overlook()
    except ImageError:
        host.discard()
        raise
    return host


def _warn_of_writers(host: ImageHost) -> None:
    """Warn if an image that was read-only at its source becomes writable here."""
    record = host.ownership.record
    if record is not None and record.read_only:
        log.warn(
            "{path} was read-only where it came from ({place}), and clients may write to it "
            "here: say --read-only if they are not to",
            path=host.storage.path,
            place=record.other_side,
        )

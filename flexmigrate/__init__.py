"""Serve a disk image as a network block device, and move it to another host while it is used.

What stands in ``__all__`` is the library: it stays as it is, or changes with a word in the
CHANGELOG. Everything else may change at any time.

Nothing is imported before it is asked for: ``flexmigrate status`` has to answer before Twisted
could be imported, and no reactor is installed by this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flexmigrate.client import NBDClientProtocol, connect, connect_uri
    from flexmigrate.errors import CommandError, FlexmigrateError, ImageError, UsageError
    from flexmigrate.image.extents import Extent
    from flexmigrate.image.interfaces import IBlockDevice, IReadyBlockDevice
    from flexmigrate.migration.request import (
        Action,
        ConvergeConfig,
        HandoverRule,
        MirrorRequest,
        TLSConfig,
        VerifyRule,
    )
    from flexmigrate.net.address import Address
    from flexmigrate.net.clock import use_monotonic_clock
    from flexmigrate.service.embedding import (
        Ended,
        ExportService,
        ListenService,
        Migration,
        NeverServed,
        StartedBefore,
    )
    from flexmigrate.telemetry.history import Sample, Summary
    from flexmigrate.wire.client_options import ClientOptions

__version__ = "0.1.0"

__all__ = [
    "Action",
    "Address",
    "ClientOptions",
    "CommandError",
    "ConvergeConfig",
    "Ended",
    "ExportService",
    "Extent",
    "FlexmigrateError",
    "HandoverRule",
    "IBlockDevice",
    "IReadyBlockDevice",
    "ImageError",
    "ListenService",
    "Migration",
    "MirrorRequest",
    "NBDClientProtocol",
    "NeverServed",
    "Sample",
    "StartedBefore",
    "Summary",
    "TLSConfig",
    "UsageError",
    "VerifyRule",
    "connect",
    "connect_uri",
    "use_monotonic_clock",
]

_HOMES = {
    "flexmigrate.client": ("NBDClientProtocol", "connect", "connect_uri"),
    "flexmigrate.errors": ("CommandError", "FlexmigrateError", "ImageError", "UsageError"),
    "flexmigrate.image.extents": ("Extent",),
    "flexmigrate.image.interfaces": ("IBlockDevice", "IReadyBlockDevice"),
    "flexmigrate.migration.request": (
        "Action",
        "ConvergeConfig",
        "HandoverRule",
        "MirrorRequest",
        "TLSConfig",
        "VerifyRule",
    ),
    "flexmigrate.net.address": ("Address",),
    "flexmigrate.net.clock": ("use_monotonic_clock",),
    "flexmigrate.service.embedding": (
        "Ended",
        "ExportService",
        "ListenService",
        "Migration",
        "NeverServed",
        "StartedBefore",
    ),
    "flexmigrate.telemetry.history": ("Sample", "Summary"),
    "flexmigrate.wire.client_options": ("ClientOptions",),
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    for module, names in _HOMES.items():
        if name in names:
            found: object = getattr(import_module(module), name)
            globals()[name] = found
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

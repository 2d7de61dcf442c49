"""Tells twistd of ``flexmigrate``; everything else is in `flexmigrate.cli.twistd`."""

from twisted.application.service import ServiceMaker

flexmigrate = ServiceMaker(
    "flexmigrate",
    "flexmigrate.cli.twistd",
    "Serve a disk image over NBD, and migrate it to another host while it is used.",
    "flexmigrate",
)

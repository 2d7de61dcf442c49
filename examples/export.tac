"""An image, served by twistd: ``twistd -n -y export.tac``."""

import os

from twisted.application.service import Application
from twisted.internet import reactor

from flexmigrate import ExportService

application = Application("disk")
service = ExportService(
    reactor,
    {"disk": os.environ.get("DISK", "disk.img")},
    [os.environ.get("ENDPOINT", "tcp:10809:interface=127.0.0.1")],
)
service.setServiceParent(application)

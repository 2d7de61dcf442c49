"""The file that a migration's report is written to, without harm to what is there."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from flexmigrate.errors import CommandError
from flexmigrate.image import disk
from flexmigrate.telemetry.history import History, Summary
from flexmigrate.telemetry.report.document import as_json
from flexmigrate.telemetry.report.page import as_html
from flexmigrate.telemetry.report.subject import Subject


def check_report(path: str, images: Iterable[tuple[int, int]]) -> None:
    """Check that a report can be written to *path*, before the migration begins. Blocks.

    :param path: has one of `flexmigrate.telemetry.report.subject.SUFFIXES`.
    :param images: (device, inode) of each image that is served.
    :raises CommandError: it can't.
    """
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise CommandError(f"the report {path}: there is no folder {folder}")
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        raise CommandError(f"the report {path}: the server may not write to {folder}")
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise CommandError(f"the report {path}: {error.strerror}") from error
    if not stat.S_ISREG(there.st_mode):
        raise CommandError(f"the report {path}: that exists, and is not a regular file")
    if (there.st_dev, there.st_ino) in images:
        raise CommandError(f"the report {path}: that is the image")


class Keeper:
    """The writer of a migration's report to *path*; blocks.

    An existing report is replaced atomically.
    """

    def __init__(self, path: str, subject: Subject) -> None:
        self._path = path
        self._subject = subject

    def __call__(self, history: History, summary: Summary) -> None:
        """Write the report.

        :raises OSError: it can't be.
        """
        make = as_html if self._path.endswith(".html") else as_json
        disk.replace(disk.SYSTEM, self._path, make(self._subject, history, summary).encode())

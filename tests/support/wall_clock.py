"""The time of day, which a test can set while its processes run: by libfaketime.

Only the time of day: the monotonic clock stays true, as it does where somebody sets a host's clock.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

LIBRARIES = ("/usr/lib", "/usr/local/lib", "/usr/lib64")


class WallClock:
    """See the module; it's right until it is set.

    :ivar env: the environment of processes that go by it.
    """

    def __init__(self, folder: Path) -> None:
        found = [each for top in LIBRARIES for each in Path(top).rglob("faketime/libfaketime.so.1")]
        if not found:
            pytest.skip("libfaketime is not installed")
        self._file = folder / "clock"
        self.set(0)
        self.env = {
            "LD_PRELOAD": str(found[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, seconds: int) -> None:
        """Set it ahead by *seconds*, or back by as many below 0: compared with the true time."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        os.replace(new, self._file)

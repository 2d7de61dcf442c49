"""``make bench`` and ``make bench-migration``: flexmigrate beside the NBD servers of Debian.

Both measure with real processes and other projects' clients, one server at a time on the very same
image, and write what they found into ``docs/figures``. ``docs/performance.rst`` tells how to read
it. What they borrow from the tests (`support`) is the way to start processes, and a client that
shares no code with flexmigrate; from the demonstration, the screen.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The tests' shared code is not installed, and `python -m bench.serving` has to find it.
sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

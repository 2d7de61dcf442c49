"""What the doctor's tests start with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.processes import Children
from support.servers import Servers, servers_in


@pytest.fixture
def servers(tmp_path: Path, children: Children) -> Iterator[Servers]:
    """A source's image, a destination's, and what starts servers for them."""
    with servers_in(tmp_path, children) as pair:
        yield pair

"""What tests with other people's programs start with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.processes import Children
from support.programs import Programs, Served
from support.servers import Servers, servers_in


@pytest.fixture
def programs() -> Programs:
    """Run other people's programs."""
    return Programs()


@pytest.fixture
def servers(tmp_path: Path, children: Children) -> Iterator[Servers]:
    """A source's image, a destination's, and what starts servers for them."""
    with servers_in(tmp_path, children) as pair:
        yield pair


@pytest.fixture(params=["tcp", "unix", "oldstyle"])
def served(request: pytest.FixtureRequest, servers: Servers) -> Served:
    """Serve the image in each of the ways in which clients find it."""
    return Served(servers, request.param)


@pytest.fixture(params=["tcp", "unix"])
def newstyle(request: pytest.FixtureRequest, servers: Servers) -> Served:
    """Serve it to those who have to negotiate."""
    return Served(servers, request.param)

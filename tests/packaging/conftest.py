"""What the tests of units and packages start with."""

from __future__ import annotations

import pytest

from support.programs import Programs


@pytest.fixture
def programs() -> Programs:
    """Run other people's programs."""
    return Programs()

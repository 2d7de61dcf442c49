"""Migrations of real processes in bad weather: each ends with one image, which has every write."""

from __future__ import annotations

from pathlib import Path

import pytest

from storm.plans import plan, seeds
from storm.weather import Storm
from support.processes import Children


@pytest.mark.parametrize("seed", seeds())
def test_one_image_is_left_and_nothing_is_lost(
    seed: int, tmp_path: Path, children: Children
) -> None:
    drawn = plan(seed)
    print(f"{drawn}\nto repeat it: make storm STORM_SEED={seed}")
    with Storm(drawn, tmp_path, children) as storm:
        print(f"canonical: {storm.play()}")

"""How an image is let go of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.image.file import Image
from flexmigrate.service.host import ImageHost
from support.feeds import Bench
from support.images import blank_image


class Closing(SynchronousTestCase):
    def is_closed_by_a_thread(self, *, is_local: bool) -> bool:
        bench = Bench()
        self.addCleanup(bench.close)
        pool: Any = bench.pool
        closed: list[bool] = []  # whether a thread was at work

        class Watched(Image):
            def close(self) -> None:
                if not self.is_closed:
                    closed.append(is_at_work)
                super().close()

        def opened(path: str, *, read_only: bool = False) -> Image:
            image = Watched.open(path, read_only=read_only)
            image.is_local = is_local
            return image

        path = blank_image(Path(self.mktemp()), 4096)
        host = ImageHost(bench.reactor, pool, str(path), open_image=opened)
        pool.at_once = is_at_work = False
        ended = host.close()
        while pool.waiting:
            is_at_work = True
            pool.work()
            is_at_work = False
            bench.settle()
        self.successResultOf(ended)
        (by_a_thread,) = closed
        return by_a_thread

    def test_one_whose_daemon_is_asked_is_closed_by_a_thread(self) -> None:
        self.assertTrue(self.is_closed_by_a_thread(is_local=False))

    def test_any_other_is_closed_at_once(self) -> None:
        self.assertFalse(self.is_closed_by_a_thread(is_local=True))

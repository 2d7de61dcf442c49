"""The paths that docs/handover-path.rst draws are those that a handover takes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

from twisted.internet.error import ConnectionLost

import flexmigrate
from flexmigrate.wire.handover import State
from support.machines import state_of
from support.processes import TESTS
from support.scene import SceneCase

with mock.patch.object(sys, "path", [str(TESTS.parent / "docs"), *sys.path]):
    import paths

ROOT = f"{Path(flexmigrate.__file__).parent}{os.sep}"
DIRECT = "call"

# Three at each end, and the one that opens the serving address before COMMIT is answered.
MOST_FILES = 7


class Recorded:
    """What is called of a path's functions, from its first one on: each for the first time.

    :ivar calls: file, function, and the file of ours that was nearest on the stack.
    """

    def __init__(self, path: paths.Path) -> None:
        self._wanted = {(step.file, step.function) for step in path.steps}
        self._first = (path.steps[0].file, path.steps[0].function)
        self.calls: list[tuple[str, str, str | None]] = []
        self._seen: set[tuple[str, str]] = set()
        self._frames: list[FrameType] = []

    def during(self, work: Callable[[], Any]) -> None:
        before = sys.getprofile()
        sys.setprofile(self._profile)
        try:
            work()
        finally:
            sys.setprofile(before)

    def _profile(self, frame: FrameType, event: str, _: object) -> None:
        if event != "call":
            return
        name = frame.f_code.co_filename
        called = (name[len(ROOT) : -len(".py")], frame.f_code.co_name)
        if not name.startswith(ROOT) or called not in self._wanted or called in self._seen:
            return
        if any(frame is each for each in self._frames):
            return  # a coroutine goes on
        self._frames.append(frame)
        if self._seen or called == self._first:
            self._seen.add(called)
            self.calls.append((*called, _nearest(frame.f_back)))


def _nearest(frame: FrameType | None) -> str | None:
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(ROOT) and frame.f_code.co_name != "<lambda>":
            return name[len(ROOT) : -len(".py")]
        frame = frame.f_back
    return None


class PathTests(SceneCase):
    def check(self, name: str, recorded: Recorded) -> None:
        steps = paths.PATHS[name].steps
        found = [(file, function) for file, function, _ in recorded.calls]
        self.assertEqual(found, [(step.file, step.function) for step in steps])
        for step, (_, _, caller) in zip(steps, recorded.calls, strict=True):
            if step.how == DIRECT:
                self.assertEqual(caller, step.caller, step.function)
            if step.how == "message":
                self.assertNotEqual(caller, step.caller, step.function)

    def recorded(self, name: str) -> Recorded:
        return Recorded(paths.PATHS[name])

    def test_of_commit(self) -> None:
        scene, recorded = self.scene(), self.recorded("commit")
        scene.world.result_of(scene.mirror())
        recorded.during(scene.finish)
        self.check("commit", recorded)

    def test_of_a_source_that_asks_again(self) -> None:
        scene, recorded = self.scene(), self.recorded("again")
        migrating = scene.migrating

        def play() -> None:
            scene.world.result_of(scene.mirror())
            scene.world.run_until(lambda: state_of(migrating._source) == "confirming")
            connection = scene.migrations[-1]
            connection.cut(connection.server)  # COMMIT arrives, and its answer doesn't
            scene.finish()

        recorded.during(play)
        self.check("again", recorded)

    def test_of_a_serve_of_a_committed_image(self) -> None:
        scene, recorded = self.scene(), self.recorded("in-doubt")
        scene.world.result_of(scene.mirror())
        ownership = scene.migrating.host.ownership
        scene.world.run_until(lambda: ownership.state is State.COMMITTED)
        connection = scene.migrations[0]
        connection.freeze()
        scene.source.signal()
        scene.world.run_until(lambda: scene.source.is_over, 60)
        connection.server.lose(ConnectionLost())

        def play() -> None:
            scene.start_source()
            scene.world.run_until(lambda: scene.source.is_over, 60)

        recorded.during(play)
        self.assertEqual(scene.source.status, 0)
        self.check("in-doubt", recorded)

    def test_they_are_short(self) -> None:
        for name, path in paths.PATHS.items():
            self.assertLessEqual(len(path.files), MOST_FILES, name)

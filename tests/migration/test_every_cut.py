"""Migrations whose connection is cut, at any byte, while a client writes.

Whatever happens, one end has the image, and holds every write that was acknowledged. With the plain
handover, and only where the last message may have been lost, does the source end without knowing;
the copy at the destination is whole then. With a session it always comes to know.
"""

from __future__ import annotations

import os
import random
from collections import Counter

from flexmigrate.migration.ownership.resolve import CopyVerdict, judge
from flexmigrate.migration.ownership.status import ImageState, look
from flexmigrate.migration.request import Action, HandoverRule
from support.scene import Scene, SceneCase

BLOCK = 4096

# `make test` cuts at every fourth byte, and at every one at the end of a migration; `make simulate`
# at every one.
STEP = int(os.environ.get("CUT_STEP", "1"))

PLAIN_ENDS = (
    "kept, asked again",
    "kept, retried",
    "uncertain, not owned",
    "uncertain, owned",
    "moved",
)


SESSION_ENDS = ("kept, asked again", "kept, retried", "moved after a while", "moved")


class EveryCutTests(SceneCase):
    handover = HandoverRule.PLAIN
    ends_to_see = PLAIN_ENDS
    image = random.Random(3).randbytes(512)

    def setUp(self) -> None:
        super().setUp()
        self.ends: Counter[str] = Counter()

    def measure(self, action: Action, image: bytes, seed: int | None = None) -> dict[str, int]:
        """Return how many bytes arrive at each side in a migration that isn't cut."""
        scene = Scene(self.folder, image, seed=seed, handover=self.handover)
        scene.world.result_of(scene.mirror(action))
        scene.finish()
        self.assert_moved(scene)
        (connection,) = scene.migrations
        scene.close()
        return {
            "destination": connection.server.wire.arrived,
            "source": connection.client.wire.arrived,
        }

    def check(
        self, action: Action, side: str, at: int, image: bytes, seed: int | None = None
    ) -> None:
        """Cut once *at* bytes have arrived at *side*, and see who has the image."""
        scene = Scene(self.folder, image, seed=seed, handover=self.handover)
        scene.cut(side, at)
        asked = scene.mirror(action)
        answer: list[object] = []
        asked.addBoth(answer.append)
        scene.world.run_until(lambda: answer and scene.migrations[0].is_over)
        scene.world.settle()
        self.ends[self.judge(scene, action, answer[0])] += 1
        scene.close()

    def judge(self, scene: Scene, action: Action, answer: object) -> str:
        if scene.source.status == 1:
            # It doesn't know, and so must not serve. Nothing was lost: all had been sent.
            self.assertFalse(scene.serves)
            self.assertEqual(scene.faults(scene.destination_image), [])
            self.assertEqual(scene.source_image.exists(), action is not Action.UNLINK)
            return "uncertain, owned" if scene.owned else "uncertain, not owned"
        if not scene.serves:
            self.assertEqual(scene.source.status, 0)
            scene.finish()
            self.assert_moved(scene)
            self.assertEqual(scene.source_image.exists(), action is not Action.UNLINK)
            return "moved"
        self.assert_kept(scene)
        end = "kept, retried"
        if not scene.migrating.is_mirroring:
            end = "kept, asked again"
            self.assertNotEqual(answer, "Mirror started")
            self.assertIn("Mirror started", scene.world.result_of(scene.mirror(action)))
        scene.finish()
        self.assert_moved(scene)
        return end

    def check_all(self, action: Action, step: int = 1) -> None:
        for side, total in self.measure(action, self.image).items():
            for at in range(total + 2):
                if at % step == 0 or at > total - 64:
                    self.check(action, side, at, self.image)
        for end in self.ends_to_see:
            self.assertTrue(self.ends[end], f"never {end}: {self.ends}")

    def test_at_every_byte(self) -> None:
        self.check_all(Action.EXIT, step=STEP)

    def test_at_every_byte_of_the_end_with_unlink(self) -> None:
        self.check_all(Action.UNLINK, step=37)

    def test_in_any_order_of_all_that_happens(self) -> None:
        for seed in range(100):
            draw = random.Random(seed)
            image = bytearray(16 * BLOCK)
            for block in draw.sample(range(16), 5):
                image[block * BLOCK : (block + 1) * BLOCK] = draw.randbytes(BLOCK)
            action = draw.choice((Action.EXIT, Action.UNLINK))
            sides = self.measure(action, bytes(image), seed)
            side = draw.choice(list(sides))
            # Half of the cuts in the end, where most depends on them.
            last = draw.randrange(2 * 28) if draw.randrange(2) else draw.randrange(sides[side])
            self.check(action, side, sides[side] - last, bytes(image), seed)
        for end in self.ends_to_see[:-1]:
            self.assertTrue(self.ends[end], f"never {end}: {self.ends}")


class EveryCutWithASessionTests(EveryCutTests):
    handover = HandoverRule.SESSION
    ends_to_see = SESSION_ENDS

    def judge(self, scene: Scene, action: Action, answer: object) -> str:
        standings = [look(str(path)) for path in (scene.source_image, scene.destination_image)]
        self.check_journals(scene, *standings)
        if scene.serves:
            return super().judge(scene, action, answer)
        self.assertIn(scene.source.status, (None, 0))
        again = len(scene.migrations) > 1 or scene.source.status is None
        scene.finish()
        self.assert_moved(scene)
        self.assertEqual(scene.source_image.exists(), action is not Action.UNLINK)
        return "moved after a while" if again else "moved"

    def check_journals(self, scene: Scene, source: ImageState, destination: ImageState) -> None:
        """At any moment, both journals together name the one copy that counts."""
        here = judge(destination, source.record)
        if scene.serves:
            self.assertEqual(here.verdict, CopyVerdict.OTHER, here)
            self.assertEqual(judge(source, destination.record).verdict, CopyVerdict.THIS)
        else:
            self.assertEqual(here.verdict, CopyVerdict.THIS, here)
            self.assertEqual(judge(source, destination.record).verdict, CopyVerdict.OTHER)
            self.assertEqual(scene.faults(scene.destination_image), [])

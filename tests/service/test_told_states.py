"""Every state of both ends of a migration can be read by whoever operates it.

Migrations are run in memory, with faults, until their machines have been in every state. At the
entry of each, the operator's socket, a scrape and the page are asked.
"""

from __future__ import annotations

import errno
import json
import re
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError

from flexmigrate.control.server import COMMANDS
from flexmigrate.migration.destination.machine import DestinationCore
from flexmigrate.migration.request import Action, HandoverRule
from flexmigrate.migration.source.machine import Core
from flexmigrate.service.shell import Shell
from flexmigrate.telemetry.states import DestinationState, SourceState
from flexmigrate.web.document import Document
from flexmigrate.web.exposition import Exposition
from flexmigrate.wire.handover import State
from support.scene import SERVING, Scene, SceneCase

# Nobody can see it: the machine leaves it within the call that makes it.
UNSEEN = {SourceState.NEW}

# The states of the server that a destination becomes.
BECOME = (DestinationState.REBINDING, DestinationState.SERVING, DestinationState.FAILED)

ONE = re.compile(r'^flexmigrate_(migration|listening)_phase\{.*phase="(\w+)"\} 1\.0$', re.MULTILINE)


def answered(shell: Shell) -> dict[str, str]:
    """Return what ``status`` answers on the operator's socket."""
    answers: list[str] = []
    asked: Any = COMMANDS["status"]
    Deferred.fromCoroutine(asked(shell, [])).addCallback(answers.append)
    (answer,) = answers
    return dict(each.split("=", 1) for each in answer.split() if "=" in each)


def scraped(shell: Shell) -> dict[str, set[str]]:
    """Return the values of `phase` that a scrape has as 1, of each end."""
    text = b"".join(Exposition(shell._view).pieces()).decode()
    found: dict[str, set[str]] = defaultdict(set)
    for end, phase in ONE.findall(text):
        found[end].add(phase)
    return found


def page(shell: Shell) -> Any:
    """Return what the page in a browser is sent."""
    return json.loads("".join(Document(shell._view, "test").pieces()))


class ToldStates(SceneCase):
    def setUp(self) -> None:
        super().setUp()
        self.told: set[SourceState | DestinationState] = set()
        self.scenes: list[Scene] = []
        self._enter(Core, self._tell_of_source)
        self._enter(DestinationCore, self._tell_of_destination)

    def _enter(self, core: type[Any], tell: Any) -> None:
        entered = core.enter

        def enter(core: Any, state: Any) -> None:
            entered(core, state)
            tell(core, state)

        self.patch(core, "enter", enter)

    def _tell_of_source(self, core: Core, state: SourceState) -> None:
        shell = self.scenes[-1].source.service
        status, metrics = answered(shell), scraped(shell)
        self.assertEqual(status["migration_state"], state.label)
        self.assertEqual(status["migration_phase"], state.phase)
        self.assertEqual(metrics["migration"], {state.label, state.phase})
        if not state.is_over:
            self.assertEqual(page(shell)["migrations"][0]["status"]["migration_state"], state.label)
        self.told.add(state)

    def _tell_of_destination(self, core: DestinationCore, state: DestinationState) -> None:
        shell = self.scenes[-1].destination.service
        status = answered(shell)
        self.assertEqual(status["listening_state"], state.label)
        self.assertEqual(status["listening_phase"], state.phase)
        self.assertEqual(scraped(shell)["listening"], {state.label, state.phase})
        self.assertEqual(page(shell)["exports"][0]["listening_state"], state.label)
        self.told.add(state)

    def _tell_of_server(self, shell: Shell) -> None:
        """What the destination has become is no state of its machine."""
        label = answered(shell).get("listening_state")
        state = next((each for each in BECOME if each.label == label), None)
        if state is not None and state not in self.told:
            self.assertEqual(scraped(shell)["listening"], {state.label, state.phase})
            self.assertEqual(page(shell)["exports"][0]["listening_state"], state.label)
            self.told.add(state)

    def scene(self, **more: Any) -> Scene:
        made = super().scene(**more)
        self.scenes.append(made)
        for server in (made.source, made.destination):
            # A view tells of the pool, too, which is none here.
            vars(server.service.pool).update(max=0, busy=0, shares=SimpleNamespace(queued=0))
        made.world.every(1, lambda: self._tell_of_server(made.destination.service))
        return made

    # What happens

    def move(self) -> None:
        """By a session, without a fault."""
        scene = self.scene()
        scene.reach("copying")
        scene.finish()
        scene.close()

    def move_plainly(self) -> None:
        scene = self.scene(handover=HandoverRule.PLAIN)
        scene.reach("copying")
        scene.finish()
        scene.close()

    def cut_in_mid_copy(self) -> None:
        scene = self.scene()
        scene.reach("copying")
        scene.migrations[0].cut()
        scene.finish()
        scene.close()

    def cut_at_commit(self) -> None:
        """Before COMMIT is answered; the source asks until it is."""
        scene = self.scene()
        scene.reach("settling")
        source = scene.migrating.host.ownership
        scene.world.run_until(lambda: source.state is State.COMMITTED)
        scene.migrations[0].cut()
        scene.finish()
        scene.close()

    def copy(self) -> None:
        scene = self.scene()
        scene.world.result_of(scene.mirror(Action.NOTHING))
        scene.world.run_until(lambda: not scene.migrating.is_mirroring, 600)
        scene.close()

    def end_the_destination(self) -> None:
        scene = self.scene()
        scene.reach("copying")
        scene.destination.signal()
        scene.world.run_until(lambda: scene.destination.is_over, 60)
        scene.close()

    def serve_where_no_address_can_be(self) -> None:
        """The serving address of the destination can't ever be opened."""
        scene = self.scene()
        listen = scene.destination_machine.listenTCP

        def refuse(port: int, *more: Any, **others: Any) -> Any:
            if port == SERVING.port:
                error = OSError(errno.EAFNOSUPPORT, "Address family not supported")
                raise CannotListenError(SERVING.host, port, error)
            return listen(port, *more, **others)

        scene.destination_machine.listenTCP = refuse  # type: ignore[method-assign]
        scene.reach("copying")
        scene.world.run_until(lambda: scene.destination.is_over, 600)
        self._tell_of_server(scene.destination.service)
        scene.close()

    def test_all(self) -> None:
        for happens in (
            self.move,
            self.move_plainly,
            self.cut_in_mid_copy,
            self.cut_at_commit,
            self.copy,
            self.end_the_destination,
            self.serve_where_no_address_can_be,
        ):
            happens()
        missing = {*SourceState, *DestinationState} - self.told - UNSEEN
        self.assertEqual({each.name for each in missing}, set())

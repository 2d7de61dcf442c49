from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.errors import FlexmigrateError
from flexmigrate.net.unix_socket import SocketPathError
from flexmigrate.service.rebind import (
    RETRY_SECONDS,
    Rebind,
    RebindCore,
    RebindMachine,
    error_number,
)
from support.machines import states, undeclared

PASSING = (
    errno.EADDRINUSE,
    errno.EADDRNOTAVAIL,
    errno.EACCES,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOBUFS,
    errno.ENOMEM,
)


def cannot_listen(number: int) -> CannotListenError:
    return CannotListenError("192.0.2.1", 10809, OSError(number, "no"))


class Scene:
    """A rebind whose tries end as the test says."""

    def __init__(self, listen: Callable[[], Any] | None = None) -> None:
        self.clock = Clock()
        self.tries: list[Deferred[None]] = []
        self.core = RebindCore(self.clock, listen or self._listen)
        self.rebind = RebindMachine(self.core)

    def _listen(self) -> Deferred[None]:
        self.tries.append(Deferred())
        return self.tries[-1]


class RebindTests(SynchronousTestCase):
    def test_tries_at_once(self) -> None:
        scene = Scene()
        self.assertEqual(scene.tries, [])
        scene.rebind.start()
        self.assertEqual(len(scene.tries), 1)
        self.assertNoResult(scene.core.bound)
        scene.tries[0].callback(None)
        self.assertIsNone(self.successResultOf(scene.core.bound))
        self.assertEqual((scene.core.tries, scene.core.error), (1, None))
        self.assertEqual(scene.clock.getDelayedCalls(), [])

    def test_tries_once_a_second_while_the_cause_may_pass(self) -> None:
        scene = Scene()
        scene.rebind.start()
        for count, number in enumerate(PASSING, start=1):
            self.assertEqual(scene.core.tries, count)
            error = cannot_listen(number) if count % 2 else OSError(number, "no")
            scene.tries[-1].errback(error)
            self.assertIn("no", str(scene.core.error))
            scene.clock.advance(RETRY_SECONDS * 0.99)
            self.assertEqual(len(scene.tries), count)
            scene.clock.advance(RETRY_SECONDS * 0.02)
        scene.tries[-1].callback(None)
        self.successResultOf(scene.core.bound)
        self.assertEqual(scene.core.tries, len(PASSING) + 1)
        self.assertIsNone(scene.core.error)

    def test_gives_up_at_once_when_it_can_not_pass(self) -> None:
        hopeless: list[Exception] = [
            cannot_listen(number) for number in errno.errorcode if number not in PASSING
        ]
        for error in (*hopeless, FlexmigrateError("no errno"), ValueError("a bug")):
            scene = Scene()
            scene.rebind.start()
            scene.tries[0].errback(error)
            self.assertIs(self.failureResultOf(scene.core.bound).value, error)
            self.assertEqual(scene.clock.getDelayedCalls(), [])

    def test_gives_up_after_a_while_if_it_becomes_hopeless(self) -> None:
        scene = Scene()
        scene.rebind.start()
        scene.tries[0].errback(cannot_listen(errno.EADDRINUSE))
        scene.clock.advance(RETRY_SECONDS)
        scene.tries[1].errback(cannot_listen(errno.EAFNOSUPPORT))
        self.failureResultOf(scene.core.bound, CannotListenError)

    def test_works_where_listening_answers_at_once(self) -> None:
        answers = [fail(cannot_listen(errno.EADDRINUSE)), succeed(None)]
        scene = Scene(lambda: answers.pop(0))
        scene.rebind.start()
        scene.clock.advance(RETRY_SECONDS)
        self.successResultOf(scene.core.bound)

    def test_an_error_that_is_raised_is_an_answer_too(self) -> None:
        def listen() -> Any:
            raise cannot_listen(errno.EADDRNOTAVAIL)

        scene = Scene(listen)
        scene.rebind.start()
        scene.clock.advance(RETRY_SECONDS)
        self.assertEqual(scene.core.tries, 2)

    def test_a_unix_socket_that_is_in_use_may_become_free(self) -> None:
        self.assertEqual(
            error_number(SocketPathError("in use", errno.EADDRINUSE)), errno.EADDRINUSE
        )
        self.assertIsNone(error_number(SocketPathError("no socket")))


class CancelTests(SynchronousTestCase):
    def assert_over(self, scene: Scene, tries: int) -> None:
        scene.rebind.cancel()  # again: harmless
        scene.clock.advance(10 * RETRY_SECONDS)
        self.assertEqual(len(scene.tries), tries)
        self.assertEqual(scene.clock.getDelayedCalls(), [])

    def test_before_the_start(self) -> None:
        scene = Scene()
        scene.rebind.cancel()
        self.assert_over(scene, 0)
        self.assertNoResult(scene.core.bound)

    def test_in_a_try(self) -> None:
        scene = Scene()
        scene.rebind.start()
        scene.rebind.cancel()
        self.assert_over(scene, 1)
        self.assertNoResult(scene.core.bound)

    def test_in_a_try_that_ends_all_the_same(self) -> None:
        ends: tuple[Callable[[Deferred[Any]], None], ...] = (
            lambda d: d.callback(None),
            lambda d: d.errback(cannot_listen(errno.EADDRINUSE)),
            lambda d: d.errback(cannot_listen(errno.EAFNOSUPPORT)),
        )
        for end in ends:
            scene = Scene()
            scene.core.listen = partial(Deferred, end)
            scene.rebind.start()
            scene.rebind.cancel()
            self.assert_over(scene, 0)
            self.assertNoResult(scene.core.bound)

    def test_between_two_tries(self) -> None:
        scene = Scene()
        scene.rebind.start()
        scene.tries[0].errback(cannot_listen(errno.EADDRINUSE))
        scene.rebind.cancel()
        self.assert_over(scene, 1)
        self.assertNoResult(scene.core.bound)

    def test_afterwards(self) -> None:
        scene = Scene()
        scene.rebind.start()
        scene.tries[0].callback(None)
        self.assert_over(scene, 1)
        self.successResultOf(scene.core.bound)

        scene = Scene()
        scene.rebind.start()
        scene.tries[0].errback(CancelledError())
        self.assert_over(scene, 1)
        self.failureResultOf(scene.core.bound, CancelledError)


TRY_IS_OVER = "only a try says so, and there is one in trying, and a late one in cancelled"
UNREACHABLE: dict[str, tuple[str, set[str]]] = {
    "start": ("who makes a rebind starts it, once", states(RebindMachine) - {"new"}),
    "_try": ("its timer exists only in waiting", states(RebindMachine) - {"waiting"}),
    "_bound": (TRY_IS_OVER, {"new", "waiting", "bound", "hopeless"}),
    "_failed": (TRY_IS_OVER, {"new", "waiting", "bound", "hopeless"}),
    "_hopeless": (TRY_IS_OVER, {"new", "waiting", "bound", "hopeless"}),
}


class TableTests(SynchronousTestCase):
    def test_every_pair_is_declared_or_has_a_reason_not_to_be(self) -> None:
        explained = {(state, name) for name, (_, where) in UNREACHABLE.items() for state in where}
        self.assertEqual(undeclared(RebindMachine, Rebind), explained)

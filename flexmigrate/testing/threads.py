"""Stand-ins for a pool of threads: a job is done when the world comes to it, or by its caller."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.task import Clock
from twisted.python.failure import Failure

from flexmigrate.testing.world import Lane, World

if TYPE_CHECKING:
    from flexmigrate.testing.machine import Machine


class Threads:
    """A stand-in for a ThreadPool: each job is one thing that happens.

    With a seed, jobs that wait at the same time are done in any order; without, one by one.
    """

    def __init__(self, world: World, owner: Machine | None = None) -> None:
        self._world = world
        self._owner = owner
        self._lane = Lane(world, owner)

    def start(self) -> None:
        """As ThreadPool has it."""

    def stop(self) -> None:
        """As ThreadPool has it."""

    def callInThreadWithCallback(  # noqa: N802  # as ThreadPool has it
        self,
        done: Callable[[bool, Any], object],
        job: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Do *job*, and tell *done* whether it succeeded, and its result."""
        lane = self._lane if self._world.random is None else _OneThread(self._world, self._owner)
        lane.add(lambda: run_job(done, job, *args, **kwargs))


class _OneThread(Lane):
    """A lane for one job."""

    def step(self) -> None:
        self.close()
        super().step()


class InlineThreads:
    """A stand-in for a ThreadPool: each job is done at once, by the caller."""

    def callInThreadWithCallback(  # noqa: N802  # as ThreadPool has it
        self,
        done: Callable[[bool, Any], object],
        job: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Do *job*, and tell *done* whether it succeeded, and its result."""
        run_job(done, job, *args, **kwargs)


class InlineClock(Clock):
    """A clock that is reactor enough for :class:`InlineThreads`."""

    def callFromThread(self, call: Callable[..., object], *args: Any) -> None:  # noqa: N802
        """As IReactorFromThreads has it: there is only one thread."""
        call(*args)


def run_job(
    done: Callable[[bool, Any], object], job: Callable[..., Any], *args: Any, **kwargs: Any
) -> None:
    """Do *job* as a thread of a ThreadPool would."""
    try:
        result = job(*args, **kwargs)
    except Exception:  # noqa: BLE001  # whatever it is, it is the answer
        done(False, Failure())
    else:
        done(True, result)

"""What every test gets: no logged error goes unseen, and no child process outlives its test.

With pytest-xdist (``-n``) each of its processes has a reactor of its own. Tests are marked `alone`
that measure, and would measure the others, too: nothing else of the run happens meanwhile.
"""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Generator, Iterator
from typing import Any

import hypothesis
import pytest
import pytest_twisted  # type: ignore[import-untyped]  # it has none
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase, TestCase

from flexmigrate.image import places
from support.certificates import PKI
from support.failures import LoggedFailures, overheard
from support.ports import held_port
from support.processes import Children
from support.turns import turn


def _wait(test_case: TestCase, result: Deferred[Any], running: Any = None) -> None:
    """Wait for *result* in the reactor that pytest-twisted runs."""
    settled: Deferred[None] = Deferred()
    result.addBoth(lambda _: settled.callback(None))
    pytest_twisted.blockon(settled)


# A reactor runs once. trial's own way is to run it for each test, and that fails as soon as a test
# of pytest-twisted's has begun to; so here the tests of both are run in the latter's.
TestCase._wait = _wait  # type: ignore[method-assign]  # trial has no other place for it


# Where CI is set, pytest shows differences in full, and to find how two images differ takes it
# minutes.
os.environ.pop("CI", None)

# The servers that tests start are compiled once, not each time: a third of the time that one takes
# to start. An installed one isn't compiled each time either.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Records of devices are kept in a folder that outlives the host: not those of tests. (pytest-xdist
# gives its workers the environment of the process that started them.)
if "PYTEST_XDIST_WORKER" not in os.environ:
    state = tempfile.mkdtemp(prefix="flexmigrate-tests-state-")
    os.environ[places.VARIABLE] = state
    atexit.register(shutil.rmtree, state, ignore_errors=True)

# A shell has what it starts in the background, or after `trap ''`, ignore these, and so would every
# server that a test starts.
for ignorable in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(ignorable) is signal.SIG_IGN:
        usual = signal.default_int_handler if ignorable == signal.SIGINT else signal.SIG_DFL
        signal.signal(ignorable, usual)

# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile(
    "busy machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("busy machine")


# Those that take a minute or more come first: at the end, the others would have nothing to do.
LONG = ("simulation/", "storm/", "migration/test_every_cut.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that take long."""
    items.sort(key=lambda item: not any(f"tests/{each}" in item.nodeid for each in LONG))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Wait for the test's turn, where there are others."""
    if not hasattr(item.config, "workerinput"):
        return (yield)
    factory: pytest.TempPathFactory = item.config._tmp_path_factory  # type: ignore[attr-defined]
    with turn(factory.getbasetemp().parent, alone=item.get_closest_marker("alone") is not None):
        return (yield)


def pytest_collection_finish() -> None:
    """Spare the collector, which runs after every test, all that importing has made."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def logged_failures(request: pytest.FixtureRequest) -> Iterator[LoggedFailures]:
    """Fail the test if an error was logged; one that expects an error clears the list."""
    with overheard() as seen:
        yield seen
        if isinstance(request.instance, SynchronousTestCase):
            seen.clear()  # trial has looked, and knows what the test flushed


@pytest.fixture(autouse=True)
def trial_folders(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have trial's ``mktemp`` make its folders where pytest makes its own: trial takes the working
    directory, which under its own runner is a temporary one.
    """
    if isinstance(request.instance, SynchronousTestCase):
        folders: pytest.TempPathFactory = request.getfixturevalue("tmp_path_factory")
        monkeypatch.setattr(
            request.instance, "mktemp", lambda: str(folders.mktemp("trial") / "temp")
        )


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> PKI:
    """Make the certificates of two authorities, once."""
    return PKI(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def port() -> Iterator[int]:
    """Hold a port of 127.0.0.1 that is the test's own."""
    with held_port() as held:
        yield held


@pytest.fixture
def children() -> Iterator[Children]:
    """Start processes; at the end all are ended, and what they said is shown if the test failed."""
    with Children() as family:
        yield family

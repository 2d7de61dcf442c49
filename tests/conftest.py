"""What every test gets: no logged error goes unseen, and no child process outlives its test."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted  # type: ignore[import-untyped]  # it has none
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase, TestCase

from support.certificates import PKI
from support.failures import LoggedFailures, overheard
from support.processes import Children


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


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> PKI:
    """Make the certificates of two authorities, once."""
    return PKI(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def children() -> Iterator[Children]:
    """Start processes; at the end all are ended, and what they said is shown if the test failed."""
    with Children() as family:
        yield family

"""The guard around every test: what was only logged is raised, and what was expected is not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase

from support.failures import LoggedFailures, overheard


@pytest.fixture
def heard_outside(logged_failures: LoggedFailures) -> Iterator[None]:
    """Errors are logged on purpose, and the guard around every test hears them as well."""
    yield
    logged_failures.clear()


class Mishap(Exception):
    pass


def log_a_mishap() -> None:
    try:
        raise Mishap("the floor is wet")
    except Mishap:
        Logger().failure("someone slipped")


@pytest.mark.usefixtures("heard_outside")
def test_a_logged_failure_is_raised_with_its_traceback() -> None:
    with pytest.raises(AssertionError, match=r"someone slipped(.|\n)*log_a_mishap(.|\n)*wet"):  # noqa: SIM117
        with overheard():
            log_a_mishap()


@pytest.mark.usefixtures("heard_outside")
def test_a_failure_in_a_dropped_deferred_is_raised() -> None:
    with pytest.raises(AssertionError, match="nobody asked"):  # noqa: SIM117
        with overheard():
            Deferred[None]().errback(Mishap("nobody asked"))


@pytest.mark.usefixtures("heard_outside")
def test_what_was_expected_and_cleared_is_not_raised() -> None:
    with overheard() as seen:
        log_a_mishap()
        assert len(seen) == 1
        seen.clear()


def test_ordinary_log_lines_are_none_of_its_business() -> None:
    with overheard() as seen:
        Logger().error("a client sent nonsense")
    assert seen == []


class TrialLooksForItself(SynchronousTestCase):
    def test_an_error_that_a_trial_test_flushes_is_not_raised_again(self) -> None:
        log_a_mishap()
        self.assertEqual(len(self.flushLoggedErrors(Mishap)), 1)

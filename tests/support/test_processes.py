"""Child processes as the tests see them: their lines, their end, and the story told on failure."""

from __future__ import annotations

import os
import signal
import tempfile

import pytest

from flexmigrate.image import places
from support.processes import Children, run, script

WAITS_FOR_EVER = "import signal; print('ready', flush=True); signal.pause()"


def test_a_line_is_found_on_either_stream_whether_already_said_or_still_to_come(
    children: Children,
) -> None:
    child = children.python(
        "-c", "import sys; print('one'); print('two 2', file=sys.stderr); print('three')"
    )
    assert child.wait_for(r"two (\d)")[1] == "2"
    child.expect_exit(0)
    child.wait_for("one")
    assert sorted(child.lines) == ["one", "three", "two 2"]


def test_a_line_that_does_not_come_in_time_is_an_error_that_tells_what_was_said(
    children: Children,
) -> None:
    child = children.python("-c", WAITS_FOR_EVER)
    child.wait_for("ready")
    with pytest.raises(AssertionError, match=r"not within 0\.1 s(.|\n)*running(.|\n)*ready"):
        child.wait_for("steady", timeout=0.1)


def test_waiting_for_a_line_stops_when_the_process_ends(children: Children) -> None:
    child = children.python("-c", "print('sorry'); raise SystemExit(3)")
    with pytest.raises(AssertionError, match=r"it ended first(.|\n)*sorry"):
        child.wait_for("listening")


def test_an_unexpected_exit_status_is_an_error_that_tells_both(children: Children) -> None:
    child = children.python("-c", "print('sorry'); raise SystemExit(3)")
    with pytest.raises(AssertionError, match=r"exit status 3, not 0(.|\n)*sorry"):
        child.expect_exit(0)


def test_an_end_by_a_signal_is_an_exit_status_of_minus_its_number(children: Children) -> None:
    child = children.python("-c", WAITS_FOR_EVER)
    child.wait_for("ready")
    child.send(signal.SIGTERM)
    child.expect_exit(-signal.SIGTERM)


def test_a_process_that_does_not_end_in_time_is_an_error(children: Children) -> None:
    child = children.python("-c", WAITS_FOR_EVER)
    with pytest.raises(AssertionError, match=r"still running after 0\.1 s"):
        child.wait(timeout=0.1)


def test_none_is_left_behind() -> None:
    with Children() as family:
        child = family.python("-c", WAITS_FOR_EVER)
        child.wait_for("ready")
    assert not child.running


@pytest.mark.parametrize(
    ("line", "address"),
    [
        ("listening on 127.0.0.1:10809", ("127.0.0.1", 10809)),
        ("serving a.img, listening on [::1]:4", ("::1", 4)),
        ("listening on /run/a.sock", ("/run/a.sock", 0)),
    ],
)
def test_the_address_is_read_from_the_line_that_tells_it(
    children: Children, line: str, address: tuple[str, int]
) -> None:
    assert children.python("-c", f"print({line!r})").listening() == address


def test_a_program_run_to_its_end_gives_its_bytes_and_status() -> None:
    program = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read()[::-1]); sys.exit(4)"
    done = run(script("python"), "-c", program, stdin=b"\x00\xff1")
    assert (done.returncode, done.stdout) == (4, b"1\xff\x00")


def test_a_program_that_runs_too_long_is_an_error() -> None:
    with pytest.raises(AssertionError, match="still running"):
        run(script("python"), "-c", WAITS_FOR_EVER, timeout=0.5)


def test_records_of_devices_are_kept_away_from_those_of_this_host(children: Children) -> None:
    child = children.python("-c", "import os; print('in', os.environ['FLEXMIGRATE_STATE_DIR'])")
    folder = child.wait_for(r"in (\S+)")[1]
    assert folder.startswith(tempfile.gettempdir())
    assert places.aside("/dev/none", os.stat(__file__)).startswith(f"{folder}/devices/")

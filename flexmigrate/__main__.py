"""The command ``flexmigrate``, and ``python -m flexmigrate``.

Until the command line is looked at, SIGINT does what it does by default: Python would tell a person
who presses Ctrl-C which module it was just importing.
"""

from __future__ import annotations

import signal


def run() -> int:
    """Carry out the process's command line; return the exit status."""
    python_s = signal.getsignal(signal.SIGINT)
    if python_s is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from flexmigrate.cli.main import main

    try:
        signal.signal(signal.SIGINT, python_s)
        return main()
    except KeyboardInterrupt:
        return 1


if __name__ == "__main__":
    raise SystemExit(run())

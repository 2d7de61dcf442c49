"""A destination that says hello, and sends the source SIGTERM."""

from __future__ import annotations

import argparse
import os
import signal

from support.scripted_destination import Sender, arguments, play


def fault(sender: Sender, options: argparse.Namespace) -> None:
    sender.say_hello()
    sender.first_write()  # so that the migration has begun for the source, too
    os.kill(int(options.pid), signal.SIGTERM)
    sender.wait_for_end()


if __name__ == "__main__":
    play(fault, arguments(__doc__, "pid"))

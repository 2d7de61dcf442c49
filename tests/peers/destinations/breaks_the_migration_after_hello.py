"""A destination that says hello, and sees to it that the source's operator says `break`."""

from __future__ import annotations

import argparse
from pathlib import Path

from support.operator import ask
from support.scripted_destination import Sender, arguments, play


def fault(sender: Sender, options: argparse.Namespace) -> None:
    sender.say_hello()
    sender.first_write()  # so that the migration has begun for the source, too
    code, text = ask(Path(options.sock), "break")
    print(f"break was answered {code}: {text}", flush=True)
    sender.wait_for_end()


if __name__ == "__main__":
    play(fault, arguments(__doc__, "sock"))

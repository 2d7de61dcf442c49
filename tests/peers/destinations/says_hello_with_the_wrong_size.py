"""A destination that has 512 bytes less than the source."""

from __future__ import annotations

import argparse

from support.scripted_destination import Sender, arguments, play


def fault(sender: Sender, options: argparse.Namespace) -> None:
    sender.say_hello(size=sender.size - 512)
    sender.wait_for_end()


if __name__ == "__main__":
    play(fault, arguments(__doc__))

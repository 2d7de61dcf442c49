"""A destination whose hello begins with one wrong letter."""

from __future__ import annotations

import argparse

from support.scripted_destination import Sender, arguments, play


def fault(sender: Sender, options: argparse.Namespace) -> None:
    sender.say_hello_badly(b"NBDMAGIK")
    sender.wait_for_end()


if __name__ == "__main__":
    play(fault, arguments(__doc__))

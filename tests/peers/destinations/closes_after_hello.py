"""A destination that says hello and goes away."""

from __future__ import annotations

import argparse

from support.scripted_destination import Sender, arguments, play


def fault(sender: Sender, options: argparse.Namespace) -> None:
    sender.say_hello()
    print("closed after hello", flush=True)


if __name__ == "__main__":
    play(fault, arguments(__doc__))

"""A destination that accepts a connection and never says a word."""

from __future__ import annotations

import argparse

from support.scripted_destination import Sender, arguments, play


def fault(sender: Sender, options: argparse.Namespace) -> None:
    sender.wait_for_end()


if __name__ == "__main__":
    play(fault, arguments(__doc__))

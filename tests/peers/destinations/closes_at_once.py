"""A destination that accepts a connection and closes it before it says hello."""

from __future__ import annotations

import argparse

from support.scripted_destination import Sender, arguments, play


def fault(sender: Sender, options: argparse.Namespace) -> None:
    print("closed at once", flush=True)


if __name__ == "__main__":
    play(fault, arguments(__doc__))

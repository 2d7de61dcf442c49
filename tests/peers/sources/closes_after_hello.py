"""A source that comes to an agreement and goes away."""

from __future__ import annotations

from support.scripted_source import arguments, connected

if __name__ == "__main__":
    connected(arguments(__doc__)).close()
    print("closed after hello", flush=True)

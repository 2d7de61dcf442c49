"""``python -m demo``: move an image that is in use, and say whether anything was lost.

The exit status is 0 if every acknowledged write is in the destination's image and nothing else was
changed, 1 if not, 130 after Ctrl-C. All files are in a temporary folder (`TMPDIR` says where),
which is removed at the end, unless something went wrong: then its name is the last line.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from demo.play import MIB, Failed, Figures, Play
from demo.scenery import Scenery, build
from demo.screen import Screen

# What a gigabit link carries, in MiB a second: without a limit, loopback is too fast to watch.
GIGABIT = 119


def main() -> int:
    """Play it once; return the exit status."""
    options = _options()
    screen = Screen(sys.stdout)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="flexmigrate-demo-"))
    try:
        _perform(options, screen, folder)
    except KeyboardInterrupt:
        _finish_undisturbed()
        screen.note("interrupted")
        shutil.rmtree(folder)
        return 130
    except (Failed, OSError, subprocess.CalledProcessError) as error:
        screen.note(f"FAILED: {error}\nWhat there is to look at was kept: {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="demo", description="Move an image that is in use.")
    parser.add_argument("--data", type=int, default=256, help="MiB in use in the image")
    parser.add_argument(
        "--max-mib", type=int, default=GIGABIT, help="MiB a second to send at most; 0: no limit"
    )
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="to write before the migration, and after it"
    )
    return parser.parse_args()


def _perform(options: argparse.Namespace, screen: Screen, folder: Path) -> None:
    screen.progress("making an image with a filesystem")
    scenery = build(folder, options.data * MIB)
    size = scenery.original.stat().st_size
    screen.note(
        f"an image of {size // MIB} MiB, with an ext4 filesystem that holds {scenery.files:,} files"
    )
    with Play(scenery, screen, options.max_mib * MIB, options.seconds) as play:
        try:
            figures = play.run()
        except Failed:
            (folder / "story.txt").write_text("\n\n".join(child.story() for child in play.cast))
            raise
        finally:
            _finish_undisturbed()
    screen.table(_rows(figures, scenery, options.max_mib))


def _finish_undisturbed() -> None:
    """Let a second Ctrl-C not keep us from ending our processes and removing our files."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _rows(figures: Figures, scenery: Scenery, limit: int) -> list[tuple[str, str]]:
    size = scenery.original.stat().st_size
    limited = f" (limited to {limit})" if limit else ""
    return [
        ("bytes sent", f"{figures.sent / MIB:.1f} MiB, for an image of {size / MIB:.0f} MiB"),
        ("passes", f"{figures.passes}, and the rest while clients were parked"),
        ("throughput", f"{figures.rate} MiB/s{limited}"),
        ("clients parked", f"{figures.parked * 1000:.0f} ms"),
        ("longest wait", f"{figures.wait * 1000:.0f} ms, as the client saw it"),
        ("writes verified", f"{figures.writes:,}, in {figures.blocks:,} blocks"),
        ("reads verified", f"{figures.reads:,}, over {figures.connections} connections"),
        ("filesystem", f"clean (e2fsck), {scenery.files:,} files"),
        ("verdict", "every acknowledged write is there, and nothing else has changed"),
    ]


if __name__ == "__main__":
    sys.exit(main())

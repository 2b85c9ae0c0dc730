"""``python -m training.demo --home DIR``: makes the demo model and says how far it is."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from baton.clock import Clock, SystemClock
from baton.errors import BatonError
from baton.process import die_with_parent
from training.demo.build import build_demo_model

_EVERY_S = 2.0


def printer(clock: Clock, write: Callable[[str], object]) -> Callable[[str, float], None]:
    """A progress callback that writes a new line of work at once, and its steps every 2 s."""
    last_s = float("-inf")
    kind = ""

    def show(text: str, done: float) -> None:
        nonlocal last_s, kind
        now_s, new = clock.monotonic_s(), text.split(",")[0]
        if new != kind or now_s - last_s >= _EVERY_S:
            last_s, kind = now_s, new
            write(f"{done:4.0%}  {text}\n")

    return show


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m training.demo", description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="folder to keep the model in")
    options = parser.parse_args(arguments)
    die_with_parent(signal.SIGKILL)

    def write(line: str) -> None:
        sys.stderr.write(line)
        sys.stderr.flush()

    try:
        folder = build_demo_model(options.home, progress=printer(SystemClock(), write))
    except BatonError as error:
        write(f"error: {error.message}\n")
        return 1
    sys.stdout.write(f"{folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

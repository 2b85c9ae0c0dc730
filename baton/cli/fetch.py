"""``python -m baton.cli.fetch HUB-ID --home DIR``: fetches a model in a process of its own.

Hub libraries cannot be interrupted half-way and keep their memory; a process can be stopped, and
gives it back. It says on stdout how far it is, a line at a time; the last line is
``model FOLDER``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
from pathlib import Path

from baton.errors import BatonError
from baton.models import resolve_model
from baton.process import die_with_parent

RESULT = "model "
"""What the line with the folder begins with."""

_SAY_S = 2.0


def main() -> int:
    """Fetches; 2 means that it could not, and stderr says why."""
    parser = argparse.ArgumentParser(prog="baton.cli.fetch")
    parser.add_argument("source")
    parser.add_argument("--home", type=Path, required=True)
    given = parser.parse_args()
    die_with_parent(signal.SIGKILL)
    # Bars are drawn for people; we count bytes instead.
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    done = threading.Event()
    threading.Thread(target=_tell, args=(given.source, done), daemon=True).start()
    try:
        folder = resolve_model(given.source, home=given.home)
    except BatonError as error:
        sys.stderr.write(f"{error.message}\n")
        return 2
    finally:
        done.set()
    sys.stdout.write(f"{RESULT}{folder}\n")
    return 0


def _tell(source: str, done: threading.Event) -> None:
    while not done.wait(_SAY_S):
        sys.stdout.write(f"{fetched_bytes(source) / 1e6:,.0f} MB on disk\n")
        sys.stdout.flush()


def fetched_bytes(source: str) -> int:
    """Bytes of the model in the hub's cache so far; 0 where that cannot be told."""
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        return 0
    total = 0
    blobs = Path(HF_HUB_CACHE) / f"models--{source.replace('/', '--')}" / "blobs"
    with contextlib.suppress(OSError):
        for path in blobs.iterdir():
            with contextlib.suppress(OSError):
                # Downloads may reserve their whole length first; blocks tell what is there.
                total += path.stat().st_blocks * 512
    return total


if __name__ == "__main__":
    sys.exit(main())

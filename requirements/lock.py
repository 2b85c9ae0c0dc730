"""Writes ``requirements/cpu.lock``: every package of a CPU machine for development, pinned.

    python requirements/lock.py

Asks pip to resolve the extras ``router``, ``cpu-worker``, ``kubernetes``, ``training``,
``benchmarks`` and ``dev`` from nothing, then leaves out what must not be there:

- torchvision, torchaudio and torchcodec, which vLLM's CPU build asks for: their public builds
  need CUDA libraries and break transformers at import.
- triton, which compiles for GPUs.
- nixl-cu12: without a GPU, NIXL takes the cu13 build of itself; one of the two is enough.

So the lock is installed with ``--no-deps``: it is complete, and pip must not add them again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
LOCK = FOLDER / "cpu.lock"
EXTRAS = "router,cpu-worker,kubernetes,training,benchmarks,dev"
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec", "triton", "nixl-cu12", "baton-serving"}
HEADER = """\
# All packages of a CPU machine for development, tests included. Made by requirements/lock.py;
# install with --no-deps. torch needs its CPU build: where pip does not find it, see README.md.
"""


def main() -> None:
    """Resolves, filters, writes."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"),
                *("--ignore-installed", "--report", str(report)),
                *(f"{FOLDER.parent}[{EXTRAS}]", "torch==2.13.0+cpu"),
            ],
            check=True,
        )
        installs = json.loads(report.read_text())["install"]
    pins = {
        item["metadata"]["name"].lower().replace("_", "-"): item["metadata"]["version"]
        for item in installs
    }
    lines = [f"{name}=={pins[name]}" for name in sorted(pins) if name not in LEFT_OUT]
    LOCK.write_text(HEADER + "\n".join(lines) + "\n")
    print(f"{LOCK.name}: {len(lines)} packages")


if __name__ == "__main__":
    main()

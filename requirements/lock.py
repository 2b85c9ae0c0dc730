"""Writes the lock files: every package of a machine or an image, pinned.

    python requirements/lock.py [NAME ...]

Without names all of them, in this order:

- ``cpu.lock``: a CPU machine for development, tests included.
- ``router.lock``, ``controller.lock``, ``bench.lock``, ``worker-cpu.lock``: what is installed in
  those images, with the versions of ``cpu.lock``, so that what runs is what was tested.
- ``worker-gpu.lock``, ``training.lock``: with CUDA; resolved by themselves.
- ``build.lock``: what compiles and packs Baton in an image's first stage.

Asks pip to resolve from nothing, then leaves out what must not be there:

- torchvision, torchaudio and torchcodec, which vLLM's CPU build asks for: their public builds
  need CUDA libraries and break transformers at import.
- triton, which compiles for GPUs, on a CPU.
- nixl-cu12: NIXL takes the cu13 build of itself where it can; one of the two is enough.

So a lock is installed with ``--no-deps``: it is complete, and pip must not add them again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
CPU_TORCH = "torch==2.13.0+cpu"
# Three equals signs: two would take the CPU build as well.
CUDA_TORCH = "torch===2.13.0"
NEVER = frozenset({"baton-serving", "nixl-cu12"})
NOT_ON_CPU = NEVER | {"torchvision", "torchaudio", "torchcodec", "triton"}


@dataclass(frozen=True)
class Lock:
    """One file.

    Attributes:
        about: what it is for, in its head.
        extras: of Baton; none for requirements alone.
        more: further requirements.
        left_out: names that are not written.
        as_cpu: with the versions of ``cpu.lock``.
    """

    about: str
    extras: str = ""
    more: tuple[str, ...] = ()
    left_out: frozenset[str] = NEVER
    as_cpu: bool = True


LOCKS = {
    "cpu": Lock(
        "All packages of a CPU machine for development, tests included.",
        "router,cpu-worker,kubernetes,training,benchmarks,dev",
        (CPU_TORCH,),
        NOT_ON_CPU,
        as_cpu=False,
    ),
    "router": Lock("The image of the router.", "router,kubernetes"),
    "controller": Lock("The image of the controller.", "kubernetes"),
    "bench": Lock("The image of the load generator.", "benchmarks"),
    "worker-cpu": Lock(
        "The image of a worker without a GPU.", "cpu-worker", (CPU_TORCH,), NOT_ON_CPU
    ),
    "worker-gpu": Lock(
        "The image of a worker with GPUs.", "gpu-worker", (CUDA_TORCH,), as_cpu=False
    ),
    "training": Lock("The image of the training stage.", "training", (CUDA_TORCH,), as_cpu=False),
    "build": Lock(
        "What compiles Baton's hot modules and packs its wheel.",
        more=("build", "editables", "hatchling", "mypy", "setuptools", "types-PyYAML"),
    ),
}
HEADER = """\
# {about} Made by requirements/lock.py;
# install with --no-deps.{torch}
"""
TORCH = " torch needs its CPU build: where pip does not find it, see README.md."


def main() -> None:
    """Resolves, filters, writes."""
    for name in sys.argv[1:] or LOCKS:
        if name not in LOCKS:
            sys.exit(f"no lock is called {name}; there are: {', '.join(LOCKS)}")
        write(name, LOCKS[name])


def write(name: str, lock: Lock) -> None:
    """One file."""
    wanted = [*([f"{FOLDER.parent}[{lock.extras}]"] if lock.extras else []), *lock.more]
    if lock.as_cpu:
        wanted += ["-c", str(FOLDER / "cpu.lock")]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"),
                *("--ignore-installed", "--report", str(report), *wanted),
            ],
            check=True,
        )
        installs = json.loads(report.read_text())["install"]
    pins = {
        item["metadata"]["name"].lower().replace("_", "-"): item["metadata"]["version"]
        for item in installs
    }
    lines = [f"{pin}=={pins[pin]}" for pin in sorted(pins) if pin not in lock.left_out]
    header = HEADER.format(about=lock.about, torch=TORCH if CPU_TORCH in lock.more else "")
    (FOLDER / f"{name}.lock").write_text(header + "\n".join(lines) + "\n")
    print(f"{name}.lock: {len(lines)} packages")


if __name__ == "__main__":
    main()

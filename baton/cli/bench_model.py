"""The model for benchmarks on machines without GPUs: random, of useful size, made in seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from baton.errors import ModelError

RANDOM_100M = "random-100m"
_TIMEOUT_S = 300.0


def benchmark_model(home: Path, say: Callable[[str], None]) -> Path:
    """The folder of ``random-100m`` in Baton's home; made if it is not there.

    In a child process, which takes its torch with it when it is done.

    Raises:
        ModelError: it cannot be made; with what the child said.
    """
    folder = home / "models" / RANDOM_100M
    if (folder / "config.json").is_file() and (folder / "model.safetensors").is_file():
        return folder
    say(f"making {RANDOM_100M}, a random model of about 100 million parameters")
    scratch = folder.with_name(f".{RANDOM_100M}.{os.getpid()}")
    scratch.parent.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, "-m", "training.random_model", str(scratch)]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ModelError(f"{RANDOM_100M} could not be made: {error}") from error
    if done.returncode != 0:
        raise ModelError(f"{RANDOM_100M} could not be made:\n{done.stderr[-2000:]}")
    scratch.rename(folder)
    return folder

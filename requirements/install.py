"""Makes the project's own environment, ``.venv``, and keeps it equal to the lock file.

    python3 requirements/install.py

Needs Python 3.11 or later and nothing else. Called by ``make``; a second run sees that nothing has
changed and returns at once. Progress is printed while it works.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOCK = ROOT / "requirements" / "cpu.lock"
STAMP = VENV / "installed-from"
TICK_S = 3.0


def main() -> int:
    """Returns the exit status."""
    wanted = fingerprint()
    if STAMP.exists() and STAMP.read_text() == wanted:
        return 0
    if sys.version_info < (3, 11):  # noqa: UP036 (this is where people learn of it)
        return fail(
            f"Python 3.11 or later is needed, this is {sys.version.split()[0]}. "
            "Say which one to use: make PYTHON=/path/to/python3.11"
        )
    try:
        make_venv()
        python = str(VENV / "bin" / "python")
        pip = [python, "-m", "pip", "--disable-pip-version-check"]
        count = sum(1 for line in LOCK.read_text().splitlines() if line and line[0] != "#")
        run_counting(
            [*pip, "install", "--no-deps", "--progress-bar", "off", "-r", str(LOCK)], count
        )
        with ticking("installing the checkout itself"):
            run([*pip, "install", "-q", "--no-deps", "--no-build-isolation", "-e", str(ROOT)])
    except subprocess.CalledProcessError as error:
        return fail(explain(error.output or ""))
    STAMP.write_text(wanted)
    say(f"environment ready in {VENV.relative_to(ROOT)}")
    return 0


def fingerprint() -> str:
    """What the environment is made from; a change of any of it means to install again."""
    digest = hashlib.sha256()
    for path in (LOCK, ROOT / "pyproject.toml"):
        digest.update(path.read_bytes())
    return f"{digest.hexdigest()} {ROOT}\n"


def make_venv() -> None:
    """Makes ``.venv``, with the system's help where Debian ships Python without ensurepip."""
    if (VENV / "bin" / "python").exists() and not runs([str(VENV / "bin" / "python"), "-m", "pip"]):
        shutil.rmtree(VENV)
    if (VENV / "bin" / "python").exists():
        return
    with ticking("making .venv"):
        if runs([sys.executable, "-m", "venv", str(VENV)]):
            return
        shutil.rmtree(VENV, ignore_errors=True)
        if os.geteuid() == 0 and shutil.which("apt-get"):
            say("this Python cannot make environments; installing python3-venv with apt-get")
            run(["apt-get", "update", "-qq"])
            run(["apt-get", "install", "-y", "-qq", "python3-venv"])
        run([sys.executable, "-m", "venv", str(VENV)])


def run_counting(argv: Sequence[str], count: int) -> None:
    """Runs pip and prints how far it is, at least every few seconds."""
    began = time.monotonic()
    seen = 0
    with ticking("installing packages into .venv") as set_text:
        process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        assert process.stdout is not None
        output: list[str] = []
        for line in process.stdout:
            output = [*output[-200:], line]
            if re.match(r"\s*(Collecting|Processing|Requirement already)", line):
                seen += 1
                set_text(f"fetching packages: {min(seen, count)} of {count}")
            elif line.startswith("Installing collected"):
                set_text(f"unpacking {count} packages")
        if process.wait() != 0:
            raise subprocess.CalledProcessError(process.returncode, argv, output="".join(output))
    say(f"{count} packages in {time.monotonic() - began:.0f} s")


@contextmanager
def ticking(text: str) -> Iterator[Callable[[str], None]]:
    """Says every few seconds that ``text`` is still going on."""
    current = [text]

    def set_text(new: str) -> None:
        current[0] = new

    stop = threading.Event()
    began = time.monotonic()

    def tick() -> None:
        while not stop.wait(TICK_S):
            say(f"{current[0]}, {time.monotonic() - began:.0f} s")

    say(text)
    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield set_text
    finally:
        stop.set()
        thread.join()


def run(argv: Sequence[str]) -> None:
    """Runs a command quietly; its output comes with the error if it fails."""
    subprocess.run(argv, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def runs(argv: Sequence[str]) -> bool:
    """Whether a command succeeds."""
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def explain(output: str) -> str:
    """The end of a failed command's output, and what to do where that is known."""
    tail = "\n".join(output.strip().splitlines()[-15:])
    if re.search(r"(No matching distribution|find a version).*torch==", output):
        tail += (
            "\n\nPyTorch's CPU build was not found. Tell pip where PyTorch publishes it, for "
            "example: make up PIP_EXTRA_INDEX_URL=<the CPU index on PyTorch's install page>"
        )
    elif "ensurepip" in output:
        tail += "\n\nInstall Debian's package python3-venv, then run the same command again."
    return tail


def say(text: str) -> None:
    """One line of progress."""
    print(f"[setup] {text}", flush=True)


def fail(text: str) -> int:
    """Prints an error; returns the exit status for it."""
    print(f"[setup] error: {text}", file=sys.stderr, flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())

"""``baton up`` as a person uses it: ready, tried, stopped; and nothing is left."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.stack import MODEL, PROFILE, free_port, is_alive, wait_until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


class Up:
    """One ``baton up`` and what it started."""

    def __init__(self, folder: Path, home: Path, *args: str) -> None:
        self.folder = folder
        self.home = home
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.out = folder / "out.txt"
        self.argv = [
            *(sys.executable, "-m", "baton.cli", "up", "--port", str(self.port), *args),
            *("--worker-port", str(free_port()), "--side-channel-port", str(free_port())),
            *("--home", str(home)),
        ]
        self.env = {**os.environ, "TMPDIR": str(folder / "tmp"), "BATON_DEVICE": "cpu"}
        (folder / "tmp").mkdir()
        self.pids: set[int] = set()

    def start(self, timeout_s: float = 400) -> None:
        with self.out.open("wb") as out:
            self.process = subprocess.Popen(
                self.argv, stdout=out, stderr=subprocess.STDOUT, env=self.env
            )
        wait_until(f"up:\n{self.text()}", self.is_ready, timeout_s=timeout_s)
        parent = psutil.Process(self.process.pid)
        self.pids = {parent.pid, *(child.pid for child in parent.children(recursive=True))}

    def text(self) -> str:
        return self.out.read_text("utf-8", "replace") if self.out.exists() else ""

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.text()
        return "Stop it with Ctrl-C" in self.text()

    def kill_all(self) -> None:
        for pid in self.pids | {self.process.pid}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(timeout=10)


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A temporary folder with a short path, since socket paths have a limit."""
    folder = Path(tempfile.mkdtemp(prefix="up-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def up(model: Path) -> Iterator[Up]:
    """Not started yet."""
    with short_folder() as folder:
        profile = folder / "e2e.yaml"
        profile.write_text(PROFILE)
        args = ("--profile", str(profile), "--model", str(model), "--served-name", MODEL)
        running = Up(folder, folder / "home", *args)
        try:
            yield running
        finally:
            if hasattr(running, "process"):
                running.kill_all()


def leftovers(up: Up) -> list[str]:
    """Processes, socket files and temporary files that are still there."""
    found = [f"process {pid}" for pid in up.pids if is_alive(pid)]
    return found + [str(path) for path in (up.folder / "tmp").rglob("*")]


def unix_sockets() -> set[str]:
    """Paths of all bound Unix sockets of the machine."""
    lines = Path("/proc/net/unix").read_text().splitlines()[1:]
    return {parts[7] for line in lines if len(parts := line.split()) > 7}


def shared_memory() -> set[str]:
    """Names of the machine's shared-memory segments."""
    return {path.name for path in Path("/dev/shm").iterdir()}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_up_serves_and_leaves_nothing(up: Up, number: signal.Signals) -> None:
    """The printed curl line works when pasted; after Ctrl-C or SIGTERM there is no process, no
    socket file, no shared-memory segment, no temporary file."""
    sockets, memory = unix_sockets(), shared_memory()
    up.start()
    (line,) = re.findall(r"^\s*(curl .*)$", up.text(), re.MULTILINE)
    shown = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60)
    assert "x-baton-path: local" in shown.stdout
    assert '"finish_reason"' in shown.stdout
    assert len(up.pids) >= 6
    up.process.send_signal(number)
    assert up.process.wait(timeout=60) == 0, up.text()
    # Other processes of the machine may make some, and take them away again.
    wait_until("all processes and files are gone", lambda: not leftovers(up), timeout_s=10)
    wait_until("no socket is left", lambda: not unix_sockets() - sockets, timeout_s=10)
    wait_until("no shared memory is left", lambda: not shared_memory() - memory, timeout_s=10)
    assert not (up.home / "run" / "up.json").exists()
    with pytest.raises(httpx.ConnectError):
        httpx.get(up.url + "/healthz", timeout=2)


def test_nothing_outlives_a_killed_up(up: Up) -> None:
    """SIGKILL to ``baton up`` itself: the workers, the router and the engines end by themselves."""
    up.start()
    up.process.kill()
    up.process.wait(timeout=5)
    began = time.monotonic()
    wait_until(
        "all processes have ended",
        lambda: not any(is_alive(pid) for pid in up.pids),
        timeout_s=60,
    )
    assert time.monotonic() - began < 60

"""The installations that a comparison starts: each is a ``baton up`` of its own, as a user's.

Between its blocks a stack can be parked: its workers and engines are stopped in their tracks
(SIGSTOP), so that what one arm is measured with is not shared with the idle loops of another.
The ``baton up`` process and its router go on: should this process die, they still end the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import aiohttp
import msgspec
import psutil

from baton.errors import EngineStartError
from baton.process import Child
from baton.secrets import cluster_token
from benchmarks.compare.arms import ArmSpec

_STOP_GRACE_S = 60.0
_POLL_S = 0.2
_READY_AFTER_RESUME_S = 60.0


@dataclass(frozen=True, slots=True)
class StackSettings:
    """How stacks are started.

    Attributes:
        model: folder or hub id that replaces the profile's model; None leaves it.
        cpu_threads: compute threads of each engine; None leaves it to ``baton up``.
        timeout_s: until all must be ready.
        log_level: of their log files.
    """

    model: str | None
    cpu_threads: int | None
    timeout_s: float
    log_level: str = "warning"


class Stack:
    """One running profile.

    Args:
        arm: what to start.
        home: its own folder: logs, cluster token.
        settings: how.
        say: told of progress, one sentence at a time.
    """

    def __init__(
        self, arm: ArmSpec, home: Path, settings: StackSettings, say: Callable[[str], None]
    ) -> None:
        self._arm = arm
        self._home = home
        self._settings = settings
        self._say = say
        self._child: Child | None = None
        self._parked: list[psutil.Process] = []
        self.url = ""
        self.token = ""

    async def start(self) -> None:
        """Starts it and waits until it has proved that it serves.

        Raises:
            EngineStartError: it did not come up; the message has the end of what it said.
        """
        began = time.monotonic()
        self._home.mkdir(parents=True, exist_ok=True)
        note = self._home / "run" / "up.json"
        note.unlink(missing_ok=True)
        self._child = Child(f"up-{self._arm.name}", self._argv(), self._env(), on_line=_nowhere)
        await self._child.start()
        end = asyncio.create_task(self._child.wait())
        try:
            while True:
                if end.done():
                    self._fail(f"ended with status {end.result()}")
                state = _read_note(note)
                if state.get("state") == "ready":
                    self.url = str(state["router"])
                    break
                if time.monotonic() - began > self._settings.timeout_s:
                    self._fail(f"was not ready after {self._settings.timeout_s:g} s")
                await asyncio.wait({end}, timeout=_POLL_S)
        finally:
            end.cancel()
            await asyncio.gather(end, return_exceptions=True)
        self.token = cluster_token(self._home, {})
        self._say(f"{self._arm.name} is ready after {time.monotonic() - began:.0f} s")

    def _argv(self) -> list[str]:
        assert self._arm.profile_ref is not None
        reference = self._arm.profile_ref
        if "/" in reference or reference.endswith((".yaml", ".yml")):
            reference = str(Path(reference).expanduser().resolve())
        argv = [sys.executable, "-m", "baton.cli", "up", "--profile", reference]
        argv += ["--home", str(self._home), "--log-level", self._settings.log_level]
        argv += ["--timeout", str(self._settings.timeout_s)]
        if self._settings.model is not None:
            argv += ["--model", self._settings.model]
        if self._settings.cpu_threads is not None:
            argv += ["--cpu-threads", str(self._settings.cpu_threads)]
        return argv

    def _env(self) -> dict[str, str]:
        kept = ("BATON_DEVICE", "BATON_NODE_NAME")
        env = {k: v for k, v in os.environ.items() if not k.startswith("BATON_") or k in kept}
        return {**env, "PYTHONUNBUFFERED": "1"}

    def _fail(self, what: str) -> NoReturn:
        tail = "\n".join(self._child.tail[-15:]) if self._child else ""
        raise EngineStartError(
            f"{self._arm.name} {what}; its logs are in {self._home / 'logs'}\n{tail}"
        )

    def park(self) -> None:
        """Stops all its workers and engines where they are.

        Raises:
            EngineStartError: it ended while it was measured.
        """
        assert self._child is not None
        assert self._child.pid is not None
        try:
            self._parked = _workers_below(self._child.pid)
        except psutil.NoSuchProcess:
            self._fail("ended while it was measured")
        for process in self._parked:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGSTOP)

    async def resume(self) -> None:
        """Lets them go on, and waits until the router counts all as ready.

        Raises:
            EngineStartError: they do not come back.
        """
        self._continue()
        deadline = time.monotonic() + _READY_AFTER_RESUME_S
        async with aiohttp.ClientSession() as session:
            while not await self._all_ready(session):
                if self._child is None or self._child.returncode is not None:
                    self._fail("ended while it was parked")
                if time.monotonic() > deadline:
                    self._fail("did not become ready again after it was parked")
                await asyncio.sleep(_POLL_S)

    def _continue(self) -> None:
        # Engines before the workers that watch them.
        for process in reversed(self._parked):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
        self._parked = []

    async def _all_ready(self, session: aiohttp.ClientSession) -> bool:
        assert self._arm.profile is not None
        wanted = sum(pool.replicas for pool in self._arm.profile.spec.pools.by_role.values())
        headers = {"Authorization": f"Bearer {self.token}"}
        try:
            async with session.get(
                f"{self.url}/admin/status",
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=5),
            ) as response:
                status = msgspec.json.decode(await response.read())
        except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError):
            return False
        ready = [
            entry
            for entry in status.get("workers", ())
            if entry["record"]["state"] == "ready" and not entry["suspect"]
        ]
        return len(ready) >= wanted

    async def stop(self) -> None:
        """Ends it and everything below it."""
        self._continue()
        if self._child is not None:
            await self._child.stop(grace_s=_STOP_GRACE_S)
            self._child = None


def _nowhere(_line: str) -> None:
    """What ``baton up`` prints; its last lines are kept by the child itself."""


def _read_note(path: Path) -> dict[str, Any]:
    try:
        note = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError):
        return {}
    return note if isinstance(note, dict) else {}


def _workers_below(pid: int) -> list[psutil.Process]:
    """Worker processes below ``baton up``, each before its engines; not the router."""
    found: list[psutil.Process] = []
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.cmdline()[1:3] != ["-m", "router"]:
                found += [child, *child.children(recursive=True)]
    return found

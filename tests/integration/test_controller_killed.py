"""The controller as a process of its own, killed at random points of a switch, under load.

``BATON_CONTROLLER_KILLS`` says how often (default 4); ``-s`` prints the table.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

from deploy.lws import labels
from tests.fakes.waiting import until
from tests.integration.controller_cluster import (
    NAMESPACE,
    ONE,
    PLURAL,
    TOKENS,
    TWO,
    World,
    keys_of,
    world,
)

KILLS = int(os.environ.get("BATON_CONTROLLER_KILLS", "4"))
SEED = int(os.environ.get("BATON_CONTROLLER_SEED", "6"))
PATIENCE_S = 60.0


class Process:
    """``baton controller``, started anew whenever it was killed."""

    def __init__(self, w: World, log: Path) -> None:
        self._w = w
        self._log = log
        self._spawner: asyncio.subprocess.Process | None = None
        self._pid = 0
        self._started = ""

    async def start(self) -> None:
        assert self._spawner is not None
        assert self._spawner.stdin is not None
        assert self._spawner.stdout is not None
        self._spawner.stdin.write(b"start\n")
        self._started = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        self._pid = int(await self._spawner.stdout.readline())

    async def kill(self) -> None:
        """SIGKILL: nothing is given back, nothing is ended."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """SIGTERM, once it acts: it gives the Lease back."""
        await until(self._acts, timeout_s=PATIENCE_S)
        await self._end(signal.SIGTERM)

    def _acts(self) -> bool:
        """Whether the last one has renewed the Lease."""
        lease = self._w.api.get("leases", NAMESPACE, "baton-controller") or {}
        renewed = str(lease.get("spec", {}).get("renewTime", ""))
        return renewed > self._started

    async def _end(self, number: signal.Signals) -> None:
        assert self._runs(), self._log.read_text()[-3000:]
        os.kill(self._pid, number)
        await until(lambda: not self._runs(), timeout_s=PATIENCE_S)

    def _runs(self) -> bool:
        return Path(f"/proc/{self._pid}").exists()

    @contextlib.asynccontextmanager
    async def going(self) -> AsyncIterator[None]:
        assert self._w.c.server.admin is not None
        with self._log.open("ab") as log:
            self._spawner = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.integration.controller_spawner"),
                *("--admin", self._w.c.server.admin.url, "--namespace", NAMESPACE),
                *("--identity", "controller-0", "--health-port", "0"),
                *("--retire", "300ms", "--settle", "600ms"),
                *("--poll", "300ms", "--busy-poll", "100ms"),
                env={**os.environ, **TOKENS, "KUBECONFIG": str(self._w.kubeconfig)},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        await self.start()
        try:
            yield
        finally:
            if self._runs():
                os.kill(self._pid, signal.SIGKILL)
            self._spawner.kill()
            await self._spawner.wait()


def stage(w: World, target: str) -> str:
    """How far the way to a profile is, as an onlooker sees it."""
    switch = w.c.state.conductor.agreed.switch
    if switch is not None:
        return f"switch: {switch.phase}"
    keys = keys_of(target)
    active = not w.unfinished(target).startswith("the routers")
    found = w.api.all(PLURAL, NAMESPACE)
    has = {lws["metadata"]["labels"][labels.POOL] for lws in found if lws["spec"]["replicas"]}
    if not active:
        made = len(has & set(keys.values()))
        return "pools start" if made == len(keys) else f"{made} of {len(keys)} pools made"
    if not w.unfinished(target):
        return "done"
    if has - set(keys.values()):
        marked = [lws for lws in found if DRAINING in lws["metadata"].get("annotations", {})]
        left = len(has - set(keys.values()))
        return f"old pools drain ({left} left)" if marked else "old pools retire"
    return "clearing up"


DRAINING = "baton.serving/draining"


async def test_killed_at_random_points_of_a_switch(tmp_path: Path) -> None:
    """SIGKILL at random times, spread over the whole of a switch: each time the next controller
    goes on to where the wish is served by its own pools and the others are gone; no request fails,
    and no group that held one is ever scaled away."""
    rng = random.Random(SEED)
    async with world(tmp_path) as w:
        await until(lambda: len(w.lws.ready()) == 3, timeout_s=PATIENCE_S)
        process = Process(w, tmp_path / "controller.log")
        async with w.load.going(), process.going():
            # Once undisturbed, which says how long a switch takes.
            await w.settled(ONE, timeout_s=PATIENCE_S)
            whole_s = await switched(w, TWO)
            print(f"\na switch takes {whole_s:.1f} s\n")
            print("kill     after  while                      all well after")
            for number in range(KILLS):
                target = ONE if number % 2 == 0 else TWO
                at_s = whole_s * (number * 7 % KILLS + rng.random()) / KILLS
                w.wish(target)
                await asyncio.sleep(at_s)
                found = stage(w, target)
                await process.kill()
                await process.start()
                after_s = await switched(w, target)
                # A machine that is faster by now would be done before it is killed.
                whole_s = whole_s * 0.8 if found == "done" else min(whole_s, at_s + after_s)
                print(f"{number + 1:4}  {at_s:6.2f} s  {found:<26} {after_s:6.2f} s", flush=True)
                assert w.lws.violations == []
                assert w.load.failed == []
            await process.stop()
        lease = w.api.get("leases", NAMESPACE, "baton-controller")
        assert lease is not None
        assert lease["spec"]["holderIdentity"] == ""
        print(f"\n{w.load.answered} requests, none failed;", end=" ")
        print(f"{len(w.lws.killed)} groups scaled away, none held a request")
    assert "Traceback" not in (tmp_path / "controller.log").read_text()


async def switched(w: World, target: str) -> float:
    """Wishes for a profile, and waits until it is served by its own pools and the others are gone;
    returns how long that took, in seconds."""
    began_s = time.monotonic()
    w.wish(target)
    await w.settled(target, timeout_s=PATIENCE_S)
    return time.monotonic() - began_s

"""Carries the measurement out: one server and one crowd per size, routers added step by step."""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import msgspec

from baton.errors import BatonError, TargetError
from baton.process import Child
from benchmarks.registry.records import BEAT, READY, Beat, Cell
from benchmarks.registry.server import Server, open_server
from benchmarks.router.cpu import ProcessTree, TreeChanged

_START_S = 30.0
_STOP_S = 3.0
_WARM_S = 1.5
"""Three beats of a router: the first reads everything."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured.

    Attributes:
        workers: sizes of the registry.
        routers: how many follow it; no router at all is always measured first.
        seconds: of each measurement.
        executable: of the redis-server.
    """

    workers: Sequence[int]
    routers: Sequence[int]
    seconds: float
    executable: str


@dataclass(slots=True)
class _Part:
    """A child process of ours, and the beats that it has told of."""

    child: Child
    beats: list[Beat]

    @property
    def pid(self) -> int:
        assert self.child.pid is not None
        return self.child.pid


async def measure(plan: Plan, say: Say, cells: list[Cell], problems: list[str]) -> str:
    """Fills ``cells`` and ``problems``; returns the server's version."""
    version = ""
    for workers in plan.workers:
        try:
            async with open_server(plan.executable) as server, contextlib.AsyncExitStack() as stack:
                version = await server.version()
                await stack.enter_async_context(_part("crowd", server.url, str(workers)))
                followers: list[_Part] = []
                for routers in sorted({0, *plan.routers}):
                    while len(followers) < routers:
                        arguments = (server.url, str(len(followers)), str(workers))
                        follower = _part("follower", *arguments)
                        followers.append(await stack.enter_async_context(follower))
                    say(f"{workers} workers, {routers} routers")
                    cells.append(await _cell(server, workers, followers, plan.seconds))
        except BatonError as error:
            problems.append(f"{workers} workers: {error.message}")
        except TreeChanged as error:
            problems.append(f"{workers} workers: {error}")
    problems += [
        f"{c.workers} workers, {c.routers} routers: {c.problem}" for c in cells if c.problem
    ]
    return version


async def _cell(server: Server, workers: int, followers: list[_Part], seconds: float) -> Cell:
    await asyncio.sleep(_WARM_S)
    trees = [ProcessTree(follower.pid) for follower in followers]
    for follower in followers:
        follower.beats.clear()
    before, cpu_s = await server.count(), sum(tree.read_s() for tree in trees)
    began_s = time.monotonic()
    await asyncio.sleep(seconds)
    cpu_s = sum(tree.read_s() for tree in trees) - cpu_s
    after, wall_s = await server.count(), time.monotonic() - began_s
    beats = [beat for follower in followers for beat in follower.beats]
    cell = Cell(
        workers=workers,
        routers=len(followers),
        wall_s=wall_s,
        router_cpu_ms=cpu_s / len(followers) / wall_s * 1e3 if followers else None,
        redis_cpu_ms=(after.cpu_s - before.cpu_s) / wall_s * 1e3,
        calls=(after.calls - before.calls) / wall_s,
        commands=(after.commands - before.commands) / wall_s,
        sent_bytes=(after.sent_bytes - before.sent_bytes) / wall_s,
        received_bytes=(after.received_bytes - before.received_bytes) / wall_s,
    )
    if beats:
        cell.look_ms = statistics.median(beat.look_ms for beat in beats)
        cell.compile_ms = statistics.median(beat.compile_ms for beat in beats)
        cell.took_ms = statistics.median(beat.took_ms for beat in beats)
    if any(beat.workers != workers for beat in beats):
        cell.problem = "a router did not see all workers"
    elif len(beats) < len(followers) * (seconds * 2 - 2):
        cell.problem = f"routers beat {len(beats)} times only"
    elif cell.calls < 0.9 * workers:
        cell.problem = f"workers beat {cell.calls:.0f} times a second only"
    return cell


@contextlib.asynccontextmanager
async def _part(module: str, *arguments: str) -> AsyncIterator[_Part]:
    ready = asyncio.get_running_loop().create_future()
    beats: list[Beat] = []

    def on_line(line: str) -> None:
        if line.startswith(BEAT):
            beats.append(msgspec.json.decode(line.removeprefix(BEAT), type=Beat))
        elif line == READY and not ready.done():
            ready.set_result(None)

    argv = [sys.executable, "-m", f"benchmarks.registry.{module}", *arguments]
    child = Child(module, argv, os.environ, on_line=on_line)
    await child.start()
    try:
        try:
            await asyncio.wait_for(ready, _START_S)
        except TimeoutError as error:
            raise TargetError(f"{module} did not start:\n" + "\n".join(child.tail)) from error
        yield _Part(child, beats)
    finally:
        await child.stop(grace_s=_STOP_S)

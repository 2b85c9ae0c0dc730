"""Members of a group as processes that are killed; their engines are fake ones."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
from aiohttp import web

from baton.worker.group import GROUP_LOST
from tests.fakes.group_member import BUSY_VARIABLE
from tests.fakes.waiting import until
from tests.integration.test_worker_group import TOKEN, port


class Router:
    """The part of a router that workers register with."""

    def __init__(self) -> None:
        self.workers: dict[str, str] = {}
        self.port = port()

    async def put(self, request: web.Request) -> web.Response:
        self.workers[request.match_info["id"]] = (await request.json())["state"]
        return web.Response(status=204)

    async def delete(self, request: web.Request) -> web.Response:
        self.workers.pop(request.match_info["id"], None)
        return web.Response(status=204)

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_put("/internal/workers/{id}", self.put)
        app.router.add_delete("/internal/workers/{id}", self.delete)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port).start()
        try:
            yield
        finally:
            await runner.cleanup()


class Group:
    """Two processes, and all that they start."""

    def __init__(self, name: str, router: Router, home: Path) -> None:
        self.name = name
        self.busy = home / f"{name}-busy"
        self.router = router
        self._home = home
        self._health = [port(), port()]
        self._common = {
            "LWS_GROUP_SIZE": "2",
            "LWS_LEADER_ADDRESS": "127.0.0.1",
            "BATON_LEADER_HEALTH_PORT": str(self._health[0]),
            "BATON_GROUP_PORT": str(port()),
            "BATON_PORT": str(port()),
            "BATON_REGISTRY": f"http://127.0.0.1:{router.port}",
            "BATON_WORKER_ID": name,
            "BATON_CLUSTER_TOKEN": TOKEN,
            "BATON_HOME": str(home),
            "TMPDIR": str(home),
            BUSY_VARIABLE: str(self.busy),
        }
        self.members: list[asyncio.subprocess.Process] = []
        self.pids: set[int] = set()

    def env(self, index: int) -> dict[str, str]:
        return {
            **os.environ,
            **self._common,
            "LWS_WORKER_INDEX": str(index),
            "BATON_HEALTH_PORT": str(self._health[index]),
        }

    async def start(self) -> None:
        for index in (0, 1):
            with (self._home / f"{self.name}-{index}.log").open("ab") as log:
                self.members.append(
                    await asyncio.create_subprocess_exec(
                        *(sys.executable, "-m", "tests.fakes.group_member"),
                        env=self.env(index),
                        stdout=log,
                        stderr=log,
                    )
                )

    async def ready(self) -> None:
        await until(
            lambda: self.router.workers.get(self.name) == "ready",
            timeout_s=60,
            what=f"group {self.name} serves",
        )
        for member in self.members:
            top = psutil.Process(member.pid)
            self.pids |= {top.pid, *(child.pid for child in top.children(recursive=True))}
        assert len(self.pids) == 4

    async def gone(self) -> list[int]:
        """Waits until nothing is left of the group; the members' exit statuses."""
        statuses = [await asyncio.wait_for(member.wait(), 10) for member in self.members]
        await until(lambda: not any(psutil.pid_exists(pid) for pid in self.pids), timeout_s=5)
        return statuses

    def logs(self) -> str:
        """The ends of both members' logs."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text()[-3000:]}"
            for path in sorted(self._home.glob(f"{self.name}-*.log"))
        )

    def kill(self) -> None:
        """Whatever is left."""
        for member in self.members:
            if member.returncode is None:
                member.kill()


async def _drain(env: dict[str, str]) -> tuple[int, str]:
    command = (sys.executable, "-m", "baton.worker.drain", "--limit", "30")
    hook = await asyncio.create_subprocess_exec(*command, env=env, stdout=asyncio.subprocess.PIPE)
    said, _ = await asyncio.wait_for(hook.communicate(), 30)
    assert hook.returncode is not None
    return hook.returncode, said.decode()


@contextlib.asynccontextmanager
async def serving(home: Path, *names: str) -> AsyncIterator[list[Group]]:
    """Groups that serve, side by side to save time."""
    router = Router()
    async with router.listening():
        made = [Group(name, router, home) for name in names]
        try:
            await asyncio.gather(*(group.start() for group in made))
            await asyncio.gather(*(group.ready() for group in made))
            yield made
        except BaseException:
            for group in made:
                print(group.logs())
            raise
        finally:
            for group in made:
                group.kill()
            await asyncio.gather(*(member.wait() for group in made for member in group.members))


async def test_a_member_that_is_killed(tmp_path: Path) -> None:
    """Leader or follower: the other one ends with the status of a lost group, and no engine is
    left. A lost follower's leader leaves the registry; of a lost leader it hears by silence."""
    async with serving(tmp_path, "one", "two") as (one, two):
        one.members[1].kill()
        two.members[0].kill()
        assert await one.gone() == [GROUP_LOST, -signal.SIGKILL]
        assert await two.gone() == [-signal.SIGKILL, GROUP_LOST]
        assert list(one.router.workers) == ["two"]


async def test_stopping_as_kubernetes_does(tmp_path: Path) -> None:
    """Hooks in both containers, then signals: every status is 0."""
    async with serving(tmp_path, "one") as (group,):
        group.busy.touch()
        hooks = [asyncio.create_task(_drain(group.env(index))) for index in (0, 1)]
        try:
            await until(lambda: group.router.workers.get("one") == "draining", timeout_s=30)
            assert not any(hook.done() for hook in hooks)
            group.busy.unlink()
            assert await asyncio.gather(*hooks) == [(0, "drained\n")] * 2
        finally:
            for hook in hooks:
                hook.cancel()
            await asyncio.gather(*hooks, return_exceptions=True)
        for member in group.members:
            member.terminate()
        assert await group.gone() == [0, 0]
        assert group.router.workers == {}

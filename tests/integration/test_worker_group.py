"""Groups of two with real supervisors, sockets and processes; only the engine is a fake one.

Leader and follower run in the test's own loop, and die as tasks do; whole processes that are killed
are in ``test_worker_group_processes.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import psutil
import pytest
from aiohttp import web

from baton.engine import EngineSpec, server
from baton.errors import NotAuthorized, SettingsError, WorkerUnreachable
from baton.settings import free_port
from baton.types import WorkerId, WorkerRecord, WorkerState
from baton.worker import GroupPlace, WorkerOptions, worker
from baton.worker import follower as follower_module
from baton.worker import leader as leader_module
from baton.worker.follower import Follower
from baton.worker.group import GROUP_LOST
from baton.worker.leader import Leader
from baton.worker.members import Answer, Phase
from baton.worker.run import run_alone
from baton.worker.stops import Stops
from tests.fakes.group_member import QUICK, fake_command, fake_plan
from tests.fakes.waiting import until

TOKEN = "cluster-token-0123456789"
AUTH = {"Authorization": f"Bearer {TOKEN}"}
_ports = iter(range(21_000 + os.getpid() % 100 * 60, 32_000, 3))


def port() -> int:
    return free_port("127.0.0.1", next(_ports), tries=3)


class Registry:
    """A registrar that keeps what it is told."""

    def __init__(self) -> None:
        self.records: list[WorkerRecord] = []
        self.withdrawn = False

    async def heartbeat(self, record: WorkerRecord) -> None:
        self.records.append(record)

    async def withdraw(self, worker_id: WorkerId) -> None:
        # A registry takes its time, in which the rest of the group goes on.
        await asyncio.sleep(0.2)
        self.withdrawn = True

    async def close(self) -> None:
        pass

    @property
    def state(self) -> WorkerState | None:
        return self.records[-1].state if self.records else None


class Group:
    """A leader and a follower in this process."""

    def __init__(self, folder: Path) -> None:
        self.busy = folder / "busy"
        self.folder = folder
        self.registry = Registry()
        self.specs: list[EngineSpec] = []
        self.leader_port, self.follower_port = port(), port()
        self._place = GroupPlace(
            size=2,
            index=0,
            leader="localhost",
            leader_health_port=self.leader_port,
            rendezvous_port=port(),
        )
        self._engine_port = port()
        self.stops = [Stops(), Stops()]
        self.tasks: list[asyncio.Task[int]] = []
        self.follower: Follower | None = None
        self.leader: Leader | None = None

    def options(self, index: int, **changes: Any) -> WorkerOptions:
        plain = WorkerOptions(
            profile="test",
            model=None,
            served_name=None,
            host="127.0.0.1",
            port=self._engine_port,
            advertise_url=f"http://127.0.0.1:{self._engine_port}",
            side_channel_port=5600,
            registry="http://127.0.0.1:9",
            token=TOKEN,
            home=self.folder,
            worker_id=WorkerId("w-1"),
            node="node-1",
            cpu_threads=1,
            health_port=self.follower_port if index else self.leader_port,
            group=dataclasses.replace(self._place, index=index),
        )
        return dataclasses.replace(plain, **changes)

    def start_leader(self) -> None:
        options = self.options(0)
        plan = self._watched(options)
        self.leader = Leader(options, plan, self.registry, self.stops[0], timing=QUICK)
        self.tasks.append(asyncio.create_task(self.leader.run(), name="leader"))

    def start_follower(self, *, profile_version: str = "v1", **changes: Any) -> None:
        options = self.options(1, **changes)
        plan = dataclasses.replace(self._watched(options), profile_version=profile_version)
        self.follower = Follower(options, plan, self.stops[1], timing=QUICK)
        self.tasks.append(asyncio.create_task(self.follower.run(), name="follower"))

    async def ready(self) -> None:
        """Starts both and waits until the group serves."""
        self.start_leader()
        self.start_follower()
        await until(
            lambda: self.registry.state is WorkerState.READY, timeout_s=20, what="the group serves"
        )
        await until(lambda: self.follower and self.follower.tether.ready, what="follower hears")

    def _watched(self, options: WorkerOptions) -> Any:
        """The plan, whose specs are kept as the engine gets them."""
        return fake_plan(options, self.busy)

    def engine_pid(self, index: int) -> int:
        member = self.follower if index else self.leader
        assert member is not None
        assert member.engine is not None
        pid = member.engine.pid
        assert pid is not None
        return pid

    async def statuses(self) -> list[int]:
        """Exit statuses of leader and follower."""
        return list(await asyncio.wait_for(asyncio.gather(*self.tasks), 15))

    async def probe(self, index: int, path: str, *, post: bool = False) -> tuple[int, Any]:
        number = self.follower_port if index else self.leader_port
        async with aiohttp.ClientSession(headers=AUTH) as http:
            url = f"http://127.0.0.1:{number}{path}"
            async with http.request("POST" if post else "GET", url) as response:
                return response.status, await response.json()


@pytest.fixture
async def group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Group]:
    """A group that is not started yet; afterwards none of its processes is left."""
    made = Group(tmp_path)
    pids: list[int] = []

    def command(spec: EngineSpec) -> list[str]:
        made.specs.append(spec)
        return fake_command(spec)

    monkeypatch.setattr(server, "command", command)
    monkeypatch.setattr(server, "_POLL_S", 0.02)
    monkeypatch.setattr(server, "_WATCH_S", 0.05)
    monkeypatch.setattr(worker, "_SETTLE_S", 0.2)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield made
    for task in made.tasks:
        task.cancel()
    await asyncio.gather(*made.tasks, return_exceptions=True)
    for member in (made.leader, made.follower):
        if member is not None and member.engine is not None and member.engine.pid is not None:
            pids.append(member.engine.pid)
    assert not [pid for pid in pids if _alive(pid)], "engines left behind"
    assert not [spec.run_dir for spec in made.specs if spec.run_dir.exists()]
    assert made.registry.withdrawn == bool(made.registry.records)


def _alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


async def test_the_group_comes_up_as_one_worker(group: Group) -> None:
    """No engine before all are there; then each member runs its rank of the same engine, which is
    registered once, by the leader."""
    group.start_leader()
    await until(lambda: group.registry.state is WorkerState.STARTING, what="known as starting")
    await asyncio.sleep(0.3)
    assert group.specs == []
    assert await group.probe(0, "/livez") == (200, {"alive": True})
    assert (await group.probe(0, "/readyz"))[0] == 503
    group.start_follower()
    await until(lambda: group.registry.state is WorkerState.READY, timeout_s=20)
    await until(lambda: group.follower and group.follower.tether.ready)
    leads, follows = sorted(group.specs, key=lambda spec: spec.headless)
    assert leads.group is not None
    assert follows.group is not None
    assert (leads.group.rank, follows.group.rank) == (0, 1)
    assert (leads.headless, follows.headless) == (False, True)
    assert leads.engine_id == follows.engine_id == group.registry.records[-1].engine_id
    assert leads.group.master_address == follows.group.master_address == "127.0.0.1"
    assert leads.group.master_port == follows.group.master_port
    assert leads.group.interface == "lo"
    assert {record.id for record in group.registry.records} == {"w-1"}
    for index in (0, 1):
        assert await group.probe(index, "/readyz") == (200, {"ready": True})
        assert await group.probe(index, "/livez") == (200, {"alive": True})


async def test_a_worker_alone_answers_probes_too(group: Group) -> None:
    """With a health port. Drained by its hook it stays, and leaves at the signal."""
    options, stops = group.options(0, group=None), group.stops[0]
    plan = fake_plan(options, group.busy)
    task = asyncio.create_task(run_alone(options, plan, group.registry, stops))
    group.tasks.append(task)
    await until(lambda: group.registry.state is WorkerState.STARTING, what="known as starting")
    status, body = await group.probe(0, "/readyz")
    assert status == 503
    assert body["reason"] in ("the worker is starting", "the worker is warming")
    await until(lambda: group.registry.state is WorkerState.READY, timeout_s=20)
    assert await group.probe(0, "/readyz") == (200, {"ready": True})
    assert group.specs[0].group is None
    assert await group.probe(0, "/drain", post=True) == (200, {"drained": True})
    assert (await group.probe(0, "/readyz"))[1]["reason"] == "the worker is draining"
    assert await group.probe(0, "/livez") == (200, {"alive": True})
    assert not task.done()
    stops.on_signal()
    assert await group.statuses() == [0]


async def test_a_follower_may_come_first(group: Group) -> None:
    """It waits for its leader's name and port."""
    group.start_follower()
    await asyncio.sleep(0.3)
    assert (await group.probe(1, "/readyz"))[0] == 503
    group.start_leader()
    await until(lambda: group.registry.state is WorkerState.READY, timeout_s=20)


@pytest.mark.parametrize("index", [0, 1], ids=["leader", "follower"])
async def test_an_engine_that_dies_ends_the_group(group: Group, index: int) -> None:
    """Whichever member's: both end with the status of a lost group, and are not registered."""
    await group.ready()
    began_s = asyncio.get_running_loop().time()
    os.kill(group.engine_pid(index), signal.SIGKILL)
    assert await group.statuses() == [GROUP_LOST, GROUP_LOST]
    assert asyncio.get_running_loop().time() - began_s < 8
    assert group.registry.withdrawn
    assert len(group.specs) == 2, "nothing is started again"


@pytest.mark.parametrize("index", [0, 1], ids=["leader", "follower"])
async def test_a_member_that_is_cancelled(group: Group, index: int) -> None:
    """It leaves no engine behind; the other one finds out and ends."""
    await group.ready()
    pid = group.engine_pid(index)
    group.tasks[index].cancel()
    with pytest.raises(asyncio.CancelledError):
        await group.tasks[index]
    assert not _alive(pid)
    assert await asyncio.wait_for(group.tasks[1 - index], 15) == GROUP_LOST


async def test_a_follower_that_is_started_again(group: Group) -> None:
    """The rank that it held is gone, so the group is; the new one waits for a new group."""
    await group.ready()
    assert group.follower is not None
    group.follower._member = "another process"
    leader = group.tasks[0]
    assert await asyncio.wait_for(leader, 15) == GROUP_LOST


async def test_all_are_asked_to_stop_at_once(group: Group) -> None:
    """As Kubernetes does: a follower's rank stays until the leader has drained. A good end."""
    await group.ready()
    group.busy.touch()
    for stops in group.stops:
        stops.on_signal()
    await until(lambda: group.registry.state is WorkerState.DRAINING)
    await asyncio.sleep(0.5)
    assert _alive(group.engine_pid(1))
    assert not any(task.done() for task in group.tasks)
    group.busy.unlink()
    assert await group.statuses() == [0, 0]


async def test_a_follower_alone_is_asked_to_stop(group: Group) -> None:
    """A group cannot go on without it: the whole group drains, and ends well."""
    await group.ready()
    group.busy.touch()
    group.stops[1].on_signal()
    await until(lambda: group.registry.state is WorkerState.DRAINING)
    assert _alive(group.engine_pid(1))
    group.busy.unlink()
    assert await group.statuses() == [0, 0]


@pytest.mark.parametrize("times", [(2, 2), (1, 2)], ids=["both", "follower"])
async def test_asked_twice(group: Group, times: tuple[int, int]) -> None:
    """Whoever asks a second time does not wait for what is in flight. A follower that goes sooner
    than its leader, which is about to go as well, is no loss."""
    await group.ready()
    group.busy.touch()
    for stops, number in zip(group.stops, times, strict=True):
        for _ in range(number):
            stops.on_signal()
    assert await group.statuses() == [0, 0]


async def test_a_hook_drains_through_a_follower(group: Group) -> None:
    """Answered once the leader has drained; all stay until the signals come."""
    await group.ready()
    group.busy.touch()
    asked = asyncio.create_task(group.probe(1, "/drain", post=True))
    await until(lambda: group.registry.state is WorkerState.DRAINING)
    await asyncio.sleep(0.3)
    assert not asked.done()
    group.busy.unlink()
    assert await asyncio.wait_for(asked, 10) == (200, {"drained": True})
    await asyncio.sleep(0.3)
    assert not any(task.done() for task in group.tasks)
    assert _alive(group.engine_pid(1))
    for stops in group.stops:
        stops.on_signal()
    assert await group.statuses() == [0, 0]


async def test_a_follower_of_another_profile(
    group: Group, caplog: pytest.LogCaptureFixture
) -> None:
    """It is refused, and says why: ranks that disagree would compute nonsense."""
    caplog.set_level("INFO", "baton.worker.group")
    group.start_leader()
    group.start_follower(profile_version="v2")
    await until(lambda: "differ in profile, model, engine flags" in caplog.text)
    assert group.specs == []


async def test_a_follower_of_another_group(group: Group, caplog: pytest.LogCaptureFixture) -> None:
    """An address that is used again, or a wrong one, led it here: it is refused, and a group that
    runs does not notice."""
    caplog.set_level("INFO", "baton.worker.group")
    await group.ready()
    stranger = group.options(1)
    assert stranger.group is not None
    stranger = dataclasses.replace(
        stranger, health_port=0, group=dataclasses.replace(stranger.group, leader="127.0.0.1")
    )
    follower = Follower(stranger, fake_plan(stranger, group.busy), Stops(), timing=QUICK)
    task = asyncio.create_task(follower.run())
    try:
        await until(lambda: "the group of 127.0.0.1:" in caplog.text)
        await asyncio.sleep(0.2)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert not follower.tether.joined
    assert group.leader is not None
    assert group.leader.roster.phase is Phase.RUNNING
    # Nor does it take a member of the leader's own earlier life for one that was started again.
    stale = dataclasses.replace(group.options(1), health_port=0)
    beat = Follower(stale, fake_plan(stale, group.busy), Stops(), timing=QUICK)._beat()
    told = group.leader.hear(msgspec.structs.replace(beat, run="an earlier one"))
    assert isinstance(told, Answer)
    assert told.run != "an earlier one"
    refusal = group.leader.hear(msgspec.structs.replace(beat, run="another", group="another"))
    assert isinstance(refusal, str)
    assert group.leader.roster.phase is Phase.RUNNING


class Elsewhere:
    """Something that answers at a leader's address, and is none."""

    def __init__(self, status: int, body: bytes) -> None:
        self.port = port()
        self._answer = (status, body)

    async def beat(self, request: web.Request) -> web.Response:
        status, body = self._answer
        return web.Response(status=status, body=body, content_type="application/json")

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_post("/group/beat", self.beat)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port).start()
        try:
            yield
        finally:
            await runner.cleanup()


@pytest.mark.parametrize(
    ("status", "body", "joined", "error"),
    [
        (401, b"{}", False, NotAuthorized),
        (401, b"{}", True, WorkerUnreachable),
        (200, b'{"run": "\xff\xfe"}', True, WorkerUnreachable),
        (200, b"<html>", True, WorkerUnreachable),
        (200, b" " * 100_000, True, WorkerUnreachable),
        (302, b"", True, WorkerUnreachable),
    ],
)
async def test_something_else_at_the_leaders_address(
    group: Group, status: int, body: bytes, joined: bool, error: type[Exception]
) -> None:
    """Once joined, whatever is no leader's answer is silence: its address may be another's by now.
    Only a token that is refused before is said to be one."""
    other = Elsewhere(status, body)
    options = group.options(1)
    assert options.group is not None
    options = dataclasses.replace(
        options, group=dataclasses.replace(options.group, leader_health_port=other.port)
    )
    follower = Follower(options, fake_plan(options, group.busy), Stops(), timing=QUICK)
    follower._leader_address = "127.0.0.1"
    follower.tether.run = "run-1" if joined else ""
    async with other.listening(), aiohttp.ClientSession() as http:
        with pytest.raises(error):
            await follower._call(http, follower._beat())


async def test_asked_to_stop_while_a_name_does_not_resolve(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for the resolver: a good end, at once."""

    async def hangs(host: str) -> str:
        await asyncio.Event().wait()
        return host

    monkeypatch.setattr(leader_module, "resolve", hangs)
    monkeypatch.setattr(follower_module, "resolve", hangs)
    group.start_leader()
    group.start_follower()
    await asyncio.sleep(0.1)
    for stops in group.stops:
        stops.on_signal()
    async with asyncio.timeout(1):
        assert await group.statuses() == [0, 0]


async def test_when_a_follower_is_ready(group: Group) -> None:
    """As long as the group has generated, its leader answers, and nobody asked it to go."""
    options = group.options(1)
    stops = Stops()
    follower = Follower(options, fake_plan(options, group.busy), stops, timing=QUICK)

    def said() -> str:
        problem = follower._unready()
        return problem.reason if problem is not None else ""

    assert said() == "the group is not complete"
    follower.tether.run = "run-1"
    assert said() == "the group's engine has not generated"
    follower.tether.ready = True
    assert said() == ""
    follower.tether.quiet = True
    assert said() == "the leader does not answer"
    stops.drain.set()
    assert said() == "the worker is draining"
    follower._dead = "no answer of the leader for 3.1 s"
    assert said() == "the group is lost"


async def test_a_member_on_loopback_with_a_leader_elsewhere(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody could reach it: said at once, with what to change."""

    async def resolves(host: str) -> str:
        return "10.1.2.3"

    monkeypatch.setattr(leader_module, "resolve", resolves)
    monkeypatch.setattr(follower_module, "resolve", resolves)
    group.start_leader()
    group.start_follower()
    for task in group.tasks:
        with pytest.raises(SettingsError, match="--host"):
            await asyncio.wait_for(task, 5)


async def test_a_follower_with_another_token(
    group: Group, caplog: pytest.LogCaptureFixture
) -> None:
    """It ends with that error: waiting would not help."""
    caplog.set_level("INFO", "baton.worker.group")
    group.start_leader()
    group.start_follower(token="another-token-0123456789")
    with pytest.raises(NotAuthorized, match="the same BATON_CLUSTER_TOKEN"):
        await group.tasks[1]
    assert group.leader is not None
    assert group.leader.roster.missing == (1,)
    assert TOKEN not in caplog.text


async def test_asked_to_stop_before_the_group_is_complete(group: Group) -> None:
    """There is nothing to drain."""
    group.start_leader()
    await until(lambda: group.registry.state is WorkerState.STARTING)
    group.stops[0].on_signal()
    assert await group.statuses() == [0]

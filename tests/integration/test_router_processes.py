"""``python -m router --workers 2``: two processes behind one port, and a parent that keeps them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from baton.clock import SystemClock
from baton.process import Backoff
from baton.settings import free_port
from baton.store import RedisStore
from baton.types import Role
from router.processes import Processes
from tests.fakes.engine import KEY, MODEL, FakeEngine, Fleet, expected_text
from tests.fakes.redis_server import RedisServer
from tests.fakes.waiting import until
from tests.integration.router_cluster import ADMIN_KEY, COMPLETIONS, PROFILE

LONG = "a prompt well over the threshold of the profile " * 4
STREAMS = 16
"""Connections that the kernel deals out: all to one of two processes once in 32,768 runs."""
PATIENCE_S = 40.0

SLOW_PROFILE = PROFILE.replace(
    "{connect_s: 0.5, prefill_s: 1, first_token_s: 1, idle_s: 0.5, total_s: 3}",
    "{connect_s: 5, prefill_s: 30, first_token_s: 30, idle_s: 30, total_s: 120}",
).replace("drain_s: 1", "drain_s: 60")


@dataclass
class Router:
    """A parent and its processes."""

    process: asyncio.subprocess.Process
    http: aiohttp.ClientSession
    url: str
    admin: str
    said: list[str] = field(default_factory=list)

    async def get(self, path: str, *, method: str = "GET", **more: Any) -> tuple[int, Any]:
        """Asks the admin port."""
        headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
        async with self.http.request(method, self.admin + path, headers=headers, **more) as reply:
            if reply.content_type == "application/json":
                return reply.status, await reply.json()
            return reply.status, await reply.text()

    async def processes(self) -> list[dict[str, Any]]:
        """How each process is."""
        _, told = await self.get("/admin/processes")
        rows: list[dict[str, Any]] = told["processes"]
        return rows

    async def pids(self) -> list[int]:
        """Of the processes that serve."""
        return [row["pid"] for row in await self.processes() if row["state"] == "serving"]

    async def end(self) -> int:
        """Its exit status."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.process.wait()


async def eventually(check: Callable[[], Awaitable[object]]) -> None:
    """Polls until it is so."""
    async with asyncio.timeout(PATIENCE_S):
        while not await check():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def runs(pid: int) -> bool:
    """Whether the process exists, and is no zombie."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


async def gone(pids: list[int]) -> bool:
    return not any(runs(pid) for pid in pids)


def profile_in(home: Path) -> Path:
    home.mkdir(exist_ok=True)
    path = home / "profile.yaml"
    path.write_text(SLOW_PROFILE)
    return path


@contextlib.asynccontextmanager
async def router(home: Path, store: str, *more: str, port: int = 0) -> AsyncIterator[Router]:
    """The command with two processes; killed at the end if it still runs."""
    profile = profile_in(home)
    port = port or free_port("127.0.0.1", 21_000 + os.getpid() % 500 * 10)
    admin = free_port("127.0.0.1", port + 1)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "router", "--profile", str(profile)),
        *("--port", str(port), "--admin-port", str(admin), "--home", str(home)),
        *("--store", store, "--workers", "2", *more),
        env={**os.environ, "BATON_CLUSTER_TOKEN": KEY, "BATON_ADMIN_TOKEN": ADMIN_KEY},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=1 << 20,
    )
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        running = Router(process, http, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin}")
        listening = asyncio.create_task(_listen(running))
        try:
            yield running
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            await listening


async def _listen(running: Router) -> None:
    assert running.process.stdout is not None
    async for line in running.process.stdout:
        running.said.append(line.decode())


@pytest.fixture(scope="module")
def redis() -> Any:
    with RedisServer() as server:
        yield server


@pytest.fixture
async def engines(redis: RedisServer) -> AsyncIterator[tuple[FakeEngine, FakeEngine]]:
    """A prefill and a decode engine, registered where workers of several routers register."""
    fleet = Fleet()
    pair = FakeEngine(fleet, "p", Role.PREFILL), FakeEngine(fleet, "d", Role.DECODE)
    store = RedisStore.from_url(redis.url, clock=SystemClock())
    for engine in pair:
        await engine.start()
        await store.put_worker(engine.record(), ttl_s=600)
    yield pair
    for engine in pair:
        await store.remove_worker(engine.record().id)
    await store.close()
    await asyncio.gather(*(engine.kill() for engine in pair))


@pytest.fixture
async def pair_router(
    tmp_path: Path, redis: RedisServer, engines: tuple[FakeEngine, FakeEngine]
) -> AsyncIterator[Router]:
    """Two processes that serve."""
    async with router(tmp_path, redis.url) as running:
        await eventually(lambda: ready(running))
        yield running


async def ready(running: Router) -> bool:
    """Whether both processes serve and know both workers."""
    assert running.process.returncode is None, running.said
    with contextlib.suppress(aiohttp.ClientError):
        if len(await running.pids()) == 2:
            status, _ = await running.get("/readyz")
            return status == 200
    return False


@contextlib.asynccontextmanager
async def streams(running: Router) -> AsyncIterator[list[Any]]:
    """Answers that have begun, each over a connection of its own; how long they last is up to the
    decode engine's ``token_s``."""
    body = {"model": MODEL, "prompt": LONG, "max_tokens": 8, "stream": True}
    async with contextlib.AsyncExitStack() as stack:
        yield await asyncio.gather(
            *(
                stack.enter_async_context(running.http.post(running.url + COMPLETIONS, json=body))
                for _ in range(STREAMS)
            )
        )


def counted(page: str, name: str) -> float:
    """The sum of a metric's samples."""
    return sum(
        sample.value
        for metric in text_string_to_metric_families(page)
        for sample in metric.samples
        if sample.name == name
    )


async def test_two_processes_look_like_one_router(
    pair_router: Router, engines: tuple[FakeEngine, FakeEngine]
) -> None:
    """Both serve; what each has adds up in the status, on either port; handoffs say whose they are;
    a drain is known to both at once; the metrics are everybody's."""
    decode = engines[1]
    decode.token_s = 1.0
    for asked, status in ((0, 200), (1, 200), (2, 503)):
        assert (await pair_router.get(f"/readyz?workers={asked}"))[0] == status
    async with streams(pair_router) as answers:
        status, told = await pair_router.get("/admin/status")
        assert status == 200
        assert told["in_flight"] == STREAMS
        by_id = {worker["record"]["id"]: worker for worker in told["workers"]}
        assert by_id["d"]["legs"] == STREAMS
        _, handoffs = await pair_router.get("/admin/handoffs")
        assert {row["process"] for row in handoffs["open"]} == {1, 2}
        assert len(handoffs["open"]) == STREAMS
        async with pair_router.http.get(
            f"{pair_router.url}/admin/status", headers={"Authorization": f"Bearer {KEY}"}
        ) as reply:
            assert (await reply.json())["in_flight"] == STREAMS
        drain = "/admin/workers/p/drain"
        status, told = await pair_router.get(drain, method="POST")
        assert (status, told["cordoned"]) == (202, True)
        _, told = await pair_router.get("/admin/workers")
        assert {w["record"]["id"]: w["cordoned"] for w in told["workers"]} == {
            "p": True,
            "d": False,
        }
        _, told = await pair_router.get(drain, method="DELETE")
        assert told["cordoned"] is False
        decode.token_s = 0.0
        for answer in answers:
            assert answer.headers["x-baton-path"] == "disaggregated"
            assert (await answer.text()).endswith("data: [DONE]\n\n")
    async with pair_router.http.get(f"{pair_router.url}/metrics") as reply:
        assert reply.status == 200
        assert counted(await reply.text(), "baton_requests_total") == STREAMS
    _, queue = await pair_router.get("/admin/queue")
    assert queue["admitted"] == STREAMS
    _, explained = await pair_router.get(
        "/admin/explain",
        method="POST",
        params={"endpoint": COMPLETIONS},
        json={"model": MODEL, "prompt": LONG},
    )
    assert (explained["path"], explained["process"]) == ("disaggregated", 1)
    status, _ = await pair_router.get("/admin/workers/nobody/drain", method="POST")
    assert status == 404
    async with pair_router.http.get(f"{pair_router.admin}/admin/status") as reply:
        assert reply.status == 401


async def test_a_process_that_dies_is_replaced(pair_router: Router) -> None:
    """The other one serves on, a new one comes, and no counter ever falls."""
    async with streams(pair_router) as answers:
        for answer in answers:
            await answer.read()
    _, page = await pair_router.get("/metrics")
    assert counted(page, "baton_requests_total") == STREAMS
    first, second = await pair_router.pids()
    os.kill(first, signal.SIGKILL)

    async def replaced() -> bool:
        rows = await pair_router.processes()
        return bool(rows[0]["state"] == "serving" and rows[0]["pid"] != first)

    await eventually(replaced)
    rows = await pair_router.processes()
    assert [row["restarts"] for row in rows] == [1, 0]
    assert rows[1]["pid"] == second
    _, page = await pair_router.get("/metrics")
    assert counted(page, "baton_requests_total") == STREAMS
    async with streams(pair_router) as answers:
        for answer in answers:
            assert (await answer.text()).endswith("data: [DONE]\n\n")
    _, page = await pair_router.get("/metrics")
    assert counted(page, "baton_requests_total") == 2 * STREAMS


async def test_sigterm_drains_all_processes(
    pair_router: Router, engines: tuple[FakeEngine, FakeEngine]
) -> None:
    """Every stream ends whole, status 0, nothing left, no traceback and no secret in the log."""
    decode = engines[1]
    decode.token_s = 0.2
    pids = await pair_router.pids()
    async with streams(pair_router) as answers:
        pair_router.process.send_signal(signal.SIGTERM)
        texts = await asyncio.gather(*(answer.text() for answer in answers))
    assert all(text.count('"text":') == 8 for text in texts)
    assert all(expected_text(LONG, 1) in text for text in texts)
    assert await pair_router.end() == 0
    assert await gone(pids)
    said = "".join(pair_router.said)
    assert "with 2 processes" in said
    for unwanted in ("Traceback", KEY, ADMIN_KEY, "WARNING", "ERROR"):
        assert unwanted not in said


async def test_a_second_signal_hurries(
    pair_router: Router, engines: tuple[FakeEngine, FakeEngine]
) -> None:
    """Streams that would last for minutes are cut, long before the drain's end."""
    decode = engines[1]
    decode.token_s = 0.3
    pids = await pair_router.pids()
    async with streams(pair_router) as answers:
        decode.token_s = 600
        reading = asyncio.gather(*(answer.read() for answer in answers), return_exceptions=True)
        pair_router.process.send_signal(signal.SIGTERM)
        await eventually(lambda: refused(pair_router))
        assert pair_router.process.returncode is None
        pair_router.process.send_signal(signal.SIGTERM)
        assert await pair_router.end() == 0
        await reading
    assert await gone(pids)


async def refused(running: Router) -> bool:
    """Whether nobody listens on the public port any more."""
    return await refused_at(running.url)


async def refused_at(url: str) -> bool:
    try:
        async with aiohttp.ClientSession() as http, http.get(f"{url}/healthz"):
            return False
    except aiohttp.ClientError:
        return True


async def test_told_to_stop_while_starting(tmp_path: Path, redis: RedisServer) -> None:
    """A stop that was asked for is no failure, whenever it comes; without an admin port, too."""
    async with router(tmp_path, redis.url, "--admin-port", "0") as running:
        pid = running.process.pid
        await eventually(lambda: has_children(pid))
        children = children_of(pid)
        running.process.send_signal(signal.SIGTERM)
        assert await running.end() == 0, running.said
        assert await gone(children)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def has_children(pid: int) -> bool:
    return bool(children_of(pid))


async def test_without_an_admin_port(tmp_path: Path, redis: RedisServer) -> None:
    """The public port still speaks for both processes."""
    async with router(tmp_path, redis.url, "--admin-port", "0") as running:

        async def both() -> bool:
            try:
                async with running.http.get(
                    f"{running.url}/admin/status", headers={"Authorization": f"Bearer {KEY}"}
                ) as reply:
                    rows = (await reply.json())["processes"]
                    return [row["state"] for row in rows] == ["serving"] * 2
            except aiohttp.ClientError:
                return False

        await eventually(both)
        async with running.http.get(f"{running.url}/metrics") as reply:
            assert counted(await reply.text(), "baton_requests_in_flight") == 0
        assert await refused_at(running.admin)


async def test_nothing_outlives_the_parent(pair_router: Router) -> None:
    """However it ends."""
    pids = await pair_router.pids()
    assert len(pids) == 2
    pair_router.process.kill()
    await eventually(lambda: gone(pids))


async def test_a_process_that_hangs_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that answers no probe for half a minute is killed, and started again; one that answers
    lives."""
    monkeypatch.setattr("router.processes._PROBE_S", 0.01)
    now_s, answers = 0.0, True

    async def probe(url: str) -> bool:
        assert url == "http://member"
        return answers

    processes = Processes(
        1,
        token="t",
        argv=(sys.executable, "-S", "-c", "import time; time.sleep(600)"),
        env=os.environ,
        drain_s=0,
        say=lambda number, line: None,
        probe=probe,
        clock=lambda: now_s,
        make_backoff=lambda: Backoff(first_s=0.01),
    )
    (member,) = processes.members
    starting = asyncio.create_task(processes.start("http://parent"))
    try:
        await until(lambda: member.pid, timeout_s=PATIENCE_S)
        assert processes.announced(1, "http://member")
        assert not processes.announced(2, "http://nobody")
        await starting
        pid = member.pid
        for now_s in (20.0, 40.0, 60.0):  # noqa: B007
            await asyncio.sleep(0.05)
        assert (member.pid, member.starts) == (pid, 1)
        answers = False
        await asyncio.sleep(0.05)
        now_s = 100.0
        await until(lambda: member.starts == 2, timeout_s=PATIENCE_S)
        assert member.state == "starting"
    finally:
        await processes.stop()
    assert member.pid is None


async def test_a_port_that_is_taken(
    pair_router: Router, redis: RedisServer, tmp_path: Path
) -> None:
    """A second router does not slip in beside the first one's processes: status 3, one line."""
    port = int(pair_router.url.rpartition(":")[2])
    async with router(tmp_path / "other", redis.url, port=port) as second:
        assert await second.end() == 3
    said = "".join(second.said)
    assert "in use" in said
    assert "Traceback" not in said


async def test_memory_cannot_be_shared(tmp_path: Path) -> None:
    """Status 2, and what to do."""
    async with router(tmp_path, "memory://") as running:
        assert await running.end() == 2
    assert "--workers 2 needs --store redis://" in "".join(running.said)


async def test_a_start_that_fails_is_no_endless_restart(tmp_path: Path, redis: RedisServer) -> None:
    """What a process cannot be started with is said once by it, and ends the parent."""
    (tmp_path / "tenants.yaml").write_text("tenants: 7")
    async with router(tmp_path, redis.url, "--tenants", str(tmp_path / "tenants.yaml")) as running:
        assert await running.end() == 3
    said = "".join(running.said)
    assert "ended during the start" in said
    assert "Traceback" not in said

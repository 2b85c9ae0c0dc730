"""Several routers over one real Redis: one switch for all, one limit for all, and Redis may go."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from baton.registrar import open_registrar
from baton.settings import free_port
from baton.store import STATE
from baton.types import Role
from profiles.switching import Phase, decode
from router.server import RouterServer
from router.tenants import FileBook, TenantSpec, hash_key, new_key
from tests.fakes.engine import KEY, MODEL, FakeEngine
from tests.fakes.redis_server import RedisServer
from tests.fakes.waiting import until
from tests.integration.router_cluster import (
    ADMIN_KEY,
    COMPLETIONS,
    LONG,
    PROFILE,
    SHORT,
    Cluster,
    cluster,
    read,
    right_text,
)
from tests.integration.test_router_switch import (
    BACK,
    STANDARD,
    V_BACK,
    V_OLD,
    V_STANDARD,
    Asking,
    ask_switch,
    version_of,
)

AWAY_S = float(os.environ.get("BATON_AWAY_S", "1"))
"""How long Redis is away under load."""


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


class Beating:
    """Heartbeats of the engines into the store, as workers send them."""

    def __init__(self, url: str, engines: list[FakeEngine]) -> None:
        self._registrar = open_registrar(url, KEY)
        self._engines = engines

    async def _beat(self) -> None:
        while True:
            for engine in self._engines:
                with contextlib.suppress(Exception):
                    await self._registrar.heartbeat(engine.record())
            await asyncio.sleep(0.3)

    @contextlib.asynccontextmanager
    async def going(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._beat())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self._registrar.close()


@contextlib.asynccontextmanager
async def two_routers(redis: RedisServer, **more: Any) -> AsyncIterator[tuple[Cluster, Cluster]]:
    """Two routers in front of the same engines, which beat into Redis."""
    async with cluster(store=redis.url, register=False, **more) as a:
        other = RouterServer(a.server.settings)
        await other.start()
        b = Cluster(a.fleet, other, other.state, a.http, a.prefills, a.decodes)
        try:
            async with Beating(redis.url, a.engines).going():
                for each in (a, b):
                    await until(functools.partial(_knows, each, len(a.engines)))
                yield a, b
                await b.settled()
        finally:
            await other.kill()


def _knows(c: Cluster, count: int) -> bool:
    return len(c.state.pool.records()) == count


def _serves(c: Cluster, version: str) -> bool:
    return c.state.profile.version == version


async def over(*routers: Cluster) -> None:
    """No switch is on, as far as these routers know."""
    await until(lambda: all(c.state.conductor.agreed.switch is None for c in routers), timeout_s=20)


async def test_both_see_a_switch_within_a_second(redis: RedisServer) -> None:
    """Asked of one, followed by both; each request is served by one profile whole."""
    async with two_routers(redis) as (a, b):
        asking = Asking([a, b])
        async with asking.going():
            await asyncio.sleep(0.3)
            for text, version in ((STANDARD, V_STANDARD), (BACK, V_BACK)):
                assert (await ask_switch(a, text)).status == 202
                await until(functools.partial(_serves, a, version), timeout_s=10)
                seen_s = time.monotonic()
                await until(functools.partial(_serves, b, version), timeout_s=10)
                # Half a second is usual; a machine that stands still is no fault of theirs.
                assert time.monotonic() - seen_s < 5.0
                await asyncio.sleep(0.5)
        asking.check({V_OLD, V_STANDARD, V_BACK})
        report = (await b.admin("GET", "/admin/switch")).json
        assert len(report["routers"]) == 2
        assert sum(router["self"] for router in report["routers"]) == 1
        await until(lambda: {r.profile_version for r in b.state.pool.others} == {V_BACK})


async def test_a_canary_over_both(redis: RedisServer) -> None:
    """Both send the same ids to the candidate, and what both saw is judged together."""
    async with two_routers(redis) as (a, b):
        assert (
            await ask_switch(a, STANDARD, canary_share=0.5, hold_s=600, canary_s=600)
        ).status == 202
        await until(lambda: all(c.state.servings.share == 0.5 for c in (a, b)))
        sides: dict[str, set[str]] = {}
        for number in range(40):
            for c in (a, b):
                answer = await c.call(
                    "POST",
                    COMPLETIONS,
                    json={"model": MODEL, "prompt": SHORT, "max_tokens": 1},
                    headers={"x-request-id": f"id-{number}"},
                )
                sides.setdefault(f"id-{number}", set()).add(version_of(answer))
        assert all(len(versions) == 1 for versions in sides.values())
        assert len({next(iter(versions)) for versions in sides.values()}) == 2

        def counted() -> int:
            switch = a.state.conductor.agreed.switch
            return 0 if switch is None else sum(t.requests for t in switch.tallies.values())

        await until(lambda: counted() == 80, what="both routers' requests are counted")
        # Any router may end it.
        assert (await b.admin("POST", "/admin/rollback")).status == 202
        await over(a, b)
        assert {version_of(await c.complete(SHORT)) for c in (a, b)} == {V_OLD}


@contextlib.asynccontextmanager
async def router_process(
    home: Path, redis: RedisServer
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str, str]]:
    """A router in a process of its own, its URL, and its admin URL."""
    port, admin_port = free_port("127.0.0.1", 18_500), free_port("127.0.0.1", 19_500)
    (home / "profile.yaml").write_text(PROFILE)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "router", "--profile", str(home / "profile.yaml")),
        *("--port", str(port), "--admin-port", str(admin_port), "--home", str(home)),
        *("--store", redis.url),
        env={**os.environ, "BATON_CLUSTER_TOKEN": KEY, "BATON_ADMIN_TOKEN": ADMIN_KEY},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield process, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin_port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest.mark.parametrize("phase", [Phase.PREPARE, Phase.CANARY])
async def test_the_owner_is_killed(redis: RedisServer, tmp_path: Path, phase: Phase) -> None:
    """SIGKILL to the router that makes a switch: the other one brings it to its end, once."""
    async with (
        cluster(store=redis.url, register=False) as c,
        Beating(redis.url, c.engines).going(),
        router_process(tmp_path, redis) as (process, url, admin),
    ):
        headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
        await until(lambda: len(c.state.pool.records()) == 2)

        async def serves() -> bool:
            with contextlib.suppress(aiohttp.ClientError):
                async with c.http.get(f"{url}/readyz") as response:
                    return response.status == 200
            return False

        async with asyncio.timeout(30):
            while not await serves():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        body: dict[str, Any] = {"text": STANDARD, "canary_share": 0.5, "hold_s": 4, "canary_s": 4}
        if phase is Phase.PREPARE:
            # Nobody is ready for it, so that it waits.
            body = {"text": STANDARD, "prepare_s": 600, "canary_share": 0}
            await c.state.store.cordon(c.d.record().id)
            await c.state.store.cordon(c.p.record().id)
            await until(lambda: c.state.pool.is_closed(c.d.record().id))
            await asyncio.sleep(0.7)  # the other router looks too
        async with c.http.post(f"{admin}/admin/switch", json=body, headers=headers) as response:
            assert response.status == 202, await response.text()
        await until(lambda: _phase(c) is phase, timeout_s=10)
        owner = c.state.conductor.agreed.switch
        assert owner is not None
        assert owner.owner != c.state.router_id
        process.send_signal(signal.SIGKILL)
        await process.wait()
        await until(lambda: _owner(c) == c.state.router_id, timeout_s=10, what="taken over")
        if phase is Phase.PREPARE:
            await c.state.store.uncordon(c.d.record().id)
            await c.state.store.uncordon(c.p.record().id)
            await c.state.pool.refresh()
        asking = Asking([c])
        async with asking.going():
            await over(c)
        state = decode((await c.state.store.document(STATE)).value)
        (report,) = state.history
        assert report.outcome is Phase.COMMITTED
        assert (state.active.version, state.number) == (V_STANDARD, 1)
        assert all(answer.status == 200 for *_, answer in asking.answers)


def _phase(c: Cluster) -> Phase | None:
    switch = c.state.conductor.agreed.switch
    return None if switch is None else switch.phase


def _owner(c: Cluster) -> str:
    switch = c.state.conductor.agreed.switch
    return "" if switch is None else switch.owner


@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_redis_is_away_under_load(redis: RedisServer, how: str) -> None:
    """Redis hangs, or dies and comes back empty: nobody notices, and all heals by itself."""
    async with two_routers(redis) as (a, b):
        assert (await ask_switch(a, STANDARD)).status == 202
        await until(lambda: b.state.profile.version == V_STANDARD, timeout_s=10)
        await over(a, b)
        asking = Asking([a, b])
        async with asking.going():
            await asyncio.sleep(0.2)
            if how == "stopped":
                os.kill(redis.pid, signal.SIGSTOP)
            else:
                redis.kill()
            await until(lambda: a.state.pool.is_lost and b.state.pool.is_lost, timeout_s=15)
            assert (await ask_switch(a, BACK)).status == 503
            assert await a.metric("baton_store_lost") == 1
            await asyncio.sleep(AWAY_S)
            if how == "stopped":
                os.kill(redis.pid, signal.SIGCONT)
            else:
                redis.start()
            await until(lambda: not (a.state.pool.is_lost or b.state.pool.is_lost), timeout_s=15)
            await until(lambda: len(a.state.pool.records()) == 2, timeout_s=10)
            await asyncio.sleep(0.5)
        asking.check({V_STANDARD})
        document = await a.state.store.document(STATE)
        assert decode(document.value).active.version == V_STANDARD
        # And switching works again.
        assert (await ask_switch(b, BACK)).status == 202
        await until(lambda: a.state.profile.version == V_BACK, timeout_s=10)


async def test_legs_of_the_other_router_count(redis: RedisServer) -> None:
    """What one router has on a worker makes the other one choose another."""
    async with two_routers(redis, decodes=2) as (a, b):
        for engine in a.decodes:
            engine.token_s = 0.05
        streams = [
            asyncio.create_task(a.complete(SHORT, stream=True, max_tokens=50)) for _ in range(2)
        ]
        await until(lambda: sum(engine.running for engine in a.decodes) == 2)
        await until(lambda: sum(b.state.counts.elsewhere.values()) == 2)
        for stream in streams:
            await stream
        await until(lambda: not b.state.counts.elsewhere)


async def test_limits_are_shared(redis: RedisServer, tmp_path: Path) -> None:
    """A tenant's requests a minute are counted over both routers, late by a beat at most."""
    key = new_key()
    tenants = tmp_path / "tenants.yaml"
    spec = TenantSpec(key_hashes=[hash_key(key)], requests_per_minute=20)
    await FileBook(tenants).change(lambda found: found.update(t=spec))
    async with two_routers(redis, tenants=tenants) as (a, b):
        served = 0
        for turn in range(60):
            answer = await (a, b)[turn % 2].call(
                "POST",
                COMPLETIONS,
                json={"model": MODEL, "prompt": SHORT, "max_tokens": 1},
                headers={"Authorization": f"Bearer {key}"},
            )
            served += answer.status == 200
            await asyncio.sleep(0.05)
        assert 18 <= served <= 30


async def test_a_router_that_comes_later_serves_what_is_agreed(redis: RedisServer) -> None:
    """A router started with another profile serves by the one that the others agree on."""
    async with cluster(store=redis.url, register=False) as a, Beating(redis.url, a.engines).going():
        await until(lambda: len(a.state.pool.records()) == 2)
        assert (await ask_switch(a, STANDARD)).status == 202
        await over(a)
        late = RouterServer(a.server.settings)
        await late.start()
        try:
            assert late.state.profile.version == V_STANDARD
            async with a.http.post(
                late.url + COMPLETIONS, json={"model": MODEL, "prompt": LONG, "max_tokens": 2}
            ) as response:
                assert version_of(await read(response)) == V_STANDARD
        finally:
            await late.kill()


async def test_a_worker_is_given_another_role(redis: RedisServer) -> None:
    """An operator's word about one worker holds at all routers, until it is taken back."""
    async with two_routers(redis, decodes=2) as (a, b):
        worker = a.decodes[1].record().id
        answer = await a.admin("PUT", f"/admin/workers/{worker}/role", json={"role": "prefill"})
        assert answer.status == 200, answer
        await until(lambda: _role(b, worker) is Role.PREFILL)
        assert (await b.complete(LONG)).text == right_text()
        assert (await b.admin("DELETE", f"/admin/workers/{worker}/role")).status == 200
        await until(lambda: _role(a, worker) is Role.DECODE)


def _role(c: Cluster, worker: str) -> Role:
    return {str(record.id): record.role for record in c.state.pool.seated()}[worker]

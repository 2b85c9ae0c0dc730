"""The router's other endpoints: registry, models, health, metrics, status."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from baton.registrar import HttpRegistrar, heartbeat_loop
from baton.types import Limits, WorkerRecord, WorkerState
from tests.fakes.engine import KEY, MODEL, Trouble
from tests.fakes.redis_server import RedisServer
from tests.fakes.waiting import until
from tests.integration.router_cluster import (
    LONG,
    SHORT,
    STANDARD_PROFILE,
    Cluster,
    cluster,
    right_text,
)

AUTH = {"Authorization": f"Bearer {KEY}"}


async def status(c: Cluster) -> Any:
    answer = await c.call("GET", "/admin/status", headers=AUTH)
    assert answer.status == 200
    return answer.json


# --- the token ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": KEY},
        {"Authorization": f"Bearer {KEY}x"},
    ],
)
async def test_cluster_endpoints_need_the_token(headers: dict[str, str]) -> None:
    """Without it nobody registers, removes or reads workers; nothing changes."""
    async with cluster() as c:
        body = msgspec.json.encode(c.d.record(url="http://192.0.2.1:1"))
        for method, path, data in (
            ("PUT", "/internal/workers/d0?ttl_s=5", body),
            ("DELETE", "/internal/workers/d0", None),
            ("GET", "/admin/status", None),
        ):
            answer = await c.call(method, path, data=data, headers=headers)
            assert answer.status == 401
            assert answer.error["code"] == "invalid_api_key"
            assert KEY not in answer.body.decode()
        assert (await c.complete(SHORT)).text == right_text(SHORT)


# --- registration -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda record: b"",
        lambda record: b"{}",
        lambda record: b"not json",
        lambda record: msgspec.json.encode({"id": "d0", "role": "king"}),
        lambda record: msgspec.json.encode(msgspec.structs.replace(record, id="other")),
        lambda record: b" " * 70_000 + msgspec.json.encode(record),
    ],
)
async def test_records_that_are_none(make: Any) -> None:
    """Malformed, of another id than the path, or too large: 400, and the record stays."""
    async with cluster() as c:
        answer = await c.call(
            "PUT", "/internal/workers/d0?ttl_s=5", data=make(c.d.record()), headers=AUTH
        )
        assert answer.status == 400
        assert answer.error["type"] == "invalid_request_error"
        assert (await c.complete(SHORT)).status == 200


@pytest.mark.parametrize("ttl_s", ["0", "-1", "61", "nan", "inf", "soon", ""])
async def test_a_ttl_out_of_bounds(ttl_s: str) -> None:
    """A record never lives for ever: at most a minute."""
    async with cluster() as c:
        answer = await c.call(
            "PUT",
            f"/internal/workers/d0?ttl_s={ttl_s}",
            data=msgspec.json.encode(c.d.record()),
            headers=AUTH,
        )
        assert answer.status == 400
        assert "ttl_s" in answer.error["message"]


async def test_fields_of_a_later_version() -> None:
    """A worker of a later version may say more."""
    async with cluster(register=False) as c:
        more = {**msgspec.to_builtins(c.d.record()), "mood": "good"}
        answer = await c.call("PUT", "/internal/workers/d0", json=more, headers=AUTH)
        assert answer.status == 204
        assert (await c.complete(SHORT)).status == 200


async def test_heartbeats_that_stop() -> None:
    """A worker that says nothing any more is forgotten after its TTL."""
    async with cluster(register=False) as c:
        await c.put(c.d.record(), ttl_s=2.0)
        assert (await c.complete(SHORT)).status == 200
        await until(lambda: not c.state.pool.records(), timeout_s=10)
        assert (await c.complete(SHORT)).status == 503


async def test_the_real_registrar(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's own registrar: known while it beats, a change known at once, gone when it ends."""
    # Looking at the registry now and then must not be what makes the change known.
    monkeypatch.setattr("router.pool._REFRESH_S", 60.0)
    async with cluster(register=False) as c:
        stop, wake = asyncio.Event(), asyncio.Event()
        state = WorkerState.WARMING

        async def make_record() -> WorkerRecord:
            return c.d.record(state=state)

        registrar = HttpRegistrar(c.url, KEY)
        beating = asyncio.create_task(
            heartbeat_loop(registrar, make_record, interval_s=10, stop=stop, wake=wake)
        )
        await until(lambda: c.state.pool.records())
        assert (await c.complete(SHORT)).status == 503
        state = WorkerState.READY
        wake.set()
        await until(lambda: c.state.pool.is_usable(c.state.pool.records()[0]))
        assert (await c.complete(SHORT)).status == 200
        stop.set()
        await beating
        await registrar.close()
        assert not c.state.pool.records()


@pytest.mark.parametrize("state", [WorkerState.STARTING, WorkerState.WARMING, WorkerState.DRAINING])
async def test_only_ready_workers_get_traffic(state: WorkerState) -> None:
    """A worker in any other state gets nothing new."""
    async with cluster() as c:
        await c.register(c.p, state=state)
        answer = await c.complete()
        assert (answer.path, answer.reason) == ("local", "no_prefill_worker")
        await c.register(c.d, state=state)
        assert (await c.complete()).status == 503


async def test_a_worker_that_drains_finishes() -> None:
    """A request in flight on a draining worker goes on to its end."""
    async with cluster() as c:
        c.d.token_s = 0.03
        asking = asyncio.create_task(c.complete(stream=True))
        await until(lambda: c.d.running)
        await c.register(c.d, state=WorkerState.DRAINING)
        assert (await asking).text == right_text()


# --- models and health --------------------------------------------------------------------------


async def test_models() -> None:
    """Models of ready decode workers, with the smallest limit; one, and one that is not there."""
    async with cluster(decodes=2) as c:
        await c.register(c.decodes[1], limits=Limits(max_model_len=1000, slots=1))
        answer = await c.call("GET", "/v1/models")
        assert answer.json["object"] == "list"
        (model,) = answer.json["data"]
        assert model["id"] == MODEL
        assert model["object"] == "model"
        assert model["max_model_len"] == 1000
        assert (await c.call("GET", f"/v1/models/{MODEL}")).json == model
        for name in ("other", "a/b"):
            answer = await c.call("GET", f"/v1/models/{name}")
            assert answer.status == 404
            assert answer.error["code"] == "model_not_found"
        for engine in c.decodes:
            await c.remove(engine)
        assert (await c.call("GET", "/v1/models")).json["data"] == []


async def test_health_and_readiness() -> None:
    """The process is alive at once; ready only with somebody who can answer."""
    async with cluster(register=False) as c:
        assert (await c.call("GET", "/healthz")).json == {"status": "ok"}
        answer = await c.call("GET", "/readyz")
        assert answer.status == 503
        assert answer.json["ready_workers"] == {"prefill": 0, "decode": 0}
        await c.register(c.p)
        assert (await c.call("GET", "/readyz")).status == 503
        await c.register(c.d)
        answer = await c.call("GET", "/readyz")
        assert answer.status == 200
        assert answer.json["ready_workers"] == {"prefill": 1, "decode": 1}


@pytest.mark.parametrize(("asked", "decodes", "status"), [
    (0, 0, 200), (0, 1, 200), (1, 0, 503), (1, 1, 200), (2, 1, 503), (2, 2, 200),
])  # fmt: skip
async def test_readiness_means_as_many_workers_as_asked(
    asked: int, decodes: int, status: int
) -> None:
    """Of those that can answer: prefill workers do not count. With none asked for, a router that
    has read its store is ready, and holds requests until workers come; one that stops is not."""
    async with cluster(decodes=max(decodes, 1), register=False) as c:
        await c.register(c.p)
        for engine in c.decodes[:decodes]:
            await c.register(engine)
        for call in (c.call, c.admin):
            assert (await call("GET", f"/readyz?workers={asked}")).status == status
        c.state.stopping = True
        assert (await c.call("GET", f"/readyz?workers={asked}")).json["status"] == "stopping"
        c.state.stopping = False


@pytest.mark.parametrize("asked", ["-1", "many", ""])
async def test_readiness_asked_wrongly(asked: str) -> None:
    """A number of workers that is none is the asker's mistake, and said so."""
    async with cluster(register=False) as c:
        answer = await c.call("GET", f"/readyz?workers={asked}")
        assert answer.status == 400
        assert "workers" in answer.error["message"]


async def test_a_router_that_never_read_its_store_is_not_ready() -> None:
    """With a store that was away from the start nobody knows whether there are workers; once read,
    it may go away again."""
    redis = RedisServer()
    async with cluster(register=False, store=redis.url) as c:
        answer = await c.call("GET", "/readyz?workers=0")
        assert (answer.status, answer.json["status"]) == (503, "no store")
        with redis:
            await until(lambda: not c.state.pool.is_lost)
            assert (await c.call("GET", "/readyz?workers=0")).status == 200
        await until(lambda: c.state.pool.is_lost)
        assert (await c.call("GET", "/readyz?workers=0")).status == 200


async def test_readiness_of_a_standard_profile() -> None:
    """A standard worker is enough where the profile wants nothing else."""
    async with cluster(profile=STANDARD_PROFILE, prefills=0) as c:
        answer = await c.call("GET", "/readyz")
        assert answer.status == 200
        assert answer.json["ready_workers"] == {"standard": 1}


# --- metrics and status -------------------------------------------------------------------------


async def test_metrics() -> None:
    """What happened is on the metrics page."""
    async with cluster() as c:
        await c.complete()
        await c.complete(stream=True)
        await c.complete(SHORT)
        c.p.inject(Trouble.STATUS)
        await c.complete()
        long_path = {"endpoint": "/v1/completions", "path": "disaggregated", "status": "200"}
        assert await c.metric("baton_requests_total", **long_path, reason="long_prompt") == 2
        assert await c.metric("baton_requests_total", path="local", reason="short_prompt") == 1
        assert await c.metric("baton_requests_total", path="local", reason="prefill_failed") == 1
        assert await c.metric("baton_handoffs_total", state="done") == 2
        assert await c.metric("baton_handoffs_total", state="failed") == 1
        assert await c.metric("baton_handoffs_open") == 0
        assert await c.metric("baton_prefill_leg_seconds_count") == 3
        blocks = -(-len(LONG) // 32)
        assert 0 < await c.metric("baton_handoff_kv_bytes_total") <= 2 * blocks * 32 * 256
        assert await c.metric("baton_time_to_first_content_seconds_count") == 1
        assert await c.metric("baton_request_duration_seconds_count") == 4
        assert await c.metric("baton_workers", role="prefill", state="ready") == 1
        assert await c.metric("baton_leg_failures_total", code="worker_failed") == 1
        assert await c.metric("baton_requests_in_flight") == 0


async def test_metrics_say_which_profile() -> None:
    """Requests, latencies and decisions under the version that served them; the version itself,
    and that nothing is on its way to another, beside them."""
    async with cluster() as c:
        await c.complete(stream=True)
        await c.complete(SHORT)
        version = c.state.profile.version
        for name, number in (
            ("baton_requests_total", 2),
            ("baton_request_duration_seconds_count", 2),
            ("baton_time_to_first_content_seconds_count", 1),
            ("baton_decisions_total", 2),
        ):
            assert await c.metric(name, profile_version=version) == number
            assert await c.metric(name) == number
        assert await c.metric("baton_inter_token_seconds_count", profile_version=version) > 0
        active = {"name": "test", "version": version, "state": "active"}
        assert await c.metric("baton_profile_info", **active) == 1
        assert await c.metric("baton_profile_info") == 1
        assert await c.metric("baton_profile_switch_phase") == 0
        assert await c.metric("baton_profile_switches_total") == 0
        assert await c.metric("baton_profile_source_problems") == 0
        assert await c.metric("baton_workers_turning") == 0
        assert await c.metric("baton_routers") == 1
        assert await c.metric("baton_store_lost") == 0


async def test_status_of_the_cluster() -> None:
    """Operators see profile, workers, and handoffs while they are open."""
    async with cluster() as c:
        report = await status(c)
        assert report["profile"]["name"] == "test"
        assert report["profile"]["threshold_tokens"] == 64
        assert [w["record"]["id"] for w in report["workers"]] == ["d0", "p0"]
        assert report["handoffs"] == {"open": [], "stranded": [], "stranded_bytes": {}}
        c.d.token_s = 0.05
        asking = asyncio.create_task(c.complete(stream=True))
        await until(lambda: c.d.running)
        report = await status(c)
        (handoff,) = report["handoffs"]["open"]
        assert (handoff["prefill"], handoff["decode"]) == ("p0", "d0")
        assert report["in_flight"] == 1
        assert {w["record"]["id"]: w["legs"] for w in report["workers"]} == {"d0": 1, "p0": 0}
        await asking
        assert KEY not in str(report)


async def test_status_shows_doubts() -> None:
    """A worker that refused a connection is shown as suspect."""
    async with cluster() as c:
        await c.p.kill()
        await c.complete()
        report = await status(c)
        assert {w["record"]["id"]: w["suspect"] for w in report["workers"]} == {
            "d0": False,
            "p0": True,
        }

"""Workers while a profile waits, or serves them in other roles than they were started in."""

from __future__ import annotations

import httpx
import msgspec

from baton.types import Load, Role, RouterId, RouterRecord, WorkerId, WorkerState
from profiles.switching import Phase
from router.app import build_app
from tests.unit.router.switching.routers import PAIR, Cluster, Router, handing_over, usable, worker

D, P = WorkerId("d"), WorkerId("p")
STARTING = worker("d", state=WorkerState.STARTING)
WAITING = handing_over(50, terms=", prepare_s: 10")


async def test_the_last_worker_stays(cluster: Cluster) -> None:
    """A switch that prepares does not take the active profile's only worker for prefill. It waits
    for its decode worker, and at its limit says what was missing."""
    (a,) = cluster.make(1)
    await cluster.put(STARTING, PAIR[1])
    await a.join()
    await a.switch(WAITING)
    await cluster.go(9, a)
    assert a.phase is Phase.PREPARE
    assert usable(a) == [P]
    assert a.state.is_serving()
    await cluster.go(2, a)
    assert a.ends == [(1, "y50", "rolled_back")]
    reason = a.agreed.history[-1].reason
    assert "spec.pools.decode: no worker is ready (1 registered: d starting)" in reason
    assert usable(a) == [P]


async def test_the_last_worker_goes_when_another_comes(cluster: Cluster) -> None:
    """It prefills once there is one that answers, and the switch goes on."""
    (a,) = cluster.make(1)
    await cluster.put(STARTING, PAIR[1])
    await a.join()
    await a.switch(WAITING)
    await cluster.go(5, a)
    await cluster.put(PAIR[0])
    await cluster.go(1, a)
    assert a.ends == [(1, "y50", "committed")]
    assert a.state.ready_workers() == {"prefill": 1, "decode": 1}


async def test_models_of_workers_in_other_roles(cluster: Cluster) -> None:
    """A worker that was started for prefill and answers whole requests has its model listed."""
    (a,) = cluster.make(1)
    await cluster.put(STARTING, PAIR[1])
    await a.join()
    assert await _models(a) == ["served"]
    await cluster.put(worker("p", Role.PREFILL, WorkerState.DRAINING))
    await cluster.look(a)
    assert await _models(a) == []


async def _models(router: Router) -> list[str]:
    transport = httpx.ASGITransport(build_app(router.state))
    async with httpx.AsyncClient(transport=transport, base_url="http://router") as client:
        return [model["id"] for model in (await client.get("/v1/models")).json()["data"]]


async def test_drained_is_what_nobody_uses(cluster: Cluster) -> None:
    """A worker with work of any router, or blocks that one left there, is not drained yet."""
    (a,) = await cluster.started(1)
    assert a.state.is_drained(P)
    for told in ({"prefilling": {P: 1}}, {"answering": {P: 1}}, {"stranded_bytes": {P: 9}}):
        record = RouterRecord(RouterId("other"), **told)  # type: ignore[arg-type]
        await cluster.store.put_router(record, ttl_s=60)
        await cluster.look(a)
        assert not a.state.is_drained(P)
        assert a.state.is_drained(D)
    await cluster.store.remove_router(RouterId("other"))
    await cluster.look(a)
    assert a.state.is_drained(P)
    await cluster.put(msgspec.structs.replace(PAIR[0], load=Load(kv_usage=0.1)))
    await cluster.look(a)
    assert not a.state.is_drained(D)

"""The store is away, or has lost what it had, while profiles are switched."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from baton.errors import TooManyRequests
from baton.store import STATE
from baton.types import RouterId, RouterRecord, TenantUse, WorkerId
from profiles.switching import Phase, begin, decode, encode, first, terms_of
from router.settings import RouterSettings
from router.state import RouterState
from router.tenants import Tenant
from tests.fakes.virtual_loop import run_virtual
from tests.unit.router.care.workers import LoopClock
from tests.unit.router.switching.routers import Cluster, Router, Store, X, handing_over, serve

Y, Z = handing_over(50), handing_over(60)
CANARY = handing_over(70, share=0.5, terms=", hold_s: 8, canary_s: 12, min_requests: 5")


async def away(cluster: Cluster, seconds: float, *routers: Router) -> None:
    """The store is away for so long; then it is back, and nobody has looked yet."""
    cluster.store.away = True
    await cluster.go(seconds, *routers)
    cluster.clock.advance(0.5)
    cluster.store.away = False


# --- away ---


@pytest.mark.parametrize("owner_first", [True, False])
async def test_a_switch_stands_still(cluster: Cluster, owner_first: bool) -> None:
    """While the store is away no phase's time runs, and nobody counts as silent, whoever looks
    first when it is back; afterwards both go on."""
    a, b = await cluster.started(2)
    await a.switch(CANARY)
    await cluster.go(1, a, b)
    lasted_s = a.conductor.phase_s
    assert lasted_s is not None
    await away(cluster, 100, a, b)
    for router in (a, b) if owner_first else (b, a):
        await cluster.look(router)
    assert a.conductor.phase_s == pytest.approx(lasted_s, abs=1)
    assert a.agreed.switch is not None
    assert (a.agreed.switch.owner, a.phase) == (a.state.router_id, Phase.CANARY)
    await cluster.go(12, a, b)
    assert a.ends == b.ends == [(1, "y70", "committed")]


async def test_no_verdict_before_all_have_told(cluster: Cluster) -> None:
    """What the owner saw itself during an outage is good and enough; it waits for the others, who
    saw otherwise."""
    a, b = await cluster.started(2)
    await a.switch(CANARY)
    await cluster.go(8, a, b)
    cluster.store.away = True
    await cluster.go(10, a, b)
    serve(a.candidate, good=20)
    serve(b.candidate, bad=20)
    cluster.store.away = False
    await cluster.go(1, a)
    assert a.phase is Phase.CANARY
    await cluster.go(2, b, a)
    assert a.ends == [(1, "y70", "rolled_back")]


@contextlib.asynccontextmanager
async def whole(*told: RouterRecord) -> AsyncIterator[tuple[RouterState, Store]]:
    """A router with all its tasks, in virtual time, over a store that knows these others."""
    state = RouterState(RouterSettings(X, "token"), clock=LoopClock())
    store = state.store = state.pool._store = Store(state.clock)
    for record in told:
        await store.put_router(record, ttl_s=3600)
    await state.start()
    try:
        yield state, store
    finally:
        await state.close()


def test_what_others_told_ends_with_an_outage() -> None:
    """After as long as their records live, neither their legs nor what their tenants use counts;
    it does again once the store is back."""
    tenant, worker_id = Tenant(name="t", concurrency=2), WorkerId("d")
    use = {tenant.name: TenantUse(running=2)}
    other = RouterRecord(RouterId("other"), answering={worker_id: 5}, tenants=use)

    async def main() -> None:
        async with whole(other) as (state, store):
            state.limits.configure({tenant.name: tenant}, 0.0)
            for away, seconds, counts in ((0, 2, True), (1, 4, True), (1, 4, False), (0, 2, True)):
                store.away = bool(away)
                await asyncio.sleep(seconds)
                assert state.counts.elsewhere == ({worker_id: 5} if counts else {})
                with pytest.raises(TooManyRequests) if counts else contextlib.nullcontext():
                    state.limits.settle(state.limits.reserve(tenant, 1, 0.0), 1, 0.0)

    run_virtual(main())


# --- empty ---


async def test_a_store_written_again_by_who_knew_less(cluster: Cluster) -> None:
    """A router that had missed the end is the first to see that the store is empty: the others
    put that right, and it follows."""
    a, b, c = await cluster.started(3)
    await a.switch(CANARY)
    await cluster.go(1, a, b, c)
    await a.conductor.skip()
    await cluster.go(1, a, c)
    assert (a.active, b.active, b.phase) == ("y70", "x", Phase.CANARY)
    cluster.store.forget()
    await cluster.put(*a.state.pool.records())
    await cluster.look(b)
    assert decode((await cluster.store.document(STATE)).value).switch is not None
    await cluster.go(2, c, a, b)
    for router in (a, b, c):
        assert (router.active, router.ends) == ("y70", [(1, "y70", "committed")])
        assert router.counted(Phase.COMMITTED) == 1


async def test_a_change_right_after_the_loss(cluster: Cluster) -> None:
    """Nor does it matter that somebody who knows the end changes something before it looks."""
    a, b = await cluster.started(2)
    await a.switch(CANARY)
    await cluster.go(1, a, b)
    await a.conductor.skip()
    cluster.store.forget()
    await cluster.look(b)
    await a.switch(Y)
    await cluster.go(2, a, b)
    assert a.active == b.active == "y50"
    assert a.ends == [(1, "y70", "committed"), (2, "y50", "committed")]
    assert a.counted(Phase.COMMITTED) == 2


async def test_who_comes_new_to_an_empty_store(cluster: Cluster) -> None:
    """It waits for those who know, and overwrites nothing; alone, it is the first."""
    a, *_ = await cluster.started(1)
    await a.switch(Y)
    await cluster.go(1, a)
    cluster.store.forget()
    new, alone = cluster.make(2, Z, Z)
    await new.join()
    await cluster.go(1, a, new)
    assert a.active == new.active == "y50"
    cluster.store.forget()
    await alone.join()
    await cluster.go(1, alone)
    assert decode((await cluster.store.document(STATE)).value).active.name == "y60"


def test_who_starts_waits() -> None:
    """In a whole router too, whose tasks all look when they begin: for another beat at least."""

    async def main() -> None:
        async with whole() as (_, store):
            await asyncio.sleep(0.2)
            assert (await store.document(STATE)).revision == 0
            await asyncio.sleep(2)
            assert (await store.document(STATE)).revision == 1

    run_virtual(main())


async def test_another_content_at_an_equal_revision(cluster: Cluster) -> None:
    """The store was emptied and written again as often as before: what is there now counts."""
    (a,) = await cluster.started(1)
    assert a.conductor.revision == 1
    cluster.store.forget()
    await cluster.put(*a.state.pool.records())
    await cluster.store.swap(STATE, 0, encode(first(Y)))
    await cluster.go(1, a)
    assert a.active == Y.name
    assert a.conductor.revision == 1


@pytest.mark.parametrize("loss", ["outage", "emptied"])
async def test_nobody_leads_because_it_looks_first(cluster: Cluster, loss: str) -> None:
    """Where the store has forgotten the routers, the first one to look does not take the word of
    its own source for everybody's."""
    a, b = await cluster.started(2, sources=True)
    a.source.wants(Y)
    await cluster.go(1, a, b)
    await cluster.go(2, a, b)
    assert a.active == b.active == "y50"
    if loss == "outage":
        await away(cluster, 10, a, b)
    else:
        cluster.store.forget()
        await cluster.put(*a.state.pool.records())
    await cluster.look(b)
    await cluster.go(3, a, b)
    assert (b.active, b.phase) == ("y50", None)


@pytest.mark.parametrize("trouble", ["away", "faster"])
async def test_a_proposal_is_not_lost(cluster: Cluster, trouble: str) -> None:
    """One that met a store that was away, or another switch that was faster, is tried later."""
    (a,) = await cluster.started(1, sources=True)

    async def meet() -> None:
        if trouble == "away":
            cluster.store.away = True
            await cluster.store.document(STATE)
        found = await cluster.store.document(STATE)
        terms = terms_of(CANARY)
        other = begin(
            decode(found.value), CANARY, router=a.state.router_id, by="other", terms=terms
        )
        await cluster.store.swap(STATE, found.revision, encode(other))

    a.source.wants(Y)
    cluster.store.meanwhile = meet
    await cluster.go(1, a)
    cluster.store.away = False
    if a.phase is not None:
        await a.conductor.roll_back()
    await cluster.go(5, a)
    assert a.active == "y50"

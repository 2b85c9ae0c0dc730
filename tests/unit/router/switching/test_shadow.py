"""The last requests, decided anew: what would change, and what nobody would serve."""

from __future__ import annotations

import asyncio
import random

import pytest

from profiles.switching import Shadow
from router.call import Trail
from router.dispatch import Recent
from router.policy import Ask, Handoff, TokenBounds, plan
from router.switching.shadow import compare
from tests.unit.router.serving_profiles import disaggregated, serving, standard
from tests.unit.router.switching.routers import PAIR, Cluster, Router

FROM_100, FROM_10 = disaggregated(100), disaggregated(10, name="from-10")


def asked(*tokens: int | None, model: str = "served") -> list[Recent]:
    """Requests with prompts of so many tokens, None where nobody counted."""
    found = []
    for count in tokens:
        bounds = None if count is None else TokenBounds(count, count)
        found.append(Recent(Ask(model, bounds), (), Trail(0.0, serving())))
    return found


@pytest.fixture
async def router(cluster: Cluster) -> Router:
    """One over a pair of workers, which it has hand over prompts of 100 tokens or more; the
    candidate does so from 10 on."""
    (made,) = await cluster.started(1)
    counts = made.state.counts
    made.state.arrange(serving(FROM_100, counts), serving(FROM_10, counts))
    return made


async def compared(router: Router, recent: list[Recent], *, back: bool = False) -> Shadow:
    old, new = router.servings.current, router.candidate
    old, new = (new, old) if back else (old, new)
    return await compare(recent, router.state.pool, old, new)


async def test_paths_that_change(router: Router) -> None:
    """Those between the two thresholds; a prompt is as long as it turned out to be, also where its
    length did not matter then. Nothing is sent, or counted as sent."""
    recent = asked(5, 50, 60, 200, None)
    recent[-1].trail.prompt_tokens = TokenBounds(70, 70)
    found = await compared(router, recent)
    assert found == Shadow(requests=5, changed={"local -> disaggregated": 3})
    assert router.state.counts.legs == {}


async def test_what_nobody_would_serve(router: Router) -> None:
    """Requests that find a worker now and would find none; not those that find none either way,
    nor those that only the new profile serves."""
    nobody = serving(standard(takes="[]"), router.state.counts)
    router.state.arrange(router.servings.current, nobody)
    recent = asked(50, 200) + asked(50, model="unknown")
    found = await compared(router, recent)
    assert (found.requests, found.refused) == (3, 2)
    assert found.changed == {"local -> refused": 1, "disaggregated -> refused": 1}
    assert (await compared(router, recent, back=True)).refused == 0


async def test_predicted_times(router: Router) -> None:
    """Means over requests with a prediction on both sides; without measurements there are none."""
    recent = asked(50, 1000)
    found = await compared(router, recent)
    assert (found.old_ttft_s, found.new_ttft_s) == (None, None)
    pool = router.state.pool
    for worker, tokens_per_s in zip(PAIR, (100, 1000), strict=True):
        for tokens in [100, 500, 1000] * 100:
            pool.prefilled(worker, tokens, 0, tokens / tokens_per_s)
    for kv_bytes in [10_000, 100_000] * 200:
        handoff = plan(recent[1].ask, pool.snapshot(router.servings.current), random.Random(1))
        assert isinstance(handoff, Handoff)
        pool.pulled(handoff, kv_bytes, kv_bytes / 1e6)
    found = await compared(router, recent)
    # The short prompt: 0.5 s where it is now, 0.05 s for its prefill and some for the pull.
    assert found.old_ttft_s is not None
    assert found.new_ttft_s is not None
    assert found.old_ttft_s - found.new_ttft_s == pytest.approx((0.5 - 0.05) / 2, abs=0.05)


async def test_a_profile_is_checked(cluster: Cluster, router: Router) -> None:
    """An operator sees what would change before anything does; workers that leave meanwhile are
    seen to leave, and nothing is left behind."""
    recent = router.state.dispatcher.recent
    recent.extend(asked(*[50] * 40))
    before = len(router.state.counts._followers)
    checking = asyncio.create_task(router.conductor.check(FROM_10))
    await asyncio.sleep(0)
    await cluster.store.remove_worker(PAIR[0].id)
    await router.state.pool.refresh()
    checked = await checking
    assert checked.missing == ("spec.pools.decode: no worker is registered",)
    assert checked.shadow.requests == 40
    assert "spec.classify.threshold_tokens" in {change.path for change in checked.changes}
    assert sum(checked.shadow.changed.values()) < 40
    assert router.ends == []
    assert len(router.state.counts._followers) == before

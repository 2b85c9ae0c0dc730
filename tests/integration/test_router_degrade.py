"""What is tried after a failed handoff: the steps that the profile names, and no others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from tests.fakes.engine import Leg, Trouble
from tests.fakes.waiting import until
from tests.integration.router_cluster import LONG, cluster, right_text, tokens_of

FAR = (
    "connect_s: 0.5, prefill_s: 1, first_token_s: 1, idle_s: 0.5, total_s: 3",
    "connect_s: 20, prefill_s: 60, first_token_s: 60, idle_s: 60, total_s: 120",
)
"""No deadline ends anything."""


def degrade(said: str) -> Sequence[tuple[str, str]]:
    return (FAR, ('routing: {prefix: "off"}', f'routing: {{prefix: "off"}}\n  degrade: {{{said}}}'))


async def test_another_prefill_worker() -> None:
    """``other_prefill`` comes first by default, and never leads back to the one that failed."""
    async with cluster(prefills=2, replace=(FAR,)) as c:
        for engine in c.prefills:
            engine.inject(Trouble.STATUS, Leg.PREFILL, status=500)
        # Whichever is first fails; the other fails as well: then decode alone.
        answer = await c.complete()
        assert (answer.path, answer.reason) == ("local", "prefill_failed")
        assert [len(engine.requests()) for engine in c.prefills] == [1, 1]
        c.prefills[0].inject(Trouble.STATUS, Leg.PREFILL, times=100)
        reasons = set()
        for _ in range(6):
            answer = await c.complete()
            assert (answer.path, answer.text) == ("disaggregated", right_text())
            reasons.add(answer.reason)
        assert reasons <= {"long_prompt", "prefill_failed"}


@pytest.mark.parametrize("stream", [False, True])
async def test_local_within_a_budget(stream: bool) -> None:
    """A prompt that is too long for decode alone fails, with prefill's fault; a shorter one is
    computed there."""
    async with cluster(replace=degrade("steps: [local], local_tokens: 150")) as c:
        assert 64 < len(tokens_of("x" * 100)) <= 150 < len(tokens_of(LONG))
        c.p.inject(Trouble.STATUS, Leg.PREFILL, times=2)
        answer = await c.complete("x" * 100, stream=stream)
        assert (answer.status, answer.path) == (200, "local")
        answer = await c.complete(LONG, stream=stream)
        assert answer.status == 502
        assert answer.error["code"] == "worker_failed"
        assert len(c.d.requests()) == 1


async def test_waiting_for_a_prefill_worker() -> None:
    """``queue``: the request waits until another prefill worker is there, and is handed over."""
    said = "steps: [other_prefill, queue], attempts: 10"
    async with cluster(prefills=2, register=False, replace=degrade(said)) as c:
        await c.register(c.d)
        await c.register(c.p)
        c.p.inject(Trouble.STATUS, Leg.PREFILL)
        asking = asyncio.create_task(c.complete())
        await until(lambda: c.p.requests() and c.p.requests()[0].finished)
        await c.register(c.prefills[1])
        answer = await asking
        assert (answer.path, answer.text) == ("disaggregated", right_text())
        assert answer.reason == "prefill_failed"
        assert len(c.prefills[1].requests()) == 1
        assert c.d.requests(Leg.LOCAL) == []


async def test_waiting_in_vain() -> None:
    """It ends with the attempts, or with its client."""
    async with cluster(replace=degrade("steps: [queue], attempts: 2")) as c:
        c.p.inject(Trouble.STATUS, Leg.PREFILL, times=2)
        answer = await c.complete()
        assert (answer.status, answer.error["code"]) == (502, "worker_failed")
        asking = asyncio.create_task(c.complete())
        await until(lambda: len(c.p.requests()) == 2 and c.p.requests()[1].finished)
        asking.cancel()
        await c.settled()


async def test_nothing_is_tried() -> None:
    """No steps: a failed handoff fails the request, once and at once."""
    async with cluster(prefills=2, replace=degrade("steps: []")) as c:
        for engine in c.prefills:
            engine.inject(Trouble.STATUS, Leg.PREFILL)
        answer = await c.complete()
        assert answer.status == 502
        assert sum(len(engine.requests()) for engine in c.prefills) == 1
        assert c.d.requests() == []

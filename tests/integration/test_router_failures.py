"""Workers that fail before the client has anything: the answer is right, or an error, and soon.

A failed leg is tried once more on one worker alone, with a fresh prefill; that no transfer
parameters are used twice is checked by the cluster at the end of each test.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from baton.types import Load, WorkerState
from tests.fakes.engine import FakeEngine, Leg, Trouble
from tests.fakes.waiting import until
from tests.integration.router_cluster import (
    LONG,
    SHORT,
    Cluster,
    Stopwatch,
    cluster,
    right_chat,
    right_text,
)

pytestmark = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])

SLOW = (("first_token_s: 1,", "first_token_s: 8,"), ("total_s: 3", "total_s: 12"))
"""Deadlines far away, so that only something better than a deadline can end a wait."""

PATIENT = (
    (
        "connect_s: 0.5, prefill_s: 1, first_token_s: 1, idle_s: 0.5, total_s: 3",
        "connect_s: 5, prefill_s: 10, first_token_s: 10, idle_s: 5, total_s: 30",
    ),
)
QUICK = (
    (
        "connect_s: 0.5, prefill_s: 1, first_token_s: 1,",
        "connect_s: 0.3, prefill_s: 0.4, first_token_s: 0.4,",
    ),
    ("idle_s: 0.5, total_s: 3", "idle_s: 0.4, total_s: 1.2"),
)
"""Deadlines so near that the tests need not wait long for them."""

HANGS = (Trouble.HANG_BEFORE_HEADERS, Trouble.HANG)


# --- prefill ------------------------------------------------------------------------------------

PREFILL_TROUBLES: list[tuple[Trouble, dict[str, Any], str]] = [
    (Trouble.STATUS, {"status": 500}, "prefill_failed"),
    (Trouble.STATUS, {"status": 503}, "prefill_failed"),
    (Trouble.STATUS, {"status": 401}, "prefill_failed"),
    (Trouble.STATUS, {"status": 400}, "prefill_refused"),
    (Trouble.STATUS, {"status": 404}, "prefill_refused"),
    (Trouble.STATUS, {"status": 302}, "prefill_failed"),
    (Trouble.NO_PARAMS, {}, "prefill_failed"),
    (Trouble.NOT_JSON, {}, "prefill_failed"),
    (Trouble.CUT_BEFORE_HEADERS, {}, "prefill_failed"),
    (Trouble.CUT, {}, "prefill_failed"),
    (Trouble.HANG_BEFORE_HEADERS, {}, "prefill_failed"),
    (Trouble.HANG, {}, "prefill_failed"),
]


@pytest.mark.parametrize(("trouble", "more", "reason"), PREFILL_TROUBLES)
async def test_prefill_fails(
    trouble: Trouble, more: dict[str, Any], reason: str, stream: bool
) -> None:
    """Whatever prefill does, decode alone gives the right answer, and hears of no handoff."""
    async with cluster(replace=QUICK if trouble in HANGS else ()) as c:
        c.p.inject(trouble, Leg.PREFILL, **more)
        answer = await c.complete(stream=stream)
        assert answer.status == 200
        assert answer.text == right_text()
        assert (answer.path, answer.reason) == ("local", reason)
        assert [s.leg for s in c.d.requests()] == [Leg.LOCAL]
        assert await c.metric("baton_leg_failures_total", leg=reason) == 1
        assert await c.metric("baton_handoffs_total", state="failed") == 1


async def test_prefill_is_dead(stream: bool) -> None:
    """A refused connection costs no time, and the worker is left alone for a moment."""
    async with cluster(replace=PATIENT) as c:
        await c.p.kill()
        watch = Stopwatch()
        answer = await c.complete(stream=stream)
        assert answer.text == right_text()
        assert answer.reason == "prefill_failed"
        assert watch.s < 3
        answer = await c.complete(stream=stream)
        assert answer.reason == "no_prefill_worker"


async def test_prefill_comes_back_under_another_engine_id(stream: bool) -> None:
    """A restarted engine is believed at once."""
    async with cluster() as c:
        await c.p.kill()
        await c.complete(stream=stream)
        await c.p.start()
        await c.register(c.p)
        answer = await c.complete(stream=stream)
        assert answer.text == right_text()
        assert answer.path == "disaggregated"


async def test_prefill_is_frozen(stream: bool) -> None:
    """A worker that takes connections and says nothing is given up after its deadline."""
    async with cluster(replace=QUICK) as c:
        c.p.freeze()
        watch = Stopwatch()
        answer = await c.complete(stream=stream)
        assert answer.text == right_text()
        assert 0.3 < watch.s < 1.2
        c.p.thaw()


async def test_another_chat(stream: bool) -> None:
    """Chats are retried too."""
    async with cluster() as c:
        c.p.inject(Trouble.STATUS, Leg.PREFILL)
        answer = await c.chat(stream=stream)
        assert answer.text == right_chat()
        assert answer.path == "local"


# --- decode -------------------------------------------------------------------------------------

DECODE_TROUBLES: list[tuple[Trouble, dict[str, Any]]] = [
    (Trouble.STATUS, {"status": 500}),
    (Trouble.STATUS, {"status": 503}),
    (Trouble.STATUS, {"status": 401}),
    (Trouble.CUT_BEFORE_HEADERS, {}),
    (Trouble.CUT, {}),
    (Trouble.HALF_EVENT, {}),
    (Trouble.ERROR_EVENT, {}),
]


@pytest.mark.parametrize(("trouble", "more"), DECODE_TROUBLES)
@pytest.mark.parametrize("prompt", [SHORT, LONG], ids=["local", "handoff"])
async def test_decode_fails(
    prompt: str, trouble: Trouble, more: dict[str, Any], stream: bool
) -> None:
    """The leg that answers fails before its first content: the other decode worker takes over,
    over a fresh handoff where decode alone is to blame, else by itself."""
    async with cluster(decodes=2) as c:
        first = Leg.DECODE if prompt == LONG else Leg.LOCAL
        c.d.inject(trouble, first, **more)
        await c.register(c.decodes[1], load=Load(running=5))
        answer = await c.complete(prompt, stream=stream)
        assert answer.status == 200
        assert answer.text == right_text(prompt)
        cut = trouble in (Trouble.CUT_BEFORE_HEADERS, Trouble.CUT, Trouble.HALF_EVENT)
        again = Leg.DECODE if prompt == LONG and cut else Leg.LOCAL
        assert answer.path == ("disaggregated" if again is Leg.DECODE else "local")
        assert answer.reason in ("transfer_failed", "decode_failed")
        assert [seen.leg for seen in c.d.requests()] == [first]
        assert [seen.leg for seen in c.decodes[1].requests()] == [again]
        assert len(c.p.requests()) == (0 if prompt == SHORT else 1 + (again is Leg.DECODE))


@pytest.mark.parametrize("trouble", [Trouble.STATUS, Trouble.ERROR_EVENT])
async def test_a_failed_transfer_with_one_decode_worker(trouble: Trouble, stream: bool) -> None:
    """What is put down to the transfer may be tried on the same worker."""
    async with cluster() as c:
        c.d.inject(trouble, Leg.DECODE)
        answer = await c.complete(stream=stream)
        assert answer.text == right_text()
        assert answer.reason == "transfer_failed"
        assert [s.leg for s in c.d.requests()] == [Leg.DECODE, Leg.LOCAL]


async def test_prefill_dies_between_the_legs(stream: bool) -> None:
    """Blocks that are gone are an error of the engine's, and never an answer."""
    async with cluster() as c:
        c.d.inject(Trouble.DELAY, Leg.DECODE, delay_s=0.2)
        asking = asyncio.create_task(c.complete(stream=stream))
        await until(lambda: c.d.requests(Leg.DECODE))
        await c.p.kill()
        answer = await asking
        assert answer.status == 200
        assert answer.text == right_text()
        assert (answer.path, answer.reason) == ("local", "transfer_failed")
        stranded = c.state.ledger.stranded_handoffs()
        assert len(stranded) == 1
        assert await c.metric("baton_handoff_stranded_bytes") == stranded[0].kv_bytes > 0


@contextlib.asynccontextmanager
async def beating(c: Cluster, engine: FakeEngine, **changes: Any) -> AsyncIterator[None]:
    """Heartbeats of one worker, twice a second, with a load that its engine tells."""

    async def beat() -> None:
        for second in range(100):
            load = Load(running=engine.running, waiting=engine.waiting)
            await c.register(engine, load=load, heartbeat_s=1e6 + second, **changes)
            await asyncio.sleep(0.5)

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_prefill_hangs_between_the_legs(stream: bool) -> None:
    """Decode would wait for ever. The registry tells: prefill is silent, decode waits."""
    async with cluster(replace=SLOW) as c:
        c.d.inject(Trouble.DELAY, Leg.DECODE, delay_s=0.1)
        asking = asyncio.create_task(c.complete(stream=stream))
        await until(lambda: c.d.requests(Leg.DECODE))
        c.p.freeze()
        watch = Stopwatch()
        async with beating(c, c.d), beating(c, c.p, state=WorkerState.WARMING):
            answer = await asking
        assert answer.status == 200
        assert answer.text == right_text()
        assert (answer.path, answer.reason) == ("local", "transfer_failed")
        assert watch.s < 4.0
        assert c.d.requests(Leg.DECODE)[0].aborted
        c.p.thaw()


async def test_a_slow_answer_is_no_stall(stream: bool) -> None:
    """Prefill leaves after its blocks were pulled: a decode worker that runs is not given up."""
    async with cluster(replace=SLOW) as c:
        c.d.token_s = 0.25
        asking = asyncio.create_task(c.complete(stream=stream))
        await until(lambda: c.d.running)
        await c.remove(c.p)
        async with beating(c, c.d):
            answer = await asking
        assert answer.text == right_text()
        assert answer.path == "disaggregated"


# --- both ---------------------------------------------------------------------------------------

BOTH: list[tuple[Trouble, Trouble, int, str]] = [
    (Trouble.STATUS, Trouble.STATUS, 502, "worker_failed"),
    (Trouble.HANG_BEFORE_HEADERS, Trouble.STATUS, 502, "worker_failed"),
    (Trouble.STATUS, Trouble.HANG_BEFORE_HEADERS, 504, "worker_timeout"),
    (Trouble.HANG_BEFORE_HEADERS, Trouble.HANG, 504, "worker_timeout"),
    (Trouble.NO_PARAMS, Trouble.CUT_BEFORE_HEADERS, 502, "worker_unreachable"),
    (Trouble.CUT, Trouble.CUT, 502, "worker_unreachable"),
]


@pytest.mark.parametrize(("first", "second", "status", "code"), BOTH)
async def test_both_fail(
    first: Trouble, second: Trouble, status: int, code: str, stream: bool
) -> None:
    """The client gets an error object, within the request's own deadline."""
    async with cluster(replace=QUICK if {first, second} & set(HANGS) else ()) as c:
        c.p.inject(first, Leg.PREFILL)
        c.d.inject(second, Leg.LOCAL)
        watch = Stopwatch()
        answer = await c.complete(stream=stream)
        assert watch.s < 2.0
        assert answer.status == status
        assert answer.headers["content-type"] == "application/json"
        assert answer.error["type"] == "server_error"
        assert answer.error["code"] == code
        assert len(c.d.requests()) == 1


async def test_all_are_dead(stream: bool) -> None:
    """Nobody to ask: an error, and 503 with a hint once that is known."""
    async with cluster() as c:
        await asyncio.gather(c.p.kill(), c.d.kill())
        answer = await c.complete(stream=stream)
        assert answer.status in (502, 503)
        assert answer.error["code"] in ("worker_unreachable", "no_worker_available")
        answer = await c.complete(stream=stream)
        assert answer.status == 503
        assert answer.error["code"] == "no_worker_available"
        assert answer.headers["retry-after"] == "1"


async def test_a_frozen_decode_worker(stream: bool) -> None:
    """A hung worker ends at the request's last moment at the latest."""
    async with cluster() as c:
        c.d.freeze()
        watch = Stopwatch()
        answer = await c.complete(stream=stream)
        assert answer.status == 504
        assert answer.error["code"] == "worker_timeout"
        # Two seconds more for the question how long the prompt is.
        assert watch.s < 5.5
        c.d.thaw()


async def test_a_decode_worker_that_refuses(stream: bool) -> None:
    """A 4xx of decode's is the client's own: it is passed on, and the handoff has failed."""
    async with cluster() as c:
        c.d.inject(Trouble.STATUS, Leg.DECODE, status=422)
        answer = await c.complete(stream=stream)
        assert answer.status == 422
        assert answer.json["error"]["message"] == "injected"
        assert await c.metric("baton_handoffs_total", state="failed") == 1

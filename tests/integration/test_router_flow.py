"""Who waits in the router, over HTTP: for a worker, for a place, until a deadline, until a stop.

Order and conditions are what is looked at, never how long something took: where a wait has to end
by itself, the profile makes it short; where it must not, long.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiohttp
import openai
import pytest

from baton.types import Limits, WorkerState
from tests.fakes.engine import MODEL, Leg, Trouble
from tests.fakes.waiting import until
from tests.integration.router_cluster import (
    CHAT,
    COMPLETIONS,
    LONG,
    SHORT,
    Answer,
    Cluster,
    cluster,
    long_chat,
    right_text,
)

PATIENCE_S = 20.0
FLOW = "flow: {worker_wait_s: 0, slots_factor: 10}"
DEADLINES = "connect_s: 0.5, prefill_s: 1, first_token_s: 1, idle_s: 0.5, total_s: 3"
FAR = (DEADLINES, "connect_s: 20, prefill_s: 60, first_token_s: 60, idle_s: 60, total_s: 120")


def flow(**settings: object) -> Sequence[tuple[str, str]]:
    """The profile with other rules for who waits, one request per slot, and no deadline near."""
    rules = {"worker_wait_s": 60, "queue_ttl_s": 60, "slots_factor": 1, **settings}
    said = ", ".join(f"{name}: {value}" for name, value in rules.items())
    return (FAR, (FLOW, f"flow: {{{said}}}"))


@contextlib.asynccontextmanager
async def one_slot(**settings: object) -> AsyncIterator[tuple[Cluster, asyncio.Task[Answer]]]:
    """A cluster whose only slot is taken by a request that ends when ``c.d`` is thawed."""
    async with cluster(replace=flow(**settings)) as c:
        await c.register(c.d, limits=Limits(max_model_len=2048, slots=1))
        first = await c.occupy(user="first")
        yield c, first
        c.d.thaw()
        assert (await first).status == 200


async def ask(c: Cluster, priority: int = 0, timeout_s: float | None = None, **more: Any) -> Answer:
    """A completion, with what its headers ask for."""
    headers = {"x-baton-priority": str(priority)}
    if timeout_s is not None:
        headers["x-baton-timeout-s"] = str(timeout_s)
    path = more.pop("path", COMPLETIONS)
    body = {"model": MODEL, "prompt": SHORT, "max_tokens": 8, **more}
    return await c.call("POST", path, json=body, headers=headers)


async def queued(c: Cluster, **more: Any) -> asyncio.Task[Answer]:
    """A request that waits in the router now."""
    before = c.state.gate.held
    task = asyncio.create_task(ask(c, **more))
    await until(lambda: c.state.gate.held == before + 1 or task.done())
    assert not task.done(), task.result()
    return task


def order(c: Cluster) -> list[str]:
    return [seen.body["user"] for seen in c.d.requests()]


# --- the waiting room ---------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_a_pool_that_scales_from_zero(stream: bool) -> None:
    """Requests that come before any worker wait, and are served when one registers; those that
    want a handoff do not wait for prefill."""
    async with cluster(register=False, replace=flow()) as c:
        waiting = [await queued(c, prompt=prompt, stream=stream) for prompt in (SHORT, LONG) * 3]
        assert (await c.admin("GET", "/admin/queue")).json["waiting_by_model"] == {MODEL: 6}
        # Prefill alone answers nobody, and neither does a worker that is still warming.
        await c.register(c.p)
        await c.register(c.d, state=WorkerState.WARMING)
        assert c.state.gate.held == 6
        await c.register(c.d)
        answers = await asyncio.gather(*waiting)
        assert [a.text for a in answers] == [right_text(SHORT), right_text()] * 3
        assert {a.path for a in answers[1::2]} == {"disaggregated"}


async def test_no_worker_comes() -> None:
    """After ``worker_wait_s`` it is 503, with a hint when to come back."""
    async with cluster(register=False, replace=flow(worker_wait_s=0.3)) as c:
        answers = await asyncio.gather(ask(c), ask(c, stream=True))
        for answer in answers:
            assert answer.status == 503
            assert answer.error["code"] == "no_worker_available"
            assert int(answer.headers["retry-after"]) >= 1


async def test_unknown_models_do_not_wait() -> None:
    """Nobody will ever serve them: 404 at once, workers or none."""
    async with cluster(register=False, replace=flow()) as c:
        answer = await ask(c, model="nobodys")
        assert (answer.status, answer.error["code"]) == (404, "model_not_found")
        assert c.state.gate.held == 0


@pytest.mark.parametrize("how", ["removed", "cordoned", "killed"])
async def test_the_last_worker_leaves_and_comes_back(how: str) -> None:
    """Requests that come meanwhile wait, and are served when it is back."""
    async with cluster(replace=flow()) as c:
        assert (await ask(c)).status == 200
        if how == "removed":
            await c.remove(c.d)
        elif how == "cordoned":
            assert (await c.admin("POST", "/admin/workers/d0/drain")).status == 202
        else:
            await c.d.kill()
            assert (await ask(c)).status == 502  # whoever finds it out
        waiting = [await queued(c, stream=stream) for stream in (True, False)]
        if how == "removed":
            await c.register(c.d)
        elif how == "cordoned":
            assert (await c.admin("DELETE", "/admin/workers/d0/drain")).status == 200
        else:
            # The same engine under the same id: a probe has to find it.
            await c.d.server.start()
            c.d.alive = True
        assert [a.text for a in await asyncio.gather(*waiting)] == [right_text(SHORT)] * 2


# --- the queue ----------------------------------------------------------------------------------


async def test_a_full_queue() -> None:
    """Who finds no room gets 429 and a hint, at once; those that wait are served in their order."""
    async with one_slot(queue=3) as (c, _):
        waiting = [await queued(c, user=f"w{i}") for i in range(3)]
        for stream in (False, True):
            answer = await ask(c, user="late", stream=stream)
            assert answer.status == 429
            assert answer.error["type"] == "rate_limit_error"
            assert answer.error["code"] == "rate_limit_exceeded"
            assert int(answer.headers["retry-after"]) >= 1
        client = openai.AsyncOpenAI(base_url=f"{c.url}/v1", api_key="none", max_retries=0)
        async with client:
            with pytest.raises(openai.RateLimitError):
                await client.completions.create(model=MODEL, prompt=SHORT)
        c.d.thaw()
        assert {a.status for a in await asyncio.gather(*waiting)} == {200}
        assert order(c) == ["first", "w0", "w1", "w2"]


async def test_sheddable_requests_make_room() -> None:
    """In a full queue the newest of the lowest priority goes; a newcomer of that priority itself
    finds no room."""
    async with one_slot(queue=3) as (c, _):
        low = await queued(c, user="low", priority=-2)
        lower = await queued(c, user="lower", priority=-3)
        plain = await queued(c, user="plain")
        assert (await ask(c, priority=-3)).status == 429
        second = asyncio.create_task(ask(c, user="second"))
        shed = await lower
        assert shed.status == 429
        assert "made room" in shed.error["message"]
        assert int(shed.headers["retry-after"]) >= 1
        third = asyncio.create_task(ask(c, user="third"))
        assert (await low).status == 429
        c.d.thaw()
        answers = await asyncio.gather(plain, second, third)
        assert {a.status for a in answers} == {200}
        assert order(c) == ["first", "plain", "second", "third"]


async def test_the_longest_wait() -> None:
    """After ``queue_ttl_s`` a request gets 429, and the slot's holder is none the worse."""
    async with one_slot(queue_ttl_s=0.3) as (c, first):
        for answer in await asyncio.gather(ask(c), ask(c, stream=True)):
            assert answer.status == 429
            assert "0.3 seconds" in answer.error["message"]
            assert answer.headers["retry-after"]
        assert not first.done()


async def test_clients_that_leave_while_they_wait() -> None:
    """They free their place in the queue at once, and no engine hears of them."""
    async with one_slot(queue=2) as (c, _):
        leaving = [await queued(c, user=f"leaver-{i}") for i in range(2)]
        assert (await ask(c)).status == 429
        for task in leaving:
            task.cancel()
        await until(lambda: c.state.gate.held == 1)
        staying = [await queued(c, user=f"stayer-{i}") for i in range(2)]
        c.d.thaw()
        assert {a.status for a in await asyncio.gather(*staying)} == {200}
        assert order(c) == ["first", "stayer-0", "stayer-1"]
        assert await c.metric("baton_requests_total", status="499") == 2


async def test_a_hundred_come_and_go() -> None:
    """Requests that leave at any moment leave no place taken."""
    async with cluster(replace=flow(queue=256)) as c:
        await c.register(c.d, limits=Limits(max_model_len=2048, slots=2))
        c.d.token_s = 0.001
        tasks = [
            asyncio.create_task(ask(c, priority=-(i % 3), stream=i % 2 == 0, user=str(i)))
            for i in range(100)
        ]
        for number, task in enumerate(tasks):
            if number % 3 == 0:
                await asyncio.sleep(0.002)
                task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        statuses = {a.status for a in done if isinstance(a, Answer)}
        assert statuses <= {200, 429}
        await c.settled()
        assert (await ask(c)).status == 200


# --- deadlines of the client's ------------------------------------------------------------------


@pytest.mark.parametrize("timeout_s", ["0", "-1", "nan", "inf", "soon", ""])
async def test_deadlines_that_are_none(timeout_s: str) -> None:
    """400, with the header named."""
    async with cluster() as c:
        answer = await c.call(
            "POST",
            COMPLETIONS,
            json={"model": MODEL, "prompt": SHORT},
            headers={"x-baton-timeout-s": timeout_s},
        )
        assert answer.status == 400
        assert answer.error["param"] == "x-baton-timeout-s"


async def test_a_deadline_in_the_queue() -> None:
    """504 when it passes, and not before others are served."""
    async with one_slot() as (c, first):
        answer = await ask(c, timeout_s=0.3)
        assert answer.status == 504
        assert answer.error["code"] == "deadline_exceeded"
        assert not first.done()
        assert len(c.d.requests()) == 1


@pytest.mark.parametrize("leg", list(Leg))
@pytest.mark.parametrize("stream", [False, True])
async def test_a_deadline_before_the_answer(leg: Leg, stream: bool) -> None:
    """504 wherever the request was, its legs are closed, and no worker is blamed: three such
    requests would make one suspicious."""
    async with cluster(replace=flow()) as c:
        engine = c.p if leg is Leg.PREFILL else c.d
        prompt = SHORT if leg is Leg.LOCAL else LONG
        engine.inject(Trouble.HANG, leg, times=4)
        answers = await asyncio.gather(
            *(ask(c, prompt=prompt, timeout_s=0.5, stream=stream, user=str(i)) for i in range(4))
        )
        for answer in answers:
            assert answer.status == 504
            assert answer.error["code"] == "deadline_exceeded"
        await until(lambda: all(s.aborted for s in engine.requests(leg)))
        assert c.state.care.breakers.rows() == ()
        assert c.state.care.breakers.counts.absolved == 0


async def test_a_deadline_while_the_prompt_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is asked for a prompt's length is not waited for any longer either."""
    monkeypatch.setattr("router.counting._ASK_S", 600.0)
    async with cluster(replace=flow()) as c:
        c.d.freeze()
        answer = await ask(c, prompt=LONG, timeout_s=0.3)
        assert (answer.status, answer.error["code"]) == (504, "deadline_exceeded")
        assert c.state.care.breakers.rows() == ()
        c.d.thaw()


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT, "/v1/responses", "/v1/messages"])
@pytest.mark.parametrize("prompt", [SHORT, LONG], ids=["local", "handoff"])
async def test_a_deadline_in_mid_stream(path: str, prompt: str) -> None:
    """The stream ends with an error event in the endpoint's own form, and decode is aborted."""
    async with cluster(replace=flow()) as c:
        leg = Leg.LOCAL if prompt == SHORT else Leg.DECODE
        c.d.inject(Trouble.HANG, leg, after_chunks=3)
        body: dict[str, Any] = {"model": MODEL, "stream": True, "max_tokens": 8}
        if path == COMPLETIONS:
            body["prompt"] = prompt
        elif path == "/v1/responses":
            body["input"] = prompt
        else:
            body["messages"] = long_chat(prompt)
        answer = await c.call("POST", path, json=body, headers={"x-baton-timeout-s": "1.5"})
        assert answer.status == 200
        if path in (COMPLETIONS, CHAT):
            error = answer.stream_error
            assert error is not None
            assert error["code"] == "deadline_exceeded"
        else:
            last = answer.body.rstrip().rpartition(b"\n\n")[2]
            assert last.startswith((b"event: error\n", b"event: response.failed\n"))
            assert b"deadline" in last
        await until(lambda: c.d.requests(leg)[0].aborted)
        assert c.state.care.breakers.rows() == ()


async def test_a_deadline_that_is_kept() -> None:
    """Time enough changes nothing."""
    async with cluster() as c:
        assert (await ask(c, prompt=LONG, timeout_s=60)).text == right_text()


# --- stopping -----------------------------------------------------------------------------------


async def refuses(c: Cluster) -> bool:
    try:
        async with aiohttp.ClientSession() as http, http.get(c.url + "/healthz"):
            return False
    except aiohttp.ClientError:
        return True


async def test_a_stop_with_requests_that_wait() -> None:
    """They are served, one after the other, before the router ends; newcomers find no door."""
    async with one_slot() as (c, first):
        waiting = [await queued(c, user=f"w{i}", stream=i % 2 == 0) for i in range(3)]
        stopping = asyncio.create_task(c.server.stop(drain_s=PATIENCE_S))
        await until(lambda: c.state.stopping)
        assert await refuses(c)
        assert not stopping.done()
        c.d.thaw()
        answers = await asyncio.gather(first, *waiting)
        assert [a.text for a in answers[1:]] == [right_text(SHORT)] * 3
        await stopping


async def test_a_stop_that_may_not_wait() -> None:
    """What waits when the time is over is cut; nothing is left, and nothing is sent to engines."""
    async with cluster(replace=flow()) as c:
        await c.register(c.d, limits=Limits(max_model_len=2048, slots=1))
        first = await c.occupy()
        waiting = [await queued(c) for _ in range(2)]
        await c.server.stop(drain_s=0.1)
        ends = await asyncio.gather(first, *waiting, return_exceptions=True)
        assert all(isinstance(end, aiohttp.ClientError) for end in ends), ends
        await until(lambda: c.d.requests()[0].aborted)
        c.d.thaw()
        assert len(c.d.requests()) == 1

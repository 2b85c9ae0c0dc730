"""Clients that leave: whatever was going on for them ends, on all sides."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import pytest

from tests.fakes.engine import FakeEngine, Leg, Trouble
from tests.fakes.waiting import until
from tests.integration.router_cluster import COMPLETIONS, LONG, SHORT, Cluster, cluster

FAR = (
    ("prefill_s: 1, first_token_s: 1,", "prefill_s: 20, first_token_s: 20,"),
    ("idle_s: 0.5, total_s: 3", "idle_s: 20, total_s: 60"),
)
"""No deadline ends anything here."""

Stage = tuple[str, Callable[[Cluster], FakeEngine], Leg, Trouble, int, str]

STAGES: list[Stage] = [
    ("prefill", lambda c: c.p, Leg.PREFILL, Trouble.HANG_BEFORE_HEADERS, 0, LONG),
    ("prefill answer", lambda c: c.p, Leg.PREFILL, Trouble.HANG, 0, LONG),
    ("decode headers", lambda c: c.d, Leg.DECODE, Trouble.HANG_BEFORE_HEADERS, 0, LONG),
    ("first content", lambda c: c.d, Leg.DECODE, Trouble.HANG, 0, LONG),
    ("mid-stream", lambda c: c.d, Leg.DECODE, Trouble.HANG, 3, LONG),
    ("local headers", lambda c: c.d, Leg.LOCAL, Trouble.HANG_BEFORE_HEADERS, 0, SHORT),
    ("local content", lambda c: c.d, Leg.LOCAL, Trouble.HANG, 0, SHORT),
    ("local mid-stream", lambda c: c.d, Leg.LOCAL, Trouble.HANG, 3, SHORT),
]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage[0])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_client_leaves(stage: Stage, stream: bool) -> None:
    """The engine's request is aborted; no leg is counted, no handoff open, no task left."""
    _, pick, leg, trouble, after_chunks, prompt = stage
    async with cluster(replace=FAR) as c:
        engine = pick(c)
        engine.inject(trouble, leg, after_chunks=after_chunks)
        asking = asyncio.create_task(c.complete(prompt, stream=stream))
        await until(lambda: engine.requests(leg))
        # Long enough for the router to reach the place where it waits.
        await asyncio.sleep(0.05)
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking
        await until(lambda: engine.requests(leg)[0].aborted, timeout_s=2)
        await c.settled()
        assert len(engine.requests()) == 1
        assert await c.metric("baton_requests_total", status="499") == 1
        if prompt == LONG:
            assert await c.metric("baton_handoffs_total", state="aborted") == 1
            assert await c.metric("baton_handoffs_open") == 0


async def test_client_leaves_during_the_retry() -> None:
    """The second try is aborted like the first."""
    async with cluster(replace=FAR) as c:
        c.p.inject(Trouble.STATUS, Leg.PREFILL)
        c.d.inject(Trouble.HANG, Leg.LOCAL)
        asking = asyncio.create_task(c.complete(stream=True))
        await until(lambda: c.d.requests(Leg.LOCAL))
        asking.cancel()
        await until(lambda: c.d.requests(Leg.LOCAL)[0].aborted, timeout_s=2)
        await c.settled()


async def test_client_leaves_while_tokens_are_counted() -> None:
    """A question to a worker ends with the request."""
    async with cluster(replace=FAR) as c:
        c.d.freeze()
        asking = asyncio.create_task(c.complete(stream=True))
        await until(lambda: [s for s in c.d.seen if s.path == "/tokenize" and not s.finished])
        asking.cancel()
        await until(lambda: c.d.seen[-1].aborted, timeout_s=2)
        await c.settled()
        c.d.thaw()
        assert c.d.requests() == []


async def test_a_reader_that_leaves_in_mid_stream() -> None:
    """A client that has read some events and closes: decode is aborted in mid-sentence."""
    async with cluster(replace=FAR) as c:
        c.d.token_s = 0.02
        async with c.open(stream=True, max_tokens=500) as response:
            await response.content.readany()
        await until(lambda: c.d.requests()[0].aborted, timeout_s=2)
        await c.settled()


async def test_a_client_that_leaves_before_its_body_is_whole() -> None:
    """Half a body is no request."""
    async with cluster() as c:
        reader, writer = await asyncio.open_connection("127.0.0.1", c.server.port)
        writer.write(
            f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode()
        )
        await until(lambda: c.state.in_flight == 1)
        writer.close()
        await c.settled()
        assert await reader.read() == b""
        assert c.d.requests() == []


async def test_a_client_that_does_not_read() -> None:
    """A client that takes nothing does not hold a decode worker for ever."""
    async with cluster() as c:
        reader, writer = await asyncio.open_connection("127.0.0.1", c.server.port, limit=1024)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        body = (
            f'{{"model": "tiny", "prompt": "{SHORT}", "max_tokens": 2000, "stream": true,'
            f' "n": 40, "user": "{"u" * 1000}"}}'
        ).encode()
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await until(lambda: c.d.requests())
        await until(lambda: c.d.requests()[0].aborted, timeout_s=10)
        await c.settled()
        writer.close()
        del reader


async def test_sixteen_leave_at_random() -> None:
    """Clients that leave at sixteen different moments leave nothing behind."""
    async with cluster(replace=FAR) as c:
        c.p.token_s, c.d.token_s = 0.02, 0.01
        asking = [
            asyncio.create_task(c.complete(LONG if i % 2 else SHORT, stream=i % 4 < 2))
            for i in range(16)
        ]
        for task in asking:
            await asyncio.sleep(0.007)
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        await c.settled()
        assert (await c.complete()).status == 200

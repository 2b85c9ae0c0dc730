"""The mock server over real HTTP: what it says, and that its truth log is true."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from benchmarks.mock import Delay, Script, Stall, Truth, mock_process, read_truth
from benchmarks.mock.server import MockServer
from tests.fakes.waiting import until

FAST = Script(ttft=Delay(0.002), itl=Delay(0.001))


@dataclass
class Stream:
    """What came of one request; times on the monotonic clock."""

    sent_s: float = 0.0
    status: int = 0
    events: list[Any] = field(default_factory=list)
    came_s: list[float] = field(default_factory=list)
    ended: bool = False

    @property
    def texts(self) -> list[str]:
        """Text of each event that has some."""
        found = []
        for event in self.events:
            for choice in event.get("choices", ()) if isinstance(event, dict) else ():
                found.append(choice.get("text") or choice.get("delta", {}).get("content") or "")
        return [text for text in found if text]


@contextlib.asynccontextmanager
async def served(script: Script, truth: Path | None = None) -> AsyncIterator[MockServer]:
    server = MockServer(script, truth=truth)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def ask(url: str, http: aiohttp.ClientSession, *, chat: bool = False, **more: Any) -> Stream:
    """Asks for a stream and reads it to its end, however it ends."""
    body: dict[str, Any] = {"model": "m", "max_tokens": 4, "stream": True, **more}
    body |= {"messages": [{"role": "user", "content": "hello"}]} if chat else {"prompt": "hello"}
    result = Stream(sent_s=time.monotonic())
    path = "/v1/chat/completions" if chat else "/v1/completions"
    rest = b""
    try:
        async with http.post(url + path, json=body, headers={"x-request-id": "r-7"}) as answer:
            result.status = answer.status
            async for part in answer.content.iter_any():
                *events, rest = (rest + part).split(b"\n\n")
                for event in events:
                    said = event.removeprefix(b"data: ")
                    result.events.append(said if said == b"[DONE]" else json.loads(said))
                    result.came_s.append(time.monotonic())
            result.ended = True
    except aiohttp.ClientError:
        pass
    return result


@pytest.mark.parametrize("chat", [False, True])
async def test_streams_as_an_engine_does(chat: bool) -> None:
    """One event per token, a finish reason with the last, usage if asked for, then the end; a
    chat begins with its role, which is no content."""
    async with served(FAST) as server, aiohttp.ClientSession() as http:
        stream = await ask(
            server.url, http, chat=chat, max_tokens=3, stream_options={"include_usage": True}
        )
        plain = await ask(server.url, http, chat=chat, max_tokens=3)
    assert len(stream.texts) == 3
    assert stream.events[-1] == b"[DONE]"
    usage = stream.events[-2]["usage"]
    assert (usage["completion_tokens"], usage["prompt_tokens"] > 0) == (3, True)
    assert stream.events[-3]["choices"][0]["finish_reason"] == "length"
    assert len(stream.events) == 5 + chat
    assert len(plain.events) == 4 + chat


async def test_whole_answers_and_bad_requests() -> None:
    """Without a stream there is one body; what no engine would take is refused."""
    async with served(FAST) as server, aiohttp.ClientSession() as http:
        body = {"model": "m", "prompt": [1, 2, 3], "max_tokens": 5}
        async with http.post(f"{server.url}/v1/completions", json=body) as answer:
            said = await answer.json()
        async with http.post(f"{server.url}/v1/completions", json={"model": "m"}) as answer:
            assert answer.status == 400
        async with http.get(f"{server.url}/v1/models") as answer:
            assert [model["id"] for model in (await answer.json())["data"]] == ["mock"]
        async with http.get(f"{server.url}/nothing") as answer:
            assert answer.status == 404
    assert said["usage"]["prompt_tokens"] == 3
    assert said["usage"]["completion_tokens"] == 5


async def test_the_truth_is_what_was_written_when(tmp_path: Path) -> None:
    """Every chunk's time lies between the client's send and its arrival there, never before it
    was due, and the log has the client's request id."""
    log = tmp_path / "truth.jsonl"
    script = Script(ttft=Delay(0.05), itl=Delay(0.02))
    async with served(script, log) as server, aiohttp.ClientSession() as http:
        stream = await ask(server.url, http)
    (truth,) = read_truth(log)
    assert (truth.request_id, truth.outcome, truth.chunk_tokens) == ("r-7", "whole", [1] * 4)
    due_s = [truth.received_s + 0.05 + 0.02 * number for number in range(4)]
    for due, wrote, came in zip(due_s, truth.chunks_s, stream.came_s, strict=False):
        assert due <= wrote <= came
    assert stream.sent_s <= truth.received_s


async def test_several_tokens_per_chunk(tmp_path: Path) -> None:
    """Chunks are not tokens."""
    log = tmp_path / "truth.jsonl"
    script = Script(ttft=Delay(0.001), itl=Delay(0.001), tokens_per_chunk=4)
    async with served(script, log) as server, aiohttp.ClientSession() as http:
        stream = await ask(server.url, http, max_tokens=10)
    assert read_truth(log)[0].chunk_tokens == [4, 4, 2]
    assert len(stream.texts) == 3


async def test_a_stall_holds_everything_up(tmp_path: Path) -> None:
    """What was under way goes on after the stall, what came in it is looked at after it, and the
    metrics page is silent meanwhile."""
    log = tmp_path / "truth.jsonl"
    script = Script(ttft=Delay(0.02), itl=Delay(0.1), stalls=(Stall(0.05, 0.4),))
    async with served(script, log) as server, aiohttp.ClientSession() as http:
        first = asyncio.create_task(ask(server.url, http, max_tokens=2))
        # In the stall, or after it if the machine is slow: what is asserted holds in both cases.
        await asyncio.sleep(0.15)
        began = time.monotonic()
        second = asyncio.create_task(ask(server.url, http, max_tokens=1))
        async with http.get(f"{server.url}/metrics"):
            pass
        silent_s = time.monotonic() - began
        await asyncio.gather(first, second)
    one, two = read_truth(log)
    assert one.chunks_s[1] - one.received_s >= 0.12 + 0.4
    stall_ends_s = one.received_s + 0.45
    assert two.chunks_s[0] >= stall_ends_s + 0.02
    assert began + silent_s >= stall_ends_s


async def test_slots_make_a_queue(tmp_path: Path) -> None:
    """With one place, three requests at once are worked on one after the other."""
    log = tmp_path / "truth.jsonl"
    async with served(Script(ttft=Delay(0.05), slots=1), log) as server:
        async with aiohttp.ClientSession() as http:
            await asyncio.gather(*(ask(server.url, http, max_tokens=1) for _ in range(3)))
        page = server.counters.page()
    started = [truth.started_s for truth in read_truth(log)]
    assert [b - a >= 0.05 - 1e-6 for a, b in itertools.pairwise(started)] == [True, True]
    assert 'vllm:num_requests_waiting{engine="0",model_name="mock"} 0.0' in page


async def test_a_slow_accept_is_for_the_first_request_of_a_connection(tmp_path: Path) -> None:
    """The second request over the same connection does not wait for it."""
    log = tmp_path / "truth.jsonl"
    async with served(Script(ttft=Delay(0.01), accept_s=0.3), log) as server:
        async with aiohttp.ClientSession() as http:
            await ask(server.url, http, max_tokens=1)
            await ask(server.url, http, max_tokens=1)
    one, two = read_truth(log)
    assert one.chunks_s[0] - one.received_s >= 0.31
    assert two.chunks_s[0] - two.received_s < 0.31


@pytest.mark.parametrize(
    ("script", "status", "ended", "outcome"),
    [
        (Script(ttft=Delay(0.001), error_rate=1.0), 503, True, "error"),
        (Script(ttft=Delay(0.001), itl=Delay(0.001), cut_rate=1.0), 200, False, "cut"),
        (Script(ttft=Delay(0.001), error_event_rate=1.0), 200, True, "error_event"),
    ],
)
async def test_failures_on_order(
    script: Script, status: int, ended: bool, outcome: str, tmp_path: Path
) -> None:
    """Errors, cut streams and error events come as the script says, and the log says which."""
    log = tmp_path / "truth.jsonl"
    async with served(script, log) as server, aiohttp.ClientSession() as http:
        stream = await ask(server.url, http)
    assert (stream.status, stream.ended) == (status, ended)
    assert read_truth(log)[0].outcome == outcome
    if outcome == "error_event":
        assert any(isinstance(event, dict) and "error" in event for event in stream.events)


async def test_a_client_that_leaves_frees_its_place(tmp_path: Path) -> None:
    """The request is given up and logged as such, and who waits gets the place."""
    log = tmp_path / "truth.jsonl"
    script = Script(ttft=Delay(0.05), itl=Delay(5.0), slots=1)
    async with served(script, log) as server:
        async with aiohttp.ClientSession() as http:
            leaving = asyncio.create_task(ask(server.url, http, max_tokens=2))
            await until(lambda: server.counters.running == 1)
            waiting = asyncio.create_task(ask(server.url, http, max_tokens=1))
            await until(lambda: server.counters.waiting == 1)
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
            assert len((await waiting).texts) == 1
    outcomes = {truth.outcome: truth for truth in read_truth(log)}
    assert set(outcomes) == {"client_gone", "whole"}


async def test_as_a_process(tmp_path: Path) -> None:
    """The child listens when the block begins; when it ends the child is gone and its log whole."""
    log = tmp_path / "truth.jsonl"
    async with mock_process(FAST, truth=log) as mock, aiohttp.ClientSession() as http:
        streams = await asyncio.gather(*(ask(mock.url, http) for _ in range(5)))
    assert all(stream.ended for stream in streams)
    truths: list[Truth] = read_truth(log)
    assert [truth.number for truth in truths] == [0, 1, 2, 3, 4]
    assert all(len(truth.chunks_s) == 4 for truth in truths)

"""What clients get wrong, and what they get back: OpenAI error objects, and no traceback anywhere.

That nothing is logged as an error is checked by the cluster at the end of each test.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from typing import Any

import aiohttp
import openai
import pytest

from baton.types import Role
from tests.fakes.engine import MODEL, FakeEngine, Fleet, Leg, Trouble, expected_text
from tests.fakes.waiting import until
from tests.integration.router_cluster import (
    CHAT,
    COMPLETIONS,
    LONG,
    SHORT,
    Answer,
    Cluster,
    cluster,
    read,
    right_text,
)


async def raw(c: Cluster, body: bytes, path: str = COMPLETIONS) -> Answer:
    return await c.call("POST", path, data=body)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"model": "tiny", "prompt": "x"} trailing',
        b'{"model": "tiny", "prompt": NaN}',
        b"[" * 5000,
        b'{"a":' * 5000,
        b'{"prompt": "x", "messages": [{"role": "user", "content": "x"}]}',
    ],
)
async def test_malformed_bodies(path: str, body: bytes) -> None:
    """What is no JSON object, or names no model, is 400 and goes nowhere."""
    async with cluster() as c:
        answer = await raw(c, body, path)
        assert answer.status == 400
        assert answer.error["type"] == "invalid_request_error"
        assert [s for e in c.engines for s in e.requests()] == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": 5}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": [1, "x"]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"model": 5}, "model"),
        ({"model": ""}, "model"),
        ({"max_tokens": "8"}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"n": "2"}, "n"),
        ({"n": True}, "n"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
async def test_wrong_types(fields: dict[str, Any], param: str) -> None:
    """A wrong type is 400 and names the field."""
    async with cluster() as c:
        answer = await c.complete(**{"prompt": SHORT, **fields})
        assert answer.status == 400
        assert answer.error["type"] == "invalid_request_error"
        assert answer.error["param"] == param


@pytest.mark.parametrize(
    "messages", [None, [], "text", [5], [{}], [{"role": 5}], [{"role": "user", "content": 5}]]
)
async def test_wrong_messages(messages: Any) -> None:
    """So with messages."""
    async with cluster() as c:
        answer = await c.post(CHAT, model=MODEL, messages=messages)
        assert answer.status == 400
        assert answer.error["param"].startswith("messages")


@pytest.mark.parametrize("stream", [False, True])
async def test_unknown_model(stream: bool) -> None:
    """404, as the official client expects it."""
    async with cluster() as c:
        answer = await c.complete(model="other", stream=stream)
        assert answer.status == 404
        assert answer.error["code"] == "model_not_found"
        assert answer.error["param"] == "model"
        client = openai.AsyncOpenAI(base_url=f"{c.url}/v1", api_key="none", max_retries=0)
        async with client:
            with pytest.raises(openai.NotFoundError, match="other"):
                await client.completions.create(model="other", prompt="x")


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/completion", "/v1/engines", "/admin", "/nope"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_unknown_paths(path: str, method: str) -> None:
    """404 with an error object."""
    async with cluster() as c:
        answer = await c.call(method, path)
        assert answer.status == 404
        assert path in answer.error["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", COMPLETIONS),
        ("PUT", CHAT),
        ("DELETE", COMPLETIONS),
        ("POST", "/v1/models"),
        ("POST", "/healthz"),
        ("GET", "/internal/workers/w"),
    ],
)
async def test_wrong_methods(method: str, path: str) -> None:
    """405 with an error object, and the methods that are allowed."""
    async with cluster() as c:
        answer = await c.call(method, path)
        assert answer.status == 405
        assert answer.error["type"] == "invalid_request_error"
        assert answer.headers["allow"]


# --- size ---------------------------------------------------------------------------------------

LIMIT = 65536


async def test_a_body_at_the_limit() -> None:
    """The limit itself is allowed."""
    async with cluster() as c:
        body = {"model": MODEL, "prompt": SHORT, "user": ""}
        body["user"] = "u" * (LIMIT - len(json.dumps(body)))
        text = json.dumps(body).encode()
        assert len(text) == LIMIT
        assert (await raw(c, text)).status == 200
        assert (await raw(c, text + b" ")).status == 413


@pytest.mark.parametrize("size", [LIMIT + 1, 10 * 1024 * 1024])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit(size: int, chunked: bool) -> None:
    """413 with an error object, announced or not; the client gets to read it."""
    async with cluster() as c:
        data: Any = io.BytesIO(b"x" * size)
        if chunked:
            data = pieces(size)
        answer = await c.call("POST", COMPLETIONS, data=data)
        assert answer.status == 413
        assert answer.error["code"] == "request_too_large"
        assert answer.error["type"] == "invalid_request_error"
        assert (await c.complete(SHORT)).status == 200


async def pieces(size: int) -> Any:
    for _ in range(0, size, 8192):
        yield b"x" * min(8192, size)


async def test_a_large_body_within_the_limit() -> None:
    """More than a megabyte reaches both legs whole."""

    def make(fleet: Fleet, name: str, role: Role) -> FakeEngine:
        return FakeEngine(fleet, name, role, max_model_len=4_000_000)

    changes = (
        ("body_bytes: 65536", "body_bytes: 4000000"),
        ("prefill_s: 1, first_token_s: 1,", "prefill_s: 20, first_token_s: 20,"),
        ("total_s: 3", "total_s: 60"),
    )
    async with cluster(replace=changes, make=make) as c:
        prompt = "x" * 1_200_000
        body = {"model": MODEL, "prompt": prompt, "max_tokens": 2, "stream": True}
        answer = await c.call("POST", COMPLETIONS, data=io.BytesIO(json.dumps(body).encode()))
        assert answer.path == "disaggregated"
        assert answer.text == expected_text(prompt, 2)


async def test_a_large_body_of_the_official_client() -> None:
    """The official client sees a status, not a broken connection."""
    async with cluster() as c:
        client = openai.AsyncOpenAI(base_url=f"{c.url}/v1", api_key="none", max_retries=0)
        async with client:
            for _ in range(3):
                with pytest.raises(openai.APIStatusError) as caught:
                    await client.completions.create(model=MODEL, prompt="x" * 10 * 1024 * 1024)
                assert caught.value.status_code == 413


async def test_an_endless_body() -> None:
    """A body without end is not read without end."""
    async with cluster() as c:
        reader, writer = await asyncio.open_connection("127.0.0.1", c.server.port)
        writer.write(
            f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 1 << 30:
                writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                await writer.drain()
                sent += 65536
        assert sent < 1 << 28
        writer.close()
        del reader


# --- overload -----------------------------------------------------------------------------------


async def test_too_many_requests() -> None:
    """The bound on requests in flight: 429 with a hint, and room again afterwards."""
    async with cluster(replace=(("in_flight: 32", "in_flight: 2"),)) as c:
        c.d.token_s = 0.05
        two = [asyncio.create_task(c.complete(SHORT)) for _ in range(2)]
        await until(lambda: len(c.d.requests()) == 2)
        answer = await c.complete(SHORT)
        assert answer.status == 429
        assert answer.error["type"] == "rate_limit_error"
        assert answer.error["code"] == "rate_limit_exceeded"
        assert answer.headers["retry-after"] == "1"
        assert [a.status for a in await asyncio.gather(*two)] == [200, 200]
        assert (await c.complete(SHORT)).status == 200


async def test_no_worker() -> None:
    """503 with a hint while the router's own model has no worker."""
    async with cluster(register=False) as c:
        for prompt in (SHORT, LONG):
            answer = await c.complete(prompt)
            assert answer.status == 503
            assert answer.error["code"] == "no_worker_available"
            assert answer.headers["retry-after"] == "1"
        await c.register(c.p)
        assert (await c.complete()).status == 503
        await c.register(c.d)
        assert (await c.complete()).status == 200


async def test_errors_of_a_stream_are_plain_answers() -> None:
    """Before the first content a stream's failure has a status of its own."""
    async with cluster() as c:
        c.d.inject(Trouble.STATUS, Leg.LOCAL, times=2)
        client = openai.AsyncOpenAI(base_url=f"{c.url}/v1", api_key="none", max_retries=0)
        async with client:
            with pytest.raises(openai.InternalServerError) as caught:
                await client.completions.create(model=MODEL, prompt=SHORT, stream=True)
        assert caught.value.status_code == 502


async def test_sixteen_at_once() -> None:
    """Mixed requests, all right, nothing left."""
    async with cluster() as c:
        c.d.token_s = 0.002
        prompts = [f"{LONG if i % 2 else SHORT} {i}" for i in range(16)]
        answers = await asyncio.gather(
            *(c.complete(prompt, stream=i % 4 < 2) for i, prompt in enumerate(prompts))
        )
        assert [a.text for a in answers] == [right_text(prompt) for prompt in prompts]
        assert sum(a.path == "disaggregated" for a in answers) == 8
        assert c.p.kv.held(0.0) == []


async def test_pipelined_requests() -> None:
    """Two requests in one go over one connection are answered one after the other."""
    async with cluster() as c:
        reader, writer = await asyncio.open_connection("127.0.0.1", c.server.port)
        body = json.dumps({"model": MODEL, "prompt": SHORT, "max_tokens": 2}).encode()
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write((head.encode() + body) * 2)
        received = b""
        async with asyncio.timeout(5):
            while received.count(b'"finish_reason"') < 2:
                received += await reader.read(65536)
        assert received.count(b"HTTP/1.1 200 OK") == 2
        writer.close()


async def test_a_hostile_request_id() -> None:
    """An id that is too long or not ASCII is not sent back."""
    async with cluster() as c, aiohttp.ClientSession() as http:
        for value in ("x" * 201, "é"):
            async with http.post(
                c.url + COMPLETIONS,
                json={"model": MODEL, "prompt": SHORT},
                headers={"X-Request-Id": value},
            ) as response:
                answer = await read(response)
            assert answer.headers["x-request-id"].startswith("baton-")


async def test_a_client_that_asks_first() -> None:
    """With ``Expect: 100-continue`` a body that is too large is never sent."""
    async with cluster() as c:
        reader, writer = await asyncio.open_connection("127.0.0.1", c.server.port)
        writer.write(
            f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n"
            "Expect: 100-continue\r\n\r\n".encode()
        )
        async with asyncio.timeout(2):
            received = await reader.read()
        assert received.startswith(b"HTTP/1.1 413 ")
        assert b"request_too_large" in received
        writer.close()

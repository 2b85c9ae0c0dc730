"""ASGI applications behind the server: requests, answers, lifespan, disconnects."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI, Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from router.wire import HttpServer, WireLimits
from tests.fakes.waiting import until
from tests.unit.router.wire.wires import LONG_S, connected, echo, on_both_loops, post, serving


def _app(events: list[str]) -> FastAPI:
    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        events.append("up")
        yield {"word": "state"}
        events.append("down")

    app = FastAPI(lifespan=lifespan)

    @app.get("/seen/{name}")
    async def seen(request: Request, name: str) -> dict[str, Any]:
        assert request.client is not None
        return {
            "name": name,
            "query": dict(request.query_params),
            "host": request.url.hostname,
            "client": request.client.host,
            "state": request.state.word,
            "x": request.headers.get("x-a"),
        }

    @app.post("/size")
    async def size(request: Request) -> int:
        return len(await request.body())

    @app.get("/stream")
    async def stream(parts: int) -> StreamingResponse:
        async def produce() -> AsyncIterator[bytes]:
            try:
                for i in range(parts):
                    yield b"%d " % i
                if not parts:
                    yield b"first"
                    await asyncio.Event().wait()
            except asyncio.CancelledError:
                events.append("cancelled")
                raise

        return StreamingResponse(produce())

    @app.get("/fails")
    async def fails() -> None:
        raise ZeroDivisionError

    @app.api_route("/head", methods=["GET", "HEAD"])
    async def head() -> Response:
        return Response(b"12345", headers={"Connection": "close"})

    @app.get("/empty", status_code=204)
    async def empty() -> None:
        return None

    @app.get("/moved")
    async def moved() -> RedirectResponse:
        return RedirectResponse("/stream")

    return app


def _get(target: bytes) -> bytes:
    return b"GET " + target + b" HTTP/1.1\r\nHost: there\r\nX-A: b\r\n\r\n"


@on_both_loops
async def test_an_application() -> None:
    """What has no route goes to the application: targets decoded, bodies, streams, errors."""
    events: list[str] = []
    limits = WireLimits(app_body_bytes=1 << 20)
    async with serving({("POST", "/hot"): echo}, _app(events), limits) as server:
        assert events == ["up"]
        async with connected(server) as client:
            await client.send(post(b"hot", path=b"/hot"))
            assert (await client.reply()).body == b"hot"
            await client.send(_get(b"/seen/a%20b?c=d%26e"))
            assert json.loads((await client.reply()).body) == {
                "name": "a b",
                "query": {"c": "d&e"},
                "host": "there",
                "client": "127.0.0.1",
                "state": "state",
                "x": "b",
            }
            for size, status in ((0, 200), (1 << 20, 200), ((1 << 20) + 1, 413)):
                await client.send(post(b"x" * size, path=b"/size"))
                reply = await client.reply()
                assert reply.status == status
                if status == 200:
                    assert reply.body == b"%d" % size
            await client.send(_get(b"/stream?parts=100"))
            assert (await client.reply()).body == b"".join(b"%d " % i for i in range(100))
            for target, status in ((b"/none", 404), (b"/size", 405), (b"/moved", 307)):
                await client.send(_get(target))
                assert (await client.reply()).status == status
            await client.send(_get(b"/empty") + _get(b"/none"))
            head = await client.reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 204 ")
            assert b"content-length" not in head
            assert (await client.reply()).status == 404
            await client.send(b"HEAD /head HTTP/1.1\r\nHost: x\r\n\r\n")
            rest = await client.rest()
            assert b"content-length: 5\r\n" in rest
            assert rest.endswith(b"connection: close\r\n\r\n")
    assert events == ["up", "down"]


@on_both_loops
async def test_an_application_that_fails() -> None:
    """It answers 500 itself, or we do."""

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        if scope["path"] == "/turn":
            await send({"type": "http.response.body", "body": b""})
        raise ZeroDivisionError

    logging.getLogger("baton.router.wire").setLevel(logging.CRITICAL)
    try:
        for app, targets in ((_app([]), [b"/fails"]), (broken, [b"/x", b"/turn"])):
            async with serving({}, app) as server, connected(server) as client:
                for target in targets:
                    await client.send(_get(target))
                    assert (await client.reply()).status == 500
    finally:
        logging.getLogger("baton.router.wire").setLevel(logging.NOTSET)


@on_both_loops
async def test_a_client_that_leaves_an_application() -> None:
    """The application's stream is cancelled."""
    events: list[str] = []
    async with serving({}, _app(events)) as server:
        async with connected(server) as client:
            await client.send(_get(b"/stream?parts=0"))
            await client.reader.readuntil(b"first")
        await until(lambda: "cancelled" in events)
        await until(lambda: server.open_requests == 0)


@on_both_loops
async def test_receive_after_the_answer() -> None:
    """An application that listens on hears of a disconnect when its answer is over."""
    heard: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        heard.append((await receive())["type"])
        listening = asyncio.create_task(receive())
        await asyncio.sleep(0)
        assert not listening.done()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x"})
        heard.append((await listening)["type"])

    async with serving({}, app) as server, connected(server) as client:
        await client.send(_get(b"/"))
        assert (await client.reply()).body == b"x"
        await until(lambda: heard == ["http.request", "http.disconnect"])


@on_both_loops
async def test_a_start_that_fails() -> None:
    """The server does not start where the application does not."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        raise LookupError("no disk")
        yield

    server = HttpServer({}, FastAPI(lifespan=lifespan))
    with pytest.raises(RuntimeError, match="no disk"):
        await server.start("127.0.0.1", 0)
    events: list[str] = []
    async with serving({}, None) as other:
        server = HttpServer({}, _app(events))
        with pytest.raises(OSError, match=r"(?i)in use"):
            await server.start("127.0.0.1", other.port)
    assert events == ["up", "down"]


@on_both_loops
async def test_a_stream_that_nobody_takes() -> None:
    """The application waits for its client instead of filling the memory."""
    produced = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal produced
        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1000):
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            produced += 65536
        await send({"type": "http.response.body", "body": b""})

    async with serving({}, app) as server, connected(server) as client:
        await client.send(_get(b"/"))
        before = -1
        while before != produced or not produced:
            before = produced
            await asyncio.sleep(0.05)
        assert produced < 40 << 20
        async with asyncio.timeout(LONG_S):
            assert await client.reader.read(1 << 20)
            received = 0
            while produced < 1000 * 65536:
                received += len(await client.reader.read(1 << 20))

"""Server and client together, as the router uses them: bytes straight through, faults and leaving
in both directions."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator

from baton.errors import PeerFault
from router.wire import Exchange, HttpServer, Upstream
from tests.fakes.waiting import until
from tests.unit.router.wire.wires import (
    LONG_S,
    REQUEST_ID,
    STREAM_HEAD,
    Call,
    Script,
    Worker,
    answer,
    asking,
    chunked,
    connected,
    on_both_loops,
    post,
    serving,
    working,
)


async def _pass_on(upstream: Upstream, worker: Worker, exchange: Exchange) -> None:
    body = await exchange.body(1 << 20, LONG_S)
    ends_s = asyncio.get_running_loop().time() + LONG_S
    async with upstream.open(worker.record, "/", body, REQUEST_ID, timeout_s=LONG_S) as leg:
        if leg.content_type != "text/event-stream":
            got = await leg.whole(timeout_s=LONG_S)
            exchange.reply(got.status, [("content-type", got.content_type)], got.body)
            return
        exchange.start(leg.status, [("content-type", leg.content_type)])
        exchange.on_congestion(lambda behind: leg.pause() if behind else leg.resume())
        try:
            await leg.pump(exchange.write, idle_s=LONG_S, ends_s=ends_s)
        except PeerFault as error:
            exchange.end(b"error: %b" % error.message.encode())
        else:
            exchange.end()


@contextlib.asynccontextmanager
async def _proxy(script: Script) -> AsyncIterator[tuple[HttpServer, Worker, Upstream]]:
    async with working(script) as worker, asking() as upstream:
        async with serving(functools.partial(_pass_on, upstream, worker)) as server:
            yield server, worker, upstream


@on_both_loops
async def test_many_at_a_time() -> None:
    """Whole answers and streams, over few connections on either side, each to whom it belongs."""

    async def script(call: Call) -> None:
        while True:
            request = await call.request()
            if request.body.startswith(b"stream"):
                await call.say(STREAM_HEAD)
                for i in range(20):
                    await call.say(chunked([b"%b:%d;" % (request.body, i)]))
                    await asyncio.sleep(0)
                await call.say(b"0\r\n\r\n")
            else:
                await call.say(answer(request.body * 3))

    async def ask(server: HttpServer, name: int) -> None:
        async with connected(server) as client:
            for turn in range(5):
                body = b"%b-%d-%d" % (b"stream" if (name + turn) % 2 else b"whole", name, turn)
                await client.send(post(body))
                reply = await client.reply()
                if body.startswith(b"stream"):
                    assert reply.body == b"".join(b"%b:%d;" % (body, i) for i in range(20))
                else:
                    assert reply.body == body * 3

    async with _proxy(script) as (server, worker, upstream):
        await asyncio.gather(*(ask(server, name) for name in range(16)))
        assert len(worker.calls) <= 16
        assert upstream.idle == upstream.connections


@on_both_loops
async def test_a_client_that_leaves_reaches_the_worker() -> None:
    """Before the answer, and in the middle of the stream: the worker's connection closes."""

    async def script(call: Call) -> None:
        request = await call.request()
        if request.body == b"stream":
            await call.say(STREAM_HEAD + chunked([b"first"]))
        await call.gone()

    async with _proxy(script) as (server, worker, upstream):
        for body in (b"stream", b"whole"):
            async with connected(server) as client:
                await client.send(post(body))
                await until(lambda: worker.open_calls == 1)
                if body == b"stream":
                    await client.reader.readuntil(b"first")
            await until(lambda: worker.open_calls == upstream.connections == 0)
            await until(lambda: server.open_requests == 0)


@on_both_loops
async def test_a_worker_that_breaks_reaches_the_client() -> None:
    """The stream's end tells of it; the client's connection goes on."""

    async def script(call: Call) -> None:
        await call.request()
        await call.say(STREAM_HEAD + chunked([b"first "]))
        call.reset()

    async with _proxy(script) as (server, _, _upstream), connected(server) as client:
        for _ in range(2):
            await client.send(post())
            reply = await client.reply()
            assert reply.body.startswith(b"first error: worker w-1 cannot be reached")
            assert reply.keep_alive


@on_both_loops
async def test_a_client_that_never_reads_slows_its_worker_only() -> None:
    """Its worker has to wait, so that no memory fills; others go on, and in the end all arrives."""
    sent = 0
    part = b"x" * 65536
    parts = 1000

    async def script(call: Call) -> None:
        nonlocal sent
        while True:
            request = await call.request()
            await call.say(STREAM_HEAD)
            for _ in range(parts if request.body == b"flood" else 3):
                await call.say(chunked([part]))
                sent += len(part)
            await call.say(b"0\r\n\r\n")

    async with _proxy(script) as (server, _, _upstream):
        async with connected(server) as deaf, connected(server) as other:
            await deaf.send(post(b"flood"))
            before = -1
            while before != sent or not sent:
                before = sent
                await asyncio.sleep(0.1)
            assert sent < parts * len(part) * 0.8
            flooded = sent
            for _ in range(2):
                await other.send(post())
                assert len((await other.reply()).body) == 3 * len(part)
            assert sent == flooded + 6 * len(part)
            received = await deaf.reader.readuntil(b"\r\n\r\n")
            count = 0
            while not received.endswith(b"\r\n0\r\n\r\n"):
                piece = await deaf.reader.read(1 << 20)
                assert piece
                count += piece.count(b"x")
                received = (received + piece)[-100:]
            assert count == parts * len(part)

"""The HTTP server over real sockets, on both loops: answers, disconnects, refusals, stopping."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import ssl
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from baton.errors import BodyTooLarge
from router.wire import ClientGone, Exchange, HttpServer, WireLimits
from tests.fakes.waiting import until
from tests.unit.router.wire.wires import (
    LONG_S,
    RawClient,
    Seen,
    certified,
    chunked,
    connected,
    echo,
    on_both_loops,
    post,
    serving,
    watched,
)


async def _for_ever(_: Exchange) -> None:
    await asyncio.Event().wait()


def _error(body: bytes) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@on_both_loops
async def test_keep_alive() -> None:
    """One connection serves one request after the other."""
    async with serving(echo) as server, connected(server) as client:
        for body in (b"one", b"", b"three"):
            await client.send(post(body))
            reply = await client.reply()
            assert (reply.status, reply.body, reply.keep_alive) == (200, body, True)
        assert server.open_connections == 1
        await until(lambda: server.open_requests == 0)


@on_both_loops
async def test_byte_by_byte() -> None:
    """A request may come in any pieces."""
    async with serving(echo) as server, connected(server) as client:
        message = post(b"hello", b"X-A: b")
        await client.send(*(message[i : i + 1] for i in range(len(message))))
        assert (await client.reply()).body == b"hello"


@on_both_loops
async def test_what_the_handler_sees() -> None:
    """Target, names in lower case, values as they came, the peer's address, the time."""
    seen: list[Exchange] = []

    async def handler(exchange: Exchange) -> None:
        seen.append(exchange)
        exchange.reply(200, [], b"")

    async with serving({("GET", "/a"): handler}, now=lambda: 17.0) as server:
        async with connected(server) as client:
            await client.send(b"GET /a?b=c%20d HTTP/1.1\r\nHost: x\r\nX-Odd: A b\r\n\r\n")
            await client.reply()
            await client.send(b"GET http://example.com/a?q HTTP/1.1\r\nHost: x\r\n\r\n")
            await client.reply()
    first, second = seen
    assert (first.method, first.path, first.query) == ("GET", "/a", b"b=c%20d")
    assert first.headers == [(b"host", b"x"), (b"x-odd", b"A b")]
    assert (first.header(b"x-odd"), first.header(b"x-none")) == (b"A b", None)
    assert (first.client, first.http_version, first.head_s) == ("127.0.0.1", "1.1", 17.0)
    assert (second.path, second.query) == ("/a", b"q")


@on_both_loops
async def test_pipelining() -> None:
    """Requests sent ahead are answered one at a time, in their order, with their own bodies."""
    running = 0

    async def slow_first(exchange: Exchange) -> None:
        nonlocal running
        running += 1
        assert running == 1
        body = await exchange.body(100, LONG_S)
        for _ in range(3 if body == b"0" else 0):
            await asyncio.sleep(0)
        running -= 1
        exchange.reply(200, [], body)

    async with serving(slow_first) as server, connected(server) as client:
        await client.send(b"".join(post(b"%d" % i) for i in range(5)))
        assert [(await client.reply()).body for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]


@on_both_loops
async def test_pipelining_is_bounded() -> None:
    """Of very many requests sent ahead some are answered, the last of them with a close."""
    async with serving(echo) as server, connected(server) as client:
        await client.send(b"".join(post(b"%d" % i) for i in range(500)))
        bodies, keeps = [], True
        while keeps:
            reply = await client.reply()
            bodies.append(reply.body)
            keeps = reply.keep_alive
        assert bodies == [b"%d" % i for i in range(len(bodies))]
        assert 1 < len(bodies) < 500
        assert await client.rest() == b""


@on_both_loops
async def test_chunked_bodies() -> None:
    """A chunked body, with extensions and trailers, arrives as what it says."""
    async with serving(echo) as server, connected(server) as client:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        await client.send(
            head, chunked([b"ab", b"c" * 5000]), b"1;x=y\r\nd\r\n", b"0\r\nT: v\r\n\r\n"
        )
        reply = await client.reply()
        assert reply.body == b"ab" + b"c" * 5000 + b"d"
        assert reply.keep_alive
        await client.send(post(b"next"))
        assert (await client.reply()).body == b"next"


@on_both_loops
async def test_the_short_way_of_writing() -> None:
    """After the first part, the short way writes the same as the long one; to a client that is gone
    it says so; of a body of known length it is the long way."""
    left: list[Exception] = []

    async def stream(exchange: Exchange) -> None:
        known = exchange.path == "/known"
        exchange.start(200, [], length=6 if known else None)
        exchange.write(b"one")
        write = exchange.writer()
        assert exchange.takes_chunks is not known
        if known:
            write(b"t")
        else:
            exchange.write_chunk(b"1\r\nt\r\n")
        write(b"wo")
        if exchange.path == "/gone":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                for way in (write, exchange.write_chunk):
                    try:
                        way(b"5\r\nthree\r\n")
                    except ClientGone as gone:
                        left.append(gone)
                raise
        exchange.end()

    paths = ("/", "/known", "/gone")
    async with serving({("GET", path): stream for path in paths}) as server:
        async with connected(server) as client:
            for path in (b"/", b"/known"):
                await client.send(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path)
                assert (await client.reply()).body == b"onetwo"
            await client.send(b"GET /gone HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: len(left) == 2)


@on_both_loops
async def test_large_bodies() -> None:
    """A body much larger than what is read ahead comes through, under the handler's limit."""
    size = 9 << 20

    async def count(exchange: Exchange) -> None:
        # Not asked for at once: the client has to wait, and nothing is lost.
        for _ in range(20):
            await asyncio.sleep(0)
        body = await exchange.body(size, LONG_S)
        exchange.reply(200, [], b"%d" % len(body))

    async with serving(count) as server, connected(server) as client:
        await client.send(post(b"x" * size))
        assert (await client.reply()).body == b"%d" % size


async def _limited(exchange: Exchange) -> None:
    try:
        body = await exchange.body(10, LONG_S)
    except BodyTooLarge:
        exchange.reply(413, [], b"too large")
    else:
        exchange.reply(200, [], body)


@on_both_loops
async def test_too_large_bodies() -> None:
    """A body over the limit is refused, announced or not; a client that sends all of it first sees
    the answer, and the connection can go on since all was read."""
    async with serving(_limited) as server:
        async with connected(server) as client:
            await client.send(post(b"x" * (3 << 20)))
            reply = await client.reply()
            assert (reply.status, reply.body) == (413, b"too large")
            await client.send(post(b"x" * 10))
            assert (await client.reply()).status == 200
        async with connected(server) as client:
            head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            await client.send(head + chunked([b"x" * 9, b"x" * (1 << 20)]) + b"0\r\n\r\n")
            assert (await client.reply()).status == 413


@on_both_loops
async def test_endless_bodies() -> None:
    """What is thrown away of a body is bounded: then comes the answer, and the connection ends."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("router.wire.exchange.DISCARD_BYTES", 1 << 20)
        patched.setattr("router.wire.connection.DISCARD_BYTES", 1 << 20)
        async with serving(_limited) as server, connected(server) as client:
            await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")

            async def send() -> None:
                try:
                    while True:
                        await client.send(chunked([b"x" * 65536]))
                except ConnectionError:
                    pass

            sending = asyncio.create_task(send())
            reply = await client.reply()
            assert (reply.status, reply.keep_alive) == (413, False)
            await sending


@on_both_loops
async def test_expect_continue() -> None:
    """A client that asks first is told to go on when its body is wanted, and only then."""
    async with serving(_limited) as server:
        async with connected(server) as client:
            await client.send(post(b"x" * 10, b"Expect: 100-continue")[:-10])
            assert await client.reader.readexactly(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
            await client.send(b"y" * 10)
            assert (await client.reply()).body == b"y" * 10
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("router.wire.exchange.DISCARD_S", LONG_S * 2)
            async with connected(server) as client:
                await client.send(post(b"x" * 11, b"Expect: 100-continue")[:-11])
                reply = await client.reply()
                assert (reply.status, reply.keep_alive) == (413, False)


@on_both_loops
async def test_a_slow_body() -> None:
    """A body that does not arrive in time ends the connection, and the handler hears of it."""
    heard = asyncio.Event()

    async def impatient(exchange: Exchange) -> None:
        try:
            await exchange.body(100, 0.05)
        except ClientGone:
            heard.set()
            raise

    async with serving(impatient) as server, connected(server) as client:
        await client.send(post(b"x" * 10)[:-1])
        assert await client.rest() == b""
        assert heard.is_set()


@on_both_loops
async def test_upgrades_are_not_taken() -> None:
    """A client that offers HTTP/2 with its POST gets HTTP/1.1, its body read, and keeps the
    connection; Java's own client does that."""
    offer = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAEAAEAA")
    async with serving(echo) as server, connected(server) as client:
        for pieces in ([post(b"hello", *offer)], [post(b"hello", *offer)[:-2], b"lo"]):
            await client.send(pieces[0])
            await asyncio.sleep(0)
            await client.send(*pieces[1:])
            assert (await client.reply()).body == b"hello"
        head = b"\r\n".join([b"POST / HTTP/1.1", b"Host: x", *offer])
        await client.send(head + b"\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n")
        assert (await client.reply()).body == b"hi"
        await client.send(post(b"next"))
        assert (await client.reply()).body == b"next"


@pytest.mark.parametrize("stage", ["body", "working", "streaming"])
def test_a_client_that_leaves(stage: str) -> None:
    """At each stage the handler's task is cancelled, and finds the exchange gone."""

    async def main(how: str) -> None:
        async def handler(exchange: Exchange) -> None:
            await exchange.body(100, LONG_S)
            if stage == "streaming":
                exchange.start(200, [])
                exchange.write(b"first")
            await asyncio.Event().wait()

        seen = Seen()
        async with serving(watched(seen, handler)) as server, connected(server) as client:
            message = post(b"hello")
            await client.send(message[:-1] if stage == "body" else message)
            await seen.entered.wait()
            if stage == "streaming":
                await client.reader.readuntil(b"first")
            client.close() if how == "close" else client.reset()
            await seen.cancelled.wait()
            assert seen.gone
            await until(lambda: server.open_requests == server.open_connections == 0)
            assert seen.exchange is not None
            with pytest.raises(ClientGone):
                seen.exchange.write(b"more")

    for how in ("close", "reset"):

        @on_both_loops
        async def test() -> None:
            await main(how)  # noqa: B023  # run before the next turn

        for loop_kind in ("asyncio", "uvloop"):
            test(loop_kind)


@on_both_loops
async def test_a_client_that_leaves_in_its_head() -> None:
    """No handler runs, and nothing is left."""
    async with serving(echo) as server:
        async with connected(server) as client:
            await client.send(post(b"")[:20])
            await until(lambda: server.open_connections == 1)
        await until(lambda: server.open_connections == 0)
        assert server.open_requests == 0


@on_both_loops
async def test_a_client_that_leaves_after_its_answer() -> None:
    """Who has its answer may go: what the handler still does is not broken off."""
    done, left = asyncio.Event(), asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        exchange.reply(200, [], b"")
        await left.wait()
        assert not exchange.gone
        done.set()

    async with serving(handler) as server:
        async with connected(server) as client:
            await client.send(post())
            await client.reply()
        await until(lambda: server.open_connections == 0)
        left.set()
        await done.wait()


@on_both_loops
async def test_requests_ahead_of_one_who_leaves() -> None:
    """Requests that wait behind the one under way are dropped with the connection."""
    seen = Seen()
    async with serving(watched(seen, _for_ever)) as server:
        async with connected(server) as client:
            await client.send(post() + post() + post())
            await seen.entered.wait()
        await seen.cancelled.wait()
        await until(lambda: server.open_requests == 0)


@on_both_loops
async def test_a_client_that_never_reads() -> None:
    """It is told of, others are served meanwhile, and it goes on when it reads."""
    told: list[bool] = []
    total = 0
    ended = asyncio.Event()

    async def flood(exchange: Exchange) -> None:
        nonlocal total
        exchange.on_congestion(told.append)
        exchange.start(200, [])
        for _ in range(2000):
            exchange.write(b"x" * 65536)
            total += 65536
            if exchange.congested:
                await exchange.drained()
                assert not exchange.congested
        exchange.end()
        ended.set()

    async with serving({("POST", "/flood"): flood, ("POST", "/"): echo}) as server:
        async with connected(server) as deaf, connected(server) as other:
            await deaf.send(post(path=b"/flood"))
            await until(lambda: told == [True])
            for _ in range(3):
                await other.send(post(b"hello"))
                assert (await other.reply()).body == b"hello"
            assert told == [True]
            assert not ended.is_set()
            assert total < 64 << 20
            received = 0
            while not ended.is_set():
                received += len(await deaf.reader.read(1 << 20))
            assert received > 64 << 20
            assert told.count(True) == told.count(False)


@on_both_loops
async def test_handlers_that_fail() -> None:
    """Before anything is sent: an error object, and the connection goes on. After: a cut."""

    async def raises(_: Exchange) -> None:
        raise ZeroDivisionError("a secret")

    async def raises_held(exchange: Exchange) -> None:
        exchange.start(200, [("x-a", "b")])
        raise ZeroDivisionError

    async def raises_late(exchange: Exchange) -> None:
        exchange.start(200, [])
        exchange.write(b"part")
        raise ZeroDivisionError

    async def silent(_: Exchange) -> None:
        return

    async def injects(exchange: Exchange) -> None:
        exchange.reply(200, [("x-a", "b\r\nset-cookie: c")], b"")

    async def short(exchange: Exchange) -> None:
        exchange.start(200, [], length=10)
        exchange.end(b"123")

    routes = {
        ("POST", f"/{handler.__name__}"): handler
        for handler in (raises, raises_held, raises_late, silent, injects, short)
    }
    logging.getLogger("baton.router.wire").setLevel(logging.CRITICAL)
    try:
        async with serving(routes) as server:
            async with connected(server) as client:
                for path in (b"/raises", b"/raises_held", b"/silent", b"/injects"):
                    await client.send(post(path=path))
                    reply = await client.reply()
                    assert (reply.status, reply.keep_alive) == (500, True)
                    assert _error(reply.body)["type"] == "server_error"
                    assert b"secret" not in reply.body
                    assert "set-cookie" not in reply.headers
            for path in (b"/raises_late", b"/short"):
                async with connected(server) as client:
                    await client.send(post(path=path))
                    rest = await client.rest()
                    assert b"\r\n0\r\n\r\n" not in rest
                    assert b"500" not in rest
    finally:
        logging.getLogger("baton.router.wire").setLevel(logging.NOTSET)


@on_both_loops
async def test_what_is_not_http() -> None:
    """Each gets an error object with its status, and the connection closes."""
    limits = WireLimits(header_bytes=2000, headers=20)
    head = b"GET / HTTP/1.1\r\nHost: x\r\n"
    cases = [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", 400),
        (b"hello\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nbad header\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (head + b"A: b\r\n" * 30 + b"\r\n", 431),
        (head + b"A: " + b"x" * 3000 + b"\r\n\r\n", 431),
        (head + b"A: " + b"x" * 3000, 431),
        (b"GET /" + b"x" * 3000, 431),
    ]
    async with serving(echo, limits=limits) as server:
        for message, status in cases:
            async with connected(server) as client:
                await client.send(message)
                reply = await client.reply()
                assert (reply.status, reply.keep_alive) == (status, False), message
                assert _error(reply.body)["type"] == "invalid_request_error"
                assert await client.rest() == b""
        await until(lambda: server.open_connections == 0)


@on_both_loops
async def test_endless_framing() -> None:
    """Trailers and chunk extensions without an end are refused; none of it is kept."""
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    for tail in (b"0\r\nT: " + b"x" * 40_000, b"1;" + b"x" * 40_000):
        seen = Seen()
        async with serving(watched(seen, echo)) as server, connected(server) as client:
            await client.send(head)
            await seen.entered.wait()
            await client.send(tail)
            reply = await client.reply()
            assert (reply.status, reply.keep_alive) == (431, False)


@on_both_loops
async def test_garbage_after_a_request() -> None:
    """The request is answered, then the garbage refused."""
    async with serving(echo) as server, connected(server) as client:
        await client.send(post(b"good") + b"garbage\r\n\r\n")
        assert (await client.reply()).body == b"good"
        assert (await client.reply()).status == 400
        assert await client.rest() == b""


@on_both_loops
async def test_a_broken_chunk() -> None:
    """A body that can never be whole ends its handler; the client hears why."""
    seen = Seen()
    async with serving(watched(seen, echo)) as server, connected(server) as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        await seen.entered.wait()
        await client.send(b"zz\r\n")
        assert (await client.reply()).status == 400
        await seen.cancelled.wait()
        assert seen.gone


@on_both_loops
async def test_too_many_connections() -> None:
    """One over the limit gets a 503; when one has gone there is room again."""
    async with serving(echo, limits=WireLimits(connections=2)) as server:
        async with connected(server) as first, connected(server):
            await until(lambda: server.open_connections == 2)
            async with connected(server) as third:
                reply = await third.reply()
                assert (reply.status, reply.headers["retry-after"]) == (503, "1")
                assert _error(reply.body)["code"] == "too_many_connections"
                assert await third.rest() == b""
            await first.send(post(b"still"))
            assert (await first.reply()).body == b"still"
        await until(lambda: server.open_connections == 0)
        async with connected(server) as client:
            await client.send(post(b"again"))
            assert (await client.reply()).body == b"again"


@on_both_loops
async def test_http_1_0() -> None:
    """An old client gets no chunks: its stream ends with the connection. It may ask to keep it."""

    async def stream(exchange: Exchange) -> None:
        exchange.start(200, [])
        exchange.write(b"one ")
        exchange.end(b"two")

    async with serving({("GET", "/"): stream, ("POST", "/"): echo}) as server:
        async with connected(server) as client:
            await client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            reply = await client.rest()
            assert b"chunked" not in reply
            assert reply.endswith(b"\r\n\r\none two")
        async with connected(server) as client:
            for _ in range(2):
                await client.send(
                    b"POST / HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nx"
                )
                assert (await client.reply()).keep_alive
            await client.send(b"POST / HTTP/1.0\r\nContent-Length: 1\r\n\r\nx")
            assert b"\r\n\r\nx" in await client.rest()


@on_both_loops
async def test_answers_without_a_body() -> None:
    """HEAD, 204 and 304 have none, whatever the handler writes."""

    async def any_status(exchange: Exchange) -> None:
        exchange.reply(int(exchange.query or b"200"), [], b"body")

    async def stream(exchange: Exchange) -> None:
        exchange.start(200, [])
        exchange.write(b"body")
        exchange.end(b"more")

    routes = {("GET", "/"): any_status, ("HEAD", "/"): any_status, ("HEAD", "/stream"): stream}
    async with serving(routes) as server, connected(server) as client:
        for target in (b"GET /?204", b"GET /?304", b"HEAD /", b"HEAD /stream"):
            await client.send(target + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            head = await client.reader.readuntil(b"\r\n\r\n")
            assert (b"content-length: 4" in head) == (target == b"HEAD /")
        # Nothing came between: the next bytes are the next answer's.
        await client.send(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        rest = await client.rest()
        assert rest.startswith(b"HTTP/1.1 200 OK\r\n")
        assert rest.endswith(b"connection: close\r\n\r\nbody")


@on_both_loops
async def test_not_found() -> None:
    """Without an application, other paths are 404 with an error object."""
    async with serving(echo) as server, connected(server) as client:
        await client.send(post(b"x", path=b"/other"))
        reply = await client.reply()
        assert reply.status == 404
        assert "/other" in _error(reply.body)["message"]


@on_both_loops
async def test_a_stop_that_waits() -> None:
    """New connections are refused and idle ones closed; a request under way ends, and says that
    the connection does."""
    go = asyncio.Event()
    seen = Seen()

    async def waits(exchange: Exchange) -> None:
        await go.wait()
        exchange.reply(200, [], b"whole")

    async with serving(watched(seen, waits)) as server:
        async with connected(server) as idle, connected(server) as client:
            await until(lambda: server.open_connections == 2)
            await client.send(post())
            await seen.entered.wait()
            stopping = asyncio.create_task(server.stop(drain_s=LONG_S))
            assert await idle.rest() == b""
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", server.port)
            assert server.open_requests == 1
            go.set()
            reply = await client.reply()
            assert (reply.body, reply.keep_alive) == (b"whole", False)
            await stopping
            assert server.open_requests == server.open_connections == 0


@on_both_loops
async def test_a_stop_that_cuts() -> None:
    """What does not end in time is cut, and what is hurried at once; handlers are cancelled."""
    for hurried in (False, True):
        seen = Seen()
        async with serving(watched(seen, _for_ever)) as server, connected(server) as client:
            await client.send(post())
            await seen.entered.wait()
            stopping = asyncio.create_task(server.stop(drain_s=LONG_S if hurried else 0.05))
            await asyncio.sleep(0)
            if hurried:
                server.hurry()
            assert await client.rest() == b""
            await stopping
            assert seen.cancelled.is_set()
            assert seen.gone


@on_both_loops
async def test_kill_and_start_again() -> None:
    """A killed server can start again on its port."""
    seen = Seen()
    async with serving({("POST", "/"): echo, ("GET", "/"): watched(seen, _for_ever)}) as server:
        async with connected(server) as client:
            await client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await seen.entered.wait()
            await server.kill()
            assert await client.rest() == b""
        port = server.port
        await server.start("127.0.0.1", port)
        assert server.url == f"http://127.0.0.1:{port}"
        async with connected(server) as client:
            await client.send(post(b"back"))
            assert (await client.reply()).body == b"back"


@on_both_loops
async def test_two_servers_on_one_port() -> None:
    """With ``reuse_port`` several processes may listen on one port."""
    one, two = HttpServer({}), HttpServer({})
    await one.start("127.0.0.1", 0, reuse_port=True)
    await two.start("127.0.0.1", one.port, reuse_port=True)
    await one.stop(drain_s=0)
    await two.stop(drain_s=0)


def test_tls(tmp_path: Path) -> None:
    """Behind TLS all is the same: answers, refusals, a client that leaves, a stop."""
    certificate, context = certified(tmp_path)
    trust = ssl.create_default_context(cafile=certificate)

    @on_both_loops
    async def test() -> None:
        seen = Seen()
        routes = {("POST", "/"): echo, ("GET", "/"): watched(seen, _for_ever)}
        server = HttpServer(routes)
        await server.start("127.0.0.1", 0, ssl=context)
        assert server.url == f"https://127.0.0.1:{server.port}"

        @contextlib.asynccontextmanager
        async def client() -> AsyncIterator[RawClient]:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", server.port, ssl=trust, server_hostname="localhost"
            )
            try:
                yield RawClient(reader, writer)
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

        async with client() as one:
            for size in (1, 100_000):
                await one.send(post(b"x" * size))
                assert (await one.reply()).body == b"x" * size
        async with client() as one:
            await one.send(b"garbage\r\n\r\n")
            assert (await one.reply()).status == 400
            assert await one.rest() == b""
        async with client() as one:
            await one.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await seen.entered.wait()
        await seen.cancelled.wait()
        assert seen.gone
        async with client() as one:
            await until(lambda: server.open_connections > 0)
            await server.stop(drain_s=LONG_S)
            assert await one.rest() == b""

    for loop_kind in ("asyncio", "uvloop"):
        test(loop_kind)


@pytest.mark.parametrize("loop_kind", ["asyncio", "uvloop"])
def test_no_more_files(loop_kind: str) -> None:
    """A process out of file descriptors neither dies nor spins, and serves again later."""
    script = """
        import asyncio, resource, socket, sys, time
        import uvloop
        from router.wire import HttpServer

        async def handler(exchange):
            exchange.reply(200, [], b"ok")

        async def ask(port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
            said = await reader.read()
            writer.close()
            return said.endswith(b"ok")

        async def main():
            server = HttpServer({("GET", "/"): handler})
            await server.start("127.0.0.1", 0)
            assert await ask(server.port)
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
            held = []
            try:
                while True:
                    held.append(socket.socket())
            except OSError:
                pass
            # One descriptor for a client of ours, none for the server's side of it.
            held.pop().close()
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", server.port))
            began = time.process_time()
            await asyncio.sleep(0.5)
            assert time.process_time() - began < 0.25, "it spins"
            client.close()
            for one in held:
                one.close()
            for _ in range(100):
                try:
                    if await ask(server.port):
                        break
                except OSError:
                    pass
                await asyncio.sleep(0.1)
            else:
                raise AssertionError("it does not serve again")
            await server.stop(drain_s=1)
            print("served again")

        factory = uvloop.new_event_loop if sys.argv[1] == "uvloop" else asyncio.SelectorEventLoop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), loop_kind],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "served again" in done.stdout

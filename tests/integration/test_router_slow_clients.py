"""Clients that are slow on purpose: others are served while they dawdle, and in the end they go.

Nothing is timed here: that the slow ones hold nobody up is that the others are done while the slow
ones are still there. Their own end comes from the server's clock, which the tests make run fast.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Callable

import pytest

from router import endpoint
from router.wire import WireLimits
from tests.fakes.engine import MODEL
from tests.fakes.waiting import until
from tests.integration.router_cluster import (
    CHAT,
    COMPLETIONS,
    LONG,
    SHORT,
    Cluster,
    cluster,
    right_chat,
    right_text,
)

MANY = 200
PATIENCE_S = 20.0
PATIENT = (
    ("connect_s: 0.5, prefill_s: 1, first_token_s: 1, idle_s: 0.5, total_s: 3",
     "connect_s: 20, prefill_s: 60, first_token_s: 60, idle_s: 60, total_s: 120"),
)  # fmt: skip
"""No deadline of the profile ends anything here."""
HEAD = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\n".encode()


class Slow:
    """A client over a plain socket that sends what it is given, a byte at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.heard = b""
        self.over = False
        self._tasks = [asyncio.create_task(self._listen())]

    async def _listen(self) -> None:
        with contextlib.suppress(ConnectionError):
            while part := await self.reader.read(4096):
                self.heard += part
        self.over = True

    def drip(self, first: bytes, drop: bytes) -> None:
        """Sends ``first``, and then ``drop`` again and again until the server has enough."""

        async def dripping() -> None:
            self.writer.write(first)
            while not self.over:
                await asyncio.sleep(0.1)
                self.writer.write(drop)

        self._tasks.append(asyncio.create_task(dripping()))

    async def leave(self) -> None:
        for task in self._tasks:
            task.cancel()
        self.writer.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def slow_clients(
    c: Cluster, count: int, first: bytes, drop: bytes
) -> AsyncIterator[list[Slow]]:
    """So many clients that have sent ``first`` and go on with ``drop``."""
    clients: list[Slow] = []
    try:
        for _ in range(count):
            clients.append(Slow(*await asyncio.open_connection("127.0.0.1", c.server.port)))
            clients[-1].drip(first, drop)
        await until(lambda: c.server.public.open_connections >= count, timeout_s=PATIENCE_S)
        yield clients
    finally:
        await asyncio.gather(*(client.leave() for client in clients))


@contextlib.asynccontextmanager
async def quick_clock(c: Cluster) -> AsyncIterator[None]:
    """The public server's clock goes a hundred times as fast. It ends the idle connections of the
    cluster's own client too, so that one gets new ones."""
    began_s = time.monotonic()
    c.server.public.now = lambda: began_s + 100 * (time.monotonic() - began_s)
    try:
        yield
    finally:
        c.server.public.now = time.monotonic
        await c.new_client()


async def others_are_served(c: Cluster) -> None:
    """Requests of each kind, at once and in a row, all right."""
    answers = await asyncio.gather(
        *(
            c.complete(prompt, stream=stream)
            for prompt in (SHORT, LONG)
            for stream in (True, False)
        ),
        *(c.chat(stream=stream) for stream in (True, False)),
        *(c.post("/tokenize", model=MODEL, prompt=SHORT) for _ in range(4)),
        *(c.call("GET", path) for path in ("/v1/models", "/healthz", "/readyz")),
    )
    assert [a.status for a in answers] == [200] * len(answers)
    assert [a.text for a in answers[:6]] == [right_text(SHORT)] * 2 + [right_text()] * 2 + [
        right_chat()
    ] * 2


async def test_heads_byte_by_byte() -> None:
    """Two hundred half heads cost nobody anything, and end with 408 however they drip."""
    async with cluster(replace=PATIENT) as c:
        async with slow_clients(c, MANY, HEAD + b"X-Slow: ", b"s") as slow:
            for _ in range(3):
                await others_are_served(c)
            assert not any(client.over for client in slow)
            assert c.state.in_flight == 0
            async with quick_clock(c):
                await until(lambda: all(s.over for s in slow), timeout_s=PATIENCE_S, what="cut")
            assert {client.heard[:13] for client in slow} == {b"HTTP/1.1 408 "}
            assert all(b'"request_timeout"' in client.heard for client in slow)
        await others_are_served(c)


@pytest.mark.parametrize(
    ("framing", "drop"),
    [
        (b"Content-Length: 5000\r\n\r\n{", b" "),
        (b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    ],
    ids=["length", "chunks"],
)
@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/tokenize", "/healthz"])
async def test_bodies_byte_by_byte(framing: bytes, drop: bytes, path: str) -> None:
    """Requests whose bodies are on their way stand in nobody's way, whatever they ask for: they
    take no place in the queue, and none of the bound on requests."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\n".encode()
    async with cluster(replace=PATIENT) as c, slow_clients(c, 60, head + framing, drop) as slow:
        await until(lambda: c.server.public.open_requests >= 60, timeout_s=PATIENCE_S)
        await others_are_served(c)
        assert not any(client.over for client in slow)
        assert c.state.gate.held == 0


@pytest.mark.parametrize("path", [COMPLETIONS, "/tokenize", "/healthz"])
async def test_a_body_that_takes_too_long(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not waited for without end: the connection is closed."""
    monkeypatch.setattr(endpoint, "_BODY_S", 0.3)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n".encode()
    async with cluster(replace=PATIENT) as c:
        c.server.public.limits = WireLimits(app_body_s=0.3)
        async with slow_clients(c, 20, head, b" ") as slow:
            await until(lambda: all(s.over for s in slow), timeout_s=PATIENCE_S, what="cut")
            assert {client.heard for client in slow} == {b""}
        await others_are_served(c)


async def test_as_many_as_there_may_be() -> None:
    """Slow clients can take all connections that the profile allows: the next one is told so, and
    there is room again when they are cut."""
    few = ((", drain_s: 1}", ", drain_s: 1, connections: 20}"),)
    async with cluster(replace=few) as c:
        before = c.server.public.open_connections
        async with slow_clients(c, 20 - before, HEAD, b"X") as slow:
            reader, writer = await asyncio.open_connection("127.0.0.1", c.server.port)
            refusal = await reader.read()
            writer.close()
            assert refusal.startswith(b"HTTP/1.1 503 ")
            assert b"too_many_connections" in refusal
            assert b"retry-after: 1" in refusal
            async with quick_clock(c):
                await until(lambda: all(s.over for s in slow), timeout_s=PATIENCE_S, what="cut")
        await until(lambda: c.server.public.open_connections < 5, timeout_s=PATIENCE_S)
        reader, writer = await asyncio.open_connection("127.0.0.1", c.server.port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200 OK")
        writer.close()


# --- clients that do not read -------------------------------------------------------------------

READERS = 24


def deaf_socket(port: int) -> socket.socket:
    """A connection that can hold little, so that it is full soon."""
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.connect(("127.0.0.1", port))
    return deaf


def stream_request(**more: object) -> bytes:
    body = json.dumps(
        {"model": MODEL, "prompt": SHORT, "max_tokens": 1900, "n": 2, "stream": True, **more}
    ).encode()
    return HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


@contextlib.asynccontextmanager
async def deaf_clients(c: Cluster, count: int, said: bytes) -> AsyncIterator[None]:
    """So many clients that have said something and read nothing. The kernel's buffers are kept
    small at both ends: they would take megabytes before the router noticed anything."""
    before = set(c.server.public._connections)
    sockets = [deaf_socket(c.server.port) for _ in range(count)]
    try:
        await until(
            lambda: len(c.server.public._connections - before) == count, timeout_s=PATIENCE_S
        )
        for connection in c.server.public._connections - before:
            assert connection._transport is not None
            wire = connection._transport.get_extra_info("socket")
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        for each in sockets:
            each.sendall(said)
        yield
    finally:
        for each in sockets:
            each.close()


def congested(c: Cluster) -> Callable[[], int]:
    return lambda: sum(connection.congested for connection in c.server.public._connections)


async def test_streams_that_nobody_reads() -> None:
    """They are held back at the worker, others are served meanwhile, and they are cut when their
    clients have taken nothing for too long: at the worker as well."""
    many = (*PATIENT, ("in_flight: 32", "in_flight: 100"))
    async with cluster(replace=many) as c:
        c.d.token_s = 0.001
        full = congested(c)
        async with deaf_clients(c, READERS, stream_request()):
            await until(lambda: full() == READERS, timeout_s=PATIENCE_S, what="all are full")
            for _ in range(3):
                await others_are_served(c)
            assert c.state.in_flight == READERS
            assert not any(seen.finished for seen in c.d.requests()[:READERS])
            async with quick_clock(c):
                await until(lambda: c.state.in_flight == 0, timeout_s=PATIENCE_S, what="cut")
            await until(
                lambda: all(seen.aborted for seen in c.d.requests()[:READERS]),
                timeout_s=PATIENCE_S,
                what="aborted at the worker",
            )
        await others_are_served(c)


async def test_what_nobody_reads_is_bounded() -> None:
    """Of a stream that nobody reads, the router holds about what one write leaves over."""
    async with cluster(replace=PATIENT) as c:
        full = congested(c)
        async with deaf_clients(c, 4, stream_request()):
            await until(lambda: full() == 4, timeout_s=PATIENCE_S, what="all are full")
            sizes = []
            for _ in range(20):
                await c.complete(SHORT)
                sizes.append(max(_unsent(c)))
            assert max(sizes) < 4 * 1024 * 1024
            # Nor does it grow: what the worker has more stays with the worker.
            assert max(sizes[10:]) <= max(sizes[:10])


def _unsent(c: Cluster) -> list[int]:
    return [
        connection._transport.get_write_buffer_size()
        for connection in c.server.public._connections
        if connection._transport is not None
    ]


async def test_many_questions_and_no_ear() -> None:
    """A client that asks on and on over one connection and never reads: what it is answered stops,
    others are served, and it goes."""
    async with cluster(replace=PATIENT) as c:
        full = congested(c)
        ask = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
        async with deaf_clients(c, 4, ask * 30):
            await until(lambda: full() == 4, timeout_s=PATIENCE_S, what="all are full")
            await others_are_served(c)
            assert full() == 4
            async with quick_clock(c):
                await until(lambda: full() == 0, timeout_s=PATIENCE_S, what="cut")
        await others_are_served(c)

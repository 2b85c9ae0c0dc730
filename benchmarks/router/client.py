"""A client that costs little: bytes out, bytes in, a time for each answer.

Not the load generator's: aiohttp takes it 0.27 ms of CPU per request, more than the routers
measured here need, on the two cores that client, router and workers share; and at concurrency 1
its own work would be half of the latency. This one sends prepared bytes over connections that stay
open, parses with httptools, and looks only for what an answer must have. It is no general client:
it opens no connection while it measures unless one was lost, follows no redirect, knows no TLS.

Requests are closed loops: each connection sends its next request when it has its answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import httptools

PATH = "/v1/chat/completions"
_PATIENCE_S = 15.0
"""How long after the end of a run answers are waited for."""
_MOST_FAILURES = 200
"""A run ends early when so many requests failed."""
_MUST_HOLD = b'"finish_reason":"length"'
_EVENT = b"\n\n"
_CONNECT_S = 15.0


class LoadFailed(Exception):
    """The router could not be asked, or did not answer."""


@dataclass(slots=True)
class Answers:
    """What one run brought.

    Attributes:
        wall_s: from its first request to its last answer.
        latencies_s: of the good answers.
        failures: how many were not good.
        detail: what was wrong with the first of those.
    """

    wall_s: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    failures: int = 0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Stream:
    """One streamed answer: when its request was sent, and for each arrival (when, how many events
    had come by then). Times in seconds of ``time.perf_counter``."""

    sent_s: float
    arrivals: list[tuple[float, int]]


class _Connection(asyncio.Protocol):
    """One connection with at most one request on it; tells ``on_answer`` of each answer."""

    def __init__(
        self, host: str, on_answer: Callable[[_Connection, str], None], *, streaming: bool
    ) -> None:
        self._head = (
            f"POST {PATH} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: baton-bench\r\n"
            "Accept: */*\r\nContent-Type: application/json\r\nContent-Length: "
        ).encode()
        self._on_answer = on_answer
        self._streaming = streaming
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._half_border = False
        self.busy = False
        self.sent_s = 0.0
        self.events = 0
        """Events of the answer that is coming."""
        self.arrivals: list[tuple[float, int]] = []
        """Of a stream: when something came, and how many events had come by then."""

    @property
    def open(self) -> bool:
        """Whether it can be sent on."""
        return self._transport is not None

    def send(self, body: bytes) -> None:
        """Sends one request."""
        assert self._transport is not None
        assert not self.busy
        self.busy = True
        self._body = []
        self.events = 0
        self.arrivals = []
        self._half_border = False
        data = b"%b%d\r\n\r\n%b" % (self._head, len(body), body)
        self.sent_s = time.perf_counter()
        self._transport.write(data)

    def close(self) -> None:
        """Closes the connection, whatever is on it."""
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self.busy:
            self._end(f"the connection was closed without an answer ({exc})")

    def data_received(self, data: bytes) -> None:
        events = self.events
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.close()
            if self.busy:
                self._end(f"not HTTP: {error}")
            return
        if self._streaming and self.events > events:
            self.arrivals.append((time.perf_counter(), self.events))

    # --- httptools ---

    def on_body(self, body: bytes) -> None:
        self._body.append(body)
        if self._streaming:
            # Borders of events; one may be cut in two.
            self.events += body.count(_EVENT) + (self._half_border and body.startswith(b"\n"))
            self._half_border = body.endswith(b"\n") and not body.endswith(_EVENT)

    def on_message_complete(self) -> None:
        if not self.busy:
            return
        status = self._parser.get_status_code()
        body = b"".join(self._body)
        if not self._parser.should_keep_alive():
            self.close()
            self._transport = None
        if status != 200 or _MUST_HOLD not in body:
            self._end(f"{status}: {body[:200].decode('utf-8', 'replace')}")
        elif self._streaming and not body.endswith(b"data: [DONE]\n\n"):
            self._end("the stream ended without [DONE]")
        else:
            self._end("")

    def _end(self, failure: str) -> None:
        self.busy = False
        self._on_answer(self, failure)


class Load:
    """Connections to one router; made by ``open_load``."""

    def __init__(self, url: str, concurrency: int, *, streaming: bool) -> None:
        parts = urlsplit(url)
        self._host, self._port = str(parts.hostname), int(parts.port or 80)
        self._streaming = streaming
        self._connections: list[_Connection | None] = [None] * concurrency
        self._answers = Answers()
        self._make: Callable[[], bytes] = bytes
        self._until_s = 0.0
        self._open_requests = 0
        self._over = asyncio.Event()
        self._reopening: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Opens all connections.

        Raises:
            LoadFailed: the router takes none.
        """
        for place in range(len(self._connections)):
            self._connections[place] = await self._connect()

    async def close(self) -> None:
        """Closes all connections."""
        for task in self._reopening:
            task.cancel()
        await asyncio.gather(*self._reopening, return_exceptions=True)
        for connection in self._connections:
            if connection is not None:
                connection.busy = False
                connection.close()

    async def run(self, make_body: Callable[[], bytes], seconds: float) -> Answers:
        """Sends requests for ``seconds`` on every connection, and waits for their answers.

        ``seconds`` 0 sends one request on each.

        Raises:
            LoadFailed: answers did not come, or hardly one was good.
        """
        self._answers = answers = Answers()
        self._make = make_body
        self._over.clear()
        began_s = time.perf_counter()
        self._until_s = began_s + seconds
        self._open_requests = 0
        for place, connection in enumerate(self._connections):
            if connection is None or not connection.open:
                # It was closed while nothing was on it, which a server may do.
                self._connections[place] = connection = await self._connect()
            self._send(connection)
        await self._wait(seconds + _PATIENCE_S)
        answers.wall_s = time.perf_counter() - began_s
        if answers.failures >= _MOST_FAILURES or not answers.latencies_s:
            raise LoadFailed(f"{answers.failures} requests failed; the first: {answers.detail}")
        return answers

    async def _wait(self, patience_s: float) -> None:
        try:
            async with asyncio.timeout(patience_s):
                await self._over.wait()
        except TimeoutError as error:
            raise LoadFailed(f"{self._open_requests} requests got no answer") from error

    def _send(self, connection: _Connection) -> None:
        self._open_requests += 1
        connection.send(self._make())

    def _answered_one(self, connection: _Connection, failure: str) -> None:
        now_s = time.perf_counter()
        answers = self._answers
        self._open_requests -= 1
        if failure:
            answers.failures += 1
            answers.detail = answers.detail or failure
        else:
            answers.latencies_s.append(now_s - connection.sent_s)
        if now_s < self._until_s and answers.failures < _MOST_FAILURES:
            if connection.open:
                self._send(connection)
            else:
                # Counts as open, so that the run does not end before it is settled.
                self._open_requests += 1
                task = asyncio.get_running_loop().create_task(self._reopen(connection))
                self._reopening.add(task)
                task.add_done_callback(self._reopening.discard)
        elif self._open_requests == 0:
            self._over.set()

    async def _reopen(self, lost: _Connection) -> None:
        try:
            fresh = await self._connect()
        except LoadFailed as error:
            self._answers.failures += _MOST_FAILURES
            self._answers.detail = self._answers.detail or str(error)
            self._open_requests -= 1
            if self._open_requests == 0:
                self._over.set()
            return
        self._connections[self._connections.index(lost)] = fresh
        self._open_requests -= 1
        self._send(fresh)

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        host = f"{self._host}:{self._port}"
        try:
            async with asyncio.timeout(_CONNECT_S):
                _, connection = await loop.create_connection(
                    lambda: _Connection(host, self._answered_one, streaming=self._streaming),
                    self._host,
                    self._port,
                )
        except (OSError, TimeoutError) as error:
            raise LoadFailed(f"{host} takes no connection: {error}") from error
        return connection

    # --- streams ---

    async def start_streams(self, make_body: Callable[[], bytes], gap_s: float) -> None:
        """Sends one request on each connection, spread so that their events come evenly.

        To be followed by ``finish_streams``.

        Args:
            make_body: a streaming request.
            gap_s: between the events of one stream.
        """
        self._answers = Answers()
        self._make = make_body
        self._until_s = 0.0
        self._open_requests = 0
        self._over.clear()
        count = len(self._connections)
        for place, connection in enumerate(self._connections):
            if connection is None or not connection.open:
                self._connections[place] = connection = await self._connect()
            self._send(connection)
            await asyncio.sleep(gap_s * (1 + 1 / count))

    def events(self) -> int:
        """Events that all streams have brought so far."""
        return sum(connection.events for connection in self._connections if connection)

    def streaming(self) -> int:
        """How many streams have begun and have not ended."""
        return sum(c.busy and c.events > 0 for c in self._connections if c)

    async def finish_streams(self) -> tuple[Answers, list[Stream]]:
        """Waits for the ends.

        Raises:
            LoadFailed: some have no end.
        """
        if self._open_requests:
            await self._wait(_PATIENCE_S)
        streams = [Stream(c.sent_s, c.arrivals) for c in self._connections if c]
        return self._answers, [stream for stream in streams if stream.arrivals]


@contextlib.asynccontextmanager
async def open_load(url: str, concurrency: int, *, streaming: bool = False) -> AsyncIterator[Load]:
    """Connections to a router, closed with the block.

    Raises:
        LoadFailed: the router takes none.
    """
    load = Load(url, concurrency, streaming=streaming)
    try:
        await load.open()
        yield load
    finally:
        await load.close()

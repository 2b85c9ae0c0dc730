"""Both ends of a wire for tests: a raw client, a scripted worker, a transport in memory.

They exist because what is tested is what real clients and servers never do: half a head, a byte at
a time, a reset in the middle.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httptools
import pytest
import uvloop

from baton.types import RequestId, WorkerRecord
from router.wire import Exchange, Handler, HttpServer, Upstream, WireLimits
from tests.fakes.worker_records import worker_record

LONG_S = 60.0
"""A wait that is cut short by what is tested, or the test fails."""
REQUEST_ID = RequestId("baton-1")

_LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": uvloop.new_event_loop,
}


def on_both_loops(test: Callable[[], Awaitable[None]]) -> Callable[[str], None]:
    """Makes two tests of a coroutine function: one on asyncio's loop, one on uvloop. Each fails
    if tasks are left over."""

    async def main() -> None:
        async with asyncio.timeout(LONG_S):
            await test()
        for _ in range(5):
            left = asyncio.all_tasks() - {asyncio.current_task()}
            if not left:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"tasks left over: {left}")

    @pytest.mark.parametrize("loop_kind", list(_LOOPS))
    @functools.wraps(test)
    def both(loop_kind: str) -> None:
        with asyncio.Runner(loop_factory=_LOOPS[loop_kind]) as runner:
            runner.run(main())

    del both.__wrapped__  # or pytest takes its signature
    return both


@dataclass
class Reply:
    """An answer as a client sees it."""

    status: int
    headers: dict[str, str]
    body: bytes
    keep_alive: bool


class RawClient:
    """A client that sends whatever bytes it is given."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._pending = b""

    async def send(self, *pieces: bytes) -> None:
        """Each piece as a segment of its own, as far as the system allows."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    async def reply(self) -> Reply:
        """The next answer; asserts that one comes whole."""
        found: dict[str, Any] = {"headers": {}, "body": b"", "done": False}
        parser: Any = None

        class Seen:
            def on_header(self, name: bytes, value: bytes) -> None:
                found["headers"][name.decode().lower()] = value.decode("latin-1")

            def on_headers_complete(self) -> None:
                found["status"] = parser.get_status_code()
                found["keep_alive"] = parser.should_keep_alive()

            def on_body(self, part: bytes) -> None:
                found["body"] += part

            def on_message_complete(self) -> None:
                found["done"] = True

        parser = httptools.HttpResponseParser(Seen())
        while not found["done"]:
            # A byte at a time, so that nothing of the next answer is lost.
            byte = await self.reader.read(1)
            if not byte:
                break
            parser.feed_data(byte)
        assert "status" in found, "the connection closed without an answer"
        closes = "content-length" not in found["headers"]
        assert found["done"] or closes, "the answer broke off"
        return Reply(found["status"], found["headers"], found["body"], found["keep_alive"])

    async def rest(self) -> bytes:
        """All that comes until the connection closes."""
        with contextlib.suppress(ConnectionError):
            return await self.reader.read()
        return b""

    def close(self) -> None:
        """As a client does that has had enough."""
        self.writer.close()

    def reset(self) -> None:
        """As a killed client, or one behind a strict firewall, does."""
        self.writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        self.writer.transport.abort()


@contextlib.asynccontextmanager
async def connected(server: HttpServer) -> AsyncIterator[RawClient]:
    """A client of a server."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield RawClient(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def serving(
    routes: Mapping[tuple[str, str], Handler] | Handler,
    app: Any = None,
    limits: WireLimits | None = None,
    **options: Any,
) -> AsyncIterator[HttpServer]:
    """A server on a free port; a lone handler serves ``POST /``."""
    if callable(routes):
        routes = {("POST", "/"): routes}
    server = HttpServer(routes, app, limits, **options)
    await server.start("127.0.0.1", 0)
    try:
        yield server
    finally:
        await server.kill()


def post(body: bytes = b"", *headers: bytes, path: bytes = b"/") -> bytes:
    """A request with a body of known length."""
    lines = [b"POST %b HTTP/1.1" % path, b"Host: x", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def echo(exchange: Exchange) -> None:
    """Answers with the body."""
    body = await exchange.body(1 << 20, LONG_S)
    exchange.reply(200, [("content-type", "text/plain")], body)


@dataclass
class Seen:
    """What became of a handler's task."""

    exchange: Exchange | None = None
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    gone: bool | None = None


def watched(seen: Seen, handler: Handler) -> Handler:
    """A handler that notes when it is cancelled, and what it could know by then."""

    async def run(exchange: Exchange) -> None:
        seen.exchange = exchange
        seen.entered.set()
        try:
            await handler(exchange)
        except asyncio.CancelledError:
            seen.gone = exchange.gone
            seen.cancelled.set()
            raise

    return run


class Request:
    """A request as a scripted worker sees it."""

    def __init__(self, head: bytes, body: bytes) -> None:
        self.head = head
        self.body = body


class Call:
    """One connection to a scripted worker."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def request(self) -> Request:
        """The next request.

        Raises:
            asyncio.IncompleteReadError: the connection closed.
        """
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        return Request(head, await self.reader.readexactly(length))

    async def say(self, *pieces: bytes) -> None:
        """Each piece as a segment of its own, as far as the system allows."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    async def gone(self) -> None:
        """Returns when the other side has closed."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65536):
                pass

    def reset(self) -> None:
        """As a killed process does."""
        self.writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        self.writer.transport.abort()


@dataclass
class Worker:
    """A scripted worker: its record, its connections, and the requests it saw."""

    record: WorkerRecord
    calls: list[Call] = field(default_factory=list)
    open_calls: int = 0


Script = Callable[[Call], Awaitable[None]]


@contextlib.asynccontextmanager
async def working(
    script: Script, *, host: str = "127.0.0.1", **listen: Any
) -> AsyncIterator[Worker]:
    """A worker that runs ``script`` for each connection, and closes it then."""
    worker = Worker(worker_record())
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        call = Call(reader, writer)
        worker.calls.append(call)
        worker.open_calls += 1
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                await script(call)
        except asyncio.CancelledError:
            pass  # the end of the test; streams would log it as an error
        finally:
            worker.open_calls -= 1
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, **listen)
    port = server.sockets[0].getsockname()[1]
    scheme = "https" if listen else "http"
    worker.record = worker_record(url=f"{scheme}://{host}:{port}")
    try:
        yield worker
    finally:
        server.close()
        left = list(tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        for call in worker.calls:
            call.writer.close()
            with contextlib.suppress(OSError):
                await call.writer.wait_closed()
        await server.wait_closed()


@contextlib.asynccontextmanager
async def asking(**options: Any) -> AsyncIterator[Upstream]:
    """An upstream client."""
    upstream = Upstream("token", **({"connect_s": LONG_S} | options))
    try:
        yield upstream
    finally:
        await upstream.close()


def answer(body: bytes = b"{}", *headers: bytes, status: bytes = b"200 OK") -> bytes:
    """A worker's answer of known length."""
    lines = [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def chunked(parts: Iterable[bytes]) -> bytes:
    """Chunks, without the last one."""
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def certified(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A fresh certificate for ``localhost``, and a server's context with it."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-keyout", str(key), "-out", str(certificate), "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost"),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return certificate, context


class MemoryTransport(asyncio.Transport):
    """A transport of which the test plays the network: nothing is sent but ``written``."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.written = bytearray()
        self.unsent = 0
        self.reading = True
        self.ended = self.closed = self.aborted = False
        self._protocol = protocol

    def write(self, data: Any) -> None:
        assert not self.ended
        if not self.closed:
            self.written += data

    def write_eof(self) -> None:
        self.ended = True

    def can_write_eof(self) -> bool:
        return True

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            if not self.unsent:
                asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    def abort(self) -> None:
        if not self.aborted:
            self.aborted = True
            if not self.closed or self.unsent:
                asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)
            self.closed = True

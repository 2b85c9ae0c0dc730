"""A small OpenAI endpoint on loopback whose delays and faults are set by attributes.

A protocol of its own instead of a framework: it can cut connections, stand still, and count what is
open, and it costs little beside the client that is under test.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

SAMPLE_TOKENS = 4


class _Connection(asyncio.Protocol):
    def __init__(self, server: ScriptedServer) -> None:
        self._server = server
        self._buffer = b""
        self._queue: asyncio.Queue[tuple[str, dict[str, str], bytes]] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._server.open.add(self)
        self._server.connections += 1
        self._task = asyncio.create_task(self._serve())

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.open.discard(self)
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            first, *lines = self._buffer[:end].decode().split("\r\n")
            headers = {
                key.lower(): value for key, _, value in (line.partition(": ") for line in lines)
            }
            length = int(headers.get("content-length", "0"))
            if len(self._buffer) < end + 4 + length:
                return
            body = self._buffer[end + 4 : end + 4 + length]
            self._buffer = self._buffer[end + 4 + length :]
            self._queue.put_nowait((first.split()[1], headers, body))

    async def _serve(self) -> None:
        while True:
            path, headers, body = await self._queue.get()
            await self._server.answer(self, path, headers, json.loads(body) if body else {})

    def whole(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.transport.write(
            b"HTTP/1.1 %d X\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n%s"
            % (status, kind.encode(), len(body), body)
        )

    def chunk(self, data: bytes) -> None:
        self.transport.write(b"%x\r\n%s\r\n" % (len(data), data))

    def event(self, payload: dict[str, Any] | str) -> None:
        text = payload if isinstance(payload, str) else json.dumps(payload)
        self.chunk(f"data: {text}\n\n".encode())


class ScriptedServer:
    """Answers ``/v1/models``, ``/v1/completions`` and ``/v1/chat/completions``.

    ``fault`` is what happens to a request: None, ``http_503``, ``error_event``, ``cut`` (the
    connection breaks after the first chunk), ``quiet_end`` (a proper end without a finish),
    ``hang`` (no answer), ``disconnect`` (closed before the status), ``json`` (200 with something
    else), ``garbage``. ``stall_at``: seconds after the first request for text, and for how long,
    it stands still. ``together``: nobody is answered before so many requests have come.
    """

    def __init__(self) -> None:
        self.models = ["m"]
        self.key: str | None = None
        self.ttft_s = 0.0
        self.itl_s = 0.0
        self.fault: str | None = None
        self.refuses_force = False
        self.reports_usage = True
        self.tokens_per_word = 1.0
        self.cached = 0
        self.short_by = 0
        self.stalled_until_s = 0.0
        self.stall_at: tuple[float, float] | None = None
        self.together = 0
        self._crowd = asyncio.Event()
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.open: set[_Connection] = set()
        self.connections = 0
        self.url = ""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[ScriptedServer]:
        """Listens on a free port while open."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for connection in list(self.open):
                connection.transport.abort()
            await asyncio.sleep(0)
            await asyncio.sleep(0.001)

    @property
    def measured(self) -> list[dict[str, Any]]:
        """Bodies of the requests for text, those of ``resolve`` left out."""
        return [body for body in self.requests if not _is_trial(body)]

    def stall(self, seconds: float) -> None:
        """Stands still from now on."""
        self.stalled_until_s = asyncio.get_running_loop().time() + seconds

    async def _pause(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        if seconds > 0:
            await asyncio.sleep(seconds)
        await asyncio.sleep(max(0.0, self.stalled_until_s - loop.time()))

    async def answer(
        self, connection: _Connection, path: str, headers: dict[str, str], body: dict[str, Any]
    ) -> None:
        """One request."""
        if self.key is not None and headers.get("authorization") != f"Bearer {self.key}":
            connection.whole(401, b'{"error": {"message": "wrong key"}}')
        elif path == "/v1/models":
            listed = {"data": [{"id": name} for name in self.models]}
            connection.whole(200, json.dumps(listed).encode())
        elif path not in ("/v1/completions", "/v1/chat/completions"):
            connection.whole(404, b"{}")
        elif self.refuses_force and "ignore_eos" in body:
            connection.whole(400, b'{"error": {"message": "Unknown parameter: ignore_eos"}}')
        else:
            if not self.requests and self.stall_at is not None:
                after_s, length_s = self.stall_at
                asyncio.get_running_loop().call_later(after_s, self.stall, length_s)
            self.requests.append(body)
            self.headers.append(headers)
            if len(self.requests) >= self.together:
                self._crowd.set()
            await self._crowd.wait()
            await self._text(connection, path, body)

    async def _text(self, connection: _Connection, path: str, body: dict[str, Any]) -> None:
        await self._pause(self.ttft_s)
        if self.fault == "hang":
            await asyncio.Event().wait()
        if self.fault == "disconnect":
            connection.transport.close()
            return
        if self.fault == "http_503":
            connection.whole(503, b'{"error": {"message": "no worker"}}')
            return
        if self.fault == "json":
            connection.whole(200, b'{"hello": 1}')
            return
        count = body.get("max_tokens", SAMPLE_TOKENS) - self.short_by
        chat = path == "/v1/chat/completions"
        text = body.get("prompt") or " ".join(m["content"] for m in body.get("messages", ()))
        usage = {
            "prompt_tokens": round(len(text.split()) * self.tokens_per_word),
            "completion_tokens": count,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }
        words = [f" w{n}" for n in range(count)]
        if not body.get("stream"):
            whole = "".join(words)
            choice = {"message": {"content": whole}} if chat else {"text": whole}
            connection.whole(
                200,
                json.dumps({"choices": [{**choice, "finish_reason": "length"}], "usage": usage})
                .encode(),
            )  # fmt: skip
            return
        connection.transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
            b"x-baton-path: local\r\nx-baton-reason: short\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        if chat:
            connection.event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        for number, word in enumerate(words):
            if number:
                await self._pause(self.itl_s)
            last = number == count - 1 and self.fault != "quiet_end"
            piece = {"delta": {"content": word}} if chat else {"text": word}
            finish = "length" if last else None
            connection.event({"choices": [{**piece, "finish_reason": finish}]})
            if self.fault == "cut":
                connection.transport.close()
                return
            if self.fault == "error_event":
                connection.event({"error": {"message": "engine died"}})
                break
            if self.fault == "garbage":
                connection.event("{not json")
        if self.fault is None:
            if self.reports_usage:
                connection.event({"choices": [], "usage": usage})
            connection.event("[DONE]")
        connection.transport.write(b"0\r\n\r\n")


def _is_trial(body: dict[str, Any]) -> bool:
    text = body.get("prompt") or body["messages"][-1]["content"]
    return body.get("max_tokens") == 2 and len(text.split()) in (16, 144)

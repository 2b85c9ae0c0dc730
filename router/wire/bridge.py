"""ASGI applications behind the server: what is not hot is written in a framework.

It speaks the ``http`` and ``lifespan`` parts of ASGI 3. Bodies are read whole, within the limits,
before the application is called; answers are sent as they come, with back-pressure.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from starlette.types import ASGIApp, Scope

from baton.errors import BodyTooLarge
from router.wire import heads
from router.wire.exchange import ClientGone, Exchange

if TYPE_CHECKING:
    from router.wire.server import HttpServer

log = logging.getLogger("baton.router.wire")

_ASGI = {"version": "3.0", "spec_version": "2.4"}
_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding"})

Message = MutableMapping[str, Any]


class AppBridge:
    """One ASGI application.

    Args:
        app: the application.
        server: whose limits and address these are.
    """

    def __init__(self, app: ASGIApp, server: HttpServer) -> None:
        self._app = app
        self._server = server
        self._lifespan: _Lifespan | None = None

    async def startup(self) -> None:
        """Runs the application's start.

        Raises:
            RuntimeError: it failed.
        """
        self._lifespan = _Lifespan(self._app)
        await self._lifespan.startup()

    async def shutdown(self) -> None:
        """Runs the application's end."""
        if self._lifespan is not None:
            lifespan, self._lifespan = self._lifespan, None
            await lifespan.shutdown()

    async def __call__(self, exchange: Exchange) -> None:
        """One request."""
        limits = self._server.limits
        try:
            body = await exchange.body(limits.app_body_bytes, limits.app_body_s)
        except BodyTooLarge as error:
            exchange.reply(
                error.status,
                [("content-type", "application/json")],
                heads.error_body(error.message, code=error.code),
            )
            return
        call = _Call(exchange, body)
        await self._app(self._scope(exchange), call.receive, call.send)

    def _scope(self, exchange: Exchange) -> Scope:
        raw = exchange.path.encode("latin-1")
        path = unquote(exchange.path) if "%" in exchange.path else exchange.path
        return {
            "type": "http",
            "asgi": dict(_ASGI),
            "http_version": exchange.http_version,
            "method": exchange.method,
            "scheme": self._server.scheme,
            "path": path,
            "raw_path": raw,
            "query_string": exchange.query,
            "root_path": "",
            "headers": exchange.headers,
            "client": None if exchange.client is None else (exchange.client, 0),
            "server": (self._server.host, self._server.port),
            "state": {} if self._lifespan is None else dict(self._lifespan.state),
        }


class _Call:
    """One call of the application: its ``receive`` and ``send``."""

    def __init__(self, exchange: Exchange, body: bytes) -> None:
        self._exchange = exchange
        self._body: bytes | None = body
        self._start: Message | None = None

    async def receive(self) -> Message:
        body, self._body = self._body, None
        if body is not None:
            return {"type": "http.request", "body": body, "more_body": False}
        await self._exchange.over()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        exchange = self._exchange
        if exchange.gone:
            # What ASGI has an application hear of a client that left.
            raise OSError("the client has left")
        kind = message["type"]
        if kind == "http.response.start" and self._start is None and not exchange.started:
            self._start = message
        elif kind == "http.response.body" and (self._start is not None or exchange.started):
            await self._send_body(message)
        else:
            raise RuntimeError(f"the application sent {kind} out of turn")

    async def _send_body(self, message: Message) -> None:
        exchange, data = self._exchange, bytes(message.get("body", b""))
        more = message.get("more_body", False)
        if self._start is not None:
            start, self._start = self._start, None
            length, headers = self._headers(start)
            if not more and length is None:
                length = len(data)
            exchange.start(start["status"], headers, length=length)
        if not more:
            exchange.end(data)
            return
        exchange.write(data)
        try:
            await exchange.drained()
        except ClientGone as error:
            raise OSError("the client takes nothing") from error

    def _headers(self, start: Message) -> tuple[int | None, list[tuple[str, str]]]:
        length, headers = None, []
        for raw_name, raw_value in start.get("headers", ()):
            name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
            if name == "content-length":
                length = int(value)
            elif name == "connection" and value.lower() == "close":
                self._exchange.keep_alive = False
            elif name not in _HOP_BY_HOP:
                headers.append((name, value))
        return length, headers


class _Lifespan:
    """The application's start and end: one call of it that lasts as long as the server runs."""

    def __init__(self, app: ASGIApp) -> None:
        self.state: dict[str, Any] = {}
        self._app = app
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self._said: asyncio.Queue[Message] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def startup(self) -> None:
        self._task = asyncio.create_task(self._run(), name="lifespan")
        failed: BaseException | None = None
        try:
            said = await self._ask("lifespan.startup")
            # One that ends or raises before it says a word has no lifespan.
            if said is not None and said["type"] == "lifespan.startup.failed":
                raise RuntimeError(f"the application did not start: {said.get('message', '')}")
        except BaseException as error:
            failed = error
        if failed is not None:
            await self._end()
            raise failed

    async def shutdown(self) -> None:
        if self._task is None:
            return
        said = await self._ask("lifespan.shutdown")
        if said is not None and said["type"] == "lifespan.shutdown.failed":
            log.error("the application did not shut down: %s", said.get("message", ""))
        await self._end()

    async def _end(self) -> None:
        """The call has said its last; one that goes on is cancelled."""
        assert self._task is not None
        if not self._task.done():
            # Its last word is out, and all that it has left to do is to return.
            await asyncio.sleep(0)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": dict(_ASGI), "state": self.state}
        await self._app(scope, self._messages.get, self._said.put)

    async def _ask(self, kind: str) -> Message | None:
        """The application's answer, or None if its call has ended."""
        assert self._task is not None
        if self._task.done():
            return None
        self._messages.put_nowait({"type": kind})
        answer = asyncio.create_task(self._said.get(), name=kind)
        found: Message | None = None
        failed: BaseException | None = None
        try:
            await asyncio.wait({answer, self._task}, return_when=asyncio.FIRST_COMPLETED)
            found = self._said_now(answer)
        except BaseException as error:
            failed = error
        answer.cancel()
        await asyncio.gather(answer, return_exceptions=True)
        if failed is not None:
            raise failed
        return found

    def _said_now(self, answer: asyncio.Task[Message]) -> Message | None:
        if answer.done():
            return answer.result()
        return None if self._said.empty() else self._said.get_nowait()

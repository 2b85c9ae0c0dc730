"""The HTTP server: listens, finds the handler, keeps time, and stops without breaking answers off.

Routes are exact: ``(method, path)``, or with ``*`` for any last segment of the path. Everything
else goes to an ASGI application, so that what is not hot can be written in a framework. One timer
looks at all connections about once a second.
"""

from __future__ import annotations

import asyncio
import logging
import ssl as tls
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import httptools
from starlette.types import ASGIApp

from baton.clock import next_beat
from router.wire import heads
from router.wire.bridge import AppBridge
from router.wire.connection import Connection
from router.wire.exchange import Exchange, Handler
from router.wire.limits import WireLimits

log = logging.getLogger("baton.router.wire")

_BACKLOG = 2048
_ASYNCIO_BACKLOG = 100
"""asyncio's own loop takes the backlog for how often to try in a row, and goes on trying, with an
entry in the log each time, when the process is out of files. In use it is uvloop that runs."""
_REFUSED_AT_A_TIME = 256
"""Connections over the limit that are told so; those beyond are closed without a word."""
_CANCELLED_S = 5.0
"""For cancelled handlers to end, before they are left behind."""


class HttpServer:
    """Listens on one address of the running loop; can be started again after it was stopped.

    Args:
        routes: ``(METHOD, path)`` to handler; a path may end with ``/*``.
        fallback: the ASGI application for everything else, with its lifespan; None answers 404.
        limits: what one client may take.
        now: seconds, for limits and ``Exchange.head_s``.
    """

    def __init__(
        self,
        routes: Mapping[tuple[str, str], Handler],
        fallback: ASGIApp | None = None,
        limits: WireLimits | None = None,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits or WireLimits()
        self.now = now
        self.stopping = False
        self.port = 0
        self._host = "127.0.0.1"
        self._scheme = "http"
        self._routes = {
            f"{method} {path}".encode("latin-1"): (method, path, handler)
            for (method, path), handler in routes.items()
        }
        self._bridge = None if fallback is None else AppBridge(fallback, self)
        self._server: asyncio.AbstractServer | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._empty = asyncio.Event()
        self._hurried = False

    @property
    def url(self) -> str:
        """``http://HOST:PORT``, to be used once it is started."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{self._scheme}://{host}:{self.port}"

    @property
    def host(self) -> str:
        """The address listened on."""
        return self._host

    @property
    def scheme(self) -> str:
        """``http`` or ``https``."""
        return self._scheme

    @property
    def open_requests(self) -> int:
        """Requests whose handlers run."""
        return len(self._tasks)

    @property
    def open_connections(self) -> int:
        """Connections of clients, idle ones too."""
        return len(self._connections)

    async def start(
        self,
        host: str,
        port: int,
        *,
        reuse_port: bool = False,
        ssl: tls.SSLContext | None = None,
    ) -> None:
        """Starts the application, then listens; port 0 takes a free one.

        Raises:
            OSError: the address cannot be listened on.
            RuntimeError: the application did not start.
        """
        loop = asyncio.get_running_loop()
        own_loop = isinstance(loop, asyncio.BaseEventLoop)
        self._empty = asyncio.Event()
        self.stopping = self._hurried = False
        if self._bridge is not None:
            await self._bridge.startup()
        failed: BaseException | None = None
        server: asyncio.Server | None = None
        try:
            server = await loop.create_server(
                lambda: Connection(self),
                host,
                port,
                reuse_port=reuse_port or None,
                backlog=_ASYNCIO_BACKLOG if own_loop else _BACKLOG,
                ssl=ssl,
                ssl_handshake_timeout=None if ssl is None else self.limits.head_s,
            )
        except BaseException as error:
            failed = error
        if failed is not None:
            if self._bridge is not None:
                await self._bridge.shutdown()
            raise failed
        self._server = server
        # Its sockets are a tuple with asyncio and a list with uvloop.
        listening: Any = server
        self._host, self.port = listening.sockets[0].getsockname()[:2]
        self._scheme = "http" if ssl is None else "https"
        self._arm()

    async def stop(self, *, drain_s: float) -> None:
        """Takes no new connections, closes idle ones, lets requests end within ``drain_s``, then
        cuts what is left and stops the application."""
        self._refuse_new()
        for connection in list(self._connections):
            if not connection.busy:
                connection.close()
        if self._connections or self._tasks:
            try:
                async with asyncio.timeout(0 if self._hurried else drain_s):
                    await self._empty.wait()
            except TimeoutError:
                # What is left may be idle connections only, whose closing takes a turn of the loop.
                if self.open_requests:
                    log.warning("%d requests were cut by the stop", self.open_requests)
        await self._cut()

    def hurry(self) -> None:
        """Ends a stop that waits for requests: they are cut now."""
        self._hurried = True
        self._empty.set()

    async def kill(self) -> None:
        """Cuts everything at once, as the death of the process would."""
        self._refuse_new()
        await self._cut()

    def _refuse_new(self) -> None:
        self.stopping = True
        if self._server is not None:
            self._server.close()

    async def _cut(self) -> None:
        for connection in list(self._connections):
            connection.cut()
        # Those whose clients left earlier, and who had not ended yet.
        for task in self._tasks:
            task.cancel()
        # The transports close in the loop's next turn.
        await asyncio.sleep(0)
        if self._tasks:
            _, left = await asyncio.wait(self._tasks, timeout=_CANCELLED_S)
            if left:
                log.error("%d handlers do not end", len(left))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._server is not None:
            await self._server.wait_closed()
            self._server = None
        if self._bridge is not None:
            await self._bridge.shutdown()

    # The connections' side.

    def joined(self, connection: Connection) -> bool:
        """A client connected; False if there are too many."""
        self._connections.add(connection)
        over = len(self._connections) - self.limits.connections
        if over > _REFUSED_AT_A_TIME or self.stopping:
            connection.abort()
        return over <= 0 and not self.stopping

    def left(self, connection: Connection) -> None:
        """A connection is closed."""
        self._connections.discard(connection)
        self._look_whether_empty()

    def exchange(
        self,
        connection: Connection,
        method: bytes,
        url: bytes,
        version: str,
        headers: list[tuple[bytes, bytes]],
    ) -> Exchange:
        """An exchange with the handler that the route has."""
        path, _, query = url.partition(b"?")
        found = self._routes.get(b"%b %b" % (method, path))
        if found is not None:
            return Exchange(connection, found[2], found[0], found[1], query, version, headers)
        if not path.startswith(b"/") and b"://" in path:
            path, query = _absolute(url)
            found = self._routes.get(b"%b %b" % (method, path))
        if found is None:
            found = self._routes.get(b"%b %b/*" % (method, path.rpartition(b"/")[0]))
        if found is not None:
            handler = found[2]
        else:
            handler = self._not_found if self._bridge is None else self._bridge
        return Exchange(
            connection,
            handler,
            method.decode("latin-1"),
            path.decode("latin-1"),
            query,
            version,
            headers,
        )

    def begin(self, serving: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A request's task."""
        task = asyncio.get_running_loop().create_task(serving)
        self._tasks.add(task)
        return task

    def served(self, task: asyncio.Task[None]) -> None:
        """A request's task has ended."""
        self._tasks.discard(task)
        if self.stopping:
            self._look_whether_empty()

    def _look_whether_empty(self) -> None:
        if self.stopping and not self._connections and not self._tasks:
            self._empty.set()

    async def _not_found(self, exchange: Exchange) -> None:
        message = f"There is no {exchange.method} {exchange.path} here."
        exchange.reply(
            404,
            [("content-type", "application/json")],
            heads.error_body(message, code="not_found"),
        )

    # Time.

    def look(self) -> None:
        """Ends what takes too long; called by the timer."""
        now_s = self.now()
        for connection in list(self._connections):
            connection.look(now_s)

    def _arm(self) -> None:
        limits = self.limits
        every_s = min(1.0, min(limits.head_s, limits.idle_s, limits.write_s) / 4)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(next_beat(loop.time(), every_s), self._tick)

    def _tick(self) -> None:
        try:
            self.look()
        finally:
            self._arm()


def _absolute(url: bytes) -> tuple[bytes, bytes]:
    """Path and query of ``http://host/path?query``, which proxies may send."""
    try:
        # Its types say bytes, and it says None for a part that is not there.
        parts: Any = httptools.parse_url(url)
    except httptools.HttpParserInvalidURLError:
        return url, b""
    return parts.path or b"/", parts.query or b""

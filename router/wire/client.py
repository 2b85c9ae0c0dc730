"""The router's HTTP client for engines: pooled connections, each wait with its deadline.

Foreign exceptions end here: callers see ``WorkerUnreachable``, ``WorkerTimeout`` and
``WorkerFailed`` only. Leaving a leg before its end, or being cancelled in it, closes its
connection, which makes the engine abort. Nothing is sent twice: a request with transfer parameters
may be carried out once only. Redirects are not followed, and HEAD is not spoken.
"""

from __future__ import annotations

import asyncio
import collections
import ssl as tls
from collections.abc import Sequence
from types import TracebackType
from urllib.parse import urlsplit

from baton.clock import next_beat
from baton.errors import PeerFault, WorkerTimeout, WorkerUnreachable
from baton.types import RequestId, WorkerRecord
from router.wire.heads import header_lines
from router.wire.leg import Answer, Leg
from router.wire.link import Link

__all__ = ["Answer", "Leg", "Upstream"]

_RESERVED = frozenset(
    {
        "authorization",
        "connection",
        "content-length",
        "content-type",
        "host",
        "transfer-encoding",
        "x-request-id",
    }
)
_LOOK_S = 1.0
_MOST_HEADS = 64
"""Heads kept ready per worker: there are as many as paths, unless somebody makes paths up."""


class Upstream:
    """HTTP to workers, from one event loop.

    Args:
        token: the cluster token, which engines take as their API key.
        connect_s: for a connection to be made.
        idle_s: an unused connection is closed after this; below the five seconds after which
            engines close one themselves, or a request would cross with the closing.
        most_idle: unused connections kept per worker.
    """

    def __init__(
        self, token: str, *, connect_s: float, idle_s: float = 4.0, most_idle: int = 256
    ) -> None:
        self._token = token
        self.connect_s = connect_s
        self._idle_s = idle_s
        self._most_idle = most_idle
        self._origins: dict[str, _Origin] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._tls: tls.SSLContext | None = None
        self._closed = False

    @property
    def idle(self) -> int:
        """Unused connections."""
        return sum(len(origin.idle) for origin in self._origins.values())

    @property
    def connections(self) -> int:
        """All connections."""
        return sum(len(origin.links) for origin in self._origins.values())

    async def close(self) -> None:
        """Closes all connections; legs that still run fail."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for origin in self._origins.values():
            for link in list(origin.links):
                link.abort()
        # The transports close in the loop's next turn.
        await asyncio.sleep(0)
        self._origins.clear()

    def open(
        self,
        worker: WorkerRecord,
        path: str,
        body: bytes,
        request_id: RequestId,
        *,
        timeout_s: float,
        headers: Sequence[tuple[str, str]] = (),
        method: str = "POST",
    ) -> _Opening:
        """One request, up to the headers of its answer, within ``timeout_s``; an async context
        manager that gives the ``Leg``.

        Raises:
            WorkerUnreachable: no connection, or it broke before the headers.
            WorkerTimeout: the deadline passed.
            WorkerFailed: what came is not HTTP.
            ValueError: a header with CR, LF or NUL, or one that is set here.
        """
        return _Opening(self, worker, path, body, request_id, timeout_s, headers, method)

    async def ask(
        self,
        worker: WorkerRecord,
        path: str,
        body: bytes,
        request_id: RequestId,
        *,
        timeout_s: float,
        headers: Sequence[tuple[str, str]] = (),
        method: str = "POST",
    ) -> Answer:
        """One request and its whole answer, within ``timeout_s``; raises like ``open``.

        Raises:
            WorkerFailed: the answer is larger than 64 MiB.
        """
        opening = _Opening(self, worker, path, body, request_id, timeout_s, headers, method)
        async with opening as leg:
            return await leg.whole_by(opening.at_s, timeout_s)

    # Connections.

    def origin(self, url: str) -> _Origin:
        """Where a worker's connections are kept.

        Raises:
            WorkerUnreachable: what it registered is no address.
        """
        origin = self._origins.get(url)
        if origin is None:
            try:
                origin = _Origin(url, self._token)
            except ValueError as error:
                raise WorkerUnreachable("a worker registered what is no address") from error
            self._origins[url] = origin
            self._arm()
        return origin

    def take(self, origin: _Origin, now_s: float) -> Link | None:
        """An unused connection that is still good, the one last used first."""
        while origin.idle:
            link = origin.idle.pop()
            if link.usable and now_s - link.idle_since_s < self._idle_s:
                return link
            link.abort()
        return None

    def give_back(self, origin: _Origin, link: Link, now_s: float) -> None:
        """A leg is over: its connection is kept or closed."""
        if not link.finish():
            return
        if self._closed or len(origin.idle) >= self._most_idle:
            link.abort()
            return
        link.idle_since_s = now_s
        origin.idle.append(link)

    async def connect(
        self, origin: _Origin, worker: WorkerRecord, at_s: float, timeout_s: float
    ) -> Link:
        """A new connection, by ``at_s`` on the loop's clock and within ``connect_s``."""
        if self._closed:
            raise WorkerUnreachable(f"worker {worker.id} cannot be reached: the router stops")
        loop = asyncio.get_running_loop()
        most_s = loop.time() + self.connect_s
        try:
            async with asyncio.timeout_at(min(at_s, most_s)) as patience:
                _, link = await loop.create_connection(
                    lambda: Link(origin.lost),
                    origin.host,
                    origin.port,
                    ssl=self._secure() if origin.secure else None,
                )
        except TimeoutError as error:
            if patience.expired() and at_s < most_s:
                raise late(worker, timeout_s) from error
            raise WorkerUnreachable(f"worker {worker.id} took no connection in time") from error
        except (OSError, UnicodeError) as error:
            raise WorkerUnreachable(
                f"worker {worker.id} cannot be reached: {type(error).__name__}"
            ) from error
        if link.usable:
            origin.links.add(link)
        if not link.usable or self._closed:
            link.abort()
            raise WorkerUnreachable(f"worker {worker.id} cannot be reached: ConnectionClosed")
        return link

    def _secure(self) -> tls.SSLContext:
        if self._tls is None:
            self._tls = tls.create_default_context()
        return self._tls

    def _look(self) -> None:
        """Closes connections that were unused for too long, and forgets workers without any."""
        self._timer = None
        oldest_s = asyncio.get_running_loop().time() - self._idle_s
        for url, origin in list(self._origins.items()):
            while origin.idle and origin.idle[0].idle_since_s <= oldest_s:
                origin.idle.popleft().abort()
            if not origin.links and not origin.users:
                del self._origins[url]
        if self._origins:
            self._arm()

    def _arm(self) -> None:
        if self._timer is None and not self._closed:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(next_beat(loop.time(), _LOOK_S), self._look)


class _Origin:
    """One worker's address: its connections, and the heads of requests to it."""

    def __init__(self, url: str, token: str) -> None:
        parts = urlsplit(url)
        self.secure = parts.scheme == "https"
        self.host = parts.hostname or ""
        self.port = parts.port or (443 if self.secure else 80)
        self.idle: collections.deque[Link] = collections.deque()
        self.links: set[Link] = set()
        self.users = 0
        self._prefix = parts.path.rstrip("/")
        self._heads: dict[tuple[str, str], bytes] = {}
        host = f"[{self.host}]" if ":" in self.host else self.host
        self._common = [("Host", f"{host}:{self.port}"), ("Authorization", f"Bearer {token}")]
        # Now, and not in the middle of a request, if it makes no heads.
        self.head("GET", "/health")

    def lost(self, link: Link) -> None:
        """A connection is closed."""
        self.links.discard(link)
        # Most are not idle when they end; those that are, are few to search.
        if link in self.idle:
            self.idle.remove(link)

    def head(self, method: str, path: str) -> bytes:
        """What all requests of this kind begin with."""
        head = self._heads.get((method, path))
        if head is None:
            head = self._render(method, path)
            if len(self._heads) >= _MOST_HEADS:
                self._heads.clear()
            self._heads[method, path] = head
        return head

    def _render(self, method: str, path: str) -> bytes:
        target = f"{self._prefix}{path}"
        if method == "HEAD" or not method.isalpha() or not target.startswith("/"):
            raise ValueError(f"not a request: {method} {target}")
        if not target.isprintable() or " " in target:
            raise ValueError("a path with blanks or control characters")
        common = [*self._common, ("Content-Type", "application/json")]
        line = f"{method} {target} HTTP/1.1\r\n".encode("latin-1")
        return line + header_lines(common, frozenset())


class _Opening:
    """One request up to the headers of its answer, and its end."""

    __slots__ = (
        "_body", "_headers", "_link", "_method", "_origin", "_path", "_request_id", "_timeout_s",
        "_up", "_worker", "at_s",
    )  # fmt: skip

    def __init__(
        self,
        up: Upstream,
        worker: WorkerRecord,
        path: str,
        body: bytes,
        request_id: RequestId,
        timeout_s: float,
        headers: Sequence[tuple[str, str]],
        method: str,
    ) -> None:
        self._up = up
        self._worker = worker
        self._path = path
        self._body = body
        self._request_id = request_id
        self._timeout_s = timeout_s
        self._headers = headers
        self._method = method
        self._origin: _Origin | None = None
        self._link: Link | None = None
        self.at_s = 0.0

    async def __aenter__(self) -> Leg:
        loop = asyncio.get_running_loop()
        up, worker = self._up, self._worker
        now_s = loop.time()
        at_s = self.at_s = now_s + self._timeout_s
        origin = self._origin = up.origin(worker.url)
        head = b"%bX-Request-Id: %b\r\nContent-Length: %d\r\n%b\r\n" % (
            origin.head(self._method, self._path),
            self._request_id.encode("latin-1"),
            len(self._body),
            header_lines(self._headers, _RESERVED),
        )
        origin.users += 1
        try:
            link = up.take(origin, now_s)
            if link is None:
                link = await up.connect(origin, worker, at_s, self._timeout_s)
            self._link = link
            leg = link.ask(worker, loop)
            link.send(head, self._body)
            while not leg.status:
                if leg.error is not None:
                    raise leg.error
                if not await leg.wait(at_s):
                    raise late(worker, self._timeout_s)
        except BaseException:
            self._end()
            raise
        return leg

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        origin, link = self._origin, self._link
        assert origin is not None
        origin.users -= 1
        if link is not None:
            self._up.give_back(origin, link, asyncio.get_running_loop().time())


def late(worker: WorkerRecord, timeout_s: float) -> PeerFault:
    """No answer in time."""
    return WorkerTimeout(f"worker {worker.id} did not answer within {timeout_s:g} s")

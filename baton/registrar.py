"""How a worker makes itself known, and keeps itself known.

A worker tells a router over HTTP (the embedded registry), or writes to the shared store itself
(several routers). The heartbeat loop is the same for both. It refuses to die of a registry that is
away: a worker that serves well must not stop because a router restarts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Literal, Protocol
from urllib.parse import quote, urlsplit

import aiohttp
import msgspec
from yarl import URL

from baton.clock import SystemClock
from baton.errors import (
    BatonError,
    NotAuthorized,
    SettingsError,
    StoreUnavailable,
    TooManyRequests,
)
from baton.store import Store, is_redis_url, open_store
from baton.types import WorkerId, WorkerRecord

__all__ = [
    "HEARTBEAT_S",
    "TTL_S",
    "WORKERS_PATH",
    "HttpRegistrar",
    "Registrar",
    "StoreRegistrar",
    "heartbeat_loop",
    "open_registrar",
]

log = logging.getLogger(__name__)

HEARTBEAT_S = 1.0
"""Seconds between heartbeats. Routers score workers by the load in the record, so it must be
fresh; at one a second a pool of a thousand costs a thousand small writes a second."""

TTL_S = 5.0
"""Seconds a record lives. A heartbeat may hang to its timeout of 2 s, or three in a row be lost at
once, without the worker being forgotten; a dead one is out of the pool soon enough that few
requests are planned onto it."""

HTTP_TIMEOUT_S = 2.0
"""Seconds for one call to a router, connecting included."""

WITHDRAW_S = 2.0
"""Seconds that leaving may take; the TTL does the rest."""

WORKERS_PATH = "/internal/workers"
"""The router's registry endpoint; ``PUT`` and ``DELETE`` on ``/internal/workers/{id}``."""

_EXCERPT_BYTES = 300


class Registrar(Protocol):
    """Where a worker registers."""

    async def heartbeat(self, record: WorkerRecord) -> None:
        """Makes the worker known, or known again.

        Raises:
            StoreUnavailable: the registry cannot be reached or used; later may do.
            TooManyRequests: the registry is full; later may do.
            NotAuthorized: the registry refuses our token.
        """
        ...

    async def withdraw(self, worker_id: WorkerId) -> None:
        """Makes the worker unknown at once; raises as :meth:`heartbeat` does."""
        ...

    async def close(self) -> None:
        """Lets go of connections. Never raises; may be called again."""
        ...


class HttpRegistrar:
    """Registers with a router.

    Sends ``PUT {url}/internal/workers/{id}?ttl_s=...`` with the record as JSON, and ``DELETE`` on
    the same path, both with ``Authorization: Bearer <token>``.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        ttl_s: float = TTL_S,
        timeout_s: float = HTTP_TIMEOUT_S,
    ) -> None:
        """Connects at the first call, not here.

        Raises:
            SettingsError: ``url`` is not ``http(s)://HOST[:PORT][/PATH]``.
        """
        self._base = _checked_base(url)
        self._token = token
        self._ttl_s = ttl_s
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    async def heartbeat(self, record: WorkerRecord) -> None:
        """See :meth:`Registrar.heartbeat`."""
        await self._send("PUT", record.id, f"?ttl_s={self._ttl_s!r}", msgspec.json.encode(record))

    async def withdraw(self, worker_id: WorkerId) -> None:
        """See :meth:`Registrar.withdraw`."""
        await self._send("DELETE", worker_id)

    async def close(self) -> None:
        """See :meth:`Registrar.close`."""
        self._closed = True
        if self._session is not None:
            await self._session.close()

    async def _send(
        self, method: str, worker_id: WorkerId, query: str = "", body: bytes | None = None
    ) -> None:
        target = f"{self._base}{WORKERS_PATH}/{quote(worker_id, safe='')}{query}"
        headers = {"Authorization": f"Bearer {self._token}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            async with self._opened().request(
                method,
                URL(target, encoded=True),
                data=body,
                headers=headers,
                # A redirect would carry the token to wherever it points.
                allow_redirects=False,
            ) as response:
                if response.status // 100 == 2:
                    return
                excerpt = await response.content.read(_EXCERPT_BYTES)
        except TimeoutError as error:
            raise StoreUnavailable(
                f"no answer from the router at {self._base} within {self._timeout_s:g} s"
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise StoreUnavailable(
                f"the router at {self._base} cannot be reached: {error}"
            ) from error
        raise self._refusal(method, response.status, excerpt)

    def _opened(self) -> aiohttp.ClientSession:
        # Late, because a session belongs to the event loop that it is made in.
        if self._closed:
            raise StoreUnavailable(f"the registrar for {self._base} is closed")
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=self._timeout_s),
                connector=aiohttp.TCPConnector(limit=4),
                # A router sets no cookies, so whatever comes is somebody else's.
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    def _refusal(self, method: str, status: int, excerpt: bytes) -> BatonError:
        said = excerpt.decode("utf-8", "replace").strip()
        if status in (401, 403):
            return NotAuthorized(
                f"the router at {self._base} refuses our cluster token; give workers and routers "
                "the same BATON_CLUSTER_TOKEN, or the same file by BATON_CLUSTER_TOKEN_FILE"
            )
        if status == 429:
            return TooManyRequests(f"the router at {self._base} takes no more workers: {said!r}")
        hint = "; is it a Baton router?" if status in (404, 405) or status // 100 == 3 else ""
        return StoreUnavailable(
            f"the router at {self._base} answered {status} to {method}: {said!r}{hint}"
        )


class StoreRegistrar:
    """Registers in the shared store, past the routers. Owns the store: closes it too."""

    def __init__(self, store: Store, ttl_s: float = TTL_S) -> None:
        self._store = store
        self._ttl_s = ttl_s

    async def heartbeat(self, record: WorkerRecord) -> None:
        """See :meth:`Registrar.heartbeat`."""
        await self._store.put_worker(record, ttl_s=self._ttl_s)

    async def withdraw(self, worker_id: WorkerId) -> None:
        """See :meth:`Registrar.withdraw`."""
        await self._store.remove_worker(worker_id)

    async def close(self) -> None:
        """See :meth:`Registrar.close`."""
        await self._store.close()


def open_registrar(url: str, token: str, ttl_s: float = TTL_S) -> Registrar:
    """The registrar that ``url`` names.

    Args:
        url: ``http(s)://HOST:PORT`` of a router, or of the Redis that the routers share, in one of
            the forms of docs/redis.md.
        token: the cluster token; Redis has credentials of its own, in its URL.
        ttl_s: seconds that the registry remembers a heartbeat.

    Raises:
        SettingsError: the scheme is unknown, or the rest of the URL cannot be used.
    """
    # The URL may hold a password: no message repeats more of it than its scheme.
    try:
        scheme = urlsplit(url).scheme
    except ValueError:
        scheme = ""
    if scheme in ("http", "https"):
        return HttpRegistrar(url, token, ttl_s=ttl_s)
    if is_redis_url(url):
        return StoreRegistrar(open_store(url, SystemClock()), ttl_s)
    raise SettingsError(
        f"no way to register over the scheme {scheme!r}; supported are http:// and https:// "
        "(a router), redis:// and its kin (the store that the routers share)"
    )


async def heartbeat_loop(
    registrar: Registrar,
    make_record: Callable[[], Awaitable[WorkerRecord]],
    *,
    interval_s: float,
    stop: asyncio.Event,
    wake: asyncio.Event,
) -> None:
    """Sends heartbeats until ``stop``, then withdraws, within ``WITHDRAW_S``.

    The first one goes out at once, the next ``interval_s`` after the end of the one before. A
    registry that is away or full is logged once when it is lost and once when it is back.

    Args:
        make_record: the worker as it is now; has its own deadline.
        wake: set by the caller to have a change of state known at once; cleared here before the
            record is made, so a change during a heartbeat is followed by another.

    Raises:
        NotAuthorized: the registry refuses the token, or whatever else trying again cannot mend.
        Exception: what ``make_record`` raises. The worker withdraws in each case, and when the
            task is cancelled.
    """
    heart = _Heart(registrar, make_record)
    stopping = asyncio.create_task(stop.wait())
    try:
        while not stop.is_set():
            wake.clear()
            beat = heart.start()
            await asyncio.wait({beat, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not beat.done():
                break
            beat.result()
            await _first_of(stopping, wake, timeout_s=interval_s)
    finally:
        stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)
        await heart.leave()


class _Heart:
    """The heartbeat in flight, and what is known from earlier ones."""

    def __init__(
        self, registrar: Registrar, make_record: Callable[[], Awaitable[WorkerRecord]]
    ) -> None:
        self._registrar = registrar
        self._make_record = make_record
        self._worker_id: WorkerId | None = None
        self._lost = False
        self._beat: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Task[None]:
        self._beat = asyncio.create_task(self._once())
        return self._beat

    async def _once(self) -> None:
        record = await self._make_record()
        self._worker_id = record.id
        try:
            await self._registrar.heartbeat(record)
        except BatonError as error:
            if not error.retry_can_help:
                raise
            if not self._lost:
                log.warning("the registry is lost, heartbeats go on: %s", error.message)
            self._lost = True
        else:
            if self._lost:
                log.info("the registry is back")
            self._lost = False

    async def leave(self) -> None:
        """Ends the heartbeat in flight, then withdraws; never raises, but when cancelled."""
        try:
            async with asyncio.timeout(WITHDRAW_S):
                await self._end_beat()
                if self._worker_id is not None:
                    await self._registrar.withdraw(self._worker_id)
        except (TimeoutError, BatonError) as error:
            why = error.message if isinstance(error, BatonError) else "no answer in time"
            log.warning("could not withdraw, the registry forgets us by itself: %s", why)
        finally:
            if self._beat is not None:
                self._beat.cancel()

    async def _end_beat(self) -> None:
        if self._beat is None:
            return
        # One cut off half-way may still arrive, after our withdrawal: so it gets a moment.
        await asyncio.wait({self._beat}, timeout=WITHDRAW_S / 4)
        self._beat.cancel()
        await asyncio.gather(self._beat, return_exceptions=True)


async def _first_of(
    stopping: asyncio.Task[Literal[True]], wake: asyncio.Event, *, timeout_s: float
) -> None:
    waking = asyncio.create_task(wake.wait())
    try:
        await asyncio.wait(
            {stopping, waking}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
        )
    finally:
        waking.cancel()
        await asyncio.gather(waking, return_exceptions=True)


def _checked_base(url: str) -> str:
    problem = False
    try:
        parts = urlsplit(url)
        problem = (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or parts.port == 0
            or "@" in parts.netloc
            or bool(parts.query or parts.fragment)
        )
    except ValueError:
        problem = True
    if problem:
        raise SettingsError(
            "a router's URL is http://HOST[:PORT] or https://HOST[:PORT], with no user, query or #"
        )
    return url.rstrip("/")

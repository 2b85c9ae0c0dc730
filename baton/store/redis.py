"""The store for several routers: Redis 5 or newer, alone, behind Sentinels, or a Cluster.

What is kept there, and how, stands in ``redis_scripts``: whatever checks before it changes is one
Lua script, and time is Redis's own, so that the clocks of workers and routers do not matter. A wall
clock that jumps ahead drops workers until their next heartbeat; one that jumps back keeps dead
workers for as long as it jumped.

It refuses to wait: every operation has one deadline over connecting, retries and all. It refuses
to show credentials: the URL is taken apart once and never repeated in a message.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import math
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from redis.exceptions import NoScriptError, ResponseError

from baton.clock import Clock, SystemClock
from baton.errors import StoreUnavailable, TooManyRequests
from baton.store import redis_scripts
from baton.store.base import (
    MAX_ROUTERS,
    MAX_WORKERS,
    STATE,
    Document,
    Look,
    checked_ttl_s,
    checked_value,
    registry_full,
    routers_full,
)
from baton.store.redis_client import (
    CLIENT_ERRORS,
    drop_connections,
    heed_cancellation,
    open_client,
    refuses_us,
)
from baton.store.redis_picture import Picture, Records, as_document, sort
from baton.store.redis_url import RedisAddress, parse_redis_url
from baton.types import Role, RouterId, RouterRecord, WorkerId, WorkerRecord

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 2.0
"""Seconds to open a connection; also how long a caller waits for a free one."""

OP_TIMEOUT_S = 2.0
"""Seconds for one answer: scripts take milliseconds, and a worker's TTL is 5 s."""

MAX_CONNECTIONS = 16
"""Connections per store; further callers wait their turn. Scripts run one at a time anyway."""

WHOLE_S = 30.0
"""Seconds between looks that read everything."""

WARN_EVERY_S = 60.0
"""Seconds between warnings about unreadable records: routers list several times a second."""


class RedisStore:
    """A :class:`baton.store.Store` in Redis; any number of them may share the same keys."""

    def __init__(
        self,
        address: RedisAddress,
        *,
        clock: Clock,
        max_workers: int = MAX_WORKERS,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        op_timeout_s: float = OP_TIMEOUT_S,
    ) -> None:
        self._clock = clock
        self._max_workers = max_workers
        self._where = address.describe()
        self._deadline_s = connect_timeout_s + op_timeout_s
        self._client: Any = open_client(
            address,
            connect_timeout_s=connect_timeout_s,
            op_timeout_s=op_timeout_s,
            max_connections=MAX_CONNECTIONS,
        )
        self._digests: dict[str, str] = {}
        self._name, self._writes = secrets.token_hex(8), itertools.count()
        self._skipped: list[str] = []
        self._listed = Records(WorkerRecord, self._skipped)
        self._picture = Picture(self._skipped)
        self._looking = asyncio.Lock()
        self._warn_after_s = -math.inf
        self._closed = False
        self._whole_s = -math.inf

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        clock: Clock | None = None,
        max_workers: int = MAX_WORKERS,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        op_timeout_s: float = OP_TIMEOUT_S,
    ) -> RedisStore:
        """A store at a URL as :func:`baton.store.redis_url.parse_redis_url` takes it.

        Connects at the first operation, not here.

        Args:
            clock: paces warnings only; expiry runs on Redis's clock.
            max_workers: bound on the registry, checked by whoever adds a worker.
            connect_timeout_s: for one connection; with ``op_timeout_s`` the bound on any operation.
            op_timeout_s: for one answer.

        Raises:
            SettingsError: the URL cannot be used; the message says why without repeating it.
        """
        return cls(
            parse_redis_url(url),
            clock=clock or SystemClock(),
            max_workers=max_workers,
            connect_timeout_s=connect_timeout_s,
            op_timeout_s=op_timeout_s,
        )

    async def put_worker(self, record: WorkerRecord, *, ttl_s: float) -> None:
        """See :meth:`baton.store.Store.put_worker`."""
        if not await self._put(redis_scripts.PUT_WORKER, record, ttl_s, self._max_workers):
            raise TooManyRequests(registry_full(self._max_workers))

    async def remove_worker(self, worker_id: WorkerId) -> None:
        """See :meth:`baton.store.Store.remove_worker`."""
        await self._run(redis_scripts.REMOVE_WORKER, worker_id, self._stamp())

    async def workers(self) -> tuple[WorkerRecord, ...]:
        """See :meth:`baton.store.Store.workers`."""
        records = sort(self._listed.read(await self._run(redis_scripts.LIST)))
        self._warn()
        return records

    async def cordon(self, worker_id: WorkerId) -> None:
        """See :meth:`baton.store.Store.cordon`."""
        stamp = self._stamp()
        if not await self._run(redis_scripts.CORDON, worker_id, self._max_workers, stamp):
            raise TooManyRequests(registry_full(self._max_workers))

    async def uncordon(self, worker_id: WorkerId) -> None:
        """See :meth:`baton.store.Store.uncordon`."""
        await self._run(redis_scripts.UNCORDON, worker_id, self._stamp())

    async def cordoned(self) -> frozenset[WorkerId]:
        """See :meth:`baton.store.Store.cordoned`."""
        found: Sequence[bytes] = await self._run(redis_scripts.CORDONED)
        return frozenset(WorkerId(name.decode("utf-8", "replace")) for name in found)

    async def assign(self, worker_id: WorkerId, role: Role | None) -> None:
        """See :meth:`baton.store.Store.assign`."""
        told = "" if role is None else role.value
        stamp = self._stamp()
        if not await self._run(redis_scripts.ASSIGN, worker_id, told, self._max_workers, stamp):
            raise TooManyRequests(registry_full(self._max_workers))

    async def put_router(self, record: RouterRecord, *, ttl_s: float) -> None:
        """See :meth:`baton.store.Store.put_router`."""
        if not await self._put(redis_scripts.PUT_ROUTER, record, ttl_s, MAX_ROUTERS):
            raise TooManyRequests(routers_full())

    async def remove_router(self, router_id: RouterId) -> None:
        """See :meth:`baton.store.Store.remove_router`."""
        await self._run(redis_scripts.REMOVE_ROUTER, router_id)

    async def document(self, name: str) -> Document:
        """See :meth:`baton.store.Store.document`."""
        return as_document(await self._run(redis_scripts.DOCUMENT, name))

    async def swap(self, name: str, expected: int, value: bytes) -> int | None:
        """See :meth:`baton.store.Store.swap`.

        After ``StoreUnavailable`` it may have been done or not: whoever needs to know looks.
        """
        value = checked_value(value)
        revision = await self._run(redis_scripts.SWAP, name, expected, value, self._stamp())
        return int(revision) or None

    async def look(self) -> Look:
        """See :meth:`baton.store.Store.look`. The very same ``Look`` if nothing has changed."""
        async with self._bounded():
            # One at a time: each is told what has changed since the one before.
            async with self._looking:
                now_s = self._clock.monotonic_s()
                if now_s - self._whole_s >= WHOLE_S:
                    # A failover may have lost changes, and counted others under their numbers.
                    self._whole_s = now_s
                    self._picture.forget()
                if not await self._see():
                    self._picture.forget()
                    await self._see()
        self._warn()
        return self._picture.look

    async def _see(self) -> bool:
        known = self._picture.known()
        answer = await self._call(redis_scripts.LOOK, self._stamp(), *known, STATE)
        return self._picture.update(answer)

    async def close(self) -> None:
        """See :meth:`baton.store.Store.close`."""
        self._closed = True
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._client.aclose()
        except CLIENT_ERRORS as error:
            log.debug("closing the connections to %s: %s", self._where, error)

    def describe(self) -> str:
        """See :meth:`baton.store.Store.describe`."""
        return self._where

    async def _put(
        self, script: str, record: WorkerRecord | RouterRecord, ttl_s: float, bound: int
    ) -> bool:
        ttl_ms = math.ceil(checked_ttl_s(ttl_s) * 1000)
        return bool(await self._run(script, record.id, msgspec.json.encode(record), ttl_ms, bound))

    def _stamp(self) -> str:
        """Marks one write, apart from all others of anybody."""
        return f"{self._name}.{next(self._writes)}"

    async def _run(self, script: str, *args: str | bytes | int) -> Any:
        """Runs one script within the deadline and translates what Redis may raise."""
        async with self._bounded():
            return await self._call(script, *args)

    async def _call(self, script: str, *args: str | bytes | int) -> Any:
        digest = self._digests.get(script)
        if digest is None:
            # SHA-1 is Redis's name for a script, and protects nothing.
            digest = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
            self._digests[script] = digest
        keys = redis_scripts.KEYS
        try:
            return await self._client.evalsha(digest, len(keys), *keys, *args)
        except NoScriptError:
            # A new Redis, or a new master: it remembers the script from here on.
            return await self._client.eval(script, len(keys), *keys, *args)

    @asynccontextmanager
    async def _bounded(self) -> AsyncIterator[None]:
        """A deadline, and our errors instead of the client's."""
        if self._closed:
            raise StoreUnavailable(f"the store at {self._where} is closed")
        try:
            with heed_cancellation():
                async with asyncio.timeout(self._deadline_s):
                    try:
                        yield
                    except ResponseError as error:
                        # From a script it comes as an error of the script: this was a master once.
                        # New connections find the new one.
                        if "READONLY" in str(error):
                            await drop_connections(self._client)
                        raise
        except TimeoutError as error:
            raise StoreUnavailable(
                f"no answer from {self._where} within {self._deadline_s:g} s"
            ) from error
        except CLIENT_ERRORS as error:
            if refuses_us(error):
                raise StoreUnavailable(
                    f"{self._where} refuses our credentials; "
                    "check user and password in the store's URL"
                ) from error
            raise StoreUnavailable(f"{self._where} cannot be used: {error}") from error

    def _warn(self) -> None:
        if not self._skipped:
            return
        skipped, first = len(self._skipped), self._skipped[0]
        self._skipped.clear()
        now_s = self._clock.monotonic_s()
        if now_s < self._warn_after_s:
            return
        self._warn_after_s = now_s + WARN_EVERY_S
        log.warning(
            "%d records in %s cannot be read and are left out (first: %s); "
            "a worker or router of another version, or a foreign writer",
            skipped,
            self._where,
            first,
        )

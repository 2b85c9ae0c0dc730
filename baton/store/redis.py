"""The store for several routers: Redis 5 or newer, alone or behind a failover address.

Workers sit in two keys: a sorted set of expiry times (milliseconds of Redis's own clock, so that
the clocks of workers and routers do not matter) and a hash of records as JSON. A third holds the
ids under a cordon. Whatever checks before it changes is one Lua script. A wall clock that jumps
ahead drops workers until their next heartbeat; one that jumps back keeps dead workers for as long
as it jumped.

It refuses to wait: every operation has one deadline over connecting, retries and all. It refuses
to show credentials: the URL is taken apart once and never repeated in a message.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from typing import Any

import msgspec
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import AuthenticationError, RedisError

from baton.clock import Clock, SystemClock
from baton.errors import StoreUnavailable, TooManyRequests
from baton.store.base import MAX_WORKERS, checked_ttl_s, registry_full
from baton.store.redis_url import RedisAddress, parse_redis_url
from baton.types import WorkerId, WorkerRecord

log = logging.getLogger(__name__)

PREFIX = "baton:"
"""Before every key, so that a Redis can be shared."""

CONNECT_TIMEOUT_S = 2.0
"""Seconds to open a connection; also how long a caller waits for a free one."""

OP_TIMEOUT_S = 2.0
"""Seconds for one answer: scripts take milliseconds, and a worker's TTL is 5 s."""

MAX_CONNECTIONS = 16
"""Connections per store; further callers wait their turn. Scripts run one at a time anyway."""

RETRIES = 2
"""Tries after the first: one for a connection that died while idle, one for a failover. Every
script may run twice without harm."""

WARN_EVERY_S = 60.0
"""Seconds between warnings about unreadable records: routers list several times a second."""

_PURGE = """
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now_ms)) do
  redis.call('HDEL', KEYS[2], id)
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now_ms)
"""

# ARGV: id, record, ttl in ms, bound. Answers 1, or 0 for a new worker at the bound.
_PUT = (
    _PURGE
    + """
if not redis.call('ZSCORE', KEYS[1], ARGV[1])
    and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[4]) then
  return 0
end
redis.call('ZADD', KEYS[1], now_ms + tonumber(ARGV[3]), ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
return 1
"""
)

# ARGV: id.
_REMOVE = """
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('SREM', KEYS[3], ARGV[1])
return redis.call('HDEL', KEYS[2], ARGV[1])
"""

# Answers id, record, id, record, ...
_LIST = (
    _PURGE
    + """
local found = {}
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local record = redis.call('HGET', KEYS[2], id)
  if record then
    found[#found + 1] = id
    found[#found + 1] = record
  end
end
return found
"""
)


# ARGV: id, bound. Answers 1, or 0 for a new one at the bound.
_CORDON = """
if redis.call('SISMEMBER', KEYS[3], ARGV[1]) == 0
    and redis.call('SCARD', KEYS[3]) >= tonumber(ARGV[2]) then
  return 0
end
redis.call('SADD', KEYS[3], ARGV[1])
return 1
"""

_UNCORDON = "return redis.call('SREM', KEYS[3], ARGV[1])"
_CORDONED = "return redis.call('SMEMBERS', KEYS[3])"


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
        pool = BlockingConnectionPool(
            connection_class=address.connection_class,
            max_connections=MAX_CONNECTIONS,
            timeout=connect_timeout_s,
            socket_connect_timeout=connect_timeout_s,
            socket_timeout=op_timeout_s,
            retry=Retry(ExponentialBackoff(cap=0.2, base=0.05), RETRIES),
            # RESP2: all that scripts need, and it spares the handshakes of RESP3's extras.
            protocol=2,
            **address.connection_options(),
        )
        self._client = Redis.from_pool(pool)
        self._put = self._client.register_script(_PUT)
        self._remove = self._client.register_script(_REMOVE)
        self._list = self._client.register_script(_LIST)
        self._cordon = self._client.register_script(_CORDON)
        self._uncordon = self._client.register_script(_UNCORDON)
        self._cordoned = self._client.register_script(_CORDONED)
        # The braces keep all keys in one slot of a Redis Cluster, where a script needs them.
        self._keys = tuple(
            f"{PREFIX}{{workers}}:{name}" for name in ("expiry", "records", "cordoned")
        )
        self._decoder = msgspec.json.Decoder(WorkerRecord)
        self._warn_after_s = -math.inf
        self._closed = False

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
        """A store at ``redis://[[USER]:PASSWORD@]HOST[:PORT][/DB]``, or ``rediss://`` for TLS.

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
        ttl_ms = math.ceil(checked_ttl_s(ttl_s) * 1000)
        value = msgspec.json.encode(record)
        if not await self._run(self._put, record.id, value, ttl_ms, self._max_workers):
            raise TooManyRequests(registry_full(self._max_workers))

    async def remove_worker(self, worker_id: WorkerId) -> None:
        """See :meth:`baton.store.Store.remove_worker`."""
        await self._run(self._remove, worker_id)

    async def workers(self) -> tuple[WorkerRecord, ...]:
        """See :meth:`baton.store.Store.workers`."""
        found: Sequence[bytes] = await self._run(self._list)
        records: list[WorkerRecord] = []
        skipped: list[str] = []
        for worker_id, value in zip(found[::2], found[1::2], strict=True):
            try:
                records.append(self._decoder.decode(value))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                skipped.append(f"{worker_id[:80]!r}: {error}")
        if skipped:
            self._warn(skipped)
        return tuple(sorted(records, key=lambda record: record.id))

    async def cordon(self, worker_id: WorkerId) -> None:
        """See :meth:`baton.store.Store.cordon`."""
        if not await self._run(self._cordon, worker_id, self._max_workers):
            raise TooManyRequests(registry_full(self._max_workers))

    async def uncordon(self, worker_id: WorkerId) -> None:
        """See :meth:`baton.store.Store.uncordon`."""
        await self._run(self._uncordon, worker_id)

    async def cordoned(self) -> frozenset[WorkerId]:
        """See :meth:`baton.store.Store.cordoned`."""
        found: Sequence[bytes] = await self._run(self._cordoned)
        return frozenset(WorkerId(name.decode("utf-8", "replace")) for name in found)

    async def close(self) -> None:
        """See :meth:`baton.store.Store.close`."""
        self._closed = True
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._client.aclose()
        except (RedisError, OSError) as error:
            log.debug("closing the connections to %s: %s", self._where, error)

    def describe(self) -> str:
        """See :meth:`baton.store.Store.describe`."""
        return self._where

    async def _run(self, script: Any, *args: str | bytes | int) -> Any:
        """Runs one script within the deadline and translates what Redis may raise."""
        if self._closed:
            raise StoreUnavailable(f"the store at {self._where} is closed")
        try:
            async with asyncio.timeout(self._deadline_s):
                return await script(keys=self._keys, args=args)
        except TimeoutError as error:
            raise StoreUnavailable(
                f"no answer from {self._where} within {self._deadline_s:g} s"
            ) from error
        except AuthenticationError as error:
            raise StoreUnavailable(
                f"{self._where} refuses our credentials; check user and password in the store's URL"
            ) from error
        except (RedisError, OSError) as error:
            raise StoreUnavailable(f"{self._where} cannot be used: {error}") from error

    def _warn(self, skipped: Sequence[str]) -> None:
        now_s = self._clock.monotonic_s()
        if now_s < self._warn_after_s:
            return
        self._warn_after_s = now_s + WARN_EVERY_S
        log.warning(
            "%d worker records in %s cannot be read and are left out (first: %s); "
            "a worker of another version, or a foreign writer",
            len(skipped),
            self._where,
            skipped[0],
        )

"""Tenants in Redis, for several routers: one hash of JSON texts, and a number that counts changes.

Routers ask for the number each second and read the hash when it has moved, or twice a minute in any
case, for whoever writes the hash by other means. Every operation has a deadline.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from redis.exceptions import WatchError

from baton.clock import Clock
from baton.errors import SettingsError, StoreUnavailable
from baton.store.redis_client import CLIENT_ERRORS, heed_cancellation, open_client
from baton.store.redis_url import parse_redis_url
from router.tenants.sources import Tenants, checked
from router.tenants.spec import MAX_TENANTS, parse_tenant, plain

T = TypeVar("T")

HASH = "baton:tenants"
# Braces around the other key's name keep both in one slot of a Redis Cluster.
VERSION = "{baton:tenants}:version"

_OP_S = 2.0
_CONNECTIONS = 4
_REREAD_S = 30.0
_TRIES = 10


class RedisTenants:
    """Both a :class:`router.tenants.sources.TenantSource` and a ``TenantBook``.

    Args:
        url: as :func:`baton.store.redis_url.parse_redis_url` takes it; may hold a password, and is
            never repeated.
        clock: paces the reading of all entries.

    Raises:
        SettingsError: the URL cannot be used.
    """

    def __init__(self, url: str, clock: Clock) -> None:
        address = parse_redis_url(url)
        self._where = address.describe()
        self._clock = clock
        # Not typed: the client leaves open whether answers are text, which they are not.
        self._client: Any = open_client(
            address, connect_timeout_s=_OP_S, op_timeout_s=_OP_S, max_connections=_CONNECTIONS
        )
        self._version: bytes | None = None
        self._read_s: float | None = None
        self._good: Tenants = {}
        self._problems: tuple[str, ...] = ()

    def describe(self) -> str:
        """The address, without credentials."""
        return self._where

    def problems(self) -> tuple[str, ...]:
        """Entries that could not be read, one line each."""
        return self._problems

    async def close(self) -> None:
        """Closes the connections."""
        async with self._bounded():
            await self._client.aclose()

    async def read(self) -> Tenants | None:
        """See :meth:`router.tenants.sources.TenantSource.read`."""
        now_s = self._clock.monotonic_s()
        async with self._bounded():
            version = await self._client.get(VERSION)
            fresh = self._read_s is not None and now_s - self._read_s < _REREAD_S
            if fresh and version == self._version:
                return None
            entries = await self._client.hgetall(HASH)
        self._read_s, self._version = now_s, version
        self._good, self._problems = self._parsed(entries)
        return self._good

    def _parsed(self, entries: dict[bytes, bytes]) -> tuple[Tenants, tuple[str, ...]]:
        """The sound entries, and of the broken ones their last sound version."""
        if len(entries) > MAX_TENANTS:
            raise SettingsError(f"{self._where}: more than {MAX_TENANTS} tenants")
        found: Tenants = {}
        problems: list[str] = []
        owners: dict[str, str] = {}
        for raw_name, raw in sorted(entries.items()):
            name = raw_name.decode("utf-8", "replace")
            try:
                spec = parse_tenant(name, raw, source=self._where)
            except SettingsError as error:
                problems.append(error.message)
                if name not in self._good:
                    continue
                spec = self._good[name]
            mine = [key for key in spec.key_hashes if owners.setdefault(key, name) == name]
            if len(mine) < len(spec.key_hashes):
                problems.append(f"{self._where}: {name} has a key that is another tenant's already")
                spec = spec.model_copy(update={"key_hashes": mine})
            found[name] = spec
        return found, tuple(problems)

    async def tenants(self) -> Tenants:
        """See :meth:`router.tenants.sources.TenantBook.tenants`."""
        async with self._bounded():
            return self._strict(await self._client.hgetall(HASH))

    async def change(self, edit: Callable[[Tenants], T]) -> T:
        """See :meth:`router.tenants.sources.TenantBook.change`."""
        for _ in range(_TRIES):
            async with self._bounded():
                async with self._client.pipeline(transaction=True) as pipe:
                    await pipe.watch(HASH)
                    before = self._strict(await pipe.hgetall(HASH))
                    after = dict(before)
                    result = edit(after)
                    checked(after)
                    pipe.multi()
                    for name in before.keys() - after.keys():
                        pipe.hdel(HASH, name)
                    for name, spec in after.items():
                        if before.get(name) != spec:
                            pipe.hset(HASH, name, json.dumps(plain(spec)))
                    pipe.incr(VERSION)
                    try:
                        await pipe.execute()
                    except WatchError:
                        continue
                    return result
        raise StoreUnavailable(f"the tenants in {self._where} keep changing; try again")

    def _strict(self, entries: dict[bytes, bytes]) -> Tenants:
        """All entries, for somebody who is about to change them: a broken one is an error."""
        return {
            name.decode("utf-8", "replace"): parse_tenant(
                name.decode("utf-8", "replace"), raw, source=self._where
            )
            for name, raw in entries.items()
        }

    @asynccontextmanager
    async def _bounded(self) -> AsyncIterator[None]:
        """A deadline, and our errors instead of the client's."""
        try:
            with heed_cancellation():
                async with asyncio.timeout(3 * _OP_S):
                    yield
        except (*CLIENT_ERRORS, TimeoutError) as error:
            # The client's own text may hold an address, never a password.
            raise StoreUnavailable(f"the tenants in {self._where} cannot be reached") from error

"""Runs the store contract against memory and against a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from redis.asyncio import Redis

from baton.clock import VirtualClock
from baton.store import MAX_WORKERS, MemoryStore, RedisStore, Store
from tests.fakes.redis_server import RedisServer

# Before the import, so that a failing assertion of the contract shows its values.
pytest.register_assert_rewrite("tests.integration.store_contract")
from tests.integration.store_contract import StoreContract, Subject  # noqa: E402


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """One for all tests here; each starts with it empty."""
    with RedisServer() as server:
        yield server


class TestMemoryStore(StoreContract):
    """The embedded store, under virtual time."""

    @pytest.fixture
    def subject(self) -> Subject:
        clock = VirtualClock()

        def open_one(*, max_workers: int = MAX_WORKERS) -> Store:
            return MemoryStore(clock, max_workers=max_workers)

        async def pass_time(seconds: float) -> None:
            clock.advance(seconds)

        return Subject(open=open_one, ttl_s=5.0, pass_time=pass_time, shared=False)


class TestRedisStore(StoreContract):
    """The shared store; its clock is Redis's, so time passes for real here."""

    @pytest.fixture
    async def subject(self, server: RedisServer) -> AsyncIterator[Subject]:
        async with Redis.from_url(server.url) as client:
            await client.flushall()
        opened: list[RedisStore] = []

        def open_one(*, max_workers: int = MAX_WORKERS) -> Store:
            opened.append(RedisStore.from_url(server.url, max_workers=max_workers))
            return opened[-1]

        async def pass_time(seconds: float) -> None:
            # A little more: Redis counts whole milliseconds.
            await asyncio.sleep(seconds + 0.01)

        yield Subject(open=open_one, ttl_s=0.6, pass_time=pass_time, shared=True)
        for store in opened:
            await store.close()

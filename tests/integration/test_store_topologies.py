"""Redis behind a Sentinel, which loses its master, and a Redis Cluster; both are real."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import pytest
from redis.asyncio import Redis

from baton.clock import SystemClock, VirtualClock
from baton.errors import StoreUnavailable
from baton.registrar import StoreRegistrar, open_registrar
from baton.store import STATE, Document, RedisStore, Store, open_store
from baton.types import RouterId, RouterRecord, WorkerId
from router.tenants import RedisTenants, TenantSpec
from tests.fakes.redis_server import RedisClusterServers, WatchedRedis
from tests.fakes.worker_records import worker_record

T = TypeVar("T")

LONG_S = 60.0
FAILOVER_S = 15.0


@pytest.fixture(name="cluster", scope="module")
def _cluster() -> Iterator[RedisClusterServers]:
    with RedisClusterServers(password="s3cret") as cluster:
        yield cluster


async def until_it_serves(call: Callable[[], Awaitable[T]]) -> T:
    """What a caller does who comes again every moment."""
    deadline_s = time.monotonic() + FAILOVER_S
    while time.monotonic() < deadline_s:
        try:
            return await call()
        except StoreUnavailable as error:
            said = str(error)
        assert "s3cret" not in said
        await asyncio.sleep(0.1)
    raise AssertionError(f"it does not serve within {FAILOVER_S:g} s: {said}")


async def test_a_master_that_dies() -> None:
    """The same stores go on with the new master, within the deadline of a later call: nothing is
    set up again, and what was replicated is there."""
    with WatchedRedis(password="s3cret") as redis:
        stores = [open_store(redis.url, SystemClock()) for _ in range(2)]
        tenants = RedisTenants(redis.url, VirtualClock())
        one, other = stores
        assert "s3cret" not in one.describe()
        await asyncio.gather(
            *(one.put_worker(worker_record(f"w-{n:02}"), ttl_s=LONG_S) for n in range(40))
        )
        await tenants.change(lambda found: found.update(acme=TenantSpec()))
        assert await one.swap(STATE, 0, b"text") == 1
        before = await other.look()
        assert len(before.workers) == 40
        async with Redis.from_url(redis.master.url) as client:
            # All that was written, with what is written while it is asked for.
            assert await client.wait(1, 5000) == 1
        redis.master.kill()
        after = await until_it_serves(other.look)
        assert after == before
        assert after.state is before.state
        assert await one.swap(STATE, 1, b"new") == 2
        await one.put_worker(worker_record("w-new"), ttl_s=LONG_S)
        after = await other.look()
        assert after.state == Document(2, b"new")
        assert after.workers == (*before.workers, worker_record("w-new"))
        assert set(await until_it_serves(tenants.tenants)) == {"acme"}
        for store in stores:
            await store.close()
        await tenants.close()


async def test_no_sentinel_is_an_error_in_time() -> None:
    """Nobody to ask, or nobody who knows the service: an error in time, without secrets."""

    async def ask(url: str) -> None:
        store = RedisStore.from_url(url, connect_timeout_s=0.5, op_timeout_s=0.5)
        started_s = time.monotonic()
        with pytest.raises(
            StoreUnavailable, match=r"redis\+sentinel://.* no Sentinel answers"
        ) as caught:
            await store.look()
        assert "s3cret" not in f"{caught.value} {caught.value.__cause__}"
        assert time.monotonic() - started_s < 1.2
        await store.close()

    with WatchedRedis() as redis:
        await ask(redis.url.replace("/baton/", "/other/"))
    # By now nobody listens at all.
    await ask(f"{redis.url}?sentinel_user=me&sentinel_password=s3cret")


async def test_a_cluster(cluster: RedisClusterServers) -> None:
    """All methods work, on whichever node the keys lie, many at a time, from several stores."""
    stores: list[Store] = [open_store(cluster.url, SystemClock()) for _ in range(2)]
    one, other = stores
    assert "s3cret" not in one.describe()
    await asyncio.gather(
        *(one.put_worker(worker_record(f"w-{n:02}"), ttl_s=LONG_S) for n in range(50)),
        *(other.look() for _ in range(10)),
    )
    await one.put_router(RouterRecord(RouterId("r-1")), ttl_s=LONG_S)
    await one.cordon(WorkerId("w-00"))
    await one.remove_worker(WorkerId("w-01"))
    results = await asyncio.gather(
        *(stores[n % 2].swap(STATE, 0, str(n).encode()) for n in range(20))
    )
    assert sorted(result or 0 for result in results) == [0] * 19 + [1]
    look = await other.look()
    assert len(look.workers) == 49
    assert look.cordoned == {"w-00"} == await one.cordoned()
    assert look.workers == await one.workers()
    assert [record.id for record in look.routers] == ["r-1"]
    assert look.state == await one.document(STATE)
    for store in stores:
        await store.close()


async def test_credentials_of_a_cluster(cluster: RedisClusterServers) -> None:
    """Wrong ones are told as such, and not shown."""
    store = RedisStore.from_url(cluster.url.replace("s3cret", "s3cret-not"))
    with pytest.raises(StoreUnavailable, match="check user and password") as caught:
        await store.look()
    assert "s3cret" not in f"{caught.value} {caught.value.__cause__}"
    await store.close()


async def test_a_worker_registers_in_a_cluster(cluster: RedisClusterServers) -> None:
    """The worker's own way to the store takes the same URL."""
    registrar = open_registrar(cluster.url, "token")
    assert isinstance(registrar, StoreRegistrar)
    await registrar.heartbeat(worker_record("mine"))
    await registrar.withdraw(WorkerId("mine"))
    await registrar.close()


async def test_tenants_in_a_cluster(cluster: RedisClusterServers) -> None:
    """Read and changed as anywhere else."""
    tenants = RedisTenants(cluster.url, VirtualClock())
    await tenants.change(lambda found: found.update(acme=TenantSpec(priority=2)))
    assert set(await tenants.read() or ()) == {"acme"}
    assert await tenants.read() is None
    await tenants.change(lambda found: found.pop("acme"))
    assert await tenants.tenants() == {}
    await tenants.close()


async def test_a_cluster_that_comes_back(cluster: RedisClusterServers) -> None:
    """With all nodes gone every call is an error in time; with them back the same store serves,
    and knows that they are empty."""
    store = RedisStore.from_url(cluster.url, connect_timeout_s=0.5, op_timeout_s=0.5)
    await store.put_worker(worker_record("a"), ttl_s=LONG_S)
    assert (await store.look()).workers
    for node in cluster.nodes:
        node.kill()
    for _ in range(2):
        started_s = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await store.look()
        assert time.monotonic() - started_s < 1.2
    for node in cluster.nodes:
        node.start()
    assert (await until_it_serves(store.look)).workers == ()
    await store.put_worker(worker_record("b"), ttl_s=LONG_S)
    assert [record.id for record in (await store.look()).workers] == ["b"]
    await store.close()

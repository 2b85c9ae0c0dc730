"""Tenants in a real Redis: read by routers, changed by ``baton key``, and a Redis that fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator

import pytest
from typer.testing import CliRunner

from baton.cli.app import app
from baton.clock import VirtualClock
from baton.errors import NotAuthorized, SettingsError, StoreUnavailable
from router.tenants import Directory, RedisTenants, TenantSpec, hash_key, new_key
from router.tenants.redis_source import HASH
from router.tenants.sources import Tenants
from tests.fakes.redis_server import RedisServer


@pytest.fixture(name="server")
def _server() -> Iterator[RedisServer]:
    with RedisServer(password="swordfish") as server:
        yield server


@pytest.fixture(name="clock")
def _clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture(name="redis")
async def _redis(server: RedisServer, clock: VirtualClock) -> AsyncIterator[RedisTenants]:
    redis = RedisTenants(server.url, clock)
    yield redis
    if server.running:
        await redis.close()


def put(name: str, spec: TenantSpec, tenants: Tenants) -> None:
    tenants[name] = spec


async def test_a_key_made_by_the_command(server: RedisServer, redis: RedisTenants) -> None:
    """Opens a router within one look at the Redis, and is refused after it was revoked."""

    def key(*arguments: str) -> str:
        arguments = ("key", *arguments, "--store", server.url)
        result = CliRunner().invoke(app, arguments, prog_name="baton")
        assert result.exit_code == 0, result.stderr
        assert "swordfish" not in result.output
        return str(result.stdout).strip()

    directory = Directory(redis, VirtualClock())
    await directory.start()
    with pytest.raises(NotAuthorized):
        directory.tenant(b"Bearer bt-x")
    # In a thread: the command runs an event loop of its own.
    made = await asyncio.to_thread(key, "create", "acme", "--priority", "2")
    await directory.refresh()
    assert directory.tenant(f"Bearer {made}".encode()).priority == 2
    assert "acme" in await asyncio.to_thread(key, "list")
    await asyncio.to_thread(key, "revoke", "acme")
    await directory.refresh()
    with pytest.raises(NotAuthorized):
        directory.tenant(f"Bearer {made}".encode())


async def test_only_changes_are_read(redis: RedisTenants, clock: VirtualClock) -> None:
    """A change that goes round the counter is seen within half a minute."""
    await redis.change(lambda tenants: put("a", TenantSpec(), tenants))
    assert set(await redis.read() or ()) == {"a"}
    assert await redis.read() is None
    await redis.change(lambda tenants: put("b", TenantSpec(), tenants))
    assert set(await redis.read() or ()) == {"a", "b"}
    await redis._client.hset(HASH, "c", "{}")
    assert await redis.read() is None
    clock.advance(31)
    assert set(await redis.read() or ()) == {"a", "b", "c"}
    await redis.change(lambda tenants: tenants.pop("a"))
    assert set(await redis.read() or ()) == {"b", "c"}


async def test_a_broken_entry_stands_for_itself(redis: RedisTenants, clock: VirtualClock) -> None:
    """It keeps its last sound version, the others change, and it is told."""
    key = hash_key(new_key())
    await redis.change(lambda tenants: put("a", TenantSpec(priority=1), tenants))
    await redis.change(lambda tenants: put("b", TenantSpec(key_hashes=[key]), tenants))
    await redis.read()
    await redis._client.hset(HASH, mapping={"a": "{", "b": "{}", "new": '{"x": 1}'})
    clock.advance(31)
    found = await redis.read()
    assert found is not None
    assert found["a"] == TenantSpec(priority=1)
    assert found["b"].key_hashes == []
    assert "new" not in found
    assert len(redis.problems()) == 2
    with pytest.raises(SettingsError):
        await redis.change(lambda tenants: tenants.clear())


async def test_a_key_of_two_tenants(redis: RedisTenants) -> None:
    """Stays the first one's; the command refuses to write such a thing."""
    spec = TenantSpec(key_hashes=[hash_key(new_key())])
    await redis.change(lambda tenants: put("a", spec, tenants))
    with pytest.raises(SettingsError, match="a's already"):
        await redis.change(lambda tenants: put("b", spec, tenants))
    await redis._client.hset(HASH, "b", json.dumps({"key_hashes": spec.key_hashes}))
    found = await redis.read()
    assert found is not None
    assert found["a"].key_hashes
    assert not found["b"].key_hashes
    assert len(redis.problems()) == 1


async def test_writers_at_the_same_time(server: RedisServer, redis: RedisTenants) -> None:
    """Neither undoes the other's change."""
    others = [RedisTenants(server.url, VirtualClock()) for _ in range(4)]
    await asyncio.gather(
        *(
            other.change(lambda tenants, n=number: put(f"t{n}", TenantSpec(), tenants))  # type: ignore[misc]
            for number, other in enumerate(others)
        )
    )
    assert set(await redis.tenants()) == {"t0", "t1", "t2", "t3"}
    for other in others:
        await other.close()


async def test_a_redis_that_goes_away(server: RedisServer, redis: RedisTenants) -> None:
    """Tenants stay in force; when it is back, they are what it says."""
    key = new_key()
    spec = TenantSpec(key_hashes=[hash_key(key)])
    await redis.change(lambda tenants: put("a", spec, tenants))
    directory = Directory(redis, VirtualClock())
    await directory.start()
    server.kill()
    with pytest.raises(StoreUnavailable) as caught:
        await redis.read()
    assert "swordfish" not in caught.value.message
    await directory.refresh()
    assert directory.tenant(f"Bearer {key}".encode()).name == "a"
    assert "cannot be reached" in directory.status().problem
    server.start()
    await directory.refresh()
    assert directory.status().problem == ""
    assert directory.status().tenants == 0

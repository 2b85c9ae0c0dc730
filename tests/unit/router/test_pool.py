"""The router's picture of the workers."""

from __future__ import annotations

import asyncio
import logging

import pytest

from baton.clock import VirtualClock
from baton.errors import StoreUnavailable
from baton.store.memory import MemoryStore
from baton.types import EngineId, Role, WorkerId, WorkerRecord, WorkerState
from router.metrics import RouterMetrics
from router.pool import WorkerPool
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


class Picture:
    """A pool over a store, with a clock."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.metrics = RouterMetrics()
        self.store = Store(self.clock)
        self.pool = WorkerPool(self.store, self.clock, self.metrics)

    async def put(self, record: WorkerRecord, ttl_s: float = 60.0) -> None:
        await self.store.put_worker(record, ttl_s=ttl_s)
        await self.pool.refresh()

    @property
    def ids(self) -> list[str]:
        return [view.record.id for view in self.pool.views()]

    @property
    def usable(self) -> list[str]:
        return [view.record.id for view in self.pool.views() if view.usable]


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
        assert [view.in_flight for view in picture.pool.views()] == [2]
    with pytest.raises(ValueError, match="x"), picture.pool.leg(D):
        raise ValueError("x")
    assert [view.in_flight for view in picture.pool.views()] == [0]


async def test_a_doubt_passes(picture: Picture) -> None:
    """A worker that failed is left alone for two seconds."""
    await picture.put(worker_record("d"))
    picture.pool.suspect(worker_record("d"))
    assert picture.usable == []
    assert picture.ids == ["d"]
    picture.clock.advance(1.9)
    await picture.pool.refresh()
    assert picture.usable == []
    picture.clock.advance(0.2)
    assert picture.usable == ["d"]


async def test_a_new_engine_is_believed(picture: Picture) -> None:
    """A doubt is about one run of an engine."""
    await picture.put(worker_record("d"))
    picture.pool.suspect(worker_record("d"))
    await picture.put(worker_record("d", engine_id=EngineId("next")))
    assert picture.usable == ["d"]


async def test_a_doubt_about_an_earlier_engine(picture: Picture) -> None:
    """A leg that fails late says nothing about the run after it."""
    await picture.put(worker_record("d", engine_id=EngineId("next")))
    picture.pool.suspect(worker_record("d"))
    assert picture.usable == ["d"]


async def test_a_doubt_ends_with_the_worker(picture: Picture) -> None:
    """Doubts about workers that left are not kept."""
    await picture.put(worker_record("d"))
    picture.pool.suspect(worker_record("d"))
    await picture.store.remove_worker(D)
    await picture.pool.refresh()
    await picture.put(worker_record("d"))
    assert picture.usable == ["d"]


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


async def test_metrics(picture: Picture) -> None:
    """Workers by role and state, those that left included in none."""
    await picture.put(worker_record("d"))
    await picture.put(worker_record("d2", state=WorkerState.WARMING))

    def gauge(state: str) -> float | None:
        return picture.metrics.registry.get_sample_value(
            "baton_workers", {"role": "decode", "state": state}
        )

    assert (gauge("ready"), gauge("warming")) == (1, 1)
    await picture.store.remove_worker(D)
    await picture.pool.refresh()
    assert (gauge("ready"), gauge("warming")) == (None, 1)


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

"""Waits that the registry says are in vain."""

from __future__ import annotations

import asyncio

import pytest

from baton.clock import VirtualClock
from baton.errors import WorkerTimeout, WorkerUnreachable
from baton.types import EngineId, Load, Role, WorkerId, WorkerRecord, WorkerState
from router.stall import Watches
from tests.fakes.worker_records import worker_record

SILENT_S = 5.0
PULLING_SILENT_S = 2.0
D = worker_record("d")
P = worker_record("p", role=Role.PREFILL)


class Registry:
    """Records as a test sets them, and the watches over them."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.records: dict[WorkerId, WorkerRecord] = {D.id: D, P.id: P}
        self.watches = Watches(
            self, self.clock, silent_s=SILENT_S, pulling_silent_s=PULLING_SILENT_S
        )

    def record(self, worker_id: WorkerId) -> WorkerRecord | None:
        return self.records.get(worker_id)

    def put(self, record: WorkerRecord) -> None:
        self.records[record.id] = record

    def after(self, seconds: float) -> None:
        """Time passes, and the registry is read."""
        self.clock.advance(seconds)
        self.watches.look()


@pytest.fixture
def registry() -> Registry:
    return Registry()


async def waiting(registry: Registry, prefill: WorkerRecord | None = None) -> asyncio.Task[None]:
    """A task that waits for the decode worker."""

    async def wait() -> None:
        with registry.watches.over(D, prefill):
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    return task


async def goes_on(task: asyncio.Task[None]) -> bool:
    await asyncio.sleep(0)
    return not task.done()


async def test_a_worker_that_stays_ready_is_waited_for(registry: Registry) -> None:
    """Ready or draining, for any time."""
    task = await waiting(registry)
    for state in (WorkerState.READY, WorkerState.DRAINING) * 10:
        registry.put(worker_record("d", state=state))
        registry.after(60)
    assert await goes_on(task)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_worker_that_is_silent_for_long_is_given_up(registry: Registry) -> None:
    """Not at once: it may be in a long step."""
    task = await waiting(registry)
    registry.put(worker_record("d", state=WorkerState.WARMING))
    registry.after(0)
    registry.after(SILENT_S - 0.1)
    assert await goes_on(task)
    registry.after(0.2)
    with pytest.raises(WorkerTimeout, match="d fell silent"):
        await task


async def test_a_worker_that_was_to_pull_is_given_up_sooner(registry: Registry) -> None:
    """It may hang with its leg unread, and must not answer when the blocks are no longer there."""
    task = await waiting(registry, prefill=P)
    registry.put(worker_record("d", state=WorkerState.WARMING))
    registry.after(0)
    registry.after(PULLING_SILENT_S - 0.1)
    assert await goes_on(task)
    registry.after(0.1)
    with pytest.raises(WorkerTimeout, match="fell silent"):
        await task


async def test_a_worker_that_comes_back_starts_anew(registry: Registry) -> None:
    """Two short silences are no long one."""
    task = await waiting(registry)
    for _ in range(3):
        registry.put(worker_record("d", state=WorkerState.WARMING))
        registry.after(0)
        registry.after(SILENT_S - 0.1)
        registry.put(D)
        registry.after(0.5)
    assert await goes_on(task)
    task.cancel()


async def test_a_worker_that_is_gone(registry: Registry) -> None:
    """Given up a moment later: a registry may have lost its memory until the next heartbeat."""
    task = await waiting(registry)
    del registry.records[D.id]
    registry.after(0)
    registry.after(1)
    assert await goes_on(task)
    registry.after(1.5)
    with pytest.raises(WorkerTimeout):
        await task


async def test_a_worker_with_another_engine(registry: Registry) -> None:
    """What was asked of the one before is lost."""
    task = await waiting(registry)
    registry.put(worker_record("d", engine_id=EngineId("next")))
    registry.after(0)
    with pytest.raises(WorkerUnreachable, match="another engine"):
        await task


def beat(registry: Registry, number: float, waiting_requests: int) -> None:
    registry.put(
        worker_record("d", heartbeat_s=1000.0 + number, load=Load(waiting=waiting_requests))
    )
    registry.after(1)


async def test_decode_that_pulls_from_a_silent_prefill(registry: Registry) -> None:
    """Given up when decode, by figures of after the silence, has requests that wait."""
    task = await waiting(registry, P)
    registry.put(worker_record("p", role=Role.PREFILL, state=WorkerState.WARMING))
    for number in range(2):
        beat(registry, number, 1)
        assert await goes_on(task)
    beat(registry, 2, 1)
    with pytest.raises(WorkerTimeout, match="before its blocks were pulled"):
        await task


async def test_decode_that_has_pulled_already(registry: Registry) -> None:
    """Nothing waits on decode: the answer is on its way, and is not thrown away."""
    task = await waiting(registry, P)
    del registry.records[P.id]
    for number in range(20):
        beat(registry, number, 0)
    assert await goes_on(task)
    task.cancel()


async def test_no_news_from_decode_is_no_judgement(registry: Registry) -> None:
    """The same heartbeat again says nothing new."""
    task = await waiting(registry, P)
    registry.put(worker_record("p", role=Role.PREFILL, state=WorkerState.WARMING))
    for _ in range(20):
        beat(registry, 7, 3)
    assert await goes_on(task)
    task.cancel()


async def test_a_wait_that_is_over_is_not_ended(registry: Registry) -> None:
    """After the first content the worker's state is another matter, within the block and after."""

    async def wait() -> str:
        with registry.watches.over(D) as watch:
            watch.over()
            await asyncio.sleep(0)
            return "done"

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    del registry.records[D.id]
    registry.after(0)
    registry.after(60)
    assert await task == "done"


async def test_a_client_that_leaves_at_the_same_moment_wins(registry: Registry) -> None:
    """A cancellation of somebody else's is not taken for a worker's fault."""
    task = await waiting(registry)
    registry.put(worker_record("d", engine_id=EngineId("next")))
    registry.after(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

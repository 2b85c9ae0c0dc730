"""A worker's life: registered while it serves, drained before it goes, under virtual time."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

import decode
import prefill
from baton.engine import Engine, EngineHealth
from baton.errors import NotAuthorized, StoreUnavailable
from baton.types import (
    EngineId,
    KvGeometry,
    Load,
    Role,
    WorkerId,
    WorkerRecord,
    WorkerState,
)
from baton.worker import WorkerOptions, WorkerPlan
from baton.worker.health import Problem
from baton.worker.worker import Worker
from tests.fakes.virtual_loop import run_virtual

OPTIONS = WorkerOptions(
    profile="test",
    model=None,
    served_name=None,
    host="127.0.0.1",
    port=8100,
    advertise_url="http://10.0.0.1:8100",
    side_channel_port=5600,
    registry="http://127.0.0.1:8000",
    token="cluster-token-0123456789",
    home=Path("/nowhere"),
    worker_id=WorkerId("w-1"),
    node="node-1",
    cpu_threads=1,
)
GEOMETRY = KvGeometry(
    layers=2, kv_heads=2, head_size=16, dtype="bfloat16", block_size=32, bytes_per_token=256
)
BUSY = Load(running=1)


def make_plan(drained: Callable[[Load], bool] = decode.drained) -> WorkerPlan:
    def make_spec(engine_id: EngineId, run_dir: Path) -> Any:
        raise AssertionError("no engine is started here")

    return WorkerPlan(
        role=Role.DECODE,
        make_spec=make_spec,
        model="tiny",
        model_folder=Path("/models/tiny"),
        model_digest="sha256:00",
        geometry=GEOMETRY,
        slots=16,
        accelerator="cpu",
        profile="test",
        profile_version="v1",
        drained=drained,
        drain_limit_s=20.0,
    )


class LoopClock:
    """The event loop's time, which is virtual here."""

    def monotonic_s(self) -> float:
        return asyncio.get_running_loop().time()

    def wall_s(self) -> float:
        return 1_000_000.0 + self.monotonic_s()


class FakeEngine:
    """A supervisor whose engine is ready at once; its load is read every second."""

    def __init__(self) -> None:
        self.health = EngineHealth(
            state=WorkerState.READY,
            engine_id=EngineId("run-1"),
            max_model_len=2048,
            kv_events_url="ipc:///run/w-1/kv-events",
            transport="tcp",
            version="0.32.0",
        )
        self.load = Load()
        self.fails: Exception | None = None
        self.stopped_s: float | None = None

    def set(self, **changes: Any) -> None:
        self.health = dataclasses.replace(self.health, **changes)

    async def run(self, stop: asyncio.Event) -> None:
        now_s = asyncio.get_running_loop().time
        while not stop.is_set():
            if self.fails is not None:
                raise self.fails
            self.set(load=self.load, load_read_s=now_s())
            try:
                await asyncio.wait_for(stop.wait(), 1.0)
            except TimeoutError:
                continue
        self.stopped_s = now_s()


class FakeRegistrar:
    """Keeps what it is told, with the time."""

    def __init__(self) -> None:
        self.beats: list[tuple[float, WorkerRecord]] = []
        self.withdrawing = asyncio.Event()
        self.withdraw_takes_s = 0.0
        self.withdrawn_s: float | None = None
        self.closed = False
        self.fails: Exception | None = None

    async def heartbeat(self, record: WorkerRecord) -> None:
        if self.fails is not None:
            raise self.fails
        self.beats.append((asyncio.get_running_loop().time(), record))

    async def withdraw(self, worker_id: WorkerId) -> None:
        assert worker_id == "w-1"
        self.withdrawing.set()
        await asyncio.sleep(self.withdraw_takes_s)
        self.withdrawn_s = asyncio.get_running_loop().time()

    async def close(self) -> None:
        self.closed = True

    @property
    def states(self) -> list[WorkerState]:
        """The states told, without repetitions."""
        told = [record.state for _, record in self.beats]
        return [s for i, s in enumerate(told) if i == 0 or told[i - 1] is not s]


class Life:
    """A worker that runs, and the two ways to stop it."""

    def __init__(
        self,
        plan: WorkerPlan,
        *,
        leave: asyncio.Event | None = None,
        may_start: asyncio.Event | None = None,
    ) -> None:
        self.engine = FakeEngine()
        self.registrar = FakeRegistrar()
        self.worker = Worker(
            OPTIONS,
            plan,
            self.registrar,
            clock=LoopClock(),
            engine=cast(Engine, self.engine),
            may_start=may_start,
        )
        self.drain, self.stop_now, self.leave = asyncio.Event(), asyncio.Event(), leave
        self.task = asyncio.create_task(self.worker.run(self.drain, self.stop_now, leave))

    async def ended(self) -> float:
        """Waits for the end; the time."""
        await self.task
        assert self.engine.stopped_s is not None
        assert self.registrar.withdrawn_s is not None
        assert self.registrar.closed
        return asyncio.get_running_loop().time()


def live(story: Callable[[Life], Any], plan: WorkerPlan | None = None) -> None:
    """Runs a story under virtual time."""

    async def main() -> None:
        life = Life(plan or make_plan())
        await story(life)

    run_virtual(main())


def test_the_record() -> None:
    """Everything that the registry is told."""

    async def story(life: Life) -> None:
        await asyncio.sleep(5)
        _, record = life.registrar.beats[-1]
        assert record == WorkerRecord(
            id=WorkerId("w-1"),
            role=Role.DECODE,
            url="http://10.0.0.1:8100",
            state=WorkerState.READY,
            model="tiny",
            model_digest="sha256:00",
            engine_id=EngineId("run-1"),
            geometry=GEOMETRY,
            limits=record.limits,
            accelerator="cpu",
            node="node-1",
            profile="test",
            profile_version="v1",
            started_s=1_000_000.0,
            heartbeat_s=record.heartbeat_s,
            load=Load(),
            tokenizer_path="/models/tiny",
            kv_events_url="ipc:///run/w-1/kv-events",
            engine_version="0.32.0",
            transport="tcp",
        )
        assert (record.limits.max_model_len, record.limits.slots) == (2048, 16)
        assert record.heartbeat_s == pytest.approx(1_000_004.0, abs=1.1)
        life.drain.set()
        await life.ended()

    live(story)


def test_heartbeats_tell_load_and_state() -> None:
    """Once a second, the engine as it is."""

    async def story(life: Life) -> None:
        life.engine.load = BUSY
        await asyncio.sleep(3.5)
        assert len(life.registrar.beats) == 4
        assert life.registrar.beats[-1][1].load == BUSY
        life.engine.set(state=WorkerState.WARMING)
        life.engine.load = Load()
        await asyncio.sleep(2)
        assert life.registrar.states == [WorkerState.READY, WorkerState.WARMING]
        life.drain.set()
        await life.ended()

    live(story)


def test_an_idle_worker_drains_fast() -> None:
    """The registry hears of it at once; a moment for routers that have not; then the end."""

    async def story(life: Life) -> None:
        await asyncio.sleep(10)
        life.drain.set()
        assert 11.0 < await life.ended() < 13.0
        told_s, record = next(
            (s, r) for s, r in life.registrar.beats if r.state is WorkerState.DRAINING
        )
        assert told_s == 10.0
        assert record.engine_id == "run-1"
        # The engine is there until the drain is over, and the worker until then registered.
        assert life.engine.stopped_s is not None
        assert life.engine.stopped_s > 11.0
        assert life.registrar.withdrawn_s is not None
        assert life.registrar.withdrawn_s > 11.0

    live(story)


def test_a_drained_worker_may_stay() -> None:
    """Asked to drain only, it is registered as draining, with its engine, until it may leave."""

    async def main() -> None:
        life = Life(make_plan(), leave=asyncio.Event())
        await asyncio.sleep(10)
        life.drain.set()
        await asyncio.wait_for(life.worker.drained.wait(), 3)
        await asyncio.sleep(60)
        assert life.registrar.states[-1] is WorkerState.DRAINING
        assert life.registrar.withdrawn_s is None
        assert life.worker.unready() == Problem("the worker is draining")
        assert life.leave is not None
        life.leave.set()
        assert await life.ended() < 75

    run_virtual(main())


def test_an_engine_that_may_not_start_yet() -> None:
    """It waits for the word; meanwhile the worker is registered, and can be stopped."""

    async def main(told: bool) -> None:
        may_start = asyncio.Event()
        life = Life(make_plan(), may_start=may_start)
        life.engine.set(state=WorkerState.STARTING)
        await asyncio.sleep(10)
        assert life.engine.health.load_read_s == 0
        assert life.registrar.states == [WorkerState.STARTING]
        if told:
            may_start.set()
            await asyncio.sleep(2)
            assert life.engine.health.load_read_s > 0
        life.drain.set()
        await life.task
        assert (life.engine.stopped_s is not None) is told

    run_virtual(main(told=True))
    run_virtual(main(told=False))


def test_a_busy_worker_finishes_first() -> None:
    """It goes when the engine's own figures, read after the news, say that nothing is left."""

    async def story(life: Life) -> None:
        life.engine.load = BUSY
        await asyncio.sleep(10)
        life.drain.set()
        await asyncio.sleep(7)
        assert life.engine.stopped_s is None
        assert life.registrar.states[-1] is WorkerState.DRAINING
        life.engine.load = Load()
        assert 17.0 < await life.ended() < 19.0

    live(story)


def test_figures_from_before_the_news_do_not_count() -> None:
    """A request may come in after the last reading: an old zero ends nothing."""

    async def story(life: Life) -> None:
        await asyncio.sleep(10.5)
        life.engine.load = BUSY
        life.drain.set()
        await asyncio.sleep(5)
        assert life.engine.stopped_s is None
        life.stop_now.set()
        await life.ended()

    live(story)


def test_the_drain_has_an_end() -> None:
    """Work that never ends is cut after the plan's limit."""

    async def story(life: Life) -> None:
        life.engine.load = BUSY
        await asyncio.sleep(10)
        life.drain.set()
        assert 29.9 < await life.ended() < 31.0

    live(story)


def test_a_second_signal_does_not_wait() -> None:
    """Whoever asks twice means it."""

    async def story(life: Life) -> None:
        life.engine.load = BUSY
        await asyncio.sleep(10)
        life.drain.set()
        await asyncio.sleep(2)
        life.stop_now.set()
        assert 11.9 < await life.ended() < 12.5

    live(story)


@pytest.mark.parametrize("state", [WorkerState.STARTING, WorkerState.WARMING])
def test_an_engine_that_is_not_ready_is_not_waited_for(state: WorkerState) -> None:
    """There is nothing to drain."""

    async def story(life: Life) -> None:
        life.engine.set(state=state, max_model_len=0)
        await asyncio.sleep(3)
        life.drain.set()
        assert await life.ended() < 3.5

    live(story)


def test_a_silent_engine_is_waited_for() -> None:
    """It may hold blocks that somebody is about to pull: the drain goes on when it answers again,
    and has its end if it does not."""

    async def story(life: Life) -> None:
        life.engine.load = Load(kv_usage=0.5)
        await asyncio.sleep(10)
        life.engine.set(state=WorkerState.WARMING)
        life.drain.set()
        await asyncio.sleep(5)
        assert life.engine.stopped_s is None
        life.engine.load = Load()
        await asyncio.sleep(2)
        assert life.engine.stopped_s is None
        life.engine.set(state=WorkerState.READY)
        assert 16.9 < await life.ended() < 19.0

    live(story, make_plan(prefill.drained))


def test_an_engine_that_dies_while_draining() -> None:
    """Its work is gone with it."""

    async def story(life: Life) -> None:
        life.engine.load = BUSY
        await asyncio.sleep(10)
        life.drain.set()
        await asyncio.sleep(2)
        life.engine.set(state=WorkerState.STARTING)
        assert await life.ended() < 12.5

    live(story)


def test_a_registry_that_refuses() -> None:
    """A wrong token ends the worker with that error; its engine is stopped."""

    async def story(life: Life) -> None:
        life.registrar.fails = NotAuthorized("wrong token")
        with pytest.raises(NotAuthorized):
            await life.task
        assert life.engine.stopped_s is not None
        assert life.registrar.closed

    live(story)


def test_a_registry_that_is_away() -> None:
    """A worker goes on serving without its registry, and is back in it when it is back."""

    async def story(life: Life) -> None:
        await asyncio.sleep(2.5)
        life.registrar.fails = StoreUnavailable("away")
        await asyncio.sleep(60)
        assert life.engine.stopped_s is None
        told = len(life.registrar.beats)
        life.registrar.fails = None
        await asyncio.sleep(2)
        assert len(life.registrar.beats) > told
        life.drain.set()
        await life.ended()

    live(story)


def test_a_supervisor_that_fails() -> None:
    """What the engine's supervisor cannot handle ends the worker, which leaves the registry."""

    async def story(life: Life) -> None:
        await asyncio.sleep(2)
        life.engine.fails = OSError("no more processes")
        with pytest.raises(OSError, match="no more processes"):
            await life.task
        assert life.registrar.withdrawn_s is not None
        assert life.registrar.closed

    live(story)


def test_a_worker_that_is_cancelled_while_it_ends() -> None:
    """It still leaves the registry, and closes what it opened."""

    async def story(life: Life) -> None:
        await asyncio.sleep(2)
        life.registrar.withdraw_takes_s = 0.3
        life.drain.set()
        await life.registrar.withdrawing.wait()
        life.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await life.task
        assert life.engine.stopped_s is not None
        assert life.registrar.withdrawn_s is not None
        assert life.registrar.closed

    live(story)


def test_a_cancelled_worker() -> None:
    """Cancelled, it still stops its engine and leaves the registry."""

    async def story(life: Life) -> None:
        await asyncio.sleep(2)
        life.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await life.task
        await asyncio.sleep(5)
        assert life.engine.stopped_s is not None
        assert life.registrar.withdrawn_s is not None
        assert life.registrar.closed

    live(story)


@pytest.mark.parametrize(
    ("load", "prefill_done", "decode_done"),
    [
        (Load(), True, True),
        (Load(running=1), False, False),
        (Load(waiting=1), False, False),
        (Load(kv_usage=0.01), False, True),
    ],
)
def test_when_a_role_is_drained(load: Load, prefill_done: bool, decode_done: bool) -> None:
    """A prefill worker also waits until its offered blocks are pulled or expired."""
    assert prefill.drained(load) is prefill_done
    assert decode.drained(load) is decode_done

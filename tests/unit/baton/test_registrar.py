"""Heartbeats under virtual time, and which URL makes which registrar."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import pytest

from baton.clock import VirtualClock
from baton.errors import (
    BatonError,
    NotAuthorized,
    SettingsError,
    StoreUnavailable,
    TooManyRequests,
)
from baton.registrar import (
    HEARTBEAT_S,
    HTTP_TIMEOUT_S,
    TTL_S,
    WITHDRAW_S,
    HttpRegistrar,
    StoreRegistrar,
    heartbeat_loop,
    open_registrar,
)
from baton.store import MemoryStore
from baton.types import WorkerId, WorkerRecord, WorkerState
from tests.fakes.virtual_loop import run_virtual
from tests.fakes.worker_records import worker_record


class FakeRegistrar:
    """Notes what comes and when; fails or takes its time as told."""

    def __init__(self) -> None:
        self.events: list[tuple[float, str]] = []
        self.fault: BatonError | None = None
        self.takes_s = 0.0

    async def heartbeat(self, record: WorkerRecord) -> None:
        await self._note(f"{record.id} {record.state}")

    async def withdraw(self, worker_id: WorkerId) -> None:
        await self._note(f"{worker_id} leaves")

    async def close(self) -> None:
        self.events.append((now_s(), "closed"))

    async def _note(self, what: str) -> None:
        started_s = now_s()
        await asyncio.sleep(self.takes_s)
        if self.fault is not None:
            self.events.append((started_s, f"{what}: {type(self.fault).__name__}"))
            raise self.fault
        self.events.append((started_s, what))


class Worker:
    """The loop under test with all that it needs."""

    def __init__(self) -> None:
        self.registrar = FakeRegistrar()
        self.stop = asyncio.Event()
        self.wake = asyncio.Event()
        self.state = WorkerState.READY
        self.make: Callable[[], Awaitable[WorkerRecord]] = self.make_record

    async def make_record(self) -> WorkerRecord:
        return worker_record("w", state=self.state)

    def start(self) -> asyncio.Task[None]:
        return asyncio.create_task(
            heartbeat_loop(
                self.registrar, self.make, interval_s=1.0, stop=self.stop, wake=self.wake
            )
        )

    @property
    def events(self) -> list[tuple[float, str]]:
        return [(round(at_s, 3), what) for at_s, what in self.registrar.events]


def now_s() -> float:
    return asyncio.get_running_loop().time()


def test_it_beats_at_the_interval_and_leaves() -> None:
    """At once, then every second, and the worker withdraws when told to stop."""

    async def scenario() -> None:
        worker = Worker()
        loop = worker.start()
        await asyncio.sleep(2.5)
        worker.stop.set()
        await loop
        assert worker.events == [
            (0.0, "w ready"),
            (1.0, "w ready"),
            (2.0, "w ready"),
            (2.5, "w leaves"),
        ]

    run_virtual(scenario())


def test_a_change_of_state_does_not_wait() -> None:
    """Woken, it sends at once, and counts the interval from there."""

    async def scenario() -> None:
        worker = Worker()
        loop = worker.start()
        await asyncio.sleep(0.3)
        worker.state = WorkerState.DRAINING
        worker.wake.set()
        await asyncio.sleep(1.1)
        worker.stop.set()
        await loop
        assert worker.events == [
            (0.0, "w ready"),
            (0.3, "w draining"),
            (1.3, "w draining"),
            (1.4, "w leaves"),
        ]

    run_virtual(scenario())


def test_a_change_during_a_heartbeat_is_not_lost() -> None:
    """The record in flight is the old one, so another follows right after it."""

    async def scenario() -> None:
        worker = Worker()
        worker.registrar.takes_s = 0.5
        loop = worker.start()
        await asyncio.sleep(0.2)
        worker.state = WorkerState.DRAINING
        worker.wake.set()
        await asyncio.sleep(0.9)
        worker.stop.set()
        await loop
        assert worker.events[:2] == [(0.0, "w ready"), (0.5, "w draining")]

    run_virtual(scenario())


def test_an_early_wake_costs_no_second_heartbeat() -> None:
    """Set before the first record is made, it asks for nothing more than that record."""

    async def scenario() -> None:
        worker = Worker()
        worker.wake.set()
        loop = worker.start()
        await asyncio.sleep(0.9)
        worker.stop.set()
        await loop
        assert worker.events == [(0.0, "w ready"), (0.9, "w leaves")]

    run_virtual(scenario())


@pytest.mark.parametrize("fault", [StoreUnavailable("gone"), TooManyRequests("full")])
def test_a_lost_registry_is_survived(fault: BatonError, caplog: pytest.LogCaptureFixture) -> None:
    """It keeps trying at the interval, and says once that it is lost and once that it is back."""
    caplog.set_level(logging.INFO)

    async def scenario() -> None:
        worker = Worker()
        loop = worker.start()
        await asyncio.sleep(0.5)
        worker.registrar.fault = fault
        await asyncio.sleep(3)
        worker.registrar.fault = None
        await asyncio.sleep(2)
        worker.stop.set()
        await loop
        assert [at_s for at_s, _ in worker.events] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 5.5]
        assert sum(type(fault).__name__ in what for _, what in worker.events) == 3

    run_virtual(scenario())
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", f"the registry is lost, heartbeats go on: {fault.message}"),
        ("INFO", "the registry is back"),
    ]


def test_a_second_loss_is_told_again(caplog: pytest.LogCaptureFixture) -> None:
    """Once per loss, not once per life."""

    async def scenario() -> None:
        worker = Worker()
        loop = worker.start()
        for _ in range(2):
            worker.registrar.fault = StoreUnavailable("gone")
            await asyncio.sleep(2)
            worker.registrar.fault = None
            await asyncio.sleep(2)
        worker.stop.set()
        await loop

    run_virtual(scenario())
    assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == 2


def test_a_refused_token_ends_the_loop() -> None:
    """What trying again cannot mend reaches the caller."""

    async def scenario() -> None:
        worker = Worker()
        worker.registrar.fault = NotAuthorized("no")
        with pytest.raises(NotAuthorized):
            await worker.start()

    run_virtual(scenario())


def test_a_record_that_cannot_be_made_ends_the_loop() -> None:
    """The caller hears of it, and the worker does not stay in the registry meanwhile."""

    async def scenario() -> None:
        worker = Worker()
        makers = iter([worker.make_record, broken])
        worker.make = lambda: next(makers)()
        loop = worker.start()
        with pytest.raises(ValueError, match="a bug"):
            await loop
        assert worker.events == [(0.0, "w ready"), (1.0, "w leaves")]

    async def broken() -> WorkerRecord:
        raise ValueError("a bug")

    run_virtual(scenario())


def test_stopped_before_the_start_it_does_nothing() -> None:
    """No heartbeat, so nothing to withdraw."""

    async def scenario() -> None:
        worker = Worker()
        worker.stop.set()
        await worker.start()
        assert worker.events == []

    run_virtual(scenario())


def test_a_heartbeat_in_flight_ends_before_the_withdrawal() -> None:
    """Otherwise it could arrive after it and bring the worker back."""

    async def scenario() -> None:
        worker = Worker()
        worker.registrar.takes_s = 0.3
        loop = worker.start()
        await asyncio.sleep(0.1)
        worker.stop.set()
        await loop
        assert worker.events == [(0.0, "w ready"), (0.3, "w leaves")]

    run_virtual(scenario())


def test_a_hung_registry_does_not_hold_the_stop(caplog: pytest.LogCaptureFixture) -> None:
    """Leaving takes WITHDRAW_S at most; the registry forgets the worker by itself."""

    async def scenario() -> None:
        worker = Worker()
        loop = worker.start()
        await asyncio.sleep(0.5)
        worker.registrar.takes_s = 3600
        await asyncio.sleep(1.0)
        worker.stop.set()
        await loop
        assert now_s() == pytest.approx(1.5 + WITHDRAW_S)

    run_virtual(scenario())
    assert "could not withdraw" in caplog.text


def test_a_hung_record_does_not_hold_the_stop() -> None:
    """A worker whose engine no longer answers still withdraws, in time."""

    async def scenario() -> None:
        worker = Worker()
        makers = iter([worker.make_record, hung])
        worker.make = lambda: next(makers)()
        loop = worker.start()
        await asyncio.sleep(5.0)
        worker.stop.set()
        await loop
        assert [what for _, what in worker.events] == ["w ready", "w leaves"]
        assert now_s() <= 5.0 + WITHDRAW_S

    async def hung() -> WorkerRecord:
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")

    run_virtual(scenario())


def test_a_lost_registry_does_not_fail_the_stop(caplog: pytest.LogCaptureFixture) -> None:
    """A withdrawal that cannot be told is logged, not raised."""

    async def scenario() -> None:
        worker = Worker()
        loop = worker.start()
        await asyncio.sleep(0.5)
        worker.registrar.fault = StoreUnavailable("gone")
        worker.stop.set()
        await loop

    run_virtual(scenario())
    assert "could not withdraw" in caplog.text


@pytest.mark.parametrize("at_s", [0.0, 0.2, 0.5, 0.9, 1.2])
def test_a_cancelled_worker_withdraws(at_s: float) -> None:
    """Cancelled between heartbeats or within one, it leaves properly and then ends."""

    async def scenario() -> None:
        worker = Worker()
        worker.registrar.takes_s = 0.4
        loop = worker.start()
        await asyncio.sleep(at_s)
        loop.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loop
        *beats, last = [what for _, what in worker.events]
        assert set(beats) == {"w ready"}
        assert last == "w leaves"

    run_virtual(scenario())


def test_the_times_fit_each_other() -> None:
    """One heartbeat that hangs to its timeout does not cost a worker its place."""
    assert HEARTBEAT_S + HTTP_TIMEOUT_S + HEARTBEAT_S < TTL_S


async def test_the_store_registrar_writes_with_its_ttl() -> None:
    """Heartbeats last for the TTL, withdrawal is at once, closing closes the store."""
    clock = VirtualClock()
    store = MemoryStore(clock)
    registrar = StoreRegistrar(store, ttl_s=3.0)
    await registrar.heartbeat(worker_record("a"))
    await registrar.heartbeat(worker_record("b"))
    await registrar.withdraw(WorkerId("a"))
    assert [record.id for record in await store.workers()] == ["b"]
    clock.advance(3.0)
    assert await store.workers() == ()
    await registrar.close()
    with pytest.raises(StoreUnavailable):
        await registrar.heartbeat(worker_record("a"))


class TestOpenRegistrar:
    """``open_registrar``: which URL makes which registrar."""

    @pytest.mark.parametrize("url", ["http://router:8000", "https://router/base/"])
    async def test_http(self, url: str) -> None:
        """Router URLs register over HTTP."""
        registrar = open_registrar(url, "token")
        assert isinstance(registrar, HttpRegistrar)
        await registrar.close()

    @pytest.mark.parametrize(
        "url",
        ["redis://cache:6379/0", "rediss://cache", "redis+sentinel://a,b/m", "redis+cluster://a"],
    )
    async def test_redis(self, url: str) -> None:
        """Redis URLs register in the store that the routers share."""
        registrar = open_registrar(url, "token")
        assert isinstance(registrar, StoreRegistrar)
        await registrar.close()

    @pytest.mark.parametrize("url", ["", "router:8000", "memory://", "ftp://x", "http://[x"])
    def test_others_are_refused(self, url: str) -> None:
        """Memory among them: a worker cannot write to another process's memory."""
        with pytest.raises(SettingsError, match="http://"):
            open_registrar(url, "token")

    @pytest.mark.parametrize(
        "url",
        [
            "http://",
            "http://:8000",
            "http://router:port",
            "http://router:0",
            "http://me:s3cret@router",
            "http://router?x=1",
            "http://router#x",
        ],
    )
    def test_router_urls_have_a_form(self, url: str) -> None:
        """Credentials in it would clash with the token; no secret is repeated."""
        with pytest.raises(SettingsError, match="HOST") as caught:
            open_registrar(url, "token")
        assert "s3cret" not in str(caught.value)

"""Breakers: what takes a worker out of traffic, and how soon it is back."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from baton.errors import PeerFault, WorkerFailed, WorkerTimeout, WorkerUnreachable
from baton.types import EngineId, RequestId, Role, WorkerId
from router.care.breaker import FIRST_PROBE_S, JITTER, LONGEST_PROBE_S, Breaker, BreakerState
from router.care.breakers import PROBES_AT_A_TIME, Breakers
from tests.fakes.virtual_loop import run_virtual
from tests.fakes.waiting import until
from tests.fakes.worker_records import worker_record
from tests.unit.router.care.workers import UNREACHABLE, FakeCluster, FakeWorker, LoopClock

FAILED = WorkerFailed("it answered 500")
LATE = WorkerTimeout("it did not answer")

Story = Callable[[FakeCluster, Breakers], Awaitable[None]]


def live(story: Story) -> None:
    async def main() -> None:
        cluster = FakeCluster()
        breakers = Breakers(cluster, LoopClock(), random.Random(1))
        try:
            await story(cluster, breakers)
        finally:
            await breakers.close()

    run_virtual(main())


def blame(
    breakers: Breakers, worker: FakeWorker, error: PeerFault, times: int, first: int = 0
) -> None:
    """Faults of ``times`` requests."""
    for number in range(first, first + times):
        breakers.fault(worker.record, RequestId(f"r-{number}"), error)


# --- the pure part ---


def state(breaker: Breaker) -> BreakerState:
    return breaker.state


def a_breaker() -> Breaker:
    return Breaker(EngineId("e"), 0.0)


@pytest.mark.parametrize("error", [FAILED, LATE])
def test_three_requests_in_a_row_make_a_suspicion(error: PeerFault) -> None:
    """Not two, not one that is tried again and again; and a suspect still takes traffic."""
    breaker = a_breaker()
    for _ in range(10):
        breaker.fault(error, RequestId("a"), 1.0)
    breaker.fault(error, RequestId("b"), 2.0)
    assert state(breaker) is BreakerState.CLOSED
    breaker.fault(error, RequestId("c"), 3.0)
    assert state(breaker) is BreakerState.SUSPICIOUS
    assert breaker.takes_traffic
    assert (breaker.reason, breaker.since_s) == (error.message, 3.0)


def test_a_success_in_between() -> None:
    """The count starts again."""
    breaker = a_breaker()
    for request in "ab":
        breaker.fault(FAILED, RequestId(request), 1.0)
    breaker.success(2.0)
    assert breaker.spotless
    for request in "cd":
        breaker.fault(FAILED, RequestId(request), 3.0)
    assert state(breaker) is BreakerState.CLOSED


def test_a_broken_connection_opens_at_once() -> None:
    """One is enough, whatever came before."""
    breaker = a_breaker()
    breaker.fault(UNREACHABLE, RequestId("a"), 1.0)
    assert state(breaker) is BreakerState.OPEN
    assert not breaker.takes_traffic
    breaker.success(2.0)
    assert state(breaker) is BreakerState.OPEN, "a leg may be older than the end of its worker"


def test_faults_of_an_open_breaker() -> None:
    """Legs that were under way when it opened say nothing new."""
    breaker = a_breaker()
    breaker.fault(UNREACHABLE, RequestId("a"), 1.0)
    breaker.probe_began()
    for request in "bcde":
        breaker.fault(WorkerUnreachable("reset"), RequestId(request), 2.0)
        breaker.fault(FAILED, RequestId(request), 2.0)
    assert state(breaker) is BreakerState.HALF_OPEN
    assert (breaker.reason, breaker.since_s) == (UNREACHABLE.message, 1.0)


def test_pauses_grow_to_a_bound() -> None:
    """Doubled each time, jittered, and never longer than the longest."""
    breaker, rng = a_breaker(), random.Random(3)
    breaker.fault(UNREACHABLE, RequestId("a"), 1.0)
    wanted = FIRST_PROBE_S
    for _ in range(40):
        assert 1 - JITTER <= breaker.pause_s(rng) / wanted <= 1 + JITTER
        breaker.probe_began()
        assert state(breaker) is BreakerState.HALF_OPEN
        breaker.probe_ended("still ill", 2.0)
        wanted = min(LONGEST_PROBE_S, wanted * 2)
    assert breaker.since_s == 1.0


def test_a_connection_that_breaks_during_a_suspicion_s_probe() -> None:
    """That probe's pass is older than the break: the next one decides."""
    breaker = a_breaker()
    for request in "abc":
        breaker.fault(FAILED, RequestId(request), 1.0)
    breaker.probe_began()
    breaker.fault(UNREACHABLE, RequestId("d"), 2.0)
    breaker.probe_ended(None, 3.0)
    assert state(breaker) is BreakerState.OPEN
    breaker.probe_began()
    breaker.probe_ended(None, 4.0)
    assert state(breaker) is BreakerState.CLOSED


# --- with probes ---


def test_a_killed_worker_is_back_within_seconds() -> None:
    """Open at the first broken connection; closed at most one pause after it is well again."""

    async def story(cluster: FakeCluster, breakers: Breakers) -> None:
        worker = cluster.add("w", Role.DECODE)
        breakers.update(cluster.records)
        worker.fault = UNREACHABLE
        blame(breakers, worker, UNREACHABLE, 1)
        assert breakers.blocked_ids == {"w"}
        await asyncio.sleep(60)
        assert breakers.blocked_ids == {"w"}
        assert 10 < len(worker.asked) < 20
        (row,) = breakers.rows()
        assert (row.worker, row.reason) == ("w", UNREACHABLE.message)
        assert row.age_s == pytest.approx(60.0)
        worker.fault = None
        await asyncio.sleep(LONGEST_PROBE_S * (1 + JITTER) + 0.1)
        assert not breakers.blocked_ids
        assert breakers.rows() == ()
        assert (breakers.counts.opened, breakers.counts.closed_again) == (1, 1)

    live(story)


def test_a_poison_request_takes_no_sound_worker_out() -> None:
    """Whatever fails on any worker, sent again and again: each suspicion is found groundless, and
    the worker takes traffic throughout."""

    async def story(cluster: FakeCluster, breakers: Breakers) -> None:
        workers = [cluster.add(name, Role.DECODE) for name in "abc"]
        breakers.update(cluster.records)
        for number in range(300):
            blame(breakers, workers[number % 3], FAILED, 1, first=number)
            assert not breakers.blocked_ids
            await asyncio.sleep(0.03)
        await asyncio.sleep(1)
        assert breakers.suspicious_ids == frozenset()
        assert breakers.counts.opened == 0
        assert breakers.counts.absolved > 10

    live(story)


def test_a_hung_worker_is_taken_out_and_stays_out() -> None:
    """It has health and no tokens: the probe of the suspicion fails at its deadline, and so do all
    others until it works again."""

    async def story(cluster: FakeCluster, breakers: Breakers) -> None:
        worker = cluster.add("w", Role.DECODE)
        breakers.update(cluster.records)
        worker.hangs = True
        blame(breakers, worker, LATE, 3)
        assert breakers.state(WorkerId("w")) is BreakerState.SUSPICIOUS
        assert breakers.suspicious_ids == {"w"}
        await asyncio.sleep(6)
        assert breakers.blocked_ids == {"w"}
        await asyncio.sleep(120)
        assert breakers.blocked_ids == {"w"}
        worker.hangs = False
        await until(lambda: not breakers.blocked_ids, timeout_s=12.0)

    live(story)


def test_a_busy_worker_stays_in() -> None:
    """No token in time, but the engine computes: its queue is long, and it is not ill."""

    async def story(cluster: FakeCluster, breakers: Breakers) -> None:
        worker = cluster.add("w", Role.DECODE)
        breakers.update(cluster.records)
        worker.hangs = worker.working = True
        blame(breakers, worker, LATE, 3)
        await until(lambda: breakers.counts.absolved == 1, timeout_s=10.0)
        assert breakers.counts.opened == 0

    live(story)


@pytest.mark.parametrize(
    ("status", "sound"), [(500, False), (503, False), (401, False), (429, True)]
)
def test_what_a_probe_makes_of_answers(status: int, sound: bool) -> None:
    """Anything but a token is a failure; full is not ill."""

    async def story(cluster: FakeCluster, breakers: Breakers) -> None:
        worker = cluster.add("w", Role.DECODE)
        breakers.update(cluster.records)
        worker.status = status
        blame(breakers, worker, FAILED, 3)
        await asyncio.sleep(0.2)
        assert (breakers.blocked_ids == frozenset()) is sound

    live(story)


def test_a_success_ends_a_suspicion() -> None:
    """No probe is needed any more, and none is left."""

    async def story(cluster: FakeCluster, breakers: Breakers) -> None:
        worker = cluster.add("w", Role.DECODE)
        breakers.update(cluster.records)
        worker.hangs = True
        blame(breakers, worker, LATE, 3)
        await asyncio.sleep(1)
        breakers.success(WorkerId("w"))
        assert breakers.rows() == ()
        await asyncio.sleep(60)
        assert breakers.state(WorkerId("w")) is BreakerState.CLOSED
        assert len(worker.generations) == 1

    live(story)


def test_a_restarted_engine_starts_anew() -> None:
    """Another engine id is another worker: closed at once, whatever is still said of the old."""

    async def story(cluster: FakeCluster, breakers: Breakers) -> None:
        worker = cluster.add("w", Role.DECODE)
        breakers.update(cluster.records)
        worker.fault = UNREACHABLE
        blame(breakers, worker, UNREACHABLE, 1)
        await asyncio.sleep(20)
        breakers.update((worker_record("w", engine_id=EngineId("w-2")),))
        assert not breakers.blocked_ids
        blame(breakers, worker, UNREACHABLE, 1)
        assert not breakers.blocked_ids
        probes = len(worker.asked)
        await asyncio.sleep(20)
        assert len(worker.asked) == probes

    live(story)


def test_a_worker_that_is_gone_is_forgotten() -> None:
    """No entry, no probe."""

    async def story(cluster: FakeCluster, breakers: Breakers) -> None:
        worker = cluster.add("w", Role.DECODE)
        breakers.update(cluster.records)
        worker.fault = UNREACHABLE
        blame(breakers, worker, UNREACHABLE, 1)
        breakers.update(())
        assert breakers.rows() == ()
        blame(breakers, worker, UNREACHABLE, 1)
        assert breakers.rows() == ()
        await asyncio.sleep(20)
        assert worker.asked == []

    live(story)


def test_probes_are_bounded() -> None:
    """A fleet that hangs as a whole is probed sixteen at a time, each worker once."""

    async def story(cluster: FakeCluster, breakers: Breakers) -> None:
        workers = [cluster.add(f"w-{number}", Role.DECODE) for number in range(50)]
        breakers.update(cluster.records)
        for worker in workers:
            worker.hangs = True
            blame(breakers, worker, LATE, 3)
        await asyncio.sleep(100)
        assert cluster.most_in_flight == PROBES_AT_A_TIME
        assert len(breakers.blocked_ids) == 50
        for worker in workers:
            worker.hangs = False
        await until(lambda: not breakers.blocked_ids, timeout_s=60.0)

    live(story)


def test_close_leaves_nothing() -> None:
    """Probes under way are cut, also the one that hangs."""

    async def story(cluster: FakeCluster, breakers: Breakers) -> None:
        worker = cluster.add("w", Role.DECODE)
        breakers.update(cluster.records)
        worker.hangs = True
        blame(breakers, worker, LATE, 3)
        await asyncio.sleep(1)
        assert cluster.in_flight == 1
        await breakers.close()
        assert cluster.in_flight == 0
        blame(breakers, worker, UNREACHABLE, 1)
        assert len(asyncio.all_tasks()) == 1

    live(story)

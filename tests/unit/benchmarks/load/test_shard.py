"""Sending a plan under a sender that needs no network. Schedules in virtual time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest

from benchmarks.load.ahead import Ahead
from benchmarks.load.endpoint import ResolvedTarget
from benchmarks.load.shard import Shard
from benchmarks.plan import Plan
from benchmarks.records import RequestRecord
from benchmarks.target import Api
from tests.fakes.virtual_loop import run_virtual
from tests.unit.benchmarks.load.plans import (
    TARGET,
    FakeSender,
    Words,
    evenly,
    lane,
    plan,
    request,
)


class _Inline:
    """Instead of threads, which have no virtual time: builds at once."""

    def start(self, build: Callable[[], str]) -> asyncio.Future[str]:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        future.set_result(build())
        return future

    def close(self) -> None:
        """Nothing to end."""


class _InlineAhead(Ahead):
    async def fill(self) -> None:
        self._row = iter([build() for build in self._builders])

    async def take(self) -> bytes:
        return next(self._row)


def send(
    what: Plan,
    seconds: Callable[[int], float],
    *,
    target: ResolvedTarget = TARGET,
    fails: set[int] | None = None,
    stop_at_s: float | None = None,
) -> tuple[list[RequestRecord], FakeSender]:
    """Everything that was recorded, in the order in which it ended."""
    records: list[RequestRecord] = []

    async def main() -> FakeSender:
        loop = asyncio.get_running_loop()
        zero_s = loop.time() + 5.0

        def now() -> float:
            return loop.time() - zero_s

        sender = FakeSender(now, seconds)
        sender.fails = fails or set()
        shard = Shard(what, target, Words(), records.append, now=now)
        shard._ahead = _InlineAhead([shard._body_of(r) for r in shard._timed])
        shard._demand = _Inline()  # type: ignore[assignment]
        await shard.prepare()
        stop = asyncio.Event()
        if stop_at_s is not None:
            loop.call_at(zero_s + stop_at_s, stop.set)
        await shard.run(sender, stop)
        assert shard.counts.in_flight == 0
        assert shard.counts.done == len(records)
        return sender

    return records, run_virtual(main())


def test_schedule_is_absolute() -> None:
    """Each request leaves at its own time, however slow the answers are: late ones delay none."""
    records, sender = send(evenly(50, 1.0), lambda _: 3.0)
    assert [round(r.scheduled_s, 6) for r in records] == [n / 50 for n in range(50)]
    assert max(r.sent_s - r.scheduled_s for r in records if r.sent_s is not None) < 1e-6
    assert sender.most == 50


def test_burst_leaves_together() -> None:
    """Requests that are due at one moment are all sent at that moment."""
    records, _ = send(plan([request(n, 0.25) for n in range(30)]), lambda _: 0.5)
    assert {round(r.sent_s or 0.0, 6) for r in records} == {0.25}


def test_lane_sends_when_its_answer_is_there() -> None:
    """A lane has one request in flight, sends the next one after the pause, and ends with the
    duration; the answer then in flight is awaited."""
    records, sender = send(
        plan(lanes=[lane("a", think_s=0.1), lane("b", think_s=0.1)], duration_s=1.0),
        lambda _: 0.3,
    )
    mine = [r for r in records if r.lane == "a"]
    assert [round(r.scheduled_s, 3) for r in mine] == [0.1, 0.5, 0.9]
    assert [r.index for r in mine] == [0, 1, 2]
    assert sender.most == 2
    assert round(mine[-1].end_s or 0.0, 3) == 1.2


def test_lane_with_a_number_of_requests() -> None:
    """A lane with a bound stops at it."""
    records, _ = send(plan(lanes=[lane("a", requests=3)], duration_s=50.0), lambda _: 0.1)
    assert [r.index for r in records] == [0, 1, 2]


def test_failing_lane_is_no_flood() -> None:
    """Where requests fail at once a lane pauses longer and longer, up to two seconds."""
    records, _ = send(
        plan(lanes=[lane("a")], duration_s=10.0), lambda _: 0.0, fails=set(range(1000))
    )
    assert len(records) < 12


@pytest.mark.parametrize("api", [Api.CHAT, Api.COMPLETIONS])
def test_session_carries_what_was_answered(api: Api) -> None:
    """A turn waits for the one before, and holds the prompts and real answers before it."""
    turns = [
        request(0, 0.1, session="s"),
        request(1, None, session="s", after=0, think_s=0.5),
        request(2, None, session="s", after=1),
    ]
    target = ResolvedTarget(url="http://x", model="m", api=api)
    records, sender = send(plan(turns, 10.0), lambda _: 1.0, target=target)
    assert [round(r.scheduled_s, 3) for r in records] == [0.1, 1.6, 2.6]
    assert [r.turn for r in records] == [0, 1, 2]
    third = json.loads(sender.bodies[2])
    if api is Api.CHAT:
        assert [m["content"] for m in third["messages"]] == [
            "k0.0 k0.1 k0.2", "answer0", "k1.0 k1.1 k1.2", "answer1", "k2.0 k2.1 k2.2",
        ]  # fmt: skip
        assert [m["role"] for m in third["messages"]] == ["user", "assistant"] * 2 + ["user"]
    else:
        second = json.loads(sender.bodies[1])
        assert third["prompt"].startswith(second["prompt"] + "answer1")
        assert third["prompt"].endswith("k2.0 k2.1 k2.2")


def test_session_goes_on_after_a_failure() -> None:
    """A turn that failed is left out of the conversation, and the next one is sent all the same."""
    turns = [request(0, 0.0, session="s"), request(1, None, session="s", after=0)]
    records, sender = send(plan(turns, 10.0), lambda _: 1.0, fails={0})
    assert len(records) == 2
    assert json.loads(sender.bodies[1])["prompt"] == "k1.0 k1.1 k1.2"


def test_nothing_new_after_the_end() -> None:
    """A turn that would be due after the duration is not sent; what is in flight is awaited."""
    turns = [request(0, 0.5, session="s"), request(1, None, session="s", after=0)]
    records, _ = send(plan(turns, 1.0), lambda _: 30.0)
    assert [(r.index, r.error, round(r.end_s or 0.0, 3)) for r in records] == [(0, None, 30.5)]


def test_stop_ends_everything() -> None:
    """A stop in the middle: what is in flight ends as cancelled, nothing else is sent, no task is
    left."""
    what = plan([request(n, n * 0.1) for n in range(100)], 10.0, lanes=[lane("a")])
    records, _ = send(what, lambda _: 2.0, stop_at_s=1.05)
    assert len(records) == 12
    assert {r.error for r in records} == {"cancelled"}
    assert all(r.end_s is not None and r.end_s < 1.2 for r in records)


def test_stop_before_the_start() -> None:
    """Stopped while second zero is still ahead: nothing is sent."""
    records, _ = send(evenly(10), lambda _: 0.1, stop_at_s=-1.0)
    assert records == []


async def test_ahead_keeps_order_and_budget() -> None:
    """Bodies come in order, and no more than the budget is built and not yet taken."""
    built: list[int] = []

    def make(n: int) -> Callable[[], bytes]:
        def build() -> bytes:
            built.append(n)
            return bytes([n]) * 100

        return build

    ahead = Ahead([make(n) for n in range(50)], budget_bytes=500)
    await ahead.fill()
    assert len(built) == 5
    taken = [await ahead.take() for _ in range(50)]
    assert [body[0] for body in taken] == list(range(50))
    with pytest.raises(IndexError):
        await ahead.take()
    ahead.close()


async def test_ahead_says_what_went_wrong() -> None:
    """An error of a builder reaches whoever waits for its body."""

    def broken() -> bytes:
        raise ValueError("no such piece")

    ahead = Ahead([lambda: b"x", broken])
    with pytest.raises(ValueError, match="no such piece"):
        await ahead.fill()
    ahead.close()


async def test_ahead_closes_while_full() -> None:
    """Closing ends a thread that waits for space."""
    ahead = Ahead([lambda: b"x" * 10] * 10, budget_bytes=10)
    await ahead.fill()
    ahead.close()
    assert ahead._thread is not None
    assert not ahead._thread.is_alive()

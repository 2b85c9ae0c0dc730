"""The gate: the fast path, waiting, every way of being turned away, and nothing left behind."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from baton.errors import BatonError, DeadlineExceeded, ModelNotFound, NoWorker, TooManyRequests
from router.flow import UNKNOWN, Capacity, FlowRules, Gate, Pass, Ticket, Turned, retry_after_s
from tests.fakes.virtual_loop import run_virtual
from tests.unit.router.flow.greedy import LoopClock


class Pool:
    """Capacities as a test sets them."""

    def __init__(self, **slots: int) -> None:
        self.now = {name: Capacity(count, ready=count > 0) for name, count in slots.items()}

    def __call__(self, model: str) -> Capacity:
        return self.now.get(model, UNKNOWN)


Story = Callable[[Gate, Pool], Coroutine[Any, Any, None]]


def play(story: Story, rules: FlowRules | None = None, **slots: int) -> None:
    """Runs a story against a gate, in virtual time; afterwards nothing waits and nothing is out."""

    async def main() -> None:
        pool = Pool(**(slots or {"m": 1}))
        gate = Gate(rules or FlowRules(slots_factor=1.0), pool, LoopClock())
        await story(gate, pool)
        await asyncio.sleep(0)
        assert gate.held == 0

    run_virtual(main())


def ticket(tenant: str = "a", priority: int = 0, **more: Any) -> Ticket:
    return Ticket(**{"model": "m", "tenant": tenant, "priority": priority, "tokens": 10, **more})


async def turns() -> None:
    """Lets every task run until it waits."""
    for _ in range(5):
        await asyncio.sleep(0)


def join(gate: Gate, *args: Any, **kwargs: Any) -> asyncio.Task[Pass]:
    return asyncio.create_task(gate.admit(ticket(*args, **kwargs)))


async def refusal(waiting: asyncio.Task[Pass]) -> BatonError:
    with pytest.raises(BatonError) as caught:
        await waiting
    return caught.value


def test_a_free_place_is_given_at_once() -> None:
    """Without a turn of the loop; leaving the block gives it back, once."""

    async def story(gate: Gate, pool: Pool) -> None:
        step = gate.admit(ticket())
        with pytest.raises(StopIteration) as done:
            step.send(None)
        with done.value.value as place:
            assert place.waited_s == 0.0
            assert gate.held == 1
            assert gate.try_admit(ticket("b")) is None
            place.release()
            place.release(5)
        assert gate.held == 0

    play(story)


def test_waiting_until_one_is_released() -> None:
    """In turn, and the pass says how long it took."""

    async def story(gate: Gate, pool: Pool) -> None:
        first = await gate.admit(ticket())
        second, third = join(gate), join(gate)
        await asyncio.sleep(3)
        snapshot = gate.snapshot()
        assert snapshot.waiting_by_band == {0: 2}
        assert snapshot.waiting_by_model == {"m": 2}
        assert snapshot.out_by_model == {"m": 1}
        assert snapshot.limit_by_model == {"m": 1}
        assert snapshot.oldest_age_s == pytest.approx(3)
        first.release()
        with await second as place:
            assert place.waited_s == pytest.approx(3)
            await turns()
            assert not third.done()
        (await third).release()
        assert gate.snapshot().admitted == 3

    play(story)


def test_nobody_overtakes_who_waits() -> None:
    """A place that comes free belongs to the queue, also while the one called has not run yet."""

    async def story(gate: Gate, pool: Pool) -> None:
        first = await gate.admit(ticket())
        waiting = join(gate)
        await turns()
        first.release()
        assert gate.try_admit(ticket("b")) is None
        (await waiting).release()

    play(story)


def test_a_full_queue() -> None:
    """429, with a time to come back."""

    async def story(gate: Gate, pool: Pool) -> None:
        place = await gate.admit(ticket())
        waiting = join(gate)
        await turns()
        error = await refusal(join(gate))
        assert isinstance(error, TooManyRequests)
        assert error.status == 429
        assert error.retry_after_s is not None
        assert 1 <= error.retry_after_s <= 60
        assert gate.snapshot().turned[Turned.FULL] == 1
        place.release()
        (await waiting).release()

    play(story, FlowRules(queue=1, slots_factor=1.0))


def test_making_room() -> None:
    """A higher band displaces the lowest one's newest; that one gets 429."""

    async def story(gate: Gate, pool: Pool) -> None:
        place = await gate.admit(ticket())
        low, lower = join(gate, "b"), join(gate, "c", -1)
        await turns()
        high = join(gate, "d", 5)
        error = await refusal(lower)
        assert isinstance(error, TooManyRequests)
        assert gate.snapshot().turned[Turned.SHED] == 1
        place.release()
        (await high).release()
        (await low).release()

    play(story, FlowRules(queue=2, slots_factor=1.0))


def test_too_long_in_the_queue() -> None:
    """429 when the TTL is over."""

    async def story(gate: Gate, pool: Pool) -> None:
        place = await gate.admit(ticket())
        began_s = asyncio.get_running_loop().time()
        error = await refusal(join(gate))
        assert isinstance(error, TooManyRequests)
        assert asyncio.get_running_loop().time() - began_s == pytest.approx(7)
        assert gate.snapshot().turned[Turned.EXPIRED] == 1
        place.release()

    play(story, FlowRules(queue_ttl_s=7.0, slots_factor=1.0))


def test_the_deadline_of_the_client() -> None:
    """504, when it passes in the queue and when it had passed before; others wait on."""

    async def story(gate: Gate, pool: Pool) -> None:
        loop = asyncio.get_running_loop()
        place = await gate.admit(ticket())
        patient = join(gate)
        hasty = join(gate, deadline_s=loop.time() + 2)
        error = await refusal(hasty)
        assert loop.time() == pytest.approx(2)
        assert isinstance(error, DeadlineExceeded)
        assert error.status == 504
        place.release()
        (await patient).release()
        late = await refusal(join(gate, deadline_s=loop.time() - 1))
        assert isinstance(late, DeadlineExceeded)
        assert gate.snapshot().turned[Turned.DEADLINE] == 2

    play(story)


def test_a_model_that_nobody_serves() -> None:
    """404, and no memory of it."""

    async def story(gate: Gate, pool: Pool) -> None:
        for number in range(3):
            with pytest.raises(ModelNotFound):
                await gate.admit(ticket(model=f"x{number}"))
        assert gate.snapshot().out_by_model == {}

    play(story)


def test_the_waiting_room() -> None:
    """No worker yet: waits for one, and goes on when it is there."""

    async def story(gate: Gate, pool: Pool) -> None:
        waiting = join(gate)
        await asyncio.sleep(4)
        pool.now["m"] = Capacity(2, ready=True)
        gate.kick()
        with await waiting as place:
            assert place.waited_s == pytest.approx(4)

    play(story, m=0)


def test_no_worker_comes() -> None:
    """503 after worker_wait_s, each counted from its own arrival."""

    async def story(gate: Gate, pool: Pool) -> None:
        loop = asyncio.get_running_loop()
        first = join(gate)
        await asyncio.sleep(6)
        second = join(gate)
        error = await refusal(first)
        assert loop.time() == pytest.approx(10)
        assert isinstance(error, NoWorker)
        assert error.retry_after_s == 10
        await refusal(second)
        assert loop.time() == pytest.approx(16)
        assert gate.snapshot().turned[Turned.NO_WORKER] == 2

    play(story, m=0)


def test_the_last_worker_goes_while_requests_wait() -> None:
    """They wait for another for worker_wait_s from then on, and no longer."""

    async def story(gate: Gate, pool: Pool) -> None:
        place = await gate.admit(ticket())
        waiting = join(gate)
        await asyncio.sleep(12)
        pool.now["m"] = Capacity(0, ready=False)
        gate.kick()
        error = await refusal(waiting)
        assert isinstance(error, NoWorker)
        assert asyncio.get_running_loop().time() == pytest.approx(22)
        place.release()

    play(story)


def test_no_waiting_room() -> None:
    """With worker_wait_s 0 it is said at once."""

    async def story(gate: Gate, pool: Pool) -> None:
        assert isinstance(await refusal(join(gate)), NoWorker)
        assert asyncio.get_running_loop().time() == 0

    play(story, FlowRules(worker_wait_s=0), m=0)


def test_more_capacity_wakes_who_waits() -> None:
    """As many as fit."""

    async def story(gate: Gate, pool: Pool) -> None:
        places = [await gate.admit(ticket())]
        waiting = [join(gate) for _ in range(4)]
        await turns()
        pool.now["m"] = Capacity(3, ready=True)
        gate.kick()
        await turns()
        assert [task.done() for task in waiting] == [True, True, False, False]
        for task in waiting:
            (await task).release()
            places[0].release()

    play(story)


def test_a_full_model_does_not_block_another() -> None:
    """Nor does its queue."""

    async def story(gate: Gate, pool: Pool) -> None:
        first = await gate.admit(ticket(model="x"))
        waiting = join(gate, model="x")
        await turns()
        with await gate.admit(ticket(model="y")) as place:
            assert place.waited_s == 0
        first.release()
        (await waiting).release()

    play(story, x=1, y=1)


def test_the_bound_on_requests_held() -> None:
    """Over all models, waiting and out; a higher band still displaces one that waits."""

    async def story(gate: Gate, pool: Pool) -> None:
        out = await gate.admit(ticket(model="x"))
        waiting = join(gate, model="x")
        await turns()
        error = await refusal(join(gate, model="y"))
        assert isinstance(error, TooManyRequests)
        high = join(gate, "h", 1, model="y")
        await refusal(waiting)
        (await high).release()
        out.release()

    play(story, FlowRules(in_flight=2, slots_factor=1.0), x=1, y=5)


def test_a_client_that_leaves_while_it_waits() -> None:
    """Leaves the queue; the next is not held up."""

    async def story(gate: Gate, pool: Pool) -> None:
        place = await gate.admit(ticket())
        leaving, staying = join(gate), join(gate)
        await turns()
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert gate.held == 2
        place.release()
        (await staying).release()

    play(story)


def test_a_client_that_leaves_was_in_the_way() -> None:
    """Of two that wait, the first holds more than its share and has to wait for a slot; the second
    may have a place beyond the slots, and has it as soon as the first has left."""

    async def story(gate: Gate, pool: Pool) -> None:
        places = [await gate.admit(ticket("b", tokens=10_000))]
        places += [await gate.admit(ticket("a")) for _ in range(9)]
        first = join(gate, "a")
        await turns()
        second = join(gate, "b")
        await turns()
        assert not first.done()
        assert not second.done()
        first.cancel()
        await turns()
        assert second.done()
        for place in (*places, await second):
            place.release()

    play(story, FlowRules(reserve=0.0), m=10)


@pytest.mark.parametrize("release_first", [True, False])
def test_cancelled_in_the_turn_in_which_a_place_comes(release_first: bool) -> None:
    """The place goes to the next, whichever of the two came first."""

    async def story(gate: Gate, pool: Pool) -> None:
        place = await gate.admit(ticket())
        leaving, staying = join(gate), join(gate)
        await turns()
        if release_first:
            place.release()
            leaving.cancel()
        else:
            leaving.cancel()
            place.release()
        await asyncio.gather(leaving, return_exceptions=True)
        assert leaving.cancelled()
        (await staying).release()

    play(story)


def test_cancelled_in_the_turn_in_which_it_is_turned_away() -> None:
    """Nothing is left, and no complaint about an error that nobody fetched."""

    async def story(gate: Gate, pool: Pool) -> None:
        place = await gate.admit(ticket())
        low = join(gate, "b", -1)
        await turns()
        high = asyncio.create_task(gate.admit(ticket("c", 1)))
        await asyncio.sleep(0)
        low.cancel()
        await asyncio.gather(low, return_exceptions=True)
        assert low.cancelled()
        place.release()
        (await high).release()

    play(story, FlowRules(queue=1, slots_factor=1.0))


@pytest.mark.parametrize("seed", range(5))
def test_a_storm(seed: int) -> None:
    """Tenants, bands, deadlines, clients that leave at any moment, workers that come and go: never
    more out than fit when they went, never more held than may be, and in the end nothing is left
    and everybody has had an answer."""
    rules = FlowRules(queue=20, in_flight=40, queue_ttl_s=5.0, worker_wait_s=3.0)
    rng = random.Random(seed)
    ends: Counter[str] = Counter()

    async def one(gate: Gate) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(rng.uniform(0, 60))
        model = rng.choice("xy")
        mine = ticket(
            rng.choice("abc"),
            rng.choice([-1, 0, 0, 3]),
            model=model,
            tokens=rng.uniform(1, 500),
            deadline_s=loop.time() + rng.uniform(0, 8) if rng.random() < 0.3 else None,
        )
        try:
            with await gate.admit(mine) as place:
                snapshot = gate.snapshot()
                if place.waited_s == 0:
                    assert snapshot.out_by_model[model] <= snapshot.limit_by_model[model]
                assert gate.held <= rules.in_flight
                assert sum(snapshot.waiting_by_model.values()) <= rules.queue
                await asyncio.sleep(rng.expovariate(1))
                ends["served"] += 1
                place.release(rng.uniform(1, 500))
        except BatonError as error:
            ends[type(error).__name__] += 1
        except asyncio.CancelledError:
            ends["left"] += 1
            raise

    async def story(gate: Gate, pool: Pool) -> None:
        tasks = [asyncio.create_task(one(gate)) for _ in range(800)]
        for _ in range(140):
            await asyncio.sleep(0.5)
            for model in "xy":
                if rng.random() < 0.1:
                    slots = rng.choice([0, 0, 2, 4, 6])
                    pool.now[model] = Capacity(slots, ready=slots > 0)
            gate.kick()
            for task in rng.sample(tasks, 5):
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert gate.snapshot().waiting_by_band == {}
        assert gate.snapshot().out_by_model == {"x": 0, "y": 0}
        unstarted = sum(task.cancelled() for task in tasks) - ends["left"]
        assert sum(ends.values()) + unstarted == 800
        errors = {"TooManyRequests", "NoWorker", "DeadlineExceeded"}
        assert set(ends) <= errors | {"served", "left"}
        assert ends["served"] > 100
        assert ends.keys() & errors

    play(story, rules, x=4, y=4)


def test_closing() -> None:
    """Who waits is told at once, who comes is refused, who is out may end."""

    async def story(gate: Gate, pool: Pool) -> None:
        place = await gate.admit(ticket())
        waiting = join(gate)
        await turns()
        gate.close()
        assert isinstance(await refusal(waiting), NoWorker)
        assert isinstance(await refusal(join(gate)), NoWorker)
        place.release()

    play(story)


def test_places_beyond_the_slots() -> None:
    """A tenant alone may have them; beside another only who holds less than its share, and
    nothing that may be shed."""

    async def story(gate: Gate, pool: Pool) -> None:
        lone = [gate.try_admit(ticket("a")) for _ in range(16)]
        assert sum(place is not None for place in lone) == 15
        for place in lone[:7]:
            assert place is not None
            place.release()
        # Eight are out; b has been seen from here on.
        first = gate.try_admit(ticket("b"))
        assert first is not None
        second = gate.try_admit(ticket("a"))
        assert second is not None
        assert gate.snapshot().out_by_model == {"m": 10}
        assert gate.try_admit(ticket("a")) is None
        assert gate.try_admit(ticket("c", -1)) is None
        others = [gate.try_admit(ticket("b")) for _ in range(6)]
        assert sum(place is not None for place in others) == 4
        for held in (first, second, *others, *lone):
            if held is not None:
                held.release()

    play(story, FlowRules(reserve=0.0), m=10)


def test_a_share_of_the_slots() -> None:
    """Several routers on the same workers divide them."""

    async def main() -> None:
        gate = Gate(FlowRules(slots_factor=1.0), Pool(m=16), LoopClock(), share=0.25)
        places = [gate.try_admit(ticket()) for _ in range(5)]
        assert sum(place is not None for place in places) == 4

    run_virtual(main())


def test_kick_forgets_models_that_are_gone() -> None:
    """Once nothing of theirs is left."""

    async def story(gate: Gate, pool: Pool) -> None:
        place = await gate.admit(ticket())
        del pool.now["m"]
        gate.kick()
        assert gate.snapshot().out_by_model == {"m": 1}
        place.release()
        gate.kick()
        assert gate.snapshot().out_by_model == {}
        with pytest.raises(ModelNotFound):
            gate.try_admit(ticket())

    play(story)


def test_retry_after_follows_the_drain_rate() -> None:
    """Ten requests ahead at two a second: about five seconds."""

    async def story(gate: Gate, pool: Pool) -> None:
        for _ in range(20):
            with await gate.admit(ticket()):
                await asyncio.sleep(0.5)
            gate.kick()
        place = await gate.admit(ticket())
        waiting = [join(gate) for _ in range(10)]
        await turns()
        error = await refusal(join(gate))
        assert isinstance(error, TooManyRequests)
        assert error.retry_after_s == 6
        place.release()
        for task in waiting:
            (await task).release()

    play(story, FlowRules(queue=10, slots_factor=1.0))


@pytest.mark.parametrize(
    ("ahead", "rate", "expected"),
    [(0, 100.0, 1), (9, 2.0, 5), (1000, 1.0, 60), (5, 0.0, 30)],
)
def test_retry_after_is_bounded(ahead: int, rate: float, expected: float) -> None:
    """Between 1 and 60 seconds; without a measurement the time given."""
    assert retry_after_s(ahead, rate, 30.0) == expected


@pytest.mark.parametrize(
    ("slots", "expected"),
    [(0, (0, 0)), (1, (1, 1)), (4, (6, 4)), (8, (12, 7)), (16, (24, 14)), (256, (384, 230))],
)
def test_limits(slots: int, expected: tuple[int, int]) -> None:
    """Half as many again as there are slots; of few slots none is kept in reserve."""
    assert FlowRules().limits(slots) == expected


@pytest.mark.parametrize(
    "wrong",
    [
        {"queue": -1},
        {"in_flight": 0},
        {"slots_factor": 0.5},
        {"reserve": 0.9},
        {"queue_ttl_s": -1.0},
    ],
)
def test_rules_that_make_no_sense(wrong: dict[str, Any]) -> None:
    """Are refused when they are made."""
    with pytest.raises(ValueError, match="must"):
        FlowRules(**wrong)

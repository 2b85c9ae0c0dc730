"""Tenants, a gate and engine slots in virtual time: what one tenant's queue time is beside others.

The engine model is plain: a worker's slots, and behind them the engine's own queue in order of
arrival, which no router can reorder. A request holds its slot for as long as its answer takes.
Queue time is counted until the engine starts on a request, so that moving the queue from the
router into the engine gains nothing.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from baton.errors import TooManyRequests
from router.flow import Capacity, FlowRules, Gate, Ticket
from tests.fakes.virtual_loop import run_virtual

TOKEN_S = 0.02
"""Per answered token: a stream of 50 tokens a second."""

PREFILL_S = 0.0002
"""Per prompt token."""


class LoopClock:
    """The loop's own time."""

    def monotonic_s(self) -> float:
        return asyncio.get_running_loop().time()

    def wall_s(self) -> float:
        return self.monotonic_s()


class Engines:
    """Slots with a queue in order of arrival."""

    def __init__(self, slots: int) -> None:
        self.free = slots
        self.queue: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        if self.free:
            self.free -= 1
        else:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.queue.append(turn)
            await turn
        try:
            yield
        finally:
            if self.queue:
                self.queue.popleft().set_result(None)
            else:
                self.free += 1


@dataclass(slots=True)
class Tenant:
    """What one tenant sends.

    Attributes:
        per_s: Poisson arrivals per second.
        burst: requests at second ``burst_at_s`` in addition.
        prompt, answer: mean tokens; answers are spread as an exponential, prompts by half.
        measured: queue times of its requests, seconds.
        done, refused: how many.
    """

    name: str
    per_s: float
    prompt: int = 500
    answer: int = 100
    burst: int = 0
    burst_at_s: float = 0.0
    starts_s: float = 0.0
    weight: float = 1.0
    measured: list[float] = field(default_factory=list)
    done: int = 0
    refused: int = 0


def simulate(
    tenants: Sequence[Tenant],
    *,
    slots: int,
    seconds: float,
    rules: FlowRules,
    seed: int = 1,
) -> None:
    """Runs until all that was sent is answered; results are left in the tenants. A tenant's
    arrivals and lengths depend on the seed and its name alone, not on who else is there."""

    async def main() -> None:
        gate = Gate(rules, lambda model: Capacity(slots, ready=True), LoopClock())
        engines = Engines(slots)
        async with asyncio.TaskGroup() as group:
            for tenant in tenants:
                group.create_task(_send(tenant, gate, engines, seconds, seed, group.create_task))
        snapshot = gate.snapshot()
        assert gate.held == 0
        assert snapshot.out_by_model == {"m": 0}
        gate.close()

    run_virtual(main())


async def _send(
    tenant: Tenant,
    gate: Gate,
    engines: Engines,
    seconds: float,
    seed: int,
    spawn: Callable[..., object],
) -> None:
    rng = random.Random(f"{seed} {tenant.name}")
    loop = asyncio.get_running_loop()
    arrivals: list[float] = [tenant.burst_at_s] * tenant.burst
    at_s = tenant.starts_s
    while (at_s := at_s + rng.expovariate(tenant.per_s)) < seconds:
        arrivals.append(at_s)
    for arrival_s in sorted(arrivals):
        prompt = max(1, int(tenant.prompt * rng.uniform(0.5, 1.5)))
        answer = max(1, int(rng.expovariate(1 / tenant.answer)))
        await asyncio.sleep(arrival_s - loop.time())
        spawn(_request(tenant, gate, engines, prompt, answer))


async def _request(tenant: Tenant, gate: Gate, engines: Engines, prompt: int, answer: int) -> None:
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    # The router knows the prompt; of the answer it knows only a default.
    ticket = Ticket("m", tenant.name, tenant.weight, 0, prompt + 128)
    try:
        with await gate.admit(ticket) as place:
            async with engines.slot():
                tenant.measured.append(loop.time() - began_s)
                await asyncio.sleep(prompt * PREFILL_S + answer * TOKEN_S)
            place.release(prompt + answer)
            tenant.done += 1
    except TooManyRequests:
        tenant.refused += 1


def percentile(values: Sequence[float], part: float) -> float:
    """Nearest rank."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]

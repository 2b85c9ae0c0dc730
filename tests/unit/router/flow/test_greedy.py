"""Two tenants, one greedy: what the other's queue time is, against alone.

"Alone" has two honest meanings, and both are held to 1.5 times:

- alone on its fair share: half of the slots to itself, which is what two tenants of equal weight
  are owed. Holds for any load up to near its share, whatever the rules reserve.
- alone on the whole machine, where a modest tenant never queues. Its p99 stays under a floor of a
  twentieth of the mean service time as long as its requests fit into the slots in reserve.

The greedy tenant sends 1,000 requests at once, and from then on more than the machine can do.
"""

from __future__ import annotations

import pytest

from router.flow import FlowRules
from tests.unit.router.flow.greedy import PREFILL_S, TOKEN_S, Tenant, percentile, simulate

SERVICE_S = 500 * PREFILL_S + 100 * TOKEN_S
"""Mean seconds in a slot."""

SECONDS = 200.0
"""Of one run at 64 slots; fewer slots run longer, for about as many requests."""


def modest(load: float, slots: int) -> Tenant:
    """Asks for a part ``load`` of the slots."""
    return Tenant("modest", load * slots / SERVICE_S)


def greedy(slots: int, name: str = "greedy") -> Tenant:
    """A burst of 1,000, then a flood of 1.2 times what the machine can do."""
    return Tenant(name, 1.2 * slots / SERVICE_S, burst=1000, burst_at_s=30.0, starts_s=30.0)


def p99(
    tenants: list[Tenant], slots: int, rules: FlowRules, seed: int, seconds: float = SECONDS
) -> float:
    """Of the first tenant."""
    simulate(tenants, slots=slots, seconds=seconds, rules=rules, seed=seed)
    first = tenants[0]
    assert first.refused == 0
    assert first.done == len(first.measured) > 100
    return percentile(first.measured, 0.99)


@pytest.mark.parametrize(
    ("load", "seed", "reserve"), [(0.3, 1, 0.1), (0.35, 2, 0.1), (0.4, 3, 0.1), (0.4, 1, 0.0)]
)
def test_no_worse_than_on_its_share_of_the_machine(load: float, seed: int, reserve: float) -> None:
    """It has at least what half the slots would give it."""
    rules = FlowRules(reserve=reserve)
    slots = 16
    seconds = 5 * SECONDS
    alone_s = p99([modest(load, slots)], slots // 2, rules, seed, seconds)
    beside_s = p99([modest(load, slots), greedy(slots)], slots, rules, seed, seconds)
    assert alone_s > 0.5 * SERVICE_S, "this load must queue on its share, or nothing is compared"
    assert beside_s <= 1.5 * alone_s


@pytest.mark.parametrize(("slots", "load", "seed"), [(16, 0.1, 1), (16, 0.1, 2), (64, 0.2, 3)])
def test_a_modest_tenant_does_not_notice(slots: int, load: float, seed: int) -> None:
    """Within the slots in reserve it queues no more than with the whole machine to itself."""
    rules = FlowRules()
    seconds = SECONDS * 64 / slots
    alone_s = p99([modest(load, slots)], slots, rules, seed, seconds)
    beside_s = p99([modest(load, slots), greedy(slots)], slots, rules, seed, seconds)
    assert beside_s <= 1.5 * max(alone_s, SERVICE_S / 20)


def test_without_a_reserve_it_waits_for_the_next_slot() -> None:
    """A few times the mean time between two slots that come free; and nothing is left unused."""
    slots = 64
    flood = greedy(slots)
    beside_s = p99([modest(0.05, slots), flood], slots, FlowRules(reserve=0.0), 1)
    assert 0 < beside_s <= 7 * SERVICE_S / slots
    assert flood.done / (SECONDS - 30) > 0.93 * slots / SERVICE_S


def test_among_many_tenants_a_reserve_costs_nothing() -> None:
    """Ten that together ask for 0.8 of the slots, none of them greedy."""
    slots = 64
    waits: dict[float, float] = {}
    for reserve in (0.0, 0.1):
        tenants = [Tenant(f"t{number}", 0.08 * slots / SERVICE_S) for number in range(10)]
        simulate(tenants, slots=slots, seconds=SECONDS, rules=FlowRules(reserve=reserve), seed=1)
        waited = [wait_s for tenant in tenants for wait_s in tenant.measured]
        waits[reserve] = percentile(waited, 0.99)
    assert waits[0.1] <= 1.1 * waits[0.0]


def test_a_reserve_costs_no_more_than_itself() -> None:
    """The flood still gets nine tenths of what it would have without."""
    slots = 64
    flood = greedy(slots)
    p99([modest(0.05, slots), flood], slots, FlowRules(reserve=0.1), 1)
    assert flood.done / (SECONDS - 30) > 0.85 * slots / SERVICE_S


def test_two_greedy_ones_use_all_slots() -> None:
    """Where nobody is below its share nothing is kept free, and both get the same."""
    slots = 16
    one, two = greedy(slots, "one"), greedy(slots, "two")
    simulate([one, two], slots=slots, seconds=SECONDS, rules=FlowRules(), seed=1)
    assert (one.done + two.done) / (SECONDS - 30) > 0.95 * slots / SERVICE_S
    assert 0.9 < one.done / two.done < 1.1


def test_one_tenant_alone_has_everything() -> None:
    """No reserve, and the places beyond the slots too."""
    slots = 16
    only = greedy(slots)
    simulate([only], slots=slots, seconds=SECONDS, rules=FlowRules(), seed=1)
    assert only.done / (SECONDS - 30) > 0.95 * slots / SERVICE_S


def test_without_fairness_it_would_be_shut_out() -> None:
    """The same load under one name: the modest part waits with the flood or is refused."""
    slots = 16
    part = modest(0.05, slots)
    flood = greedy(slots, "modest")
    simulate([part, flood], slots=slots, seconds=SECONDS, rules=FlowRules(), seed=1)
    assert part.refused > 0 or percentile(part.measured, 0.99) > 5 * SERVICE_S


def test_a_tenant_that_nobody_expected_waits_once() -> None:
    """It comes when the flood holds every place: the first waits for its turn in the engine's own
    queue, the rest is as if it had been there."""
    slots = 64
    late = Tenant("late", 0.05 * slots / SERVICE_S, starts_s=60.0)
    simulate([late, greedy(slots)], slots=slots, seconds=SECONDS, rules=FlowRules(), seed=1)
    assert late.refused == 0
    assert late.measured[0] <= 1.5 * SERVICE_S
    assert percentile(late.measured[10:], 0.99) <= 1.5 * SERVICE_S / 20

"""What a canary is judged by: counts of both sides, at each router and over all of them."""

from __future__ import annotations

import msgspec
import pytest

from baton.types import RouterId, RouterRecord, Tally
from profiles import SloSpec
from profiles.switching import Ref, Switch
from router.switching.arms import Arms, Evidence
from tests.unit.router.serving_profiles import disaggregated, serving, standard
from tests.unit.router.switching.routers import Cluster, handing_over, serve

CANARY = handing_over(70, share=0.5, terms=", hold_s: 30, canary_s: 60")
NONE, LEVEL = SloSpec(), SloSpec(ttft_s=0.5)
A, B, C = RouterId("a"), RouterId("b"), RouterId("c")
SWITCH = Switch(number=3, old=Ref("x", "old"), new=Ref("y", "new"), by="operator", owner=A)


# --- at one router ---


class Side:
    """Both sides, and the counts of one router."""

    def __init__(self) -> None:
        self.arms = Arms()
        self.old, self.new = serving(standard()), serving(disaggregated())

    def note(self, times: int, *, every_s: float = 10.0, slo: SloSpec = NONE) -> None:
        """A request every ten seconds, from second 0."""
        for at in range(times):
            self.arms.note(self.old, slo, at * every_s)
            serve(self.old, good=1)


@pytest.mark.parametrize(
    ("times", "every_s", "before"), [(0, 10.0, 0), (4, 10.0, 4), (40, 0.5, 40), (100, 10.0, 30)]
)
def test_the_minutes_before(times: int, every_s: float, before: int) -> None:
    """What the active profile did in up to five minutes before a canary is kept apart."""
    side = Side()
    side.note(times, every_s=every_s)
    side.arms.begin(1, side.old, side.new)
    assert side.arms.before.requests == before
    assert side.arms.tallies() == {side.old.version: Tally(), side.new.version: Tally()}


def test_minutes_under_another_level_do_not_count() -> None:
    """Requests that were held against another service level say nothing of this one."""
    side = Side()
    side.note(10)
    side.note(2, slo=LEVEL)
    side.arms.begin(1, side.old, side.new)
    assert side.arms.before.requests == 2


def test_minutes_of_another_profile_do_not_count() -> None:
    """Nor do those from before the active profile was active, or of another one."""
    side = Side()
    side.note(10)
    side.old, other = serving(disaggregated(7, name="next")), side.old
    side.note(3)
    side.arms.begin(1, side.old, side.new)
    assert side.arms.before.requests == 3
    side.arms.begin(2, other, side.new)
    assert side.arms.before == Tally()


def test_only_what_a_canary_saw() -> None:
    """Counts from before it, of either side, are no part of it; nor of the next one."""
    side = Side()
    serve(side.old, good=5, bad=5)
    serve(side.new, good=3, bad=1)
    side.arms.begin(1, side.old, side.new)
    serve(side.old, good=2)
    serve(side.new, bad=1)
    told = side.arms.tallies()
    assert told == {side.old.version: Tally(2, 0), side.new.version: Tally(1, 1)}
    side.arms.begin(2, side.old, side.new)
    assert set(side.arms.tallies().values()) == {Tally()}


# --- over all ---


def told(router: RouterId, requests: int, errors: int = 0, *, switch: int = 3) -> RouterRecord:
    """A router's record about the new side."""
    tallies = {"new": Tally(requests, errors)}
    return RouterRecord(router, switch=switch, tallies=tallies, before=Tally(requests))


def test_who_is_gone_has_told() -> None:
    """The last that each router said counts, also of one that says nothing any more; of routers
    that are about another switch nothing does."""
    evidence, arms = Evidence(), Arms()
    evidence.hear(SWITCH, arms, A, [told(B, 4, 4), told(C, 9, switch=2)])
    evidence.hear(SWITCH, arms, A, [told(B, 5, 5)])
    evidence.hear(SWITCH, arms, A, [told(C, 1)])
    assert evidence.tallies() == {"new": Tally(6, 5)}
    assert evidence.before() == Tally(6)
    evidence.hear(msgspec.structs.replace(SWITCH, number=4), arms, A, [told(C, 1)])
    assert evidence.tallies() == {}


def test_a_new_owner_takes_the_evidence_over() -> None:
    """What a router told the old owner is known to the new one, until it tells something newer."""
    first, evidence = Evidence(), Evidence()
    first.hear(SWITCH, Arms(), A, [told(B, 5, 3), told(C, 4)])
    handed = msgspec.structs.replace(SWITCH, told=first.told, told_before=first.told_before)
    for requests in (4, 7):
        evidence.hear(handed, Arms(), C, [told(C, requests, 1)])
        assert evidence.tallies() == {"new": Tally(5 + requests, 4)}
        assert evidence.before() == Tally(5 + requests)


def test_an_owner_that_has_it_again() -> None:
    """It lost the switch to another one for a while: what was told to that one counts too."""
    evidence = Evidence()
    evidence.hear(SWITCH, Arms(), A, [told(B, 5, 3)])
    meanwhile = {"b": {"new": Tally(6, 3)}, "c": {"new": Tally(2, 2)}}
    evidence.hear(msgspec.structs.replace(SWITCH, told=meanwhile), Arms(), A, [])
    assert evidence.tallies() == {"new": Tally(8, 5)}


@pytest.mark.parametrize(("good", "bad"), [(10, 0), (1, 1)])
async def test_evidence_lasts_while_others_serve_on(cluster: Cluster, good: int, bad: int) -> None:
    """What routers see between the old owner's last sum and the new one's first hides nothing of
    what those that are gone had told."""
    a, b, c = await cluster.started(3)
    await a.switch(CANARY)
    await cluster.go(1, a, b, c)
    serve(c.candidate, good=4, bad=1)
    await cluster.go(1, a, b, c)
    await c.leave()
    await cluster.go(10, a, b)
    await a.leave()
    serve(b.candidate, good=good, bad=bad)
    await cluster.go(10, b)
    assert b.agreed.switch is not None
    assert b.agreed.switch.tallies[CANARY.version] == Tally(5 + good + bad, 1 + bad)


@pytest.mark.parametrize("owner_dies", [False, True], ids=["owner stays", "owner dies"])
async def test_what_a_dead_router_saw(cluster: Cluster, owner_dies: bool) -> None:
    """Its errors under the new profile, which may have been its end, count at the canary's."""
    a, b, c = await cluster.started(3)
    await a.switch(CANARY)
    await cluster.go(1, a, b, c)
    serve(c.candidate, good=4, bad=2)
    await cluster.go(1, a, b, c)
    await c.leave()
    await cluster.go(10, a, b)
    left = [a, b]
    if owner_dies:
        await left.pop(0).leave()
        await cluster.go(10, b)
    assert b.agreed.switch is not None
    assert b.agreed.switch.owner == left[0].state.router_id
    seen = b.agreed.switch.tallies[CANARY.version]
    assert (seen.requests, seen.errors) == (6, 2)
    serve(left[0].candidate, bad=6)
    await cluster.go(1, *left)
    assert b.ends == [(1, "y70", "rolled_back")]
    assert "8 of 12 requests under y70" in b.agreed.history[-1].reason

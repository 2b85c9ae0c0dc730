"""What several routers agree on: who proposes, who moves a switch on, how its end is known."""

from __future__ import annotations

import asyncio
import logging

import msgspec
import pytest

from baton.errors import InvalidRequest, ProfileError
from baton.store import STATE
from baton.types import WorkerId
from profiles import ServingProfile
from profiles.sources import Bundle
from profiles.switching import Phase, SwitchRefused, decode, encode
from tests.unit.router.switching.routers import MISFIT, PAIR, Cluster, handing_over, settle

Y, Z = handing_over(50), handing_over(60)
CANARY = handing_over(70, share=0.5, terms=", hold_s: 30, canary_s: 60")
LATER = handing_over(80, share=0.5)


# --- sources ---


@pytest.mark.parametrize(
    ("wanted", "ends"),
    [(Y, [(1, "y50", "committed")]), (MISFIT, [(1, "misfit", "refused")])],
    ids=["good", "bad"],
)
async def test_sources_at_odds(
    cluster: Cluster, wanted: ServingProfile, ends: list[tuple[int, str, str]]
) -> None:
    """The first router's counts; the other's old text takes nothing back, and nothing is tried
    over and over."""
    a, b = await cluster.started(2, sources=True)
    a.source.wants(wanted)
    await settle()
    await cluster.go(20, a, b)
    assert a.ends == b.ends == ends
    assert (a.phase, b.phase) == (None, None)


async def test_who_follows_proposes_nothing(cluster: Cluster) -> None:
    """What only the other router's source wants waits until the first one's wants it too, or the
    first router is gone."""
    a, b = await cluster.started(2, sources=True)
    b.source.wants(Y)
    await settle()
    await cluster.go(5, a, b)
    assert a.ends == []
    await a.leave()
    await cluster.go(6, b)
    assert b.ends == [(1, "y50", "committed")]


async def test_a_proposal_is_tried_once(cluster: Cluster) -> None:
    """One that was refused, or rolled back, comes again when its text is another one."""
    a, b = await cluster.started(2, sources=True)
    a.source.wants(CANARY)
    await settle()
    await cluster.go(1, b, a)
    await b.conductor.roll_back()
    await cluster.go(20, a, b)
    assert a.ends == [(1, "y70", "rolled_back")]
    a.source.wants(handing_over(70, share=0.4))
    await settle()
    assert a.phase is not None


async def test_what_was_tried_is_wanted_again(cluster: Cluster) -> None:
    """After another profile was wanted in between, also where another router switched to that."""
    (a,) = await cluster.started(1, sources=True)
    for wanted, name in ((Y, "y50"), (Z, "y60"), (Y, "y50")):
        a.source.wants(wanted)
        await settle()
        await cluster.go(5, a)
        assert a.active == name


async def test_an_operator_overrules_the_source(cluster: Cluster) -> None:
    """A switch away from what the source wants stays, also where the router had started with that
    profile by chance and nothing was ever proposed."""
    a, b = await cluster.started(2, sources=True)
    await b.switch(Y)
    await cluster.go(20, a, b)
    assert a.active == b.active == "y50"
    assert len(a.ends) == 1


async def test_a_source_for_the_start_only(cluster: Cluster) -> None:
    """Where nothing is agreed on routers begin with what it wants. Whatever it wants later is no
    proposal, a rollback stays, and who comes later takes what is agreed on."""
    await cluster.put(*PAIR)
    a, b = cluster.make(2, at_start=Y)
    for router in (a, b):
        await router.join()
    await cluster.go(2, a, b)
    assert (a.active, b.active, a.ends) == ("y50", "y50", [])
    await a.switch(Z)
    await cluster.go(1, a, b)
    for router in (a, b):
        router.source.wants(Z)
    await a.conductor.roll_back()
    await cluster.go(20, a, b)
    assert (a.active, b.active) == ("y50", "y50")
    assert [name for _, name, _ in a.ends] == ["y60", "y50"]
    (late,) = cluster.make(1, at_start=Z)
    await late.join()
    await cluster.go(2, a, b, late)
    assert (late.active, len(late.ends)) == ("y50", 2)
    assert late.conductor.proposals.known()["y60"][0] == "started with"
    assert a.source.told == [], "nobody waits there for an answer"


@pytest.mark.parametrize("broken", [False, True])
async def test_a_source_for_the_start_that_says_nothing(cluster: Cluster, broken: bool) -> None:
    """Or nothing good: routers begin with the profile that they were given."""
    (a,) = cluster.make(1, at_start=Y)
    a.source.says(Bundle(texts={"y50": "spec: 1"}, active="y50") if broken else Bundle())
    await a.join()
    await cluster.go(2, a)
    assert (a.active, a.conductor.proposals.problems) == ("x", ())


# --- operators ---


async def test_rolling_back_twice(cluster: Cluster) -> None:
    """With a number, the second one is refused, and nobody goes a profile further back."""
    a, b = await cluster.started(2)
    await a.switch(Y)
    await cluster.go(1, a, b)
    number = await a.switch(CANARY)
    await cluster.go(1, a, b)
    await a.conductor.roll_back(number)
    for router in (a, b):
        with pytest.raises(SwitchRefused, match="is over"):
            await router.conductor.roll_back(number)
    await cluster.go(2, a, b)
    assert a.active == b.active == "y50"


@pytest.mark.parametrize("number", [2, None])
async def test_rolling_back_at_two_routers_at_once(cluster: Cluster, number: int | None) -> None:
    """Both mean the switch that is on, whether they say so or not; one of them is refused."""
    a, b = await cluster.started(2)
    await a.switch(Y)
    await cluster.go(1, a, b)
    await a.switch(CANARY)
    await cluster.go(1, a, b)
    cluster.store.slow = True
    results = await asyncio.gather(
        *(each.conductor.roll_back(number) for each in (a, b)), return_exceptions=True
    )
    assert sorted(type(each).__name__ for each in results) == ["NoneType", "SwitchRefused"]
    await cluster.go(2, a, b)
    assert a.active == b.active == "y50"
    assert a.ends[1:] == [(2, "y70", "rolled_back")]


async def test_a_switch_ends_before_it_is_rolled_back(cluster: Cluster) -> None:
    """Between an operator's call and its write it is committed: then nothing is rolled back."""
    a, b = await cluster.started(2)
    await a.switch(CANARY)
    await cluster.go(1, a, b)
    cluster.store.meanwhile = a.conductor.skip
    with pytest.raises(SwitchRefused, match="switch 1 is over"):
        await b.conductor.roll_back()
    await cluster.go(2, a, b)
    assert b.active == "y70"
    assert b.ends == [(1, "y70", "committed")]


async def test_a_phase_ends_before_it_is_skipped(cluster: Cluster) -> None:
    """Between the call and its write the canary has begun: it is not the phase that was meant."""
    slow = handing_over(70, share=0.5, terms=", prepare_s: 30")
    a, b = await cluster.started(2)
    await cluster.store.remove_worker(WorkerId("p"))
    await a.switch(slow)
    await cluster.go(1, a, b)
    assert b.phase == "prepare"
    cluster.store.meanwhile = a.conductor.skip
    with pytest.raises(SwitchRefused, match="gone on meanwhile"):
        await b.conductor.skip()
    assert b.phase == "canary"


async def test_a_phase_has_ended_elsewhere(cluster: Cluster) -> None:
    """An operator who saw at one router that the switch prepares does not commit its canary; nor
    one who says that preparing is meant, wherever."""
    a, b = await cluster.started(2)
    await a.switch(CANARY)
    await b.state.pool.refresh()
    await settle()
    assert (a.phase, b.phase) == (Phase.CANARY, Phase.PREPARE)
    with pytest.raises(SwitchRefused, match="gone on meanwhile"):
        await b.conductor.skip()
    with pytest.raises(SwitchRefused, match="gone on meanwhile"):
        await a.conductor.skip(Phase.PREPARE)
    assert b.ends == []
    await b.conductor.skip(Phase.CANARY)
    assert b.ends == [(1, "y70", "committed")]


# --- ends ---


async def test_each_end_is_told_once(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    """In the log and the metrics of each router, and at the source; also of a switch during which
    another one was refused, which has the higher number and is there first."""
    caplog.set_level(logging.INFO, logger="baton.router.switch")
    a, b = await cluster.started(2, sources=True)
    await a.switch(CANARY)
    await cluster.go(1, a, b)
    with pytest.raises(InvalidRequest):
        await b.switch(MISFIT)
    await cluster.go(1, a, b)
    await a.conductor.roll_back()
    await cluster.go(2, a, b)
    await b.switch(Y)
    await cluster.go(2, a, b)
    assert a.ends == [
        (1, "y70", "rolled_back"),
        (2, "misfit", "refused"),
        (3, "y50", "committed"),
    ]
    for router in (a, b):
        assert [router.counted(outcome) for outcome in (Phase.ROLLED_BACK, Phase.REFUSED)] == [1, 1]
        assert router.counted(Phase.COMMITTED) == 1
    said = [message for message in caplog.messages if " from x to " in message]
    assert [sum(f"switch {number} " in each for each in said) for number in (1, 2, 3)] == [2, 2, 2]
    assert a.source.events == [
        "Switch from x to misfit: refused",
        "Switch from x to y70: rolled_back",
        "Switch from x to y50: committed",
    ]
    assert b.source.events == []


async def test_who_joins_counts_nothing_old(cluster: Cluster) -> None:
    """Its counters are of its own life; what was active when it came it serves."""
    (a,) = await cluster.started(1)
    await a.switch(Y)
    await cluster.go(1, a)
    (late,) = cluster.make(1)
    await late.join()
    await cluster.go(1, a, late)
    assert late.active == "y50"
    assert late.counted(Phase.COMMITTED) == 0
    assert late.source.events == []


# --- owners ---


async def test_one_takes_over(cluster: Cluster) -> None:
    """Of two that find the owner silent at the same moment, one does; the other does not take it
    from that one, and the phase's time begins anew."""
    a, b, c = await cluster.started(3)
    await a.switch(CANARY)
    await cluster.go(1, a, b, c)
    await a.leave()
    await cluster.go(3, b, c)
    assert b.agreed.switch is not None
    assert b.agreed.switch.owner == a.state.router_id
    cluster.clock.advance(0.5)
    await cluster.look(b, c)
    await cluster.go(10, b, c)
    assert c.agreed.switch is not None
    assert c.agreed.switch.owner == b.state.router_id
    assert c.agreed.switch.phase_number == 2


# --- other releases ---


async def test_a_profile_that_cannot_be_read_here(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """One of a newer release, say: the active one goes on, nothing of it piles up, no share of the
    requests goes to what was tried before, and one line says so."""
    a, b = await cluster.started(2)
    await a.switch(LATER)
    await cluster.go(1, a, b)
    assert b.candidate.name == LATER.name
    await a.conductor.roll_back()
    await a.switch(Y)
    await cluster.go(1, a)
    await a.switch(CANARY)
    await cluster.go(1, a)
    document = await cluster.store.document(STATE)
    state = decode(document.value)
    texts = {**state.profiles, CANARY.version: '{"of": "tomorrow"}'}
    broken = encode(msgspec.structs.replace(state, profiles=texts))
    assert await cluster.store.swap(STATE, document.revision, broken)
    await cluster.go(1, a, b)
    b.servings.sweep()
    assert (b.phase, b.active, b.servings.candidate) == (Phase.CANARY, Y.name, None)
    assert {b.servings.pick(f"r{number}") for number in range(50)} == {b.servings.current}
    await cluster.go(20, a, b)
    assert len(b.state.counts._followers) == 1
    assert len([m for m in caplog.messages if "cannot be served here" in m]) == 1
    await b.conductor.roll_back()
    assert b.ends[-1][2] == "rolled_back"


async def test_times_of_what_cannot_be_read(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A router that cannot serve the candidate ends the switch for an operator all the same, and
    says how long its phase lasted, or nothing."""
    a, b = await cluster.started(2)
    await a.switch(CANARY)

    def unread(state: object, version: str) -> ServingProfile:
        raise ProfileError([f"{version} is of tomorrow"])

    monkeypatch.setattr("router.switching.conductor.profile_of", unread)
    await cluster.go(2, a, b)
    await b.conductor.roll_back()
    assert b.agreed.history[-1].took_s.get("canary", 0.0) < 60

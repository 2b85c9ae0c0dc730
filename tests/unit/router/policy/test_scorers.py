"""How well workers suit: a table for each scorer, and what their sum makes of them."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.types import Adapter, Limits, Load, WorkerId
from router.policy import (
    SCORERS,
    Counts,
    PrefixMatch,
    Snapshot,
    Traffic,
    WorkerView,
    compile_fleet,
    plan,
)
from router.policy.scorers import adapter, kv_load, load, pending, prefix, session
from tests.fakes.worker_records import worker_record
from tests.unit.router.policy.cases import ask, decide, query, rules, short, view


@pytest.mark.parametrize(
    ("running", "waiting", "legs", "expected"),
    [
        (0, 0, 0, 1.0),
        (8, 0, 0, 0.5),
        (4, 4, 0, 0.5),
        (0, 0, 8, 0.5),
        (1, 0, 8, 0.5),
        (8, 8, 0, 1 / 3),
        (24, 0, 2, 0.25),
    ],
)
def test_load(running: int, waiting: int, legs: int, expected: float) -> None:
    """Against eight slots, by the larger of its figures and ours; still falls when full."""
    record = worker_record(load=Load(running, waiting))
    assert load(record, legs, 0) == pytest.approx(expected)


def test_pending() -> None:
    """One long prompt counts for more than many short ones."""
    record = worker_record()
    assert pending(record, 0, 0) == 1.0
    assert pending(record, 1, 32_768) < pending(record, 10, 1000) < 1.0


@pytest.mark.parametrize(("usage", "expected"), [(0.0, 1.0), (0.25, 0.75), (1.0, 0.0), (1.3, 0.0)])
def test_kv_load(usage: float, expected: float) -> None:
    """The free share, whatever an engine reports."""
    assert kv_load(worker_record(load=Load(kv_usage=usage))) == expected


def test_adapter() -> None:
    """Fewer adapters, likelier on the device."""
    some = tuple(Adapter(f"a{n}", "sha256:0") for n in range(3))
    assert [adapter(worker_record(adapters=some[:n])) for n in (0, 1, 3)] == [1.0, 0.5, 0.25]


def test_prefix() -> None:
    """The share of the prompt that is there; each worker once, with its deepest level."""
    snapshot = Snapshot.of([view("d1"), view("d2"), view("d3"), view("d4")], rules())
    slot = snapshot.fleet.slot_of
    bits = {name: 1 << slot[WorkerId(name)] for name in ("d1", "d2", "d3")}
    match = PrefixMatch(
        ((bits["d1"] | bits["d2"] | bits["d3"], 2), (bits["d2"], 10), (0, 11)), 20, 32
    )
    asked = query(ask(640), Snapshot(snapshot.traffic, prefix=match))
    scores = list(prefix(asked))
    assert len(scores) == 3
    assert dict(scores) == {
        slot[WorkerId("d1")]: 0.1,
        slot[WorkerId("d2")]: 0.5,
        slot[WorkerId("d3")]: 0.1,
    }
    assert (
        dict(prefix(query(ask(100), Snapshot(snapshot.traffic, prefix=match))))[
            slot[WorkerId("d2")]
        ]
        == 1.0
    )
    assert not list(prefix(query(ask(640), snapshot)))


def sessions(workers: int, names: range) -> list[str]:
    snapshot = Snapshot.of([view(f"d{n}") for n in range(workers)], rules())
    owners: list[str] = []
    for name in names:
        asked = query(ask(session=f"s{name}"), snapshot)
        ((slot, score),) = session(asked, range(workers))
        assert score == 1.0
        owners.append(asked.fleet.records[slot].id)
    return owners


def test_session() -> None:
    """One owner each, evenly; a worker that joins takes its share and moves nobody else's."""
    before, after = sessions(7, range(2000)), sessions(8, range(2000))
    counts = Counter(before)
    assert len(counts) == 7
    assert min(counts.values()) > 200
    assert max(counts.values()) < 380
    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) == {"d7"}
    assert 170 < len(moved) < 340
    assert not list(session(query(ask(), Snapshot.of([view("d")], rules())), [0]))


@given(
    st.integers(0, 10**6),
    st.integers(0, 10**6),
    st.floats(0, 1),
    st.integers(0, 10**6),
    st.integers(0, 10**9),
    st.integers(0, 4096),
)
def test_scores_are_shares(
    running: int, waiting: int, usage: float, legs: int, tokens: int, slots: int
) -> None:
    """Every scorer stays within 0 and 1, whatever records say."""
    record = worker_record(load=Load(running, waiting, usage), limits=Limits(100, slots))
    for scorer in SCORERS.values():
        if scorer.standing is not None:
            assert 0 <= scorer.standing(record) <= 1
        if scorer.live is not None:
            assert 0 <= scorer.live(record, legs, tokens) <= 1


# --- weights ------------------------------------------------------------------------------------


def test_weights_decide() -> None:
    """The same two workers, by what the profile values."""
    idle = view("d1", load=Load(0, 0, 0.9))
    empty = view("d2", load=Load(8, 0, 0.0))
    assert decide(ask(5), idle, empty, scorers={"load": 1})[0] == "d1"
    assert decide(ask(5), idle, empty, scorers={"kv_load": 1})[0] == "d2"
    assert decide(ask(5), idle, empty, scorers={"kv_load": 1, "load": 9})[0] == "d1"
    assert decide(ask(5), idle, empty, scorers={"kv_load": 1, "load": 0})[0] == "d2"


def test_no_scorers_at_all() -> None:
    """Then lots decide."""
    snapshot = Snapshot.of([view("d1"), view("d2", in_flight=9)], rules(scorers={}))
    rng = random.Random(3)
    assert {short(plan(ask(5), snapshot, rng))[0] for _ in range(50)} == {"d1", "d2"}


def test_a_session_stays() -> None:
    """While workers are about equally loaded; not on one that is full."""
    views = [view(f"d{n}") for n in range(5)]
    request = ask(5, session="s")
    owner = decide(request, *views)[0]
    assert {decide(request, *views, seed=seed)[0] for seed in range(10)} == {owner}
    full: list[WorkerView] = [
        view(v.record.id, in_flight=40 if v.record.id == owner else 0) for v in views
    ]
    assert decide(request, *full)[0] != owner


def test_a_cached_prefix_attracts() -> None:
    """Up to the load that outweighs it."""
    base = Snapshot.of([view("d1"), view("d2")], rules())
    match = PrefixMatch(((1 << base.fleet.slot_of[WorkerId("d2")], 2),), 2, 32)
    snapshot = Snapshot(base.traffic, prefix=match)
    assert short(plan(ask(64), snapshot, random.Random(1)))[0] == "d2"
    for _ in range(200):
        base.traffic.counts.leg(WorkerId("d2"), 1)
    base.traffic.counts.prefill(WorkerId("d2"), 100_000)
    assert short(plan(ask(64), snapshot, random.Random(1)))[0] == "d1"


# --- traffic ------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.sampled_from(["d0", "d1", "p0", "gone"]), st.sampled_from([-3, -1, 1, 5])),
        max_size=40,
    )
)
def test_traffic_keeps_its_sums(changes: list[tuple[str, int]]) -> None:
    """However legs come and go, the sums are those of a fresh start with the same counts."""
    fleet = compile_fleet(
        [view(name).record for name in ("d0", "d1", "p0")], rules(max_prefill_queue=1)
    )
    moving = Snapshot.of([], rules()).traffic
    moving.refresh(fleet)
    counts = moving.counts
    for worker, change in changes:
        counts.leg(WorkerId(worker), change)
        counts.prefill(WorkerId(worker), change * 100)
    fresh = Traffic(fleet, Counts(counts.legs, counts.prefilling))
    moving.settle()
    fresh.settle()
    assert moving.totals == fresh.totals
    assert moving.full_queues == fresh.full_queues
    assert all(count > 0 for count in (counts.legs | counts.prefilling).values())

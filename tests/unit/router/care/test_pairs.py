"""The pair matrix: what is refused on paper, what dummy handoffs show, and what becomes of it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from baton.types import EngineId, Role, WorkerId, WorkerState
from router.care.pair import PairRow, PairState
from router.care.pair_check import static_refusal
from router.care.pairs import Pairs
from router.care.rules import CareRules
from router.policy import PairView
from tests.fakes.virtual_loop import run_virtual
from tests.fakes.waiting import until
from tests.fakes.worker_records import worker_record
from tests.unit.router.care.workers import UNREACHABLE, FakeCluster, LoopClock

P, D = WorkerId("p"), WorkerId("d")
KEY = (P, D)

Story = Callable[[FakeCluster, Pairs], Awaitable[None]]


def live(story: Story, rules: CareRules | None = None, **settings: Any) -> None:
    async def main() -> None:
        cluster = FakeCluster()
        pairs = Pairs(cluster, rules or CareRules(), LoopClock(), random.Random(1), **settings)
        pairs.start()
        try:
            await story(cluster, pairs)
        finally:
            await pairs.close()
        assert cluster.in_flight == 0

    run_virtual(main())


def row(pairs: Pairs) -> PairRow:
    (only,) = pairs.table()
    return only


def is_in(pairs: Pairs, state: PairState) -> Callable[[], bool]:
    return lambda: [each.state for each in pairs.table()] == [state]


# --- on paper ---


def geometry(**changes: Any) -> Any:
    return msgspec.structs.replace(worker_record().geometry, **changes)


@pytest.mark.parametrize(
    ("prefill", "decode", "rules", "why"),
    [
        ({}, {}, {}, None),
        ({"model_digest": "sha256:01"}, {}, {}, "weights: sha256:01 against sha256:00"),
        ({"model_digest": ""}, {"model_digest": ""}, {}, "weights: unknown against unknown"),
        ({}, {"geometry": geometry(block_size=64)}, {}, "block size (tokens): 32 against 64"),
        ({}, {"geometry": geometry(dtype="fp8_e4m3")}, {}, "KV dtype: float32 against fp8_e4m3"),
        ({}, {"geometry": geometry(tensor_parallel=2)}, {}, None),
        (
            {"engine_version": "0.32.0"},
            {"engine_version": "0.31.0"},
            {},
            "engine version: 0.32.0 against 0.31.0",
        ),
        ({"engine_version": "0.32.0"}, {}, {}, None),
        ({"transport": "tcp"}, {"transport": "tcp"}, {}, None),
        ({"transport": "rdma"}, {"transport": "rdma"}, {"require_rdma": True}, None),
        (
            {"transport": "rdma"},
            {"transport": "tcp"},
            {"require_rdma": True},
            "the profile asks for rdma, and worker d transfers over tcp",
        ),
        (
            {},
            {"transport": "rdma"},
            {"require_rdma": True},
            "the profile asks for rdma, and worker p transfers over whatever it finds",
        ),
    ],
)
def test_on_paper(prefill: Any, decode: Any, rules: Any, why: str | None) -> None:
    """Everything that would give wrong text, and TCP where RDMA was asked for."""
    found = static_refusal(
        worker_record("p", role=Role.PREFILL, **prefill),
        worker_record("d", **decode),
        CareRules(**rules),
    )
    assert found == why


def test_a_refused_pair_is_not_used_nor_tried() -> None:
    """Its reason is there for policies and people."""

    async def story(cluster: FakeCluster, pairs: Pairs) -> None:
        prefill = cluster.add("p", Role.PREFILL, model_digest="sha256:01")
        decode = cluster.add("d", Role.DECODE)
        pairs.update(cluster.records)
        await asyncio.sleep(60)
        assert prefill.asked == decode.asked == []
        view = pairs.views()[KEY]
        assert not view.usable
        assert view.why == "refused: weights: sha256:01 against sha256:00"
        assert pairs.use(prefill.record, decode.record) == view

    live(story)


# --- dummy handoffs ---


def test_a_pair_is_warmed_and_measured() -> None:
    """Two handoffs of whole blocks that nobody has cached; the first shows the set-up, the second
    the bandwidth, by the engine's own figures."""

    async def story(cluster: FakeCluster, pairs: Pairs) -> None:
        prefill, decode = cluster.pair()
        decode.bytes_per_s = 1e6
        pairs.update(cluster.records)
        assert pairs.views()[KEY].usable
        assert not pairs.handshaken(P, D)
        await until(is_in(pairs, PairState.READY), timeout_s=20.0)
        found = row(pairs)
        assert found.exact
        assert found.bandwidth_bytes_per_s == pytest.approx(1e6)
        assert found.setup_s == pytest.approx(0.5)
        assert pairs.views()[KEY].bandwidth_bytes_per_s == found.bandwidth_bytes_per_s
        assert pairs.handshaken(P, D)
        assert len(decode.pulled) == 2
        assert prefill.offers == {}
        salts = [body["cache_salt"] for body in prefill.generations]
        assert len(set(salts)) == 2
        for sent, pulled in zip(prefill.generations, decode.generations, strict=True):
            assert sent["prompt"] == pulled["prompt"]
            assert len(sent["prompt"]) == 1024
            assert sent["max_tokens"] == pulled["max_tokens"] == 1
        # Long idle, the engines have forgotten each other.
        await asyncio.sleep(3600)
        assert not pairs.handshaken(P, D)

    live(story)


def test_prompts_fit_short_models() -> None:
    """The dummy is as long as both workers take, in whole blocks where that is possible."""

    async def story(cluster: FakeCluster, pairs: Pairs) -> None:
        limits = worker_record().limits
        prefill = cluster.add("p", Role.PREFILL)
        cluster.add("d", Role.DECODE, limits=msgspec.structs.replace(limits, max_model_len=100))
        pairs.update(cluster.records)
        await until(is_in(pairs, PairState.READY), timeout_s=20.0)
        assert {len(body["prompt"]) for body in prefill.generations} == {96}

    live(story)


def test_figures_mixed_with_other_pulls_are_not_taken_for_the_pair_s() -> None:
    """Then the leg's time gives a lower bound, by which no pair is called slow."""

    async def story(cluster: FakeCluster, pairs: Pairs) -> None:
        _, decode = cluster.pair()
        decode.others = 3
        pairs.update(cluster.records)
        await until(is_in(pairs, PairState.READY), timeout_s=20.0)
        assert not row(pairs).exact
        assert 0 < (row(pairs).bandwidth_bytes_per_s or 0) < 1e9

    live(story, CareRules(floor_bytes_per_s=1e12))


def test_a_slow_pair_is_flagged_and_measured_again() -> None:
    """Below the floor it is not used, also while it is measured again; above it it is."""

    async def story(cluster: FakeCluster, pairs: Pairs) -> None:
        _, decode = cluster.pair()
        decode.bytes_per_s = 1e6
        pairs.update(cluster.records)
        await until(is_in(pairs, PairState.SLOW), timeout_s=20.0)
        assert pairs.views()[KEY].why == "slow: 1e+06 bytes/s, the floor is 1e+08"
        decode.bytes_per_s = 1e9
        await until(is_in(pairs, PairState.CHECKING), timeout_s=70.0)
        assert not pairs.views()[KEY].usable
        await until(is_in(pairs, PairState.READY), timeout_s=20.0)
        assert pairs.views()[KEY].usable

    live(story, CareRules(floor_bytes_per_s=1e8))


def test_a_failed_check_is_tried_again() -> None:
    """After growing pauses, for as long as the pair is there; not used meanwhile."""

    async def story(cluster: FakeCluster, pairs: Pairs) -> None:
        prefill, _ = cluster.pair()
        prefill.fault = UNREACHABLE
        pairs.update(cluster.records)
        await until(is_in(pairs, PairState.FAILED), timeout_s=5.0)
        assert pairs.views()[KEY].why == f"failed: {UNREACHABLE.message}"
        await asyncio.sleep(300)
        assert 8 <= len(prefill.asked) <= 12
        prefill.fault = None
        await until(is_in(pairs, PairState.READY), timeout_s=65.0)

    live(story)


def test_a_pair_that_hangs() -> None:
    """The check has a deadline."""

    async def story(cluster: FakeCluster, pairs: Pairs) -> None:
        _, decode = cluster.pair()
        decode.hangs = True
        pairs.update(cluster.records)
        await until(is_in(pairs, PairState.FAILED), timeout_s=31.0)

    live(story)


def test_a_corrupt_pair_is_quarantined_at_join() -> None:
    """Decode begins otherwise than prefill itself, in each dummy handoff: doubtful KV."""

    async def story(cluster: FakeCluster, pairs: Pairs) -> None:
        _, decode = cluster.pair()
        decode.spoil = -0.19
        pairs.update(cluster.records)
        await until(is_in(pairs, PairState.QUARANTINED), timeout_s=20.0)
        assert "0.19" in row(pairs).reason
        assert not pairs.views()[KEY].usable
        assert pairs.quarantines == 1

    live(story)


@pytest.mark.parametrize("spoiled", [1, 2])
def test_one_odd_beginning_is_no_doubt(spoiled: int) -> None:
    """A corrupt pair shows in every dummy handoff; of two, only both count."""

    async def story(cluster: FakeCluster, pairs: Pairs) -> None:
        _, decode = cluster.pair()
        decode.spoil, decode.spoiled_pulls = -0.3, spoiled
        pairs.update(cluster.records)
        state = PairState.READY if spoiled == 1 else PairState.QUARANTINED
        await until(is_in(pairs, state), timeout_s=20.0)

    live(story)


@pytest.mark.parametrize("noise", [0.0, 0.033, -0.033])
def test_noise_is_no_doubt(noise: float) -> None:
    """Nor is an engine that gives no log probabilities."""

    async def story(cluster: FakeCluster, pairs: Pairs) -> None:
        _, decode = cluster.pair()
        decode.spoil, decode.logprobs = noise, noise != 0
        pairs.update(cluster.records)
        await until(is_in(pairs, PairState.READY), timeout_s=20.0)

    live(story)


# --- rules ---


def test_unchecked_pairs_wait_where_the_rules_want_that() -> None:
    """Not usable until the dummy handoffs have passed."""

    async def story(cluster: FakeCluster, pairs: Pairs) -> None:
        cluster.pair()
        pairs.update(cluster.records)
        assert pairs.views()[KEY].why == "unchecked"
        await until(is_in(pairs, PairState.READY), timeout_s=20.0)
        assert pairs.views()[KEY].usable

    live(story, CareRules(require_checked=True))


def test_without_warming() -> None:
    """What fits on paper is ready at once, and nothing is sent."""

    async def story(cluster: FakeCluster, pairs: Pairs) -> None:
        prefill, _ = cluster.pair()
        pairs.update(cluster.records)
        assert row(pairs).state is PairState.READY
        await asyncio.sleep(60)
        assert prefill.asked == []

    live(story, CareRules(warm_pairs=False, require_checked=True))


@pytest.mark.parametrize(
    "wrong",
    [
        {"floor_bytes_per_s": 0.0},
        {"floor_bytes_per_s": float("nan")},
        {"canary_rate": 1.5},
        {"canary_rate": float("nan")},
        {"canary_prompt_tokens": 0},
        {"lease_s": 0.0},
    ],
)
def test_impossible_rules(wrong: dict[str, Any]) -> None:
    """They are refused where they are made."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CareRules(**wrong)


# --- quarantine ---


def test_a_quarantine_lasts() -> None:
    """Over a lapse of the registration and repeated reports, until a person ends it; then the pair
    is used without another check."""

    async def story(cluster: FakeCluster, pairs: Pairs) -> None:
        prefill, _ = cluster.pair()
        pairs.update(cluster.records)
        await until(is_in(pairs, PairState.READY), timeout_s=20.0)
        sent = len(prefill.asked)
        pairs.quarantine(P, D, "canary")
        pairs.quarantine(P, D, "canary again")
        assert pairs.views()[KEY].why == "quarantined: canary"
        pairs.update(())
        assert pairs.table() == ()
        pairs.update(cluster.records)
        assert row(pairs).state is PairState.QUARANTINED
        assert pairs.quarantines == 1
        assert pairs.release(P, D)
        assert not pairs.release(P, D)
        assert pairs.views()[KEY].usable
        await asyncio.sleep(120)
        assert len(prefill.asked) == sent
        pairs.update(())
        pairs.update(cluster.records)
        assert row(pairs).state is PairState.UNCHECKED

    live(story)


def test_a_new_engine_ends_a_quarantine() -> None:
    """The doubt was about the old one's KV; the pair is checked anew."""

    async def story(cluster: FakeCluster, pairs: Pairs) -> None:
        prefill, decode = cluster.pair()
        pairs.update(cluster.records)
        pairs.quarantine(P, D, "canary")
        prefill.record = msgspec.structs.replace(prefill.record, engine_id=EngineId("p-2"))
        decode.knows.clear()
        pairs.update(cluster.records)
        await until(is_in(pairs, PairState.READY), timeout_s=20.0)

    live(story)


def test_a_quarantine_during_a_check() -> None:
    """The check's good end does not lift it."""

    async def story(cluster: FakeCluster, pairs: Pairs) -> None:
        cluster.pair()
        pairs.update(cluster.records)
        await until(is_in(pairs, PairState.CHECKING), timeout_s=5.0)
        pairs.quarantine(P, D, "canary")
        await asyncio.sleep(60)
        assert row(pairs).state is PairState.QUARANTINED

    live(story)


# --- workers come and go ---


def test_only_new_pairs_are_checked() -> None:
    """A worker that joins is paired with all others of its model; nobody else is checked again."""

    async def story(cluster: FakeCluster, pairs: Pairs) -> None:
        cluster.pair()
        cluster.add("s", Role.STANDARD)
        cluster.add("other", Role.DECODE, model="another")
        pairs.update(cluster.records)
        await until(is_in(pairs, PairState.READY), timeout_s=20.0)
        before = row(pairs)
        cluster.add("d2", Role.DECODE)
        pairs.update(cluster.records)
        assert set(pairs.views()) == {(P, D), (P, WorkerId("d2"))}
        await until(lambda: {r.state for r in pairs.table()} == {PairState.READY}, timeout_s=20.0)
        kept = next(r for r in pairs.table() if r.decode == D)
        assert (kept.bandwidth_bytes_per_s, kept.setup_s) == (
            before.bandwidth_bytes_per_s,
            before.setup_s,
        )
        assert kept.age_s > before.age_s
        del cluster.workers[P]
        pairs.update(cluster.records)
        assert pairs.table() == ()
        assert dict(pairs.views()) == {}

    live(story)


def test_states_of_workers() -> None:
    """One that starts is no end of a pair yet; one that is silent for a moment stays what it was;
    one that drains is not checked."""

    async def story(cluster: FakeCluster, pairs: Pairs) -> None:
        prefill, _ = cluster.pair()

        def turn(state: WorkerState) -> None:
            prefill.record = msgspec.structs.replace(prefill.record, state=state)
            pairs.update(cluster.records)

        turn(WorkerState.STARTING)
        assert pairs.table() == ()
        turn(WorkerState.DRAINING)
        await asyncio.sleep(10)
        assert prefill.asked == []
        pairs.update(())
        turn(WorkerState.READY)
        await until(is_in(pairs, PairState.READY), timeout_s=20.0)
        sent = len(prefill.asked)
        turn(WorkerState.WARMING)
        turn(WorkerState.READY)
        await asyncio.sleep(10)
        assert len(prefill.asked) == sent

    live(story)


def test_blocked_workers_are_not_checked() -> None:
    """The check waits until the breaker is closed, and counts for nothing meanwhile."""
    blocked = {D}

    async def story(cluster: FakeCluster, pairs: Pairs) -> None:
        prefill, _ = cluster.pair()
        pairs.update(cluster.records)
        await asyncio.sleep(30)
        assert prefill.asked == []
        assert pairs.views()[KEY].usable
        blocked.clear()
        await until(is_in(pairs, PairState.READY), timeout_s=3.0)

    live(story, is_blocked=lambda worker_id: worker_id in blocked)


def test_checks_are_bounded() -> None:
    """Two pairs at a time, whatever joins at once."""

    async def story(cluster: FakeCluster, pairs: Pairs) -> None:
        for number in range(4):
            cluster.add(f"p-{number}", Role.PREFILL)
            cluster.add(f"d-{number}", Role.DECODE)
        pairs.update(cluster.records)
        await until(lambda: {r.state for r in pairs.table()} == {PairState.READY}, timeout_s=60.0)
        assert len(pairs.table()) == 16
        assert cluster.most_in_flight == 2

    live(story)


def test_more_pairs_than_are_kept() -> None:
    """The rest is looked at on paper, at each use; where there is room again it is kept."""

    async def story(cluster: FakeCluster, pairs: Pairs) -> None:
        prefill, _ = cluster.pair()
        second = cluster.add("d2", Role.DECODE)
        wrong = cluster.add("d3", Role.DECODE, geometry=geometry(block_size=64))
        pairs.update(cluster.records)
        (key,) = pairs.views()
        others = [w for w in (second, wrong) if w.record.id != key[1]]
        for other in others:
            view = pairs.use(prefill.record, other.record)
            assert view.usable is (other is not wrong)
        assert len(pairs.views()) == 1
        del cluster.workers[key[1]]
        pairs.update(cluster.records)
        left = others[0]
        pairs.use(prefill.record, left.record)
        assert list(pairs.views()) == [(P, left.record.id)]
        # A quarantine is kept whether there is room or not.
        rest = next(w for w in cluster.workers.values() if w.record.id not in (P, left.record.id))
        pairs.quarantine(P, rest.record.id, "canary")
        assert not pairs.use(prefill.record, rest.record).usable

    live(story, most=1)


def test_unkept_pairs_where_a_check_is_required() -> None:
    """They are not used."""

    async def story(cluster: FakeCluster, pairs: Pairs) -> None:
        prefill, _ = cluster.pair()
        second = cluster.add("d2", Role.DECODE)
        pairs.update(cluster.records)
        other = second if (P, D) in pairs.views() else cluster.workers[D]
        assert not pairs.use(prefill.record, other.record).usable

    live(story, CareRules(require_checked=True), most=1)


# --- observations ---


def test_real_handoffs_move_the_average() -> None:
    """They show that the engines know each other too, and never make a pair slow."""

    async def story(cluster: FakeCluster, pairs: Pairs) -> None:
        cluster.pair()
        pairs.observe(P, D, 1000, 1.0)  # nobody knows the pair yet
        pairs.update(cluster.records)
        pairs.observe(P, D, 1000, 1.0)
        assert pairs.handshaken(P, D)
        pairs.observe(P, D, 2000, 1.0)
        pairs.observe(P, D, 0, 1.0)
        pairs.observe(P, D, 1000, 0.0)
        view = pairs.views()[KEY]
        assert view.usable
        assert view.bandwidth_bytes_per_s == pytest.approx(1200.0)

    live(story, CareRules(floor_bytes_per_s=1e9, warm_pairs=False))


def test_views_are_told() -> None:
    """Each change of a view, in order, so that a book of them never lags behind."""
    told: list[PairView] = []

    def tell(prefill: WorkerId, decode: WorkerId, view: PairView) -> None:
        assert (prefill, decode) == KEY
        told.append(view)

    async def story(cluster: FakeCluster, pairs: Pairs) -> None:
        cluster.pair()
        pairs.update(cluster.records)
        await until(is_in(pairs, PairState.READY), timeout_s=20.0)
        assert told[0] == PairView(True, "", None)
        assert told[-1] == pairs.views()[KEY]
        pairs.quarantine(P, D, "canary")
        assert told[-1].why == "quarantined: canary"

    live(story, on_view=tell)


# --- other rules ---


def test_measured_pairs_are_held_against_new_rules() -> None:
    """What was measured and meets another floor stays ready, with its figures and nothing sent;
    what does not is out until it is checked again."""

    async def story(cluster: FakeCluster, pairs: Pairs) -> None:
        prefill, _ = cluster.pair()
        slow = cluster.add("d2", Role.DECODE)
        slow.bytes_per_s = 1e6
        pairs.update(cluster.records)
        await until(lambda: {r.state for r in pairs.table()} == {PairState.READY}, timeout_s=20.0)
        before, sent = pairs.views()[KEY], len(prefill.asked)
        pairs.follow(CareRules(require_checked=True, floor_bytes_per_s=1e8))
        assert pairs.views()[KEY] == before
        assert pairs.views()[P, slow.record.id].why == "unchecked"
        assert pairs.handshaken(P, D)
        await until(lambda: PairState.SLOW in {r.state for r in pairs.table()}, timeout_s=20.0)
        assert {row.decode: row.state for row in pairs.table()}[D] is PairState.READY
        assert len(prefill.asked) == sent + len(slow.generations) - 2
        # Without the floor what was slow has to show itself again; what is ready is not touched.
        pairs.follow(CareRules(require_checked=True))
        assert pairs.views()[KEY] == before
        await until(lambda: {r.state for r in pairs.table()} == {PairState.READY}, timeout_s=20.0)

    live(story)


def test_pairs_that_served_unchecked_are_used_while_they_are_checked() -> None:
    """A profile that wants checks begins with what was good without: until a check fails."""

    async def story(cluster: FakeCluster, pairs: Pairs) -> None:
        prefill, _ = cluster.pair()
        pairs.update(cluster.records)
        pairs.observe(P, D, 1000, 1.0)
        prefill.fault = UNREACHABLE
        pairs.follow(CareRules(require_checked=True))
        assert row(pairs).state is PairState.UNCHECKED
        assert pairs.views()[KEY] == PairView(True, "", 1000.0)
        await until(is_in(pairs, PairState.FAILED), timeout_s=20.0)
        assert not pairs.views()[KEY].usable
        prefill.fault = None
        await until(is_in(pairs, PairState.READY), timeout_s=70.0)
        # A worker that comes under the new rules waits for its check.
        cluster.add("d2", Role.DECODE)
        pairs.update(cluster.records)
        assert not pairs.views()[P, WorkerId("d2")].usable

    live(story, CareRules(warm_pairs=False))


def test_other_rules_lift_no_doubt() -> None:
    """Quarantines stay, whatever rules follow; refusals are as the new rules say, both ways; and
    rules that ask for the same of pairs change nothing."""

    async def story(cluster: FakeCluster, pairs: Pairs) -> None:
        cluster.pair()
        pairs.update(cluster.records)
        await until(is_in(pairs, PairState.READY), timeout_s=20.0)
        age_s = row(pairs).age_s
        await asyncio.sleep(5)
        pairs.follow(CareRules(canary_rate=0.5, lease_s=5))
        assert row(pairs).age_s >= age_s + 5
        pairs.follow(CareRules(require_rdma=True))
        assert row(pairs).state is PairState.REFUSED
        pairs.follow(CareRules(warm_pairs=False))
        assert row(pairs).state is PairState.READY
        pairs.quarantine(P, D, "canary")
        for rules in (CareRules(), CareRules(floor_bytes_per_s=1.0), CareRules(warm_pairs=False)):
            pairs.follow(rules)
            assert pairs.views()[KEY].why == "quarantined: canary"
        await asyncio.sleep(30)
        assert row(pairs).state is PairState.QUARANTINED
        assert pairs.quarantines == 1

    live(story)


def test_trust_outlives_a_second_change() -> None:
    """Pairs that are used while they are checked are so too when rules change once more."""

    async def story(cluster: FakeCluster, pairs: Pairs) -> None:
        cluster.pair()
        pairs.update(cluster.records)
        pairs.follow(CareRules(require_checked=True))
        assert pairs.views()[KEY].usable
        pairs.follow(CareRules(require_checked=True, floor_bytes_per_s=1.0))
        assert pairs.views()[KEY].usable

    live(story, CareRules(warm_pairs=False))


def test_what_is_no_measurement_makes_no_pair_slow() -> None:
    """Where only a lower bound is known a change of other rules does not take a pair out."""

    async def story(cluster: FakeCluster, pairs: Pairs) -> None:
        _, decode = cluster.pair()
        decode.others = 3
        pairs.update(cluster.records)
        await until(is_in(pairs, PairState.READY), timeout_s=20.0)
        pairs.follow(CareRules(require_checked=True, floor_bytes_per_s=1e12))
        assert pairs.views()[KEY].usable

    live(story, CareRules(floor_bytes_per_s=1e12))

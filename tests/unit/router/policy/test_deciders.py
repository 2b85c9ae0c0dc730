"""Whether a prompt is handed over: tables for both deciders, budgets, queues, predictions."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest

from baton.types import Load, WorkerId
from router.policy import (
    Estimates,
    Handoff,
    Lean,
    Local,
    PairBook,
    PairView,
    Prediction,
    PrefixMatch,
    RoutingRules,
    Slots,
    Snapshot,
    Traffic,
    WorkerView,
    compile_fleet,
    plan,
)
from router.policy.deciders import cost, size_bucket, threshold
from tests.unit.router.policy.cases import ask, decide, rules, short, view


@dataclass
class Given:
    """A case with everything laid down."""

    uncached_tokens: int
    cached_tokens: int = 0
    rules: RoutingRules = RoutingRules(threshold_tokens=100)  # noqa: RUF009  it is frozen
    local_s: float | None = None
    remote_s: float | None = None
    lean: bool | None = None

    def prediction(self) -> Prediction | None:
        return Prediction(0.0, self.local_s, 0.0, self.remote_s, 0.0, 0.0)

    def leaning(self, bucket: int) -> bool | None:
        assert bucket == size_bucket(self.uncached_tokens)
        return self.lean


@pytest.mark.parametrize(
    ("uncached", "cached", "expected"),
    [
        (100, 0, (True, "long_prompt")),
        (99, 0, (False, "short_prompt")),
        (99, 1, (False, "cached_prompt")),
        (100, 900, (True, "long_prompt")),
        (1, 98, (False, "short_prompt")),
    ],
)
def test_threshold(uncached: int, cached: int, expected: tuple[bool, str]) -> None:
    """What is cached does not count, and is named where it made the difference."""
    verdict = threshold(Given(uncached, cached))
    assert (verdict.hand_over, verdict.reason) == expected
    assert (verdict.decider, verdict.bucket) == ("threshold", None)


@pytest.mark.parametrize(
    ("local_s", "remote_s", "lean", "expected"),
    [
        (1.00, 0.99, None, (True, "remote_faster", "cost")),
        (1.00, 1.00, None, (False, "local_faster", "cost")),
        (1.00, 0.86, False, (False, "local_faster", "cost")),
        (1.00, 0.84, False, (True, "remote_faster", "cost")),
        (0.86, 1.00, True, (True, "remote_faster", "cost")),
        (0.84, 1.00, True, (False, "local_faster", "cost")),
        (None, 1.00, None, (True, "long_prompt", "threshold")),
        (1.00, None, None, (True, "long_prompt", "threshold")),
    ],
)
def test_cost(
    local_s: float | None, remote_s: float | None, lean: bool | None, expected: tuple[Any, ...]
) -> None:
    """The faster way; the other side only for a gain of 15 %; the threshold where nothing is
    known."""
    verdict = cost(Given(200, local_s=local_s, remote_s=remote_s, lean=lean))
    assert (verdict.hand_over, verdict.reason, verdict.decider) == expected
    assert verdict.bucket == (8 if verdict.decider == "cost" else None)


def test_noise_does_not_flip() -> None:
    """Predictions that jump by 10 % around break-even change sides at most once."""
    rng, lean, flips = random.Random(2), None, 0
    for _ in range(500):
        remote_s = 1.0 + (rng.random() - 0.5) * 0.2
        verdict = cost(Given(200, local_s=1.0, remote_s=remote_s, lean=lean))
        flips += lean is not None and verdict.hand_over != lean
        lean = verdict.hand_over
    assert flips == 0


# --- with workers -------------------------------------------------------------------------------


def cached_on(snapshot: Snapshot, **blocks: int) -> Snapshot:
    """The same with a prefix match, in blocks of ten tokens."""
    slot_of = snapshot.fleet.slot_of
    levels = []
    for depth in sorted(set(blocks.values())):
        mask = sum(1 << slot_of[WorkerId(w)] for w, n in blocks.items() if n >= depth)
        levels.append((mask, depth))
    return Snapshot(snapshot.traffic, prefix=PrefixMatch(tuple(levels), 50, 10))


@pytest.mark.parametrize(
    ("tokens", "blocks", "expected", "uncached"),
    [
        (500, 39, ("p", "d", "long_prompt"), 110),
        (500, 40, ("p", "d", "long_prompt"), 100),
        (500, 41, ("d", "cached_prompt"), 90),
        (500, 50, ("d", "cached_prompt"), 1),
        ((450, 520), 40, ("d", "cached_prompt"), 50),
        (80, 0, ("d", "short_prompt"), 80),
    ],
)
def test_cached_tokens_are_no_work(
    tokens: Any, blocks: int, expected: tuple[str, ...], uncached: int
) -> None:
    """What the decode worker has need not be prefilled; the last token always is. Of bounds the
    lower one counts."""
    base = Snapshot.of([view("p"), view("d")], rules())
    decision = plan(ask(tokens), cached_on(base, d=blocks), random.Random(1))
    assert short(decision) == expected
    assert isinstance(decision, Handoff | Local)
    assert decision.uncached_tokens == uncached
    assert decision.decider == "threshold"


def test_a_handoff_says_what_is_cached_where() -> None:
    """Each side's own figure."""
    base = Snapshot.of([view("p"), view("d")], rules())
    decision = plan(ask(500), cached_on(base, d=10, p=20), random.Random(1))
    assert isinstance(decision, Handoff)
    assert (decision.uncached_tokens, decision.prefill_uncached_tokens) == (400, 300)


def busy(views: list[WorkerView], prefilling: dict[str, int], **more: Any) -> Snapshot:
    snapshot = Snapshot.of(views, rules(decode_prefill_tokens=200, **more))
    for worker, tokens in prefilling.items():
        snapshot.traffic.counts.prefill(WorkerId(worker), tokens)
    return snapshot


@pytest.mark.parametrize(
    ("views", "prefilling", "expected"),
    [
        ("p d", {}, ("d", "short_prompt")),
        ("p d", {"d": 190}, ("p", "d", "decode_busy")),
        ("p d1 d2", {"d1": 190}, ("d2", "short_prompt")),
        ("p d1 d2", {"d1": 190, "d2": 250}, ("p", "d1", "decode_busy")),
        ("d", {"d": 190}, ("d", "decode_busy")),
    ],
)
def test_decode_budget(views: str, prefilling: dict[str, int], expected: tuple[str, ...]) -> None:
    """Over its budget a short prompt goes to another decode worker, else to prefill, else it is
    served all the same."""
    snapshot = busy([view(name) for name in views.split()], prefilling)
    assert short(plan(ask(50), snapshot, random.Random(1))) == expected


FULL = Load(running=8, waiting=3)


@pytest.mark.parametrize(
    ("tokens", "views", "more", "expected"),
    [
        (500, [view("p", load=FULL), view("d")], {}, ("d", "prefill_busy")),
        (500, [view("p", load=FULL), view("d")], {"local_tokens": 500}, ("d", "prefill_busy")),
        (500, [view("p", load=FULL), view("d")], {"local_tokens": 499}, ("p", "d", "long_prompt")),
        (
            500,
            [view("p", load=FULL), view("d")],
            {"degrade": ("queue",)},
            ("p", "d", "long_prompt"),
        ),
        (
            500,
            [view("p1", load=FULL), view("p2", in_flight=7), view("d")],
            {},
            ("p2", "d", "long_prompt"),
        ),
        (50, [view("p", load=FULL), view("d")], {}, ("d", "short_prompt")),
    ],
)
def test_prefill_queue(
    tokens: int, views: list[WorkerView], more: dict[str, Any], expected: tuple[str, ...]
) -> None:
    """Over its queue a prompt goes to another prefill worker, else local if it may, else it
    queues."""
    assert decide(ask(tokens), *views, max_prefill_queue=3, **more) == expected


def test_both_busy() -> None:
    """A long prompt then queues for prefill, where nobody is decoding; a short one stays."""
    snapshot = busy([view("p", load=FULL), view("d")], {"d": 190}, max_prefill_queue=3)
    assert short(plan(ask(500), snapshot, random.Random(1))) == ("p", "d", "long_prompt")
    assert short(plan(ask(50), snapshot, random.Random(1))) == ("d", "decode_busy")


# --- by cost, from measurements -----------------------------------------------------------------

LOCAL_S, REMOTE_S, FIXED_S, BYTE_S = 1e-3, 2e-4, 0.05, 1e-8


def measured(*views: WorkerView, samples: int = 20) -> Estimates:
    """Decode workers prefill 1,000 tokens a second, prefill workers 5,000; handoffs take 50 ms
    and 10 ns per byte."""
    estimates = Estimates()
    for n in range(samples):
        for v in views:
            slope_s = REMOTE_S if v.record.role == "prefill" else LOCAL_S
            estimates.observe_prefill(v.record, 100 * (n + 1), slope_s * 100 * (n + 1), n)
        for p in (v.record for v in views if v.record.role == "prefill"):
            for d in (v.record for v in views if v.record.role == "decode"):
                size = 50_000 * (n + 1)
                estimates.observe_pull(p, d, size, FIXED_S + BYTE_S * size, n)
    return estimates


def by_cost(views: list[WorkerView], **more: Any) -> Snapshot:
    snapshot = Snapshot.of(views, rules(decider="cost", threshold_tokens=1000))
    return Snapshot(snapshot.traffic, **{"estimates": measured(*views), "now_s": 20.0, **more})


# Break-even: 0.001 n = 0.05 + 0.0002 n + 512 n / 10^8, at about 63 tokens.
@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (40, ("d", "local_faster")),
        (60, ("d", "local_faster")),
        (96, ("p", "d", "remote_faster")),
        (900, ("p", "d", "remote_faster")),
    ],
)
def test_cost_from_measurements(tokens: int, expected: tuple[str, ...]) -> None:
    """Each prompt goes where its first token comes sooner, whatever the threshold says."""
    decision = plan(ask(tokens), by_cost([view("p"), view("d")]), random.Random(1))
    assert short(decision) == expected
    assert isinstance(decision, Handoff | Local)
    assert decision.decider == "cost"
    assert decision.lean == Lean(("tiny", size_bucket(tokens)), len(expected) == 3)
    predicted = decision.predicted
    assert predicted is not None
    blocks = -(-tokens // 32) * 32
    assert predicted.local_s == pytest.approx(LOCAL_S * tokens, rel=1e-3)
    assert predicted.remote_s == pytest.approx(
        FIXED_S + REMOTE_S * tokens + BYTE_S * 512 * blocks, rel=1e-3
    )


def test_queues_are_part_of_the_cost() -> None:
    """A prompt in prefill ahead delays; so do requests of other routers that wait there."""
    views = [view("p"), view("d")]
    snapshot = by_cost(views)
    snapshot.traffic.counts.prefill(WorkerId("p"), 5000)
    decision = plan(ask(900), snapshot, random.Random(1))
    assert short(decision) == ("d", "local_faster")
    assert isinstance(decision, Local)
    assert decision.predicted is not None
    assert decision.predicted.remote_queue_s == pytest.approx(5000 * REMOTE_S, rel=1e-3)
    snapshot = by_cost([view("p", load=Load(waiting=10)), view("d")])
    decision = plan(ask(900), snapshot, random.Random(1))
    assert short(decision) == ("d", "local_faster")


def test_leaning_is_looked_up() -> None:
    """By base model and size; near break-even the side taken last stays."""
    views = [view("p"), view("d")]
    for lean in (True, False):
        snapshot = by_cost(views, leaning={("tiny", size_bucket(66)): lean})
        decision = plan(ask(66), snapshot, random.Random(1))
        assert isinstance(decision, Handoff if lean else Local)


@pytest.mark.parametrize(("samples", "now_s"), [(0, 0.0), (7, 7.0), (20, 20.0 + 3600.0)])
def test_too_little_is_known(samples: int, now_s: float) -> None:
    """With few samples, or old ones, the threshold decides."""
    views = [view("p"), view("d")]
    estimates = measured(*views, samples=samples)
    snapshot = by_cost(views, estimates=estimates, now_s=now_s)
    decision = plan(ask(500), snapshot, random.Random(1))
    assert short(decision) == ("d", "short_prompt")
    assert isinstance(decision, Local)
    assert (decision.decider, decision.lean) == ("threshold", None)


def test_the_threshold_predicts_what_it_takes() -> None:
    """Where cost does not decide, the way taken carries what it is thought to take, for those who
    want to know."""
    views = [view("p"), view("d")]
    base = Snapshot.of(views, rules())
    snapshot = Snapshot(base.traffic, estimates=measured(*views), now_s=20.0)
    handoff = plan(ask(500, predict=True), snapshot, random.Random(1))
    local = plan(ask(50, predict=True), snapshot, random.Random(1))
    assert isinstance(handoff, Handoff)
    assert isinstance(local, Local)
    silent = plan(ask(500), snapshot, random.Random(1))
    assert isinstance(silent, Handoff)
    assert silent.predicted is None
    assert handoff.predicted is not None
    assert handoff.predicted.remote_s is not None
    assert local.predicted is not None
    assert local.predicted.local_s == pytest.approx(0.05, rel=1e-3)
    assert local.predicted.remote_s is None


def test_a_new_pair_moves_at_its_own_bandwidth() -> None:
    """What its like need for set-up, and the bytes at the speed that the matrix measured."""
    old = [view("p1"), view("d1")]
    new = [view("p2"), view("d2")]
    slots = Slots()
    fleet = compile_fleet([v.record for v in new], rules(), slots)
    book = PairBook(slots)
    snapshot = Snapshot(Traffic(fleet), pairs=book, estimates=measured(*old), now_s=20.0)
    before = plan(ask(1024, predict=True), snapshot, random.Random(1))
    book.put(WorkerId("p2"), WorkerId("d2"), PairView(True, "", 1e6))
    after = plan(ask(1024, predict=True), snapshot, random.Random(1))
    for decision, move_s in ((before, 512 * 1024 * BYTE_S), (after, 512 * 1024 / 1e6)):
        assert isinstance(decision, Handoff)
        assert decision.predicted is not None
        assert decision.predicted.remote_move_s == pytest.approx(move_s, rel=1e-3)
        assert decision.predicted.remote_fixed_s == pytest.approx(FIXED_S, rel=1e-2)

"""An explanation tells what ``plan`` does, and why."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from baton.types import Limits, Load, WorkerId, WorkerState
from router.policy import (
    Explanation,
    Handoff,
    Local,
    PairBook,
    PairView,
    PrefixIndex,
    Slots,
    Snapshot,
    Traffic,
    compile_fleet,
    explain,
    plan,
)
from tests.unit.router.policy.cases import ask, ids, rules, view
from tests.unit.router.policy.test_deciders import measured

SMALL = Limits(300, 8)
WORKERS = [
    view("p1"),
    view("p2", model_digest="sha256:other"),
    view("d1", load=Load(2, 1, 0.5)),
    view("d2", limits=SMALL),
    view("d3", suspect=True),
    view("d4", state=WorkerState.DRAINING),
    view("s1", model="other"),
]


def told(request: Any = None, **more: Any) -> Explanation:
    return explain(request or ask(), Snapshot.of(WORKERS, rules(**more)), random.Random(1))


def test_every_worker_has_its_verdict() -> None:
    """What each failed, and what it is worth."""
    verdicts = {verdict.worker: verdict for verdict in told(ask(avoid=ids("p1"))).workers}
    assert {worker: verdict.failed for worker, verdict in verdicts.items()} == {
        "p1": ("avoid",),
        "p2": ("pair",),
        "d1": ("pair",),
        "d2": ("limits", "pair"),
        "d3": ("breaker", "pair"),
        "d4": ("health", "pair"),
        "s1": ("model",),
    }
    assert {worker for worker, verdict in verdicts.items() if verdict.candidate} == {
        "p2", "d1", "d2",
    }  # fmt: skip
    d1 = verdicts["d1"]
    assert (d1.role, d1.seat) == ("decode", "whole")
    assert d1.scores["load"] == pytest.approx(8 / 11)
    assert d1.scores["kv_load"] == 0.5
    assert d1.total == pytest.approx(
        sum(rules().scorers[name] * score for name, score in d1.scores.items())
    )


def test_a_handoff() -> None:
    """Path, reason, workers; the totals are those that plan compares."""
    explanation = told()
    assert (explanation.path, explanation.reason) == ("disaggregated", "long_prompt")
    assert (explanation.prefill, explanation.decode) == ("p1", "d1")
    assert (explanation.prompt_tokens, explanation.uncached_tokens) == ("500", 500)
    assert (explanation.decider, explanation.threshold_tokens) == ("threshold", 100)
    assert explanation.why_no_handoff == ""
    assert explanation.workers[0].candidate
    assert not explanation.workers[-1].candidate


@pytest.mark.parametrize(
    ("request_", "more", "expected"),
    [
        (ask(5), {}, ("local", "short_prompt", "")),
        (ask(5), {"threshold_tokens": None}, ("local", "standard_profile", "standard_profile")),
        (ask(None), {}, ("local", "uncounted_prompt", "uncounted_prompt")),
        (ask(avoid=ids("p1")), {}, ("local", "no_matching_pair", "no_matching_pair")),
        (ask(local_reason="echo_logprobs"), {}, ("local", "echo_logprobs", "echo_logprobs")),
        (ask(model="nobody"), {}, ("refused", "unknown_model", "no_prefill_worker")),
        (ask(avoid=ids("d1", "d2")), {}, ("refused", "no_worker", "no_prefill_worker")),
    ],
)
def test_other_ways(request_: Any, more: dict[str, Any], expected: tuple[str, ...]) -> None:
    """And why no pair could do it, also where one was not wanted."""
    explanation = told(request_, **more)
    assert (explanation.path, explanation.reason, explanation.why_no_handoff) == expected


def test_both_costs() -> None:
    """Also of the way not taken, and under a decider that does not ask."""
    views = [view("p"), view("d")]
    snapshot = Snapshot(Snapshot.of(views, rules()).traffic, estimates=measured(*views), now_s=20)
    explanation = explain(ask(50), snapshot, random.Random(1))
    assert explanation.path == "local"
    assert explanation.predicted_local_s == pytest.approx(0.05, rel=1e-3)
    assert explanation.predicted_remote_s == pytest.approx(0.06, rel=0.01)
    json = msgspec.json.decode(msgspec.json.encode(explanation))
    assert json["predicted"]["remote_fixed_s"] == pytest.approx(0.05, rel=1e-3)


def test_it_tells_what_plan_does() -> None:
    """For many states of the world: the same choice from the same lots."""
    rng = random.Random(9)
    seen = set()
    for n in range(60):
        views = [
            view(f"{role}{i}", in_flight=rng.randrange(9), load=Load(rng.randrange(9), 0, 0.1))
            for role in "pd"
            for i in range(rng.randrange(4))
        ]
        slots = Slots()
        fleet = compile_fleet(
            [v.record for v in views],
            rules(decider=rng.choice(["threshold", "cost"]), picker="weighted_random"),
            slots,
        )
        prefix, book = PrefixIndex(slots), PairBook(slots)
        for v in views:
            prefix.record(v.record.id, range(rng.randrange(20)))
        book.put(WorkerId("p0"), WorkerId("d0"), PairView(False))
        snapshot = Snapshot(
            Traffic(fleet), pairs=book, prefix=prefix.match(range(20), 10),
            estimates=measured(*views), now_s=20.0,
        )  # fmt: skip
        request = ask(rng.randrange(1, 1000))
        choice = plan(request, snapshot, random.Random(n))
        explanation = explain(request, snapshot, random.Random(n))
        seen.add(explanation.path)
        if isinstance(choice, Handoff):
            pair = (choice.prefill.id, choice.decode.id)
            assert (explanation.prefill, explanation.decode) == pair
        elif isinstance(choice, Local):
            assert (explanation.prefill, explanation.decode) == ("", choice.worker.id)
        assert len(explanation.workers) == len(views)
        msgspec.json.encode(explanation)
    assert seen == {"disaggregated", "local", "refused"}

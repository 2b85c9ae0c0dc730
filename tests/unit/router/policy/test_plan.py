"""Where requests run: tables of requests, workers and decisions."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from baton.types import Limits, Load, WorkerId, WorkerState
from router.policy import Ask, Refusal, Snapshot, WorkerView, plan, plan_local
from tests.fakes.worker_records import worker_record
from tests.unit.router.policy.cases import THRESHOLD, ask, decide, rules, short, view

SMALL = Limits(max_model_len=300, slots=8)


# --- classification -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (1, ("d", "short_prompt")),
        (THRESHOLD - 1, ("d", "short_prompt")),
        (THRESHOLD, ("p", "d", "long_prompt")),
        (THRESHOLD + 1, ("p", "d", "long_prompt")),
        ((THRESHOLD, 900), ("p", "d", "long_prompt")),
        ((1, THRESHOLD - 1), ("d", "short_prompt")),
        ((THRESHOLD - 1, THRESHOLD), ("d", "short_prompt")),
        (None, ("d", "uncounted_prompt")),
        ((THRESHOLD, None), ("d", "over_limits")),
    ],
)
def test_by_length(tokens: Any, expected: tuple[str, ...]) -> None:
    """At the threshold and above, for certain, a prompt is handed over; else it is local. A length
    without upper bound may not fit anybody."""
    assert decide(ask(tokens), view("p"), view("d")) == expected


def test_without_disaggregation() -> None:
    """A profile without a threshold never hands over."""
    assert decide(ask(), view("s"), threshold_tokens=None) == ("s", "standard_profile")
    assert decide(ask(), view("p"), view("d"), threshold_tokens=None) == ("d", "standard_profile")


def test_what_a_handoff_cannot_carry() -> None:
    """The request's own reason wins over its length."""
    request = ask(local_reason="several_choices")
    assert decide(request, view("p"), view("d")) == ("d", "several_choices")
    assert decide(ask(None, local_reason="prompt_list"), view("d")) == ("d", "prompt_list")


# --- workers that take traffic ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("views", "expected"),
    [
        ([], ("unknown_model",)),
        ([view("p")], ("no_worker",)),
        ([view("d", model="other")], ("unknown_model",)),
        ([view("d", suspect=True)], ("no_worker",)),
        ([view("d", state=WorkerState.DRAINING)], ("no_worker",)),
        ([view("d")], ("d", "no_prefill_worker")),
        ([view("d"), view("p", suspect=True)], ("d", "no_prefill_worker")),
        ([view("d"), view("p", state=WorkerState.WARMING)], ("d", "no_prefill_worker")),
        ([view("d"), view("p", model="other")], ("d", "no_prefill_worker")),
        ([view("p"), view("s")], ("s", "no_prefill_worker")),
        ([view("p"), view("d"), view("s")], ("p", "d", "long_prompt")),
        ([view("p1"), view("d1", suspect=True), view("d2")], ("p1", "d2", "long_prompt")),
    ],
)
def test_who_is_there(views: list[WorkerView], expected: tuple[str, ...]) -> None:
    """Only ready workers of the model that nobody doubts; who is not there leaves a way or a
    refusal that tells a known model from an unknown one."""
    assert decide(ask(), *views) == expected


@pytest.mark.parametrize("state", list(WorkerState))
def test_states(state: WorkerState) -> None:
    """Traffic goes to READY only."""
    expected = ("d", "short_prompt") if state is WorkerState.READY else ("no_worker",)
    assert decide(ask(5), view("d", state=state)) == expected


# --- pairs --------------------------------------------------------------------------------------


def geometry(**changes: Any) -> Any:
    return msgspec.structs.replace(worker_record().geometry, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_digest": "sha256:other"},
        {"geometry": geometry(block_size=64)},
        {"geometry": geometry(dtype="float16")},
        {"geometry": geometry(layers=3)},
        {"geometry": geometry(kv_heads=4)},
        {"geometry": geometry(layout="NHD")},
    ],
)
def test_pairs_must_match(changes: dict[str, Any]) -> None:
    """Other weights or another shape of the cache: never paired, however idle."""
    assert decide(ask(), view("p", **changes), view("d")) == ("d", "no_matching_pair")
    busy_match = view("p2", in_flight=50)
    assert decide(ask(), view("p1", **changes), busy_match, view("d")) == ("p2", "d", "long_prompt")


def test_the_idlest_decode_without_a_match() -> None:
    """A decode worker that has a partner is preferred to an idler one that has none."""
    other: dict[str, Any] = {"model_digest": "sha256:other"}
    decision = decide(ask(), view("p"), view("d1", **other), view("d2", in_flight=9))
    assert decision == ("p", "d2", "long_prompt")


def test_tensor_parallel_degrees_may_differ() -> None:
    """The connector translates between degrees."""
    prefill = view("p", geometry=geometry(tensor_parallel=2))
    assert decide(ask(), prefill, view("d")) == ("p", "d", "long_prompt")


# --- limits -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "answer", "expected"),
    [
        (299, 1, ("p", "d", "long_prompt")),
        (290, 10, ("p", "d", "long_prompt")),
        (290, 11, ("d", "over_limits")),
        (300, 1, ("d", "over_limits")),
        ((150, 299), 1, ("p", "d", "long_prompt")),
        ((150, 300), 1, ("d", "over_limits")),
    ],
)
def test_prompt_and_answer_must_fit_decode(
    tokens: Any, answer: int, expected: tuple[str, ...]
) -> None:
    """What decode would refuse is not prefilled; it still goes to decode, for its refusal."""
    request = ask(tokens, answer_tokens=answer)
    assert decide(request, view("p"), view("d", limits=SMALL)) == expected


def test_the_prompt_must_fit_prefill() -> None:
    """Prefill makes one token."""
    prefill = view("p", limits=SMALL)
    assert decide(ask(299), prefill, view("d")) == ("p", "d", "long_prompt")
    assert decide(ask(300), prefill, view("d")) == ("d", "over_limits")
    assert decide(ask(300), prefill, view("p2"), view("d")) == ("p2", "d", "long_prompt")


def test_a_larger_worker_is_found() -> None:
    """Who fits is preferred to who is idle, with and without a handoff."""
    small, large = view("d1", limits=SMALL), view("d2", in_flight=9)
    assert decide(ask(400), view("p"), small, large) == ("p", "d2", "long_prompt")
    assert decide(ask(90, answer_tokens=400), small, large) == ("d2", "short_prompt")


def test_a_pair_further_down_is_found() -> None:
    """The idlest decode worker's partner is too small; another pair fits."""
    others: dict[str, Any] = {"model_digest": "sha256:other"}
    decision = decide(
        ask(400),
        view("p1", limits=SMALL),
        view("d1"),
        view("p2", **others),
        view("d2", in_flight=9, **others),
    )
    assert decision == ("p2", "d2", "long_prompt")


# --- choice -------------------------------------------------------------------------------------


def test_the_least_work_wins() -> None:
    """In both roles; work is the larger of the worker's own figure and ours."""
    views = [
        view("p1", in_flight=2),
        view("p2", in_flight=1),
        view("d1", load=Load(running=3, waiting=1), in_flight=1),
        view("d2", load=Load(running=1), in_flight=3),
    ]
    assert decide(ask(), *views) == ("p2", "d2", "long_prompt")
    assert decide(ask(5), *views) == ("d2", "short_prompt")


def test_ties_are_broken_by_the_random_source() -> None:
    """The same source gives the same choice; over many, all are chosen."""
    views = [view("p1"), view("p2"), view("d1"), view("d2"), view("d3")]
    state = Snapshot.of(views, rules())
    first = [short(plan(ask(), state, random.Random(7))) for _ in range(5)]
    assert len(set(first)) == 1
    rng = random.Random(7)
    chosen = {short(plan(ask(), state, rng))[:2] for _ in range(200)}
    assert len(chosen) == 6


# --- local on purpose ---------------------------------------------------------------------------


def again(request: Ask, *views: WorkerView, avoid: tuple[str, ...] = ()) -> tuple[str, ...]:
    return short(
        plan_local(
            request,
            Snapshot.of(views, rules()),
            random.Random(1),
            reason="prefill_failed",
            avoid=tuple(map(WorkerId, avoid)),
        )
    )


def test_local_on_purpose() -> None:
    """On a decode or standard worker, none of those to avoid, even if busy."""
    assert again(ask(), view("p"), view("d")) == ("d", "prefill_failed")
    assert again(ask(), view("p"), view("s")) == ("s", "prefill_failed")
    assert again(ask(), view("d1"), view("d2", in_flight=9), avoid=("d1",)) == (
        "d2",
        "prefill_failed",
    )
    assert again(ask(), view("d"), avoid=("p",)) == ("d", "prefill_failed")


def test_local_with_nobody_left() -> None:
    """Is refused as a lack of workers, not as an unknown model."""
    assert again(ask(), view("p"), view("d"), avoid=("d",)) == (Refusal.NO_WORKER,)
    assert again(ask(model="other"), view("d")) == (Refusal.UNKNOWN_MODEL,)

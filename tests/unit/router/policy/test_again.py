"""What comes after a fault: tables of steps, faults and attempts."""

from __future__ import annotations

import random
from typing import Any

import pytest

from baton.types import WorkerId
from router.policy import Ask, Fault, Snapshot, Wait, WorkerView, avoiding, plan_again
from tests.unit.router.policy.cases import ask, ids, rules, short, view

EVERYBODY = ("p1", "p2", "d1", "d2", "s1")


def again(
    kind: str,
    *blamed: str,
    request: Ask | None = None,
    views: tuple[str, ...] = EVERYBODY,
    attempt: int = 1,
    **more: Any,
) -> tuple[str, ...]:
    # Names in order of preference: the later, the busier.
    workers: list[WorkerView] = [view(name, in_flight=n) for n, name in enumerate(views)]
    snapshot = Snapshot.of(workers, rules(**more))
    fault = Fault(kind, ids(*blamed))
    return short(plan_again(request or ask(), snapshot, random.Random(1), fault, attempt))


@pytest.mark.parametrize(
    ("kind", "blamed", "expected"),
    [
        ("prefill_failed", ("p1",), ("p2", "d1", "prefill_failed")),
        ("prefill_failed", ("p1", "p2"), ("d1", "prefill_failed")),
        ("transfer_failed", ("p1", "d1"), ("p2", "d2", "transfer_failed")),
        ("transfer_failed", (), ("p1", "d1", "transfer_failed")),
        ("decode_failed", ("d1",), ("p1", "d2", "decode_failed")),
        ("decode_failed", ("d1", "d2"), ("s1", "decode_failed")),
        ("decode_failed", ("d1", "d2", "s1"), ("fail", "decode_failed")),
        ("prefill_refused", (), ("d1", "prefill_refused")),
    ],
)
def test_by_default(kind: str, blamed: tuple[str, ...], expected: tuple[str, ...]) -> None:
    """Another handoff without whoever is blamed, else local without them, else the end. What one
    prefill worker finds wrong with the request no other is asked."""
    assert again(kind, *blamed) == expected


@pytest.mark.parametrize(
    ("degrade", "expected"),
    [
        (("other_prefill",), ("p2", "d1", "prefill_failed")),
        (("local",), ("d1", "prefill_failed")),
        (("local", "other_prefill"), ("d1", "prefill_failed")),
        (("queue", "local"), ("wait", "prefill_failed")),
        ((), ("fail", "prefill_failed")),
        (("fail",), ("fail", "prefill_failed")),
    ],
)
def test_steps_in_the_profiles_order(degrade: tuple[str, ...], expected: tuple[str, ...]) -> None:
    """The first step that can be done."""
    assert again("prefill_failed", "p1", degrade=degrade) == expected


@pytest.mark.parametrize(
    ("local_tokens", "tokens", "expected"),
    [
        (None, None, ("d1", "prefill_failed")),
        (500, 500, ("d1", "prefill_failed")),
        (499, 500, ("wait", "prefill_failed")),
        (499, (100, 500), ("wait", "prefill_failed")),
        (499, (100, None), ("wait", "prefill_failed")),
        (499, None, ("wait", "prefill_failed")),
    ],
)
def test_local_within_its_budget(
    local_tokens: int | None, tokens: Any, expected: tuple[str, ...]
) -> None:
    """Only prompts that are certainly within it; the next step takes the others."""
    answer = again(
        "prefill_failed", "p1", request=ask(tokens), local_tokens=local_tokens,
        degrade=("local", "queue"),
    )  # fmt: skip
    assert answer == expected


def test_a_short_prompt_is_not_handed_over_because_of_a_fault() -> None:
    """It was local before, and stays so on another worker; nor is one that no handoff carries."""
    assert again("decode_failed", "d1", request=ask(5)) == ("d2", "decode_failed")
    request = ask(local_reason="prompt_list")
    assert again("decode_failed", "d1", request=request) == ("d2", "decode_failed")
    assert again("decode_failed", "d1", request=ask(5), degrade=("other_prefill",)) == (
        "fail",
        "decode_failed",
    )


def test_earlier_faults_are_remembered() -> None:
    """Workers of earlier attempts are avoided too."""
    request = avoiding(ask(), ids("p1", "d1"))
    assert again("prefill_failed", "p2", request=request) == ("d2", "prefill_failed")
    assert avoiding(request, ()) is request


@pytest.mark.parametrize(
    ("attempt", "attempts", "expected"),
    [(1, 1, "fail"), (1, 2, "p2"), (2, 2, "fail"), (2, 3, "p2"), (9, 3, "fail")],
)
def test_attempts_are_bounded(attempt: int, attempts: int, expected: str) -> None:
    """A request that fails everywhere does not visit every worker."""
    assert again("prefill_failed", "p1", attempt=attempt, attempts=attempts)[0] == expected


def test_waits_grow() -> None:
    """Twice as long each time, spread by a quarter either way, ten seconds at most."""
    snapshot = Snapshot.of([], rules(degrade=("queue",), attempts=20, queue_wait_s=0.5))
    for attempt, middle_s in ((1, 0.5), (2, 1.0), (3, 2.0)):
        waits = set()
        for seed in range(30):
            rng = random.Random(seed)
            answer = plan_again(ask(), snapshot, rng, Fault("prefill_failed"), attempt)
            assert isinstance(answer, Wait)
            waits.add(answer.seconds)
        assert len(waits) == 30
        assert 0.75 * middle_s <= min(waits) <= max(waits) < 1.25 * middle_s
    late = plan_again(ask(), snapshot, random.Random(1), Fault("prefill_failed"), 15)
    assert late == Wait(10.0, "prefill_failed")


def test_the_fate_of_the_only_worker() -> None:
    """Never the one that just failed, even if there is no other."""
    assert again("decode_failed", "d1", views=("d1",)) == ("fail", "decode_failed")
    assert again("decode_failed", views=("d1",)) == ("d1", "decode_failed")
    assert WorkerId("d1") in avoiding(ask(), ids("d1")).avoid

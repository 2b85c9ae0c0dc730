"""Which workers may take a seat: a table for each filter, and the match of pairs."""

from __future__ import annotations

import random
from typing import Any

import pytest

from baton.types import EngineId, Limits, Load, WorkerId, WorkerState
from router.policy import (
    Ask,
    Counts,
    PairBook,
    PairView,
    Slots,
    Snapshot,
    Traffic,
    WorkerView,
    compile_fleet,
    plan,
)
from router.policy.filters import HARD, SOFT, Seat
from tests.unit.router.policy.cases import ask, decide, ids, lora, named, query, rules, short, view

ALL = {"p", "d", "s"}


def passing(
    name: str, seat: Seat, views: list[WorkerView], request: Ask | None = None, **more: Any
) -> set[str]:
    asked = query(request or ask(), Snapshot.of(views, rules(**more)))
    return named(asked, (HARD | SOFT)[name](asked, seat))


@pytest.mark.parametrize(
    ("seat", "expected"),
    [(Seat.PREFILL, {"p"}), (Seat.DECODE, {"d"}), (Seat.WHOLE, {"d", "s"})],
)
def test_role(seat: Seat, expected: set[str]) -> None:
    """Engines can do either; roles say who does."""
    assert passing("role", seat, [view("p"), view("d"), view("s")]) == expected


def test_model() -> None:
    """By the model's name or an adapter's; of an unknown name nobody."""
    views = [view("d1"), view("d2", model="other"), view("d3", **lora())]
    assert passing("model", Seat.WHOLE, views) == {"d1", "d3"}
    assert passing("model", Seat.WHOLE, views, ask(model="poet")) == {"d3"}
    assert passing("model", Seat.WHOLE, views, ask(model="nobody")) == set()


def test_health() -> None:
    """READY only."""
    views = [view(f"d{n}", state=state) for n, state in enumerate(WorkerState)]
    assert passing("health", Seat.WHOLE, views) == {f"d{[*WorkerState].index(WorkerState.READY)}"}


def test_breaker_and_avoid() -> None:
    """Who is suspect to everybody, and who failed this request; unknown ids do no harm."""
    views = [view("d1", suspect=True), view("d2"), view("d3")]
    assert passing("breaker", Seat.WHOLE, views) == {"d2", "d3"}
    assert passing("avoid", Seat.WHOLE, views, ask(avoid=ids("d2", "gone"))) == {"d1", "d3"}


@pytest.mark.parametrize(
    ("tokens", "answer", "prefill", "whole"),
    [
        (99, 1, {"p1", "p2"}, {"d1", "d2"}),
        (99, 2, {"p1", "p2"}, {"d2"}),
        (100, 1, {"p2"}, {"d2"}),
        ((5, 199), 1, {"p2"}, {"d2"}),
        (200, 1, set(), set()),
        ((5, None), 1, set(), set()),
        (None, 10_000, {"p1", "p2"}, {"d1", "d2"}),
    ],
)
def test_limits(tokens: Any, answer: int, prefill: set[str], whole: set[str]) -> None:
    """The longest the prompt may be, with the answer, and with one token on prefill. Who cannot
    be counted fits until an engine says otherwise."""
    views = [view(f"{role}{n}", limits=Limits(100 * n, 8)) for role in "pd" for n in (1, 2)]
    request = ask(tokens, answer_tokens=answer)
    assert passing("limits", Seat.PREFILL, views, request) & {"p1", "p2"} == prefill
    assert passing("limits", Seat.WHOLE, views, request) & {"d1", "d2"} == whole


@pytest.mark.parametrize(
    ("tokens", "waiting", "expected"),
    [(50, 0, {"d"}), (50, 150, {"d"}), (50, 151, set()), (500, 0, {"d"}), (None, 201, set())],
)
def test_prefill_budget(tokens: int | None, waiting: int, expected: set[str]) -> None:
    """Tokens in prefill and the request's own within 200, or nothing in prefill."""
    snapshot = Snapshot.of([view("d")], rules(decode_prefill_tokens=200))
    snapshot.traffic.counts.prefill(WorkerId("d"), waiting)
    asked = query(ask(tokens), snapshot)
    assert named(asked, SOFT["prefill_budget"](asked, Seat.WHOLE)) == expected


@pytest.mark.parametrize(
    ("waiting", "legs", "expected"),
    [(0, 0, {"p"}), (1, 0, {"p"}), (2, 0, set()), (0, 9, {"p"}), (0, 10, set()), (2, 10, set())],
)
def test_prefill_queue(waiting: int, legs: int, expected: set[str]) -> None:
    """Fewer than two waiting, by the worker's word and by ours (it has eight slots)."""
    views = [view("p", load=Load(8, waiting), in_flight=legs)]
    assert passing("prefill_queue", Seat.PREFILL, views, max_prefill_queue=2) == expected
    assert passing("prefill_queue", Seat.PREFILL, views) == {"p"}


# --- pairs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefill", "decode", "pairs"),
    [
        ({}, {}, True),
        ({"engine_version": "0.32.0"}, {"engine_version": "0.32.0"}, True),
        ({"engine_version": "0.32.0"}, {"engine_version": "0.33.0"}, False),
        ({"engine_version": "0.32.0"}, {}, True),
        ({}, {"engine_version": "0.33.0"}, True),
        ({"model_digest": ""}, {"model_digest": ""}, False),
        ({"model": "other"}, {}, False),
    ],
)
def test_what_a_pair_must_share(
    prefill: dict[str, Any], decode: dict[str, Any], pairs: bool
) -> None:
    """Versions where both are known; weights always, and weights that are not known are not equal.
    (The table of geometries is in test_plan.)"""
    decision = decide(ask(), view("p", **prefill), view("d", **decode))
    assert (decision == ("p", "d", "long_prompt")) is pairs


@pytest.mark.parametrize(
    ("prefill", "decode", "expected"),
    [
        (lora(), lora(), ("p", "d", "long_prompt")),
        (lora(digest="sha256:bb"), lora(), ("d", "no_matching_pair")),
        ({}, lora(), ("d", "no_prefill_worker")),
        (lora(digest=""), lora(digest=""), ("d", "no_matching_pair")),
        (lora(), {}, ("no_worker",)),
        ({"model": "poet"}, lora(), ("d", "no_matching_pair")),
    ],
)
def test_adapters_of_a_pair(
    prefill: dict[str, Any], decode: dict[str, Any], expected: tuple[str, ...]
) -> None:
    """Both sides need the adapter with the same content: another content under the same name, or
    the base model, would give wrong text with a 200."""
    request = ask(model="poet")
    assert decide(request, view("p", **prefill), view("d", **decode)) == expected


def test_the_base_is_not_touched_by_adapters() -> None:
    """Different adapters do not part a pair for requests to the base model."""
    prefill, decode = view("p", **lora()), view("d", **lora(digest="sha256:bb"))
    assert decide(ask(), prefill, decode) == ("p", "d", "long_prompt")


def test_the_matching_adapter_is_found() -> None:
    """Among several contents of one name, each prefill worker goes with its like."""
    views = [
        view("p1", **lora()),
        view("p2", in_flight=5, **lora(digest="sha256:bb")),
        view("d1", in_flight=5, suspect=True, **lora()),
        view("d2", **lora(digest="sha256:bb")),
    ]
    assert decide(ask(model="poet"), *views) == ("p2", "d2", "long_prompt")


# --- the pair book ------------------------------------------------------------------------------


def with_pairs(
    known: dict[tuple[str, str], bool], *views: WorkerView, **more: Any
) -> tuple[str, ...]:
    slots = Slots()
    fleet = compile_fleet([v.record for v in views], rules(**more), slots)
    book = PairBook(slots)
    for (prefill, decode), usable in known.items():
        book.put(WorkerId(prefill), WorkerId(decode), PairView(usable, "slow"))
    legs = {v.record.id: v.in_flight for v in views if v.in_flight}
    snapshot = Snapshot(Traffic(fleet, Counts(legs)), pairs=book)
    return short(plan(ask(), snapshot, random.Random(1)))


@pytest.mark.parametrize(
    ("known", "checked_only", "expected"),
    [
        ({}, False, ("p1", "d1", "long_prompt")),
        ({("p1", "d1"): False}, False, ("p2", "d1", "long_prompt")),
        ({("p1", "d1"): False, ("p2", "d1"): False}, False, ("p1", "d2", "long_prompt")),
        (
            {(p, d): False for p in ("p1", "p2") for d in ("d1", "d2")},
            False,
            ("d1", "no_usable_pair"),
        ),
        ({}, True, ("d1", "no_usable_pair")),
        ({("p2", "d2"): True}, True, ("p2", "d2", "long_prompt")),
        ({("p1", "d1"): True, ("p2", "d2"): False}, True, ("p1", "d1", "long_prompt")),
    ],
)
def test_pairs_that_were_tried(
    known: dict[tuple[str, str], bool], checked_only: bool, expected: tuple[str, ...]
) -> None:
    """A flagged pair is not used; under require_checked_pairs neither is one nobody tried."""
    views = [view("p1"), view("p2", in_flight=1), view("d1"), view("d2", in_flight=1)]
    assert with_pairs(known, *views, require_checked_pairs=checked_only) == expected


def test_the_book_forgets_who_leaves_or_restarts() -> None:
    """What was found of an engine is not true of the next one, nor of the slot's next owner."""
    slots = Slots()
    book = PairBook(slots)
    p, d, e = WorkerId("p"), WorkerId("d"), WorkerId("e")
    engine = EngineId("1")
    slots.update({p: engine, d: engine, e: engine})
    book.put(p, d, PairView(False))
    book.put(p, e, PairView(True))
    slots.update({p: engine, d: EngineId("2"), e: engine})
    assert book.get(p, d) is None
    assert book.suspects == 0
    assert book.get(p, e) == PairView(True)
    slots.update({d: EngineId("2"), e: engine})
    assert len(book) == 0
    slot = slots.get(e)
    assert slot is not None
    assert book.good(slot) == 0


def test_the_book_takes_news() -> None:
    """A verdict replaces the one before; strangers are passed over; replace forgets the rest."""
    slots = Slots()
    book = PairBook(slots)
    p, d = WorkerId("p"), WorkerId("d")
    slots.update({p: EngineId("1"), d: EngineId("1")})
    at = slots.get(d)
    assert at is not None
    book.put(p, d, PairView(False))
    assert (book.bad(at) > 0, book.good(at) > 0, book.suspects > 0) == (True, False, True)
    book.put(p, d, PairView(True))
    assert (book.bad(at) > 0, book.good(at) > 0, book.suspects > 0) == (False, True, False)
    book.put(p, WorkerId("stranger"), PairView(False))
    assert len(book) == 1
    book.replace({})
    assert (len(book), book.good(at)) == (0, 0)

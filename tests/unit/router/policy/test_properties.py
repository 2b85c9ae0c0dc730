"""What holds of every decision, whatever the workers, the request and the lots."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from msgspec.structs import replace

from baton.types import Adapter, Limits, Load, Role, WorkerId, WorkerRecord, WorkerState
from kvtransfer import differences
from router.policy import (
    DECIDERS,
    DEGRADE_STEPS,
    PICKERS,
    SCORERS,
    Ask,
    Counts,
    Estimates,
    Fail,
    Fault,
    Handoff,
    Local,
    PairBook,
    PairView,
    PrefixIndex,
    Refuse,
    RoutingRules,
    Slots,
    Snapshot,
    TokenBounds,
    Traffic,
    Wait,
    compile_fleet,
    plan,
    plan_again,
)
from router.policy.fleet import Fleet
from tests.fakes.worker_records import worker_record

NAMES = [f"w{n}" for n in range(8)]
WORLDS = 1000
GEOMETRY = worker_record().geometry


def records(rng: random.Random) -> list[WorkerRecord]:
    some = []
    for name in rng.sample(NAMES, rng.choice([1, 8, 8, 8, 8])):
        adapter = rng.choice(["", "a", "a", "b"])
        some.append(
            worker_record(
                name,
                role=rng.choice([Role.PREFILL, Role.PREFILL, Role.DECODE, Role.DECODE, *Role]),
                state=rng.choice([WorkerState.READY] * 9 + [WorkerState.DRAINING]),
                model=rng.choice(["tiny"] * 9 + ["other"]),
                model_digest=rng.choice(["sha256:0"] * 9 + ["sha256:1", ""]),
                engine_version=rng.choice(["", "1", "1", "1", "1", "2"]),
                geometry=replace(
                    GEOMETRY,
                    block_size=rng.choice([32] * 8 + [64]),
                    tensor_parallel=rng.choice([1, 2]),
                ),
                limits=Limits(rng.choice([500, 1000, 1000]), 4),
                load=Load(rng.randrange(9), rng.randrange(4), rng.random()),
                adapters=(Adapter("poet", f"sha256:{adapter}"),) if adapter else (),
            )
        )
    return some


def some_ids(rng: random.Random, most: int) -> frozenset[WorkerId]:
    return frozenset(map(WorkerId, rng.sample(NAMES, max(0, rng.randrange(-most, most + 1)))))


def make_ask(rng: random.Random) -> Ask:
    lower = rng.choice([0, 50, 150, 300, 450, 480, 700, 960, 1200])
    upper = rng.choice([lower] * 5 + [lower + 45, lower + 45, None])
    return Ask(
        model=rng.choice(["tiny"] * 5 + ["poet"] * 5 + ["other", "nobody"]),
        prompt_tokens=TokenBounds(lower, upper) if rng.random() < 0.9 else None,
        answer_tokens=rng.choice([1, 50]),
        local_reason=rng.choice([None] * 12 + ["prompt_list"]),
        session=rng.choice(["", "s"]),
        avoid=some_ids(rng, 2),
    )


def make_rules(rng: random.Random) -> RoutingRules:
    return RoutingRules(
        decider=rng.choice([*DECIDERS]),
        threshold_tokens=rng.choice([None, 0, 0, 0, 100, 100, 100, 100]),
        decode_prefill_tokens=rng.choice([None, 300]),
        max_prefill_queue=rng.choice([None, 1]),
        scorers={name: rng.choice([0, 1, 2.5]) for name in SCORERS},
        picker=rng.choice([*PICKERS]),
        degrade=tuple(rng.sample(DEGRADE_STEPS, rng.randrange(4))),
        local_tokens=rng.choice([None, 200]),
        require_checked_pairs=rng.random() < 0.2,
    )


def counts(rng: random.Random) -> dict[WorkerId, int]:
    return {WorkerId(name): rng.randrange(1, 400) for name in rng.sample(NAMES, rng.randrange(6))}


def make_snapshot(rng: random.Random) -> Snapshot:
    slots = Slots()
    # A crowd before this one, so that slots have holes.
    compile_fleet(records(rng), RoutingRules(), slots)
    fleet = compile_fleet(records(rng), make_rules(rng), slots)
    legs = {w: n % 20 + 1 for w, n in counts(rng).items()}
    traffic = Traffic(fleet, Counts(legs, counts(rng)))
    book, prefix, estimates = PairBook(slots), PrefixIndex(slots), Estimates()
    for _ in range(rng.randrange(30)):
        p, d = rng.sample(NAMES, 2)
        book.put(WorkerId(p), WorkerId(d), PairView(rng.random() < 0.7, "", 1e9))
    for worker, depth in counts(rng).items():
        prefix.record(worker, range(depth % 50))
    if rng.random() < 0.5:
        for record in fleet.records.values():
            for n in range(10):
                estimates.observe_prefill(record, 100 + n, rng.choice([0.1, 0.3]), n)
                estimates.observe_pull(record, record, 1000 * n, 0.05, n)
    return Snapshot(
        traffic,
        some_ids(rng, 2),
        book,
        rng.choice([None, prefix.match(range(40), 16)]),
        estimates,
        {("tiny", n): rng.random() < 0.5 for n in range(7, 10)},
        10.0,
    )


def check(choice: Handoff | Local, ask: Ask, snapshot: Snapshot) -> None:
    """Nobody that must not have it."""
    both = [choice.prefill, choice.decode] if isinstance(choice, Handoff) else [choice.worker]
    for worker in both:
        assert worker.state is WorkerState.READY
        assert worker.id not in snapshot.closed
        assert worker.id not in ask.avoid
        assert ask.model in {worker.model, *(a.name for a in worker.adapters)}
    if isinstance(choice, Local):
        assert choice.worker.role is not Role.PREFILL
        return
    prefill, decode = choice.prefill, choice.decode
    assert (prefill.role, decode.role) == (Role.PREFILL, Role.DECODE)
    assert prefill.model_digest == decode.model_digest != ""
    assert not differences(prefill.geometry, decode.geometry)
    assert len({prefill.engine_version, decode.engine_version} - {""}) <= 1
    if ask.model == "poet":
        assert prefill.adapters == decode.adapters
    assert ask.local_reason is None
    assert ask.prompt_tokens is not None
    assert ask.prompt_tokens.within(prefill.limits.max_model_len - 1)
    assert ask.prompt_tokens.within(decode.limits.max_model_len - ask.answer_tokens)
    assert snapshot.pairs is not None
    view = snapshot.pairs.get(prefill.id, decode.id)
    assert (not snapshot.rules.require_checked_pairs) if view is None else view.usable
    assert snapshot.rules.threshold_tokens is not None


@pytest.mark.parametrize("part", range(4))
def test_plans(part: int) -> None:
    """Filters hold, pairs match, and the same lots give the same plan. Only a lack of workers is
    refused. (A seed makes a world; all kinds of answers come up.)"""
    kinds: Counter[str] = Counter()
    for seed in range(part * WORLDS, (part + 1) * WORLDS):
        rng = random.Random(seed)
        ask, snapshot = make_ask(rng), make_snapshot(rng)
        choice = plan(ask, snapshot, random.Random(seed))
        assert choice == plan(ask, snapshot, random.Random(seed))
        kinds[type(choice).__name__] += 1
        if isinstance(choice, Refuse):
            crowd = snapshot.fleet.records.values()
            assert not any(able(record, ask, snapshot) for record in crowd)
        else:
            check(choice, ask, snapshot)
    assert min(kinds[name] for name in ("Handoff", "Local", "Refuse")) > WORLDS / 20


def able(record: WorkerRecord, ask: Ask, snapshot: Snapshot) -> bool:
    return (
        record.role is not Role.PREFILL
        and record.state is WorkerState.READY
        and record.id not in snapshot.closed
        and record.id not in ask.avoid
        and ask.model in {record.model, *(a.name for a in record.adapters)}
    )


@pytest.mark.parametrize("part", range(4))
def test_next_plans(part: int) -> None:
    """After a fault too; besides never onto the blamed, local only within its budget, and only
    steps that the profile names."""
    kinds: Counter[str] = Counter()
    for seed in range(part * WORLDS, (part + 1) * WORLDS):
        rng = random.Random(seed)
        ask, snapshot = make_ask(rng), make_snapshot(rng)
        attempt = rng.choice([1, 1, 2, 3])
        kind = rng.choice(["prefill_failed", "prefill_refused", "transfer_failed"])
        fault = Fault(kind, some_ids(rng, 3))
        choice: Any = plan_again(ask, snapshot, random.Random(seed), fault, attempt)
        assert choice == plan_again(ask, snapshot, random.Random(seed), fault, attempt)
        assert choice.reason == kind
        kinds[type(choice).__name__] += 1
        rules = snapshot.rules
        if attempt >= rules.attempts:
            assert isinstance(choice, Fail)
        match choice:
            case Handoff():
                assert "other_prefill" in rules.degrade
                check(choice, ask, snapshot)
                assert not {choice.prefill.id, choice.decode.id} & fault.blamed
            case Local():
                assert "local" in rules.degrade
                check(choice, ask, snapshot)
                assert choice.worker.id not in fault.blamed
                assert rules.local_tokens is None or (
                    ask.prompt_tokens is not None and ask.prompt_tokens.within(rules.local_tokens)
                )
            case Wait(seconds):
                assert "queue" in rules.degrade
                assert 0 < seconds <= 10
    assert min(kinds[name] for name in ("Handoff", "Local", "Wait", "Fail")) > WORLDS / 200


def test_news_of_the_same_workers() -> None:
    """A fleet made from the one before it is the fleet made from nothing, whatever has changed."""
    reused = 0
    for seed in range(WORLDS):
        rng = random.Random(seed)
        rules, before, crowd = make_rules(rng), records(rng), records(rng)
        kind = rng.randrange(4)
        if kind < 3:
            crowd = [
                replace(
                    record,
                    load=Load(rng.randrange(9), rng.randrange(4), rng.random()),
                    state=rng.choice([WorkerState.READY, WorkerState.DRAINING]),
                    heartbeat_s=rng.random(),
                )
                for record in before
            ]
        if kind == 2:
            changed: dict[str, Any] = rng.choice(
                [
                    {"engine_id": "another"},
                    {"role": Role.STANDARD},
                    {"adapters": ()},
                    {"limits": Limits(77, 4)},
                ]
            )
            crowd[0] = replace(crowd[0], **changed)
        slots, same_slots = Slots(), Slots()
        first = compile_fleet(before, rules, slots)
        compile_fleet(before, rules, same_slots)
        after = compile_fleet(crowd, rules, slots, first)
        fresh = compile_fleet(crowd, rules, same_slots)
        reused += after.names is first.names
        for name in Fleet.__slots__:
            assert getattr(after, name) == getattr(fresh, name), (seed, name)
        assert slots.all() == same_slots.all()
    assert WORLDS / 3 < reused < WORLDS * 3 / 4

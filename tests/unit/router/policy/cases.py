"""Short words for tables of decisions: workers, requests and what came out."""

from __future__ import annotations

import random
from typing import Any

from baton.types import Adapter, Role, WorkerId
from router.policy import (
    Ask,
    Fail,
    Handoff,
    Local,
    NextPlan,
    Plan,
    Refuse,
    RoutingRules,
    Snapshot,
    TokenBounds,
    Wait,
    WorkerView,
    plan,
)
from router.policy.query import Query
from tests.fakes.worker_records import worker_record

THRESHOLD = 100
ROLES = {"p": Role.PREFILL, "d": Role.DECODE, "s": Role.STANDARD}


def view(
    worker_id: str,
    role: Role | None = None,
    *,
    in_flight: int = 0,
    suspect: bool = False,
    **more: Any,
) -> WorkerView:
    """A ready worker; its role is the first letter of its id unless given."""
    record = worker_record(worker_id, role=role or ROLES[worker_id[0]], **more)
    return WorkerView(record, in_flight=in_flight, suspect=suspect)


def lora(name: str = "poet", digest: str = "sha256:aa") -> dict[str, Any]:
    """The fields of a worker with one adapter."""
    return {"adapters": (Adapter(name, digest),)}


def rules(**more: Any) -> RoutingRules:
    return RoutingRules(**{"threshold_tokens": THRESHOLD, **more})


def ask(tokens: int | tuple[int, int | None] | None = 500, **more: Any) -> Ask:
    bounds = None
    if tokens is not None:
        lower, upper = tokens if isinstance(tokens, tuple) else (tokens, tokens)
        bounds = TokenBounds(lower, upper)
    return Ask(**{"model": "tiny", "prompt_tokens": bounds, **more})


def short(decision: Plan | NextPlan) -> tuple[str, ...]:
    """A decision in few words."""
    match decision:
        case Handoff(prefill, decode, reason):
            return (prefill.id, decode.id, reason)
        case Local(worker, reason):
            return (worker.id, reason)
        case Refuse(refusal):
            return (refusal,)
        case Wait(_, reason):
            return ("wait", reason)
        case Fail(reason):
            return ("fail", reason)


def decide(request: Ask, *views: WorkerView, seed: int = 1, **more: Any) -> tuple[str, ...]:
    return short(plan(request, Snapshot.of(views, rules(**more)), random.Random(seed)))


def query(request: Ask, snapshot: Snapshot) -> Query:
    return Query(request, snapshot, random.Random(1))


def ids(*names: str) -> frozenset[WorkerId]:
    return frozenset(map(WorkerId, names))


def named(asked: Query, mask: int) -> set[str]:
    """The workers of a set."""
    return {record.id for slot, record in asked.fleet.records.items() if mask >> slot & 1}

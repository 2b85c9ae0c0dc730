"""What a router tells operators of itself, as plain data for JSON."""

from __future__ import annotations

from typing import Any

from baton import __version__
from baton.types import WorkerRecord
from kvtransfer.protocol import Handoff
from router.state import RouterState


def status_report(state: RouterState) -> dict[str, Any]:
    """Profile, store, requests, workers and handoffs in one."""
    classify = state.profile.spec.classify
    return {
        "version": __version__,
        "profile": {
            "name": state.profile.name,
            "version": state.profile.version,
            "mode": state.profile.spec.mode,
            "threshold_tokens": classify.threshold_tokens if classify else None,
            "decider": classify.decider if classify else None,
        },
        "store": state.store.describe(),
        "in_flight": state.in_flight,
        "workers": workers_report(state),
        "handoffs": handoffs_report(state),
    }


def workers_report(state: RouterState) -> list[dict[str, Any]]:
    """Each worker: what it says of itself, and what this router makes of it."""
    stranded = state.ledger.stranded_bytes()
    return [_worker(state, record, stranded.get(record.id, 0)) for record in state.pool.records()]


def _worker(state: RouterState, record: WorkerRecord, stranded_bytes: int) -> dict[str, Any]:
    breaker = state.care.breakers.state(record.id)
    return {
        "record": record,
        "role": state.pool.role_of(record),
        "turning": record.id in state.pool.turning,
        "legs": state.pool.legs(record.id),
        "suspect": record.id in state.care.breakers.blocked_ids,
        "breaker": breaker,
        "cordoned": state.pool.is_cordoned(record.id),
        "drained": state.pool.is_cordoned(record.id) and state.is_drained(record.id),
        "prefilling_tokens": state.pool.prefilling(record.id),
        "stranded_bytes": stranded_bytes,
    }


def handoffs_report(state: RouterState) -> dict[str, Any]:
    """Handoffs in progress, those whose blocks may still be held, and the sums per worker."""
    now_s = state.clock.monotonic_s()
    return {
        "open": [_handoff(h, now_s) for h in state.ledger.open_handoffs()],
        "stranded": [_handoff(h, now_s) for h in state.ledger.stranded_handoffs()],
        "stranded_bytes": state.ledger.stranded_bytes(),
    }


def _handoff(handoff: Handoff, now_s: float) -> dict[str, Any]:
    expires_s = handoff.lease_expires_s
    return {
        "request_id": handoff.request_id,
        "state": handoff.state,
        "prefill": handoff.prefill,
        "decode": handoff.decode,
        "prompt_tokens": handoff.prompt_tokens,
        "kv_bytes": handoff.kv_bytes,
        "reason": handoff.reason,
        "age_s": round(now_s - handoff.created_s, 3),
        "lease_left_s": None if expires_s is None else round(max(0.0, expires_s - now_s), 3),
    }

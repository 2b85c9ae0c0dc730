"""Gauges that are read from the router's parts at each scrape; no request pays for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.observe import families as f

if TYPE_CHECKING:
    from router.state import RouterState


def connect_gauges(state: RouterState) -> None:
    """Has the state's metrics read what its parts hold."""
    metrics, pool, care = state.metrics, state.pool, state.care
    metrics.pull(f.HANDOFFS_OPEN.name, lambda: {(): state.ledger.open_count})
    metrics.pull(
        f.STRANDED_BYTES.name,
        lambda: {(worker,): held for worker, held in state.ledger.stranded_bytes().items()},
    )
    metrics.pull(
        f.WORKERS.name,
        lambda: {(str(role), str(kind)): n for (role, kind), n in pool.counts().items()},
    )
    metrics.pull(
        f.BREAKER_STATE.name,
        lambda: {(r.id, str(care.breakers.state(r.id))): 1 for r in pool.records()},
    )
    metrics.pull(
        f.PAIR_STATE.name,
        lambda: {(row.prefill, row.decode, str(row.state)): 1 for row in care.pairs.table()},
    )
    metrics.pull(
        f.PAIR_BANDWIDTH.name,
        lambda: {
            (row.prefill, row.decode): row.bandwidth_bytes_per_s
            for row in care.pairs.table()
            if row.bandwidth_bytes_per_s is not None
        },
    )
    metrics.pull(
        f.QUEUE_DEPTH.name,
        lambda: {
            (str(band),): depth for band, depth in state.gate.snapshot().waiting_by_band.items()
        },
    )
    metrics.pull(
        f.SHED.name,
        lambda: {(str(why),): count for why, count in state.gate.snapshot().turned.items()},
    )
    metrics.pull(
        f.CANARY.name,
        lambda: {
            ("ok",): care.canary.counts.ok,
            ("mismatched",): care.canary.counts.mismatched,
            ("unknown",): care.canary.counts.unknown,
            ("skipped",): care.canary.counts.skipped,
        },
    )
    metrics.pull(f.PROFILE_INFO.name, lambda: _profiles(state))
    metrics.pull(f.SWITCH_PHASE.name, lambda: _phase(state))
    metrics.pull(f.PROFILE_PROBLEMS.name, lambda: {(): len(state.conductor.proposals.problems)})
    metrics.pull(f.TURNING.name, lambda: {(): len(pool.turning)})
    metrics.pull(f.ROUTERS.name, lambda: {(): 1 + len(pool.others)})
    metrics.pull(f.STORE_LOST.name, lambda: {(): int(pool.is_lost)})
    metrics.pull(f.LOOP_LAG.name, lambda: {(): state.lag.worst_s() if state.lag else 0.0})


def _profiles(state: RouterState) -> dict[tuple[str, ...], float]:
    servings = state.servings
    current, candidate = servings.current, servings.candidate
    found: dict[tuple[str, ...], float] = {(current.name, current.version, "active"): 1}
    if candidate is not None:
        found[candidate.name, candidate.version, "candidate"] = 1
    return found


def _phase(state: RouterState) -> dict[tuple[str, ...], float]:
    switch = state.conductor.agreed.switch
    return {} if switch is None else {(str(switch.phase),): 1}

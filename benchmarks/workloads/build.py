"""A plan from a workload: the one function that decides what a run sends.

Pure: equal arguments (and an equal trace file) give an equal plan, on every machine. It starts
nothing, and it finds everything that can be wrong with a workload before anything is sent.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from msgspec.structs import replace as replaced

from baton.errors import WorkloadError
from benchmarks.plan import Lane, Plan, PlannedRequest, Slo
from benchmarks.workloads.spec import ClosedArrivals, Workload
from benchmarks.workloads.synthetic import Scale, check_count, lanes, scheduled
from benchmarks.workloads.trace import plan_trace
from profiles import SloSpec


def build_plan(
    workload: Workload,
    *,
    seed: int | None = None,
    rate_scale: float = 1.0,
    time_scale: float = 1.0,
    duration_s: float | None = None,
) -> Plan:
    """Decides every request of a run.

    Args:
        workload: what to send.
        seed: instead of the workload's.
        rate_scale: open loop: rates are multiplied, which divides the distances of the same
            arrivals and leaves ``start_s`` and the duration alone. Closed loop: concurrency is
            multiplied and rounded, one client at least. Trace: its times are divided, so that
            the same rows come in less time; within a given duration, more of them.
        time_scale: stretches the whole: duration, ``start_s``, distances and pauses are
            multiplied, so rates fall. The pauses that people make do not shrink with
            ``rate_scale``, they do with this.
        duration_s: sending time, final: instead of the workload's after ``time_scale``. A trace
            that ends earlier ends the sending.

    Only requests with ``at_s`` below the duration are planned; those that follow them in their
    session are planned whenever they come.

    Raises:
        WorkloadError: the trace is broken, a scale is no positive number, or the plan would be
            empty or far too large.
    """
    seed = workload.spec.seed if seed is None else seed
    _check_positive(rate_scale=rate_scale, time_scale=time_scale, duration_s=duration_s)
    if not 0 <= seed <= 2**53:
        raise WorkloadError(f"seed must be from 0 to 2^53 (got {seed})")
    scale = Scale(rate_scale, time_scale)
    spec = workload.spec
    if duration_s is None and spec.duration_s is not None:
        duration_s = spec.duration_s * time_scale
    if spec.trace is not None:
        plan = _of_trace(workload, seed=seed, scale=scale, duration_s=duration_s)
    else:
        assert duration_s is not None  # the spec's rules have checked it
        plan = _of_classes(workload, seed=seed, scale=scale, duration_s=duration_s)
    if not plan.requests and not plan.lanes:
        left_out = "".join(f"; {n} rows left out ({why})" for why, n in plan.dropped.items())
        raise WorkloadError(
            f"workload {workload.name} plans no request within {plan.duration_s:g} s{left_out}"
        )
    return replace(plan, version=_version(workload, plan, scale))


def _check_positive(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise WorkloadError(f"{name} must be a positive number (got {value})")


def _of_classes(workload: Workload, *, seed: int, scale: Scale, duration_s: float) -> Plan:
    spec = workload.spec
    assert spec.classes is not None
    sessions: list[list[PlannedRequest]] = []
    closed: list[Lane] = []
    total = 0
    for name in sorted(spec.classes):
        entry = spec.classes[name]
        if isinstance(entry.arrivals, ClosedArrivals):
            if entry.start_s * scale.time < duration_s:
                closed += lanes(name, entry, seed=seed, scale=scale)
            continue
        for session in scheduled(name, entry, seed=seed, scale=scale, end_s=duration_s):
            sessions.append(session)
            total += len(session)
            check_count(total, f"workload {workload.name}")
    # Stable: of two that arrive together the class that is first in the alphabet goes first.
    sessions.sort(key=lambda session: session[0].at_s or 0.0)
    return Plan(
        workload=workload.name,
        version="",
        seed=seed,
        duration_s=duration_s,
        requests=_numbered(sessions),
        lanes=tuple(closed),
        slos=_slos(
            spec.classes, {name: entry.slo for name, entry in spec.classes.items()}, spec.slo
        ),
    )


def _of_trace(workload: Workload, *, seed: int, scale: Scale, duration_s: float | None) -> Plan:
    spec = workload.spec
    assert spec.trace is not None
    found = plan_trace(spec.trace, seed=seed, scale=scale, duration_s=duration_s)
    own = {name: entry.slo for name, entry in (spec.trace.classes or {}).items()}
    names = sorted({request.class_name for request in found.requests})
    return Plan(
        workload=workload.name,
        version="",
        seed=seed,
        duration_s=found.duration_s,
        requests=_numbered([request] for request in found.requests),
        slos=_slos(names, own, spec.slo),
        trace_sha256=found.sha256,
        dropped=found.dropped,
    )


def _numbered(sessions: Iterable[list[PlannedRequest]]) -> tuple[PlannedRequest, ...]:
    """All requests with an index of their own; within a session they followed each other's."""
    numbered: list[PlannedRequest] = []
    for session in sessions:
        first = len(numbered)
        numbered += [
            replaced(
                request,
                index=first + turn,
                after=None if request.after is None else first + request.after,
            )
            for turn, request in enumerate(session)
        ]
    return tuple(numbered)


def _slos(
    names: Iterable[str], own: Mapping[str, SloSpec | None], common: SloSpec | None
) -> dict[str, Slo]:
    """The service level of each class that has one: its own, or else the workload's."""
    levels = {name: own.get(name) or common for name in sorted(names)}
    return {
        name: Slo(ttft_s=level.ttft_s, tpot_s=level.tpot_s, e2e_s=level.e2e_s)
        for name, level in levels.items()
        if level is not None
    }


def _version(workload: Workload, plan: Plan, scale: Scale) -> str:
    """What decides the schedule: neither names nor places of files, but a trace's content."""
    spec = workload.canonical_spec()
    # Given here as what became of them.
    del spec["seed"], spec["duration_s"]
    if spec["trace"] is not None:
        del spec["trace"]["file"]
    decisive = {
        "spec": spec,
        "trace_sha256": plan.trace_sha256,
        "seed": plan.seed,
        "duration_s": plan.duration_s,
        "rate_scale": float(scale.rate),
        "time_scale": float(scale.time),
    }
    canonical = json.dumps(decisive, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()[:12]

"""Checks of a running router: whether it serves, and what it knows of its workers and pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from deploy.doctor.cluster import Cluster, NoRouter
from deploy.doctor.findings import Check, Said, many, note, ok, problem, warning

_MIB, _GIB = 1024**2, 1024**3
_MOST = 5

_PAIR_TODO = {
    "quarantined": "their KV came out wrong: replace one of the two workers, or compare weights "
    "and drivers; POST /admin/pairs/PREFILL/DECODE/release takes it back, if you are sure",
    "slow": "find the slow link (`baton doctor machine --peer` between the two nodes), or lower "
    "transfer.floor_mib_per_s",
    "refused": "the two do not fit each other: same profile, weights and engine version on both",
    "failed": "network policies must let workers reach each other's side channels (5600) and UCX's "
    "ports; see both workers' logs",
}


async def router(cluster: Cluster) -> Iterable[Said]:
    """Whether a router serves, with which workers, over pairs of which bandwidth."""
    if cluster.ask_router is None:
        return []
    try:
        status = await cluster.ask_router("/admin/status")
        answer = await cluster.ask_router("/admin/pairs")
    except NoRouter as error:
        return [
            problem(str(error), "kubectl port-forward svc/baton-router-admin 8001, and --admin-url")
        ]
    said = judge_workers(status)
    rows = answer.get("pairs")
    floor = cluster.profile.spec.transfer.floor_mib_per_s if cluster.profile else None
    return [*said, *judge_pairs(rows if isinstance(rows, list) else [], floor)]


def judge_workers(status: Mapping[str, Any]) -> list[Said]:
    """What a router says of its workers. Pure."""
    workers = [worker for worker in status.get("workers") or () if isinstance(worker, dict)]
    states = Counter(str(worker.get("record", {}).get("state")) for worker in workers)
    shown = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none"
    profile = (status.get("profile") or {}).get("name")
    seen = f"a router with profile {profile}; workers: {shown}"
    said: list[Said] = []
    if not states.get("ready"):
        said.append(
            problem(
                f"{seen}; nothing can be answered",
                "see the checks pods and tokens: workers register once they have generated",
            )
        )
    for worker in workers[: 10 * _MOST]:
        name = worker.get("record", {}).get("id")
        if worker.get("suspect") or worker.get("breaker") == "open":
            what = "suspect" if worker.get("suspect") else "not used, since its requests fail"
            said.append(
                warning(f"worker {name} is {what}", f"see its log; `baton drain {name}` spares it")
            )
    stranded = (status.get("handoffs") or {}).get("stranded") or []
    if stranded:
        held = sum(int(entry.get("kv_bytes") or 0) for entry in stranded)
        said.append(
            note(
                f"{many(len(stranded), 'handoff')}: they hold {held / _MIB:.0f} MiB of KV for "
                "nobody, until their leases end",
                "baton handoffs shows whose",
            )
        )
    return said if any(level != "note" for level, _, _ in said) else [ok(seen), *said]


def judge_pairs(rows: list[Any], floor_mib_per_s: float | None) -> list[Said]:
    """What a router says of its pairs; those of several processes count once. Pure."""
    pairs = {
        (row.get("prefill"), row.get("decode"), row.get("state")): row
        for row in rows
        if isinstance(row, dict)
    }
    bad: dict[str, list[Mapping[str, Any]]] = {}
    for (_, _, state), row in pairs.items():
        if state in _PAIR_TODO:
            bad.setdefault(str(state), []).append(row)
        elif _below(row, floor_mib_per_s):
            bad.setdefault("slow", []).append(row)
    said: list[Said] = []
    for state, found in sorted(bad.items()):
        some = "; ".join(
            f"{row['prefill']} -> {row['decode']}{_speed(row)}: {row.get('reason') or state}"
            for row in found[:_MOST]
        )
        level = problem if state == "quarantined" else warning
        said.append(level(f"{many(len(found), 'pair')} {state} ({some})", _PAIR_TODO[state]))
    if said or not pairs:
        return said
    speeds = [
        float(row["bandwidth_bytes_per_s"]) / _GIB
        for row in pairs.values()
        if row.get("bandwidth_bytes_per_s")
    ]
    shown = f", {min(speeds):.2f} to {max(speeds):.2f} GiB/s" if speeds else ""
    return [ok(f"{many(len(pairs), 'pair')}{shown}")]


def _below(row: Mapping[str, Any], floor_mib_per_s: float | None) -> bool:
    speed = row.get("bandwidth_bytes_per_s")
    # A lower bound says nothing of a pair that is faster.
    if floor_mib_per_s is None or not speed or not row.get("exact"):
        return False
    return float(speed) < floor_mib_per_s * _MIB


def _speed(row: Mapping[str, Any]) -> str:
    speed = row.get("bandwidth_bytes_per_s")
    return f" {float(speed) / _GIB:.2f} GiB/s" if speed else ""


ROUTER_CHECKS: tuple[Check[Cluster], ...] = (
    Check("router", "a router, its workers and pairs", router),
)

"""Autoscalers of pools: HorizontalPodAutoscalers by custom metrics, or KEDA's ScaledObjects.

Each pool has two targets or three, of which the one that asks for the most workers wins. Prefill
goes by requests that wait, since a prefill worker is full with a few prompts; decode and standard
by the share of their slots that runs and by KV memory, since their requests are admitted at once
and then slow each other down. What waits falls to zero as soon as it is served, and a pool that
goes by it alone swings: the running share keeps workers that have work.

Only leaders are counted: the scale subresource selects them, and they speak for their groups.
Utilization of GPUs is no target: it is high with one request already, and memory never shrinks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from baton.types import Role
from deploy.lws import labels, names
from deploy.lws.options.monitoring import POOL_LABEL, ROLE_LABEL
from deploy.lws.patches import add
from deploy.lws.tree import Json, Part, Patch, Target

if TYPE_CHECKING:
    from deploy.lws.site import Site
    from profiles import PoolSpec, ServingProfile

ENGINE_SLOTS: Final = 256
"""Sequences of a worker at a time where the profile does not say; as ``worker_plan`` has it."""

WAITING: Final = "num_requests_waiting"
RUNNING: Final = "num_requests_running"
KV_USAGE: Final = "kv_cache_usage_perc"
"""Engines' gauges without their prefix ``vllm:``; KV usage is a share from 0 to 1 despite its
name."""

_WHY: Final = (
    "Prefill grows by what waits, decode by running requests and KV memory. What waits is gone as "
    "soon as it is served, so that the running share, too, keeps a pool up. Down goes one worker "
    "at a time, and late: one that is missed takes minutes to load its model."
)

_KINDS: Final = frozenset({"HorizontalPodAutoscaler", "ScaledObject"})
_LWS: Final = {"apiVersion": "leaderworkerset.x-k8s.io/v1", "kind": "LeaderWorkerSet"}
_ROLE_SCALER: Final = {
    "apiVersion": "disaggregatedset.x-k8s.io/v1",
    "kind": "DisaggregatedSetRoleScaler",
}
"""What a DisaggregatedSet makes for a role that is scaled from outside."""

_STEP_S: Final = 60
_SETTLE_S: Final = 300
_POLL_S: Final = 15
_FAILURES: Final = 4
"""A minute without Prometheus before KEDA falls back."""


@dataclass(frozen=True, slots=True)
class Goal:
    """A target: the mean of a gauge over the leaders of a pool.

    Attributes:
        gauge: the engine's gauge, without prefix.
        mean: above it the pool grows, well below it shrinks.
    """

    gauge: str
    mean: float


def goals(role: Role, pool: PoolSpec, site: Site) -> tuple[Goal, ...]:
    """What a pool scales by, with the site's figures."""
    scaling = site.spec.autoscaling.of(role)
    slots = pool.max_num_seqs or ENGINE_SLOTS
    waiting = Goal(WAITING, scaling.waiting)
    running = Goal(RUNNING, scaling.running_share * slots)
    if role is Role.PREFILL:
        return (waiting, running)
    memory = Goal(KV_USAGE, scaling.kv_usage)
    if role is Role.DECODE:
        return (running, memory)
    return (waiting, running, memory)


def hpa(profile: ServingProfile, site: Site) -> Part | None:
    """HorizontalPodAutoscalers, one per pool; None unless the site asks for them."""
    if site.spec.autoscaling.kind != "hpa":
        return None
    adapter = (
        "Google's Custom Metrics Stackdriver Adapter, and the component podmonitoring."
        if site.spec.autoscaling.metrics == "managed"
        else "the Prometheus adapter with the rules in docs/kubernetes/options.md, and the "
        "component podmonitor."
    )
    return Part(
        name="hpa",
        about="HorizontalPodAutoscalers, one per pool, on what engines say of their queues. "
        "Replicas leave the pools' manifests, so that applying them again moves nothing.\n"
        f"Needs: {adapter}",
        files={"autoscalers.yaml": _scalers(profile, site)},
        abouts={"autoscalers.yaml": _WHY},
        patches=_free_replicas(profile),
    )


def keda(profile: ServingProfile, site: Site) -> Part | None:
    """KEDA's ScaledObjects, one per pool; None unless the site asks for them."""
    if site.spec.autoscaling.kind != "keda":
        return None
    return Part(
        name="keda",
        about="KEDA's ScaledObjects, one per pool, on Prometheus queries; KEDA makes the "
        "HorizontalPodAutoscalers itself. Pools whose site says zero go down to none. Replicas "
        "leave the pools' manifests, so that applying them again moves nothing.\n"
        "Needs: KEDA 2.17 or later, and the component podmonitor, or another scrape that gives the "
        f"labels {ROLE_LABEL} and {POOL_LABEL}.",
        files={"autoscalers.yaml": _scalers(profile, site)},
        abouts={"autoscalers.yaml": _WHY},
        patches=_free_replicas(profile),
    )


def autoscaler(profile: ServingProfile, role: Role, site: Site, name: str) -> Json | None:
    """The autoscaler of one pool as the site asks for it; None where it asks for none.

    Args:
        profile: whose pool.
        role: the pool's role.
        site: the cluster.
        name: of the LeaderWorkerSet that is scaled, and of the autoscaler.
    """
    pool = profile.spec.pools.get(role)
    kind = site.spec.autoscaling.kind
    if pool is None or kind == "none":
        return None
    make = _hpa if kind == "hpa" else _scaled_object
    return make(role, pool, site, name)


def _scalers(profile: ServingProfile, site: Site) -> list[Json]:
    made = (
        autoscaler(profile, role, site, names.pool_name(role))
        for role in profile.spec.pools.by_role
    )
    return [found for found in made if found is not None]


def _free_replicas(profile: ServingProfile) -> list[Patch]:
    """Replicas belong to the autoscaler. By name: pools that the controller makes have their
    replicas from it, until their autoscaler takes over."""
    return [
        Patch(
            "Replicas are the autoscaler's.",
            Target("LeaderWorkerSet", name=names.pool_name(role)),
            [{"op": "remove", "path": "/spec/replicas"}],
        )
        for role in profile.spec.pools.by_role
    ]


def of_set(part: Part, roles: Sequence[str]) -> Part:
    """A part whose autoscalers scale the roles of a DisaggregatedSet instead of
    LeaderWorkerSets; other parts come back as they are.

    Args:
        part: made for LeaderWorkerSets.
        roles: of the set, in its order.
    """
    scaled: list[str] = []

    def changed(found: Json) -> Json:
        spec = found.get("spec", {})
        target = spec.get("scaleTargetRef") if found["kind"] in _KINDS else None
        if target is None or target["kind"] != "LeaderWorkerSet":
            return found
        role = found["metadata"]["labels"][labels.ROLE]
        scaled.append(role)
        name = f"{names.DISAGGREGATED_SET}-{role}"
        new = {**spec, "scaleTargetRef": {**_ROLE_SCALER, "name": name}}
        if "triggers" in spec:
            # Children of a set are called by its revision, too.
            old = f'{POOL_LABEL}="{target["name"]}"'
            new["triggers"] = [
                {**one, "metadata": _asking(one["metadata"], old, f'{ROLE_LABEL}="{role}"')}
                for one in spec["triggers"]
            ]
        return {**found, "spec": new}

    files = {name: [changed(found) for found in objects] for name, objects in part.files.items()}
    told = [
        Patch(
            f"Role {role} is scaled from outside.",
            Target("DisaggregatedSet", name=names.DISAGGREGATED_SET),
            [add(f"/spec/roles/{index}/scaling", {"mode": "External"})],
        )
        for index, role in enumerate(roles)
        if role in scaled
    ]
    return dataclasses.replace(part, files=files, patches=[*part.patches, *told])


def _asking(metadata: Json, old: str, new: str) -> Json:
    return {**metadata, "query": metadata["query"].replace(old, new)}


def _behavior(site: Site) -> Json:
    """Up in small steps after a moment, down one by one after long: a worker that is missed takes
    minutes to load a model, and one that is too many costs as long."""
    scaling = site.spec.autoscaling
    return {
        "scaleUp": {
            "stabilizationWindowSeconds": scaling.scale_up_s,
            "selectPolicy": "Max",
            "policies": [
                {"type": "Pods", "value": 1, "periodSeconds": _STEP_S},
                {"type": "Percent", "value": 50, "periodSeconds": _STEP_S},
            ],
        },
        "scaleDown": {
            "stabilizationWindowSeconds": scaling.scale_down_s,
            "selectPolicy": "Min",
            "policies": [{"type": "Pods", "value": 1, "periodSeconds": _SETTLE_S}],
        },
    }


def _hpa(role: Role, pool: PoolSpec, site: Site, name: str) -> Json:
    low, high = site.spec.autoscaling.bounds(role, pool.replicas)
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": name, "labels": labels.pool_labels(role)},
        "spec": {
            "scaleTargetRef": {**_LWS, "name": name},
            "minReplicas": low,
            "maxReplicas": high,
            "metrics": [_pods_metric(goal, site) for goal in goals(role, pool, site)],
            "behavior": _behavior(site),
        },
    }


def _pods_metric(goal: Goal, site: Site) -> Json:
    return {
        "type": "Pods",
        "pods": {
            "metric": {"name": metric_name(goal.gauge, site)},
            "target": {"type": "AverageValue", "averageValue": quantity(goal.mean)},
        },
    }


def metric_name(gauge: str, site: Site) -> str:
    """What the site's adapter calls an engine's gauge."""
    if site.spec.autoscaling.metrics == "managed":
        return f"prometheus.googleapis.com|vllm:{gauge}|gauge"
    # The adapter's rules replace the colon, which its clients' paths take badly.
    return f"vllm_{gauge}"


def quantity(value: float) -> str:
    """A number as Kubernetes writes it, to a thousandth."""
    milli = round(value * 1000)
    return str(milli // 1000) if milli % 1000 == 0 else f"{milli}m"


def _scaled_object(role: Role, pool: PoolSpec, site: Site, name: str) -> Json:
    low, high = site.spec.autoscaling.bounds(role, pool.replicas)
    scaling = site.spec.autoscaling
    zero = scaling.of(role).zero
    spec: Json = {
        "scaleTargetRef": {**_LWS, "name": name},
        "pollingInterval": _POLL_S,
        # KEDA goes to none, and only there, after this.
        "cooldownPeriod": max(scaling.scale_down_s, _SETTLE_S),
        "minReplicaCount": 0 if zero else low,
        "maxReplicaCount": high,
        # Without Prometheus nobody knows the load: keep what there is, and the profile's replicas.
        "fallback": {
            "failureThreshold": _FAILURES,
            "replicas": pool.replicas,
            "behavior": "currentReplicasIfHigher",
        },
        "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behavior(site)}},
        "triggers": _triggers(role, pool, site, name),
    }
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {"name": name, "labels": labels.pool_labels(role)},
        "spec": spec,
    }


def _triggers(role: Role, pool: PoolSpec, site: Site, name: str) -> list[Json]:
    namespace = f'namespace="{site.spec.namespace}"'
    which = f'{POOL_LABEL}="{name}"'
    zero = site.spec.autoscaling.of(role).zero
    found = [
        _trigger(
            site,
            goal.gauge,
            f"sum(vllm:{goal.gauge}{{{namespace},{which}}})",
            goal.mean,
            null_is_zero=zero,
        )
        for goal in goals(role, pool, site)
    ]
    if zero:
        # A pool without workers has no gauges: the routers say that somebody asks for it.
        wanted = (
            f'sum(rate(baton_requests_total{{{namespace},reason="no_prefill_worker"}}[2m]))'
            if role is Role.PREFILL
            else f"sum(baton_requests_in_flight{{{namespace}}})"
        )
        each = 1 if role is Role.PREFILL else pool.max_num_seqs or ENGINE_SLOTS
        found.append(_trigger(site, "wanted", wanted, each, null_is_zero=True))
    return found


def _trigger(site: Site, name: str, query: str, threshold: float, *, null_is_zero: bool) -> Json:
    return {
        "type": "prometheus",
        "name": name.replace("_", "-"),
        "metricType": "AverageValue",
        "metadata": {
            "serverAddress": site.spec.autoscaling.prometheus_url or "",
            "query": query,
            "threshold": f"{threshold:g}",
            "activationThreshold": "0",
            # A pool with workers has series: without any the scrape is broken, and the fallback
            # holds. A pool that may be empty has none then.
            "ignoreNullValues": "true" if null_is_zero else "false",
        },
    }


__all__ = [
    "ENGINE_SLOTS",
    "KV_USAGE",
    "RUNNING",
    "WAITING",
    "Goal",
    "autoscaler",
    "goals",
    "hpa",
    "keda",
    "metric_name",
    "of_set",
    "quantity",
]

"""Alerts and recording rules as an object of the Prometheus operator.

The router's rules are those of ``deploy/observability/prometheus``, read from there, so that they
exist once. What is added here is about engines and pools, which only a cluster's Prometheus sees
as such: it needs the labels that ``monitoring`` gives to workers' series.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

import yaml

from deploy.lws import labels
from deploy.lws.options.monitoring import POOL_LABEL, ROLE_LABEL
from deploy.lws.tree import Json, Part

if TYPE_CHECKING:
    from deploy.lws.site import Site
    from profiles import ServingProfile

_RULES: Final = ("observability", "prometheus", "baton-alerts.yaml")

_BY_POOL: Final = f"sum by ({ROLE_LABEL}, {POOL_LABEL})"


def prometheusrule(profile: ServingProfile, site: Site) -> Part | None:
    """The rules that come with Baton, and those on its engines; None unless the site asks."""
    if "prometheusrule" not in site.spec.monitoring:
        return None
    groups = [*_router_groups(), {"name": "baton-pools", "interval": "30s", "rules": _recordings()}]
    alerts = [_waiting(), _cache_full()]
    if len(profile.spec.pools.by_role) > 1:
        alerts += [_transfers_fail(), _leases_expire()]
    return Part(
        name="prometheusrule",
        about="Alerts and recording rules: the routers' (deploy/observability/prometheus), and on "
        "engines by pool.\n"
        "Needs: the Prometheus operator, a Prometheus whose ruleSelector takes this object "
        "(monitor_labels of the site), and the component podmonitor, by whose labels the rules "
        "tell pools apart.",
        files={
            "rules.yaml": [
                {
                    "apiVersion": "monitoring.coreos.com/v1",
                    "kind": "PrometheusRule",
                    "metadata": {
                        "name": "baton",
                        "labels": {**labels.shared(), **site.spec.monitor_labels},
                    },
                    "spec": {"groups": [*groups, {"name": "baton-engines", "rules": alerts}]},
                }
            ]
        },
    )


@cache
def _router_groups() -> tuple[Any, ...]:
    """Read once: the file is long, and nobody changes what comes from it."""
    text = resources.files("deploy").joinpath(*_RULES).read_text("utf-8")
    return tuple(yaml.safe_load(text)["groups"])


def _recordings() -> list[Json]:
    sums = {
        "baton:pool_waiting:sum": "vllm:num_requests_waiting",
        "baton:pool_running:sum": "vllm:num_requests_running",
    }
    found = [{"record": name, "expr": f"{_BY_POOL} ({metric})"} for name, metric in sums.items()]
    found.append(
        {
            "record": "baton:pool_kv_usage:max",
            "expr": f"max by ({ROLE_LABEL}, {POOL_LABEL}) (vllm:kv_cache_usage_perc)",
        }
    )
    return found


def _alert(name: str, expr: str, minutes: int, summary: str, description: str, what: str) -> Json:
    return {
        "alert": name,
        "expr": expr,
        "for": f"{minutes}m",
        "labels": {"severity": "warning"},
        "annotations": {"summary": summary, "description": description, "runbook": what},
    }


def _waiting() -> Json:
    return _alert(
        "BatonPoolQueues",
        f"{_BY_POOL} (vllm:num_requests_waiting)"
        f" > {_BY_POOL} (vllm:num_requests_running) and baton:pool_waiting:sum > 0",
        10,
        f"More requests wait in {{{{ $labels.{POOL_LABEL} }}}} than are computed",
        "Engines have had longer queues than batches for ten minutes.",
        "See whether the pool's autoscaler is at its maximum, and whether nodes are to be had "
        "(pods Pending). Prefill: raise classify.threshold_tokens, or add workers. Decode: lower "
        "flow.slots_factor, so that requests wait in the router, in order of priority.",
    )


def _cache_full() -> Json:
    return _alert(
        "BatonKvCacheFull",
        "baton:pool_kv_usage:max > 0.95",
        10,
        f"An engine of {{{{ $labels.{POOL_LABEL} }}}} has no KV memory left",
        "Above 95 % engines preempt requests and compute their prompts again.",
        "rate(vllm:num_preemptions_total[5m]) says how often. Add workers, lower max_num_seqs, or "
        "give the pool more memory (tensor_parallel, gpu_memory_utilization).",
    )


def _transfers_fail() -> Json:
    return _alert(
        "BatonKvTransfersFail",
        f"{_BY_POOL} (increase(vllm:nixl_num_failed_transfers_total[10m])) > 0",
        10,
        f"Engines of {{{{ $labels.{POOL_LABEL} }}}} fail to pull KV caches",
        "NIXL reports failed transfers; clients see the second attempt, which costs a prefill.",
        "GET /admin/pairs names the pairs. Look at the network between the pools, at network "
        "policies for the side channel's port, and at UCX_NET_DEVICES where there is RDMA.",
    )


def _leases_expire() -> Json:
    return _alert(
        "BatonKvLeasesExpire",
        f"{_BY_POOL} (increase(vllm:nixl_num_kv_expired_reqs_total[10m])) > 0",
        15,
        f"KV caches in {{{{ $labels.{POOL_LABEL} }}}} expire before they are pulled",
        "Decode workers come too late, or not at all, for what prefill workers hold ready.",
        "Decode workers without free KV memory pull late: add some. Otherwise see "
        "baton_handoffs_total by state; raise transfer.lease_s if pulls are merely slow.",
    )

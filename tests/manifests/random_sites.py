"""Sites in numbers: a built-in one with some choices turned on, each of them or any together.

Every field of a site that decides what is rendered stands in ``CHOICES`` with the values that a
test tries; a test holds the list against the schema, so that a new field cannot be left out.
"""

from __future__ import annotations

import copy
import functools
import itertools
import random
from typing import Any

import yaml

from deploy.lws.render import Where
from deploy.lws.site import builtin_sites, site_from_text, site_text

_DIGEST = "sha256:" + "0123456789abcdef" * 4
_URL = "redis://redis.shared.svc:6379/0"
_ROUTE = {"kind": "httproute", "gateway_class": "gke-l7-regional-external-managed"}
_POOL = {"kind": "inferencepool", "gateway_class": "gke-l7-regional-external-managed"}
_KEDA = {"kind": "keda", "prometheus_url": "http://prometheus.monitoring:9090"}
_QUEUE = {"local_queue": "serving", "cluster_queue": "serving", "cohort": "all"}
_TOPOLOGY = ["cloud.example/block", "cloud.example/rack", "kubernetes.io/hostname"]

CHOICES: dict[str, list[Any]] = {
    "namespace": ["serving-of-team-a"],
    "weights": [
        {"kind": "demo"},
        {"kind": "hub"},
        {"kind": "hub", "claim": "hub-cache", "token_secret": "hub-token"},
        {"kind": "pvc", "claim": "models", "folder": "shop/8b"},
        {"kind": "nfs", "server": "nas.example", "path": "/export/models", "folder": "8b"},
        {"kind": "gcsfuse", "bucket": "shop-models", "folder": "8b"},
        {
            "kind": "gcsfuse",
            "bucket": "shop-models",
            "folder": "8b",
            "service_account": "serving@shop.iam.gserviceaccount.com",
        },
        {"kind": "image", "reference": f"registry.example/shop/8b@{_DIGEST}"},
    ],
    "store": [
        {"kind": "redis", "memory_mib": 1024},
        {"kind": "url", "url": _URL},
        {"kind": "url", "url_secret": "store-url"},
    ],
    "routers": [
        {"replicas": 1},
        {"replicas": 5, "processes": 4, "cpu": 2.5, "memory_gib": 1.5},
        {"otlp_endpoint": "http://collector.monitoring:4318"},
        {"endpoints_s": 1},
        {"endpoints_s": 40},
    ],
    "rdma": [
        {"resource": "rdma/hca_shared_devices_a"},
        {
            "resource": "nvidia.com/mlnxnics",
            "count": 2,
            "net_devices": "mlx5_0:1,mlx5_1:1",
            "gid_index": 3,
            "ipc_lock": False,
            "networks": "rdma-net",
        },
    ],
    "autoscaling": [
        {"kind": "none"},
        {"kind": "hpa", "decode": {"min": 1, "max": 7, "kv_usage": 0.55}},
        {"kind": "hpa", "metrics": "managed", "scale_up_s": 0, "scale_down_s": 3600},
        {**_KEDA},
        {**_KEDA, "standard": {"zero": True, "max": 9}, "prefill": {"zero": True, "waiting": 0.5}},
    ],
    "monitoring": [[], ["podmonitor", "prometheusrule"], ["podmonitoring"]],
    "monitor_labels": [{"release": "kube-prometheus-stack"}],
    "queue": [
        {"local_queue": "serving"},
        {**_QUEUE, "quota": {"nvidia-l4": 16, "nvidia-a100-80gb": 8, "cpu": 4}},
        {**_QUEUE, "topology": _TOPOLOGY},
    ],
    "dra": [True],
    "gateway": [
        {**_ROUTE},
        {**_ROUTE, "hostname": "llm.shop.example", "tls_secret": "llm-tls"},
        {**_POOL},
        {**_POOL, "hostname": "llm.shop.example", "picker": "shop-epp", "picker_port": 9003},
    ],
    "controller": [{}, {"replicas": 1, "retire_s": 0}],
    "workload": ["disaggregatedset"],
    "topology_key": [None, "topology.kubernetes.io/rack"],
    "topology_exclusive": [True],
    "startup_limit_s": [30, 86_400],
    "image_nodes": [
        {"cloud.google.com/gke-image-streaming": "true"},
        {"cloud.google.com.node-restriction.kubernetes.io/gke-secondary-boot-disk-baton": "x"},
    ],
    "access": [{}, {"metrics_from": ["monitoring", "gmp-system"], "admin_from": ["operators"]}],
}
"""Field of a site's spec to the values that are tried."""

FIXED = {"images", "accelerators", "other_accelerators"}
"""Fields that are the built-in sites' own: what machines there are, and what runs on them."""


def each_choice() -> list[tuple[str, str, Any]]:
    """Every value of every choice alone: the field, the built-in site to put it into, the value."""
    with_accelerators = itertools.cycle([name for name in builtin_sites() if name != "kind-cpu"])
    return [
        (name, next(with_accelerators), value)
        for name, values in CHOICES.items()
        for value in values
    ]


def place_with(base: str, **changes: Any) -> Where:
    """A built-in site with some fields of its spec changed.

    Raises:
        SettingsError: they do not go together.
    """
    data = copy.deepcopy(_builtin(base))
    data["spec"].update(changes)
    text = yaml.safe_dump(data, sort_keys=False)
    return Where(site_from_text(text, f"{base}.yaml"), text)


@functools.cache
def _builtin(name: str) -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(site_text(name)[0])
    return data


def random_place(rng: random.Random, **always: Any) -> Where:
    """A built-in site with a random number of choices; ``always`` are kept as they are."""
    names = [name for name in CHOICES if name not in always]
    taken = rng.sample(names, rng.randint(0, len(names) // 2))
    changes = {name: rng.choice(CHOICES[name]) for name in taken}
    if "topology_exclusive" in taken:
        # It says of which domain.
        changes["topology_key"] = CHOICES["topology_key"][1]
    return place_with(rng.choice(builtin_sites()), **{**changes, **always})

"""Who may reach whom: nobody, but for what stands here.

Probes need no rule: they come from the pod's own node, which policies do not hold off. Nothing is
said of what pods may reach: names are asked of the cluster's DNS, weights come from outside, and
engines of a group and of a pair choose their ports.
"""

from __future__ import annotations

from collections.abc import Sequence

from deploy.lws import labels, names
from deploy.lws.tree import Json

DENY = "baton-deny"
WORKERS = "baton-workers"


def policies() -> list[Json]:
    """The base's policies, routers first."""
    return [
        policy(DENY, {}, []),
        policy(
            names.ROUTER,
            {"matchLabels": labels.selector(labels.ROUTER)},
            [{"ports": [port("http")]}],
        ),
        policy(
            WORKERS,
            workers(),
            [
                {"from": [pods(labels.ROUTER)], "ports": [port("http")]},
                # Handshakes, KV caches and groups: UCX, torch and gloo choose ports of their own.
                {"from": [{"podSelector": workers()}]},
            ],
        ),
    ]


def kv_events() -> Json:
    """A rule by which routers hear of the workers' caches."""
    ports = [port("kv-events"), port("kv-replay")]
    return {"from": [pods(labels.ROUTER)], "ports": ports}


def workers() -> Json:
    """Selects the pods of all pools, whatever their role."""
    return {
        "matchLabels": {labels.NAME: labels.BATON},
        "matchExpressions": [{"key": labels.ROLE, "operator": "Exists"}],
    }


def pods(component: str) -> Json:
    """The pods of a component, in this namespace, as a peer."""
    return {"podSelector": {"matchLabels": labels.selector(component)}}


def namespaces(found: Sequence[str]) -> list[Json]:
    """All pods of these namespaces, as peers."""
    return [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}
        for name in found
    ]


def port(name: str | int) -> Json:
    """A TCP port by its number, or by its name in the pods."""
    return {"port": name}


def policy(name: str, selector: Json, ingress: list[Json]) -> Json:
    """A NetworkPolicy for what comes in; without rules nothing does."""
    spec: Json = {"podSelector": selector, "policyTypes": ["Ingress"]}
    if ingress:
        spec["ingress"] = ingress
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "labels": labels.shared()},
        "spec": spec,
    }

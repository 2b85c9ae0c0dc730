"""The routers: what they run as, what they may read, how they are reached.

They are the only pods that clients meet. They keep nothing of their own: workers, switches and
figures are in the store, profiles in a ConfigMap.
"""

from __future__ import annotations

import math
from typing import Final

from deploy.lws import labels, names
from deploy.lws.site_sections import ENDPOINTS_S
from deploy.lws.tree import Json
from deploy.lws.worker_pod import (
    container_security,
    from_field,
    from_secret,
    pod_security,
    store_url,
)
from profiles import ServingProfile

IMAGE: Final = "baton/router"
"""Stands in the base, which runs on no cluster; overlays put the site's in its place."""

HOME: Final = "/var/lib/baton"
PROFILES_ENV: Final = 0
"""Index of BATON_PROFILES among the container's variables, for the controller's patch."""
STORE_ENV: Final = 2

_START: Final = "/etc/baton/profile"

_MARGIN_S: Final = 10


def deployment(profile: ServingProfile) -> Json:
    """The router's Deployment."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": names.ROUTER, "labels": labels.labels(labels.ROUTER)},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": labels.selector(labels.ROUTER)},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
            },
            "template": {
                "metadata": {
                    "labels": labels.labels(labels.ROUTER),
                    "annotations": {"kubectl.kubernetes.io/default-container": "router"},
                },
                "spec": {
                    "serviceAccountName": names.ROUTER,
                    "securityContext": pod_security(),
                    "terminationGracePeriodSeconds": grace_s(profile, ENDPOINTS_S),
                    "topologySpreadConstraints": [
                        _spread("kubernetes.io/hostname"),
                        _spread("topology.kubernetes.io/zone"),
                    ],
                    "containers": [_container()],
                    "volumes": [
                        {"name": "profile", "configMap": {"name": names.START}},
                        {"name": "home", "emptyDir": {}},
                        {"name": "tmp", "emptyDir": {}},
                    ],
                },
            },
        },
    }


def grace_s(profile: ServingProfile, endpoints_s: int) -> int:
    """``terminationGracePeriodSeconds``: until nobody sends requests here any more, the drain, and
    a margin."""
    return endpoints_s + math.ceil(profile.spec.limits.drain_s) + _MARGIN_S


def _spread(key: str) -> Json:
    return {
        "maxSkew": 1,
        "topologyKey": key,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": labels.selector(labels.ROUTER)},
    }


def _container() -> Json:
    return {
        "name": "router",
        "image": IMAGE,
        "command": ["python", "-m", "router"],
        "env": [
            {"name": "BATON_PROFILES", "value": f"configmap:{names.PROFILES}"},
            {"name": "BATON_PROFILE", "value": f"{_START}/{names.START_KEY}"},
            {"name": "BATON_STORE", "value": store_url()},
            from_secret("BATON_CLUSTER_TOKEN", names.CLUSTER_TOKEN_KEY),
            from_secret("BATON_ADMIN_TOKEN", names.ADMIN_TOKEN_KEY),
            from_field("BATON_NODE_NAME", "spec.nodeName"),
            {"name": "BATON_HOST", "value": "0.0.0.0"},
            {"name": "BATON_ADMIN_HOST", "value": "0.0.0.0"},
            {"name": "BATON_LOG_FORMAT", "value": "json"},
            {"name": "BATON_HOME", "value": HOME},
            # Tokenizers of hub models are kept below it.
            {"name": "HOME", "value": HOME},
        ],
        "ports": [
            {"name": "http", "containerPort": names.ROUTER_PORT},
            {"name": "admin", "containerPort": names.ADMIN_PORT},
        ],
        "resources": {
            "requests": {"cpu": "1", "memory": "1Gi"},
            "limits": {"memory": "1Gi"},
        },
        "readinessProbe": {
            # Workers or not: routers that leave the Service hold nobody's request until workers
            # come, and an autoscaler that wakes pools by what waits would see nothing.
            "httpGet": {"path": "/readyz?workers=0", "port": "http"},
            "periodSeconds": 2,
            "timeoutSeconds": 2,
        },
        "livenessProbe": {
            "httpGet": {"path": "/healthz", "port": "http"},
            "initialDelaySeconds": 10,
            "timeoutSeconds": 5,
        },
        "lifecycle": {"preStop": {"sleep": {"seconds": ENDPOINTS_S}}},
        "securityContext": container_security(),
        "volumeMounts": [
            {"name": "profile", "mountPath": _START, "readOnly": True},
            {"name": "home", "mountPath": HOME},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a mount, no file of ours
        ],
    }


def services() -> list[Json]:
    """For clients, and apart from it for operators."""
    admin = _service(
        names.ROUTER_ADMIN, {"name": "admin", "port": names.ADMIN_PORT, "targetPort": "admin"}
    )
    # A router that has not read its store is not ready, and operators ask it all the same.
    admin["spec"]["publishNotReadyAddresses"] = True
    return [_service(names.ROUTER, {"name": "http", "port": 80, "targetPort": "http"}), admin]


def _service(name: str, port: Json) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": labels.labels(labels.ROUTER)},
        "spec": {"selector": labels.selector(labels.ROUTER), "ports": [port]},
    }


def start_map(text: str) -> Json:
    """The profile that a router begins with while neither store nor source says more: one of its
    own, so that no edit of ``baton-profiles`` can keep routers from starting."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": names.START, "labels": labels.labels(labels.ROUTER)},
        "data": {names.START_KEY: text},
    }


def disruption_budget() -> Json:
    """One router at a time may be evicted."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": names.ROUTER, "labels": labels.labels(labels.ROUTER)},
        "spec": {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": labels.selector(labels.ROUTER)},
        },
    }


def access() -> list[Json]:
    """The service account, and the Role by which it follows profiles and tells what became of
    them (docs/profile-sources.md)."""
    return [
        service_account(names.ROUTER, labels.ROUTER),
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": {"name": names.ROUTER, "labels": labels.labels(labels.ROUTER)},
            "rules": [
                {
                    "apiGroups": [""],
                    "resources": ["configmaps"],
                    "resourceNames": [names.PROFILES],
                    "verbs": ["list", "watch"],
                },
                {
                    "apiGroups": [""],
                    "resources": ["configmaps"],
                    "resourceNames": [f"{names.PROFILES}-status"],
                    "verbs": ["get", "patch"],
                },
                {"apiGroups": [""], "resources": ["configmaps", "events"], "verbs": ["create"]},
            ],
        },
        binding(names.ROUTER, labels.ROUTER),
    ]


def service_account(name: str, component: str, *, token: bool = True) -> Json:
    """A ServiceAccount; without ``token`` its pods get none for the Kubernetes API."""
    found: Json = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {
            "name": name,
            "labels": labels.labels(component) if component else labels.shared(),
        },
    }
    if not token:
        found["automountServiceAccountToken"] = False
    return found


def binding(name: str, component: str) -> Json:
    """Gives the service account of a name the Role of the same name."""
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": name, "labels": labels.labels(component)},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        # Its namespace follows the overlay's.
        "subjects": [{"kind": "ServiceAccount", "name": name}],
    }

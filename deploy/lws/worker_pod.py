"""The pod of a worker: what is the same on every cluster. Overlays and components add to it what
differs: image, nodes, devices, weights.

One template serves leader and followers alike, because LeaderWorkerSet tells each container in
variables (``LWS_*``) what it is. The template's lists and maps that components add to are never
empty, so that an RFC 6902 ``add`` of one entry always finds them.
"""

from __future__ import annotations

import math
from typing import Final

from baton.types import Role
from deploy.lws import labels, names
from deploy.lws.tree import Json
from profiles import PoolSpec, ServingProfile

USER: Final = 10001
"""The user of all of Baton's images; a number, so that runAsNonRoot can be checked."""

IMAGE: Final = "baton/worker"
"""Stands in the base, which runs on no cluster; overlays put the site's in its place."""

PROFILE_FOLDER: Final = "/etc/baton/profile"
PROFILE_FILE: Final = "profile.yaml"
HOME: Final = "/var/lib/baton"
MODELS: Final = "/models"

PROBE_PERIOD_S: Final = 10
ENGINE_STOP_S: Final = 15
"""Grace that the supervisor gives its engine after the drain."""
_MARGIN_S: Final = 15
"""For the kubelet, the registry's last word and the interpreter's exit."""

STARTUP_LIMIT_S: Final = 1800
"""As in the base; a site may say otherwise."""

_MODULES = {Role.PREFILL: "prefill", Role.DECODE: "decode", Role.STANDARD: "decode"}


def drain_limit_s(profile: ServingProfile, role: Role) -> float:
    """How long a worker's drain may take, in seconds: as the roles themselves reckon it. A
    prefill worker keeps what it offered last for one lease more."""
    lease_s = profile.spec.transfer.lease_s if role is Role.PREFILL else 0
    return profile.spec.limits.drain_s + lease_s


def grace_s(profile: ServingProfile, role: Role) -> int:
    """``terminationGracePeriodSeconds``: the drain, the engine's stop, and a margin."""
    return math.ceil(drain_limit_s(profile, role)) + ENGINE_STOP_S + _MARGIN_S


def pod_template(profile: ServingProfile, role: Role, pool: PoolSpec) -> Json:
    """The template of a pool's pods, leaders and followers."""
    return {
        "metadata": {
            "labels": labels.pool_labels(role),
            "annotations": {"kubectl.kubernetes.io/default-container": names.CONTAINER},
        },
        "spec": {
            "serviceAccountName": names.WORKER,
            "automountServiceAccountToken": False,
            "securityContext": pod_security(),
            "terminationGracePeriodSeconds": grace_s(profile, role),
            "nodeSelector": {"kubernetes.io/os": "linux"},
            "containers": [_container(profile, role, pool)],
            "volumes": [
                {"name": "profile", "configMap": {"name": names.pool_name(role)}},
                {"name": "home", "emptyDir": {}},
                {"name": "tmp", "emptyDir": {}},
                {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
            ],
        },
    }


def pod_security(user: int = USER) -> Json:
    """The security context of a pod, as the Pod security level ``restricted`` asks for it."""
    return {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": user,
        "fsGroup": user,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> Json:
    """The security context of a container, as ``restricted`` asks for it, and nothing writable."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def from_secret(variable: str, key: str, *, secret: str = names.TOKENS) -> Json:
    """A variable that a Secret holds."""
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}


def from_field(variable: str, path: str) -> Json:
    """A variable that holds a field of the pod."""
    return {"name": variable, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def _container(profile: ServingProfile, role: Role, pool: PoolSpec) -> Json:
    ports: list[Json] = [
        {"name": "http", "containerPort": names.HTTP_PORT},
        {"name": "health", "containerPort": names.HEALTH_PORT},
        {"name": "side-channel", "containerPort": names.SIDE_CHANNEL_PORT},
    ]
    if profile.spec.routing.prefix == "exact":
        ports.append({"name": "kv-events", "containerPort": names.KV_EVENTS_PORT})
        ports.append({"name": "kv-replay", "containerPort": names.KV_EVENTS_PORT + 1})
    if pool.nodes > 1:
        ports.append({"name": "group", "containerPort": names.GROUP_PORT})
    return {
        "name": names.CONTAINER,
        "image": IMAGE,
        "command": ["python", "-m", _MODULES[role]],
        "env": _env(role),
        "ports": ports,
        "resources": {
            "requests": {"cpu": "1", "memory": "4Gi"},
            "limits": {"memory": "4Gi"},
        },
        "startupProbe": {
            "httpGet": {"path": "/livez", "port": "health"},
            "periodSeconds": PROBE_PERIOD_S,
            "failureThreshold": STARTUP_LIMIT_S // PROBE_PERIOD_S,
        },
        "readinessProbe": {
            "httpGet": {"path": "/readyz", "port": "health"},
            "periodSeconds": 2,
            "timeoutSeconds": 2,
        },
        "livenessProbe": {
            "httpGet": {"path": "/livez", "port": "health"},
            "periodSeconds": 5,
            "timeoutSeconds": 3,
        },
        "lifecycle": {"preStop": {"exec": {"command": _drain(profile, role)}}},
        "securityContext": container_security(),
        "volumeMounts": [
            {"name": "profile", "mountPath": PROFILE_FOLDER, "readOnly": True},
            {"name": "home", "mountPath": HOME},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a mount, no file of ours
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
        ],
    }


def _drain(profile: ServingProfile, role: Role) -> list[str]:
    limit = f"{drain_limit_s(profile, role):g}"
    return ["python", "-m", "baton.worker.drain", "--limit", limit]


def _env(role: Role) -> list[Json]:
    env: list[Json] = [
        {"name": "BATON_PROFILE", "value": f"{PROFILE_FOLDER}/{PROFILE_FILE}"},
        {"name": "BATON_REGISTRY", "value": store_url()},
        from_secret("BATON_CLUSTER_TOKEN", names.CLUSTER_TOKEN_KEY),
        from_field("POD_IP", "status.podIP"),
        from_field("BATON_WORKER_ID", "metadata.name"),
        from_field("BATON_NODE_NAME", "spec.nodeName"),
        {"name": "BATON_HOST", "value": "0.0.0.0"},
        {"name": "BATON_ADVERTISE_URL", "value": f"http://$(POD_IP):{names.HTTP_PORT}"},
        {"name": "BATON_HEALTH_PORT", "value": str(names.HEALTH_PORT)},
        {"name": "BATON_HOME", "value": HOME},
        # Engines keep what they compile, and the hub's client what it fetches, below it.
        {"name": "HOME", "value": HOME},
    ]
    if role is Role.STANDARD:
        env.append({"name": "BATON_ROLE", "value": role.value})
    return env


def store_url() -> str:
    """The URL of the Redis that the base's pods expect in their own namespace."""
    return f"redis://{names.STORE}:{names.STORE_PORT}/0"

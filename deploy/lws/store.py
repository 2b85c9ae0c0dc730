"""A small Redis: workers register in it, and routers agree by it.

It keeps nothing over a restart, and need not: workers and routers write themselves down anew
within a second (docs/redis.md), and the profile that is active is taken from the ConfigMap. API
keys are another matter, so that a site with tenants has to name a Redis that keeps them.
"""

from __future__ import annotations

from deploy.lws import labels, names
from deploy.lws.network import pods, policy, port, workers
from deploy.lws.site import Site
from deploy.lws.site_sections import RedisSpec
from deploy.lws.tree import Json, Part
from deploy.lws.worker_pod import container_security, pod_security

NAME = "redis"
_USER = 999
"""Of the official image."""


def redis(site: Site) -> Part | None:
    """The component; None for a site with a Redis of its own."""
    store = site.spec.store
    if not isinstance(store, RedisSpec):
        return None
    return Part(
        name=NAME,
        about="A small Redis, in which workers register and by which routers agree. It keeps "
        "nothing over a restart: all of them write themselves down anew within a second. Its one "
        "pod may be restarted and moved while requests are served.",
        files={"redis.yaml": [_service(), _stateful_set(site, store), _policy()]},
    )


def _service() -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": names.STORE, "labels": labels.labels(labels.STORE)},
        "spec": {
            "selector": labels.selector(labels.STORE),
            "ports": [{"name": "redis", "port": names.STORE_PORT, "targetPort": "redis"}],
        },
    }


def _stateful_set(site: Site, store: RedisSpec) -> Json:
    # Half for the process itself, its clients' buffers and fragmentation.
    data_mib = store.memory_mib // 2
    secret = site.spec.images.pull_secret
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": names.STORE, "labels": labels.labels(labels.STORE)},
        "spec": {
            "replicas": 1,
            "serviceName": names.STORE,
            "selector": {"matchLabels": labels.selector(labels.STORE)},
            "template": {
                "metadata": {"labels": labels.labels(labels.STORE)},
                "spec": {
                    "automountServiceAccountToken": False,
                    "securityContext": pod_security(_USER),
                    "containers": [
                        {
                            "name": "redis",
                            "image": site.spec.images.store,
                            "command": ["redis-server"],
                            "args": [
                                *("--save", "", "--appendonly", "no"),
                                *("--maxmemory", f"{data_mib}mb"),
                                *("--maxmemory-policy", "noeviction"),
                                *("--dir", "/tmp"),  # noqa: S108 - nothing is written
                            ],
                            "ports": [{"name": "redis", "containerPort": names.STORE_PORT}],
                            "resources": {
                                "requests": {"cpu": "100m", "memory": f"{store.memory_mib}Mi"},
                                "limits": {"memory": f"{store.memory_mib}Mi"},
                            },
                            "readinessProbe": {"tcpSocket": {"port": "redis"}, "periodSeconds": 2},
                            "livenessProbe": {"tcpSocket": {"port": "redis"}},
                            "securityContext": container_security(),
                            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108
                        }
                    ],
                    "volumes": [{"name": "tmp", "emptyDir": {}}],
                    **({"imagePullSecrets": [{"name": secret}]} if secret else {}),
                },
            },
        },
    }


def _policy() -> Json:
    peers = [pods(labels.ROUTER), {"podSelector": workers()}]
    return policy(
        names.STORE,
        {"matchLabels": labels.selector(labels.STORE)},
        [{"from": peers, "ports": [port("redis")]}],
    )

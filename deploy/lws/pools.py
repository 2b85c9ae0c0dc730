"""The objects of one pool, and the key by which two pools are told to have the same pods.

The tree and the controller make pools from the same data: what a pool is on a site is what the
site's overlay makes of it, so that the controller can take over a pool that Git made, and the
other way round.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from baton.types import Role
from deploy.lws import labels, names, yaml_text
from deploy.lws.tree import Json
from deploy.lws.worker_pod import PROFILE_FILE, pod_template
from profiles import PoolSpec, ServingProfile

_FIRST = {"LeaderWorkerSet": 0, "ConfigMap": 1, "PodDisruptionBudget": 2}
_NOT_OF_ENGINES = {"replicas", "price_per_hour", "takes"}
"""Fields of a pool that its pods do not depend on."""


def pool(profile: ServingProfile, role: Role) -> Json:
    """The LeaderWorkerSet of a pool, as the base holds it."""
    spec = profile.spec.pools.by_role[role]
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": {
            "name": names.pool_name(role),
            "labels": labels.pool_labels(role),
            "annotations": {
                labels.PROFILE: profile.name,
                labels.PROFILE_VERSION: profile.version,
            },
        },
        "spec": pool_spec(profile, role, spec),
    }


def pool_spec(profile: ServingProfile, role: Role, spec: PoolSpec) -> Json:
    """What a LeaderWorkerSet and a role of a DisaggregatedSet have in common."""
    return {
        "replicas": spec.replicas,
        "startupPolicy": "LeaderCreated",
        "rolloutStrategy": {
            "type": "RollingUpdate",
            "rollingUpdateConfiguration": {"maxSurge": 1, "maxUnavailable": 0},
        },
        "leaderWorkerTemplate": {
            "size": spec.nodes,
            "restartPolicy": _restart_policy(spec),
            "workerTemplate": pod_template(profile, role, spec),
        },
    }


def _restart_policy(spec: PoolSpec) -> str:
    """What becomes of a group when a container in it ends.

    A group of several is made anew as a whole: ranks that are half there hang. A worker of one pod
    is the kubelet's business: LeaderWorkerSet would delete the pod at each restart, and with it the
    back-off between tries, the log of the last one, and what the engine had compiled.
    """
    return "None" if spec.nodes == 1 else "RecreateGroupOnPodRestart"


def disruption_budget(role: Role) -> Json:
    """One worker of a pool at a time may be evicted; with a group, all of its pods are gone."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": names.pool_name(role), "labels": labels.pool_labels(role)},
        "spec": {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": {**labels.selector(role), labels.ROLE: role.value}},
        },
    }


def profile_map(profile: ServingProfile, role: Role, key: str) -> Json:
    """The ConfigMap that a pool's pods mount: the profile that their engines start from.

    Its name holds the pool's key: whatever becomes of the profile, under one name it says the
    same to engines, and pods of a pool never start from two different texts.
    """
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": names.keyed_pool_name(role, key),
            "labels": labels.pool_labels(role, key),
        },
        "data": {PROFILE_FILE: profile_text(profile)},
    }


def profile_text(profile: ServingProfile) -> str:
    """A profile as YAML, without what is at its default; the same for equal profiles."""
    data = profile.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return yaml_text.dump(data)


def key_of(template: Json, profile: ServingProfile, role: Role) -> str:
    """8 hex digits over all that shapes a pool's pods; the first is a letter, so that names may
    begin with it, and no reader of YAML takes it for a number.

    Args:
        template: the pool's ``leaderWorkerTemplate`` on its site, all patches applied.
        profile: what the pool is made from; only what engines are started with counts.
        role: the pool.
    """
    shape = copy.deepcopy(template)
    for kind in ("leaderTemplate", "workerTemplate"):
        found = shape.get(kind)
        if found is not None:
            found["metadata"]["labels"].pop(labels.POOL, None)
            found["spec"]["volumes"] = [
                volume for volume in found["spec"]["volumes"] if volume["name"] != "profile"
            ]
    spec = profile.canonical_spec()
    engine = {
        "model": spec["model"],
        "pool": {k: v for k, v in spec["pools"][role.value].items() if k not in _NOT_OF_ENGINES},
        "transfer": spec["transfer"],
        "prefix": spec["routing"]["prefix"],
        "drain_s": spec["limits"]["drain_s"],
    }
    text = json.dumps([role.value, shape, engine], sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()
    return "abcdef"[int(digest[0], 16) % 6] + digest[1:8]


def renamed(objects: Sequence[Json], old: str, new: str) -> list[Json]:
    """The objects of a pool under another pool's name: their names, and where they name each
    other. A ConfigMap keeps its name, which holds the key."""
    if old == new:
        return list(objects)
    called = {
        name: new + name.removeprefix(old)
        for name in (found["metadata"]["name"] for found in objects if found["kind"] != "ConfigMap")
        if name == old or name.startswith(f"{old}-")
    }
    return [_renamed(found, called) for found in objects]


def _renamed(found: Json, called: Mapping[str, str]) -> Json:
    changed = copy.deepcopy(found)
    metadata, spec = changed["metadata"], changed.get("spec", {})
    if changed["kind"] != "ConfigMap":
        metadata["name"] = called.get(metadata["name"], metadata["name"])
    reference = spec.get("scaleTargetRef", {})
    if reference.get("name") in called:
        reference["name"] = called[reference["name"]]
    for trigger in spec.get("triggers", []):
        for old, new in called.items():
            asked = trigger["metadata"]["query"].replace(f'"{old}"', f'"{new}"')
            trigger["metadata"]["query"] = asked
    pod = spec.get("leaderWorkerTemplate", {}).get("workerTemplate", {}).get("spec", {})
    for claim in pod.get("resourceClaims", []):
        template = claim.get("resourceClaimTemplateName")
        claim["resourceClaimTemplateName"] = called.get(template, template)
    return changed


def of_pool(objects: Sequence[Json], role: Role) -> list[Json]:
    """Those objects that belong to the pool of a role, the LeaderWorkerSet first."""
    found = [o for o in objects if _labels(o).get(labels.ROLE) == role.value]
    return sorted(found, key=lambda o: _FIRST.get(o["kind"], len(_FIRST)))


def _labels(found: Json) -> dict[str, Any]:
    return found["metadata"].get("labels") or {}

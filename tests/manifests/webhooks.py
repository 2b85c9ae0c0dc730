"""Admission rules of LeaderWorkerSet, DisaggregatedSet, Kueue and KEDA that no schema says.

Written from what their webhooks do (kubernetes-sigs/lws pkg/webhooks, kueue pkg/webhooks, keda
apis/keda/v1alpha1). Only for objects that are created: what must not change is theirs to hold.
"""

from __future__ import annotations

from tests.manifests import names
from tests.manifests.findings import Findings, Json, Path, dig, entries, mapping, repeated
from tests.manifests.pods import LWS

_MAX_INT32 = 2**31 - 1
_REVISION = 11
"""A dash and ten characters: what a StatefulSet adds to its name in a label of its pods."""
_KUEUE_LIMIT = 39
"""Characters of a LeaderWorkerSet's name: Kueue makes names of Workloads from it."""
_QUEUE = "kueue.x-k8s.io/queue-name"
_EXCLUSIVE = (f"{LWS}/exclusive-topology", f"{LWS}/subgroup-exclusive-topology")


def leader_worker_set(found: Json) -> Findings:
    """LWS's validating webhook, and the length that names of its pods leave."""
    metadata, spec = mapping(found.get("metadata")), mapping(found.get("spec"))
    replicas = spec.get("replicas", 1)
    # The label controller-revision-hash of a worker: <name>-<group>-<hash>.
    room = 63 - 1 - len(str(max(replicas - 1, 0))) - _REVISION
    queued = _QUEUE in mapping(metadata.get("labels"))
    limit = min(room, _KUEUE_LIMIT) if queued else room
    if wrong := names.dns_1035(metadata.get("name"), limit):
        yield ("metadata", "name"), wrong
    yield from _spec(spec, ("spec",))
    sub = _EXCLUSIVE[1]
    if sub in mapping(metadata.get("annotations")) and not _sub_groups(spec):
        yield ("metadata", "annotations", sub), "has no meaning without subGroupPolicy"


def disaggregated_set(found: Json) -> Findings:
    """LWS's validating webhook for DisaggregatedSets."""
    name, spec = str(dig(found, "metadata").get("name")), mapping(found.get("spec"))
    slices = spec.get("slices", 1)
    roles = list(entries(spec.get("roles")))
    if wrong := names.dns_1035(name):
        yield ("metadata", "name"), wrong
    external = False
    for index, role in roles:
        path: Path = ("spec", "roles", index)
        below = mapping(role.get("spec"))
        external = external or dig(role, "scaling").get("mode") == "External"
        yield from _spec(below, (*path, "spec"))
        if dig(below, "rolloutStrategy", "rollingUpdateConfiguration").get("partition"):
            at = (*path, "spec", "rolloutStrategy", "rollingUpdateConfiguration", "partition")
            yield at, "is not supported: roles roll out together"
        groups = len(str(max(below.get("replicas", 1) - 1, 0)))
        # <name>-<slice>-<8 characters of a revision>-<role>, and what its StatefulSets add.
        length = len(name) + 3 + len(str(slices - 1)) + 8 + len(str(role.get("name")))
        if length + 1 + groups + _REVISION > 63:
            yield (*path, "name"), f"makes names of {length + 1 + groups + _REVISION} characters"
    if external and slices > 1:
        yield ("spec", "slices"), "must be 1 while a role is scaled from outside"
    placement = mapping(spec.get("placementPolicy"))
    if placement.get("type", "None") != "None":
        yield from _placement(placement, roles)


def _placement(placement: Json, roles: list[tuple[int, Json]]) -> Findings:
    if not placement.get("topology"):
        yield ("spec", "placementPolicy", "topology"), "is required"
    for index, role in roles:
        group = dig(role, "spec", "leaderWorkerTemplate")
        for place in (role, dig(group, "leaderTemplate"), dig(group, "workerTemplate")):
            for key in _EXCLUSIVE:
                if key in dig(place, "metadata", "annotations"):
                    yield ("spec", "roles", index), f"{key} does not go with a placementPolicy"


def _spec(spec: Json, path: Path) -> Findings:
    """What LeaderWorkerSets and the roles of DisaggregatedSets have in common."""
    replicas = spec.get("replicas", 1)
    group = mapping(spec.get("leaderWorkerTemplate"))
    size = group.get("size", 1)
    at = (*path, "leaderWorkerTemplate")
    if size < 1:
        yield (*at, "size"), f"must be at least 1 (got {size})"
    if replicas * size > _MAX_INT32:
        yield (*path, "replicas"), f"times size must not exceed {_MAX_INT32}"
    if (
        size == 1
        and "leaderTemplate" in group
        and group.get("leaderTemplate") != group.get("workerTemplate")
    ):
        # Not refused, but its workers' template is for nobody: a mistake wherever it stands.
        yield (
            (*at, "workerTemplate"),
            "differs from the leader's, but a group of one has no workers",
        )
    yield from _rollout(spec, replicas, path)
    if _sub_groups(spec):
        yield from _sub_group(mapping(group["subGroupPolicy"]), size, (*at, "subGroupPolicy"))


def _sub_groups(spec: Json) -> bool:
    return bool(dig(spec, "leaderWorkerTemplate").get("subGroupPolicy"))


def _rollout(spec: Json, replicas: int, path: Path) -> Findings:
    rollout = dig(spec, "rolloutStrategy", "rollingUpdateConfiguration")
    at = (*path, "rolloutStrategy", "rollingUpdateConfiguration")
    values = {
        "maxUnavailable": rollout.get("maxUnavailable", 1),
        "maxSurge": rollout.get("maxSurge", 0),
    }
    sound = True
    for key, value in values.items():
        if wrong := names.count_or_percent(value):
            sound = False
            yield (*at, key), wrong
    if rollout.get("partition", 0) < 0:
        yield (*at, "partition"), "must not be negative"
    if sound and replicas:
        down = names.scaled(values["maxUnavailable"], replicas, up=False)
        surge = names.scaled(values["maxSurge"], replicas, up=True)
        if not down and not surge:
            yield (*at, "maxUnavailable"), "must not be 0 when maxSurge is 0"


def _sub_group(policy: Json, size: int, path: Path) -> Findings:
    sub = policy.get("subGroupSize")
    at = (*path, "subGroupSize")
    if not isinstance(sub, int) or sub < 1:
        yield at, f"must be at least 1 (got {sub!r})"
        return
    if sub > size:
        yield at, f"must not be more than size ({size}) (got {sub})"
    elif size % sub and (size - 1) % sub:
        yield at, f"must divide size or size - 1 ({size}) (got {sub})"
    elif policy.get("subGroupPolicyType") == "LeaderExcluded" and (size - 1) % sub:
        yield at, f"must divide size - 1 ({size - 1}) with LeaderExcluded (got {sub})"


# --- Kueue ---


def cluster_queue(found: Json) -> Findings:
    """Kueue's webhook: flavors list what is covered in the same order, each resource once."""
    covered: list[str] = []
    flavors: list[str] = []
    for index, group in entries(dig(found, "spec").get("resourceGroups")):
        path: Path = ("spec", "resourceGroups", index)
        wanted = list(group.get("coveredResources") or ())
        covered += wanted
        for number, flavor in entries(group.get("flavors")):
            at = (*path, "flavors", number)
            flavors.append(str(flavor.get("name")))
            given = [resource.get("name") for _, resource in entries(flavor.get("resources"))]
            if given != wanted:
                yield (*at, "resources"), f"must be {', '.join(wanted)}, in this order"
            for place, resource in entries(flavor.get("resources")):
                yield from _quota(resource, (*at, "resources", place))
    for what, called in (("resource", covered), ("flavor", flavors)):
        for _, name in repeated([str(name) for name in called]):
            yield ("spec", "resourceGroups"), f"the {what} {name} is in two groups"


def _quota(resource: Json, path: Path) -> Findings:
    for key in ("nominalQuota", "borrowingLimit", "lendingLimit"):
        if key in resource and names.quantity(resource[key]) is None:
            yield (*path, key), f"is no amount (got {resource[key]!r})"
    lending, nominal = (
        names.quantity(resource.get("lendingLimit")),
        names.quantity(resource.get("nominalQuota")),
    )
    if lending is not None and nominal is not None and lending > nominal:
        yield (*path, "lendingLimit"), "must not be more than nominalQuota"


# --- KEDA ---


def scaled_object(found: Json) -> Findings:
    """KEDA's webhook: counts in order, names of triggers once."""
    spec = mapping(found.get("spec"))
    least, most = spec.get("minReplicaCount", 0), spec.get("maxReplicaCount", 100)
    if least > most:
        yield ("spec", "minReplicaCount"), f"must not be more than maxReplicaCount ({most})"
    idle = spec.get("idleReplicaCount")
    if idle is not None and idle >= least:
        yield ("spec", "idleReplicaCount"), f"must be less than minReplicaCount ({least})"
    triggers = list(entries(spec.get("triggers")))
    if not triggers:
        yield ("spec", "triggers"), "must not be empty"
    named = [str(trigger["name"]) for _, trigger in triggers if trigger.get("name")]
    for _, name in repeated(named):
        yield ("spec", "triggers"), f"{name} is the name of two triggers"
    for index, trigger in triggers:
        if trigger.get("type") == "prometheus":
            for key in ("serverAddress", "query", "threshold"):
                if not dig(trigger, "metadata").get(key):
                    yield ("spec", "triggers", index, "metadata", key), "is required"


WEBHOOKS = {
    "LeaderWorkerSet": leader_worker_set,
    "DisaggregatedSet": disaggregated_set,
    "ClusterQueue": cluster_queue,
    "ScaledObject": scaled_object,
}

"""Kueue: a pool's groups are admitted as a whole, within a quota that training borrows from.

Each group of a LeaderWorkerSet is one Workload, so that a group never holds half its machines
while it waits for the others. Quotas are what the profile's pools take at their largest; what
they do not take is lent to training, and taken back by priority when they grow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from deploy.lws import labels, names
from deploy.lws.options.pods import add_keys, pod_patches
from deploy.lws.patches import pool_target
from deploy.lws.tree import Json, Part, Patch

if TYPE_CHECKING:
    from baton.types import Role
    from deploy.lws.site import Site
    from deploy.lws.site_options import QueueSpec
    from deploy.lws.site_sections import AcceleratorSpec
    from profiles import PoolSpec, ServingProfile

QUEUE_LABEL: Final = "kueue.x-k8s.io/queue-name"
PRIORITY_LABEL: Final = "kueue.x-k8s.io/priority-class"
TOPOLOGY_ANNOTATION: Final = "kueue.x-k8s.io/podset-required-topology"

SERVING: Final = "baton-serving"
TRAINING: Final = "baton-training"
"""WorkloadPriorityClasses; training's queue and jobs use the second."""

_SERVING_PRIORITY: Final = 1000
_TRAINING_PRIORITY: Final = 100
_TOPOLOGY: Final = "baton"
_API: Final = "kueue.x-k8s.io/v1beta2"


def kueue(profile: ServingProfile, site: Site) -> Part | None:
    """Queue labels on the pools, and the namespace's queues where the site asks for them; None
    where it has no Kueue.

    Raises:
        SettingsError: the name of a pool is too long for Kueue.
    """
    queue = site.spec.queue
    if queue is None:
        return None
    for role in profile.spec.pools.by_role:
        names.check_lws_name(names.keyed_pool_name(role, "0" * 8), kueue=True)
    own = queue.cluster_queue is not None
    return Part(
        name="kueue",
        about="Kueue admits each group of the pools as a whole. Until then its pods are gated, "
        "which routers see as workers that are not there.\n"
        "Needs: Kueue 0.15 or later (v1beta2) with the integrations pod and "
        "leaderworkerset.x-k8s.io/leaderworkerset in its configuration, and "
        + (
            f"the ClusterQueue {queue.cluster_queue} (folder cluster/{site.name})."
            if own
            else f"the LocalQueue {queue.local_queue}."
        )
        + (
            "\nDevices are claimed (dra): Kueue counts them only with deviceClassMappings in its "
            "configuration."
            if site.spec.dra
            else ""
        ),
        files={"queues.yaml": list(_local_queues(queue))} if own else {},
        patches=(*_label_patches(profile, queue), *_topology_patches(profile, site, queue)),
    )


def kueue_cluster(profile: ServingProfile, site: Site) -> Part | None:
    """What the cluster's administrator makes for ``kueue``: flavors, quotas, priorities. None of
    it has a namespace. None where the site's queues are there already."""
    queue = site.spec.queue
    if queue is None or queue.cluster_queue is None:
        return None
    flavors = dict(_flavors(profile, site, queue))
    topology = [
        _object("Topology", _TOPOLOGY, {"levels": [{"nodeLabel": key} for key in queue.topology]})
    ]
    return Part(
        name="kueue",
        about="Quotas for Kueue. They hold the profile's pools at their largest; a switch of the "
        "profile that makes new pools beside the old ones needs room for both: more quota, or a "
        "cohort. These objects have no namespace: they are the business of whoever administers "
        "the cluster.\n"
        "Needs: Kueue 0.15 or later (v1beta2). Apply it with: kubectl apply --server-side -k "
        "FOLDER",
        files={
            "flavors.yaml": [
                *(topology if queue.topology else []),
                *(
                    _object("ResourceFlavor", name, _flavor(accelerator, queue))
                    for name, (accelerator, _) in flavors.items()
                ),
            ],
            "queues.yaml": list(_cluster_queues(site, queue, flavors)),
            "priorities.yaml": [
                _priority(SERVING, _SERVING_PRIORITY, "Serving: somebody waits for it."),
                _priority(TRAINING, _TRAINING_PRIORITY, "Training: makes room for serving."),
            ],
        },
    )


def _label_patches(profile: ServingProfile, queue: QueueSpec) -> Iterator[Patch]:
    wanted = {QUEUE_LABEL: queue.local_queue}
    if queue.cluster_queue:
        wanted[PRIORITY_LABEL] = SERVING
    for role in profile.spec.pools.by_role:
        yield Patch(
            "The queue that its groups wait in.",
            pool_target(role),
            add_keys("/metadata/labels", wanted),
        )


def _local_queues(queue: QueueSpec) -> Iterator[Json]:
    """The namespace's queues: for the pools, and where they lend also for training."""
    for suffix in ("", "-training") if queue.cohort else ("",):
        spec = {"clusterQueue": f"{queue.cluster_queue}{suffix}"}
        yield _object("LocalQueue", f"{queue.local_queue}{suffix}", spec)


def _topology_patches(profile: ServingProfile, site: Site, queue: QueueSpec) -> tuple[Patch, ...]:
    """A group of several machines within one domain. Leader and followers are one pod set, as
    they have one template; a group of pod sets is for two of them."""
    if len(queue.topology) < 2:
        return ()
    domain = queue.topology[-2]

    def ops(role: Role, pool: PoolSpec) -> list[Json]:
        del role
        wanted = {TOPOLOGY_ANNOTATION: domain} if pool.nodes > 1 else {}
        return add_keys("/metadata/annotations", wanted)

    return pod_patches(profile, site, f"A group within one {domain}.", ops)


def _flavors(
    profile: ServingProfile, site: Site, queue: QueueSpec
) -> Iterator[tuple[str, tuple[AcceleratorSpec, int]]]:
    """Each accelerator of the profile: the flavor's name, the accelerator and its devices."""
    devices: dict[str, int] = {}
    for role, pool in profile.spec.pools.by_role.items():
        scaling = site.spec.autoscaling
        fixed = scaling.kind == "none"
        workers = pool.replicas if fixed else scaling.bounds(role, pool.replicas)[1]
        devices[pool.accelerator] = devices.get(pool.accelerator, 0) + workers * pool.devices
    for label, count in devices.items():
        name = f"{names.PREFIX}-{label}".replace("_", "-").rstrip("-.")
        yield name, (site.accelerator(label), queue.quota.get(label, count))


def _flavor(accelerator: AcceleratorSpec, queue: QueueSpec) -> Json:
    spec: Json = {"nodeLabels": dict(accelerator.node_selector)}
    if queue.topology and accelerator.node_selector:
        spec["topologyName"] = _TOPOLOGY
    return spec


def _cluster_queues(
    site: Site, queue: QueueSpec, flavors: Mapping[str, tuple[AcceleratorSpec, int]]
) -> Iterator[Json]:
    """The serving queue; with a cohort also the cohort, and training's queue without a quota."""
    name = queue.cluster_queue
    assert name is not None
    here: Json = {"matchLabels": {"kubernetes.io/metadata.name": site.spec.namespace}}
    preemption: Json = {"withinClusterQueue": "LowerPriority"}
    if queue.cohort is None:
        spec = {
            "namespaceSelector": here,
            "preemption": preemption,
            "resourceGroups": _groups(site, flavors, owned=True),
        }
        yield _object("ClusterQueue", name, spec)
        return
    # What it lent it takes back from whoever has it; what it borrows, from training alone.
    taking: Json = {
        **preemption,
        "reclaimWithinCohort": "Any",
        "borrowWithinCohort": {
            "policy": "LowerPriority",
            "maxPriorityThreshold": _TRAINING_PRIORITY,
        },
    }
    yield _object("Cohort", queue.cohort, {})
    for own, suffix in ((True, ""), (False, "-training")):
        spec = {
            "cohortName": queue.cohort,
            "namespaceSelector": here,
            "preemption": taking if own else preemption,
            "resourceGroups": _groups(site, flavors, owned=own),
        }
        yield _object("ClusterQueue", f"{name}{suffix}", spec)


def _groups(
    site: Site, flavors: Mapping[str, tuple[AcceleratorSpec, int]], *, owned: bool
) -> list[Json]:
    """One resource group with all that the pods ask for: Kueue admits nothing that asks for a
    resource which its queue does not cover."""
    devices = {accelerator.resource for accelerator, _ in flavors.values()}
    resources = ["cpu", "memory", *sorted(name for name in devices if name)]
    rdma = site.spec.rdma
    if rdma is not None:
        resources.append(rdma.resource)

    def quota(resource: str, accelerator: AcceleratorSpec, count: int) -> str:
        if not owned:
            return "0"
        if resource == "cpu":
            return str(math.ceil(accelerator.cpu * count))
        if resource == "memory":
            return f"{math.ceil(accelerator.memory_gib * count)}Gi"
        if rdma is not None and resource == rdma.resource:
            # At most one pod per device.
            return str(count * rdma.count)
        return str(count) if resource == accelerator.resource else "0"

    return [
        {
            "coveredResources": resources,
            "flavors": [
                {
                    "name": name,
                    "resources": [
                        {"name": resource, "nominalQuota": quota(resource, accelerator, count)}
                        for resource in resources
                    ],
                }
                for name, (accelerator, count) in flavors.items()
            ],
        }
    ]


def _priority(name: str, value: int, about: str) -> Json:
    return {
        "apiVersion": _API,
        "kind": "WorkloadPriorityClass",
        "metadata": {"name": name, "labels": labels.shared()},
        "value": value,
        "description": about,
    }


def _object(kind: str, name: str, spec: Json) -> Json:
    return {
        "apiVersion": _API,
        "kind": kind,
        "metadata": {"name": name, "labels": labels.shared()},
        "spec": spec,
    }

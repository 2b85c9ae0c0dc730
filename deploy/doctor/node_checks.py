"""Checks of nodes: whether the pools' pods would find places, device plug-ins, clocks.

Places are counted from what nodes have to give, not from what is free of it: what other pods take
changes from minute to minute, and is what the scheduler's own events tell.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from deploy.doctor.cluster import Cluster, Json, condition, labels_of, name_of
from deploy.doctor.findings import Check, Said, many, note, ok, problem, warning
from deploy.doctor.needs import PoolNeed, pool_needs
from deploy.lws.site import Site

RENEWAL_SHARE = 0.25
"""Of a node Lease's duration: how often the kubelet renews it."""
SKEW_S = 2.0
SLACK_S = 2.0
"""What a renewal may come late by and still not count as a clock that is wrong."""

_SUFFIXES = {
    "": 1.0, "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50,
}  # fmt: skip
_PLUG_INS = {
    "nvidia.com/gpu": ("nvidia-device-plugin", "nvidia-gpu-device-plugin"),
    "rdma/": ("rdma-shared-dp", "rdma-device-plugin", "sriov-device-plugin"),
}
"""How the DaemonSets of device plug-ins are called, by what they give."""


def quantity(text: object) -> float:
    """An amount as Kubernetes writes it; 0 for what is none."""
    found = re.fullmatch(r"([0-9.]+)([a-zA-Z]*)", str(text))
    if found is None or found[2] not in _SUFFIXES:
        return 0.0
    try:
        return float(found[1]) * _SUFFIXES[found[2]]
    except ValueError:
        return 0.0


@dataclass(slots=True)
class Place:
    """A node, and what it still has for pods of ours."""

    name: str
    left: dict[str, float]

    def take(self, wanted: Mapping[str, float]) -> bool:
        """Takes one pod in, if it fits."""
        if any(self.left.get(name, 0.0) < amount for name, amount in wanted.items()):
            return False
        for name, amount in wanted.items():
            self.left[name] -= amount
        return True


async def nodes(cluster: Cluster) -> Iterable[Said]:
    """Whether each pool's pods have places: labels, taints, devices, cores, memory."""
    found = await cluster.items("/api/v1/nodes")
    said: list[Said] = [
        warning(f"node {name_of(node)} is not ready", f"kubectl describe node {name_of(node)}")
        for node in found
        if not _ready(node)
    ]
    if cluster.profile is None or cluster.site is None:
        given = _given(found)
        return [*said, ok(f"{many(len(found), 'node')} with {given}")]
    places: dict[str, Place] = {}
    for need in pool_needs(cluster.profile, cluster.site):
        said.append(judge_pool(need, found, places))
    return said


def _ready(node: Json) -> bool:
    return condition(node, "Ready").get("status") == "True"


def _given(found: list[Json]) -> str:
    total: dict[str, float] = {}
    for node in found:
        for name, amount in (node.get("status", {}).get("allocatable") or {}).items():
            if "/" in name and not name.startswith(("hugepages", "attachable")):
                total[name] = total.get(name, 0.0) + quantity(amount)
    shown = ", ".join(f"{amount:g} {name}" for name, amount in sorted(total.items()) if amount)
    return shown or "no devices"


def judge_pool(need: PoolNeed, found: list[Json], places: dict[str, Place]) -> Said:
    """Whether the pods of a pool find places among nodes. Pure but for ``places``, which keeps
    what pools before it have taken."""
    selector = need.accelerator.node_selector
    what = f"{need.role}: {many(need.pods, 'pod')} on {need.label}"
    wanted_labels = ", ".join(f"{key}={value}" for key, value in selector.items()) or "any label"
    labelled = [
        node
        for node in found
        if all(labels_of(node).get(key) == value for key, value in selector.items())
    ]
    if not labelled:
        return warning(
            f"{what}; no node has {wanted_labels}",
            "make the node pool (or see that the autoscaler makes it), or correct node_selector "
            "in the site",
        )
    open_nodes = [node for node in labelled if not _repelling(node, need)]
    if not open_nodes:
        taints = sorted({taint for node in labelled for taint in _repelling(node, need)})
        return problem(
            f"{what}; what has {wanted_labels} repels them: {', '.join(taints)}",
            "add the taint to tolerations in the site, or uncordon: kubectl uncordon NODE",
        )
    requests = need.requests()
    devices = [name for name in requests if "/" in name]
    for name in devices:
        if not any(_allocatable(node).get(name, 0.0) for node in open_nodes):
            return problem(
                f"{what}; of {many(len(open_nodes), 'node')} with {wanted_labels} none offers "
                f"{name}",
                "install its device plug-in (NVIDIA's GPU operator; for RDMA the network "
                "operator), or correct the resource in the site; see the check plugins",
            )
    here = [
        places.setdefault(name_of(node), Place(name_of(node), _allocatable(node)))
        for node in open_nodes
        if _ready(node)
    ]
    placed = sum(any(place.take(requests) for place in here) for _ in range(need.pods))
    if placed < need.pods:
        short = ", ".join(f"{_amount(name, value)} {name}" for name, value in requests.items())
        return warning(
            f"{what}; places on {many(len(here), 'node')} for {placed} ({short} each)",
            "add nodes, take replicas from the profile, or ask for less in the site; an "
            "autoscaler may add nodes by itself",
        )
    return ok(f"{what}: places on {many(len(here), 'node')} for all")


def _amount(name: str, value: float) -> str:
    return f"{value / 1024**3:g} GiB" if name == "memory" else f"{value:g}"


def _allocatable(node: Json) -> dict[str, float]:
    given = node.get("status", {}).get("allocatable") or {}
    return {name: quantity(amount) for name, amount in given.items()}


def _repelling(node: Json, need: PoolNeed) -> list[str]:
    """Taints that keep the pool's pods away."""
    repelling = ["unschedulable"] if node.get("spec", {}).get("unschedulable") else []
    for taint in node.get("spec", {}).get("taints") or ():
        key, value, effect = (str(taint.get(part, "")) for part in ("key", "value", "effect"))
        if effect == "PreferNoSchedule" or key == "node.kubernetes.io/unschedulable":
            continue
        tolerated = any(
            toleration.key == key
            and toleration.effect == effect
            and toleration.value in (None, value)
            for toleration in need.accelerator.tolerations
        )
        if not tolerated:
            repelling.append(f"{key}={value}:{effect}" if value else f"{key}:{effect}")
    return repelling


async def plugins(cluster: Cluster) -> Iterable[Said]:
    """Whether device plug-ins run on all nodes that they are meant for."""
    if cluster.profile is None or cluster.site is None:
        return []
    wanted = {
        name
        for need in pool_needs(cluster.profile, cluster.site)
        for name in need.requests()
        if "/" in name
    }
    if cluster.site.spec.dra:
        return await _device_classes(cluster, cluster.site)
    if not wanted:
        return []
    marks = [mark for name in wanted for start, m in _PLUG_INS.items() if name.startswith(start)
             for mark in m]  # fmt: skip
    sets = await cluster.items("/apis/apps/v1/daemonsets")
    said: list[Said] = []
    running, idle = 0, 0
    for found in sets:
        if not any(mark in name_of(found) for mark in marks):
            continue
        idle += 1
        status = found.get("status", {})
        meant, ready = status.get("desiredNumberScheduled", 0), status.get("numberReady", 0)
        running += ready
        if ready < meant:
            namespace = found["metadata"].get("namespace", "")
            said.append(
                warning(
                    f"device plug-in {name_of(found)} is ready on {ready} of {meant} nodes",
                    f"kubectl -n {namespace} describe daemonset {name_of(found)}; the others "
                    "offer no devices",
                )
            )
    if said:
        return said
    offered = await _offered(cluster, wanted)
    if running or offered == wanted:
        return [
            ok(f"device plug-ins for {', '.join(sorted(wanted))} run on {many(running, 'node')}")
        ]
    missing = ", ".join(sorted(wanted - offered))
    if idle:
        # Pools of nodes that grow from none: the plug-ins wait for the first node.
        return [note(f"no node for {missing} yet; {many(idle, 'device plug-in')} will run there")]
    return [
        problem(
            f"no device plug-in runs for {missing}",
            "install NVIDIA's GPU operator or device plug-in; for RDMA the network operator",
        )
    ]


async def _device_classes(cluster: Cluster, site: Site) -> list[Said]:
    """Where devices are claimed: whether their classes are there."""
    labels = {pool.label for pool in pool_needs(cluster.profile, site)} if cluster.profile else ()
    classes = sorted({c for label in labels if (c := site.accelerator(label).dra_class)})
    missing = [
        name
        for name in classes
        if await cluster.get(f"/apis/resource.k8s.io/v1/deviceclasses/{name}") is None
    ]
    if missing:
        return [
            problem(
                f"no DeviceClass {', '.join(missing)}, which the site's dra claims from",
                "install the DRA driver that makes it (for GPUs NVIDIA's), or turn dra off",
            )
        ]
    return [ok(f"device classes: {', '.join(classes)}")] if classes else []


async def _offered(cluster: Cluster, wanted: set[str]) -> set[str]:
    found = await cluster.items("/api/v1/nodes")
    return {name for name in wanted if any(_allocatable(node).get(name, 0.0) for node in found)}


async def clocks(cluster: Cluster) -> Iterable[Said]:
    """How far clocks are apart, as far as the nodes' Leases prove it.

    The kubelet writes its own clock's time into its Lease every ten seconds, so that the time in it
    is at most that old: a node is ahead of another by at least the difference of the two less ten
    seconds. Smaller differences cannot be told from here; ``baton doctor machine --peer`` can.
    """
    leases = await cluster.items("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases")
    ready = {name_of(node) for node in await cluster.items("/api/v1/nodes") if _ready(node)}
    now = cluster.now()
    ahead: dict[str, float] = {}
    interval = 10.0
    for lease in leases:
        spec = lease.get("spec", {})
        stamp = spec.get("renewTime")
        if name_of(lease) in ready and isinstance(stamp, str):
            renewed = datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()
            ahead[name_of(lease)] = renewed - now
            interval = max(interval, RENEWAL_SHARE * float(spec.get("leaseDurationSeconds", 40)))
    if not ahead:
        return [note("clocks: no node Leases to go by")]
    said: list[Said] = []
    first, last = max(ahead, key=ahead.__getitem__), min(ahead, key=ahead.__getitem__)
    apart = ahead[first] - ahead[last] - interval - SLACK_S
    todo = "run a time service on every node: chronyc tracking, timedatectl"
    if apart > 0:
        said.append(
            warning(
                f"the clock of {first} is {apart + SLACK_S:.0f} s or more ahead of {last}", todo
            )
        )
    if ahead[first] > SKEW_S and not said:
        said.append(
            warning(
                f"the clock of {first} is {ahead[first]:.0f} s or more ahead of this machine's",
                f"{todo}; here too",
            )
        )
    bound = ahead[first] - ahead[last] + interval
    return said or [
        ok(f"clocks of {many(len(ahead), 'node')}: {bound:.0f} s apart at most, by their Leases")
    ]


NODE_CHECKS: tuple[Check[Cluster], ...] = (
    Check("nodes", "places for the pools' pods", nodes),
    Check("plugins", "device plug-ins", plugins),
    Check("clocks", "clocks of the nodes", clocks),
)

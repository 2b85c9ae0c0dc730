"""The check of Baton's pods: which are not ready, which should have ended, and why."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping

from deploy.doctor.cluster import OURS, Cluster, Json, age_s, condition, name_of, seconds
from deploy.doctor.findings import Check, NotSeen, Said, many, note, ok, problem, warning
from deploy.doctor.needs import APPLY

_LATE_S = 30.0
"""After the end of its grace period, from which on a pod that ends is one that does not."""

_WAITING = {
    "ImagePullBackOff": "see the image's name and tag in the site, and its pull_secret",
    "ErrImagePull": "see the image's name and tag in the site, and its pull_secret",
    "InvalidImageName": "correct the image in the site",
    "CrashLoopBackOff": "kubectl logs --previous says why it ends",
    "CreateContainerConfigError": "a Secret or ConfigMap that it names is missing, or a key of it",
    "CreateContainerError": "kubectl describe pod says what the container runtime refuses",
    "RunContainerError": "kubectl describe pod says what the container runtime refuses",
}


async def pods(cluster: Cluster) -> Iterable[Said]:
    """Pods of ours that are not ready, and why."""
    found = await cluster.items(cluster.here("api/v1/pods"), OURS)
    if not found:
        return [note("no pods of Baton here yet", APPLY)]
    said = [finding for pod in found if (finding := judge_pod(pod, cluster)) is not None]
    said += await _stuck(cluster, found)
    return said or [ok(f"{many(len(found), 'pod')}, all ready")]


async def _stuck(cluster: Cluster, pods: Iterable[Json]) -> list[Said]:
    """Pods that should have ended and have not: on a node that is lost nobody can say that they
    did, and a set makes no other of the same name before."""
    late = [(pod, late_s) for pod in pods if (late_s := _late_s(cluster, pod)) > _LATE_S]
    if not late:
        return []
    nodes: dict[str, Json] | None = None
    with contextlib.suppress(NotSeen):
        nodes = {name_of(node): node for node in await cluster.items("/api/v1/nodes")}
    return [judge_stuck(pod, late_s, nodes, cluster.namespace) for pod, late_s in late]


def judge_stuck(pod: Json, late_s: float, nodes: Mapping[str, Json] | None, namespace: str) -> Said:
    """What keeps a pod that should have ended.

    Args:
        pod: that pod.
        late_s: since when it should have, in seconds.
        nodes: by name; None where we may not read them.
        namespace: the pod's.
    """
    name, host = name_of(pod), str(pod.get("spec", {}).get("nodeName", ""))
    seen = f"pod {name} should have ended {late_s:.0f} s ago and is Terminating"
    if nodes is not None and host not in nodes:
        return problem(
            f"{seen}: its node {host or '(none)'} is no more",
            f"kubectl -n {namespace} delete pod {name} --force --grace-period=0",
        )
    if nodes is not None and condition(nodes[host], "Ready").get("status") != "True":
        return problem(
            f"{seen}: node {host} is not ready, and no other pod of this name is made meanwhile",
            f"see that the machine is really off, then: kubectl taint nodes {host} "
            "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute (docs/kubernetes/README.md, "
            "When a node is lost)",
        )
    return warning(
        f"{seen}, on node {host}",
        f"kubectl -n {namespace} describe pod {name}; a finalizer, a volume that is still in use, "
        "or a node that is lost",
    )


def judge_pod(pod: Json, cluster: Cluster) -> Said | None:
    """What is wrong with a pod, or None."""
    name, status = name_of(pod), pod.get("status", {})
    phase = status.get("phase")
    describe = f"kubectl -n {cluster.namespace} describe pod {name}"
    if phase == "Succeeded" or pod["metadata"].get("deletionTimestamp"):
        return None
    scheduled = condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        reason, said = scheduled.get("reason", ""), scheduled.get("message", "")
        if reason == "SchedulingGated":
            return note(f"pod {name} waits to be let in (Kueue): {said}", f"{describe}")
        return warning(f"pod {name} finds no node: {said}", "see the check nodes")
    containers = [
        *(status.get("initContainerStatuses") or ()),
        *(status.get("containerStatuses") or ()),
    ]
    for container in containers:
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason = str(waiting.get("reason", ""))
        if reason in _WAITING:
            return problem(
                f"pod {name}: {reason} {waiting.get('message', '')}".rstrip(),
                f"{_WAITING[reason]}; {describe}",
            )
    for container in containers:
        ended = (container.get("lastState") or {}).get("terminated") or {}
        if ended.get("reason") == "OOMKilled":
            return problem(
                f"pod {name}: its memory was not enough ({container.get('restartCount', 1)} "
                "restarts)",
                "raise memory_gib of its accelerator in the site; /dev/shm counts as well",
            )
    if phase == "Failed":
        return problem(f"pod {name} failed: {status.get('reason', '')}", describe)
    if condition(pod, "Ready").get("status") == "True":
        return None
    restarts = sum(int(container.get("restartCount", 0)) for container in containers)
    if restarts:
        return warning(
            f"pod {name} is not ready, after {many(restarts, 'restart')}",
            f"kubectl -n {cluster.namespace} logs --previous {name}",
        )
    return note(
        f"pod {name} is starting (for {age_s(cluster, pod):.0f} s)",
        f"kubectl -n {cluster.namespace} logs {name}, if it takes longer than the model's load",
    )


def _late_s(cluster: Cluster, pod: Json) -> float:
    """Since when it should have ended, in seconds: a deletionTimestamp is the moment of the request
    and the grace period. 0 for one that nobody deletes."""
    due = pod.get("metadata", {}).get("deletionTimestamp")
    return cluster.now() - seconds(due) if isinstance(due, str) else 0.0


POD_CHECK: Check[Cluster] = Check("pods", "pods that are not ready", pods)

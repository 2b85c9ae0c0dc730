"""Checks of what is in Baton's namespace: security level, tokens, profiles, volumes, sets,
Events. Pods are in ``pod_checks``.

What is not deployed yet is no fault: the namespace may be looked at before the first apply. Once
the routers' Deployment is there, what belongs to it has to be there as well.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable

from baton.errors import ProfileError, SettingsError
from baton.secrets import MIN_TOKEN_CHARS
from deploy.doctor.cluster import (
    OURS,
    Cluster,
    Json,
    age_s,
    condition,
    labels_of,
    name_of,
    seconds,
)
from deploy.doctor.findings import Check, Said, many, note, ok, problem, warning
from deploy.doctor.needs import APPLY
from deploy.doctor.pod_checks import POD_CHECK
from deploy.lws import names
from deploy.lws.labels import LWS_NAME
from deploy.lws.site import site_from_text
from deploy.lws.site_sections import ClaimWeights, HubWeights
from profiles import Transport, parse_profile

RECENT_S = 15 * 60.0
_MOST_EVENTS = 5
_STARTUP_S = 1800.0
"""How long workers may start where no site says."""
_ENFORCE = "pod-security.kubernetes.io/enforce"


async def deployed(cluster: Cluster) -> bool:
    """Whether the routers' Deployment is there."""
    return await cluster.get(cluster.here(f"apis/apps/v1/deployments/{names.ROUTER}")) is not None


async def namespace(cluster: Cluster) -> Iterable[Said]:
    """Whether the namespace is there, and lets the pods in."""
    found = await cluster.get(f"/api/v1/namespaces/{cluster.namespace}")
    if found is None:
        return [
            problem(
                f"no namespace {cluster.namespace}",
                f"kubectl create namespace {cluster.namespace} (or name another: --namespace)",
            )
        ]
    level = labels_of(found).get(_ENFORCE, "")
    seen = f"{cluster.namespace} enforces {level or 'no Pod security level'}"
    rdma = cluster.site.spec.rdma if cluster.site else None
    wants_rdma = (
        cluster.profile is not None
        and cluster.profile.spec.transfer.transport is Transport.RDMA
        and rdma is not None
        and rdma.ipc_lock
    )
    if wants_rdma and level in ("restricted", "baseline"):
        return [
            problem(
                f"{seen}, which forbids IPC_LOCK, and RDMA pods ask for it",
                f"kubectl label namespace {cluster.namespace} {_ENFORCE}=privileged --overwrite; "
                "or rdma.ipc_lock: false in the site where nodes lift the limit of locked memory",
            )
        ]
    return [ok(seen)]


async def tokens(cluster: Cluster) -> Iterable[Said]:
    """The Secret with the cluster token."""
    path = cluster.here(f"api/v1/secrets/{names.TOKENS}")
    found = await cluster.get(path)
    command = (
        f"kubectl -n {cluster.namespace} create secret generic {names.TOKENS} "
        f"--from-literal={names.CLUSTER_TOKEN_KEY}=$(openssl rand -hex 32) "
        f"--from-literal={names.ADMIN_TOKEN_KEY}=$(openssl rand -hex 32)"
    )
    if found is None:
        return [problem(f"no Secret {names.TOKENS}: pods wait for it and do not start", command)]
    data = found.get("data") or {}
    short = []
    for key in (names.CLUSTER_TOKEN_KEY, names.ADMIN_TOKEN_KEY):
        try:
            text = base64.b64decode(data.get(key, "")).strip()
        except ValueError:
            text = b""
        if len(text) < MIN_TOKEN_CHARS:
            short.append(key)
    if short:
        return [
            problem(
                f"Secret {names.TOKENS}: {' and '.join(short)} missing, or shorter than "
                f"{MIN_TOKEN_CHARS} characters",
                f"kubectl -n {cluster.namespace} delete secret {names.TOKENS}, then: {command}",
            )
        ]
    return [ok(f"Secret {names.TOKENS} has its tokens")]


async def configs(cluster: Cluster) -> Iterable[Said]:
    """The ConfigMaps that people edit: whether what they say can be read."""
    said: list[Said] = []
    found = await cluster.get(cluster.here(f"api/v1/configmaps/{names.PROFILES}"))
    if found is None:
        if not await deployed(cluster):
            return [note(f"no ConfigMap {names.PROFILES} yet", APPLY)]
        said.append(
            problem(f"no ConfigMap {names.PROFILES}: routers have no profile", "apply it again")
        )
    else:
        said.append(_judge_profiles(found.get("data") or {}))
    site = await cluster.get(cluster.here(f"api/v1/configmaps/{names.SITE}"))
    if site is not None:
        try:
            site_from_text((site.get("data") or {}).get(names.SITE_KEY, ""), names.SITE)
        except SettingsError as error:
            said.append(
                problem(
                    f"ConfigMap {names.SITE}: {error.message}", "correct it, and apply it again"
                )
            )
    return said


def _judge_profiles(data: dict[str, str]) -> Said:
    """Whether the profiles can be read, and the active one is among them. Pure."""
    known, wrong = [], []
    for key, text in sorted(data.items()):
        if not key.endswith((".yaml", ".yml")):
            continue
        try:
            known.append(parse_profile(text, source=f"{names.PROFILES}/{key}").name)
        except ProfileError as error:
            wrong.append(error.message.splitlines()[0])
    active = data.get("active", "").strip()
    edit = f"correct {names.PROFILES} where it comes from, such as Git, and apply it"
    if wrong:
        return problem(
            f"{'; '.join(wrong)}", f"{edit}; `baton profile validate FILE` says the same beforehand"
        )
    if active not in known:
        return problem(
            f"{names.PROFILES}: active is {active!r}; there are {', '.join(known) or 'none'}", edit
        )
    return ok(f"{names.PROFILES}: {many(len(known), 'profile')}, active {active}")


async def volumes(cluster: Cluster) -> Iterable[Said]:
    """The claim that the site's weights are in."""
    weights = cluster.site.spec.weights if cluster.site else None
    if not isinstance(weights, ClaimWeights | HubWeights) or weights.claim is None:
        return []
    found = await cluster.get(cluster.here(f"api/v1/persistentvolumeclaims/{weights.claim}"))
    if found is None:
        return [
            problem(
                f"no PersistentVolumeClaim {weights.claim}, which the site's weights are in",
                "make it, ReadOnlyMany or ReadWriteMany, and put the model into it",
            )
        ]
    phase = found.get("status", {}).get("phase")
    modes = found.get("spec", {}).get("accessModes") or []
    if phase != "Bound":
        return [
            problem(
                f"PersistentVolumeClaim {weights.claim} is {phase or 'not bound'}",
                f"kubectl -n {cluster.namespace} describe pvc {weights.claim}",
            )
        ]
    if not {"ReadOnlyMany", "ReadWriteMany"} & set(modes):
        return [
            warning(
                f"PersistentVolumeClaim {weights.claim} is {', '.join(modes)}: one node at a time",
                "use a ReadOnlyMany or ReadWriteMany claim, or keep all workers on one node",
            )
        ]
    return [ok(f"PersistentVolumeClaim {weights.claim} is bound")]


async def pools(cluster: Cluster) -> Iterable[Said]:
    """Whether somebody looks after our LeaderWorkerSets, and how many groups are ready."""
    sets = await cluster.items(
        cluster.here("apis/leaderworkerset.x-k8s.io/v1/leaderworkersets"), OURS
    )
    said: list[Said] = []
    for found in sets:
        wanted = found.get("spec", {}).get("replicas", 1)
        status = found.get("status") or {}
        seen = f"{name_of(found)}: {status.get('readyReplicas', 0)} of {wanted} groups ready"
        if not status.get("conditions") and age_s(cluster, found) > 60:
            said.append(problem(f"{seen}; nobody has looked after it", "see the check lws"))
        elif status.get("readyReplicas", 0) < wanted:
            starting = _unchanged_s(cluster, found) < _startup_s(cluster)
            said.append(
                note(f"{seen}; workers are starting", "models load for minutes; see the check pods")
                if starting
                else warning(seen, f"see the check pods, and {_logs(cluster, found)}")
            )
        else:
            said.append(ok(seen))
    return said


def _logs(cluster: Cluster, found: Json) -> str:
    """Where the logs of a set's workers are."""
    size = found.get("spec", {}).get("leaderWorkerTemplate", {}).get("size", 1)
    if size == 1:
        return "the workers' logs"
    # A group is made anew as a whole, which leaves neither a back-off nor a log of before.
    return (
        f"follow the logs, which go with the pods: kubectl -n {cluster.namespace} logs -f --prefix "
        f"-l {LWS_NAME}={name_of(found)}"
    )


async def events(cluster: Cluster) -> Iterable[Said]:
    """Warnings of the last quarter of an hour about objects of ours."""
    found = await cluster.items(cluster.here("api/v1/events"), (("fieldSelector", "type=Warning"),))
    ready = {
        name_of(pod)
        for pod in await cluster.items(cluster.here("api/v1/pods"), OURS)
        if condition(pod, "Ready").get("status") == "True"
    }
    latest: dict[tuple[str, str], tuple[float, Json]] = {}
    over = 0
    for event in found:
        about = event.get("involvedObject") or {}
        name = str(about.get("name", ""))
        at = _event_s(event)
        if not name.startswith(names.PREFIX) or at is None or cluster.now() - at > RECENT_S:
            continue
        if "Startup probe failed" in str(event.get("message")):
            # Every worker says so while it loads its model.
            continue
        if name in ready:
            over += 1
            continue
        # One for each reason and set: pods of a set fail alike.
        key = (str(event.get("reason")), re.sub(r"-[0-9a-z-]*$", "", name))
        if key not in latest or latest[key][0] < at:
            latest[key] = (at, event)
    if not latest:
        past = f"; {over} about pods that are ready now" if over else ""
        return [ok(f"no Warning events of the last 15 minutes about Baton's objects{past}")]
    newest = sorted(latest.values(), key=lambda entry: entry[0], reverse=True)
    said: list[Said] = []
    for at, event in newest[:_MOST_EVENTS]:
        about = event["involvedObject"]
        text = " ".join(str(event.get("message", "")).split())
        said.append(
            warning(
                f"{about.get('kind', '')} {about['name']}, {cluster.now() - at:.0f} s ago: "
                f"{event.get('reason')}: {text[:200]}",
                f"kubectl -n {cluster.namespace} get events --field-selector "
                f"involvedObject.name={about['name']}",
            )
        )
    if len(newest) > _MOST_EVENTS:
        said.append(note(f"{len(newest) - _MOST_EVENTS} more kinds of Warning events"))
    return said


def _event_s(event: Json) -> float | None:
    series = event.get("series") or {}
    for stamp in (
        series.get("lastObservedTime"),
        event.get("lastTimestamp"),
        event.get("eventTime"),
        (event.get("metadata") or {}).get("creationTimestamp"),
    ):
        if isinstance(stamp, str):
            return seconds(stamp)
    return None


def _unchanged_s(cluster: Cluster, found: Json) -> float:
    """Since an object was made, or one of its conditions became another."""
    stamps = [entry.get("lastTransitionTime") for entry in found["status"].get("conditions") or ()]
    since = [cluster.now() - seconds(stamp) for stamp in stamps if isinstance(stamp, str)]
    return min([age_s(cluster, found), *since])


def _startup_s(cluster: Cluster) -> float:
    return float(cluster.site.spec.startup_limit_s) if cluster.site else _STARTUP_S


OBJECT_CHECKS: tuple[Check[Cluster], ...] = (
    Check("namespace", "the namespace and its security level", namespace),
    Check("tokens", "the Secret with the tokens", tokens),
    Check("configs", "profiles and site in ConfigMaps", configs),
    Check("volumes", "the claim for weights", volumes),
    Check("pools", "groups that are ready", pools),
    POD_CHECK,
    Check("events", "recent warnings", events),
)

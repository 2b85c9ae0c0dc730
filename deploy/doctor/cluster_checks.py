"""Checks of a cluster's ground: API, custom kinds, the LeaderWorkerSet controller, rights."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Sequence

from deploy.doctor.cluster import Cluster, Json, condition, labels_of, name_of
from deploy.doctor.findings import Check, NotSeen, Said, note, ok, problem, warning
from deploy.doctor.needs import (
    CONTROLLER_RIGHTS,
    DEPLOY_RIGHTS,
    LWS_INSTALL,
    KindNeed,
    Right,
    kind_needs,
    router_rights,
)
from deploy.doctor.object_checks import deployed
from deploy.lws import names
from deploy.lws.control import has_controller

OLDEST = (1, 30)
"""The oldest Kubernetes whose schemas everything rendered is checked against."""
_DRA = (1, 34)
_IMAGE_VOLUMES = (1, 36)
_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_ACCESS = "/apis/authorization.k8s.io/v1"


async def api(cluster: Cluster) -> Iterable[Said]:
    """Whether the API answers, and with a version that Baton is made for."""
    found = await cluster.get("/version") or {}
    version = str(found.get("gitVersion") or "of unknown version")
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    seen = f"Kubernetes {version}"
    if numbers and numbers < OLDEST:
        return [
            problem(
                f"{seen}, older than {OLDEST[0]}.{OLDEST[1]}",
                "upgrade the cluster: what is rendered is checked from that version on",
            )
        ]
    spec = cluster.site.spec if cluster.site else None
    if spec is not None and spec.dra and numbers < _DRA:
        return [
            problem(
                f"{seen}; the site's dra needs {_DRA[0]}.{_DRA[1]}",
                "upgrade the cluster, or take dra out of the site",
            )
        ]
    if spec is not None and spec.weights.kind == "image" and numbers < _IMAGE_VOLUMES:
        return [
            warning(
                f"{seen}; image volumes (the site's weights) are on by default from "
                f"{_IMAGE_VOLUMES[0]}.{_IMAGE_VOLUMES[1]} on",
                "see that the feature gate ImageVolume is on, or choose other weights",
            )
        ]
    return [ok(seen)]


async def crds(cluster: Cluster) -> Iterable[Said]:
    """Custom kinds that what is rendered consists of: there, established, of the right version."""
    needs = kind_needs(cluster.site)
    said = [finding for need in needs if (finding := await _kind(cluster, need)) is not None]
    if said:
        return said
    return [ok("served: " + ", ".join(f"{need.crd} {need.version}" for need in needs))]


async def _kind(cluster: Cluster, need: KindNeed) -> Said | None:
    """What is wrong with a kind, or None."""
    try:
        found = await cluster.get(f"{_CRDS}/{need.crd}")
    except NotSeen:
        # Everybody may ask what is served.
        found = None
        served = await cluster.get(f"/apis/{need.group}/{need.version}") or {}
        if any(entry.get("name") == need.plural for entry in served.get("resources") or ()):
            return None
    if found is None:
        return problem(f"no {need.crd} ({need.version}); wanted, because: {need.why}", need.todo)
    versions = [
        str(version.get("name"))
        for version in found.get("spec", {}).get("versions") or ()
        if version.get("served", True)
    ]
    if need.version not in versions:
        return problem(
            f"{need.crd} is served as {', '.join(versions)}, not {need.version}", need.todo
        )
    established = condition(found, "Established")
    if established and established.get("status") != "True":
        return problem(
            f"{need.crd} is not established: {established.get('message', '')}",
            f"kubectl describe crd {need.crd}",
        )
    return None


async def lws(cluster: Cluster) -> Iterable[Said]:
    """Whether the LeaderWorkerSet controller runs: without it, sets stay without pods."""
    where = "/apis/apps/v1/namespaces/lws-system/deployments/lws-controller-manager"
    found = await cluster.get(where)
    if found is None:
        everywhere = await cluster.items("/apis/apps/v1/deployments")
        found = next((item for item in everywhere if _is_lws(item)), None)
    if found is None:
        return [
            problem(
                "no Deployment of the LeaderWorkerSet controller (lws-controller-manager)",
                LWS_INSTALL,
            )
        ]
    wanted = found.get("spec", {}).get("replicas", 1)
    ready = found.get("status", {}).get("readyReplicas", 0)
    namespace = found["metadata"].get("namespace", "")
    seen = f"the LeaderWorkerSet controller: {ready} of {wanted} pods ready{_image(found)}"
    if ready < 1:
        return [
            problem(
                f"{seen}; its webhook refuses every new set until then",
                f"kubectl -n {namespace} describe deployment,pods",
            )
        ]
    return [ok(seen)]


def _is_lws(deployment: Json) -> bool:
    marks = {name_of(deployment), labels_of(deployment).get("app.kubernetes.io/name", "")}
    return any(mark == "lws" or "lws-controller" in mark for mark in marks)


def _image(deployment: Json) -> str:
    containers = deployment.get("spec", {}).get("template", {}).get("spec", {}).get("containers")
    image = str(containers[0].get("image", "")) if containers else ""
    tag = image.partition("@")[0].rpartition("/")[2].partition(":")[2]
    return f", {tag}" if tag else ""


async def rights(cluster: Cluster) -> Iterable[Said]:
    """Whether we may apply what is rendered, and routers and controller do their work."""
    said = [await _ours(cluster)]
    router = f"system:serviceaccount:{cluster.namespace}:{names.ROUTER}"
    accounts: list[tuple[str, str, Sequence[Right]]] = [
        ("routers", router, router_rights(cluster.site))
    ]
    if cluster.site is not None and has_controller(cluster.site):
        account = f"system:serviceaccount:{cluster.namespace}:{names.CONTROLLER}"
        accounts.append(("the controller", account, CONTROLLER_RIGHTS))
    # Accounts that are not there yet have no rights, and nobody misses them.
    for who, account, wanted in accounts:
        path = cluster.here(f"api/v1/serviceaccounts/{account.rpartition(':')[2]}")
        try:
            if await cluster.get(path) is not None:
                said.append(await _theirs(cluster, who, account, wanted))
        except NotSeen as error:
            said.append(note(f"the rights of {who} were not checked: {error.seen}", error.todo))
    return said


async def _ours(cluster: Cluster) -> Said:
    missing = await _missing(cluster, DEPLOY_RIGHTS, None)
    if missing:
        try:
            there = await deployed(cluster)
        except NotSeen:
            there = False
        # Where it is deployed, somebody may.
        return (note if there else warning)(
            f"we may not {_listed(missing)} in {cluster.namespace}",
            "deploy as somebody who may, or have the ClusterRole admin (and rights on "
            f"leaderworkersets) bound in {cluster.namespace}",
        )
    return ok(f"we may apply everything that is rendered in {cluster.namespace}")


async def _theirs(cluster: Cluster, who: str, account: str, wanted: Sequence[Right]) -> Said:
    missing = await _missing(cluster, wanted, account)
    if missing:
        return problem(
            f"{who} may not {_listed(missing)}",
            "apply the rendered Roles and RoleBindings again; somebody took them away or changed "
            "the service account",
        )
    return ok(f"{who} may do what they have to")


async def _missing(cluster: Cluster, wanted: Sequence[Right], account: str | None) -> list[Right]:
    """Those that are not allowed; ``account`` None is ourselves.

    Raises:
        NotSeen: we may not ask.
    """
    answers = await asyncio.gather(*(_allowed(cluster, right, account) for right in wanted))
    return [right for right, allowed in zip(wanted, answers, strict=True) if not allowed]


async def _allowed(cluster: Cluster, right: Right, account: str | None) -> bool:
    kind = "SelfSubjectAccessReview" if account is None else "SubjectAccessReview"
    spec: Json = {
        "resourceAttributes": {
            "namespace": cluster.namespace,
            "verb": right.verb,
            "group": right.group,
            "resource": right.resource,
            **({"name": right.name} if right.name else {}),
        }
    }
    if account is not None:
        groups = ["system:serviceaccounts", f"system:serviceaccounts:{cluster.namespace}"]
        spec |= {"user": account, "groups": [*groups, "system:authenticated"]}
    body = {"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec}
    status, answer = await cluster.api.call("POST", f"{_ACCESS}/{kind.lower()}s", body=body)
    if status not in (200, 201):
        asked = f" --as {account}" if account else ""
        raise NotSeen(
            f"the API answers {status} to a {kind}",
            f"kubectl auth can-i{asked} -n {cluster.namespace} {right.verb} {right.resource}",
        )
    return bool(answer.get("status", {}).get("allowed"))


def _listed(rights: Sequence[Right]) -> str:
    by_resource: dict[str, list[str]] = {}
    for right in rights:
        by_resource.setdefault(right.resource, []).append(right.verb)
    return ", ".join(f"{' or '.join(verbs)} {what}" for what, verbs in by_resource.items())


GROUND_CHECKS: tuple[Check[Cluster], ...] = (
    Check("api", "the API and its version", api),
    Check("crds", "custom kinds", crds),
    Check("lws", "the LeaderWorkerSet controller", lws),
    Check("rights", "who may do what", rights),
)

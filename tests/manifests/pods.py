"""Pods: where templates are in each kind, and what API servers ask of one beyond its schema."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.manifests import names
from tests.manifests.containers import container
from tests.manifests.findings import Findings, Json, Path, dig, entries, mapping, repeated

LWS = "leaderworkerset.sigs.k8s.io"
DISAGGREGATED = "disaggregatedset.x-k8s.io"
LWS_VARIABLES = frozenset({"LWS_LEADER_ADDRESS", "LWS_GROUP_SIZE", "LWS_WORKER_INDEX"})
"""Set by LWS in every container, in front of all others."""

_SOURCE_NAMES = frozenset({"name"})
_TAINT_EFFECTS = (None, "", "NoSchedule", "PreferNoSchedule", "NoExecute")
_MEDIA = re.compile(r"|Memory|HugePages(-[0-9]+[KMG]i)?")


@dataclass(frozen=True, slots=True)
class PodTemplate:
    """A pod that an object makes.

    Attributes:
        path: of the template in its object.
        metadata: the template's.
        spec: the pod's.
        labels: what the pods carry, those that controllers add included.
        any_labels: keys that controllers add with values that are not known here.
        restart: restart policies that the object takes for its pods.
        injected: variables that are there before those of the template.
        claims: names of volumes that the object adds to the pod.
    """

    path: Path
    metadata: Json
    spec: Json
    labels: Json
    any_labels: frozenset[str] = frozenset()
    restart: tuple[str, ...] = ("Always",)
    injected: frozenset[str] = frozenset()
    claims: frozenset[str] = frozenset()


def templates(found: Json) -> Iterator[PodTemplate]:
    """All pods that an object makes."""
    kind, spec = found.get("kind"), mapping(found.get("spec"))
    if kind == "Pod":
        metadata = mapping(found.get("metadata"))
        every = ("Always", "OnFailure", "Never")
        yield PodTemplate((), metadata, spec, mapping(metadata.get("labels")), restart=every)
    elif kind in ("Deployment", "DaemonSet", "StatefulSet", "ReplicaSet"):
        yield _plain(("spec", "template"), spec, claims=_claims(spec))
    elif kind == "Job":
        yield _plain(("spec", "template"), spec, restart=("OnFailure", "Never"))
    elif kind == "CronJob":
        job = dig(spec, "jobTemplate", "spec")
        path: Path = ("spec", "jobTemplate", "spec", "template")
        yield _plain(path, job, restart=("OnFailure", "Never"))
    elif kind == "LeaderWorkerSet":
        name = mapping(found.get("metadata")).get("name")
        yield from _group(spec, ("spec",), {f"{LWS}/name": name}, frozenset())
    elif kind == "DisaggregatedSet":
        name = mapping(found.get("metadata")).get("name")
        for index, role in entries(spec.get("roles")):
            known = {f"{DISAGGREGATED}/name": name, f"{DISAGGREGATED}/role": role.get("name")}
            unknown = {f"{DISAGGREGATED}/slice", f"{DISAGGREGATED}/revision"}
            path = ("spec", "roles", index, "spec")
            yield from _group(mapping(role.get("spec")), path, known, frozenset(unknown))


def _claims(spec: Json) -> frozenset[str]:
    claims = entries(spec.get("volumeClaimTemplates"))
    return frozenset(str(mapping(claim.get("metadata")).get("name")) for _, claim in claims)


def _plain(
    path: Path,
    spec: Json,
    restart: tuple[str, ...] = ("Always",),
    claims: frozenset[str] = frozenset(),
) -> PodTemplate:
    template = mapping(spec.get("template"))
    metadata = mapping(template.get("metadata"))
    return PodTemplate(
        path,
        metadata,
        mapping(template.get("spec")),
        mapping(metadata.get("labels")),
        restart=restart,
        claims=claims,
    )


def _group(spec: Json, path: Path, known: Json, unknown: frozenset[str]) -> Iterator[PodTemplate]:
    """Leader and workers of a LeaderWorkerSet's spec; without a leader's template the workers' is
    for both."""
    group = mapping(spec.get("leaderWorkerTemplate"))
    index = f"{LWS}/worker-index"
    unknown |= {f"{LWS}/{key}" for key in ("group-index", "group-key", "template-revision-hash")}
    for key in ("leaderTemplate", "workerTemplate"):
        template = mapping(group.get(key))
        if not template:
            continue
        metadata = mapping(template.get("metadata"))
        alone = key == "workerTemplate" and "leaderTemplate" not in group
        yield PodTemplate(
            (*path, "leaderWorkerTemplate", key),
            metadata,
            mapping(template.get("spec")),
            {
                **mapping(metadata.get("labels")),
                **known,
                **({index: "0"} if key == "leaderTemplate" else {}),
            },
            unknown | ({index} if alone or key == "workerTemplate" else set()),
            injected=LWS_VARIABLES,
            claims=_claims(group),
        )


def findings(template: PodTemplate) -> Findings:
    """What is wrong with a pod, as far as the pod alone says so."""
    spec, path = template.spec, (*template.path, "spec")
    metadata = (*template.path, "metadata")
    yield from names.labels(template.metadata.get("labels"), (*metadata, "labels"))
    yield from names.annotated(template.metadata.get("annotations"), (*metadata, "annotations"))
    yield from _whole(template, path)
    yield from _volumes(template, path)
    yield from _memory(template, path)
    yield from _claims_of_devices(spec, path)
    yield from _scheduling(template, path)
    grace = spec.get("terminationGracePeriodSeconds", 30)
    ports: list[str] = []
    for key in ("initContainers", "containers"):
        for index, one in entries(spec.get(key)):
            at = (*path, key, index)
            yield from container(
                one, at, initial=key == "initContainers", grace_s=grace, injected=template.injected
            )
            yield from _mounts(one, at, template)
            yield from _device_claims(one, at, spec)
            for number, port in entries(one.get("ports")):
                if port.get("name") in ports and key == "containers":
                    yield (*at, "ports", number, "name"), f"{port['name']} is the name of two ports"
                ports.append(str(port.get("name")))


def _whole(template: PodTemplate, path: Path) -> Findings:
    spec = template.spec
    policy = spec.get("restartPolicy", "Always")
    if policy not in template.restart:
        yield (*path, "restartPolicy"), f"must be {' or '.join(template.restart)} (got {policy})"
    grace = spec.get("terminationGracePeriodSeconds", 30)
    if not isinstance(grace, int) or grace < 0:
        yield (*path, "terminationGracePeriodSeconds"), f"must not be negative (got {grace!r})"
    called = [
        (key, index, str(one.get("name")))
        for key in ("initContainers", "containers")
        for index, one in entries(spec.get(key))
    ]
    if not any(key == "containers" for key, _, _ in called):
        yield (*path, "containers"), "is required: a pod without a container does nothing"
    for place, name in repeated([name for _, _, name in called]):
        key, index, _ = called[place]
        yield (*path, key, index, "name"), f"{name} is the name of two containers"
    account = spec.get("serviceAccountName")
    if account is not None and (wrong := names.dns_subdomain(account)):
        yield (*path, "serviceAccountName"), wrong


def _volumes(template: PodTemplate, path: Path) -> Findings:
    volumes = list(entries(template.spec.get("volumes")))
    mounted = {
        mount.get("name")
        for key in ("initContainers", "containers")
        for _, one in entries(template.spec.get(key))
        for _, mount in entries(one.get("volumeMounts"))
    }
    for index, name in repeated([str(volume.get("name")) for _, volume in volumes]):
        yield (*path, "volumes", index, "name"), f"{name} is the name of two volumes"
    for index, volume in volumes:
        at = (*path, "volumes", index)
        if wrong := names.dns_label(volume.get("name")):
            yield (*at, "name"), wrong
        sources = volume.keys() - _SOURCE_NAMES
        if len(sources) != 1:
            what = " and ".join(sorted(sources)) or "none"
            yield at, f"must have exactly one source (got {what})"
        if volume.get("name") not in mounted and not _of_sidecar(volume, template):
            yield at, "is mounted by no container"
        yield from _volume_source(volume, at)


def _of_sidecar(volume: Json, template: PodTemplate) -> bool:
    """Whether GKE's GCS FUSE sidecar, which is put into the pod later, mounts a volume."""
    wanted = mapping(template.metadata.get("annotations")).get("gke-gcsfuse/volumes") == "true"
    return wanted and str(volume.get("name")).startswith("gke-gcsfuse-")


def _memory(template: PodTemplate, path: Path) -> Findings:
    """Memory-backed volumes count into the containers' limits, which have to be larger."""
    limits = [
        names.quantity(dig(one, "resources", "limits").get("memory"))
        for _, one in entries(template.spec.get("containers"))
    ]
    if None in limits:
        return
    room = sum(limit for limit in limits if limit is not None)
    for index, volume in entries(template.spec.get("volumes")):
        empty = mapping(volume.get("emptyDir"))
        size = names.quantity(empty.get("sizeLimit"))
        if empty.get("medium") == "Memory" and size is not None and size >= room:
            at = (*path, "volumes", index, "emptyDir", "sizeLimit")
            yield at, f"must be less than the containers' memory ({room})"


def _volume_source(volume: Json, path: Path) -> Findings:
    empty = volume.get("emptyDir")
    if isinstance(empty, dict):
        if not _MEDIA.fullmatch(str(empty.get("medium", ""))):
            yield (*path, "emptyDir", "medium"), f"is no medium (got {empty['medium']!r})"
        limit = empty.get("sizeLimit")
        if limit is not None and (names.quantity(limit) is None or names.quantity(limit) < 0):  # type: ignore[operator]
            yield (*path, "emptyDir", "sizeLimit"), f"is no amount (got {limit!r})"
    for key, required in (
        ("nfs", ("server", "path")),
        ("csi", ("driver",)),
        ("persistentVolumeClaim", ("claimName",)),
        ("image", ("reference",)),
        ("hostPath", ("path",)),
        ("configMap", ("name",)),
        ("secret", ("secretName",)),
    ):
        for name in required if key in volume else ():
            if not mapping(volume[key]).get(name):
                yield (*path, key, name), "is required"
    for index, item in entries(dig(volume, "configMap").get("items")):
        target = str(item.get("path", ""))
        if not target or target.startswith("/") or ".." in target.split("/"):
            at = (*path, "configMap", "items", index, "path")
            yield at, f"must be a relative path without .. (got {target!r})"


def _mounts(one: Json, path: Path, template: PodTemplate) -> Findings:
    there = {volume.get("name") for _, volume in entries(template.spec.get("volumes"))}
    mounts = list(entries(one.get("volumeMounts")))
    for index, mount in mounts:
        at = (*path, "volumeMounts", index)
        if mount.get("name") not in there | template.claims:
            yield (*at, "name"), f"there is no volume {mount.get('name')!r}"
        where = mount.get("mountPath")
        if not isinstance(where, str) or not where.startswith("/") or ":" in where:
            yield (*at, "mountPath"), f"must be an absolute path without colons (got {where!r})"
        sub = mount.get("subPath", "")
        if sub.startswith("/") or ".." in sub.split("/"):
            yield (*at, "subPath"), f"must be a relative path without .. (got {sub!r})"


# --- devices ---


def _claims_of_devices(spec: Json, path: Path) -> Findings:
    claims = list(entries(spec.get("resourceClaims")))
    for index, name in repeated([str(claim.get("name")) for _, claim in claims]):
        yield (*path, "resourceClaims", index, "name"), f"{name} is the name of two claims"
    used = {
        claim.get("name")
        for key in ("initContainers", "containers")
        for _, one in entries(spec.get(key))
        for _, claim in entries(mapping(one.get("resources")).get("claims"))
    }
    for index, claim in claims:
        at = (*path, "resourceClaims", index)
        given = [key for key in ("resourceClaimName", "resourceClaimTemplateName") if key in claim]
        if len(given) != 1:
            yield at, "must name either a claim or a template"
        if claim.get("name") not in used:
            yield at, "is used by no container"


def _device_claims(one: Json, path: Path, spec: Json) -> Findings:
    there = {claim.get("name") for _, claim in entries(spec.get("resourceClaims"))}
    for index, claim in entries(mapping(one.get("resources")).get("claims")):
        if claim.get("name") not in there:
            at = (*path, "resources", "claims", index, "name")
            yield at, f"the pod has no resource claim {claim.get('name')!r}"


# --- scheduling ---


def _scheduling(template: PodTemplate, path: Path) -> Findings:
    spec = template.spec
    yield from names.labels(spec.get("nodeSelector"), (*path, "nodeSelector"))
    for index, toleration in entries(spec.get("tolerations")):
        yield from _toleration(toleration, (*path, "tolerations", index))
    yield from _spread(template, path)
    node = dig(spec, "affinity", "nodeAffinity")
    at = (*path, "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution")
    terms = dig(node, "requiredDuringSchedulingIgnoredDuringExecution").get("nodeSelectorTerms")
    for index, term in entries(terms):
        for number, one in entries(term.get("matchExpressions")):
            where = (*at, "nodeSelectorTerms", index, "matchExpressions", number)
            operators = ("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt")
            yield from names.expression(one, where, operators)


def _toleration(toleration: Json, path: Path) -> Findings:
    operator = toleration.get("operator", "Equal")
    if operator not in ("Equal", "Exists"):
        yield (*path, "operator"), f"must be Equal or Exists (got {operator!r})"
    if operator == "Exists" and toleration.get("value"):
        yield (*path, "value"), "must be empty with operator Exists"
    if not toleration.get("key") and operator != "Exists":
        yield (*path, "operator"), "must be Exists where there is no key"
    if toleration.get("key") and (wrong := names.qualified(toleration["key"])):
        yield (*path, "key"), wrong
    if toleration.get("effect") not in _TAINT_EFFECTS:
        yield (*path, "effect"), f"is no effect of a taint (got {toleration.get('effect')!r})"
    if "tolerationSeconds" in toleration and toleration.get("effect") != "NoExecute":
        yield (*path, "tolerationSeconds"), "has a meaning with effect NoExecute only"


def _spread(template: PodTemplate, path: Path) -> Findings:
    rules = list(entries(template.spec.get("topologySpreadConstraints")))
    marks = [f"{rule.get('topologyKey')}, {rule.get('whenUnsatisfiable')}" for _, rule in rules]
    for index, mark in repeated(marks):
        yield (*path, "topologySpreadConstraints", index), f"says the same twice ({mark})"
    for index, rule in rules:
        at = (*path, "topologySpreadConstraints", index)
        if not isinstance(rule.get("maxSkew"), int) or rule["maxSkew"] < 1:
            yield (*at, "maxSkew"), f"must be at least 1 (got {rule.get('maxSkew')!r})"
        if rule.get("whenUnsatisfiable") not in ("DoNotSchedule", "ScheduleAnyway"):
            yield (*at, "whenUnsatisfiable"), "must be DoNotSchedule or ScheduleAnyway"
        if wrong := names.qualified(rule.get("topologyKey")):
            yield (*at, "topologyKey"), wrong
        yield from names.selector(rule.get("labelSelector"), (*at, "labelSelector"))
        if not names.matches(rule.get("labelSelector"), template.labels, template.any_labels):
            yield (*at, "labelSelector"), "does not select the pod's own labels: nothing is spread"

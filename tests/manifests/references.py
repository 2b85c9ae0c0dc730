"""What objects say of each other: whatever one names has to be there, and every selector has to
select something. API servers take such mistakes, and nothing works afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.manifests import security
from tests.manifests.findings import Finding, Findings, Json, Path, dig, entries, mapping
from tests.manifests.world import Pods, World

_QUEUE = "kueue.x-k8s.io/queue-name"
_SCALABLE = ("Deployment", "StatefulSet", "LeaderWorkerSet", "DisaggregatedSetRoleScaler")


def findings(found: Json, world: World) -> Findings:
    """What is wrong with an object among the others."""
    namespace = world.home(found)
    if namespace and not world.has("Namespace", "", namespace):
        yield ("metadata", "namespace"), f"there is no Namespace {namespace!r}"
    for pods in world.pods:
        if pods.owner is found:
            yield from _pod(pods, world)
    queue = dig(found, "metadata", "labels").get(_QUEUE)
    if queue is not None and not world.has("LocalQueue", namespace, queue):
        yield ("metadata", "labels", _QUEUE), f"there is no LocalQueue {queue!r}"
    check = _CHECKS.get(str(found.get("kind")))
    if check is not None:
        yield from check(found, world)


def _pod(pods: Pods, world: World) -> Findings:
    spec, path = pods.template.spec, (*pods.template.path, "spec")
    home = pods.namespace
    level = dig(world.find("Namespace", "", home) or {}, "metadata", "labels").get(security.ENFORCE)
    if level is not None:
        yield from security.findings(str(level), spec, path)
    for key, kind in (
        ("serviceAccountName", "ServiceAccount"),
        ("priorityClassName", "PriorityClass"),
    ):
        name = spec.get(key)
        where = home if kind == "ServiceAccount" else ""
        if name and not world.has(kind, where, name):
            yield (*path, key), f"there is no {kind} {name!r}"
    for index, secret in entries(spec.get("imagePullSecrets")):
        if not world.has("Secret", home, secret.get("name")):
            yield (*path, "imagePullSecrets", index), f"there is no Secret {secret.get('name')!r}"
    for index, volume in entries(spec.get("volumes")):
        yield from _volume(volume, (*path, "volumes", index), home, world)
    for index, claim in entries(spec.get("resourceClaims")):
        template = claim.get("resourceClaimTemplateName")
        if template and not world.has("ResourceClaimTemplate", home, template):
            at = (*path, "resourceClaims", index)
            yield at, f"there is no ResourceClaimTemplate {template!r}"
    for key in ("initContainers", "containers"):
        for index, one in entries(spec.get(key)):
            yield from _environment(one, (*path, key, index), home, world)


def _volume(volume: Json, path: Path, home: str, world: World) -> Findings:
    sources = [(path, volume)]
    for index, source in entries(dig(volume, "projected").get("sources")):
        sources.append(((*path, "projected", "sources", index), source))
    for at, source in sources:
        for key, kind in (("configMap", "ConfigMap"), ("secret", "Secret")):
            if key in source and not source[key].get("optional"):
                name = source[key].get("name") or source[key].get("secretName")
                yield from _keys(kind, name, source[key].get("items"), (*at, key), home, world)
    claim = dig(volume, "persistentVolumeClaim").get("claimName")
    if claim and not world.has("PersistentVolumeClaim", home, claim):
        yield (*path, "persistentVolumeClaim"), f"there is no PersistentVolumeClaim {claim!r}"


def _keys(kind: str, name: object, items: object, path: Path, home: str, world: World) -> Findings:
    if not world.has(kind, home, name):
        yield path, f"there is no {kind} {name!r}"
    target = world.find(kind, home, name)
    for index, item in entries(items):
        if target is not None and item.get("key") not in _data(target):
            yield (*path, "items", index, "key"), f"{kind} {name!r} has no key {item.get('key')!r}"


def _data(target: Json) -> set[str]:
    return {
        key for part in ("data", "binaryData", "stringData") for key in mapping(target.get(part))
    }


def _environment(one: Json, path: Path, home: str, world: World) -> Findings:
    for index, source in entries(one.get("envFrom")):
        for key, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
            reference = mapping(source.get(key))
            if (
                reference
                and not reference.get("optional")
                and not world.has(kind, home, reference.get("name"))
            ):
                yield (*path, "envFrom", index), f"there is no {kind} {reference.get('name')!r}"
    for index, variable in entries(one.get("env")):
        for key, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
            reference = dig(variable, "valueFrom", key)
            if reference and not reference.get("optional"):
                at = (*path, "env", index, "valueFrom", key)
                yield from _keys(kind, reference.get("name"), [reference], at, home, world)


# --- who selects or names whom ---


def _selects(
    found: Json, world: World, selector: object, path: Path
) -> tuple[list[Pods], list[Finding]]:
    pods = world.selected(selector, world.home(found))
    return pods, [] if pods else [(path, "selects no pods of this set")]


def _port_missing(port: object, pods: list[Pods]) -> bool:
    """Whether some of the pods have no container with this port, by name or number."""
    key = "name" if isinstance(port, str) else "containerPort"
    return any(
        not any(
            declared.get(key) == port
            for part in ("initContainers", "containers")
            for _, one in entries(pod.template.spec.get(part))
            for _, declared in entries(one.get("ports"))
        )
        for pod in pods
    )


def _service(found: Json, world: World) -> Findings:
    spec = mapping(found.get("spec"))
    if not spec.get("selector"):
        return
    selector = {"matchLabels": spec["selector"]}
    pods, missing = _selects(found, world, selector, ("spec", "selector"))
    yield from missing
    for index, port in entries(spec.get("ports")):
        target = port.get("targetPort", port.get("port"))
        if _port_missing(target, pods):
            yield ("spec", "ports", index, "targetPort"), f"the pods have no port {target!r}"


def _stateful_set(found: Json, world: World) -> Findings:
    name = dig(found, "spec").get("serviceName")
    if not world.has("Service", world.home(found), name):
        yield ("spec", "serviceName"), f"there is no Service {name!r}"


def _budget(found: Json, world: World) -> Findings:
    path: Path = ("spec", "selector")
    pods, missing = _selects(found, world, dig(found, "spec").get("selector"), path)
    yield from missing
    for other in world.kind("PodDisruptionBudget"):
        if other is not found and world.home(other) == world.home(found):
            shared = world.selected(dig(other, "spec").get("selector"), world.home(other))
            if any(one is two for one in pods for two in shared):
                name = dig(other, "metadata").get("name")
                yield path, f"{name} selects some of the same pods: none of them can be evicted"


def _network_policy(found: Json, world: World) -> Findings:
    spec = mapping(found.get("spec"))
    pods, missing = _selects(found, world, spec.get("podSelector"), ("spec", "podSelector"))
    yield from missing
    for index, rule in entries(spec.get("ingress")):
        for number, port in entries(rule.get("ports")):
            target = port.get("port")
            # Of a policy for several kinds of pods, each has some of the ports only.
            if target is not None and pods and all(_port_missing(target, [one]) for one in pods):
                at: Path = ("spec", "ingress", index, "ports", number, "port")
                yield at, f"none of the pods has a port {target!r}"
    for key, peers in (("ingress", "from"), ("egress", "to")):
        for index, rule in entries(spec.get(key)):
            for number, peer in entries(rule.get(peers)):
                if "podSelector" in peer and "namespaceSelector" not in peer:
                    at = ("spec", key, index, peers, number, "podSelector")
                    yield from _selects(found, world, peer["podSelector"], at)[1]


def _autoscaler(found: Json, world: World) -> Findings:
    reference = dig(found, "spec", "scaleTargetRef")
    kind, name = str(reference.get("kind", "Deployment")), reference.get("name")
    path: Path = ("spec", "scaleTargetRef")
    if kind not in _SCALABLE:
        yield (*path, "kind"), f"{kind} has no /scale (taken: {', '.join(_SCALABLE)})"
    home = world.home(found)
    target = world.find(kind, home, name)
    if kind == "DisaggregatedSetRoleScaler":
        if str(name) not in set(_role_scalers(world, home)):
            yield (
                path,
                f"no role of a DisaggregatedSet has the scaler {name!r} (scaling.mode External)",
            )
    elif target is None and not world.has(kind, home, name):
        yield path, f"there is no {kind} {name!r}"
    elif target is not None and reference.get("apiVersion") not in (None, target.get("apiVersion")):
        yield (*path, "apiVersion"), f"must be {target.get('apiVersion')}"
    elif target is not None and "replicas" in mapping(target.get("spec")):
        yield path, f"{kind} {name} says replicas too: each apply would undo the scaling"
    for other_kind in ("HorizontalPodAutoscaler", "ScaledObject"):
        for other in world.kind(other_kind):
            theirs = dig(other, "spec", "scaleTargetRef")
            same = (theirs.get("kind", "Deployment"), theirs.get("name")) == (kind, name)
            if other is not found and same and world.home(other) == home:
                yield path, f"{other_kind} {dig(other, 'metadata').get('name')} scales it too"


def _role_scalers(world: World, home: str) -> Iterator[str]:
    for found in world.kind("DisaggregatedSet"):
        for _, role in entries(dig(found, "spec").get("roles")):
            if world.home(found) == home and dig(role, "scaling").get("mode") == "External":
                yield f"{dig(found, 'metadata').get('name')}-{role.get('name')}"


def _binding(found: Json, world: World) -> Findings:
    reference, home = mapping(found.get("roleRef")), world.home(found)
    kind = str(reference.get("kind"))
    if not world.has(kind, home if kind == "Role" else "", reference.get("name")):
        yield ("roleRef",), f"there is no {kind} {reference.get('name')!r}"
    for index, subject in entries(found.get("subjects")):
        if subject.get("kind") != "ServiceAccount":
            continue
        where = subject.get("namespace", "")
        if home and not where:
            yield ("subjects", index, "namespace"), "is required for a ServiceAccount"
        elif not world.has("ServiceAccount", where, subject.get("name")):
            yield ("subjects", index), f"there is no ServiceAccount {subject.get('name')!r}"


def _monitor(found: Json, world: World) -> Findings:
    spec = mapping(found.get("spec"))
    pods, missing = _selects(found, world, spec.get("selector"), ("spec", "selector"))
    yield from missing
    for key in ("podMetricsEndpoints", "endpoints"):
        for index, endpoint in entries(spec.get(key)):
            port = endpoint.get("port", endpoint.get("portNumber"))
            if port is not None and _port_missing(port, pods):
                yield ("spec", key, index, "port"), f"the pods have no port {port!r}"


# --- gateways and queues ---


def _route(found: Json, world: World) -> Findings:
    home = world.home(found)
    for index, parent in entries(dig(found, "spec").get("parentRefs")):
        kind = str(parent.get("kind", "Gateway"))
        where = parent.get("namespace", home)
        gateway = world.find(kind, where, parent.get("name"))
        if not world.has(kind, where, parent.get("name")):
            yield ("spec", "parentRefs", index), f"there is no {kind} {parent.get('name')!r}"
        section = parent.get("sectionName")
        listeners = [
            one.get("name") for _, one in entries(dig(gateway or {}, "spec").get("listeners"))
        ]
        if gateway and section and section not in listeners:
            yield ("spec", "parentRefs", index, "sectionName"), f"there is no listener {section!r}"
    for index, rule in entries(dig(found, "spec").get("rules")):
        for number, backend in entries(rule.get("backendRefs")):
            at: Path = ("spec", "rules", index, "backendRefs", number)
            yield from _backend(backend, at, backend.get("namespace", home), world)


def _backend(backend: Json, path: Path, home: str, world: World) -> Findings:
    kind, name = str(backend.get("kind", "Service")), backend.get("name")
    if not world.has(kind, home, name):
        yield path, f"there is no {kind} {name!r}"
    target = world.find(kind, home, name)
    ports = [port.get("port") for _, port in entries(dig(target or {}, "spec").get("ports"))]
    if target and kind == "Service" and backend.get("port") not in ports:
        yield (*path, "port"), f"Service {name!r} has no port {backend.get('port')!r}"


def _pool(found: Json, world: World) -> Findings:
    spec = mapping(found.get("spec"))
    pods, missing = _selects(found, world, spec.get("selector"), ("spec", "selector"))
    yield from missing
    for index, port in entries(spec.get("targetPorts")):
        if _port_missing(port.get("number"), pods):
            yield ("spec", "targetPorts", index), f"the pods have no port {port.get('number')}"
    picker = spec.get("endpointPickerRef")
    if isinstance(picker, dict):
        yield from _backend(picker, ("spec", "endpointPickerRef"), world.home(found), world)


def _local_queue(found: Json, world: World) -> Findings:
    name = dig(found, "spec").get("clusterQueue")
    if not world.has("ClusterQueue", "", name):
        yield ("spec", "clusterQueue"), f"there is no ClusterQueue {name!r}"


def _cluster_queue(found: Json, world: World) -> Findings:
    for index, group in entries(dig(found, "spec").get("resourceGroups")):
        for number, flavor in entries(group.get("flavors")):
            if not world.has("ResourceFlavor", "", flavor.get("name")):
                at: Path = ("spec", "resourceGroups", index, "flavors", number, "name")
                yield at, f"there is no ResourceFlavor {flavor.get('name')!r}"


def _flavor(found: Json, world: World) -> Findings:
    name = dig(found, "spec").get("topologyName")
    if name is not None and not world.has("Topology", "", name):
        yield ("spec", "topologyName"), f"there is no Topology {name!r}"


_CHECKS: dict[str, Callable[[Json, World], Findings]] = {
    "Service": _service,
    "StatefulSet": _stateful_set,
    "PodDisruptionBudget": _budget,
    "NetworkPolicy": _network_policy,
    "HorizontalPodAutoscaler": _autoscaler,
    "ScaledObject": _autoscaler,
    "RoleBinding": _binding,
    "ClusterRoleBinding": _binding,
    "PodMonitor": _monitor,
    "PodMonitoring": _monitor,
    "HTTPRoute": _route,
    "InferencePool": _pool,
    "LocalQueue": _local_queue,
    "ClusterQueue": _cluster_queue,
    "ResourceFlavor": _flavor,
}

"""Built-in kinds other than pods: what API servers ask of one object beyond its schema, and a few
things that they take and that mean nothing."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

import celpy
from celpy.celparser import CELParseError

from tests.manifests import names, pods, security
from tests.manifests.findings import Findings, Json, Path, dig, entries, mapping, repeated

_CONFIG_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")
_MAX_CONFIG = 1024 * 1024
_METRICS = {
    "Resource": "resource",
    "ContainerResource": "containerResource",
    "Pods": "pods",
    "Object": "object",
    "External": "external",
}
_TARGETS = {"Utilization": "averageUtilization", "Value": "value", "AverageValue": "averageValue"}
_TAKEN_TARGETS = {
    "Resource": ("Utilization", "AverageValue"),
    "ContainerResource": ("Utilization", "AverageValue"),
    "Pods": ("AverageValue",),
    "Object": ("Value", "AverageValue"),
    "External": ("Value", "AverageValue"),
}
_SUBJECTS = ("ServiceAccount", "User", "Group")


def _workload(found: Json) -> Findings:
    spec = mapping(found.get("spec"))
    selector = spec.get("selector")
    yield from names.selector(selector, ("spec", "selector"))
    if not mapping(selector):
        yield ("spec", "selector"), "must not be empty"
    for template in pods.templates(found):
        if not names.matches(selector, mapping(template.metadata.get("labels"))):
            yield ("spec", "selector"), "does not select the template's labels"
    if spec.get("replicas", 1) < 0:
        yield ("spec", "replicas"), "must not be negative"
    if found.get("kind") == "Deployment":
        yield from _strategy(spec)
    if found.get("kind") == "StatefulSet" and not spec.get("serviceName"):
        yield ("spec", "serviceName"), "is required for names of its pods"


def _strategy(spec: Json) -> Findings:
    strategy = mapping(spec.get("strategy"))
    at: Path = ("spec", "strategy")
    rolling = mapping(strategy.get("rollingUpdate"))
    if strategy.get("type") == "Recreate" and rolling:
        yield (*at, "rollingUpdate"), "has no meaning with type Recreate"
    values = [rolling.get(key, "25%") for key in ("maxUnavailable", "maxSurge")]
    for key, value in zip(("maxUnavailable", "maxSurge"), values, strict=True):
        if key == "maxUnavailable" and (wrong := names.count_or_percent(value)):
            yield (*at, "rollingUpdate", key), wrong
    if all(value in (0, "0%") for value in values):
        yield (*at, "rollingUpdate"), "maxUnavailable and maxSurge must not both be 0"
    if spec.get("minReadySeconds", 0) >= spec.get("progressDeadlineSeconds", 600):
        yield ("spec", "progressDeadlineSeconds"), "must be more than minReadySeconds"


def _service(found: Json) -> Findings:
    if wrong := names.dns_1035(dig(found, "metadata").get("name")):
        yield ("metadata", "name"), wrong
    spec = mapping(found.get("spec"))
    yield from names.labels(spec.get("selector"), ("spec", "selector"))
    ports = list(entries(spec.get("ports")))
    if not ports and spec.get("clusterIP") != "None":
        yield ("spec", "ports"), "must not be empty"
    marks = [f"{port.get('port')}/{port.get('protocol', 'TCP')}" for _, port in ports]
    for index, mark in repeated(marks):
        yield ("spec", "ports", index), f"{mark} is there twice"
    for index, name in repeated([str(port.get("name", index)) for index, port in ports]):
        yield ("spec", "ports", index, "name"), f"{name} is the name of two ports"
    for index, port in ports:
        at: Path = ("spec", "ports", index)
        if wrong := names.port_number(port.get("port")):
            yield (*at, "port"), wrong
        if len(ports) > 1 and not port.get("name"):
            yield (*at, "name"), "is required where there are several ports"
        if "name" in port and (wrong := names.dns_label(port["name"])):
            yield (*at, "name"), wrong
        if "targetPort" in port and (wrong := names.port(port["targetPort"])):
            yield (*at, "targetPort"), wrong


def _config_map(found: Json) -> Findings:
    data, binary = mapping(found.get("data")), mapping(found.get("binaryData"))
    for section, given in (("data", data), ("binaryData", binary)):
        for key in given:
            if not _CONFIG_KEY.fullmatch(key) or key in (".", "..") or key.startswith(".."):
                yield (section, key), "must be letters, digits, '-', '_' and '.'"
    for key in sorted(data.keys() & binary.keys()):
        yield ("binaryData", key), "is in data as well"
    size = sum(len(key) + len(str(value).encode()) for key, value in {**data, **binary}.items())
    if size > _MAX_CONFIG:
        yield ("data",), f"has {size} bytes; {_MAX_CONFIG} are taken"


def _disruption_budget(found: Json) -> Findings:
    spec = mapping(found.get("spec"))
    given = [key for key in ("minAvailable", "maxUnavailable") if spec.get(key) is not None]
    if len(given) != 1:
        yield ("spec",), "must have either minAvailable or maxUnavailable"
    for key in given:
        if wrong := names.count_or_percent(spec[key]):
            yield ("spec", key), wrong
    yield from names.selector(spec.get("selector"), ("spec", "selector"))
    if not mapping(spec.get("selector")):
        yield ("spec", "selector"), "is empty: the budget would be for every pod of the namespace"


# --- autoscaling ---


def _autoscaler(found: Json) -> Findings:
    spec = mapping(found.get("spec"))
    least, most = spec.get("minReplicas", 1), spec.get("maxReplicas", 0)
    if least < 1:
        yield ("spec", "minReplicas"), "must be at least 1: scaling to zero is an alpha feature"
    if most < max(least, 1):
        yield ("spec", "maxReplicas"), f"must be at least minReplicas ({least}) (got {most})"
    if not spec.get("metrics"):
        yield ("spec", "metrics"), "must not be empty: the default is CPU"
    for index, metric in entries(spec.get("metrics")):
        yield from _metric(metric, ("spec", "metrics", index))
    for key in ("scaleUp", "scaleDown"):
        yield from _behavior(dig(spec, "behavior", key), ("spec", "behavior", key))


def _metric(metric: Json, path: Path) -> Findings:
    kind = str(metric.get("type"))
    block = _METRICS.get(kind)
    if block is None or metric.keys() != {"type", block}:
        yield path, f"must have type and the block of its type (got {', '.join(metric)})"
        return
    source = mapping(metric.get(block))
    name = source.get("name") or dig(source, "metric").get("name")
    if wrong := names.path_segment(name):
        yield (*path, block), f"the metric's name {wrong}"
    yield from names.selector(
        dig(source, "metric").get("selector"), (*path, block, "metric", "selector")
    )
    target, at = mapping(source.get("target")), (*path, block, "target")
    form = target.get("type")
    if form not in _TAKEN_TARGETS[kind]:
        yield (*at, "type"), f"must be {' or '.join(_TAKEN_TARGETS[kind])} (got {form!r})"
    elif target.keys() != {"type", _TARGETS[str(form)]}:
        yield at, f"must have {_TARGETS[str(form)]} alone (got {', '.join(target)})"
    for key in ("value", "averageValue"):
        amount = names.quantity(target.get(key))
        if key in target and (amount is None or amount <= 0):
            yield (*at, key), f"must be an amount above 0 (got {target[key]!r})"


def _behavior(rules: Json, path: Path) -> Findings:
    window = rules.get("stabilizationWindowSeconds", 0)
    if not 0 <= window <= 3600:
        yield (*path, "stabilizationWindowSeconds"), f"must be from 0 to 3600 (got {window})"
    if rules.get("selectPolicy", "Max") not in ("Max", "Min", "Disabled"):
        yield (*path, "selectPolicy"), "must be Max, Min or Disabled"
    if rules and not rules.get("policies") and "tolerance" not in rules and "policies" in rules:
        yield (*path, "policies"), "must not be empty"
    for index, policy in entries(rules.get("policies")):
        at = (*path, "policies", index)
        if policy.get("type") not in ("Pods", "Percent"):
            yield (*at, "type"), "must be Pods or Percent"
        if not 0 < policy.get("periodSeconds", 0) <= 1800:
            yield (*at, "periodSeconds"), "must be from 1 to 1800"
        if policy.get("value", 0) <= 0:
            yield (*at, "value"), "must be above 0"


# --- network ---


def _network_policy(found: Json) -> Findings:
    spec = mapping(found.get("spec"))
    yield from names.selector(spec.get("podSelector"), ("spec", "podSelector"))
    kinds = spec.get("policyTypes")
    for kind, key, peers in (("Ingress", "ingress", "from"), ("Egress", "egress", "to")):
        if kinds is not None and kind not in kinds and spec.get(key):
            yield ("spec", key), f"has no meaning while policyTypes lacks {kind}"
        for index, rule in entries(spec.get(key)):
            at: Path = ("spec", key, index)
            for number, port in entries(rule.get("ports")):
                yield from _policy_port(port, (*at, "ports", number))
            for number, peer in entries(rule.get(peers)):
                yield from _peer(peer, (*at, peers, number))
    for index, kind in enumerate(kinds or ()):
        if kind not in ("Ingress", "Egress"):
            yield ("spec", "policyTypes", index), f"must be Ingress or Egress (got {kind!r})"


def _policy_port(port: Json, path: Path) -> Findings:
    if port.get("protocol", "TCP") not in ("TCP", "UDP", "SCTP"):
        yield (*path, "protocol"), f"must be TCP, UDP or SCTP (got {port.get('protocol')!r})"
    first, last = port.get("port"), port.get("endPort")
    if first is not None and (wrong := names.port(first)):
        yield (*path, "port"), wrong
    if last is not None and (not isinstance(first, int) or not first <= last < 65536):
        yield (*path, "endPort"), f"must be a number from port on (got {last!r})"


def _peer(peer: Json, path: Path) -> Findings:
    block = peer.get("ipBlock")
    if not peer:
        yield path, "must name pods, namespaces or addresses"
    if block is not None and len(peer) > 1:
        yield path, "ipBlock goes with no selector"
    for key in ("podSelector", "namespaceSelector"):
        yield from names.selector(peer.get(key), (*path, key))
    if not isinstance(block, dict):
        return
    try:
        network = ipaddress.ip_network(str(block.get("cidr")))
        for index, inner in enumerate(block.get("except") or ()):
            if not ipaddress.ip_network(inner).subnet_of(network):  # type: ignore[arg-type]
                yield (*path, "ipBlock", "except", index), f"is not within {network}"
    except (ValueError, TypeError) as error:
        yield (*path, "ipBlock"), str(error)


# --- access ---


def _role(found: Json) -> Findings:
    for index, rule in entries(found.get("rules")):
        at: Path = ("rules", index)
        if not rule.get("verbs"):
            yield (*at, "verbs"), "must not be empty"
        urls = rule.get("nonResourceURLs")
        if urls and found.get("kind") == "Role":
            yield (*at, "nonResourceURLs"), "is for ClusterRoles only"
        if not urls and (not rule.get("resources") or "apiGroups" not in rule):
            yield at, "must have apiGroups and resources"
        for key in ("verbs", "resources", "apiGroups"):
            if "*" in (rule.get(key) or ()):
                yield (*at, key), "grants everything; name what is needed"
        if rule.get("resourceNames") and "create" in (rule.get("verbs") or ()):
            yield (*at, "resourceNames"), "has no meaning for create: a new object has no name yet"


def _binding(found: Json) -> Findings:
    reference = mapping(found.get("roleRef"))
    if reference.get("apiGroup") != "rbac.authorization.k8s.io":
        yield ("roleRef", "apiGroup"), "must be rbac.authorization.k8s.io"
    kinds = ("Role", "ClusterRole") if found.get("kind") == "RoleBinding" else ("ClusterRole",)
    if reference.get("kind") not in kinds:
        yield ("roleRef", "kind"), f"must be {' or '.join(kinds)} (got {reference.get('kind')!r})"
    for index, subject in entries(found.get("subjects")):
        at: Path = ("subjects", index)
        if subject.get("kind") not in _SUBJECTS:
            yield (*at, "kind"), f"must be one of {', '.join(_SUBJECTS)}"
        if subject.get("kind") == "ServiceAccount" and subject.get("apiGroup"):
            yield (*at, "apiGroup"), "must be empty for a ServiceAccount"


def _namespace(found: Json) -> Findings:
    if wrong := names.dns_label(dig(found, "metadata").get("name")):
        yield ("metadata", "name"), wrong
    for key, value in dig(found, "metadata", "labels").items():
        prefix, _, word = key.partition("/")
        level = prefix == "pod-security.kubernetes.io" and word in ("enforce", "audit", "warn")
        if level and value not in security.LEVELS:
            yield ("metadata", "labels", key), f"must be one of {', '.join(security.LEVELS)}"


def _claim_template(found: Json) -> Findings:
    devices = dig(found, "spec", "spec", "devices")
    at: Path = ("spec", "spec", "devices")
    requests = list(entries(devices.get("requests")))
    if not requests:
        yield (*at, "requests"), "must not be empty"
    called = [str(request.get("name")) for _, request in requests]
    for index, name in repeated(called):
        yield (*at, "requests", index, "name"), f"{name} is the name of two requests"
    for index, request in requests:
        where = (*at, "requests", index)
        if wrong := names.dns_label(request.get("name")):
            yield (*where, "name"), wrong
        if len(request.keys() & {"exactly", "firstAvailable"}) != 1:
            yield where, "must have either exactly or firstAvailable"
        exactly = mapping(request.get("exactly"))
        if "exactly" in request and not exactly.get("deviceClassName"):
            yield (*where, "exactly", "deviceClassName"), "is required"
        for number, selector in entries(exactly.get("selectors")):
            expression = str(dig(selector, "cel").get("expression", ""))
            try:
                celpy.Environment().compile(expression)
            except CELParseError:
                yield (*where, "exactly", "selectors", number), f"is no CEL ({expression!r})"
    for index, constraint in entries(devices.get("constraints")):
        for name in constraint.get("requests") or ():
            if str(name).partition("/")[0] not in called:
                yield (*at, "constraints", index, "requests"), f"there is no request {name!r}"


KINDS: dict[str, Callable[[Json], Findings]] = {
    "Deployment": _workload,
    "StatefulSet": _workload,
    "DaemonSet": _workload,
    "Service": _service,
    "ConfigMap": _config_map,
    "PodDisruptionBudget": _disruption_budget,
    "HorizontalPodAutoscaler": _autoscaler,
    "NetworkPolicy": _network_policy,
    "Role": _role,
    "ClusterRole": _role,
    "RoleBinding": _binding,
    "ClusterRoleBinding": _binding,
    "Namespace": _namespace,
    "ResourceClaimTemplate": _claim_template,
}

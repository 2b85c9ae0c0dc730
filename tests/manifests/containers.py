"""One container: its ports, variables, probes, hooks and resources, beyond what schemas say."""

from __future__ import annotations

import re

from tests.manifests import names
from tests.manifests.findings import Findings, Json, Path, dig, entries, mapping, repeated

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_REFERENCE = re.compile(r"\$\$|\$\(([-._a-zA-Z0-9]+)\)")
_FIELDS = re.compile(
    r"metadata\.(name|namespace|uid|(labels|annotations)\['[^']+'\])"
    r"|spec\.(nodeName|serviceAccountName)|status\.(hostIPs?|podIPs?)"
)
_SOURCES = ("fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef")
_HANDLERS = ("exec", "httpGet", "tcpSocket", "grpc", "sleep")
_PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
_LEAST = {"periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": 1, "successThreshold": 1}
_PLAIN_RESOURCES = ("cpu", "memory", "ephemeral-storage")
_IMAGE = re.compile(r"[a-z0-9][A-Za-z0-9._:/-]*(@sha256:[0-9a-f]{64})?")


def container(
    one: Json, path: Path, *, initial: bool, grace_s: int, injected: frozenset[str]
) -> Findings:
    """What is wrong with a container, as far as it alone says so."""
    if wrong := names.dns_label(one.get("name")):
        yield (*path, "name"), wrong
    yield from _image(one, path)
    yield from _ports(one, path)
    yield from _variables(one, path, injected)
    yield from _resources(one, path)
    if initial and one.get("restartPolicy") != "Always":
        for key in (*_PROBES, "lifecycle"):
            if key in one:
                yield (*path, key), "has no meaning in an init container that ends"
    for key in _PROBES:
        if key in one:
            yield from _probe(one, key, path)
    for key, hook in mapping(one.get("lifecycle")).items():
        if isinstance(hook, dict):
            yield from _hook(one, hook, (*path, "lifecycle", key), grace_s)


def _image(one: Json, path: Path) -> Findings:
    image = str(one.get("image", ""))
    if not _IMAGE.fullmatch(image):
        yield (*path, "image"), f"is no image (got {image!r})"
        return
    tag = image.rpartition("/")[2].partition("@")[0].partition(":")[2]
    if "@" not in image and tag in ("", "latest"):
        yield (*path, "image"), f"is not pinned: name a tag or a digest (got {image!r})"


def _ports(one: Json, path: Path) -> Findings:
    ports = list(entries(one.get("ports")))
    marks = [f"{port.get('containerPort')}/{port.get('protocol', 'TCP')}" for _, port in ports]
    for index, mark in repeated(marks):
        yield (*path, "ports", index), f"{mark} is there twice"
    for index, port in ports:
        at = (*path, "ports", index)
        if wrong := names.port_number(port.get("containerPort")):
            yield (*at, "containerPort"), wrong
        if "name" in port and (wrong := names.port_name(port["name"])):
            yield (*at, "name"), wrong


def _variables(one: Json, path: Path, injected: frozenset[str]) -> Findings:
    variables = list(entries(one.get("env")))
    known = set(injected)
    open_end = bool(one.get("envFrom"))
    for index, variable in variables:
        at = (*path, "env", index)
        name = str(variable.get("name", ""))
        if not _VARIABLE.fullmatch(name):
            yield (*at, "name"), f"is no name of a variable (got {name!r})"
        source = variable.get("valueFrom")
        if source is not None:
            if variable.get("value"):
                yield at, "has a value and valueFrom"
            yield from _source(mapping(source), (*at, "valueFrom"))
        for missing in _unknown(str(variable.get("value", "")), known, open_end):
            yield (*at, "value"), f"$({missing}) is not set before it, and would stay as it is"
        known.add(name)
    for key in ("command", "args"):
        for index, word in enumerate(one.get(key) or ()):
            for missing in _unknown(str(word), known, open_end):
                yield (*path, key, index), f"$({missing}) is not set, and would stay as it is"


def _unknown(text: str, known: set[str], open_end: bool) -> list[str]:
    found = [match[1] for match in _REFERENCE.finditer(text) if match[1]]
    return [] if open_end else [name for name in found if name not in known]


def _source(source: Json, path: Path) -> Findings:
    given = [key for key in _SOURCES if key in source]
    if len(given) != 1:
        yield path, f"must have exactly one source (got {' and '.join(given) or 'none'})"
    field = mapping(source.get("fieldRef")).get("fieldPath")
    if "fieldRef" in source and not _FIELDS.fullmatch(str(field)):
        yield (*path, "fieldRef", "fieldPath"), f"is no field for a variable (got {field!r})"
    for key in ("configMapKeyRef", "secretKeyRef"):
        for name in ("name", "key") if key in source else ():
            if not mapping(source[key]).get(name):
                yield (*path, key, name), "is required"


# --- probes and hooks ---


def _probe(one: Json, key: str, path: Path) -> Findings:
    probe, at = mapping(one[key]), (*path, key)
    yield from _handler(one, probe, at)
    for name, least in _LEAST.items():
        value = probe.get(name, least)
        if isinstance(value, int) and value < least:
            yield (*at, name), f"must be at least {least} (got {value})"
    if probe.get("initialDelaySeconds", 0) < 0:
        yield (*at, "initialDelaySeconds"), "must not be negative"
    if key != "readinessProbe" and probe.get("successThreshold", 1) != 1:
        yield (*at, "successThreshold"), "must be 1"
    if key == "readinessProbe" and "terminationGracePeriodSeconds" in probe:
        yield (*at, "terminationGracePeriodSeconds"), "has no meaning: readiness kills nothing"


def _hook(one: Json, hook: Json, path: Path, grace_s: int) -> Findings:
    yield from _handler(one, hook, path)
    seconds = mapping(hook.get("sleep")).get("seconds")
    if seconds is not None and not 0 < seconds <= grace_s:
        yield (*path, "sleep", "seconds"), f"must be from 1 to the pod's grace period ({grace_s})"


def _handler(one: Json, found: Json, path: Path) -> Findings:
    given = [key for key in _HANDLERS if key in found]
    if len(given) != 1:
        yield path, f"must have exactly one handler (got {' and '.join(given) or 'none'})"
    declared = {port.get("name") for _, port in entries(one.get("ports"))}
    numbers = {port.get("containerPort") for _, port in entries(one.get("ports"))}
    for key in ("httpGet", "tcpSocket", "grpc"):
        if key not in found:
            continue
        port = mapping(found[key]).get("port")
        if isinstance(port, str) and port not in declared:
            yield (*path, key, "port"), f"the container has no port named {port!r}"
        if isinstance(port, int) and port not in numbers:
            yield (*path, key, "port"), f"the container has no port {port}"
    if "exec" in found and not dig(found, "exec").get("command"):
        yield (*path, "exec", "command"), "is required"
    where = dig(found, "httpGet").get("path", "/")
    if not str(where).startswith("/"):
        yield (*path, "httpGet", "path"), f"must start with a slash (got {where!r})"


# --- resources ---


def _resources(one: Json, path: Path) -> Findings:
    resources = mapping(one.get("resources"))
    at = (*path, "resources")
    limits, requests = (mapping(resources.get(key)) for key in ("limits", "requests"))
    for key, given in (("limits", limits), ("requests", requests)):
        for name, amount in given.items():
            yield from _amount(name, amount, (*at, key, name))
    for name, amount in requests.items():
        wanted, limit = names.quantity(amount), names.quantity(limits.get(name))
        if wanted is not None and limit is not None and wanted > limit:
            yield (*at, "requests", name), f"must not be more than the limit ({limits[name]})"
        if _extended(name):
            if limit is None:
                yield (*at, "limits", name), "is required, equal to the request"
            elif wanted != limit:
                yield (*at, "requests", name), f"must equal the limit ({limits[name]})"


def _extended(name: str) -> bool:
    return name not in _PLAIN_RESOURCES


def _amount(name: str, amount: object, path: Path) -> Findings:
    value = names.quantity(amount)
    if value is None:
        yield path, f"is no amount (got {amount!r})"
    elif value < 0:
        yield path, f"must not be negative (got {amount})"
    if name in _PLAIN_RESOURCES or name.startswith("hugepages-"):
        return
    if "/" not in name or names.qualified(name):
        yield path, f"{name!r} is no resource: cpu, memory or a name with a domain"
    if value is not None and value % 1:
        yield path, f"must be whole (got {amount})"

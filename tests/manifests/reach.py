"""Who may open a connection to whom under the NetworkPolicies of a set of objects.

As a network plug-in that honours them decides: a pod that no policy selects takes everything; one
that is selected takes what some rule of some of its policies allows. Addresses (ipBlock) are left
out: a peer of that kind allows nobody here.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.manifests import names
from tests.manifests.findings import Json, entries, mapping
from tests.manifests.world import Pods, World

_NAME = "kubernetes.io/metadata.name"


@dataclass(frozen=True, slots=True)
class Outsider:
    """A pod of another namespace, without labels that anybody asks for."""

    namespace: str


Source = Pods | Outsider


def reaches(world: World, source: Source, target: Pods, port: int) -> bool:
    """Whether a connection from the source to a port of the target is let through."""
    into = _rules(world, target, "Ingress", "ingress")
    if into is not None and not any(_taken(one, "from", source, target, port) for one in into):
        return False
    out = _rules(world, source, "Egress", "egress") if isinstance(source, Pods) else None
    return out is None or any(_taken(one, "to", target, target, port) for one in out)


def _rules(world: World, pods: Pods, kind: str, key: str) -> list[tuple[str, Json]] | None:
    """The rules for a pod, each with its policy's namespace; None if no policy selects it."""
    found: list[tuple[str, Json]] = []
    selected = False
    for policy in world.kind("NetworkPolicy"):
        spec, home = mapping(policy.get("spec")), world.home(policy)
        default = ["Ingress", *(["Egress"] if "egress" in spec else [])]
        if kind not in spec.get("policyTypes", default):
            continue
        if pods in world.selected(spec.get("podSelector"), home):
            selected = True
            found += [(home, rule) for _, rule in entries(spec.get(key))]
    return found if selected else None


def _taken(placed: tuple[str, Json], peers: str, other: Source, target: Pods, port: int) -> bool:
    home, rule = placed
    ports = [one for _, one in entries(rule.get("ports"))]
    if ports and not any(_is_port(one, target, port) for one in ports):
        return False
    given = [one for _, one in entries(rule.get(peers))]
    return not given or any(_is_peer(one, home, other) for one in given)


def _is_port(wanted: Json, target: Pods, port: int) -> bool:
    if wanted.get("protocol", "TCP") != "TCP":
        return False
    first = wanted.get("port")
    if isinstance(first, str):
        return any(
            (declared.get("name"), declared.get("containerPort")) == (first, port)
            for _, one in entries(target.template.spec.get("containers"))
            for _, declared in entries(one.get("ports"))
        )
    if not isinstance(first, int):
        return True
    return first <= port <= int(wanted.get("endPort", first))


def _is_peer(peer: Json, home: str, other: Source) -> bool:
    if "ipBlock" in peer:
        return False
    if "namespaceSelector" in peer:
        if not names.matches(peer["namespaceSelector"], {_NAME: other.namespace}):
            return False
    elif other.namespace != home:
        return False
    if "podSelector" not in peer:
        return True
    if isinstance(other, Outsider):
        return names.matches(peer["podSelector"], {})
    return names.matches(peer["podSelector"], other.template.labels, other.template.any_labels)

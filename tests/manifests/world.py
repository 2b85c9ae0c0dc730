"""A set of objects that are applied together, as checks of references look them up."""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.manifests import crds, names
from tests.manifests.findings import Json, mapping
from tests.manifests.pods import PodTemplate, templates

CLUSTER_WIDE = frozenset(
    [
        "Namespace",
        "Node",
        "PersistentVolume",
        "ClusterRole",
        "ClusterRoleBinding",
        "StorageClass",
        "PriorityClass",
        "RuntimeClass",
        "IngressClass",
        "DeviceClass",
        "ResourceSlice",
        "CustomResourceDefinition",
        "APIService",
        "ValidatingWebhookConfiguration",
        "MutatingWebhookConfiguration",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
        "CSIDriver",
        "ServiceCIDR",
    ]
)
"""Built-in kinds without a namespace."""

BY_HAND = (
    "Secret/*",  # a tree in Git holds no secrets
    "PersistentVolumeClaim/*",  # made once, with the data in it
    "ConfigMap/baton-active",  # written by the controller
    "ConfigMap/kube-root-ca.crt",
    "ServiceAccount/default",
    "PriorityClass/system-*",
    "ClusterRole/view",
    "ClusterRole/system:*",
    "GatewayClass/*",
    "DeviceClass/*",  # of the driver
    "Gateway/*",
    "Service/*-epp",  # an endpoint picker, installed with its own chart
    "NodePool/*",
)
"""What is there without being rendered, as ``Kind/name`` patterns."""


@dataclass(frozen=True, slots=True)
class Pods:
    """The pods of one template, and whose they are."""

    owner: Json
    namespace: str
    template: PodTemplate


class World:
    """Objects by kind, namespace and name.

    Args:
        objects: all of them.
        by_hand: patterns of what is there besides, see ``BY_HAND``.
    """

    def __init__(self, objects: Sequence[Json], by_hand: Sequence[str] = BY_HAND) -> None:
        self.objects = objects
        self._by_hand = by_hand
        self._index: dict[tuple[str, str, str], Json] = {}
        for found in objects:
            kind = str(found.get("kind"))
            self._index.setdefault((kind, self.home(found), _name(found)), found)

    def home(self, found: Json) -> str:
        """The namespace of an object; empty for kinds without one."""
        if not namespaced(str(found.get("apiVersion")), str(found.get("kind"))):
            return ""
        return str(mapping(found.get("metadata")).get("namespace", ""))

    def find(self, kind: str, namespace: str, name: object) -> Json | None:
        """The object, if it is rendered."""
        return self._index.get((kind, namespace, str(name)))

    def has(self, kind: str, namespace: str, name: object) -> bool:
        """Whether the object is rendered or there by other hands."""
        if self.find(kind, namespace, name) is not None:
            return True
        return any(fnmatch.fnmatchcase(f"{kind}/{name}", pattern) for pattern in self._by_hand)

    def kind(self, kind: str) -> Iterator[Json]:
        """All rendered objects of a kind."""
        return (found for found in self.objects if found.get("kind") == kind)

    @functools.cached_property
    def pods(self) -> list[Pods]:
        """The pods of all objects."""
        return [
            Pods(found, self.home(found), template)
            for found in self.objects
            for template in templates(found)
        ]

    def selected(self, selector: object, namespace: str) -> list[Pods]:
        """The pods that a LabelSelector takes in a namespace."""
        return [
            one
            for one in self.pods
            if one.namespace == namespace
            and names.matches(selector, one.template.labels, one.template.any_labels)
        ]


def namespaced(api_version: str, kind: str) -> bool:
    """Whether objects of a kind live in namespaces; unknown kinds are taken to."""
    group, _, version = api_version.rpartition("/")
    if "." in group and (crd := crds.of_group(group).get((version, kind))):
        return crd.namespaced
    return kind not in CLUSTER_WIDE


def _name(found: Json) -> str:
    return str(mapping(found.get("metadata")).get("name"))

"""Builds an overlay in memory, as ``kubectl kustomize`` builds it from the files.

It knows the part of kustomize that trees use: components, RFC 6902 patches and the namespace. What
it makes must equal what kubectl makes, whatever the order; a test holds both against each other.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence, Set

import jsonpatch
import jsonpointer

from baton.errors import SettingsError
from deploy.lws.tree import Json, Part, Patch, Target, Tree

CLUSTER_SCOPED = frozenset(
    {
        "ClusterRole",
        "ClusterRoleBinding",
        "CustomResourceDefinition",
        "DeviceClass",
        "PersistentVolume",
        "PriorityClass",
        "StorageClass",
    }
)
"""Kinds that get no namespace; of custom resources kustomize does not know it."""


def build(tree: Tree, overlay: str) -> list[Json]:
    """The objects of one overlay.

    Raises:
        SettingsError: the tree has no such overlay or component, or a patch does not fit.
    """
    part = tree.overlays.get(overlay)
    if part is None:
        raise SettingsError(
            f"there is no overlay {overlay!r}; there are {', '.join(sorted(tree.overlays))}"
        )
    return build_part(tree, part)


def build_part(tree: Tree, part: Part) -> list[Json]:
    """The objects of an overlay that need not be one of the tree's."""
    objects = _own(tree.base)
    _patch(objects, tree.base)
    objects.extend(_own(part))
    for name in part.components:
        component = tree.components.get(name)
        if component is None:
            raise SettingsError(
                f"overlay {part.name!r} takes component {name!r}, which is not there"
            )
        objects.extend(_own(component))
        _patch(objects, component)
    _patch(objects, part)
    if part.namespace:
        accounts = {o["metadata"]["name"] for o in objects if o["kind"] == "ServiceAccount"}
        for found in objects:
            _place(found, part.namespace, accounts)
    return objects


def matches(target: Target, found: Json) -> bool:
    """Whether a patch for this target changes this object."""
    metadata = found["metadata"]
    if found["kind"] != target.kind or (target.name and metadata["name"] != target.name):
        return False
    has = metadata.get("labels") or {}
    terms = (term.split("=", 1) for term in target.labels.split(",") if term)
    return all(has.get(key) == value for key, value in terms)


def patched(found: Json, ops: Sequence[Json]) -> Json:
    """A copy of an object after RFC 6902 operations.

    Raises:
        SettingsError: an operation does not fit.
    """
    try:
        changed: Json = jsonpatch.apply_patch(found, list(ops))
    except (jsonpatch.JsonPatchException, jsonpointer.JsonPointerException) as error:
        what = f"{found['kind']} {found['metadata']['name']}"
        raise SettingsError(f"a patch does not fit {what}: {error}") from error
    return changed


def _own(part: Part) -> list[Json]:
    return [copy.deepcopy(found) for objects in part.files.values() for found in objects]


def _patch(objects: list[Json], part: Part) -> None:
    for patch in part.patches:
        for index, found in enumerate(objects):
            if matches(patch.target, found):
                objects[index] = _with(patch, found)


def _with(patch: Patch, found: Json) -> Json:
    return patched(found, copy.deepcopy(list(patch.ops)))


def _place(found: Json, namespace: str, accounts: Set[str]) -> None:
    """Puts an object into a namespace. A subject of a binding follows its account there, if that
    is among the objects and no other namespace is named."""
    if found["kind"] == "Namespace":
        found["metadata"]["name"] = namespace
        return
    if found["kind"] not in CLUSTER_SCOPED:
        metadata = found["metadata"]
        metadata.pop("namespace", None)
        # Beside the name, where a reader looks for it.
        found["metadata"] = {"name": metadata["name"], "namespace": namespace, **metadata}
    for subject in found.get("subjects", []):
        ours = subject["kind"] == "ServiceAccount" and subject["name"] in accounts
        if ours and "namespace" not in subject:
            subject["namespace"] = namespace

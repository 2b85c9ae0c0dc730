"""What of a rendered tree is applied together: an overlay, and what it needs of the cluster."""

from __future__ import annotations

from deploy.lws.build import build
from deploy.lws.tree import Tree
from tests.manifests.findings import Json


def applied(tree: Tree, overlay: str) -> list[Json]:
    """The objects of an overlay, and those without a namespace that an administrator applies."""
    return [*whole_cluster(tree, overlay), *build(tree, overlay)]


def whole_cluster(tree: Tree, overlay: str) -> list[Json]:
    """The objects without a namespace that an overlay needs; none for most."""
    part = tree.cluster.get(overlay)
    return [found for objects in part.files.values() for found in objects] if part else []

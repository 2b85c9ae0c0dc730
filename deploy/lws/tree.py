"""What the renderer makes: a kustomize base, components and overlays, as data.

A tree is written to files for people and GitOps, and built in memory for tests, the controller and
``--rendered``. Both come from the same data, and what is built here must equal what ``kubectl
kustomize`` builds from the files. To keep that provable, patches are RFC 6902 operations and
nothing else: strategic merges mean different things for built-in kinds and for custom resources.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

MARK = "made by baton deploy render"
"""Stands in the first line of each file that is written, and tells ours from others'."""


@dataclass(frozen=True, slots=True)
class Target:
    """Which objects a patch changes: those of ``kind``, narrowed by what is not empty.

    Attributes:
        kind: such as ``LeaderWorkerSet``.
        name: exact name; empty for any.
        labels: a label selector of ``key=value`` terms with commas; empty for any.
    """

    kind: str
    name: str = ""
    labels: str = ""


@dataclass(frozen=True, slots=True)
class Patch:
    """Operations of RFC 6902 on all objects of a target; a target that nothing matches is no error.

    Attributes:
        about: one line that says why; a comment in the file.
        target: on what.
        ops: ``{"op": ..., "path": ..., "value": ...}`` in order.
    """

    about: str
    target: Target
    ops: Sequence[Json]


@dataclass(frozen=True, slots=True)
class Part:
    """A base, a component or an overlay: one folder with a ``kustomization.yaml``.

    Attributes:
        name: the folder's name.
        about: what it is for and what it needs of the cluster; the comment at its head.
        files: file name to the objects in it.
        patches: applied after the part's own objects were added.
        components: names of components that an overlay takes, in order; overlays only.
        namespace: set on all namespaced objects; overlays only.
        abouts: file name to what its objects are for; the comment at its head.
    """

    name: str
    about: str
    files: Mapping[str, Sequence[Json]] = field(default_factory=dict)
    patches: Sequence[Patch] = ()
    components: Sequence[str] = ()
    namespace: str = ""
    abouts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tree:
    """Everything that one profile is rendered to.

    Attributes:
        profile: the profile's name.
        base: what each overlay starts from.
        components: options, by folder name.
        overlays: kinds of clusters, by folder name.
        cluster: what belongs to a whole cluster, by the overlay's name: objects without a
            namespace, which kustomize would give one, and which an administrator applies.
    """

    profile: str
    base: Part
    components: Mapping[str, Part]
    overlays: Mapping[str, Part]
    cluster: Mapping[str, Part] = field(default_factory=dict)

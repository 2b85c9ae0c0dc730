"""Labels and annotations of everything that is rendered, in one place: selectors, the controller
and people find objects by them.

Refuses nothing and knows no kinds; what is labelled is up to whoever makes an object.
"""

from __future__ import annotations

from typing import Final

NAME: Final = "app.kubernetes.io/name"
COMPONENT: Final = "app.kubernetes.io/component"
PART_OF: Final = "app.kubernetes.io/part-of"
MANAGED_BY: Final = "app.kubernetes.io/managed-by"

BATON: Final = "baton"
CONTROLLER_MANAGER: Final = "baton-controller"
"""Value of ``MANAGED_BY`` on what the controller makes; objects of the tree have no such label."""

ROLE: Final = "baton.serving/role"
POOL: Final = "baton.serving/pool"
"""The pool's key: two pools with the same one have the same pods (``pools.pool_key``)."""

PROFILE: Final = "baton.serving/profile"
PROFILE_VERSION: Final = "baton.serving/profile-version"
"""Annotations of a pool's LeaderWorkerSet: the profile that it was last rendered from."""

LWS_NAME: Final = "leaderworkerset.sigs.k8s.io/name"
LWS_WORKER_INDEX: Final = "leaderworkerset.sigs.k8s.io/worker-index"
LWS_GROUP_KEY: Final = "leaderworkerset.sigs.k8s.io/group-key"
"""A value for each group, on its leader and its followers alike."""
LWS_EXCLUSIVE_TOPOLOGY: Final = "leaderworkerset.sigs.k8s.io/exclusive-topology"

ROUTER: Final = "router"
STORE: Final = "store"
CONTROLLER: Final = "controller"


def shared() -> dict[str, str]:
    """Labels of an object that belongs to no one component, such as a policy for all pods."""
    return {NAME: BATON, PART_OF: BATON}


def labels(component: str) -> dict[str, str]:
    """Labels of an object of ``component``: a role, ``router``, ``controller`` or ``store``."""
    return {NAME: BATON, COMPONENT: str(component), PART_OF: BATON}


def selector(component: str) -> dict[str, str]:
    """What selects the pods of ``component`` and no other's; never changes once it is used."""
    return {NAME: BATON, COMPONENT: str(component)}


def pool_labels(role: str, key: str = "") -> dict[str, str]:
    """Labels of a pool's LeaderWorkerSet and of its pods; without a key, those that all pools of
    the role share."""
    shared = {**labels(role), ROLE: str(role)}
    return {**shared, POOL: key} if key else shared

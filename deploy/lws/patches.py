"""Operations of RFC 6902, and the target that most of them have.

The renderer's parts and its options make their patches of these; how a patch is carried out is
``build``'s business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploy.lws import labels
from deploy.lws.tree import Json, Target

if TYPE_CHECKING:
    from baton.types import Role


def pool_target(role: Role) -> Target:
    """The LeaderWorkerSets of a role. By its label and not by a name, so that a pool that the
    controller makes beside the tree's is patched alike."""
    return Target("LeaderWorkerSet", labels=f"{labels.ROLE}={role}")


def add(path: str, value: Any) -> Json:
    """Adds a value; to a list's end where the path ends in ``/-``."""
    return {"op": "add", "path": path, "value": value}


def replace(path: str, value: Any) -> Json:
    """Replaces what is there."""
    return {"op": "replace", "path": path, "value": value}


def escaped(key: str) -> str:
    """A key as a segment of a JSON pointer (RFC 6901)."""
    return key.replace("~", "~0").replace("/", "~1")

"""Operations on the pods of a profile's pools, for options that patch them.

An option says what should change in a worker's pod; this module knows at which paths of a
LeaderWorkerSet that is. Where a site has one DisaggregatedSet instead, the tree is rewritten as a
whole, so that no option need know. It refuses to look at objects: lists and maps that options add
to (``REQUIRED``) are there in every pod that the renderer makes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from deploy.lws.patches import add, escaped, pool_target
from deploy.lws.tree import Json, Patch

if TYPE_CHECKING:
    from baton.types import Role
    from deploy.lws.site import Site
    from profiles import PoolSpec, ServingProfile

TEMPLATE: Final = "/spec/leaderWorkerTemplate/workerTemplate"
"""The pod template of a LeaderWorkerSet, which serves leader and followers alike."""

CONTAINER: Final = "/spec/containers/0"
"""The container that serves, in a pod template."""

REQUIRED: Final = (
    "/metadata/annotations",
    "/spec/nodeSelector",
    "/spec/volumes",
    f"{CONTAINER}/env",
    f"{CONTAINER}/volumeMounts",
    f"{CONTAINER}/resources/limits",
    f"{CONTAINER}/resources/requests",
)
"""What every worker's pod template has, be it empty: options add to it and never make it."""

OpsOf = Callable[["Role", "PoolSpec"], Sequence[Json]]
"""Operations on a pod template of a role, with paths that begin at the template."""


def pod_patches(
    profile: ServingProfile, site: Site, about: str, ops_of: OpsOf, *, gpus_only: bool = False
) -> tuple[Patch, ...]:
    """One patch per pool, with the operations on its pod template.

    Args:
        profile: whose pools.
        site: the cluster.
        about: says why, in the file.
        ops_of: what to do in a pod template; nothing for a role that is not concerned.
        gpus_only: leave out pools that compute on the CPU.
    """
    found = []
    for role, pool in profile.spec.pools.by_role.items():
        if gpus_only and resource_of(pool, site) is None:
            continue
        ops = [{**op, "path": TEMPLATE + op["path"]} for op in ops_of(role, pool)]
        if ops:
            found.append(Patch(about, pool_target(role), ops))
    return tuple(found)


def resource_of(pool: PoolSpec, site: Site) -> str | None:
    """The resource that a pool's pods ask for devices by; None where they compute on the CPU."""
    return site.accelerator(pool.accelerator).resource


def add_volume(volume: Json, mount_path: str, *, read_only: bool) -> list[Json]:
    """A volume, mounted into the container that serves."""
    mount: Json = {"name": volume["name"], "mountPath": mount_path}
    if read_only:
        mount["readOnly"] = True
    return [add("/spec/volumes/-", volume), add(f"{CONTAINER}/volumeMounts/-", mount)]


def add_env(name: str, value: str) -> Json:
    """A variable of the container that serves."""
    return add(f"{CONTAINER}/env/-", {"name": name, "value": value})


def add_keys(path: str, values: Mapping[str, str]) -> list[Json]:
    """Entries of a map that is there, such as annotations."""
    return [add(f"{path}/{escaped(key)}", value) for key, value in values.items()]

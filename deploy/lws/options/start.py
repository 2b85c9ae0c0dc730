"""Nodes on which images start fast: those with a secondary boot disk that holds the image, and
those that stream it.

Both are settings of node pools, which no manifest can make; all that stands here is the labels by
which pods find such nodes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from deploy.lws.options.pods import add_keys, pod_patches
from deploy.lws.tree import Json, Part

if TYPE_CHECKING:
    from baton.types import Role
    from deploy.lws.site import Site
    from profiles import PoolSpec, ServingProfile

_DISK: Final = "gke-secondary-boot-disk"
"""In the key of the label that GKE gives to nodes with such a disk; the rest is the disk image's
name."""


def secondary_boot_disk(profile: ServingProfile, site: Site) -> Part | None:
    """Nodes with the image on a secondary boot disk; None where the site names no such label."""
    return _part(
        profile,
        site,
        "secondary-boot-disk",
        "Workers run on nodes whose secondary boot disk holds their image: nothing is pulled.\n"
        "Needs: GKE node pools made with --secondary-boot-disk (mode CONTAINER_IMAGE_CACHE) and "
        "image streaming. The disk image holds the very image that is deployed, and is made anew "
        "with each version of it.",
        disk=True,
    )


def image_streaming(profile: ServingProfile, site: Site) -> Part | None:
    """Nodes that stream images; None where the site names no such label."""
    return _part(
        profile,
        site,
        "image-streaming",
        "Workers run on nodes that start a container while its image is still being read.\n"
        "Needs: GKE node pools with --enable-image-streaming, and images in an Artifact Registry "
        "of their region.",
        disk=False,
    )


def _part(profile: ServingProfile, site: Site, name: str, about: str, *, disk: bool) -> Part | None:
    wanted = {key: value for key, value in site.spec.image_nodes.items() if (_DISK in key) is disk}
    if not wanted:
        return None

    def ops(role: Role, pool: PoolSpec) -> list[Json]:
        del role, pool
        return add_keys("/spec/nodeSelector", wanted)

    patches = pod_patches(profile, site, "Nodes on which images start fast.", ops)
    return Part(name=name, about=about, patches=patches)

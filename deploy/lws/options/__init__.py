"""What an overlay may take beside the base: one function per component folder.

An option makes a part from a profile and a site, or None where it has no place there: the site
does not ask for it, or the profile has no use for it. Nothing is on unless a site asks for it,
since each needs something of the cluster; what it needs stands at the head of its folder.
docs/kubernetes/options.md says when to take which.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from deploy.lws.options.devices import dra, rdma
from deploy.lws.options.gateway import gateway, inferencepool
from deploy.lws.options.kueue import kueue, kueue_cluster
from deploy.lws.options.monitoring import podmonitor, podmonitoring
from deploy.lws.options.rules import prometheusrule
from deploy.lws.options.scaling import autoscaler, hpa, keda, of_set
from deploy.lws.options.start import image_streaming, secondary_boot_disk
from deploy.lws.options.weights import (
    weights_gcsfuse,
    weights_hub,
    weights_image,
    weights_nfs,
    weights_pvc,
)
from deploy.lws.tree import Part

if TYPE_CHECKING:
    from deploy.lws.site import Site
    from profiles import ServingProfile

Option = Callable[["ServingProfile", "Site"], Part | None]

OPTIONS: Final[dict[str, Option]] = {
    "weights-pvc": weights_pvc,
    "weights-nfs": weights_nfs,
    "weights-gcsfuse": weights_gcsfuse,
    "weights-image": weights_image,
    "weights-hub": weights_hub,
    "secondary-boot-disk": secondary_boot_disk,
    "image-streaming": image_streaming,
    "dra": dra,
    "rdma": rdma,
    "kueue": kueue,
    "hpa": hpa,
    "keda": keda,
    "podmonitor": podmonitor,
    "podmonitoring": podmonitoring,
    "prometheusrule": prometheusrule,
    "gateway": gateway,
    "inferencepool": inferencepool,
}
"""Each option by the name of its folder, in the order in which an overlay takes them."""

CLUSTER: Final[dict[str, Option]] = {"kueue": kueue_cluster}
"""What goes with an option and belongs to the whole cluster: objects without a namespace, which
kustomize would give one, and which somebody else applies."""


def chosen(profile: ServingProfile, site: Site) -> dict[str, Part]:
    """The parts that a site asks for and a profile has a use for, in the order of ``OPTIONS``."""
    found = {name: option(profile, site) for name, option in OPTIONS.items()}
    return {name: part for name, part in found.items() if part is not None}


__all__ = ["CLUSTER", "OPTIONS", "Option", "autoscaler", "chosen", "of_set"]

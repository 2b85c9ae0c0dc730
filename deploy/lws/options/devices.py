"""Devices of workers' pods beyond the device plug-in's GPUs: claims of dynamic resource
allocation, and RDMA.

Both change what a pod may touch on its node, so that each says what the cluster has to allow.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Final

from deploy.lws import labels, names
from deploy.lws.options.pods import CONTAINER, add_env, add_keys, pod_patches, resource_of
from deploy.lws.patches import add, escaped
from deploy.lws.tree import Json, Part, Patch, Target
from profiles import Transport

if TYPE_CHECKING:
    from baton.types import Role
    from deploy.lws.site import Site
    from profiles import PoolSpec, ServingProfile

NETWORKS_ANNOTATION: Final = "k8s.v1.cni.cncf.io/networks"
POD_SECURITY: Final = "pod-security.kubernetes.io/enforce"

_CLAIM: Final = "devices"


def dra(profile: ServingProfile, site: Site) -> Part | None:
    """Devices by claims; None unless the site asks for them, or where no pool has a device."""
    if not site.spec.dra:
        return None
    pools = {
        role: pool
        for role, pool in profile.spec.pools.by_role.items()
        if resource_of(pool, site) is not None
    }
    if not pools:
        return None

    def ops(role: Role, pool: PoolSpec) -> list[Json]:
        claim = {
            "name": _CLAIM,
            "resourceClaimTemplateName": _claim_template(role, pool, site)["metadata"]["name"],
        }
        resource = escaped(resource_of(pool, site) or "")
        return [
            {"op": "remove", "path": f"{CONTAINER}/resources/limits/{resource}"},
            {"op": "remove", "path": f"{CONTAINER}/resources/requests/{resource}"},
            add(f"{CONTAINER}/resources/claims", [{"name": _CLAIM}]),
            add("/spec/resourceClaims", [claim]),
        ]

    return Part(
        name="dra",
        about="Devices by claims (dynamic resource allocation) instead of the device plug-in's "
        "resource: a pool may ask for a MIG slice, or for a card by its attributes.\n"
        "Needs: Kubernetes 1.34 or later, and the DRA driver of the devices with its "
        "DeviceClasses (NVIDIA's: gpu.nvidia.com and mig.nvidia.com; slices are made before, and "
        "an L4 has none). Under Kueue, deviceClassMappings of its configuration, by which claims "
        "count against a quota.",
        files={"claims.yaml": [_claim_template(role, pool, site) for role, pool in pools.items()]},
        patches=pod_patches(profile, site, "A claim instead of a resource.", ops, gpus_only=True),
    )


def _claim_template(role: Role, pool: PoolSpec, site: Site) -> Json:
    """What each pod of a pool claims. Its name holds a digest of what it says: a claim's template
    cannot be changed, and pools of two profiles may want different devices at a time."""
    accelerator = site.accelerator(pool.accelerator)
    request: Json = {
        "deviceClassName": accelerator.dra_class,
        "allocationMode": "ExactCount",
        "count": pool.devices // pool.nodes,
    }
    if accelerator.dra_selector:
        request["selectors"] = [{"cel": {"expression": accelerator.dra_selector}}]
    digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:8]
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaimTemplate",
        "metadata": {
            "name": f"{names.pool_name(role)}-devices-{digest}",
            "labels": labels.pool_labels(role),
        },
        "spec": {"spec": {"devices": {"requests": [{"name": _CLAIM, "exactly": request}]}}},
    }


def rdma(profile: ServingProfile, site: Site) -> Part | None:
    """RDMA devices for the pools that hand over; None where the profile does not ask for RDMA,
    or the site has none."""
    spec = site.spec.rdma
    transfer = profile.spec.transfer
    if spec is None or transfer.transport is not Transport.RDMA:
        return None

    def ops(role: Role, pool: PoolSpec) -> list[Json]:
        del role, pool
        count = str(spec.count)
        resource = escaped(spec.resource)
        found = [
            add(f"{CONTAINER}/resources/limits/{resource}", count),
            add(f"{CONTAINER}/resources/requests/{resource}", count),
            add_env("UCX_NET_DEVICES", spec.net_devices),
        ]
        if spec.gid_index is not None:
            found.append(add_env("UCX_IB_GID_INDEX", str(spec.gid_index)))
        if spec.ipc_lock:
            found.append(add(f"{CONTAINER}/securityContext/capabilities/add", ["IPC_LOCK"]))
            # Kubernetes sets no ambient capabilities (kubernetes/kubernetes#56374): an ordinary
            # user's process would not have it.
            found += [
                add("/spec/securityContext/runAsNonRoot", False),
                add("/spec/securityContext/runAsUser", 0),
                add("/spec/securityContext/runAsGroup", 0),
            ]
        if spec.networks:
            found += add_keys("/metadata/annotations", {NETWORKS_ANNOTATION: spec.networks})
        return found

    security = (
        " Pinning memory beyond the runtime's limit takes IPC_LOCK, which only root's processes "
        "get, and no Pod security level below privileged allows: the namespace enforces that one, "
        "and still warns of what is beyond restricted. Where nodes lift the limit, leave "
        "ipc_lock out of the site."
        if spec.ipc_lock
        else ""
    )
    return Part(
        name="rdma",
        about=f"RDMA for the handover of KV caches: devices, and what UCX needs.{security}\n"
        f"Needs: an RDMA device plug-in that offers {spec.resource}, drivers on the nodes, and for "
        "transfers straight between cards nvidia-peermem or DMA-BUF. `baton doctor` says what "
        "pods see of it.",
        patches=(
            *pod_patches(profile, site, "RDMA devices, and UCX on them.", ops),
            *(_privileged() if spec.ipc_lock else ()),
        ),
    )


def _privileged() -> tuple[Patch, ...]:
    return (
        Patch(
            "IPC_LOCK is beyond restricted and baseline.",
            Target("Namespace"),
            [add(f"/metadata/labels/{escaped(POD_SECURITY)}", "privileged")],
        ),
    )

"""Where a worker finds its model's files: a claim, NFS, a bucket, an image, or the hub.

The files are mounted read-only under ``/models`` and named to the worker by ``BATON_MODEL``; with
it goes ``BATON_SERVED_NAME``, since a model that is named by a folder would be called by the
folder's name, and clients ask for the profile's. Publish a model whole, by a rename or a new
folder: a worker that reads half of one refuses it or, worse, digests it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from deploy.lws import labels, names
from deploy.lws.options.pods import CONTAINER, add_env, add_keys, add_volume, pod_patches
from deploy.lws.patches import add
from deploy.lws.site_sections import (
    ClaimWeights,
    GcsFuseWeights,
    HubWeights,
    ImageWeights,
    NfsWeights,
)
from deploy.lws.tree import Json, Part, Patch, Target
from deploy.lws.worker_pod import MODELS
from profiles import SourceKind

if TYPE_CHECKING:
    from baton.types import Role
    from deploy.lws.site import Site
    from profiles import PoolSpec, ServingProfile

VOLUME: Final = "weights"

_NFS_OPTIONS: Final = ["ro", "noatime", "nconnect=8"]
_GCS_DRIVER: Final = "gcsfuse.csi.storage.gke.io"
_GCS_CACHE: Final = "gke-gcsfuse-cache"
"""The volume that GKE's sidecar takes for its file cache, by this name."""
_GCS_SPARE_GIB: Final = 20
"""Disk beside the cache: what the engine compiles, /tmp and logs."""
_GCS_MEMORY: Final = {"request": "512Mi", "limit": "2Gi"}
"""Of the sidecar: buffers of parallel downloads, and what it knows of files. The page cache of its
reads counts as well, and is given back."""
_GCS_OPTIONS: Final = (
    "implicit-dirs",
    # Files of a published model do not change.
    "metadata-cache:ttl-secs:-1",
    "file-cache:enable-parallel-downloads:true",
)


def weights_pvc(profile: ServingProfile, site: Site) -> Part | None:
    """A claim that holds the model; None unless the site says so."""
    wanted = site.spec.weights
    if not isinstance(wanted, ClaimWeights):
        return None
    return _part(
        profile,
        site,
        "weights-pvc",
        f"The model's files come from the PersistentVolumeClaim {wanted.claim}.\n"
        "Needs: that claim, ReadOnlyMany or ReadWriteMany, and the files in it.",
        volume=_claim_volume(wanted.claim),
        folder=wanted.folder,
    )


def weights_nfs(profile: ServingProfile, site: Site) -> Part | None:
    """An NFS export that holds the model; None unless the site says so."""
    wanted = site.spec.weights
    if not isinstance(wanted, NfsWeights):
        return None
    # A volume of kind nfs in a pod is beyond the Pod security level restricted; a claim is not.
    name = f"{site.spec.namespace}-weights"
    meta: Json = {"name": name, "labels": labels.shared()}
    size: Json = {"storage": "1Gi"}
    volume: Json = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": meta,
        "spec": {
            "accessModes": ["ReadOnlyMany"],
            "capacity": size,
            "mountOptions": list(_NFS_OPTIONS),
            "nfs": {"server": wanted.server, "path": wanted.path, "readOnly": True},
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
        },
    }
    claim: Json = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "baton-weights", "labels": labels.shared()},
        "spec": {
            "accessModes": ["ReadOnlyMany"],
            "resources": {"requests": size},
            "storageClassName": "",
            "volumeName": name,
        },
    }
    return _part(
        profile,
        site,
        "weights-nfs",
        f"The model's files come from NFS, {wanted.server}:{wanted.path}. Sizes are of no account. "
        "Read-ahead is a setting of the nodes (udev): to raise it from a pod takes a privileged "
        "one.\n"
        "Needs: an NFS client on the nodes (kernel 5.3 or later, for several connections).",
        volume=_claim_volume("baton-weights"),
        folder=wanted.folder,
        files={"volume.yaml": [volume, claim]},
    )


def weights_gcsfuse(profile: ServingProfile, site: Site) -> Part | None:
    """A bucket that holds the model, by GCS FUSE; None unless the site says so."""
    wanted = site.spec.weights
    if not isinstance(wanted, GcsFuseWeights):
        return None
    cache: Json = {"name": _GCS_CACHE, "emptyDir": {"sizeLimit": f"{wanted.cache_gib}Gi"}}
    attributes: Json = {
        "bucketName": wanted.bucket,
        "mountOptions": ",".join(_GCS_OPTIONS),
        # Below the volume's limit: at the limit the pod would be evicted.
        "fileCacheCapacity": f"{max(1, wanted.cache_gib * 9 // 10)}Gi",
        "fileCacheForRangeRead": "true",
    }
    account = wanted.service_account
    grant = (
        f"the Google service account {account}, which {names.WORKER} may act as"
        if account
        else f"a grant on the bucket for the Kubernetes service account {names.WORKER}"
    )
    patches = [
        Patch(
            "The Google service account that reads the bucket.",
            Target("ServiceAccount", name=names.WORKER),
            [add("/metadata/annotations", {"iam.gke.io/gcp-service-account": account})],
        )
    ]
    return _part(
        profile,
        site,
        "weights-gcsfuse",
        f"The model's files come from the bucket {wanted.bucket}, by GCS FUSE. The cache is on the "
        "node's disk; local SSD is worth it. Its sidecar asks for disk for all of the cache and "
        f"{_GCS_SPARE_GIB} GiB more, which is also the most that the pod may use, and for "
        f"{_GCS_MEMORY['request']} of memory beside the worker's.\n"
        f"Needs: GKE with the GCS FUSE CSI driver, Workload Identity Federation, and {grant} "
        "(roles/storage.objectViewer).",
        volume={
            "name": VOLUME,
            "csi": {"driver": _GCS_DRIVER, "readOnly": True, "volumeAttributes": attributes},
        },
        folder=wanted.folder,
        further=[
            *add_keys("/metadata/annotations", _gcs_sidecar(wanted.cache_gib)),
            add("/spec/volumes/-", cache),
        ],
        patches=patches if account else (),
    )


def _gcs_sidecar(cache_gib: int) -> dict[str, str]:
    """Annotations by which GKE puts its sidecar into a pod, and how large. Its own sizes are for
    small files: a quarter of a core, 256 MiB, and 5 GiB of disk. That disk limit would be the whole
    pod's, whose worker has none, and the pod be evicted as soon as the cache holds more.
    """
    disk = f"{cache_gib + _GCS_SPARE_GIB}Gi"
    return {
        "gke-gcsfuse/volumes": "true",
        "gke-gcsfuse/cpu-request": "250m",
        "gke-gcsfuse/cpu-limit": "0",  # none
        "gke-gcsfuse/memory-request": _GCS_MEMORY["request"],
        "gke-gcsfuse/memory-limit": _GCS_MEMORY["limit"],
        "gke-gcsfuse/ephemeral-storage-request": disk,
        "gke-gcsfuse/ephemeral-storage-limit": disk,
    }


def weights_image(profile: ServingProfile, site: Site) -> Part | None:
    """An OCI artefact that holds the model; None unless the site says so."""
    wanted = site.spec.weights
    if not isinstance(wanted, ImageWeights):
        return None
    return _part(
        profile,
        site,
        "weights-image",
        "The model's files come as an OCI artefact, mounted as an image volume and pinned by "
        "digest: nodes that have pulled it once start the next worker from their disk.\n"
        "Needs: Kubernetes 1.36 (or the feature gate ImageVolume before), and a container runtime "
        "that knows image volumes.",
        volume={
            "name": VOLUME,
            "image": {"reference": wanted.reference, "pullPolicy": "IfNotPresent"},
        },
        folder=wanted.folder,
    )


def weights_hub(profile: ServingProfile, site: Site) -> Part | None:
    """A cache for what workers fetch from the hub; None unless the site says so and the profile
    names a hub id."""
    wanted = site.spec.weights
    if not isinstance(wanted, HubWeights) or profile.spec.model.kind is not SourceKind.HUB:
        return None
    if wanted.claim:
        volume = _claim_volume(wanted.claim)
        about = f"into the PersistentVolumeClaim {wanted.claim}, shared by all of them"
        needs = "that claim, ReadWriteMany, writable by group 10001;"
    else:
        limit = f"{wanted.cache_gib}Gi"
        volume = {"name": VOLUME, "emptyDir": {"sizeLimit": limit}}
        about = "each into a folder of its own, which ends with the pod"
        needs = f"{limit} of disk on the nodes for each worker;"

    def ops(role: Role, pool: PoolSpec) -> list[Json]:
        del role, pool
        found = [
            *add_volume(volume, MODELS, read_only=False),
            add_env("HF_HOME", MODELS),
        ]
        if wanted.token_secret:
            secret = {"name": wanted.token_secret, "key": "token"}
            found.append(
                add(
                    f"{CONTAINER}/env/-",
                    {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": secret}},
                )
            )
        return found

    token = f" the Secret {wanted.token_secret} with the key token;" if wanted.token_secret else ""
    return Part(
        name="weights-hub",
        about=f"Workers fetch the model from the hub when they start, {about}.\n"
        f"Needs: {needs}{token} a way out to the hub (HTTPS).\n"
        "Fetching counts as starting: startup_limit_s of the site has to cover it.",
        patches=pod_patches(profile, site, "The hub's cache.", ops),
    )


def _claim_volume(claim: str) -> Json:
    return {"name": VOLUME, "persistentVolumeClaim": {"claimName": claim}}


def _part(
    profile: ServingProfile,
    site: Site,
    name: str,
    about: str,
    *,
    volume: Json,
    folder: str | None,
    files: dict[str, Sequence[Json]] | None = None,
    further: Sequence[Json] = (),
    patches: Sequence[Patch] = (),
) -> Part:
    """A part whose pods find the model in a folder of a volume."""
    path = f"{MODELS}/{folder}" if folder else MODELS

    def ops(role: Role, pool: PoolSpec) -> list[Json]:
        del role, pool
        return [
            *further,
            *add_volume(volume, MODELS, read_only=True),
            add_env("BATON_MODEL", path),
            add_env("BATON_SERVED_NAME", profile.served_name),
        ]

    return Part(
        name=name,
        about=about,
        files=files or {},
        patches=(*pod_patches(profile, site, "The model's files.", ops), *patches),
    )


__all__ = [
    "VOLUME",
    "weights_gcsfuse",
    "weights_hub",
    "weights_image",
    "weights_nfs",
    "weights_pvc",
]

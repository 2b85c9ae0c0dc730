"""The sections of a site: what a cluster is like, one frozen model each, every field with unit,
default and reason.

A profile says what to serve and on which accelerators; a site says how this cluster names its
nodes, images, volumes and queues. A field stands here only if the renderer honours it. Nothing is
looked up: a site means the same on every machine.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from profiles import NAME_PATTERN, Section
from profiles.document import show
from profiles.explain import wrong_value

LABEL_PATTERN = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
SUBDOMAIN_PATTERN = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
QUANTITY_PATTERN = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"
PATH_PATTERN = r"^/[A-Za-z0-9._/-]*$"
FOLDER_PATTERN = r"^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*$"
DEVICES_PATTERN = r"^[A-Za-z0-9_.:-]+(,[A-Za-z0-9_.:-]+)*$"

SITE_PATTERNS = {
    LABEL_PATTERN: "must be a label's key: letters, digits, dashes, dots and underscores, with a "
    "DNS name and a slash before it or without",
    SUBDOMAIN_PATTERN: "must be lower-case letters, digits, dashes and dots, starting and ending "
    "with a letter or digit",
    QUANTITY_PATTERN: "must be an amount as Kubernetes writes it, such as 500m, 2 or 10Gi",
    PATH_PATTERN: "must be an absolute path of letters, digits and . _ - /",
    FOLDER_PATTERN: "must be a path of letters, digits and . _ - that starts at the volume's top, "
    "without a slash in front",
    DEVICES_PATTERN: "must be names of devices with commas between them, such as mlx5_0:1,mlx5_1:1",
}
"""A sentence for each kind of name that sites have and profiles have not."""

ENDPOINTS_S = 5
"""As in the base; a site may say otherwise."""

_MAX_NAME = 253
_MAX_CORES = 1024
_MAX_GIB = 16_384
_TAG = re.compile(r":(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})$")
_DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")
_REFERENCE = re.compile(r"[a-z0-9][a-zA-Z0-9._:@/-]*")


def _check_image(image: str) -> str:
    tag = _TAG.search(image)
    if not _REFERENCE.fullmatch(image):
        what = "must be an image, such as registry.example/baton/router:0.1.0"
    elif not _DIGEST.search(image) and tag is None:
        what = "must name a tag or a digest, so that all pods of a pool run the same"
    elif tag is not None and tag["tag"] == "latest":
        what = "must not be latest, which is another image tomorrow"
    else:
        return image
    raise wrong_value(f"{what} (got {show(image)})")


def _check_digest(image: str) -> str:
    if not _REFERENCE.fullmatch(image) or not _DIGEST.search(image):
        raise wrong_value(
            "must be pinned by digest (NAME@sha256:...), because a tag that moves would give two "
            f"workers of a pool different weights (got {show(image)})"
        )
    return image


def _check_store_url(url: str) -> str:
    if not re.match(r"(redis|rediss|redis\+sentinel|redis\+cluster)://\S+$", url):
        raise wrong_value(
            f"must be redis://, rediss://, redis+sentinel:// or redis+cluster:// (got {show(url)})"
        )
    if "@" in url:
        raise wrong_value(
            "must not hold a password, which would lie open in every manifest; put the whole URL "
            "into a Secret and name that in url_secret"
        )
    return url


def _check_finite(value: float) -> float:
    if not math.isfinite(value):
        raise wrong_value("must be a finite number")
    return value


Image = Annotated[str, Field(max_length=500), AfterValidator(_check_image)]
PinnedImage = Annotated[str, Field(max_length=500), AfterValidator(_check_digest)]
LabelKey = Annotated[str, Field(max_length=317, pattern=LABEL_PATTERN)]
LabelValue = Annotated[str, Field(max_length=63)]
Name = Annotated[str, Field(min_length=1, max_length=_MAX_NAME, pattern=SUBDOMAIN_PATTERN)]
Namespace = Annotated[str, Field(min_length=1, max_length=63, pattern=NAME_PATTERN)]
Folder = Annotated[str, Field(min_length=1, max_length=500, pattern=FOLDER_PATTERN)]
Cores = Annotated[float, Field(gt=0, le=_MAX_CORES), AfterValidator(_check_finite)]
Gib = Annotated[float, Field(gt=0, le=_MAX_GIB), AfterValidator(_check_finite)]


class ImagesSpec(Section):
    """The images of the pods; see docs/images.md for how they are made."""

    router: Image = Field(description="Of the routers. Required.")
    worker_gpu: Image | None = Field(
        default=None,
        description="Of workers on accelerators with a resource. Default: none, for sites without "
        "such accelerators.",
    )
    worker_cpu: Image = Field(
        description="Of workers that compute on the CPU, and of the pod that makes the demo "
        "model. Required."
    )
    controller: Image = Field(description="Of `baton controller`. Required.")
    store: Image = Field(
        default="docker.io/library/redis:8.2-alpine",
        description="Of the small Redis, where store.kind is redis. Default: Redis 8 on Alpine.",
    )
    pull_secret: Name | None = Field(
        default=None,
        description="Secret of type kubernetes.io/dockerconfigjson for all of these. Default: "
        "none, nodes may pull by themselves.",
    )


class TolerationSpec(Section):
    """A taint that a pod tolerates."""

    key: LabelKey = Field(description="Key of the taint. Required.")
    value: LabelValue | None = Field(
        default=None, description="Value of the taint. Default: none, any value is tolerated."
    )
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = Field(
        default="NoSchedule", description="Effect of the taint. Default: NoSchedule."
    )


class AcceleratorSpec(Section):
    """How one accelerator label of a profile is had on this cluster."""

    resource: LabelKey | None = Field(
        default=None,
        description="Name of the device plug-in's resource, such as nvidia.com/gpu. Default: none, "
        "workers compute on the CPU, with the CPU image.",
    )
    node_selector: Mapping[LabelKey, LabelValue] = Field(
        default={},
        max_length=16,
        description="Labels of the nodes that have it. Default: none, any node will do.",
    )
    tolerations: tuple[TolerationSpec, ...] = Field(
        default=(),
        max_length=16,
        strict=False,
        description="Taints of those nodes. Default: none.",
    )
    cpu: Cores = Field(
        description="Cores that a worker asks for per device, in cores. Required: it has to fit "
        "the machine beside its system pods. A CPU engine computes with as many threads, at least "
        "one.",
    )
    memory_gib: Gib = Field(
        description="Memory of a worker per device, in GiB, asked for and not exceeded. Required: "
        "weights pass through it, and /dev/shm counts as well.",
    )
    shm_gib: Gib = Field(
        default=1.0,
        description="Size of /dev/shm per device, in GiB, part of memory_gib. Default: 1; devices "
        "of a worker talk through it.",
    )
    most_per_node: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="Devices of one worker on one machine at most; pools that want more get this "
        "many, with fewer ranks. Default: none, as many as the profile says. For trying large "
        "profiles on small machines.",
    )
    dra_class: Name | None = Field(
        default=None,
        description="DeviceClass of the accelerator for dynamic resource allocation, such as "
        "gpu.nvidia.com or mig.nvidia.com. Default: none. Used where dra is on.",
    )
    dra_selector: str | None = Field(
        default=None,
        max_length=2000,
        description="CEL expression that narrows the device class, such as a MIG profile. "
        "Default: none, any device of the class.",
    )


class RdmaSpec(Section):
    """How pods get at the RDMA network. Used where the profile's transfer.transport is rdma."""

    resource: LabelKey = Field(
        description="Resource of the RDMA device plug-in, such as rdma/hca_shared_devices_a. "
        "Required."
    )
    count: int = Field(
        default=1,
        ge=1,
        le=64,
        description="How many of them one pod asks for. Default: 1, enough of a shared device.",
    )
    net_devices: str = Field(
        default="all",
        max_length=500,
        pattern=DEVICES_PATTERN,
        description="UCX_NET_DEVICES: devices and ports that UCX may use, such as mlx5_0:1, by "
        "which two networks are told apart. Default: all.",
    )
    gid_index: int | None = Field(
        default=None,
        ge=0,
        le=255,
        description="UCX_IB_GID_INDEX: which address of the device, on RoCE. Default: UCX's own.",
    )
    ipc_lock: bool = Field(
        default=False,
        description="Whether workers get the capability IPC_LOCK, to pin memory beyond the "
        "container runtime's limit of locked memory. They then run as root, since a capability "
        "that Kubernetes adds has no effect for another user, and the namespace enforces the Pod "
        "security level privileged. Default: false; let the runtime lift the limit instead "
        "(LimitMEMLOCK=infinity in its unit).",
    )
    networks: str | None = Field(
        default=None,
        max_length=500,
        description="Value of the annotation k8s.v1.cni.cncf.io/networks, where a second network "
        "is attached by Multus. Default: none.",
    )


class RouterSpec(Section):
    """The routers."""

    replicas: int = Field(
        default=2,
        ge=1,
        le=100,
        description="Router pods. Default: 2, so that one can stop while the other serves.",
    )
    processes: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Processes of each router pod (--workers). Default: 1, some thousand streams.",
    )
    cpu: Cores = Field(
        default=1.0, description="Cores that a router pod asks for. Default: 1, per process."
    )
    memory_gib: Gib = Field(
        default=1.0,
        description="Memory of a router pod, in GiB, asked for and not exceeded. Default: 1; "
        "raise it with prefix_blocks and long prompts.",
    )
    tenants: bool = Field(
        default=False,
        description="Whether the router takes API keys from the store (`baton key`). Default: "
        "false, open to everybody who reaches it.",
    )
    otlp_endpoint: str | None = Field(
        default=None,
        max_length=500,
        description="Where traces go, as OTLP over HTTP, such as http://collector:4318. Default: "
        "none, no traces.",
    )
    endpoints_s: int = Field(
        default=ENDPOINTS_S,
        ge=1,
        le=600,
        description="How long a router that is to end still takes requests, in seconds: until "
        "whatever sends them has noticed. Default: 5, enough for a Service; a load balancer that "
        "reaches pods directly takes longer (GKE's gateways: 40).",
    )


class RedisSpec(Section):
    """A small Redis in the namespace."""

    kind: Literal["redis"] = Field(description="Always redis.")
    memory_mib: int = Field(
        default=128,
        ge=32,
        le=65_536,
        description="Memory of its pod, in MiB. Default: 128, some ten thousand workers.",
    )


class StoreUrlSpec(Section):
    """A Redis that is there already."""

    kind: Literal["url"] = Field(description="Always url.")
    url: Annotated[str, Field(max_length=2000), AfterValidator(_check_store_url)] | None = Field(
        default=None,
        description="Its URL, without a password: redis://, rediss://, redis+sentinel:// or "
        "redis+cluster://. Default: none; then url_secret.",
    )
    url_secret: Name | None = Field(
        default=None,
        description="Secret whose key `url` holds the URL, with a password. Default: none; then "
        "url.",
    )


StoreSpec = Annotated[RedisSpec | StoreUrlSpec, Field(discriminator="kind")]


class DemoWeights(Section):
    """The small model that Baton trains itself, whatever the profile says."""

    kind: Literal["demo"] = Field(description="Always demo.")


class HubWeights(Section):
    """What the profile says: a hub id is fetched into a cache, `demo` is made."""

    kind: Literal["hub"] = Field(description="Always hub.")
    claim: Name | None = Field(
        default=None,
        description="PersistentVolumeClaim for the cache, ReadWriteMany, shared by all workers. "
        "Default: none, each pod fetches for itself when it starts.",
    )
    cache_gib: int = Field(
        default=200,
        ge=1,
        le=16_384,
        description="Size of a pod's own cache, in GiB, on the node's disk; without a claim only. "
        "Default: 200, a model of 70 billion parameters in bfloat16 with room to spare.",
    )
    token_secret: Name | None = Field(
        default=None,
        description="Secret whose key `token` holds the hub's token, for gated models. Default: "
        "none.",
    )


class ClaimWeights(Section):
    """A PersistentVolumeClaim that holds the model's folder, mounted read-only."""

    kind: Literal["pvc"] = Field(description="Always pvc.")
    claim: Name = Field(
        description="The claim, ReadOnlyMany or ReadWriteMany: workers are on several nodes. "
        "Required."
    )
    folder: Folder = Field(description="The model's folder in it. Required.")


class NfsWeights(Section):
    """An NFS export that holds the model's folder, mounted read-only."""

    kind: Literal["nfs"] = Field(description="Always nfs.")
    server: Name = Field(description="Name or address of the server. Required.")
    path: str = Field(max_length=500, pattern=PATH_PATTERN, description="The export. Required.")
    folder: Folder = Field(description="The model's folder in it. Required.")


class GcsFuseWeights(Section):
    """A bucket, mounted read-only by GKE's GCS FUSE driver."""

    kind: Literal["gcsfuse"] = Field(description="Always gcsfuse.")
    bucket: Name = Field(description="The bucket. Required.")
    folder: Folder = Field(description="The model's folder in it. Required.")
    service_account: str | None = Field(
        default=None,
        max_length=200,
        description="Google service account that the workers' account acts as. Default: none; the "
        "bucket then grants the Kubernetes account itself (Workload Identity Federation).",
    )
    cache_gib: int = Field(
        default=200,
        ge=1,
        le=16_384,
        description="Size of the driver's file cache on the node's disk, in GiB. Default: 200. A "
        "pod asks for 20 GiB more: smaller disks of nodes take smaller caches, the model's size at "
        "least.",
    )


class ImageWeights(Section):
    """An OCI artefact with the model's files, mounted as an image volume (Kubernetes 1.36; before
    that behind a feature gate)."""

    kind: Literal["image"] = Field(description="Always image.")
    reference: PinnedImage = Field(description="The artefact, by digest. Required.")
    folder: Folder | None = Field(
        default=None, description="The model's folder in it. Default: none, its top."
    )


WeightsSpec = Annotated[
    DemoWeights | HubWeights | ClaimWeights | NfsWeights | GcsFuseWeights | ImageWeights,
    Field(discriminator="kind"),
]

"""What a profile on a site needs of a cluster. Pure: nothing is asked, everything is counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from baton.types import Role
from deploy.lws import names
from deploy.lws.control import has_controller
from deploy.lws.site import Site
from deploy.lws.site_sections import AcceleratorSpec, RdmaSpec
from profiles import ServingProfile, Transport

LWS_CRD = "leaderworkersets.leaderworkerset.x-k8s.io"
APPLY = (
    "baton deploy render --profile PROFILE --overlay SITE --out DIR, then "
    "kubectl apply --server-side -k DIR/overlays/SITE"
)
LWS_INSTALL = (
    "install the LeaderWorkerSet controller: kubectl apply --server-side -f the manifests.yaml of "
    "its latest release (github.com/kubernetes-sigs/lws)"
)


@dataclass(frozen=True, slots=True)
class KindNeed:
    """A custom kind that what is rendered consists of.

    Attributes:
        crd: name of its CustomResourceDefinition, ``plural.group``.
        version: that must be served.
        why: what asks for it.
        todo: how it is had.
    """

    crd: str
    version: str
    why: str
    todo: str

    @property
    def group(self) -> str:
        """The API group."""
        return self.crd.partition(".")[2]

    @property
    def plural(self) -> str:
        """The name in paths."""
        return self.crd.partition(".")[0]


@dataclass(frozen=True, slots=True)
class PoolNeed:
    """Pods that have to find nodes.

    Attributes:
        role: the pool's.
        label: the profile's accelerator label.
        accelerator: how it is had on the site.
        pods: how many, all groups together.
        devices: of one pod.
        resource: that devices are asked for by; None on CPU, and where they are claimed.
        rdma: None where the pods ask for no RDMA device.
    """

    role: Role
    label: str
    accelerator: AcceleratorSpec
    pods: int
    devices: int
    resource: str | None
    rdma: RdmaSpec | None

    def requests(self) -> dict[str, float]:
        """What one pod asks for: cores, bytes, devices."""
        wanted = {
            "cpu": self.accelerator.cpu * self.devices,
            "memory": self.accelerator.memory_gib * self.devices * 1024**3,
        }
        if self.resource is not None:
            wanted[self.resource] = self.devices
        if self.rdma is not None:
            wanted[self.rdma.resource] = self.rdma.count
        return wanted


def pool_needs(profile: ServingProfile, site: Site) -> list[PoolNeed]:
    """The pods of each pool.

    Raises:
        SettingsError: the site does not say how an accelerator is had.
    """
    rdma = site.spec.rdma if profile.spec.transfer.transport is Transport.RDMA else None
    return [
        PoolNeed(
            role=role,
            label=pool.accelerator,
            accelerator=site.accelerator(pool.accelerator),
            pods=pool.replicas * pool.nodes,
            devices=pool.devices // pool.nodes,
            resource=None if site.spec.dra else site.accelerator(pool.accelerator).resource,
            rdma=rdma,
        )
        for role, pool in profile.spec.pools.by_role.items()
    ]


def kind_needs(site: Site | None) -> list[KindNeed]:
    """The custom kinds of everything that the site asks for; LeaderWorkerSet where nobody says."""
    return list(_kinds(site))


def _kinds(site: Site | None) -> Iterator[KindNeed]:
    sets = site is not None and site.spec.workload == "disaggregatedset"
    yield KindNeed(LWS_CRD, "v1", "every pool is one", LWS_INSTALL)
    if sets:
        yield KindNeed(
            "disaggregatedsets.disaggregatedset.x-k8s.io",
            "v1",
            "the site's workload: disaggregatedset",
            f"{LWS_INSTALL}, version 0.9 or later",
        )
    if site is None:
        return
    spec = site.spec
    gateway = spec.gateway
    if gateway is not None:
        todo = (
            "install Gateway API: kubectl apply --server-side -f the standard-install.yaml of its "
            "latest release, and a gateway controller"
        )
        for plural in ("gateways", "httproutes"):
            yield KindNeed(f"{plural}.gateway.networking.k8s.io", "v1", "the site's gateway", todo)
        if gateway.kind == "inferencepool":
            yield KindNeed(
                "inferencepools.inference.networking.k8s.io",
                "v1",
                "the site's gateway: inferencepool",
                "install the Gateway API Inference Extension: kubectl apply -f the manifests.yaml "
                "of its latest release",
            )
    if spec.queue is not None:
        todo = (
            "install Kueue 0.15 or later: kubectl apply --server-side -f the manifests.yaml of its "
            "release"
        )
        plurals = ["localqueues"]
        if spec.queue.cluster_queue is not None:
            plurals += ["clusterqueues", "resourceflavors"]
        for plural in plurals:
            yield KindNeed(f"{plural}.kueue.x-k8s.io", "v1beta2", "the site's queue", todo)
    if spec.autoscaling.kind == "keda":
        yield KindNeed(
            "scaledobjects.keda.sh", "v1alpha1", "the site's autoscaling: keda", "install KEDA"
        )
    operator = "install the Prometheus operator, or take this out of the site's monitoring"
    for kind, crd, todo in (
        ("podmonitor", "podmonitors.monitoring.coreos.com", operator),
        ("prometheusrule", "prometheusrules.monitoring.coreos.com", operator),
        (
            "podmonitoring",
            "podmonitorings.monitoring.googleapis.com",
            "turn Managed Prometheus on for the cluster, or take this out of the site's monitoring",
        ),
    ):
        if kind in spec.monitoring:
            yield KindNeed(crd, "v1", f"the site's monitoring: {kind}", todo)


@dataclass(frozen=True, slots=True)
class Right:
    """Something that somebody has to be allowed to do in the namespace; ``name``: to one object."""

    verb: str
    group: str
    resource: str
    name: str = ""


DEPLOY_RIGHTS = tuple(
    Right(verb, group, resource)
    for group, resource in (
        ("leaderworkerset.x-k8s.io", "leaderworkersets"),
        ("", "configmaps"),
        ("", "services"),
        ("", "serviceaccounts"),
        ("apps", "deployments"),
        ("policy", "poddisruptionbudgets"),
        ("networking.k8s.io", "networkpolicies"),
        ("rbac.authorization.k8s.io", "roles"),
        ("rbac.authorization.k8s.io", "rolebindings"),
    )
    for verb in ("create", "patch")
)
"""Of whoever applies what ``baton deploy render`` makes."""


def router_rights(site: Site | None) -> tuple[Right, ...]:
    """Of the routers: they follow the profiles, and tell what became of them. Which ConfigMap that
    is, the site says; without one it is not asked for."""
    events = Right("create", "", "events")
    if site is None:
        return (events,)
    followed = names.ACTIVE if has_controller(site) else names.PROFILES
    return (*(Right(verb, "", "configmaps", followed) for verb in ("list", "watch")), events)


CONTROLLER_RIGHTS = (
    *(
        Right(verb, "leaderworkerset.x-k8s.io", "leaderworkersets")
        for verb in ("get", "list", "watch", "create", "patch", "delete")
    ),
    *(Right(verb, "", "configmaps") for verb in ("get", "list", "watch", "create", "patch")),
    *(Right(verb, "coordination.k8s.io", "leases") for verb in ("get", "create", "update")),
    Right("create", "policy", "poddisruptionbudgets"),
    Right("create", "", "events"),
)
"""Of ``baton controller``, where the site has one."""

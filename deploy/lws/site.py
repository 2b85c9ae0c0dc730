"""A site: what one cluster is like, as a YAML file with ``kind: Site``, and the ones that come
with Baton.

Profiles stay the same from cluster to cluster; what differs stands here. It reads and checks, and
asks no cluster whether what it says is true: that is the business of ``baton doctor``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from baton.errors import SettingsError
from deploy.lws.site_options import (
    AccessSpec,
    AutoscalingSpec,
    ControllerSpec,
    GatewaySpec,
    ImageNodes,
    QueueSpec,
)
from deploy.lws.site_sections import (
    SITE_PATTERNS,
    AcceleratorSpec,
    HubWeights,
    ImagesSpec,
    LabelKey,
    LabelValue,
    Namespace,
    RdmaSpec,
    RedisSpec,
    RouterSpec,
    StoreSpec,
    StoreUrlSpec,
    WeightsSpec,
)
from profiles import NAME_PATTERN, PATTERNS, Explainer, Section, YamlKind, broken_rules
from profiles.explain import Finding, closest

_MAX_DAY_S = 86_400


class SiteMetadata(Section):
    """What the site is called."""

    name: str = Field(
        min_length=1,
        max_length=39,
        pattern=NAME_PATTERN,
        description="Name of the site; its overlay is called so. Required.",
    )
    description: str = Field(
        default="", max_length=1000, description="One sentence for people. Default: empty."
    )


class SiteSpec(Section):
    """Everything that a site says."""

    namespace: Namespace = Field(
        default="baton", description="Namespace of all objects. Default: baton."
    )
    images: ImagesSpec = Field(description="The images of the pods. Required.")
    accelerators: Mapping[LabelKey, AcceleratorSpec] = Field(
        min_length=1,
        max_length=64,
        description="How each accelerator label that profiles use is had here. Required.",
    )
    other_accelerators: str | None = Field(
        default=None,
        max_length=63,
        description="Which of these stands in for labels that are not among them. Default: none, "
        "such a profile is refused.",
    )
    weights: WeightsSpec = Field(
        default=HubWeights(kind="hub"),
        description="Where the model's files come from. Default: kind hub, as the profile says.",
    )
    store: StoreSpec = Field(
        default=RedisSpec(kind="redis"),
        description="Where workers register and routers agree. Default: kind redis, a small one.",
    )
    routers: RouterSpec = Field(
        default=RouterSpec(), description="The routers. Default: its fields' defaults."
    )
    rdma: RdmaSpec | None = Field(
        default=None,
        description="The RDMA network. Default: none; a profile with transfer.transport rdma is "
        "then refused.",
    )
    autoscaling: AutoscalingSpec = Field(
        default=AutoscalingSpec(), description="Who scales the pools. Default: nobody."
    )
    monitoring: tuple[Literal["podmonitor", "podmonitoring", "prometheusrule"], ...] = Field(
        default=(),
        max_length=3,
        strict=False,
        description="podmonitor and prometheusrule are read by the Prometheus operator, "
        "podmonitoring by Google's Managed Prometheus. Default: none.",
    )
    monitor_labels: Mapping[LabelKey, LabelValue] = Field(
        default={},
        max_length=16,
        description="Labels of the objects that the Prometheus operator reads, by which a "
        "Prometheus finds them, such as release: kube-prometheus-stack. Default: none.",
    )
    queue: QueueSpec | None = Field(
        default=None, description="Kueue. Default: none, pods are scheduled as they come."
    )
    dra: bool = Field(
        default=False,
        description="Whether devices are claimed (dynamic resource allocation, Kubernetes 1.34) "
        "by the accelerators' dra_class instead of asked for as resources. Default: false.",
    )
    gateway: GatewaySpec | None = Field(
        default=None,
        description="How clients come in from outside. Default: none, the Service baton-router.",
    )
    controller: ControllerSpec | None = Field(
        default=None,
        description="The controller. Default: none; pools are changed by rendering again.",
    )
    workload: Literal["lws", "disaggregatedset"] = Field(
        default="lws",
        description="What the pools are: a LeaderWorkerSet each, or roles of one DisaggregatedSet, "
        "which rolls them out together and keeps their proportion. Default: lws, which scales, "
        "rolls out and is switched pool by pool. A profile with one pool gets a LeaderWorkerSet in "
        "any case. `--controller` overrides it.",
    )
    topology_key: LabelKey | None = Field(
        default=None,
        description="Node label of the domain that the machines of a group should share, such as "
        "one rack or one placement group: its pods go where the first of them is, if there is "
        "room. Default: none, groups are put anywhere.",
    )
    topology_exclusive: bool = Field(
        default=False,
        description="Whether a group has such a domain to itself, for certain, by "
        "LeaderWorkerSet's exclusive placement. No other worker of the namespace goes there, nor "
        "this group where one is, so that it takes as many domains as there are groups, and more "
        "for all other pools. Default: false.",
    )
    startup_limit_s: int = Field(
        default=1800,
        ge=30,
        le=_MAX_DAY_S,
        description="How long a worker's process may take to fetch and read its weights before it "
        "is restarted, in seconds; its engine has half an hour of its own. Default: 1800, the "
        "download of a large model.",
    )
    image_nodes: ImageNodes = Field(
        default={},
        description="Further labels of the workers' nodes by which images start fast: those of "
        "node pools with image streaming or with a secondary boot disk. Default: none.",
    )
    access: AccessSpec = Field(
        default=AccessSpec(), description="Who else may reach the pods. Default: nobody."
    )

    @model_validator(mode="after")
    def _rules(self) -> Self:
        found = list(_findings(self))
        if found:
            raise broken_rules(found)
        return self


class Site(Section):
    """A site, as in a YAML file with ``kind: Site``."""

    api_version: Literal["baton/v1"] = Field(
        alias="apiVersion",
        description="Version of this format: baton/v1. Required, so that a later format can "
        "tell old files.",
    )
    kind: Literal["Site"] = Field(
        description="Always Site. Required, so that other files are not taken for one."
    )
    metadata: SiteMetadata = Field(description="What the site is called. Required.")
    spec: SiteSpec = Field(description="What the site is like. Required.")

    @property
    def name(self) -> str:
        """``metadata.name``."""
        return self.metadata.name

    def accelerator(self, label: str) -> AcceleratorSpec:
        """How an accelerator label of a profile is had here.

        Raises:
            SettingsError: this site does not say; the message lists those that it knows.
        """
        spec = self.spec
        known = spec.accelerators.get(label)
        if known is None and spec.other_accelerators is not None:
            known = spec.accelerators[spec.other_accelerators]
        if known is None:
            near = closest(label, list(spec.accelerators))
            hint = f" (did you mean {near}?)" if near else ""
            raise SettingsError(
                f"site {self.name!r} says nothing of the accelerator {label!r}{hint}; it knows "
                f"{', '.join(sorted(spec.accelerators))}. Add it to spec.accelerators, with the "
                "labels of its nodes and its resource"
            )
        return known


def _findings(spec: SiteSpec) -> Iterator[Finding]:
    """What does not fit together."""
    other = spec.other_accelerators
    if other is not None and other not in spec.accelerators:
        yield ("other_accelerators",), f"must be one of {', '.join(sorted(spec.accelerators))}"
    for label, accelerator in spec.accelerators.items():
        if accelerator.resource and spec.images.worker_gpu is None:
            yield ("images", "worker_gpu"), f"is required, because {label} has a resource"
        if accelerator.shm_gib >= accelerator.memory_gib:
            yield (
                ("accelerators", label, "shm_gib"),
                f"must be less than memory_gib ({accelerator.memory_gib:g}), of which it is a part",
            )
        if accelerator.dra_selector and not accelerator.dra_class:
            yield ("accelerators", label, "dra_class"), "is required with dra_selector"
        if spec.dra and accelerator.resource and not accelerator.dra_class:
            yield ("accelerators", label, "dra_class"), "is required where dra is on"
    store = spec.store
    if isinstance(store, StoreUrlSpec) and (store.url is None) is (store.url_secret is None):
        yield ("store",), "needs either url or url_secret"
    if spec.routers.tenants and isinstance(store, RedisSpec):
        yield (
            ("routers", "tenants"),
            "needs store.kind url: the small Redis would lose the API keys with its pod",
        )
    scaling = spec.autoscaling
    if scaling.kind == "keda" and scaling.prometheus_url is None:
        yield ("autoscaling", "prometheus_url"), "is required with kind keda"
    for role in ("prefill", "decode", "standard"):
        section = scaling.of(role)
        if section.min and section.max and section.min > section.max:
            yield ("autoscaling", role, "min"), f"must not be more than max ({section.max})"
        if section.zero and scaling.kind != "keda":
            yield ("autoscaling", role, "zero"), "needs autoscaling.kind keda"
    if spec.topology_exclusive and spec.topology_key is None:
        yield ("topology_key",), "is required with topology_exclusive"
    if len(set(spec.monitoring)) < len(spec.monitoring):
        yield ("monitoring",), "names one twice"
    queue = spec.queue
    if queue is not None and queue.cluster_queue is None:
        for name in ("cohort", "quota", "topology"):
            if getattr(queue, name):
                yield ("queue", name), "has no meaning without cluster_queue; remove it"


_EXPLAINER = Explainer(
    Site, patterns={**PATTERNS, **SITE_PATTERNS}, stand_ins={AcceleratorSpec: "<accelerator>"}
)


def _error(problems: Sequence[str]) -> SettingsError:
    return SettingsError("\n".join(problems))


_SITES = YamlKind(Site, noun="site", package="deploy.lws", explain=_EXPLAINER.explain, error=_error)


def site_from_text(text: str, origin: str) -> Site:
    """A site from YAML text; ``origin`` is what messages call it.

    Raises:
        SettingsError: one line per problem, ``origin:line: field.path: what is wrong``.
    """
    return _SITES.parse(text, source=origin)


def load_site(ref: str) -> Site:
    """A built-in site by name, or one from a file: what holds a slash or ends in .yaml or .yml.

    Raises:
        SettingsError: no such site, or the file is not a sound one.
    """
    return site_from_text(*site_text(ref))


def site_text(ref: str) -> tuple[str, str]:
    """The text of a site as ``load_site`` finds it, comments and all, and where it is from.

    Raises:
        SettingsError: no such site, or the file cannot be read.
    """
    path = _SITES.path_of(ref)
    if path is None:
        known = builtin_sites()
        if ref not in known:
            near = closest(ref, list(known))
            hint = f"; did you mean {near}?" if near else "."
            raise SettingsError(
                f"no built-in site is called {ref!r}{hint} Built-in sites: {', '.join(known)}. A "
                "file is given with a slash, or ends in .yaml or .yml."
            )
        file = resources.files("deploy.lws") / "sites" / f"{ref}.yaml"
        return file.read_text("utf-8"), str(file)
    _SITES.load(path)  # its complaints about the file are the best there are
    return Path(path).read_text("utf-8"), str(path)


def builtin_sites() -> tuple[str, ...]:
    """The names of the sites that come with Baton, in the order of the alphabet."""
    folder = resources.files("deploy.lws") / "sites"
    names = (file.name for file in folder.iterdir() if file.name.endswith(".yaml"))
    return tuple(sorted(name.removesuffix(".yaml") for name in names))


__all__ = ["Site", "SiteSpec", "builtin_sites", "load_site", "site_from_text"]

"""The sections of a site that say what a cluster offers beside nodes and volumes: autoscalers,
Prometheus, Kueue, gateways, the controller. All are off until a site asks for them, since each
needs something installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from deploy.lws.site_sections import LabelKey, LabelValue, Name
from profiles import Section

_MAX_DAY_S = 86_400


class RoleScaling(Section):
    """How far and by what one pool scales; targets are means over its workers."""

    min: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="Workers at least. Default: the profile's replicas.",
    )
    max: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="Workers at most. Default: twice the least; it bounds what you pay.",
    )
    waiting: float = Field(
        default=4.0,
        gt=0,
        le=100_000,
        description="Requests that wait in an engine, per worker, above which the pool grows. "
        "Default: 4. Pools prefill and standard.",
    )
    running_share: float = Field(
        default=0.7,
        gt=0,
        le=1,
        description="Share of max_num_seqs that runs, above which the pool grows, 0 to 1. "
        "Default: 0.7, which leaves room for the minutes that a new worker takes to start. In pool "
        "prefill it keeps workers when their queue has just been served.",
    )
    kv_usage: float = Field(
        default=0.8,
        gt=0,
        le=1,
        description="Share of KV memory in use, above which the pool grows, 0 to 1. Default: 0.8; "
        "above 0.9 engines begin to preempt. Pools decode and standard.",
    )
    zero: bool = Field(
        default=False,
        description="Whether the pool goes down to no worker when nothing has been asked for. "
        "Default: false, because the next request then waits until a model is loaded; set "
        "flow.worker_wait_s of the profile to that. Kind keda only.",
    )


class AutoscalingSpec(Section):
    """Who scales the pools."""

    kind: Literal["none", "hpa", "keda"] = Field(
        default="none",
        description="hpa: a HorizontalPodAutoscaler per pool, by custom metrics. keda: a "
        "ScaledObject per pool, by Prometheus. none: replicas are the profile's. Default: none.",
    )
    metrics: Literal["prometheus-adapter", "managed"] = Field(
        default="prometheus-adapter",
        description="How custom metrics are called: as the Prometheus adapter serves them, or as "
        "Google's adapter does for Managed Prometheus. Default: prometheus-adapter. Kind hpa only.",
    )
    prometheus_url: str | None = Field(
        default=None,
        max_length=500,
        description="Prometheus that KEDA asks, such as http://prometheus.monitoring:9090. "
        "Default: none; required with kind keda.",
    )
    prefill: RoleScaling = Field(
        default=RoleScaling(), description="Of pool prefill. Default: its fields' defaults."
    )
    decode: RoleScaling = Field(
        default=RoleScaling(), description="Of pool decode. Default: its fields' defaults."
    )
    standard: RoleScaling = Field(
        default=RoleScaling(), description="Of pool standard. Default: its fields' defaults."
    )
    scale_up_s: int = Field(
        default=60,
        ge=0,
        le=3600,
        description="How long a need has to last before a pool grows, in seconds. Default: 60, so "
        "that a burst that ends before a worker has started moves nothing.",
    )
    scale_down_s: int = Field(
        default=600,
        ge=0,
        le=3600,
        description="How long too many workers are kept, in seconds. Default: 600, because a model "
        "takes minutes to load when they are missed.",
    )

    def bounds(self, role: str, replicas: int) -> tuple[int, int]:
        """Workers at least and at most of a pool whose profile says ``replicas``."""
        section = self.of(role)
        least = section.min or replicas
        return least, max(section.max or 2 * least, least)

    def of(self, role: str) -> RoleScaling:
        """The section of a role."""
        return {"prefill": self.prefill, "decode": self.decode, "standard": self.standard}[role]


class QueueSpec(Section):
    """Kueue admits groups as a whole, and shares accelerators out."""

    local_queue: Name = Field(
        description="LocalQueue of the namespace that pools wait in. Required."
    )
    cluster_queue: Name | None = Field(
        default=None,
        description="ClusterQueue that is made for it, with ResourceFlavors and the LocalQueue. "
        "Default: none, all of them are there already.",
    )
    cohort: Name | None = Field(
        default=None,
        description="Cohort that the ClusterQueue lends to and borrows from. Default: none.",
    )
    quota: Mapping[LabelKey, int] = Field(
        default={},
        max_length=32,
        description="Devices of each accelerator label that the ClusterQueue owns. Default: what "
        "the profile's pools take.",
    )
    topology: tuple[LabelKey, ...] = Field(
        default=(),
        max_length=8,
        strict=False,
        description="Node labels from the widest domain to the host, of which a Topology is made; "
        "a group is then placed within one domain of the last but one. Default: none.",
    )


class HttpRouteSpec(Section):
    """An HTTPRoute to the routers."""

    kind: Literal["httproute"] = Field(description="Always httproute.")
    gateway_class: Name = Field(description="GatewayClass of the Gateway. Required.")
    hostname: Name | None = Field(
        default=None, description="Name that clients use. Default: none, any."
    )
    tls_secret: Name | None = Field(
        default=None,
        description="Secret of type kubernetes.io/tls with its certificate. Default: none, plain "
        "HTTP.",
    )


class InferencePoolSpec(Section):
    """An HTTPRoute to an InferencePool of the routers, for gateways that take model servers as
    such. Of the routers, never of workers: those take the cluster token only, and a picker knows
    nothing of handoffs."""

    kind: Literal["inferencepool"] = Field(description="Always inferencepool.")
    gateway_class: Name = Field(description="GatewayClass of the Gateway. Required.")
    hostname: Name | None = Field(
        default=None, description="Name that clients use. Default: none, any."
    )
    tls_secret: Name | None = Field(
        default=None,
        description="Secret of type kubernetes.io/tls with its certificate. Default: none, plain "
        "HTTP.",
    )
    picker: Name | None = Field(
        default=None,
        description="Service of an endpoint picker of yours, in the namespace; Baton has none. "
        "Default: none, which InferencePool allows since Gateway API Inference Extension 1.6: the "
        "gateway then balances by itself, which is enough for routers.",
    )
    picker_port: int = Field(
        default=9002, ge=1, le=65_535, description="Port of that service. Default: 9002."
    )


GatewaySpec = Annotated[HttpRouteSpec | InferencePoolSpec, Field(discriminator="kind")]


class ControllerSpec(Section):
    """`baton controller`, which brings the pools to what the active profile says."""

    replicas: int = Field(
        default=2,
        ge=1,
        le=10,
        description="Controller pods, of which one acts. Default: 2, so that another takes over.",
    )
    retire_s: int = Field(
        default=900,
        ge=0,
        le=_MAX_DAY_S,
        description="How long the pools of the previous profile are kept after a switch, in "
        "seconds, for the way back. Default: 900.",
    )


class AccessSpec(Section):
    """Who may reach what, beyond what Baton's own pods need of each other."""

    metrics_from: tuple[Name, ...] = Field(
        default=(),
        max_length=16,
        strict=False,
        description="Namespaces whose pods may read /metrics of the workers, such as monitoring. "
        "Default: none.",
    )
    admin_from: tuple[Name, ...] = Field(
        default=(),
        max_length=16,
        strict=False,
        description="Namespaces whose pods may reach the routers' admin port. Default: none; "
        "`kubectl port-forward` needs no rule.",
    )


ImageNodes = Annotated[Mapping[LabelKey, LabelValue], Field(max_length=16)]

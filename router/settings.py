"""What a router is told from outside, and what the profile means for its parts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from profiles import ServingProfile, Transport
from router.care import CareRules
from router.flow import FlowRules
from router.policy import RoutingRules

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """What a router is told.

    Attributes:
        profile: the active serving profile.
        token: the cluster token.
        store_url: ``memory://`` or a Redis URL.
        admin_token: for the admin API; empty for a router without one.
        tenants: a tenants file, or a Redis URL; None for an open router.
        otlp_endpoint: where traces go; None for nowhere.
        trace_ratio: share of requests traced where the client does not say.
        profiles: where further profiles come from, and which of them is to be active; None for
            nowhere (``profiles.sources.open_source``).
        profiles_at_start: whether that place says only what to begin with where nothing is agreed
            on yet; it is read once, and proposes nothing afterwards.
        adapt: what this router makes of each profile it comes to know, as of ``profile``.
        share: this process's part of limits that several processes share, above 0 up to 1.
    """

    profile: ServingProfile
    token: str
    store_url: str = "memory://"
    admin_token: str = ""
    tenants: str | None = None
    otlp_endpoint: str | None = None
    trace_ratio: float = 0.0
    profiles: str | None = None
    profiles_at_start: bool = False
    adapt: Callable[[ServingProfile], ServingProfile] | None = None
    share: float = 1.0


def routing_rules(profile: ServingProfile) -> RoutingRules:
    """The profile's choices for ``router.policy``."""
    classify, routing = profile.spec.classify, profile.spec.routing
    scorers = routing.scorers.model_dump()
    if classify is None:
        return RoutingRules(scorers=scorers, picker=str(routing.picker))
    return RoutingRules(
        decider=str(classify.decider),
        threshold_tokens=classify.threshold_tokens,
        hysteresis=classify.hysteresis,
        decode_prefill_tokens=classify.decode_prefill_tokens,
        max_prefill_queue=classify.max_prefill_queue,
        scorers=scorers,
        picker=str(routing.picker),
        degrade=tuple(str(step) for step in profile.degrade.steps),
        local_tokens=profile.degrade.local_tokens,
        attempts=profile.degrade.attempts,
        require_checked_pairs=profile.spec.transfer.warm_pairs,
    )


def flow_rules(profile: ServingProfile, share: float = 1.0) -> FlowRules:
    """The profile's choices for ``router.flow``; bounds on requests are the whole router's, of
    which a process that is one of several takes its share."""
    flow = profile.spec.flow
    return FlowRules(
        queue=math.ceil(flow.queue * share),
        queue_ttl_s=flow.queue_ttl_s,
        slots_factor=flow.slots_factor,
        worker_wait_s=flow.worker_wait_s,
        in_flight=math.ceil(profile.spec.limits.in_flight * share),
    )


def care_rules(profile: ServingProfile) -> CareRules:
    """The profile's choices for ``router.care``."""
    transfer = profile.spec.transfer
    floor = transfer.floor_mib_per_s
    disaggregated = profile.spec.classify is not None
    return CareRules(
        warm_pairs=transfer.warm_pairs and disaggregated,
        require_checked=transfer.warm_pairs and disaggregated,
        floor_bytes_per_s=None if floor is None else floor * _MIB,
        require_rdma=transfer.transport is Transport.RDMA,
        canary_rate=transfer.canary_rate if disaggregated else 0.0,
        lease_s=transfer.lease_s,
    )


__all__ = ["RouterSettings", "care_rules", "flow_rules", "routing_rules"]

"""What the gate is told and what it tells: settings, tickets, capacities, snapshots. No behaviour
beyond arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import msgspec


@dataclass(frozen=True, slots=True)
class FlowRules:
    """The bounds of one router process.

    Attributes:
        queue: most requests that wait. Default 256: at ten a second, as long as the TTL.
        queue_ttl_s: longest wait in the queue, in seconds. Default 30: clients wait no longer.
        slots_factor: requests out per engine slot. Default 1.5: engines keep a short queue of
            their own, so that a slot that comes free does not wait for a round trip; more would
            only move the queue to where no fairness reaches.
        worker_wait_s: how long a request waits while no worker is ready, in seconds. Default 10:
            a restart or a failover; a pool that scales from zero needs as long as it takes to load.
        in_flight: most requests that this process holds, waiting and out. Default 1024.
        reserve: part of the engine slots that a tenant at or over its fair share, holding a third
            of them or more, leaves free for tenants that were seen lately and hold less, 0 to 0.5.
            Default 0.1: who asks for little finds a free slot beside one that floods; costs about
            a tenth of the throughput, only while there is such a pair. With 0 it waits for the next
            slot that comes free.
        memory_s: how long a tenant counts as present after its last request, in seconds.
            Default 60.
    """

    queue: int = 256
    queue_ttl_s: float = 30.0
    slots_factor: float = 1.5
    worker_wait_s: float = 10.0
    in_flight: int = 1024
    reserve: float = 0.1
    memory_s: float = 60.0

    def __post_init__(self) -> None:
        if self.queue < 0 or self.in_flight < 1:
            raise ValueError("the bounds on requests must not be negative, in_flight at least 1")
        if self.slots_factor < 1.0 or not 0.0 <= self.reserve <= 0.5:
            raise ValueError("slots_factor must be at least 1, reserve between 0 and 0.5")
        if min(self.queue_ttl_s, self.worker_wait_s, self.memory_s) < 0:
            raise ValueError("times must not be negative")

    def limits(self, slots: int) -> tuple[int, int]:
        """How many may be out with so many engine slots: in all, and up to which number nobody has
        to leave any free. Few slots have no reserve: it would be a large part of them."""
        if slots <= 0:
            return 0, 0
        return max(1, int(slots * self.slots_factor)), slots - round(slots * self.reserve)


class Ticket(msgspec.Struct, frozen=True, gc=False):
    """What the gate has to know of a request.

    Attributes:
        model: the name whose workers it needs. Adapters that share their base model's workers wait
            under the base model's name: they share its slots.
        tenant, weight, priority: whose it is; weight is more than 0, a negative priority is
            shed first.
        tokens: an estimate, prompt and answer; at least 1.
        deadline_s: until when the client wants it to start, on the gate's clock; None: any time.
    """

    model: str
    tenant: str = ""
    weight: float = 1.0
    priority: int = 0
    tokens: float = 1.0
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the pool can do for a model now.

    Attributes:
        slots: requests that its usable workers run at a time (those that answer clients).
        ready: whether a worker is ready at all.
        known: whether the model is served here, or would be once a worker is ready.
    """

    slots: int
    ready: bool
    known: bool = True


UNKNOWN = Capacity(slots=0, ready=False, known=False)
"""Of a model that nobody serves."""


class Turned(StrEnum):
    """Why a request was turned away; a label for metrics."""

    FULL = "full"
    SHED = "shed"
    EXPIRED = "expired"
    DEADLINE = "deadline"
    NO_WORKER = "no_worker"


@dataclass(frozen=True, slots=True)
class GateSnapshot:
    """For metrics and the admin API.

    Attributes:
        waiting_by_band: by priority; only bands in which somebody waits.
        oldest_age_s: of the request that waits longest; 0 when none does.
        waiting_by_model, out_by_model: requests in the queue, and at the engines.
        limit_by_model: how many may be out.
        admitted: let through since the start.
        turned: turned away since the start, by reason.
    """

    waiting_by_band: Mapping[int, int]
    oldest_age_s: float
    waiting_by_model: Mapping[str, int]
    out_by_model: Mapping[str, int]
    limit_by_model: Mapping[str, int]
    admitted: int
    turned: Mapping[Turned, int]


def retry_after_s(ahead: int, rate_per_s: float, unknown_s: float) -> float:
    """Seconds until so many requests have gone ahead at a rate, whole, between 1 and 60; from
    ``unknown_s`` while nothing has been measured."""
    estimate_s = (ahead + 1) / rate_per_s if rate_per_s > 0 else unknown_s
    return float(min(60, max(1, math.ceil(estimate_s))))

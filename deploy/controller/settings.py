"""What the controller is told, and the times that it keeps to."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Rules:
    """What decisions are made by.

    Attributes:
        retire_s: how long the pools of the profile before are kept after a switch, so that a
            rollback is quick.
        settle_s: how long a worker must have been seen to hold nothing until it counts as free.
            Above what routers take to hear of a cordon (0.5 s) and of each other's requests
            (0.5 s), and workers to report their load (1 s).
        absent_s: how long a pool must have been missing until it is made: a tree that is being
            applied changes the site a moment before the pools.
        min_ready: share of a pool's groups that must be ready before it counts as ready; one
            group at least.
        slow_factor: a pool that is not ready after so many times its profile's
            ``switch.prepare_s`` is told of.
    """

    retire_s: float = 300.0
    settle_s: float = 3.0
    absent_s: float = 3.0
    min_ready: float = 1.0
    slow_factor: float = 10.0


@dataclass(frozen=True, slots=True)
class ControllerSettings:
    """What the controller is told.

    Attributes:
        namespace: where everything lies.
        profiles: name of the ConfigMap that operators edit.
        site: ``configmap:NAME``, a built-in site or a file.
        admin_url: of the routers' admin API.
        admin_token: for it.
        active: name of the ConfigMap that routers start from.
        status: name of the ConfigMap that the controller reports to and remembers in.
        lease: name of the Lease.
        identity: of this process among those that want the Lease; a container that is restarted
            keeps its pod's name, and so its Lease.
        lease_s: how long a Lease outlives its last renewal, in whole seconds.
        poll_s: between two looks while nothing goes on; what changes in Kubernetes is seen at once.
        busy_poll_s: between two looks while something goes on.
        health: address and port of probes and metrics; None for none.
        rules: what decisions are made by.
    """

    namespace: str
    profiles: str
    site: str
    admin_url: str
    admin_token: str = field(repr=False)
    active: str = "baton-active"
    status: str = "baton-controller-status"
    lease: str = "baton-controller"
    identity: str = "baton-controller"
    lease_s: int = 15
    poll_s: float = 10.0
    busy_poll_s: float = 1.0
    health: tuple[str, int] | None = None
    rules: Rules = Rules()

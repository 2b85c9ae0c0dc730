"""What the controller counts, for Prometheus; the names are listed in ``docs/kubernetes``."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from deploy.controller.picture import Picture
from deploy.controller.plan import Plan

PHASES = (
    "steady",
    "preparing",
    "switching",
    "growing",
    "draining",
    "routers away",
    "wish not met",
)


class Metrics:
    """One registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.leads = Gauge(
            "baton_controller_leader", "1 where this process holds the lease.", registry=registry
        )
        self._passes = Counter(
            "baton_controller_passes",
            "Looks at everything, by how they ended: done, failed, standby.",
            ["result"],
            registry=registry,
        )
        self._pass_s = Histogram(
            "baton_controller_pass_seconds",
            "How long a look with its actions took.",
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=registry,
        )
        self._actions = Counter(
            "baton_controller_actions",
            "Changes that were made or tried, by kind and result: done, stale, failed.",
            ["kind", "result"],
            registry=registry,
        )
        self._routers = Gauge(
            "baton_controller_routers_up", "1 where the routers answer.", registry=registry
        )
        self._problems = Gauge(
            "baton_controller_problems",
            "Lines that say what of profiles, site and permissions is wrong.",
            registry=registry,
        )
        self._phase = Gauge(
            "baton_controller_phase", "1 for what goes on now.", ["phase"], registry=registry
        )
        self._open_s = Gauge(
            "baton_controller_wait_seconds",
            "How long the oldest wait has lasted; 0 for none.",
            registry=registry,
        )
        self._groups = Gauge(
            "baton_controller_groups",
            "Groups by pool and state: asked, ready, needed (1 where a profile needs the pool).",
            ["pool", "state"],
            registry=registry,
        )

    def note_pass(self, result: str, took_s: float) -> None:
        """A pass has ended."""
        self._passes.labels(result).inc()
        self._pass_s.observe(took_s)

    def note_action(self, kind: str, result: str) -> None:
        """An action was tried."""
        self._actions.labels(kind, result).inc()

    def show(self, picture: Picture, plan: Plan) -> None:
        """How things are."""
        self._routers.set(picture.routers is not None)
        self._problems.set(len(picture.problems))
        for phase in PHASES:
            self._phase.labels(phase).set(phase == plan.phase)
        keys = {wait.key for wait in plan.waits}
        self._open_s.set(max((s for k, s in picture.waited.items() if k in keys), default=0.0))
        self._groups.clear()
        for pool in picture.pools:
            self._groups.labels(pool.name, "asked").set(pool.replicas)
            self._groups.labels(pool.name, "ready").set(pool.ready_members())
            self._groups.labels(pool.name, "needed").set(pool.name in plan.needed)

    def page(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self.registry)

"""Which of several controllers acts: the one that holds a Lease.

Nobody compares clocks. A holder counts from when it began its last renewal that went through, and
stops acting a margin before the Lease can be taken from it; whoever wants the Lease counts from
when it last saw it change, and takes it after the whole duration. Both use their own monotonic
clock, so that clocks that are set wrong or run apart by seconds do no harm.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from baton.clock import Clock
from baton.errors import SourceUnavailable
from baton.kube import Json
from deploy.controller.cluster import LEASES, Cluster, ClusterRefused

log = logging.getLogger("baton.controller.lease")

MARGIN = 3
"""A third of the duration is kept between the end of acting and the end of the Lease; a call that
was begun in time and is slow has ended by then."""


class Elector:
    """One candidate for one Lease.

    Args:
        cluster: where it lies.
        name: of the Lease.
        identity: of this candidate. Two that run at the same time must not share one.
        lease_s: how long it lasts without a renewal, in whole seconds.
        clock: monotonic for counting, wall for people.
    """

    def __init__(
        self, cluster: Cluster, name: str, identity: str, lease_s: int, clock: Clock
    ) -> None:
        self.identity = identity
        self.holder = ""
        """Who had it when it was looked at last."""
        self._cluster = cluster
        self._name = name
        self._lease_s = lease_s
        self._clock = clock
        self._until_s = -1.0
        self._seen: tuple[str, str, str] | None = None
        self._seen_s = 0.0

    @property
    def renew_s(self) -> float:
        """Between two renewals; three are tried before acting has to stop."""
        return self._lease_s / 5

    def is_held(self) -> bool:
        """Whether acting is safe now: nobody else can have the Lease."""
        return self._clock.monotonic_s() < self._until_s

    async def strive(self) -> bool:
        """Takes or renews the Lease, if it can be had; returns ``is_held``. Never raises for an API
        that is away: what was held is held until it runs out."""
        held = self.is_held()
        try:
            await self._strive()
        except SourceUnavailable as error:
            log.warning("lease %s: %s", self._name, error.message)
        now = self.is_held()
        if held != now:
            log.info("lease %s: %s", self._name, "acting" if now else "not acting any more")
        return now

    async def release(self) -> None:
        """Lets others take it at once. Never raises."""
        if not self.is_held():
            return
        self._until_s = -1.0
        try:
            found = await self._cluster.get(LEASES, self._name)
            if found is None or found["spec"].get("holderIdentity") != self.identity:
                return
            found["spec"] |= {"holderIdentity": "", "renewTime": self._now()}
            await self._cluster.replace(LEASES, self._name, found)
        except SourceUnavailable as error:
            log.warning("lease %s is not given back, and runs out: %s", self._name, error.message)

    async def _strive(self) -> None:
        began_s = self._clock.monotonic_s()
        found = await self._cluster.get(LEASES, self._name)
        if found is None:
            await self._write(None, began_s, transitions=0)
            return
        spec = found.get("spec") or {}
        self.holder = str(spec.get("holderIdentity") or "")
        transitions = int(spec.get("leaseTransitions") or 0)
        if self.holder == self.identity:
            await self._write(found, began_s, transitions)
            return
        # Somebody else's, whatever we thought.
        self._until_s = -1.0
        if not self.holder or self._has_run_out(found, spec):
            await self._write(found, began_s, transitions + 1)

    def _has_run_out(self, found: Json, spec: Json) -> bool:
        """Whether it has not changed for as long as its holder said, since it was first seen so."""
        now_s = self._clock.monotonic_s()
        version = str(found["metadata"].get("resourceVersion", ""))
        seen = (self.holder, str(spec.get("renewTime")), version)
        if seen != self._seen:
            self._seen, self._seen_s = seen, now_s
        lasts_s = float(spec.get("leaseDurationSeconds") or self._lease_s)
        return now_s - self._seen_s >= lasts_s

    async def _write(self, found: Json | None, began_s: float, transitions: int) -> None:
        """Writes it as ours, on the version that was read; somebody else may have been faster."""
        spec: Json = {} if found is None else dict(found.get("spec") or {})
        if spec.get("holderIdentity") != self.identity:
            spec["acquireTime"] = self._now()
        spec |= {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": self._lease_s,
            "renewTime": self._now(),
            "leaseTransitions": transitions,
        }
        body: Json = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name, "namespace": self._cluster.namespace},
            "spec": spec,
        }
        try:
            if found is None:
                await self._cluster.create(LEASES, body)
            else:
                body["metadata"] = found["metadata"]
                await self._cluster.replace(LEASES, self._name, body)
        except ClusterRefused as error:
            if error.http_status != 409:
                raise
            log.debug("lease %s: somebody else was faster", self._name)
            return
        self.holder = self.identity
        self._until_s = began_s + self._lease_s * (1 - 1 / MARGIN)

    def _now(self) -> str:
        return datetime.fromtimestamp(self._clock.wall_s(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

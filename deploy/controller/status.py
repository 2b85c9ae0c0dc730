"""Tells people what the controller sees and does: a status ConfigMap, Events, the log.

What cannot be told is logged and forgotten: the pools never depend on it. Nothing here is read back
but by people; what the controller itself remembers stands in an annotation beside it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass

from baton.clock import Clock
from baton.errors import SourceUnavailable
from baton.kube import Json, rfc3339
from deploy.controller.act import OURS
from deploy.controller.cluster import CONFIGMAPS, EVENTS, MANAGER, Cluster, ClusterRefused
from deploy.controller.picture import Picture, Pool
from deploy.controller.plan import Plan
from deploy.controller.settings import ControllerSettings

_AGAIN_S = 600.0
_MOST_SENT = 200
_MOST_LINES = 50
_MOST_CHARS = 1000
"""Of a line; the API takes 1024 of an Event's message."""

log = logging.getLogger("baton.controller")


@dataclass(frozen=True, slots=True)
class Happening:
    """Something to tell: an Event."""

    reason: str
    message: str
    warning: bool = False


class Board:
    """Writes status and Events.

    Args:
        cluster: the namespace.
        settings: names.
        clock: wall time for people, monotonic for what is not said again so soon.

    Attributes:
        uid: of the ConfigMap that Events are about; ``kubectl describe`` finds them by it.
    """

    def __init__(self, cluster: Cluster, settings: ControllerSettings, clock: Clock) -> None:
        self.uid = ""
        self._cluster = cluster
        self._settings = settings
        self._clock = clock
        self._sent_s: dict[str, float] = {}
        self._complained = ""

    async def tell(
        self, picture: Picture, plan: Plan, happenings: Iterable[Happening], holder: str
    ) -> None:
        """Writes the status where it differs, and the Events that were not sent lately. Never
        raises for an API that refuses."""
        try:
            await self._write(picture, plan, holder)
            for happening in happenings:
                await self._send(happening)
        except SourceUnavailable as error:
            if error.message != self._complained:
                self._complained = error.message
                log.warning("people are not told: %s", error.message)
        else:
            self._complained = ""

    async def _write(self, picture: Picture, plan: Plan, holder: str) -> None:
        name = self._settings.status
        wanted = status_of(picture, plan, holder)
        found = await self._cluster.get(CONFIGMAPS, name)
        there = {} if found is None else found.get("data") or {}
        if found is not None and all(there.get(key) == value for key, value in wanted.items()):
            return
        data: dict[str, str | None] = {**wanted, "updated": self._now()}
        try:
            if found is None:
                await self._cluster.put_data(name, data, {"labels": OURS}, None)
            else:
                await self._cluster.patch(CONFIGMAPS, name, {"data": data})
        except ClusterRefused as error:
            if error.http_status != 409:
                raise

    async def _send(self, happening: Happening) -> None:
        message = happening.message[:_MOST_CHARS]
        key = hashlib.sha256(f"{self.uid}\n{happening.reason}\n{message}".encode()).hexdigest()
        now_s, wall_s = self._clock.monotonic_s(), self._clock.wall_s()
        sent_s = self._sent_s.get(key)
        if sent_s is not None and now_s - sent_s < _AGAIN_S:
            return
        about = self._settings.profiles
        involved: Json = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "name": about,
            "namespace": self._cluster.namespace,
            **({"uid": self.uid} if self.uid else {}),
        }
        # A name made of what it says: one that a killed predecessor has sent is not sent again.
        stem = about[:200].rstrip("-.")
        body: Json = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{stem}.{key[:16]}.{int(wall_s // _AGAIN_S):x}",
                "namespace": self._cluster.namespace,
                "labels": OURS,
            },
            "involvedObject": involved,
            "type": "Warning" if happening.warning else "Normal",
            "reason": happening.reason,
            "message": message,
            "source": {"component": MANAGER},
            "reportingComponent": MANAGER,
            "reportingInstance": self._settings.identity[:128],
            "firstTimestamp": self._now(),
            "lastTimestamp": self._now(),
            "count": 1,
        }
        try:
            await self._cluster.create(EVENTS, body)
        except ClusterRefused as error:
            if error.http_status != 409:
                raise
        if len(self._sent_s) >= _MOST_SENT:
            self._sent_s.clear()
        self._sent_s[key] = now_s

    def _now(self) -> str:
        return rfc3339(self._clock.wall_s())


def status_of(picture: Picture, plan: Plan, holder: str) -> dict[str, str]:
    """What the status ConfigMap says, but for the time."""
    wish, routers = picture.wish, picture.routers
    pools = []
    for pool in picture.pools:
        why = ", ".join(plan.needed.get(pool.name, ())) or "not needed"
        ready = f"{pool.ready_members()} of {pool.replicas} ready"
        draining = _draining(pool)
        pools.append(f"{pool.name}: {ready}{draining}: {why}")
    return {
        "phase": plan.phase,
        "holder": holder,
        "wish": "" if wish is None else f"{wish.known.ref.name} ({wish.known.ref.version})",
        "wish-outcome": plan.stands.outcome.value,
        "active": "" if routers is None else f"{routers.active.name} ({routers.active.version})",
        "pools": _lines(pools),
        "waits": _lines(_steady(wait.sentence) for wait in plan.waits),
        "problems": _lines(picture.problems),
    }


def _draining(pool: Pool) -> str:
    """Which groups are on their way out."""
    first = pool.marked
    if first is None or not any(m.cordoned and m.index >= first for m in pool.members):
        return ""
    return f", draining from group {first} on"


def _steady(sentence: str) -> str:
    """Without what changes at every look: each change is a write."""
    head, found, _ = sentence.partition(" has been free for ")
    return f"{head} is nearly free" if found else sentence


def _lines(lines: Iterable[str]) -> str:
    found = [line[:_MOST_CHARS] for line in lines]
    more = len(found) - _MOST_LINES
    return "\n".join(found[:_MOST_LINES] + ([f"and {more} more"] if more > 0 else []))

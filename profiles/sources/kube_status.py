"""Tells operators in Kubernetes what became of their ConfigMap: a status ConfigMap, and Events.

Several routers tell the same, so that each looks before it writes, and an Event's name is made
from what it says: the second router's is refused by the server as a repetition. Whatever fails here
is logged and forgotten; serving never depends on it.
"""

from __future__ import annotations

import hashlib
import logging

from baton.clock import Clock
from baton.kube import Json, KubeApi, rfc3339
from profiles.sources.base import Told

AGAIN_S = 600.0
"""The same Event is sent once in this time."""

_COMPLAIN_S = 60.0
_MAX_PROBLEMS = 50
_MAX_LINE = 1000
_MAX_MESSAGE = 1000
"""Characters; the API takes 1024 of an Event's message."""

_MAX_SENT = 100
_LABELS = {"app.kubernetes.io/managed-by": "baton"}

_log = logging.getLogger(__name__)


class StatusBoard:
    """What is told about one ConfigMap.

    Args:
        api: the cluster.
        namespace, name: of the ConfigMap.
        clock: both halves of it.

    Attributes:
        uid: of the ConfigMap as it was seen last; ``kubectl describe`` finds Events by it.
    """

    def __init__(self, api: KubeApi, namespace: str, name: str, clock: Clock) -> None:
        self.uid = ""
        self._api = api
        self._namespace = namespace
        self._name = name
        self._clock = clock
        self._sent_s: dict[str, float] = {}
        self._complained_s: float | None = None

    async def tell(self, told: Told) -> None:
        """Writes the status if it differs, and the Event if it was not sent lately. Never raises;
        takes a few calls' time at most."""
        for step in (self._write_status, self._send_event):
            try:
                problem = await step(told)
            except Exception as error:
                # Anything: an answer of a wrong shape must not end whoever tells.
                problem = str(error) or type(error).__name__
            if problem:
                self._complain(problem)

    async def _write_status(self, told: Told) -> str:
        """What went wrong; empty for nothing."""
        name = f"{self._name}-status"
        path = f"/api/v1/namespaces/{self._namespace}/configmaps"
        wanted = {
            "active": told.active,
            "version": told.version,
            "phase": told.phase,
            "problems": _lines(told.problems),
        }
        data = {**wanted, "updated": rfc3339(self._clock.wall_s())}
        status, found = await self._api.call("GET", f"{path}/{name}")
        if status == 404:
            body: Json = {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": name, "namespace": self._namespace, "labels": _LABELS},
                "data": data,
            }
            status, found = await self._api.call("POST", path, body=body)
            if status != 409:
                return _failure("create", f"configmaps {name}", status, found)
            # Another router was faster, and may have said something else.
            status, found = await self._api.call("GET", f"{path}/{name}")
        if status != 200:
            return _failure("get", f"configmaps {name}", status, found)
        there = found.get("data") or {}
        if all(there.get(key) == value for key, value in wanted.items()):
            return ""
        status, found = await self._api.call(
            "PATCH",
            f"{path}/{name}",
            body={"data": data},
            content_type="application/merge-patch+json",
        )
        return _failure("patch", f"configmaps {name}", status, found)

    async def _send_event(self, told: Told) -> str:
        message = told.event[:_MAX_MESSAGE]
        if not message:
            return ""
        reason = told.reason or ("ProfileRefused" if told.warning else "ProfileSwitched")
        now_s, wall_s = self._clock.monotonic_s(), self._clock.wall_s()
        key = hashlib.sha256(f"{self.uid}\n{reason}\n{message}".encode()).hexdigest()[:16]
        sent_s = self._sent_s.get(key)
        if sent_s is not None and now_s - sent_s < AGAIN_S:
            return ""
        time = rfc3339(wall_s)
        stem = self._name[:200].rstrip("-.")
        name = f"{stem}.{key}.{int(wall_s // AGAIN_S):x}"
        body: Json = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": self._namespace, "labels": _LABELS},
            "involvedObject": {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "name": self._name,
                "namespace": self._namespace,
                **({"uid": self.uid} if self.uid else {}),
            },
            "type": "Warning" if told.warning else "Normal",
            "reason": reason,
            "message": message,
            "source": {"component": "baton-router"},
            "reportingComponent": "baton-router",
            "reportingInstance": "",
            "firstTimestamp": time,
            "lastTimestamp": time,
            "count": 1,
        }
        path = f"/api/v1/namespaces/{self._namespace}/events"
        status, answer = await self._api.call("POST", path, body=body)
        problem = "" if status == 409 else _failure("create", "events", status, answer)
        if not problem:
            self._sent_s.pop(key, None)
            self._sent_s[key] = now_s
            while len(self._sent_s) > _MAX_SENT:
                del self._sent_s[next(iter(self._sent_s))]
        return problem

    def _complain(self, problem: str) -> None:
        now_s = self._clock.monotonic_s()
        if self._complained_s is None or now_s - self._complained_s >= _COMPLAIN_S:
            self._complained_s = now_s
            _log.warning(
                "configmap %s/%s: operators cannot be told what became of it: %s",
                self._namespace,
                self._name,
                problem,
            )


def _failure(verb: str, resource: str, status: int, answer: Json) -> str:
    if 200 <= status < 300:
        return ""
    said = str(answer.get("message") or "no reason given")[:500]
    if status == 403:
        return f"not allowed to {verb} {resource}; the Role in docs/profile-sources.md has it"
    return f"{verb} {resource} failed with {status} ({said})"


def _lines(problems: tuple[str, ...]) -> str:
    """One problem a line, bounded."""
    shown = [problem[:_MAX_LINE].replace("\n", " ") for problem in problems[:_MAX_PROBLEMS]]
    if len(problems) > _MAX_PROBLEMS:
        shown.append(f"and {len(problems) - _MAX_PROBLEMS} more")
    return "\n".join(shown)

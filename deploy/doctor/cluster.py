"""The cluster that is examined: read-only questions to its API, and what it is wanted for.

Nothing here or in the checks changes anything; access reviews are created, and kept by nobody. What
we may not read is said as such: what whoever asks may not do is no fault of the cluster.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from baton.kube import Query
from deploy.doctor.findings import NotSeen
from deploy.lws.labels import BATON, NAME
from deploy.lws.site import Site
from profiles import ServingProfile

Json = dict[str, Any]
OURS = (("labelSelector", f"{NAME}={BATON}"),)
_PAGE = "200"
_PAGES = 50
"""Nodes have ten thousand bytes and more, and answers are limited; more pages than these say
nothing that the first ones do not."""
_Key = tuple[str, tuple[tuple[str, str], ...]]


class NoRouter(Exception):
    """The router that was named does not answer as one."""


class Api(Protocol):
    """What is asked of ``baton.kube.KubeApi``."""

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Query = (),
        body: Json | None = None,
        content_type: str = "application/json",
    ) -> tuple[int, Json]:
        """The status and the object that came with it."""


@dataclass(eq=False)
class Cluster:
    """What checks of a cluster get.

    Attributes:
        api: to be asked.
        namespace: where Baton's objects are or will be.
        profile: what is to be served; None where nobody said.
        site: what the cluster should be like; None where nobody said.
        ask_router: the answers of a router's ``/admin/status`` and ``/admin/pairs``, by path; None
            where nobody named a router.
        now: wall clock seconds.
    """

    api: Api
    namespace: str
    profile: ServingProfile | None = None
    site: Site | None = None
    ask_router: Callable[[str], Awaitable[Mapping[str, Any]]] | None = None
    now: Callable[[], float] = time.time
    _locks: dict[_Key, asyncio.Lock] = field(default_factory=dict, init=False)
    _seen: dict[_Key, tuple[int, Json]] = field(default_factory=dict, init=False)

    async def get(self, path: str, query: Query = ()) -> Json | None:
        """An object or a list; None where there is none. Asked once.

        Raises:
            NotSeen: we may not read it, or the server fails.
            KubernetesUnavailable: no answer.
        """
        key = (path, tuple(query))
        # By path, so that a slow list does not hold up the others.
        async with self._locks.setdefault(key, asyncio.Lock()):
            if key not in self._seen:
                self._seen[key] = await self.api.call("GET", path, query=query)
        status, found = self._seen[key]
        if status == 404:
            return None
        if status in (401, 403):
            raise NotSeen(
                f"we may not read {path}", "ask with rights to read it: kubectl auth can-i --list"
            )
        if status != 200:
            raise NotSeen(f"{path}: the API answers {status}: {found.get('message', '')}", "")
        return found

    async def items(self, path: str, query: Query = ()) -> list[Json]:
        """What is in a list, read by pages; nothing where there is no such list.

        Raises:
            NotSeen, KubernetesUnavailable: see ``get``.
        """
        found: list[Json] = []
        more = ""
        for _ in range(_PAGES):
            page = (*query, ("limit", _PAGE), *((("continue", more),) if more else ()))
            answer = await self.get(path, page) or {}
            found += [item for item in answer.get("items") or () if isinstance(item, dict)]
            more = str(answer.get("metadata", {}).get("continue") or "")
            if not more:
                break
        return found

    def here(self, path: str) -> str:
        """A path of our namespace, from ``api/v1/pods`` or ``apis/apps/v1/deployments/NAME``."""
        parts = path.split("/")
        group = 2 if parts[0] == "api" else 3
        return "/" + "/".join([*parts[:group], "namespaces", self.namespace, *parts[group:]])


def name_of(found: Json) -> str:
    """``metadata.name``."""
    return str(found.get("metadata", {}).get("name", ""))


def labels_of(found: Json) -> Mapping[str, str]:
    """``metadata.labels``."""
    labels = found.get("metadata", {}).get("labels")
    return labels if isinstance(labels, dict) else {}


def condition(found: Json, kind: str) -> Json:
    """A condition of an object's status; empty where it has none of the kind."""
    for entry in found.get("status", {}).get("conditions") or ():
        if entry.get("type") == kind:
            return dict(entry)
    return {}


def age_s(cluster: Cluster, found: Json) -> float:
    """Since when an object is there, in seconds; 0 for one that does not say."""
    made = found.get("metadata", {}).get("creationTimestamp")
    return cluster.now() - seconds(made) if isinstance(made, str) else 0.0


def seconds(stamp: str) -> float:
    """A time as Kubernetes writes it, as seconds of the wall clock."""
    return datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()

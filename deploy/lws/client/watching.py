"""A collection followed for ever: listed once, then watched, and listed again where it must be.

Whoever follows hears of every object's latest state and of every end, also of those that fell into
a gap between two watches: what is known is compared with each new list. States in between may be
skipped. It ends only when its reader stops, or with an exception that says why.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import math
import random
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Generic, Protocol

from baton.errors import KubernetesUnavailable
from baton.kube import OPEN, Json, Query
from deploy.lws.client.calling import Api, Caller, Retries, pause_s
from deploy.lws.client.errors import Asked, Busy, Refused, Unauthorized, error_of
from deploy.lws.client.objects import Resource, T

WATCH_S = 60.0
"""Length of one watch. A connection that died in silence is noticed soon after."""

PAGE = 50
"""Objects of one answer to a list: 50 with large templates stay under what an answer may have."""

MAX_PAGES = 200
"""Of one list; a cluster with more sets than that is not one this client can keep in memory."""

_STEADY_S = 1.0
"""A watch that lasted so long was a sound one, even if nothing came."""

BACKOFF = Retries(first_s=0.5, most_s=15.0)
"""Pauses between watches that do not come about."""

MAX_PAUSE_S = 60.0
"""The longest one, whatever the server asks for."""

_log = logging.getLogger(__name__)

Trouble = Callable[[str], None]
"""Told why the API cannot be read, each time it is tried; and ``""`` when it can be again."""


class WatchApi(Api, Protocol):
    """What is used of :class:`baton.kube.KubeApi`."""

    def watch(  # noqa: D102
        self, path: str, query: Query, *, watch_s: float
    ) -> AsyncGenerator[tuple[str, Json]]: ...


class ChangeType(enum.Enum):
    """What happened to an object."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """An object is there, is different, or is gone.

    Attributes:
        type: what happened.
        object: as it is now; of one that is gone, as it was last seen.
    """

    type: ChangeType
    object: T


def differences(known: Mapping[str, T], found: Mapping[str, T]) -> list[Change[T]]:
    """What happened between two lists, by name. One that was made anew is gone first."""
    changes = []
    for name, before in known.items():
        now = found.get(name)
        if now is None or now.meta.uid != before.meta.uid:
            changes.append(Change(ChangeType.DELETED, before))
    for name, now in found.items():
        earlier = known.get(name)
        if earlier is None or earlier.meta.uid != now.meta.uid:
            changes.append(Change(ChangeType.ADDED, now))
        elif earlier.meta.resource_version != now.meta.resource_version:
            changes.append(Change(ChangeType.MODIFIED, now))
    return changes


class Follower(Generic[T]):
    """One kind in one namespace.

    Args:
        api, caller: the cluster.
        resource: the kind.
        namespace: where.
        read: makes a value of an object.
        backoff: pauses between watches that do not come about.
    """

    def __init__(
        self,
        api: WatchApi,
        caller: Caller,
        resource: Resource,
        namespace: str,
        read: Callable[[Json], T],
        backoff: Retries,
    ) -> None:
        self._api = api
        self._caller = caller
        self._path = resource.path(namespace)
        self._read = read
        self._backoff = backoff
        self._asked = Asked("list", resource.group, resource.plural, resource.kind, namespace)

    async def list(self, selectors: Query) -> tuple[list[T], str]:
        """All that fit, and the version to watch from.

        Raises:
            Refused, KubernetesUnavailable: see :class:`deploy.lws.client.calling.Caller`.
        """
        items: list[T] = []
        token = ""
        for _ in range(MAX_PAGES):
            query = [*selectors, ("limit", str(PAGE))]
            if token:
                query.append(("continue", token))
            try:
                answer = await self._caller.call(self._asked, "GET", self._path, query=query)
            except Refused as refused:
                if refused.http_status == 410 and token:
                    # The first pages' version was compacted away.
                    items, token = [], ""
                    continue
                raise
            metadata = answer.get("metadata")
            found = answer.get("items")
            if not isinstance(metadata, dict) or not isinstance(found, list):
                raise KubernetesUnavailable(f"cannot {self._asked}: the answer is not a list")
            items += [self._read(raw) for raw in found]
            token = str(metadata.get("continue") or "")
            if not token:
                return items, str(metadata.get("resourceVersion") or "")
        raise KubernetesUnavailable(
            f"cannot {self._asked}: more than {MAX_PAGES * PAGE} objects, or a list that changes "
            "faster than it is read; narrow it with a label selector"
        )

    async def follow(
        self, selectors: Query, *, watch_s: float, trouble: Trouble
    ) -> AsyncGenerator[Change[T] | None]:
        """Changes, those to the first list included. ``None`` means that there is nothing new:
        after each list, with each bookmark, and when a watch begins.

        Raises:
            Refused: the API server says no, and will again.
        """
        known: dict[str, T] = {}
        pauses = _Pauses(self._backoff, self._caller.rng)
        loop = asyncio.get_running_loop()
        version = ""
        while True:
            opened_s, sound, after_s = math.inf, False, None
            try:
                if not version:
                    items, version = await self.list(selectors)
                    trouble("")
                    listed = {found.name: found for found in items}
                    changes = differences(known, listed)
                    known = listed
                    for change in changes:
                        yield change
                    yield None
                async with aclosing(self._watch(selectors, version, watch_s)) as events:
                    async for kind, raw in events:
                        if kind == OPEN:
                            opened_s = loop.time()
                            trouble("")
                            yield None
                            continue
                        sound = True
                        version = _version_of(raw) or version
                        if kind == "BOOKMARK":
                            yield None
                        elif told := _noted(known, kind, self._read(raw)):
                            yield told
            except _Lost:
                version = ""
            except KubernetesUnavailable as error:
                # Listed again before it is watched: nobody knows what is still true by then.
                version = ""
                after_s = error.retry_after_s if isinstance(error, Busy) else None
                trouble(error.message)
            if sound or loop.time() - opened_s >= _STEADY_S:
                pauses.reset()
                if version:
                    continue
            await asyncio.sleep(pauses.next_s(after_s))

    async def _watch(
        self, selectors: Query, version: str, watch_s: float
    ) -> AsyncGenerator[tuple[str, Json]]:
        """Events from there on; refusals as exceptions."""
        query = [*selectors, ("allowWatchBookmarks", "true"), ("resourceVersion", version)]
        async with aclosing(self._api.watch(self._path, query, watch_s=watch_s)) as events:
            async for kind, found in events:
                if kind == "ERROR":
                    code = found.get("code")
                    status = code if isinstance(code, int) else 500
                    error = error_of(replace(self._asked, verb="watch"), status, found)
                    # 410: the version is too old. 401: a list reads credentials anew.
                    if status == 410 or isinstance(error, Unauthorized):
                        raise _Lost
                    raise error
                if kind != OPEN and not isinstance(found, dict):
                    raise KubernetesUnavailable(f"{self._path}: an event without an object")
                yield kind, found


class _Lost(Exception):
    """The watch cannot go on from its version."""


class _Pauses:
    """Growing pauses between tries; the longest one is bounded, whatever the server asks for."""

    def __init__(self, backoff: Retries, rng: random.Random) -> None:
        self._backoff = backoff
        self._rng = rng
        self._tried = 0

    def next_s(self, after_s: float | None) -> float:
        self._tried += 1
        return min(pause_s(self._backoff, self._tried, after_s, self._rng), MAX_PAUSE_S)

    def reset(self) -> None:
        self._tried = 0


class Outage:
    """Told to the log when it begins, when its reason changes, and when it is over.

    Args:
        what: cannot be read.
        also: hears of it too.
    """

    def __init__(self, what: str, also: Trouble | None = None) -> None:
        self._what = what
        self._also = also
        self.reason = ""

    def __call__(self, reason: str) -> None:
        """See ``Trouble``."""
        if reason != self.reason:
            if reason:
                _log.warning("%s cannot be watched, trying on: %s", self._what, reason)
            else:
                _log.info("%s can be watched again", self._what)
            self.reason = reason
            if self._also is not None:
                self._also(reason)


def _noted(known: dict[str, T], kind: str, found: T) -> Change[T] | None:
    """Writes an event down; the change that it is, if it is one."""
    before = known.get(found.name)
    if kind == "DELETED":
        known.pop(found.name, None)
        return Change(ChangeType.DELETED, found)
    if kind not in ("ADDED", "MODIFIED"):
        return None
    known[found.name] = found
    return Change(ChangeType.MODIFIED if before else ChangeType.ADDED, found)


def _version_of(raw: Json) -> str:
    metadata = raw.get("metadata")
    return str(metadata.get("resourceVersion") or "") if isinstance(metadata, dict) else ""


def selectors(labels: str | Mapping[str, str] = "", name: str = "") -> Query:
    """The query of a list or watch.

    Args:
        labels: a label selector as text, or labels that must all be there.
        name: of the only object that is wanted.
    """
    query = []
    if not isinstance(labels, str):
        pairs: Iterable[tuple[str, str]] = labels.items()
        labels = ",".join(f"{key}={value}" for key, value in pairs)
    if labels:
        query.append(("labelSelector", labels))
    if name:
        query.append(("fieldSelector", f"metadata.name={name}"))
    return query

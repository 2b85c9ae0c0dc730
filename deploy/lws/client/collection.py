"""What can be done with objects of one kind: everything that LeaderWorkerSets, DisaggregatedSets
and RoleScalers have in common.

Objects are written as plain dictionaries, as they stand in YAML, and read as values of
``objects.py``. This refuses to write an object of another kind or namespace than its own.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Generic

from baton.clock import Clock
from baton.errors import KubernetesUnavailable
from baton.kube import Json, Query
from deploy.lws.client.calling import Caller, Retries
from deploy.lws.client.errors import Asked, BadObject, NotFound, NotInTime
from deploy.lws.client.objects import (
    Resource,
    T,
    read_meta,
)
from deploy.lws.client.waits import Until
from deploy.lws.client.watching import (
    WATCH_S,
    Change,
    ChangeType,
    Follower,
    Outage,
    Trouble,
    WatchApi,
    selectors,
)

Labels = str | Mapping[str, str]
"""A label selector as text (``a=b,c!=d``), or labels that must all be there."""

Check = Callable[[T | None], Awaitable[Sequence[str]]]

MERGE = "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"

_NAME = re.compile(r"[a-z0-9.-]+")

_WAIT_WATCH_S = 10.0
"""Length of one watch of a wait: what an object does not tell is looked at again so often."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where objects live, and how they are reached.

    Attributes:
        api, caller: the cluster.
        namespace: where.
        manager: name that changes are made under, where a call names no other.
        clock: for the time of restarts.
        backoff: pauses of watches that do not come about; its tries and budget mean nothing.
    """

    api: WatchApi
    caller: Caller
    namespace: str
    manager: str
    clock: Clock
    backoff: Retries


class Collection(Generic[T]):
    """Objects of one kind in one namespace.

    Args:
        place: where.
        resource: the kind.
        read: makes a value of an object.
    """

    def __init__(self, place: Place, resource: Resource, read: Callable[[Json], T]) -> None:
        self.resource = resource
        self.namespace = place.namespace
        self._place = place
        self._caller = place.caller
        self._read = read
        self._follower = Follower(
            place.api, place.caller, resource, place.namespace, read, place.backoff
        )

    async def get(self, name: str) -> T:
        """The object of that name.

        Raises:
            NotFound: there is none.
            Refused, KubernetesUnavailable: as all calls may.
        """
        return self._read(await self._call("get", "GET", name))

    async def list(self, labels: Labels = "") -> list[T]:
        """All objects with these labels."""
        found, _ = await self._follower.list(selectors(labels))
        return found

    async def watch(
        self,
        labels: Labels = "",
        *,
        name: str = "",
        watch_s: float = WATCH_S,
        trouble: Trouble | None = None,
    ) -> AsyncGenerator[Change[T]]:
        """Changes for ever, beginning with an ``ADDED`` for each object that is there.

        Connections that end are begun anew where they were; where that is too long ago, all is
        listed again, and what happened meanwhile is told. While the API does not answer it is
        asked again, in growing pauses. Use it with ``contextlib.aclosing``.

        Args:
            labels: only objects with these.
            name: only the object of that name.
            watch_s: length of one connection.
            trouble: told why the API cannot be watched when that changes, and ``""`` when it can
                be again.

        Raises:
            Refused: the API server says no, such as for want of a Role.
        """
        outage = Outage(f"{self.resource.plural} in {self.namespace}", trouble)
        query = selectors(labels, name)
        async with aclosing(
            self._follower.follow(query, watch_s=watch_s, trouble=outage)
        ) as events:
            async for change in events:
                if change is not None:
                    yield change

    async def create(self, body: Json, *, dry_run: bool = False) -> T:
        """Makes an object. Not repeated after an answer that was lost: it may have been made.

        Args:
            body: the object; kind and namespace may be left out.
            dry_run: the server checks it and makes nothing.

        Raises:
            AlreadyExists: the name is taken.
            Invalid, BadName: the object or its name is wrong.
        """
        query = [("fieldManager", self._place.manager), *_dry(dry_run)]
        body = self._mine(body)
        answer = await self._caller.call(
            self._asked("create", read_meta(body).name),
            "POST",
            self.resource.path(self.namespace),
            query=query,
            body=body,
            again=False,
        )
        return self._read(answer)

    async def apply(
        self,
        body: Json,
        *,
        field_manager: str = "",
        force: bool = False,
        dry_run: bool = False,
    ) -> T:
        """Server-side apply: makes the object, or brings the fields in it to what it says.

        Args:
            body: the fields that the manager wants to own, and no others; kind and namespace may
                be left out.
            field_manager: who owns them; the client's name if empty.
            force: takes fields over that other managers own.
            dry_run: the server checks it and changes nothing.

        Raises:
            FieldConflict: other managers own fields, and ``force`` is not set.
            Invalid, BadName: the object or its name is wrong.
        """
        body = self._mine(body)
        query = [
            ("fieldManager", field_manager or self._place.manager),
            ("force", "true" if force else "false"),
            *_dry(dry_run),
        ]
        name = read_meta(body).name
        answer = await self._call("patch", "PATCH", name, query=query, body=body, type_=APPLY)
        return self._read(answer)

    async def delete(
        self,
        name: str,
        *,
        propagation: str = "Background",
        uid: str = "",
        dry_run: bool = False,
    ) -> bool:
        """Deletes an object; one that is not there is no error.

        Args:
            name: of the object.
            propagation: what becomes of its pods: ``Background`` deletes them afterwards,
                ``Foreground`` before, ``Orphan`` leaves them.
            uid: only if it still is the object with this one.
            dry_run: the server changes nothing.

        Returns:
            Whether it was there. After an answer that was lost False may mean that this call has
            deleted it: the connection repeats deletes by itself, and the next one finds nothing.

        Raises:
            Conflict: another object has the name by now.
        """
        body: Json = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": propagation,
        }
        if uid:
            body["preconditions"] = {"uid": uid}
        try:
            await self._call("delete", "DELETE", name, query=_dry(dry_run), body=body)
        except NotFound:
            return False
        return True

    async def wait(self, name: str, until: Until[T], *, timeout_s: float) -> T | None:
        """Waits until nothing is missing.

        Args:
            name: of an object, which need not be there yet.
            until: says what is missing; see ``waits``.
            timeout_s: seconds after which it gives up.

        Returns:
            The object as it was then.

        Raises:
            NotInTime: with what is missing still.
        """

        async def check(found: T | None) -> Sequence[str]:
            return until(found)

        return await self._waited(name, check, timeout_s)

    async def _waited(self, name: str, check: Check[T], timeout_s: float) -> T | None:
        missing: Sequence[str] = ()
        outage = Outage(f"{self.resource.plural} {self.namespace}/{name}")
        events = self._follower.follow(selectors(name=name), watch_s=_WAIT_WATCH_S, trouble=outage)
        found: T | None = None
        try:
            async with asyncio.timeout(timeout_s) as limit, aclosing(events):
                async for change in events:
                    if change is not None:
                        gone = change.type is ChangeType.DELETED
                        found = None if gone else change.object
                    try:
                        missing = await check(found)
                    except KubernetesUnavailable as error:
                        # It is looked at again with the next watch, if not before.
                        missing = [error.message]
                    if not missing:
                        break
        except TimeoutError:
            if not limit.expired():
                raise
            if outage.reason:
                missing = [*missing, outage.reason]
            what = f"{self.resource.kind} {self.namespace}/{name}"
            raise NotInTime(
                f"{what} is not as wanted after {timeout_s:g} s: "
                + ("; ".join(missing) or "it could not be read"),
                missing=missing,
            ) from None
        return found

    def _asked(self, verb: str, name: str = "", subresource: str = "") -> Asked:
        kind = self.resource
        plural = f"{kind.plural}/{subresource}" if subresource else kind.plural
        return Asked(verb, kind.group, plural, kind.kind, self.namespace, name)

    async def _call(
        self,
        verb: str,
        method: str,
        name: str,
        *,
        subresource: str = "",
        query: Query = (),
        body: Json | None = None,
        type_: str = "application/json",
    ) -> Json:
        """On one object; only what means the same when it is done twice."""
        return await self._caller.call(
            self._asked(verb, name, subresource),
            method,
            self.resource.path(self.namespace, _segment(name), subresource),
            query=query,
            body=body,
            content_type=type_,
        )

    async def _patch(self, name: str, body: Json, *, subresource: str = "") -> Json:
        """A merge patch under the client's name."""
        return await self._call(
            "patch",
            "PATCH",
            name,
            subresource=subresource,
            query=[("fieldManager", self._place.manager)],
            body=body,
            type_=MERGE,
        )

    def _mine(self, body: Json) -> Json:
        """A copy with kind and namespace filled in.

        Raises:
            BadObject: it is of another kind or namespace, or has no name.
        """
        metadata = {"namespace": self.namespace, **(body.get("metadata") or {})}
        whole = {
            "apiVersion": self.resource.api_version,
            "kind": self.resource.kind,
            **body,
            "metadata": metadata,
        }
        expected = (self.resource.api_version, self.resource.kind, self.namespace)
        found = (whole["apiVersion"], whole["kind"], metadata["namespace"])
        if found != expected:
            raise BadObject(
                f"this is a {found[1]} of {found[0]} in namespace {found[2]}, and here only "
                f"{expected[1]} of {expected[0]} in {expected[2]} can be written"
            )
        if not isinstance(metadata.get("name"), str) or not metadata["name"]:
            raise BadObject(f"this {expected[1]} has no metadata.name")
        self._check(whole)
        return whole

    def _check(self, body: Json) -> None:
        """What is refused before the server sees it; nothing, where a kind does not say."""


def _dry(dry_run: bool) -> list[tuple[str, str]]:
    return [("dryRun", "All")] if dry_run else []


def _segment(name: str) -> str:
    """A name as part of a path.

    Raises:
        BadObject: it would be another path.
    """
    if not name or name in (".", "..") or not _NAME.fullmatch(name):
        raise BadObject(f"{name!r} is no name of an object")
    return name

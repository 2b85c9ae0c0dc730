"""A Kubernetes API server over real HTTP, as far as Baton's parts talk to one.

It exists because a real one cannot be had in every test run. What it keeps to: one counter of
versions for all objects, watches that begin at a version and are told of every change after it in
order, 410 for versions that were compacted away, 409 for writes on an old version or a name that is
taken, 403 by verb and resource, bookmarks where they are asked for. Kinds are rows of a table, all
kept alike. It validates no schemas, and its server-side apply knows no owners of fields.
"""

from __future__ import annotations

import asyncio
import copy
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

Json = dict[str, Any]
Kind = tuple[str, str, str]
"""Group (empty for core), version, plural."""

KINDS: dict[Kind, str] = {
    ("", "v1", "configmaps"): "ConfigMap",
    ("", "v1", "events"): "Event",
}
"""Those there are from the start; a test may add rows to its server's ``kinds``."""

TOKEN = "fake-token"


class Refused(Exception):
    """Answered as a ``Status`` object."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.body: Json = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "code": code,
            "reason": reason,
            "message": message,
        }
        self.code = code


@dataclass(frozen=True)
class Change:
    """One entry of the history; ``found`` is the object afterwards, or as it was last."""

    version: int
    kind: Kind
    type: str
    found: Json


@dataclass(eq=False)
class Watcher:
    """One watch that is on."""

    kind: Kind
    namespace: str
    selectors: tuple[str, str]
    bookmarks: bool
    queue: asyncio.Queue[tuple[str, Json] | None] = field(default_factory=asyncio.Queue)


@dataclass(frozen=True)
class Target:
    """What a path means; an empty namespace is all of them, an empty name the collection."""

    kind: Kind
    namespace: str
    name: str


class FakeKubernetes:
    """One server on a free loopback port, for ``async with``; keeps its objects while it is down.

    Attributes:
        kinds: what it serves.
        calls: verb and plural of every request that it has taken, in order.
        known_token: any other one is answered with 401.
    """

    def __init__(self) -> None:
        self.kinds = dict(KINDS)
        self.calls: list[tuple[str, str]] = []
        self.known_token = TOKEN
        self.version = 1000
        self._objects: dict[tuple[Kind, str, str], Json] = {}
        self._history: list[Change] = []
        self._oldest = 0
        self._denied: set[tuple[str, str]] = set()
        self._watchers: set[Watcher] = set()
        self._runner: web.AppRunner | None = None
        self._port = 0

    async def __aenter__(self) -> FakeKubernetes:
        await self.up()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.down()

    @property
    def url(self) -> str:
        """``http://127.0.0.1:PORT``."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def watches(self) -> int:
        """How many are on."""
        return len(self._watchers)

    async def up(self) -> None:
        """Listens, after ``down`` on the same port."""
        app = web.Application(client_max_size=16 * 1024**2)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=0.01
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def down(self) -> None:
        """Refuses connections, and breaks those there are; may be called again."""
        runner, self._runner = self._runner, None
        if runner is not None:
            assert runner.server is not None
            for connection in runner.server.connections:
                connection.force_close()
            self.drop_watches()
            await runner.cleanup()

    def kubeconfig(self, folder: Path, *, namespace: str = "", token: str = TOKEN) -> Path:
        """Writes a kubeconfig file for it."""
        path = folder / "kubeconfig"
        context = {"cluster": "fake", "user": "fake"}
        if namespace:
            context["namespace"] = namespace
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
            "users": [{"name": "fake", "user": {"token": token}}],
            "contexts": [{"name": "fake", "context": context}],
        }
        path.write_text(json.dumps(config), "utf-8")
        return path

    # What tests do to it, as an operator or an accident would.

    def get(self, plural: str, namespace: str, name: str) -> Json | None:
        """A copy of an object."""
        return copy.deepcopy(self._objects.get((self._kind(plural), namespace, name)))

    def all(self, plural: str, namespace: str) -> list[Json]:
        """Copies of all of a kind."""
        return [copy.deepcopy(found) for found in self._select(self._kind(plural), namespace)]

    def put(self, plural: str, namespace: str, name: str, content: Json) -> Json:
        """Creates an object, or puts ``content`` in the place of all but its metadata."""
        kind = self._kind(plural)
        before = self._objects.get((kind, namespace, name))
        metadata = before["metadata"] if before else {"name": name, "namespace": namespace}
        return self._store(kind, {**copy.deepcopy(content), "metadata": {**metadata}})

    def delete(self, plural: str, namespace: str, name: str) -> None:
        """Deletes an object, which must be there."""
        self._delete(self._kind(plural), namespace, name)

    def deny(self, verb: str, plural: str) -> None:
        """403 for it from now on; subresources are ``plural/sub``."""
        self._denied.add((verb, plural))

    def allow(self, verb: str, plural: str) -> None:
        """Takes a ``deny`` back."""
        self._denied.discard((verb, plural))

    def compact(self) -> None:
        """Forgets the history: no watch can begin at a version before this one."""
        self._history.clear()
        self._oldest = self.version

    def drop_watches(self) -> None:
        """Ends all watches, as a load balancer does."""
        for watcher in self._watchers:
            watcher.queue.put_nowait(None)

    def expire_watches(self) -> None:
        """Ends all watches with an ERROR event of 410, as a server does that fell behind."""
        gone = Refused(410, "Expired", "too old resource version")
        for watcher in self._watchers:
            watcher.queue.put_nowait(("ERROR", gone.body))
            watcher.queue.put_nowait(None)

    def bookmark(self) -> None:
        """Tells the current version to all watches that asked for bookmarks."""
        for watcher in self._watchers:
            if watcher.bookmarks:
                watcher.queue.put_nowait(("BOOKMARK", self._bookmark(watcher.kind)))

    # Storage.

    def _kind(self, plural: str) -> Kind:
        return next(kind for kind in self.kinds if kind[2] == plural)

    def _api_version(self, kind: Kind) -> str:
        return f"{kind[0]}/{kind[1]}" if kind[0] else kind[1]

    def _bookmark(self, kind: Kind) -> Json:
        return {
            "apiVersion": self._api_version(kind),
            "kind": self.kinds[kind],
            "metadata": {"resourceVersion": str(self.version)},
        }

    def _store(self, kind: Kind, found: Json) -> Json:
        metadata = found["metadata"]
        key = (kind, metadata["namespace"], metadata["name"])
        before = self._objects.get(key)
        metadata.setdefault("uid", secrets.token_hex(8))
        found = {**found, "apiVersion": self._api_version(kind), "kind": self.kinds[kind]}
        if before is not None and _plain(found) == _plain(before):
            return copy.deepcopy(before)
        self._objects[key] = self._note(kind, "MODIFIED" if before else "ADDED", found)
        return copy.deepcopy(found)

    def _delete(self, kind: Kind, namespace: str, name: str) -> Json:
        return self._note(kind, "DELETED", self._objects.pop((kind, namespace, name)))

    def _note(self, kind: Kind, type_: str, found: Json) -> Json:
        self.version += 1
        found["metadata"]["resourceVersion"] = str(self.version)
        change = Change(self.version, kind, type_, copy.deepcopy(found))
        self._history.append(change)
        for watcher in self._watchers:
            if _watched(watcher, change):
                watcher.queue.put_nowait((change.type, change.found))
        return found

    def _select(
        self, kind: Kind, namespace: str, selectors: tuple[str, str] = ("", "")
    ) -> Iterator[Json]:
        for (of, lies_in, _), found in sorted(self._objects.items(), key=lambda item: item[0]):
            if of == kind and namespace in ("", lies_in) and _selected(found, selectors):
                yield found

    # HTTP.

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        try:
            if request.headers.get("Authorization") != f"Bearer {self.known_token}":
                raise Refused(401, "Unauthorized", "Unauthorized")
            target = self._target(request.path)
            verb = self._verb(request, target)
            self.calls.append((verb, target.kind[2]))
            if (verb, target.kind[2]) in self._denied:
                raise Refused(
                    403,
                    "Forbidden",
                    f'{target.kind[2]} is forbidden: User "fake" cannot {verb} resource '
                    f'"{target.kind[2]}" in the namespace "{target.namespace}"',
                )
            if verb == "watch":
                return await self._watch(request, target)
            if verb in ("get", "list"):
                return web.json_response(self._read(request, target))
            body = {} if verb == "delete" else json.loads(await request.read())
            code, found = self._write(request, verb, target, body)
            return web.json_response(found, status=code)
        except Refused as refused:
            return web.json_response(refused.body, status=refused.code)

    def _target(self, path: str) -> Target:
        parts = path.strip("/").split("/")
        if parts[0] == "api":
            group, version, rest = "", parts[1], parts[2:]
        else:
            group, version, rest = parts[1], parts[2], parts[3:]
        namespace = ""
        if len(rest) > 2 and rest[0] == "namespaces":
            namespace, rest = rest[1], rest[2:]
        kind = (group, version, rest[0])
        if kind not in self.kinds or len(rest) > 2:
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        return Target(kind, namespace, rest[1] if len(rest) > 1 else "")

    def _verb(self, request: web.Request, target: Target) -> str:
        if request.method == "GET":
            if request.query.get("watch") in ("true", "1"):
                return "watch"
            return "get" if target.name else "list"
        return {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[
            request.method
        ]

    def _there(self, target: Target) -> Json:
        found = self._objects.get((target.kind, target.namespace, target.name))
        if found is None:
            raise Refused(404, "NotFound", f'{target.kind[2]} "{target.name}" not found')
        return found

    def _read(self, request: web.Request, target: Target) -> Json:
        if target.name:
            return self._there(target)
        items = list(self._select(target.kind, target.namespace, _selectors(request)))
        return {
            "apiVersion": self._api_version(target.kind),
            "kind": f"{self.kinds[target.kind]}List",
            "metadata": {"resourceVersion": str(self.version)},
            "items": items,
        }

    def _write(
        self, request: web.Request, verb: str, target: Target, body: Json
    ) -> tuple[int, Json]:
        kind, namespace = target.kind, target.namespace
        if verb == "delete":
            self._there(target)
            return 200, self._delete(kind, namespace, target.name)
        metadata = body.setdefault("metadata", {})
        if verb == "create":
            if "name" not in metadata and "generateName" in metadata:
                metadata["name"] = metadata["generateName"] + secrets.token_hex(3)[:5]
            name = metadata["name"]
            if (kind, namespace, name) in self._objects:
                raise Refused(409, "AlreadyExists", f'{kind[2]} "{name}" already exists')
            metadata["namespace"] = namespace
            return 201, self._store(kind, body)
        applied = request.content_type == "application/apply-patch+yaml"
        if applied:
            if not request.query.get("fieldManager"):
                raise Refused(400, "BadRequest", "fieldManager is required for apply patch")
            if (kind, namespace, target.name) not in self._objects:
                metadata |= {"name": target.name, "namespace": namespace}
                return 201, self._store(kind, body)
        before = self._there(target)
        stated = metadata.get("resourceVersion")
        if stated and stated != before["metadata"]["resourceVersion"]:
            raise Refused(
                409, "Conflict", "the object has been modified; please apply your changes"
            )
        if verb == "update":
            kept = {**before["metadata"], **metadata}
            return 200, self._store(kind, {**body, "metadata": kept})
        if not applied and request.content_type not in (
            "application/merge-patch+json",
            "application/strategic-merge-patch+json",
        ):
            raise Refused(415, "UnsupportedMediaType", request.content_type)
        return 200, self._store(kind, _merged(before, body))

    async def _watch(self, request: web.Request, target: Target) -> web.StreamResponse:
        selectors = _selectors(request)
        if target.name:
            selectors = (f"metadata.name={target.name}", selectors[1])
        begin = request.query.get("resourceVersion", "")
        bookmarks = request.query.get("allowWatchBookmarks") in ("true", "1")
        watcher = Watcher(target.kind, target.namespace, selectors, bookmarks)
        if begin in ("", "0"):
            for found in self._select(target.kind, target.namespace, selectors):
                watcher.queue.put_nowait(("ADDED", copy.deepcopy(found)))
        else:
            if int(begin) < self._oldest:
                raise Refused(410, "Expired", f"too old resource version: {begin}")
            for change in self._history:
                if change.version > int(begin) and _watched(watcher, change):
                    watcher.queue.put_nowait((change.type, change.found))
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        self._watchers.add(watcher)
        try:
            await response.prepare(request)
            async with asyncio.timeout(float(request.query.get("timeoutSeconds", "300"))):
                while (event := await watcher.queue.get()) is not None:
                    line = json.dumps({"type": event[0], "object": event[1]}) + "\n"
                    await response.write(line.encode())
        except (TimeoutError, ConnectionResetError):
            pass
        finally:
            self._watchers.discard(watcher)
        return response


def _selectors(request: web.Request) -> tuple[str, str]:
    return request.query.get("fieldSelector", ""), request.query.get("labelSelector", "")


def _selected(found: Json, selectors: tuple[str, str]) -> bool:
    """Whether an object fits both selectors; of theirs, ``a=b`` and ``a!=b`` with commas."""
    labels = found["metadata"].get("labels") or {}
    for number, selector in enumerate(selectors):
        for term in filter(None, selector.split(",")):
            path, _, wanted = term.replace("==", "=").partition("=")
            wrong = path.endswith("!")
            path = path.rstrip("!")
            if number:
                value = labels.get(path)
            else:
                value = found
                for part in path.split("."):
                    value = value.get(part, "") if isinstance(value, dict) else ""
            if (value == wanted) is wrong:
                return False
    return True


def _watched(watcher: Watcher, change: Change) -> bool:
    return (
        change.kind == watcher.kind
        and watcher.namespace in ("", change.found["metadata"]["namespace"])
        and _selected(change.found, watcher.selectors)
    )


def _merged(before: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    result = dict(before) if isinstance(before, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merged(result.get(key), value)
    return result


def _plain(found: Json) -> Json:
    """Without its version: a write that changes nothing makes no new one."""
    kept = {key: value for key, value in found["metadata"].items() if key != "resourceVersion"}
    return {**found, "metadata": kept}

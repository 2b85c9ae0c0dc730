"""Requests for one kind: options in their queries, reads, writes and watches."""

from __future__ import annotations

import asyncio
import copy
import json
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from tests.fakes.kubernetes import scaling
from tests.fakes.kubernetes.access import NOBODY
from tests.fakes.kubernetes.errors import Refused, bad_request
from tests.fakes.kubernetes.kinds import Row
from tests.fakes.kubernetes.patches import APPLY
from tests.fakes.kubernetes.paths import TRUE, Target
from tests.fakes.kubernetes.selectors import Selection, Term, selection
from tests.fakes.kubernetes.storage import Storage, Watcher
from tests.fakes.kubernetes.writing import Options, Writing

Json = dict[str, Any]

MAX_WATCH_S = 1800.0


@dataclass(frozen=True)
class Asked:
    """How a write was asked for, and whether it is an apply."""

    options: Options
    applied: bool


def options_of(request: web.Request) -> Asked:
    """Out of the query and the headers.

    Raises:
        Refused: 422, they do not go together.
    """
    query = request.query
    applied = request.content_type == APPLY
    manager = query.get("fieldManager", "")
    kind = "PatchOptions" if request.method == "PATCH" else "Options"
    problem = ""
    if applied and not manager:
        problem = "fieldManager: Required value: is required for apply patch"
    elif request.method == "PATCH" and query.get("force") and not applied:
        problem = "force: Forbidden: may not be specified for non-apply patch"
    elif (dry := query.get("dryRun", "All")) != "All":
        problem = f'dryRun: Unsupported value: "{dry}": supported values: "All"'
    if problem:
        raise Refused(422, "Invalid", f'{kind}.meta.k8s.io "" is invalid: {problem}')
    agent = request.headers.get("User-Agent", "unknown").partition("/")[0]
    return Asked(
        Options(
            manager or agent,
            dry="dryRun" in query,
            force=query.get("force") in TRUE,
            strict=query.get("fieldValidation") == "Strict",
        ),
        applied,
    )


def answer(
    writing: Writing, request: web.Request, verb: str, target: Target, body: Any
) -> tuple[int, Json]:
    """The status and the object for anything but a watch.

    Raises:
        Refused: as a server refuses it.
    """
    row, namespace, name, part = target.row, target.namespace, target.name, target.part
    storage = writing.storage
    if verb == "get":
        found = storage.there(row, namespace, name)
        return 200, scaling.scale_of(row, found) if part == "scale" else found
    if verb == "list":
        return 200, _list(storage, request, target)
    options = options_of(request).options
    if part == "token":
        storage.there(row, namespace, name)
        return 201, _token(body)
    if verb == "create":
        return 201, writing.create(row, namespace, body, options)
    if verb == "update":
        return writing.update(row, namespace, name, part, body, options)
    if verb == "patch":
        return writing.patch(row, namespace, name, part, body, request.content_type, options)
    wanted: Json = dict(body or {})
    if "propagationPolicy" in request.query:
        wanted["propagationPolicy"] = request.query["propagationPolicy"]
    dry = options.dry or bool(wanted.get("dryRun"))
    if verb == "delete":
        return 200, writing.deleting.delete(row, namespace, name, wanted, dry=dry)
    chosen = list(storage.select(row, namespace, selection(row.plural, request.query)))
    wanted.pop("preconditions", None)
    for one in chosen:
        # One of them may have gone with another that owned it.
        if storage.find(row, namespace, one["metadata"]["name"]) is not None:
            lies_in = one["metadata"].get("namespace", "")
            writing.deleting.delete(row, lies_in, one["metadata"]["name"], wanted, dry=dry)
    return 200, _listed(row, chosen, {"resourceVersion": str(storage.version)})


def _token(body: Json) -> Json:
    """Of a service account: all of them may do nothing here, as new ones may in a real cluster."""
    return {
        "kind": "TokenRequest",
        "apiVersion": "authentication.k8s.io/v1",
        "metadata": {},
        "spec": (body or {}).get("spec") or {},
        "status": {"token": NOBODY, "expirationTimestamp": "2099-01-01T00:00:00Z"},
    }


def _list(storage: Storage, request: web.Request, target: Target) -> Json:
    limit = _number(request, "limit")
    query = request.query
    if token := query.get("continue", ""):
        items, left, version = storage.next_page(token, limit)
    else:
        chosen = selection(target.row.plural, query)
        everything = list(storage.select(target.row, target.namespace, chosen))
        items, left = storage.page(everything, limit)
        version = str(storage.version)
    metadata: Json = {"resourceVersion": version}
    if left:
        metadata["continue"] = left
    return _listed(target.row, items, metadata)


def _listed(row: Row, items: list[Json], metadata: Json) -> Json:
    """A list; of built-in kinds, its items do not say what they are."""
    if not row.custom:
        items = [
            {key: value for key, value in item.items() if key not in ("apiVersion", "kind")}
            for item in items
        ]
    return {
        "apiVersion": row.api_version,
        "kind": f"{row.kind}List",
        "metadata": metadata,
        "items": items,
    }


def _number(request: web.Request, key: str, default: int = 0) -> int:
    try:
        return int(request.query.get(key) or default)
    except ValueError as error:
        raise bad_request(f"{key}: {error}") from error


async def watch(storage: Storage, request: web.Request, target: Target) -> web.StreamResponse:
    """Tells changes until the time is up or the watch is ended. What is too old to begin at is told
    by an event, with 200 before it.

    Raises:
        Refused: 400 or 422, it cannot be read.
    """
    query = request.query
    chosen = selection(target.row.plural, query)
    if target.name:
        only = Term("metadata.name", frozenset({target.name}))
        chosen = Selection((*chosen.fields, only), chosen.labels)
    bookmarks = query.get("allowWatchBookmarks") in TRUE
    initial = query.get("sendInitialEvents") in TRUE
    if initial and (query.get("resourceVersionMatch") != "NotOlderThan" or not bookmarks):
        raise Refused(
            422,
            "Invalid",
            'ListOptions.meta.k8s.io "" is invalid: resourceVersionMatch: Forbidden: '
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        )
    begin = _number(request, "resourceVersion")
    watcher = Watcher(target.row, target.namespace, chosen, bookmarks)
    try:
        if initial or begin == 0:
            for found in storage.select(target.row, target.namespace, chosen):
                watcher.queue.put_nowait(("ADDED", copy.deepcopy(found)))
            if initial:
                watcher.queue.put_nowait(storage.bookmark(target.row, initial=True))
        else:
            storage.replay(watcher, begin)
    except Refused as refused:
        watcher.queue.put_nowait(("ERROR", refused.body))
        watcher.queue.put_nowait(None)
    seconds = min(_number(request, "timeoutSeconds", 300), MAX_WATCH_S)
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    storage.watchers.add(watcher)
    try:
        await response.prepare(request)
        async with asyncio.timeout(seconds):
            while (event := await watcher.queue.get()) is not None:
                line = json.dumps({"type": event[0], "object": event[1]}) + "\n"
                await response.write(line.encode())
    except (TimeoutError, ConnectionResetError):
        pass
    finally:
        storage.watchers.discard(watcher)
    return response

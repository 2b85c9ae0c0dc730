"""Small objects that the suite writes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from baton.kube import OPEN, KubeApi, Query

Json = dict[str, Any]

MERGE = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
APPLY = "application/apply-patch+yaml"

WAIT_S = 20.0
"""For what a watch is to tell; a real server may be far away."""


def config_map(name: str, **data: str) -> Json:
    """One with so many keys."""
    head = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}
    return {**head, "data": data}


def labelled(name: str, **labels: str) -> Json:
    """A ConfigMap with labels."""
    body = config_map(name)
    body["metadata"]["labels"] = labels
    return body


def lws(name: str, *, image: str = "registry.example/worker:1", **spec: Any) -> Json:
    """A small LeaderWorkerSet."""
    template = {"spec": {"containers": [{"name": "worker", "image": image}]}}
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": {"name": name},
        "spec": {"leaderWorkerTemplate": {"workerTemplate": template}, **spec},
    }


def names(found: Json) -> list[str]:
    """Of a list's items."""
    return [item["metadata"]["name"] for item in found["items"]]


async def watched(
    api: KubeApi, path: str, query: Query, enough: Callable[[list[tuple[str, Json]]], object]
) -> list[tuple[str, Json]]:
    """What a watch tells until that is enough, without its first event, which says that it is on.

    Raises:
        TimeoutError: it was not enough in time.
    """
    events: list[tuple[str, Json]] = []
    async with asyncio.timeout(WAIT_S):
        async with aclosing(api.watch(path, query, watch_s=WAIT_S)) as told:
            async for kind, found in told:
                if kind != OPEN:
                    events.append((kind, found))
                if enough(events):
                    break
    return events

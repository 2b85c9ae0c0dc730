"""What a watch tells, and what it does not."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from baton.kube import OPEN
from tests.cluster.conftest import Cluster
from tests.cluster.objects import MERGE, labelled, lws, watched


def kinds(events: list[tuple[str, dict[str, object]]]) -> list[str]:
    return [kind for kind, _ in events]


async def test_from_a_list_on(cluster: Cluster) -> None:
    """Every change after it, in order, with versions to go on from."""
    version = (await cluster.must("GET", cluster.lws()))["metadata"]["resourceVersion"]
    await cluster.must("POST", cluster.lws(), body=lws("a"))
    body = {"spec": {"replicas": 2}}
    await cluster.must("PATCH", cluster.lws("a"), body=body, content_type=MERGE)
    await cluster.must("DELETE", cluster.lws("a"))
    query = [("resourceVersion", version)]
    events = await watched(cluster.api, cluster.lws(), query, lambda told: len(told) == 3)
    assert kinds(events) == ["ADDED", "MODIFIED", "DELETED"]
    assert all(found["kind"] == "LeaderWorkerSet" for _, found in events)
    assert events[2][1]["spec"]["replicas"] == 2
    versions = [found["metadata"]["resourceVersion"] for _, found in events]
    assert len({version, *versions}) == 4
    query = [("resourceVersion", versions[0])]
    again = await watched(cluster.api, cluster.lws(), query, lambda told: len(told) == 2)
    assert again == events[1:]


async def test_built_in_kinds(cluster: Cluster) -> None:
    """Say what they are in a watch, unlike in a list."""
    path = cluster.path("configmaps")
    await cluster.must("POST", path, body=labelled("a", x="y"))
    query = [("fieldSelector", "metadata.name=a")]
    ((kind, found),) = await watched(cluster.api, path, query, lambda told: len(told) == 1)
    assert (kind, found["kind"], found["apiVersion"]) == ("ADDED", "ConfigMap", "v1")


async def test_a_selector(cluster: Cluster) -> None:
    """What leaves the selection is deleted, what enters it is added."""
    path = cluster.path("configmaps")
    version = (await cluster.must("GET", path))["metadata"]["resourceVersion"]
    await cluster.must("POST", path, body=labelled("a", color="red"))
    await cluster.must("POST", path, body=labelled("b", color="blue"))
    for color in ("blue", "red"):
        body = {"metadata": {"labels": {"color": color}}}
        await cluster.must("PATCH", f"{path}/a", body=body, content_type=MERGE)
    query = [("labelSelector", "color=red"), ("resourceVersion", version)]
    events = await watched(cluster.api, path, query, lambda told: len(told) == 3)
    assert kinds(events) == ["ADDED", "DELETED", "ADDED"]
    assert {found["metadata"]["name"] for _, found in events} == {"a"}


async def test_while_it_is_on(cluster: Cluster) -> None:
    """A change is told at once."""
    version = (await cluster.must("GET", cluster.lws()))["metadata"]["resourceVersion"]
    query = [("resourceVersion", version)]
    async with asyncio.timeout(20):
        async with aclosing(cluster.api.watch(cluster.lws(), query, watch_s=20)) as events:
            assert (await anext(events))[0] == OPEN
            await cluster.must("POST", cluster.lws(), body=lws("a"))
            kind, found = await anext(events)
            assert (kind, found["metadata"]["name"]) == ("ADDED", "a")


async def test_its_end(cluster: Cluster) -> None:
    """Comes after its seconds, without an error."""
    query = [("resourceVersion", "0")]
    async with asyncio.timeout(20):
        async with aclosing(cluster.api.watch(cluster.lws(), query, watch_s=1)) as events:
            assert [kind async for kind, _ in events] == [OPEN]


async def test_a_version_that_is_forgotten(cluster: Cluster) -> None:
    """Is 410, told by an event."""
    query = [("resourceVersion", "1")]
    ((kind, found),) = await watched(cluster.api, cluster.lws(), query, lambda told: told)
    assert kind == "ERROR"
    assert (found["code"], found["reason"]) == (410, "Expired")

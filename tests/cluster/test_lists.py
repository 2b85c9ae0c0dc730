"""What is found: selectors, and lists that are read page by page."""

from __future__ import annotations

import pytest

from tests.cluster.conftest import Cluster
from tests.cluster.objects import config_map, labelled, lws, names

COLORS = {"a": {"color": "red", "size": "1"}, "b": {"color": "blue"}, "c": {"size": "2"}}


async def paint(cluster: Cluster) -> None:
    for name, labels in COLORS.items():
        await cluster.must("POST", cluster.path("configmaps"), body=labelled(name, **labels))


@pytest.mark.parametrize(
    ("selector", "wanted"),
    [
        ("color=red", "a"),
        ("color==red", "a"),
        ("color!=red", "bc"),
        ("color", "ab"),
        ("!color", "c"),
        ("color in (red, blue)", "ab"),
        ("color notin (red),size", "c"),
        ("color in (red,blue),size=1", "a"),
        ("size", "ac"),
    ],
)
async def test_label_selectors(selector: str, wanted: str, cluster: Cluster) -> None:
    """Choose; what has no such label differs from any value."""
    await paint(cluster)
    query = (("labelSelector", selector),)
    found = names(await cluster.must("GET", cluster.path("configmaps"), query=query))
    # Where controllers run, a namespace has a ConfigMap of its own.
    assert [name for name in found if name in COLORS] == list(wanted)


async def test_field_selectors(cluster: Cluster) -> None:
    """Of a name and a namespace for all kinds; of anything else it is refused."""
    await paint(cluster)
    path = cluster.path("configmaps")
    query = (("fieldSelector", "metadata.name=b"),)
    assert names(await cluster.must("GET", path, query=query)) == ["b"]
    query = (("fieldSelector", f"metadata.name=a,metadata.namespace={cluster.namespace}"),)
    assert names(await cluster.must("GET", "/api/v1/configmaps", query=query)) == ["a"]
    query = (("fieldSelector", "spec.replicas=1"),)
    status, found = await cluster.api.call("GET", cluster.lws(), query=query)
    assert (status, found["reason"]) == (400, "BadRequest")
    assert "field label not supported: spec.replicas" in found["message"]


async def test_a_selector_that_is_none(cluster: Cluster) -> None:
    """Is refused."""
    query = (("labelSelector", "color in red"),)
    status, found = await cluster.api.call("GET", cluster.path("configmaps"), query=query)
    assert (status, found["reason"]) == (400, "BadRequest")


async def test_items_of_lists(cluster: Cluster) -> None:
    """Say what they are if their kind is a custom one; the others do not."""
    await cluster.must("POST", cluster.lws(), body=lws("a"))
    await cluster.must("POST", cluster.path("configmaps"), body=config_map("a"))
    found = await cluster.must("GET", cluster.lws())
    assert found["kind"] == "LeaderWorkerSetList"
    assert found["metadata"]["resourceVersion"]
    assert found["items"][0]["kind"] == "LeaderWorkerSet"
    found = await cluster.must("GET", cluster.path("configmaps"))
    assert found["kind"] == "ConfigMapList"
    assert "kind" not in found["items"][0]


async def test_pages(cluster: Cluster) -> None:
    """Together are the list as it was when it was begun."""
    for number in range(5):
        await cluster.must("POST", cluster.lws(), body=lws(f"a{number}"))
    found = await cluster.must("GET", cluster.lws(), query=(("limit", "2"),))
    version = found["metadata"]["resourceVersion"]
    pages = [names(found)]
    await cluster.must("POST", cluster.lws(), body=lws("a9"))
    while token := found["metadata"].get("continue"):
        query = (("limit", "2"), ("continue", token))
        found = await cluster.must("GET", cluster.lws(), query=query)
        assert found["metadata"]["resourceVersion"] == version
        pages.append(names(found))
    assert pages == [["a0", "a1"], ["a2", "a3"], ["a4"]]

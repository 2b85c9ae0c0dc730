"""Server-side apply: whose field is which."""

from __future__ import annotations

from typing import Any

from tests.cluster.conftest import Cluster, Json
from tests.cluster.objects import APPLY, MERGE, config_map, lws


async def apply(
    cluster: Cluster, path: str, body: Json, manager: str, **query: str
) -> tuple[int, Json]:
    """What came of it."""
    asked = [("fieldManager", manager), *query.items()]
    return await cluster.api.call("PATCH", path, body=body, query=asked, content_type=APPLY)


def managers(found: Json) -> list[tuple[str, str]]:
    """Who has a field of it, and by which operation."""
    entries = found["metadata"]["managedFields"]
    return sorted((entry["manager"], entry["operation"]) for entry in entries)


def fields(found: Json, manager: str, operation: str = "Apply") -> Any:
    """What is whose."""
    (entry,) = [
        entry
        for entry in found["metadata"]["managedFields"]
        if (entry["manager"], entry["operation"]) == (manager, operation)
    ]
    return entry["fieldsV1"]


async def test_it_creates_and_changes(cluster: Cluster) -> None:
    """The same twice changes nothing."""
    path = cluster.path("configmaps", "a")
    status, first = await apply(cluster, path, config_map("a", x="1"), "alice")
    assert status == 201
    assert managers(first) == [("alice", "Apply")]
    assert fields(first, "alice")["f:data"]["f:x"] == {}
    status, second = await apply(cluster, path, config_map("a", x="1"), "alice")
    assert status == 200
    assert second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    status, third = await apply(cluster, path, config_map("a", x="2"), "alice")
    assert (status, third["data"]) == (200, {"x": "2"})


async def test_fields_that_are_given_up(cluster: Cluster) -> None:
    """Go, unless somebody else has them too."""
    path = cluster.path("configmaps", "a")
    await apply(cluster, path, config_map("a", x="1", y="2", z="3"), "alice")
    status, found = await apply(cluster, path, config_map("a", x="1", w="4"), "bob")
    assert status == 200
    assert found["data"] == {"x": "1", "y": "2", "z": "3", "w": "4"}
    _, found = await apply(cluster, path, config_map("a", y="2"), "alice")
    assert found["data"] == {"x": "1", "y": "2", "w": "4"}


async def test_a_conflict(cluster: Cluster) -> None:
    """Names the other manager and the field, and changes nothing."""
    path = cluster.path("configmaps", "a")
    await apply(cluster, path, config_map("a", x="1", y="2"), "alice")
    status, found = await apply(cluster, path, config_map("a", x="9", z="3"), "bob")
    assert (status, found["reason"]) == (409, "Conflict")
    assert found["details"]["causes"] == [
        {"reason": "FieldManagerConflict", "message": 'conflict with "alice"', "field": ".data.x"}
    ]
    assert "Apply failed with 1 conflict" in found["message"]
    assert (await cluster.must("GET", path))["data"] == {"x": "1", "y": "2"}


async def test_force(cluster: Cluster) -> None:
    """Takes the field; who had it can lose it without a word, and gets a conflict later."""
    path = cluster.path("configmaps", "a")
    await apply(cluster, path, config_map("a", x="1", y="2"), "alice")
    status, found = await apply(cluster, path, config_map("a", x="9"), "bob", force="true")
    assert (status, found["data"]) == (200, {"x": "9", "y": "2"})
    assert "f:x" not in fields(found, "alice")["f:data"]
    status, found = await apply(cluster, path, config_map("a", x="1", y="2"), "alice")
    assert (status, found["reason"]) == (409, "Conflict")


async def test_other_writes_take_fields(cluster: Cluster) -> None:
    """A patch by somebody else owns what it changed, and nothing that it left as it was."""
    path = cluster.path("configmaps", "a")
    await apply(cluster, path, config_map("a", x="1", y="2"), "alice")
    body = {"data": {"x": "5", "y": "2"}}
    query = (("fieldManager", "carol"),)
    found = await cluster.must("PATCH", path, body=body, query=query, content_type=MERGE)
    assert managers(found) == [("alice", "Apply"), ("carol", "Update")]
    assert fields(found, "carol", "Update") == {"f:data": {"f:x": {}}}
    assert set(fields(found, "alice")["f:data"]) - {"."} == {"f:y"}
    status, found = await apply(cluster, path, config_map("a", x="1", y="2"), "alice")
    assert status == 409
    assert found["details"]["causes"][0]["message"] == 'conflict with "carol" using v1'


async def test_replicas_are_left_to_another(cluster: Cluster) -> None:
    """Who applies without replicas does not undo a scale, nor owns it."""
    await apply(cluster, cluster.lws("a"), lws("a"), "alice")
    await cluster.play_lws("a", ready=1)
    body = {"spec": {"replicas": 3}}
    query = (("fieldManager", "scaler"),)
    await cluster.must("PATCH", cluster.lws("a/scale"), body=body, query=query, content_type=MERGE)
    status, found = await apply(
        cluster, cluster.lws("a"), lws("a", startupPolicy="LeaderReady"), "alice"
    )
    assert (status, found["spec"]["replicas"]) == (200, 3)
    assert found["spec"]["startupPolicy"] == "LeaderReady"
    assert found["status"]["readyReplicas"] == 1
    status, found = await apply(cluster, cluster.lws("a"), lws("a", replicas=1), "alice")
    assert status == 409
    (cause,) = found["details"]["causes"]
    assert cause["field"] == ".spec.replicas"
    assert '"scaler" with subresource "scale"' in cause["message"]


async def test_replicas_that_are_given_up(cluster: Cluster) -> None:
    """Fall back to their default if nobody else has them: whoever hands over to an autoscaler
    has to share them first."""
    await apply(cluster, cluster.lws("a"), lws("a", replicas=4), "alice")
    _, found = await apply(cluster, cluster.lws("a"), lws("a"), "alice")
    assert found["spec"]["replicas"] == 1
    await apply(cluster, cluster.lws("b"), lws("b", replicas=4), "alice")
    share = {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": {"name": "b"},
        "spec": {"replicas": 4},
    }
    status, _ = await apply(cluster, cluster.lws("b"), share, "scaler")
    assert status == 200
    _, found = await apply(cluster, cluster.lws("b"), lws("b"), "alice")
    assert found["spec"]["replicas"] == 4


async def test_entries_of_lists(cluster: Cluster) -> None:
    """Containers and their variables are told apart by name: each manager has its own."""
    first = lws("a")
    worker = first["spec"]["leaderWorkerTemplate"]["workerTemplate"]["spec"]
    worker["containers"][0]["env"] = [{"name": "A", "value": "1"}]
    await apply(cluster, cluster.lws("a"), first, "alice")
    second = lws("a")
    worker = second["spec"]["leaderWorkerTemplate"]["workerTemplate"]["spec"]
    worker["containers"] = [
        {"name": "worker", "env": [{"name": "B", "value": "2"}]},
        {"name": "extra", "image": "registry.example/extra:1"},
    ]
    status, found = await apply(cluster, cluster.lws("a"), second, "bob")
    assert status == 200
    containers = found["spec"]["leaderWorkerTemplate"]["workerTemplate"]["spec"]["containers"]
    assert [container["name"] for container in containers] == ["worker", "extra"]
    assert containers[0]["image"] == "registry.example/worker:1"
    assert {entry["name"]: entry["value"] for entry in containers[0]["env"]} == {"A": "1", "B": "2"}
    worker["containers"] = worker["containers"][:1]
    _, found = await apply(cluster, cluster.lws("a"), second, "bob")
    containers = found["spec"]["leaderWorkerTemplate"]["workerTemplate"]["spec"]["containers"]
    assert [container["name"] for container in containers] == ["worker"]
    _, found = await apply(cluster, cluster.lws("a"), lws("a", image="x:2"), "bob")
    assert found["details"]["causes"][0]["field"].endswith('.containers[name="worker"].image')


async def test_finalizers(cluster: Cluster) -> None:
    """Are a set: each manager has its own in it."""
    path = cluster.path("configmaps", "a")
    body = config_map("a")
    for manager in ("alice", "bob"):
        body["metadata"]["finalizers"] = [f"baton.serving/{manager}"]
        _, found = await apply(cluster, path, body, manager)
    assert set(found["metadata"]["finalizers"]) == {"baton.serving/alice", "baton.serving/bob"}
    for manager, left in (("bob", ["baton.serving/alice"]), ("alice", [])):
        _, found = await apply(cluster, path, config_map("a"), manager)
        assert found["metadata"].get("finalizers", []) == left


async def test_what_is_missing(cluster: Cluster) -> None:
    """A manager, a kind and a version have to be said; owners may not be."""
    path = cluster.path("configmaps", "a")
    status, found = await cluster.api.call("PATCH", path, body=config_map("a"), content_type=APPLY)
    assert (status, found["reason"]) == (422, "Invalid")
    assert "fieldManager: Required value" in found["message"]
    status, _ = await apply(cluster, path, {"data": {"x": "1"}}, "alice")
    assert status == 400
    body = config_map("a")
    body["metadata"]["managedFields"] = [{"manager": "bob", "operation": "Apply"}]
    status, found = await apply(cluster, path, body, "alice")
    assert status == 400
    assert "managedFields must be nil" in found["message"]
    status, _ = await apply(cluster, path, config_map("b"), "alice")
    assert status == 400


async def test_a_dry_apply(cluster: Cluster) -> None:
    """Tells what would be, conflicts too."""
    path = cluster.path("configmaps", "a")
    status, found = await apply(cluster, path, config_map("a", x="1"), "alice", dryRun="All")
    assert (status, found["data"]) == (201, {"x": "1"})
    assert (await cluster.api.call("GET", path))[0] == 404
    await apply(cluster, path, config_map("a", x="1"), "alice")
    status, found = await apply(cluster, path, config_map("a", x="2"), "alice", dryRun="All")
    assert (status, found["data"]) == (200, {"x": "2"})
    status, _ = await apply(cluster, path, config_map("a", x="3"), "bob", dryRun="All")
    assert status == 409
    assert (await cluster.must("GET", path))["data"] == {"x": "1"}


async def test_a_status_is_applied(cluster: Cluster) -> None:
    """Where it belongs, and by owners of its own."""
    await apply(cluster, cluster.lws("a"), {**lws("a"), "status": {"replicas": 7}}, "alice")
    found = await cluster.must("GET", cluster.lws("a"))
    assert "replicas" not in found.get("status", {})
    body = {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": {"name": "a"},
        "status": {"replicas": 1},
    }
    status, found = await apply(cluster, cluster.lws("a/status"), body, "player")
    assert status == 200
    assert found["status"]["replicas"] == 1
    assert fields(found, "player") == {"f:status": {"f:replicas": {}}}
    status, found = await apply(cluster, cluster.lws("a"), lws("a", replicas=2), "alice")
    assert (status, found["status"]["replicas"]) == (200, 1)

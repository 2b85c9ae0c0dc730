"""What is created, changed and deleted, and how it is refused."""

from __future__ import annotations

from tests.cluster.conftest import Cluster, Json
from tests.cluster.objects import JSON_PATCH, MERGE, STRATEGIC, config_map, labelled, lws, names


async def test_an_object(cluster: Cluster) -> None:
    """Gets an identity and a version; its name is taken then."""
    made = await cluster.must("POST", cluster.path("configmaps"), body=config_map("a", x="1"))
    metadata = made["metadata"]
    assert metadata["namespace"] == cluster.namespace
    assert metadata["uid"]
    assert metadata["resourceVersion"]
    assert metadata["creationTimestamp"].endswith("Z")
    assert await cluster.must("GET", cluster.path("configmaps", "a")) == made
    status, found = await cluster.api.call(
        "POST", cluster.path("configmaps"), body=config_map("a", x="2")
    )
    assert (status, found["reason"]) == (409, "AlreadyExists")
    assert found["message"] == 'configmaps "a" already exists'


async def test_a_drawn_name(cluster: Cluster) -> None:
    """Begins as asked for."""
    body = {"metadata": {"generateName": "a-"}}
    one = await cluster.must("POST", cluster.path("configmaps"), body=body)
    other = await cluster.must("POST", cluster.path("configmaps"), body=body)
    assert one["metadata"]["name"].startswith("a-")
    assert one["metadata"]["name"] != other["metadata"]["name"]


async def test_what_is_not_there(cluster: Cluster) -> None:
    """An object that is missing is a Status with its name; a kind that is missing is not."""
    status, found = await cluster.api.call("GET", cluster.path("configmaps", "a"))
    assert (status, found["reason"]) == (404, "NotFound")
    assert found["message"] == 'configmaps "a" not found'
    assert found["details"] == {"name": "a", "kind": "configmaps"}
    status, found = await cluster.api.call("GET", cluster.lws("a"))
    assert status == 404
    assert found["details"]["group"] == "leaderworkerset.x-k8s.io"
    assert found["message"] == 'leaderworkersets.leaderworkerset.x-k8s.io "a" not found'
    path = cluster.path("nonsenses", group="nowhere.example/v1")
    status, found = await cluster.api.call("GET", path)
    assert (status, found) == (404, {})


async def test_a_missing_namespace(cluster: Cluster) -> None:
    """Can be listed, and nothing can be made in it."""
    path = f"/api/v1/namespaces/{cluster.namespace}-other/configmaps"
    assert (await cluster.must("GET", path))["items"] == []
    status, found = await cluster.api.call("POST", path, body=config_map("a"))
    assert (status, found["reason"]) == (404, "NotFound")
    assert found["details"]["kind"] == "namespaces"


async def test_another_namespace_in_the_body(cluster: Cluster) -> None:
    """Is a mistake that is told."""
    body = config_map("a")
    body["metadata"]["namespace"] = "other"
    status, found = await cluster.api.call("POST", cluster.path("configmaps"), body=body)
    assert (status, found["reason"]) == (400, "BadRequest")
    assert "does not match the namespace" in found["message"]


async def test_invalid_objects(cluster: Cluster) -> None:
    """Are refused with the field that is wrong."""
    for path, body, field in (
        (cluster.path("configmaps"), config_map("Not_A_Name"), "metadata.name"),
        (cluster.path("configmaps"), labelled("a", x="not a label"), "metadata.labels"),
        (cluster.path("configmaps"), config_map("a", **{"a/b": "1"}), "data[a/b]"),
        (cluster.lws(), lws("a", replicas=-1), "spec.replicas"),
        (cluster.lws(), lws("a", startupPolicy="Sometimes"), "spec.startupPolicy"),
    ):
        status, found = await cluster.api.call("POST", path, body=body)
        assert (status, found["reason"]) == (422, "Invalid"), found
        assert field in [cause["field"] for cause in found["details"]["causes"]]
    body = lws("a")
    del body["spec"]["leaderWorkerTemplate"]["workerTemplate"]
    status, found = await cluster.api.call("POST", cluster.lws(), body=body)
    assert status == 422
    assert "spec.leaderWorkerTemplate.workerTemplate: Required value" in found["message"]


async def test_a_disaggregated_set(cluster: Cluster) -> None:
    """Has replicas for all of its roles or for none."""
    roles = [{"name": name, "spec": lws(name, replicas=1)["spec"]} for name in ("p", "d")]
    body = {
        "apiVersion": "disaggregatedset.x-k8s.io/v1",
        "kind": "DisaggregatedSet",
        "metadata": {"name": "a"},
        "spec": {"roles": roles},
    }
    path = cluster.path("disaggregatedsets", group="disaggregatedset.x-k8s.io/v1")
    made = await cluster.must("POST", path, body=body)
    assert made["spec"]["slices"] == 1
    assert made["spec"]["roles"][0]["spec"]["leaderWorkerTemplate"]["size"] == 1
    roles[0]["spec"]["replicas"] = 0
    body["metadata"] = {"name": "b"}
    status, found = await cluster.api.call("POST", path, body=body)
    assert (status, found["reason"]) == (422, "Invalid")
    assert "replicas must be zero for all" in found["message"]


async def test_a_replacement(cluster: Cluster) -> None:
    """On an old version is a conflict, and without one it wins, where the kind allows it."""
    path = cluster.path("configmaps", "a")
    first = await cluster.must("POST", cluster.path("configmaps"), body=config_map("a", x="1"))
    first["data"] = {"x": "2"}
    second = await cluster.must("PUT", path, body=first)
    first["data"] = {"x": "3"}
    status, found = await cluster.api.call("PUT", path, body=first)
    assert (status, found["reason"]) == (409, "Conflict")
    assert "the object has been modified" in found["message"]
    third = await cluster.must("PUT", path, body=config_map("a", y="4"))
    assert third["data"] == {"y": "4"}
    assert third["metadata"]["uid"] == second["metadata"]["uid"]
    await cluster.must("POST", cluster.lws(), body=lws("a"))
    status, found = await cluster.api.call("PUT", cluster.lws("a"), body=lws("a", replicas=2))
    assert (status, found["reason"]) == (422, "Invalid")
    assert "metadata.resourceVersion" in found["message"]


async def test_a_merge_patch(cluster: Cluster) -> None:
    """Takes away what is null, and minds a version if it states one."""
    path = cluster.path("configmaps", "a")
    first = await cluster.must(
        "POST", cluster.path("configmaps"), body=config_map("a", x="1", y="2")
    )
    body = {"data": {"x": None, "z": "3"}}
    second = await cluster.must("PATCH", path, body=body, content_type=MERGE)
    assert second["data"] == {"y": "2", "z": "3"}
    stale = {"metadata": {"resourceVersion": first["metadata"]["resourceVersion"]}}
    body = {**stale, "data": {"x": "5"}}
    status, found = await cluster.api.call("PATCH", path, body=body, content_type=MERGE)
    assert (status, found["reason"]) == (409, "Conflict")


async def test_a_json_patch(cluster: Cluster) -> None:
    """Can test before it writes."""
    path = cluster.path("configmaps", "a")
    await cluster.must("POST", cluster.path("configmaps"), body=config_map("a", x="1"))
    operations = [
        {"op": "test", "path": "/data/x", "value": "1"},
        {"op": "replace", "path": "/data/x", "value": "2"},
    ]
    found = await cluster.must("PATCH", path, body=operations, content_type=JSON_PATCH)
    assert found["data"] == {"x": "2"}
    status, _ = await cluster.api.call(
        "PATCH",
        path,
        body=operations,  # type: ignore[arg-type] # this one kind of body is a list
        content_type=JSON_PATCH,
    )
    assert status == 422


async def test_a_strategic_patch(cluster: Cluster) -> None:
    """Is not taken for custom kinds."""
    await cluster.must("POST", cluster.lws(), body=lws("a"))
    body = {"spec": {"replicas": 2}}
    status, _ = await cluster.api.call("PATCH", cluster.lws("a"), body=body, content_type=STRATEGIC)
    assert status == 415


async def test_a_dry_run(cluster: Cluster) -> None:
    """Tells what would be, refuses what would be refused, and changes nothing."""
    query = (("dryRun", "All"),)
    made = await cluster.must("POST", cluster.lws(), body=lws("a"), query=query)
    assert made["spec"]["replicas"] == 1
    assert (await cluster.api.call("GET", cluster.lws("a")))[0] == 404
    before = await cluster.must("POST", cluster.lws(), body=lws("a"))
    body = {"spec": {"replicas": 4}}
    after = await cluster.must(
        "PATCH", cluster.lws("a"), body=body, query=query, content_type=MERGE
    )
    assert after["spec"]["replicas"] == 4
    status, _ = await cluster.api.call(
        "PATCH",
        cluster.lws("a"),
        body={"spec": {"replicas": -1}},
        query=query,
        content_type=MERGE,
    )
    assert status == 422
    await cluster.must("DELETE", cluster.lws("a"), query=query)
    assert await cluster.must("GET", cluster.lws("a")) == before


async def test_a_deletion(cluster: Cluster) -> None:
    """Minds whom it is meant for; twice is 404."""
    path = cluster.path("configmaps", "a")
    made = await cluster.must("POST", cluster.path("configmaps"), body=config_map("a"))
    other = {"preconditions": {"uid": "00000000-0000-0000-0000-000000000000"}}
    status, found = await cluster.api.call("DELETE", path, body=other)
    assert (status, found["reason"]) == (409, "Conflict")
    mine = {"preconditions": {"uid": made["metadata"]["uid"]}}
    done = await cluster.must("DELETE", path, body=mine)
    assert (done["kind"], done["status"]) == ("Status", "Success")
    assert done["details"]["uid"] == made["metadata"]["uid"]
    assert (await cluster.api.call("DELETE", path))[0] == 404


async def test_a_finalizer(cluster: Cluster) -> None:
    """Holds a deleted object until it is taken away."""
    path = cluster.path("configmaps", "a")
    body = config_map("a")
    body["metadata"]["finalizers"] = ["baton.serving/test"]
    await cluster.must("POST", cluster.path("configmaps"), body=body)
    held = await cluster.must("DELETE", path)
    assert held["kind"] == "ConfigMap"
    assert held["metadata"]["deletionTimestamp"]
    more = {"metadata": {"finalizers": ["baton.serving/test", "baton.serving/other"]}}
    status, _ = await cluster.api.call("PATCH", path, body=more, content_type=MERGE)
    assert status == 422
    body = {"metadata": {"finalizers": None}}
    await cluster.must("PATCH", path, body=body, content_type=MERGE)
    assert (await cluster.api.call("GET", path))[0] == 404


async def test_a_deleted_collection(cluster: Cluster) -> None:
    """Is what the selector chooses."""
    for name, color in (("a", "red"), ("b", "blue"), ("c", "red")):
        await cluster.must("POST", cluster.path("configmaps"), body=labelled(name, color=color))
    query = (("labelSelector", "color=red"),)
    await cluster.must("DELETE", cluster.path("configmaps"), query=query)
    left = names(await cluster.must("GET", cluster.path("configmaps")))
    assert "b" in left
    assert not {"a", "c"} & set(left)


async def test_an_immutable_configmap(cluster: Cluster) -> None:
    """Stays as it is; its labels may change."""
    path = cluster.path("configmaps", "a")
    body = {**config_map("a", x="1"), "immutable": True}
    await cluster.must("POST", cluster.path("configmaps"), body=body)
    change: Json
    for change in ({"data": {"x": "2"}}, {"immutable": False}):
        status, found = await cluster.api.call("PATCH", path, body=change, content_type=MERGE)
        assert (status, found["reason"]) == (422, "Invalid")
        assert "immutable" in found["message"]
    change = {"metadata": {"labels": {"x": "y"}}}
    await cluster.must("PATCH", path, body=change, content_type=MERGE)


async def test_methods_that_go_nowhere(cluster: Cluster) -> None:
    """Are 405."""
    path = cluster.path("configmaps", "a")
    assert (await cluster.api.call("POST", path, body=config_map("a")))[0] == 405

"""What scaling and rollouts stand on: ``/scale``, ``/status``, and the generation."""

from __future__ import annotations

from tests.cluster.conftest import Cluster, Json
from tests.cluster.objects import MERGE, lws


async def test_defaults(cluster: Cluster) -> None:
    """What is left out of a LeaderWorkerSet is filled in, and what is unknown is left out."""
    body = lws("a")
    body["spec"]["nonsense"] = 1
    found = await cluster.must("POST", cluster.lws(), body=body)
    assert found["spec"]["replicas"] == 1
    assert found["spec"]["startupPolicy"] == "LeaderCreated"
    template = found["spec"]["leaderWorkerTemplate"]
    assert template["size"] == 1
    assert template["restartPolicy"] == "RecreateGroupOnPodRestart"
    assert "nonsense" not in found["spec"]


async def test_unknown_fields_are_refused_if_asked(cluster: Cluster) -> None:
    """With the name of the field, and nothing is kept."""
    body = lws("a")
    body["spec"]["nonsense"] = 1
    query = (("fieldValidation", "Strict"),)
    status, found = await cluster.api.call("POST", cluster.lws(), body=body, query=query)
    assert (status, found["reason"]) == (400, "BadRequest")
    assert 'unknown field "spec.nonsense"' in found["message"]
    assert (await cluster.api.call("GET", cluster.lws("a")))[0] == 404


async def test_a_scale(cluster: Cluster) -> None:
    """Reads replicas and the selector for autoscalers, and writes replicas alone."""
    await cluster.must("POST", cluster.lws(), body=lws("a", replicas=2))
    await cluster.play_lws("a", ready=1)
    scale = await cluster.must("GET", cluster.lws("a/scale"))
    assert (scale["kind"], scale["apiVersion"]) == ("Scale", "autoscaling/v1")
    assert scale["spec"] == {"replicas": 2}
    assert scale["status"]["replicas"] == 2
    assert "worker-index=0" in scale["status"]["selector"]
    scale["spec"]["replicas"] = 5
    answer = await cluster.must("PUT", cluster.lws("a/scale"), body=scale)
    assert (answer["kind"], answer["spec"]["replicas"]) == ("Scale", 5)
    found = await cluster.must("GET", cluster.lws("a"))
    assert found["spec"]["replicas"] == 5
    assert found["metadata"]["generation"] == 2
    assert found["status"]["readyReplicas"] == 1


async def test_a_scale_is_patched(cluster: Cluster) -> None:
    """Down to nothing too; a patch needs no version."""
    await cluster.must("POST", cluster.lws(), body=lws("a", replicas=2))
    body = {"spec": {"replicas": 0}}
    answer = await cluster.must("PATCH", cluster.lws("a/scale"), body=body, content_type=MERGE)
    assert answer["spec"].get("replicas", 0) == 0
    assert (await cluster.must("GET", cluster.lws("a")))["spec"]["replicas"] == 0


async def test_a_stale_scale(cluster: Cluster) -> None:
    """Is a conflict: the object has changed since."""
    await cluster.must("POST", cluster.lws(), body=lws("a"))
    scale = await cluster.must("GET", cluster.lws("a/scale"))
    body = {"metadata": {"labels": {"x": "y"}}}
    await cluster.must("PATCH", cluster.lws("a"), body=body, content_type=MERGE)
    scale["spec"]["replicas"] = 7
    status, found = await cluster.api.call("PUT", cluster.lws("a/scale"), body=scale)
    assert (status, found["reason"]) == (409, "Conflict")


async def test_no_scale(cluster: Cluster) -> None:
    """Of what is not there: 404 with the name."""
    status, found = await cluster.api.call("GET", cluster.lws("a/scale"))
    assert (status, found["reason"], found["details"]["name"]) == (404, "NotFound", "a")


async def test_status_and_spec_are_apart(cluster: Cluster) -> None:
    """Neither can be written where the other is, and only the spec counts generations."""
    body = {**lws("a"), "status": {"replicas": 9}}
    made = await cluster.must("POST", cluster.lws(), body=body)
    assert "status" not in made
    played = await cluster.play_lws("a", ready=1)
    assert played["metadata"]["generation"] == 1
    assert played["status"]["observedGeneration"] == 1
    body = {"spec": {"replicas": 3}, "status": {"readyReplicas": 2}}
    by_status = await cluster.must("PATCH", cluster.lws("a/status"), body=body, content_type=MERGE)
    assert by_status["spec"]["replicas"] == 1
    assert by_status["status"]["readyReplicas"] == 2
    body = {"spec": {"replicas": 3}, "status": {"readyReplicas": 3}}
    by_main = await cluster.must("PATCH", cluster.lws("a"), body=body, content_type=MERGE)
    assert by_main["spec"]["replicas"] == 3
    assert by_main["status"]["readyReplicas"] == 2
    assert by_main["metadata"]["generation"] == 2


async def test_a_generation(cluster: Cluster) -> None:
    """Is left alone by labels, and by writes that change nothing."""
    made = await cluster.must("POST", cluster.lws(), body=lws("a"))
    body: Json = {"metadata": {"labels": {"x": "y"}}}
    labelled = await cluster.must("PATCH", cluster.lws("a"), body=body, content_type=MERGE)
    assert labelled["metadata"]["generation"] == made["metadata"]["generation"] == 1
    assert labelled["metadata"]["resourceVersion"] != made["metadata"]["resourceVersion"]
    again = await cluster.must("PATCH", cluster.lws("a"), body=body, content_type=MERGE)
    assert again["metadata"]["resourceVersion"] == labelled["metadata"]["resourceVersion"]

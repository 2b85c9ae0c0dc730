"""What leader election and telling people stand on: Leases and Events."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cluster.conftest import Cluster, Json
from tests.cluster.objects import MERGE

GROUP = "coordination.k8s.io/v1"
TIME = "2026-01-01T00:00:00.000000Z"


def lease(holder: str, **spec: Any) -> Json:
    """A Lease of somebody's."""
    wanted = {
        "holderIdentity": holder,
        "leaseDurationSeconds": 15,
        "acquireTime": TIME,
        "renewTime": TIME,
        "leaseTransitions": 0,
        **spec,
    }
    return {
        "apiVersion": GROUP,
        "kind": "Lease",
        "metadata": {"name": "leader"},
        "spec": wanted,
    }


def event(cluster: Cluster, **more: Any) -> Json:
    """One on a ConfigMap of the namespace."""
    involved = {"kind": "ConfigMap", "namespace": cluster.namespace, "name": "a"}
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "a.1"},
        "involvedObject": involved,
        "reason": "Tested",
        "message": "It was.",
        "type": "Normal",
        "firstTimestamp": "2026-01-01T00:00:00Z",
        "lastTimestamp": "2026-01-01T00:00:00Z",
        "count": 1,
        **more,
    }


async def test_one_takes_it(cluster: Cluster) -> None:
    """Of two who create it, and of two who replace what they both have read."""
    leases = cluster.path("leases", group=GROUP)
    seen = await cluster.must("POST", leases, body=lease("alice"))
    status, found = await cluster.api.call("POST", leases, body=lease("bob"))
    assert (status, found["reason"]) == (409, "AlreadyExists")
    version = seen["metadata"]["resourceVersion"]
    codes = []
    for holder in ("bob", "carol"):
        body = lease(holder, leaseTransitions=1)
        body["metadata"]["resourceVersion"] = version
        codes.append((await cluster.api.call("PUT", f"{leases}/leader", body=body))[0])
    assert codes == [200, 409]
    found = await cluster.must("GET", f"{leases}/leader")
    assert found["spec"]["holderIdentity"] == "bob"
    assert found["spec"]["renewTime"] == TIME


async def test_it_is_given_back(cluster: Cluster) -> None:
    """By an empty holder."""
    leases = cluster.path("leases", group=GROUP)
    seen = await cluster.must("POST", leases, body=lease("alice"))
    body = lease("", leaseDurationSeconds=1)
    body["metadata"] = seen["metadata"]
    found = await cluster.must("PUT", f"{leases}/leader", body=body)
    assert not found["spec"].get("holderIdentity")


async def test_no_version(cluster: Cluster) -> None:
    """It cannot be replaced blindly; a PUT makes one that is not there."""
    leases = cluster.path("leases", group=GROUP)
    status, _ = await cluster.api.call("PUT", f"{leases}/leader", body=lease("alice"))
    assert status == 201
    status, found = await cluster.api.call("PUT", f"{leases}/leader", body=lease("bob"))
    assert (status, found["reason"]) == (422, "Invalid")


@pytest.mark.parametrize("time", ["2026-01-01T00:00:00Z", "2026-01-01T00:00:00.123Z", "yesterday"])
async def test_times_without_microseconds(time: str, cluster: Cluster) -> None:
    """Are none: a Lease's have exactly six digits after the point."""
    body = lease("alice", renewTime=time)
    status, found = await cluster.api.call("POST", cluster.path("leases", group=GROUP), body=body)
    assert (status, found["reason"]) == (400, "BadRequest")
    assert f'parsing time "{time}"' in found["message"]


async def test_a_duration_of_nothing(cluster: Cluster) -> None:
    """Is refused."""
    body = lease("alice", leaseDurationSeconds=0)
    status, found = await cluster.api.call("POST", cluster.path("leases", group=GROUP), body=body)
    assert (status, found["reason"]) == (422, "Invalid")
    assert found["details"]["causes"][0]["field"] == "spec.leaseDurationSeconds"


async def test_events(cluster: Cluster) -> None:
    """Are found by what they are about, and their names make them unique."""
    path = cluster.path("events")
    await cluster.must("POST", path, body=event(cluster))
    status, found = await cluster.api.call("POST", path, body=event(cluster))
    assert (status, found["reason"]) == (409, "AlreadyExists")
    query = (("fieldSelector", "involvedObject.name=a,reason=Tested"),)
    found = await cluster.must("GET", path, query=query)
    (item,) = found["items"]
    assert item["message"] == "It was."
    body = {"count": 2, "lastTimestamp": "2026-01-01T00:01:00Z"}
    found = await cluster.must("PATCH", f"{path}/a.1", body=body, content_type=MERGE)
    assert found["count"] == 2


async def test_an_event_elsewhere(cluster: Cluster) -> None:
    """Than what it is about is refused."""
    involved = {"kind": "ConfigMap", "namespace": "default", "name": "a"}
    body = event(cluster, involvedObject=involved)
    status, found = await cluster.api.call("POST", cluster.path("events"), body=body)
    assert (status, found["reason"]) == (422, "Invalid")
    assert "involvedObject.namespace" in found["message"]

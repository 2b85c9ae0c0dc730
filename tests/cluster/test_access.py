"""Who may do what, and what there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from baton.kube import KubeApi
from tests.cluster.conftest import Cluster, Json
from tests.cluster.objects import config_map

REVIEW = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
RULES = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"


def question(cluster: Cluster, verb: str, **more: str) -> Json:
    """May I?"""
    attributes = {
        "namespace": cluster.namespace,
        "verb": verb,
        "group": "leaderworkerset.x-k8s.io",
        "resource": "leaderworkersets",
        **more,
    }
    return {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }


async def allowed(api: KubeApi, body: Json) -> bool:
    status, found = await api.call("POST", REVIEW, body=body)
    assert status == 201, found
    return bool(found["status"]["allowed"])


async def test_nobody(cluster: Cluster, tmp_path: Path) -> None:
    """May nothing, and is told what it was that it may not; that they may ask."""
    nobody = await cluster.nobody(tmp_path)
    try:
        for method, name, verb in (
            ("GET", "", "list"),
            ("GET", "a", "get"),
            ("POST", "", "create"),
            ("DELETE", "a", "delete"),
        ):
            body = config_map("a") if method == "POST" else None
            path = cluster.path("configmaps", name)
            status, found = await nobody.call(method, path, body=body)
            assert (status, found["reason"]) == (403, "Forbidden")
            assert f'cannot {verb} resource "configmaps"' in found["message"]
            assert f'in the namespace "{cluster.namespace}"' in found["message"]
        status, found = await nobody.call("GET", "/api/v1/nodes")
        assert status == 403
        assert "at the cluster scope" in found["message"]
        status, found = await nobody.call("GET", cluster.lws("a/scale"))
        assert status == 403
        assert 'resource "leaderworkersets/scale"' in found["message"]
        events = [event async for event in nobody.watch(cluster.lws(), (), watch_s=5)]
        assert [(kind, found["code"]) for kind, found in events] == [("ERROR", 403)]
        assert not await allowed(nobody, question(cluster, "get"))
    finally:
        await nobody.close()


async def test_reviews(cluster: Cluster) -> None:
    """Say what is allowed, for subresources too."""
    assert await allowed(cluster.api, question(cluster, "create"))
    assert await allowed(cluster.api, question(cluster, "patch", subresource="scale"))
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": cluster.namespace},
    }
    status, found = await cluster.api.call("POST", RULES, body=body)
    assert status == 201
    rules = found["status"]["resourceRules"]
    assert rules
    assert all({"verbs", "apiGroups", "resources"} <= set(rule) for rule in rules)


async def test_an_unknown_token(cluster: Cluster, tmp_path: Path) -> None:
    """Is 401."""
    api = cluster.known_as("no-such-token", tmp_path)
    try:
        status, found = await api.call("GET", cluster.path("configmaps"))
        assert (status, found["reason"]) == (401, "Unauthorized")
    finally:
        await api.close()


async def test_discovery(cluster: Cluster) -> None:
    """Names groups, versions, kinds, and what they can do."""
    version = await cluster.must("GET", "/version")
    assert version["major"] == "1"
    assert version["gitVersion"].startswith("v1.")
    groups = await cluster.must("GET", "/apis")
    assert {"apps", "coordination.k8s.io", "leaderworkerset.x-k8s.io"} <= {
        group["name"] for group in groups["groups"]
    }
    group = await cluster.must("GET", "/apis/leaderworkerset.x-k8s.io")
    assert group["preferredVersion"]["groupVersion"] == "leaderworkerset.x-k8s.io/v1"
    found = await cluster.must("GET", "/apis/leaderworkerset.x-k8s.io/v1")
    kinds = {entry["name"]: entry for entry in found["resources"]}
    assert {"leaderworkersets", "leaderworkersets/scale", "leaderworkersets/status"} <= set(kinds)
    assert kinds["leaderworkersets"]["kind"] == "LeaderWorkerSet"
    assert kinds["leaderworkersets"]["namespaced"] is True
    assert kinds["leaderworkersets/scale"]["kind"] == "Scale"
    assert "watch" in kinds["leaderworkersets"]["verbs"]
    core = await cluster.must("GET", "/api/v1")
    assert {"pods", "nodes", "configmaps"} <= {entry["name"] for entry in core["resources"]}
    assert (await cluster.api.call("GET", "/apis/nowhere.example"))[0] == 404


@pytest.mark.parametrize("plural", ["leaderworkersets.leaderworkerset.x-k8s.io"])
async def test_definitions(plural: str, cluster: Cluster) -> None:
    """Of custom kinds can be read, with their state."""
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{plural}"
    found = await cluster.must("GET", path)
    conditions = {one["type"]: one["status"] for one in found["status"]["conditions"]}
    assert conditions["Established"] == "True"
    assert found["spec"]["scope"] == "Namespaced"
    (version,) = [one for one in found["spec"]["versions"] if one["name"] == "v1"]
    assert version["served"] is True
    assert version["subresources"]["scale"]["labelSelectorPath"] == ".status.hpaPodSelector"

"""What the fake API server can do beyond the suite of ``tests/cluster``, which holds it and a real
server to the same: accidents, its two controllers, and what it knows of LWS's schemas."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from baton.errors import KubernetesUnavailable
from baton.kube import Access, KubeApi
from tests.cluster.definitions import definition, definitions_folder
from tests.cluster.objects import APPLY, JSON_PATCH, MERGE, config_map, lws, names, watched
from tests.fakes.kubernetes import LWS, FakeKubernetes, custom
from tests.fakes.kubernetes.kinds import CUSTOM, row_of
from tests.fakes.kubernetes.schemas import SCHEMAS
from tests.fakes.waiting import until

Json = dict[str, Any]

MAPS = "/api/v1/namespaces/serving/configmaps"
SETS = "/apis/leaderworkerset.x-k8s.io/v1/namespaces/serving/leaderworkersets"


@pytest.fixture(name="fake")
async def _fake(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeKubernetes]:
    # As in tests/cluster: no certificates are needed, and reading them takes long.
    monkeypatch.setenv("SSL_CERT_FILE", os.devnull)
    async with FakeKubernetes() as fake:
        yield fake


@pytest.fixture(name="api")
async def _api(fake: FakeKubernetes, tmp_path: Path) -> AsyncIterator[KubeApi]:
    api = KubeApi(Access(str(fake.kubeconfig(tmp_path)), "serving"), call_s=1.0)
    yield api
    await api.close()


async def test_failures(fake: FakeKubernetes, api: KubeApi) -> None:
    """Meet the next requests that they are meant for, and those alone."""
    fake.fail_next(503, 2, verb="list", plural="configmaps")
    fake.fail_next(429, verb="patch")
    assert (await api.call("GET", SETS))[0] == 200
    codes = [(await api.call("GET", MAPS))[0] for _ in range(3)]
    assert codes == [503, 503, 200]
    status, found = await api.call("PATCH", f"{MAPS}/a", body={}, content_type=MERGE)
    assert (status, found["reason"]) == (429, "TooManyRequests")
    assert found["details"]["retryAfterSeconds"] == 1


async def test_an_answer_that_does_not_come(fake: FakeKubernetes, api: KubeApi) -> None:
    """Is given up by who asked; nothing was done. One that is let go does it late."""
    fake.hang_next(verb="create")
    with pytest.raises(KubernetesUnavailable, match="no answer in time"):
        await api.call("POST", MAPS, body=config_map("a"))
    await until(lambda: not fake.faults.hanging)
    assert fake.get("configmaps", "serving", "a") is None
    fake.hang_next(verb="create")
    late = asyncio.ensure_future(api.call("POST", MAPS, body=config_map("a")))
    await until(lambda: fake.faults.hanging)
    assert fake.get("configmaps", "serving", "a") is None
    fake.release()
    assert (await late)[0] == 201


async def test_an_answer_that_is_lost(fake: FakeKubernetes, api: KubeApi) -> None:
    """Leaves it done, and who asked without knowing."""
    fake.lose_next(verb="create")
    with pytest.raises(KubernetesUnavailable):
        await api.call("POST", MAPS, body=config_map("a"))
    assert fake.get("configmaps", "serving", "a") is not None


async def test_denials(fake: FakeKubernetes, api: KubeApi) -> None:
    """Are by verb, resource and namespace, and a review says the same as the deed."""
    fake.deny("patch", "leaderworkersets/scale")
    fake.deny("create", "configmaps", "elsewhere")
    fake.put("leaderworkersets", "serving", "a", {"spec": lws("a")["spec"]})
    body: Json = {"spec": {"replicas": 2}}
    assert (await api.call("PATCH", f"{SETS}/a", body=body, content_type=MERGE))[0] == 200
    status, _ = await api.call("PATCH", f"{SETS}/a/scale", body=body, content_type=MERGE)
    assert status == 403
    fake.allow("patch", "leaderworkersets/scale")
    status, _ = await api.call("PATCH", f"{SETS}/a/scale", body=body, content_type=MERGE)
    assert status == 200
    for namespace, allowed in (("elsewhere", False), ("serving", True)):
        asked = {"verb": "create", "resource": "configmaps", "namespace": namespace}
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        _, found = await api.call("POST", path, body={"spec": {"resourceAttributes": asked}})
        assert found["status"]["allowed"] is allowed
        status, _ = await api.call("POST", MAPS.replace("serving", namespace), body=config_map("a"))
        # Nobody made that namespace, but that is not said to who may not know.
        assert status == (201 if allowed else 403)
    assert ("create", "configmaps") in fake.calls


async def test_an_apply_that_creates(fake: FakeKubernetes, api: KubeApi) -> None:
    """Needs the right to create too."""
    fake.deny("create", "configmaps")
    query = (("fieldManager", "a"),)
    status, found = await api.call(
        "PATCH", f"{MAPS}/a", body=config_map("a"), query=query, content_type=APPLY
    )
    assert status == 403
    assert "cannot create" in found["message"]
    fake.put("configmaps", "serving", "a", {"data": {}})
    status, _ = await api.call(
        "PATCH", f"{MAPS}/a", body=config_map("a"), query=query, content_type=APPLY
    )
    assert status == 200


async def test_an_entry_that_is_given_up(fake: FakeKubernetes, api: KubeApi) -> None:
    """Stays while another has something in it, and keeps the name that it is known by."""
    query = (("fieldManager", "a"),)
    path = f"{SETS}/a"
    body = lws("a")
    pod = body["spec"]["leaderWorkerTemplate"]["workerTemplate"]["spec"]
    pod["containers"].append({"name": "extra", "image": "registry.example/extra:1", "tty": True})
    await api.call("PATCH", path, body=body, query=query, content_type=APPLY)
    place = "/spec/leaderWorkerTemplate/workerTemplate/spec/containers/1/image"
    operations: Any = [{"op": "replace", "path": place, "value": "registry.example/extra:2"}]
    status, _ = await api.call("PATCH", path, body=operations, content_type=JSON_PATCH)
    assert status == 200
    await api.call("PATCH", path, body=lws("a"), query=query, content_type=APPLY)
    found = fake.get("leaderworkersets", "serving", "a")
    assert found is not None
    pod = found["spec"]["leaderWorkerTemplate"]["workerTemplate"]["spec"]
    assert pod["containers"][1] == {"name": "extra", "image": "registry.example/extra:2"}


async def test_a_compacted_list(fake: FakeKubernetes, api: KubeApi) -> None:
    """That is read by pages cannot be read on."""
    for name in "abc":
        fake.put("configmaps", "serving", name, {"data": {}})
    _, found = await api.call("GET", MAPS, query=(("limit", "1"),))
    fake.compact()
    query = (("limit", "1"), ("continue", found["metadata"]["continue"]))
    status, found = await api.call("GET", MAPS, query=query)
    assert (status, found["reason"]) == (410, "Expired")


async def test_bookmarks(fake: FakeKubernetes, api: KubeApi) -> None:
    """Tell the version to those who asked for them."""
    fake.put("configmaps", "serving", "a", {"data": {}})
    query = [("allowWatchBookmarks", "true"), ("fieldSelector", "metadata.name=none")]
    watch = asyncio.ensure_future(watched(api, MAPS, query, lambda told: told))
    await until(lambda: fake.watches)
    fake.bookmark()
    ((kind, found),) = await watch
    assert (kind, found["kind"]) == ("BOOKMARK", "ConfigMap")
    assert found["metadata"] == {"resourceVersion": str(fake.version)}


async def test_the_list_within_a_watch(fake: FakeKubernetes, api: KubeApi) -> None:
    """A watch can begin with all there is, and a bookmark says where that ends. (Servers of some
    age do not: it is no part of the suite for real ones.)"""
    for name in "ab":
        fake.put("configmaps", "serving", name, {"data": {}})
    query = [
        ("sendInitialEvents", "true"),
        ("allowWatchBookmarks", "true"),
        ("resourceVersionMatch", "NotOlderThan"),
    ]
    events = await watched(api, MAPS, query, lambda told: len(told) == 3)
    assert [kind for kind, _ in events] == ["ADDED", "ADDED", "BOOKMARK"]
    assert events[2][1]["metadata"] == {
        "resourceVersion": str(fake.version),
        "annotations": {"k8s.io/initial-events-end": "true"},
    }


def owned(name: str, *owners: Json, finalizers: tuple[str, ...] = ()) -> Json:
    """A ConfigMap that belongs to others."""
    references = [
        {
            "apiVersion": owner["apiVersion"],
            "kind": owner["kind"],
            "name": owner["metadata"]["name"],
            "uid": owner["metadata"]["uid"],
        }
        for owner in owners
    ]
    body = config_map(name)
    body["metadata"] |= {"ownerReferences": references, "finalizers": list(finalizers)}
    return body


def left(fake: FakeKubernetes) -> list[str]:
    return names({"items": fake.all("configmaps", "serving")})


async def test_owned_objects(fake: FakeKubernetes, api: KubeApi) -> None:
    """Go with the last of their owners, and theirs with them; or stay as orphans."""
    first = fake.put("leaderworkersets", "serving", "a", {"spec": lws("a")["spec"]})
    second = fake.put("leaderworkersets", "serving", "b", {"spec": lws("b")["spec"]})
    _, mine = await api.call("POST", MAPS, body=owned("mine", first))
    await api.call("POST", MAPS, body=owned("child", mine))
    await api.call("POST", MAPS, body=owned("both", first, second))
    await api.call("DELETE", f"{SETS}/a")
    assert left(fake) == ["both"]
    await api.call("DELETE", f"{SETS}/b", body={"propagationPolicy": "Orphan"})
    both = fake.get("configmaps", "serving", "both")
    assert both is not None
    uids = [owner["uid"] for owner in both["metadata"]["ownerReferences"]]
    assert uids == [first["metadata"]["uid"]]


async def test_an_owner_that_waits(fake: FakeKubernetes, api: KubeApi) -> None:
    """For what it owns is deleted in the foreground: it goes last."""
    owner = fake.put("leaderworkersets", "serving", "a", {"spec": lws("a")["spec"]})
    await api.call("POST", MAPS, body=owned("slow", owner, finalizers=("baton.serving/test",)))
    await api.call("POST", MAPS, body=owned("quick", owner))
    await api.call("DELETE", f"{SETS}/a", body={"propagationPolicy": "Foreground"})
    assert left(fake) == ["slow"]
    found = fake.get("leaderworkersets", "serving", "a")
    assert found is not None
    assert found["metadata"]["deletionTimestamp"]
    assert found["metadata"]["finalizers"] == ["foregroundDeletion"]
    body = {"metadata": {"finalizers": None}}
    await api.call("PATCH", f"{MAPS}/slow", body=body, content_type=MERGE)
    assert left(fake) == []
    assert fake.get("leaderworkersets", "serving", "a") is None


async def test_namespaces(fake: FakeKubernetes, api: KubeApi) -> None:
    """Take all that is in them along; on a bare server they stay, and take nothing in."""
    fake.put("configmaps", "serving", "a", {"data": {}})
    fake.put("configmaps", "other", "a", {"data": {}})
    await api.call("DELETE", "/api/v1/namespaces/serving")
    assert fake.get("namespaces", "", "serving") is None
    assert fake.all("configmaps") == fake.all("configmaps", "other") != []
    fake.controllers = False
    await api.call("DELETE", "/api/v1/namespaces/other")
    status, found = await api.call(
        "POST", "/api/v1/namespaces/other/configmaps", body=config_map("b")
    )
    assert (status, found["details"]["causes"][0]["reason"]) == (403, "NamespaceTerminating")
    assert fake.get("configmaps", "other", "a") is not None


async def test_custom_kinds(fake: FakeKubernetes, api: KubeApi) -> None:
    """Come and go with their definitions."""
    queue = custom("kueue.x-k8s.io", "v1beta2", "localqueues", "LocalQueue")
    path = "/apis/kueue.x-k8s.io/v1beta2/namespaces/serving/localqueues"
    assert await api.call("GET", path) == (404, {})
    fake.install(queue)
    fake.put("localqueues", "serving", "a", {"spec": {"clusterQueue": "b"}})
    assert names((await api.call("GET", path))[1]) == ["a"]
    fake.uninstall(queue)
    assert await api.call("GET", path) == (404, {})
    fake.uninstall(LWS)
    assert (await api.call("GET", SETS))[0] == 404
    definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    status, found = await api.call("GET", f"{definitions}/{LWS.resource}")
    assert (status, found["reason"]) == (404, "NotFound")
    body = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": queue.resource},
        "spec": spec_of(queue.plural),
    }
    assert (await api.call("POST", definitions, body=body))[0] == 201
    assert (await api.call("GET", path))[0] == 200


def spec_of(plural: str) -> Json:
    schema = {"openAPIV3Schema": {"type": "object"}}
    version = {"name": "v1beta2", "served": True, "storage": True, "schema": schema}
    return {
        "group": "kueue.x-k8s.io",
        "scope": "Namespaced",
        "names": {"plural": plural, "kind": "LocalQueue"},
        "versions": [version],
    }


async def test_a_test_may_put_anything(fake: FakeKubernetes) -> None:
    """With a status, with labels, where no namespace is; a change counts as one."""
    content = {
        "metadata": {"labels": {"x": "y"}},
        "spec": {**lws("a")["spec"], "replicas": 2},
        "status": {"readyReplicas": 1},
    }
    first = fake.put("leaderworkersets", "new", "a", content)
    assert first["status"] == {"readyReplicas": 1}
    assert first["metadata"]["labels"] == {"x": "y"}
    assert fake.get("namespaces", "", "new") is not None
    content["spec"]["replicas"] = 3
    del content["metadata"]
    second = fake.put("leaderworkersets", "new", "a", content)
    assert second["metadata"]["labels"] == {"x": "y"}
    assert second["metadata"]["uid"] == first["metadata"]["uid"]
    assert (first["metadata"]["generation"], second["metadata"]["generation"]) == (1, 2)
    third = fake.set_status("leaderworkersets", "new", "a", {"readyReplicas": 3})
    assert (third["spec"]["replicas"], third["metadata"]["generation"]) == (3, 2)


def differences(ours: Json, theirs: Json, path: str = "") -> Iterator[str]:
    """Where a schema of the fake's says something else than the one in the definition."""
    keys = ("type", "default", "enum", "minimum", "minItems", "maxItems")
    for key in (*keys, "x-kubernetes-int-or-string"):
        if ours.get(key) != theirs.get(key):
            yield f"{path}: {key} is {theirs.get(key)!r}"
    if ours.get("x-kubernetes-preserve-unknown-fields"):
        return
    if "items" in ours:
        yield from differences(ours["items"], theirs["items"], f"{path}[]")
    if "properties" in ours:
        known = theirs["properties"]
        if sorted(ours["required"]) != sorted(theirs.get("required", [])):
            yield f"{path}: required is {theirs.get('required')}"
        if set(ours["properties"]) != set(known):
            yield f"{path}: has {sorted(set(ours['properties']) ^ set(known))}"
        for key, inner in ours["properties"].items():
            if key in known:
                yield from differences(inner, known[key], f"{path}.{key}")


@pytest.mark.parametrize("row", CUSTOM, ids=lambda row: row.plural)
def test_schemas(row: Any) -> None:
    """The fake's are those of LWS's own definitions, and so is what it serves of each kind."""
    folder = definitions_folder()
    if folder is None:
        pytest.skip("LWS's CustomResourceDefinitions are not here; BATON_CRDS names their folder")
    defined = definition(row.plural, folder)
    (found,) = row_of(defined)
    assert found == row
    schema = defined["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for key in ("apiVersion", "kind", "metadata"):
        del schema["properties"][key]
    assert list(differences(SCHEMAS[row.plural], schema)) == []

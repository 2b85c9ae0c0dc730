"""What the guide says of two who write one field: pools whose size the controller takes over, and
``active`` that was patched by hand (docs/kubernetes/README.md, docs/kubernetes/gke.md)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.lws import yaml_text
from deploy.lws.build import build
from deploy.lws.render import Where, render
from deploy.lws.site import site_from_text, site_text
from profiles import resolve_profile
from tests.cluster.conftest import Cluster, Json
from tests.cluster.objects import MERGE, config_map
from tests.cluster.test_apply import apply, fields

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "kubernetes" / "README.md"
GIT = "kubectl"
"""The field manager of ``kubectl apply --server-side``."""


def pools(**changes: Any) -> list[Json]:
    """The LeaderWorkerSets of a profile with two decode workers, as they are applied."""
    data = yaml.safe_load(site_text("kind-cpu")[0])
    data["spec"].update(changes)
    text = yaml_text.dump(data)
    place = Where(site_from_text(text, "site"), text)
    objects = build(render(resolve_profile("disaggregated"), sites=[place]), place.site.name)
    found = [copy.deepcopy(one) for one in objects if one["kind"] == "LeaderWorkerSet"]
    for one in found:
        del one["metadata"]["namespace"]
        if "replicas" in one["spec"]:
            one["spec"]["replicas"] = 3
    return found


def shared(found: Json) -> Json:
    """What the guide's template makes of a pool that is there."""
    text = GUIDE.read_text("utf-8")
    template = text.split("{{range .items}}---\n", 1)[1].split("{{end}}")[0]
    for path in ("metadata.name", "spec.replicas"):
        section, key = path.split(".")
        template = template.replace(f"{{{{.{path}}}}}", str(found[section][key]))
    assert "{{" not in template
    made: Json = yaml.safe_load(template)
    return made


@pytest.mark.parametrize("handed", [False, True])
async def test_pools_keep_their_size(cluster: Cluster, handed: bool) -> None:
    """When the tree leaves replicas to the controller, nobody else has them: they fall to LWS's
    default, which kills workers that serve. Shared before, as the guide says, they stay."""
    for before, after in zip(pools(), pools(controller={}), strict=True):
        assert "replicas" not in after["spec"]
        path = cluster.lws(before["metadata"]["name"])
        await apply(cluster, path, before, GIT)
        if handed:
            status, _ = await apply(cluster, path, shared(await cluster.must("GET", path)), "share")
            assert status == 200
        status, found = await apply(cluster, path, after, GIT)
        assert (status, found["spec"]["replicas"]) == (200, 3 if handed else 1)
        # Then they are the controller's, and another apply of the tree leaves them to it.
        await cluster.must("PATCH", path, body={"spec": {"replicas": 5}}, content_type=MERGE)
        _, found = await apply(cluster, path, after, GIT)
        assert found["spec"]["replicas"] == 5


async def test_scaling_to_the_same_number_shares_nothing(cluster: Cluster) -> None:
    """Who writes what is there already gets no share of it, unless by an apply."""
    before, after = pools()[0], pools(controller={})[0]
    path = cluster.lws(before["metadata"]["name"])
    await apply(cluster, path, before, GIT)
    body, query = {"spec": {"replicas": 3}}, (("fieldManager", "share"),)
    await cluster.must("PATCH", f"{path}/scale", body=body, query=query, content_type=MERGE)
    _, found = await apply(cluster, path, after, GIT)
    assert found["spec"]["replicas"] == 1


@pytest.mark.parametrize("manager", ["kubectl-patch", GIT])
async def test_a_wish_that_was_patched(cluster: Cluster, manager: str) -> None:
    """Is in the way of the next one that comes from Git, under whatever name it was patched. The
    same one in Git is not; and one apply by force gives the field back to Git for good."""
    path = cluster.path("configmaps", "baton-profiles")
    profiles = {"a.yaml": "a", "b.yaml": "b"}

    async def wish(active: str, **more: str) -> tuple[int, Json]:
        body = config_map("baton-profiles", active=active, **profiles)
        return await apply(cluster, path, body, GIT, **more)

    await wish("a")
    body, query = {"data": {"active": "b"}}, (("fieldManager", manager),)
    await cluster.must("PATCH", path, body=body, query=query, content_type=MERGE)
    status, found = await wish("a")
    assert status == 409
    assert [cause["field"] for cause in found["details"]["causes"]] == [".data.active"]
    assert (await wish("b"))[0] == 200
    assert (await wish("a"))[0] == 409
    status, found = await wish("a", force="true")
    assert (status, found["data"]) == (200, {"active": "a", **profiles})
    assert "f:active" in fields(found, GIT)["f:data"]
    assert (await wish("b"))[0] == 200

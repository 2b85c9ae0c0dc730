"""Judgements over clusters that the fake API does not show: accounts' rights, claimed devices,
volumes, odd amounts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from baton.kube import Query
from baton.types import Role
from deploy.doctor import CLUSTER_CHECKS, Cluster, Finding, Level, examine
from deploy.doctor.needs import CONTROLLER_RIGHTS, Right, kind_needs, pool_needs, router_rights
from deploy.doctor.node_checks import Place, judge_pool, quantity
from deploy.doctor.router_checks import judge_pairs
from deploy.lws import names, router
from deploy.lws.build import build
from deploy.lws.render import Where, render
from deploy.lws.site import Site, load_site, site_from_text
from profiles import TransferSpec, resolve_profile

Json = dict[str, Any]
GKE = load_site("gke")
PROFILE = resolve_profile("disaggregated")


def site(**spec: Any) -> Site:
    """The site "gke" with other fields."""
    return GKE.model_copy(update={"spec": GKE.spec.model_copy(update=spec)})


SITE = """\
apiVersion: baton/v1
kind: Site
metadata: {name: test}
spec:
  images: {router: "a/b:1", worker_cpu: "a/b:1", controller: "a/b:1"}
  accelerators: {cpu: {cpu: 1, memory_gib: 2}}
"""


def small_site(more: str) -> Site:
    return site_from_text(SITE + more, "test")


class RecordedApi:
    """Answers by path; 404 to everything else."""

    def __init__(self, answers: Mapping[str, Json], rules: Iterable[Json] = ()) -> None:
        self.answers = answers
        self.rules = list(rules)

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Query = (),
        body: Json | None = None,
        content_type: str = "application/json",
    ) -> tuple[int, Json]:
        if method == "POST":
            assert body is not None
            theirs = "user" in body["spec"]
            allowed = not theirs or self.allows(body["spec"]["resourceAttributes"])
            return 201, {"status": {"allowed": allowed}}
        found = self.answers.get(path)
        return (404, {}) if found is None else (200, found)

    def allows(self, asked: Json) -> bool:
        """As RBAC decides."""
        return any(
            asked["verb"] in rule["verbs"]
            and asked["group"] in rule["apiGroups"]
            and asked["resource"] in rule["resources"]
            and ("resourceNames" not in rule or asked.get("name") in rule["resourceNames"])
            for rule in self.rules
        )


async def examined(cluster: Cluster, name: str) -> list[Finding]:
    return await examine([check for check in CLUSTER_CHECKS if check.name == name], cluster)


def objects(where: Site) -> list[Json]:
    """What is rendered for a site."""
    return build(render(PROFILE, sites=[Where(where, "")]), where.metadata.name)


def rules_of(objects: Iterable[Json]) -> list[Json]:
    return [rule for found in objects if found["kind"] == "Role" for rule in found["rules"]]


ACCOUNTS: dict[str, Json] = {
    f"/api/v1/namespaces/baton/serviceaccounts/baton-{n}": {} for n in ("router", "controller")
}
MANAGED = GKE


@pytest.mark.parametrize("where", [GKE, site(controller=None)])
async def test_rendered_roles_are_enough(where: Site) -> None:
    """The Roles that are rendered give routers and controller all that is asked for."""
    roles = {o["metadata"]["name"]: o for o in objects(where) if o["kind"] == "Role"}
    wanted = {names.ROUTER: router_rights(where)}
    if where.spec.controller is not None:
        wanted[names.CONTROLLER] = CONTROLLER_RIGHTS
    for name, rights in wanted.items():
        api = RecordedApi({}, roles[name]["rules"])
        assert [r for r in rights if not api.allows(asked(r))] == []


def asked(right: Right) -> Json:
    named = {"name": right.name} if right.name else {}
    return {"verb": right.verb, "group": right.group, "resource": right.resource, **named}


async def test_rights_of_accounts() -> None:
    """An account that lost a right is a problem that names it; one that has all is sound."""
    rules = rules_of(objects(MANAGED))
    cluster = Cluster(RecordedApi(ACCOUNTS, rules), "baton", site=MANAGED)
    assert [f.level for f in await examined(cluster, "rights")] == [Level.OK] * 3
    roles = [o for o in objects(MANAGED) if o["metadata"]["name"] == names.ROUTER]
    cluster = Cluster(RecordedApi(ACCOUNTS, rules_of(roles)), "baton", site=MANAGED)
    found = await examined(cluster, "rights")
    assert [f.level for f in found] == [Level.OK, Level.OK, Level.PROBLEM]
    assert (
        "the controller may not get or list or watch or create or patch or delete " in found[2].seen
    )
    # Before anything is deployed there are no accounts, and no blame.
    cluster = Cluster(RecordedApi({}), "baton", site=MANAGED)
    assert [f.level for f in await examined(cluster, "rights")] == [Level.OK]


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("4", 4.0), ("3920m", 3.92), ("1Ki", 1024.0), ("12500000Ki", 12_800_000_000.0),
        ("2G", 2e9), ("0", 0.0), ("", 0.0), (None, 0.0), ("1.2.3", 0.0), ("5Xi", 0.0),
    ],
)  # fmt: skip
def test_quantity(text: object, amount: float) -> None:
    """Amounts as Kubernetes writes them; what is none is nothing, and no error."""
    assert quantity(text) == pytest.approx(amount)


def node(name: str, **allocatable: str) -> Json:
    return {
        "metadata": {
            "name": name, "labels": {"cloud.google.com/gke-accelerator": "nvidia-l4"}
        },
        "status": {
            "allocatable": {key.replace("__", "/"): value for key, value in allocatable.items()},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }  # fmt: skip


def test_pools_share_nodes() -> None:
    """What one pool's pods take is gone for the next; cores and memory count as devices do."""
    (need,) = [n for n in pool_needs(PROFILE, GKE) if n.role is Role.DECODE]
    given = {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "3"}
    one = node("a")
    one["status"]["allocatable"] = given
    places: dict[str, Place] = {}
    assert judge_pool(need, [one], places)[0] is Level.OK
    # Two of three cards and six of eight cores are gone.
    level, seen, _ = judge_pool(need, [one], places)
    assert (level, "on 1 node for 0" in seen) == (Level.WARNING, True)


def test_needs_follow_the_site() -> None:
    """Kinds are wanted for what the site asks for, and devices are claimed where it claims them."""
    assert [need.plural for need in kind_needs(None)] == ["leaderworkersets"]
    keda = (
        "  autoscaling: {kind: keda, prometheus_url: 'http://p:9090'}\n"
        "  queue: {local_queue: l}\n"
        "  gateway: {kind: inferencepool, gateway_class: g}\n"
        "  workload: disaggregatedset\n"
    )
    assert {need.plural for need in kind_needs(small_site(keda))} == {
        "leaderworkersets", "disaggregatedsets", "gateways", "httproutes", "inferencepools",
        "localqueues", "scaledobjects",
    }  # fmt: skip
    assert pool_needs(PROFILE, site(dra=True))[0].resource is None
    assert pool_needs(PROFILE, GKE)[0].requests()["nvidia.com/gpu"] == 1
    rdma = PROFILE.spec.model_copy(update={"transfer": TransferSpec(transport="rdma")})  # type: ignore[arg-type]
    profile = PROFILE.model_copy(update={"spec": rdma})
    wanted = pool_needs(profile, load_site("onprem"))[0].requests()
    assert wanted["rdma/hca_shared_devices_a"] == 1


async def test_plug_ins_that_wait_for_nodes() -> None:
    """Pools of nodes that grow from none are no fault: the plug-ins are there, without a node."""
    waiting = {"metadata": {"name": "nvidia-gpu-device-plugin-x"}, "status": {}}
    there: dict[str, Json] = {"/apis/apps/v1/daemonsets": {"items": [waiting]}}
    found = await examined(Cluster(RecordedApi(there), "baton", PROFILE, GKE), "plugins")
    assert [f.level for f in found] == [Level.NOTE]
    found = await examined(Cluster(RecordedApi({}), "baton", PROFILE, GKE), "plugins")
    assert [f.level for f in found] == [Level.PROBLEM]


async def test_device_classes() -> None:
    """Where devices are claimed, their classes are looked for instead of plug-ins."""
    cluster = Cluster(RecordedApi({}), "baton", PROFILE, site(dra=True))
    found = await examined(cluster, "plugins")
    assert [(f.level, "gpu.nvidia.com" in f.seen) for f in found] == [(Level.PROBLEM, True)]
    there: dict[str, Json] = {"/apis/resource.k8s.io/v1/deviceclasses/gpu.nvidia.com": {}}
    cluster = Cluster(RecordedApi(there), "baton", PROFILE, site(dra=True))
    assert [f.level for f in await examined(cluster, "plugins")] == [Level.OK]


@pytest.mark.parametrize(
    ("version", "spec", "level"),
    [
        ("v1.33.1", {"dra": True}, Level.PROBLEM),
        ("v1.34.0-gke.1", {"dra": True}, Level.OK),
        ("v1.30.0", {}, Level.OK),
        ("v1.29.9+k3s1", {}, Level.PROBLEM),
    ],
)
async def test_versions(version: str, spec: Json, level: Level) -> None:
    """What the site uses decides which version is old enough."""
    cluster = Cluster(
        RecordedApi({"/version": {"gitVersion": version}}), "baton", site=site(**spec)
    )
    assert [f.level for f in await examined(cluster, "api")] == [level]


CLAIM = "/api/v1/namespaces/baton/persistentvolumeclaims/models"


@pytest.mark.parametrize(
    ("found", "level", "seen"),
    [
        (None, Level.PROBLEM, "no PersistentVolumeClaim models"),
        ({"status": {"phase": "Pending"}}, Level.PROBLEM, "Pending"),
        (
            {"status": {"phase": "Bound"}, "spec": {"accessModes": ["ReadWriteOnce"]}},
            Level.WARNING, "one node at a time",
        ),
        (
            {"status": {"phase": "Bound"}, "spec": {"accessModes": ["ReadOnlyMany"]}},
            Level.OK, "bound",
        ),
    ],
)  # fmt: skip
async def test_volumes(found: Json | None, level: Level, seen: str) -> None:
    """The claim that weights are in has to be bound, and to be had on several nodes."""
    weights = small_site("  weights: {kind: pvc, claim: models, folder: m}\n")
    cluster = Cluster(RecordedApi({CLAIM: found} if found else {}), "baton", site=weights)
    said = await examined(cluster, "volumes")
    assert [(f.level, seen in f.seen) for f in said] == [(level, True)]


NOW_S = 1_800_000_000.0
"""2027-01-15T08:00:00Z."""


@pytest.mark.parametrize(
    ("due", "nodes", "level", "seen", "todo"),
    [
        ("07:59:00", {"n": "False"}, Level.PROBLEM, "node n is not ready", "out-of-service"),
        ("07:59:00", {"n": "Unknown"}, Level.PROBLEM, "60 s ago", "really off"),
        ("07:59:00", {"o": "True"}, Level.PROBLEM, "its node n is no more", "--force"),
        ("07:59:00", {"n": "True"}, Level.WARNING, "Terminating, on node n", "finalizer"),
        ("07:59:00", None, Level.WARNING, "Terminating, on node n", "describe"),
        # Within its grace period, or hardly after it, a pod may well be there.
        ("08:01:00", {"n": "False"}, Level.OK, "1 pod, all ready", ""),
        ("07:59:50", {"n": "False"}, Level.OK, "1 pod, all ready", ""),
    ],
)
async def test_pods_that_should_have_ended(
    due: str, nodes: Mapping[str, str] | None, level: Level, seen: str, todo: str
) -> None:
    """On a node that is lost they stay, and nobody makes others: said with what to do. Where we may
    not read nodes, the pod is named all the same."""

    class Api(RecordedApi):
        async def call(self, method: str, path: str, **more: Any) -> tuple[int, Json]:
            if path == "/api/v1/nodes" and nodes is None:
                return 403, {}
            return await super().call(method, path, **more)

    pod = {
        "metadata": {"name": "baton-decode-0", "deletionTimestamp": f"2027-01-15T{due}Z"},
        "spec": {"nodeName": "n"},
    }
    rows = [
        {"metadata": {"name": name}, "status": {"conditions": [{"type": "Ready", "status": is_so}]}}
        for name, is_so in (nodes or {}).items()
    ]
    api = Api({"/api/v1/namespaces/baton/pods": {"items": [pod]}, "/api/v1/nodes": {"items": rows}})
    (said,) = await examined(Cluster(api, "baton", now=lambda: NOW_S), "pods")
    assert (said.level, seen in said.seen, todo in said.todo) == (level, True, True), said


@pytest.mark.parametrize(("size", "todo"), [(1, "the workers' logs"), (2, "logs -f --prefix -l")])
async def test_logs_of_groups_are_followed(size: int, todo: str) -> None:
    """A worker of one pod keeps its last log; a group that is made anew takes its logs along."""
    group = {
        "metadata": {"name": "baton-decode", "creationTimestamp": "2027-01-15T06:00:00Z"},
        "spec": {"replicas": 1, "leaderWorkerTemplate": {"size": size}},
        "status": {"conditions": [{"type": "Progressing", "status": "True"}]},
    }
    path = "/apis/leaderworkerset.x-k8s.io/v1/namespaces/baton/leaderworkersets"
    api = RecordedApi({path: {"items": [group]}})
    (said,) = await examined(Cluster(api, "baton", now=lambda: NOW_S), "pools")
    assert (said.level, todo in said.todo) == (Level.WARNING, True), said


def test_pairs_below_the_floor() -> None:
    """Bandwidth is judged where it was measured exactly: a lower bound proves nothing, and pairs of
    several processes count once."""
    row = {"prefill": "p", "decode": "d", "state": "ready", "bandwidth_bytes_per_s": 1e8}
    exact = [{**row, "exact": True}, {**row, "exact": True, "process": 1}]
    ((level, seen, _),) = judge_pairs(exact, 1000.0)
    assert (level, seen.startswith("1 pair slow")) == (Level.WARNING, True)
    assert [said[0] for said in judge_pairs([{**row, "exact": False}], 1000.0)] == [Level.OK]
    assert [said[0] for said in judge_pairs(exact, None)] == [Level.OK]
    assert judge_pairs([], None) == []


def test_names_of_accounts() -> None:
    """The accounts that are asked about are those that are rendered."""
    accounts = {f["metadata"]["name"] for f in router.access() if f["kind"] == "ServiceAccount"}
    assert accounts == {names.ROUTER}

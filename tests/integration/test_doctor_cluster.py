"""A doctor and a cluster: nothing but good of a sound one, of each fault exactly its finding."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from baton.cli.doctor import Plan, Wanted, run_cluster
from baton.kube import Access, KubeApi
from deploy.doctor import CLUSTER_CHECKS, Cluster, Finding, Level, NoRouter, examine_cluster
from deploy.lws.site import Site, load_site
from profiles import TransferSpec, resolve_profile
from tests.fakes.kubernetes_api import NOBODY, FakeKubernetes, Row, custom

NOW = 1_800_000_000.0
SPACE = "baton"
DAEMON_SETS = Row("apps", "v1", "daemonsets", "DaemonSet", status=True)
POD_MONITORING = custom("monitoring.googleapis.com", "v1", "podmonitorings", "PodMonitoring")
OURS = {"app.kubernetes.io/name": "baton"}

PROFILE = """\
apiVersion: baton/v1
kind: ServingProfile
metadata: {name: demo}
spec:
  mode: standard
  model: {source: demo}
  pools: {standard: {accelerator: cpu}}
"""

STATUS: Mapping[str, Any] = {
    "profile": {"name": "disaggregated"},
    "workers": [
        {"record": {"id": "baton-prefill-0", "state": "ready"}, "breaker": "closed"},
        {"record": {"id": "baton-decode-0", "state": "ready"}, "breaker": "closed"},
    ],
    "handoffs": {"open": [], "stranded": []},
}
PAIR: Mapping[str, Any] = {
    "prefill": "baton-prefill-0",
    "decode": "baton-decode-0",
    "state": "ready",
    "reason": "",
    "bandwidth_bytes_per_s": 3.0e9,
    "exact": True,
}


def stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def node(gpus: int, kind: str, **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"labels": {"cloud.google.com/gke-accelerator": kind}},
        "spec": {
            "taints": [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}],
            **spec,
        },
        "status": {
            "allocatable": {
                "cpu": "11900m" if "a100" in kind else "3920m",
                "memory": "160Gi" if "a100" in kind else "12500000Ki",
                "nvidia.com/gpu": str(gpus),
                "pods": "110",
            },
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def pod(**status: Any) -> dict[str, Any]:
    ready = {
        "phase": "Running",
        "conditions": [
            {"type": "PodScheduled", "status": "True"},
            {"type": "Ready", "status": "True"},
        ],
        "containerStatuses": [{"name": "worker", "restartCount": 0, "state": {"running": {}}}],
    }
    made = {"labels": OURS, "creationTimestamp": stamp(NOW - 300)}
    return {"metadata": made, "spec": {}, "status": {**ready, **status}}


def locking_site() -> Site:
    """The site "onprem" whose RDMA pods get the capability IPC_LOCK."""
    site = load_site("onprem")
    assert site.spec.rdma is not None
    rdma = site.spec.rdma.model_copy(update={"ipc_lock": True})
    return site.model_copy(update={"spec": site.spec.model_copy(update={"rdma": rdma})})


def not_ready(**more: Any) -> dict[str, Any]:
    return pod(
        conditions=[
            {"type": "PodScheduled", "status": "True"},
            {"type": "Ready", "status": "False"},
        ],
        **more,
    )


@dataclass
class Patient:
    """A cluster with everything deployed, and what a router of it says."""

    fake: FakeKubernetes
    folder: Path
    said: dict[str, Mapping[str, Any]] = field(
        default_factory=lambda: {"/admin/status": STATUS, "/admin/pairs": {"pairs": [PAIR]}}
    )
    profile: str = "disaggregated"
    token: str = ""
    router_error: str = ""

    def build(self) -> None:
        """Deploys."""
        fake = self.fake
        fake.install(DAEMON_SETS)
        fake.install(POD_MONITORING)
        deployment = {"spec": {"replicas": 1}, "status": {"readyReplicas": 1}}
        fake.put("deployments", "lws-system", "lws-controller-manager", deployment)
        fake.put("deployments", SPACE, "baton-router", {"spec": {"replicas": 2}})
        fake.put("serviceaccounts", SPACE, "baton-router", {})
        fake.put("nodes", "", "a2-0", node(1, "nvidia-a100-80gb"))
        for name in ("g2-0", "g2-1"):
            fake.put("nodes", "", name, node(1, "nvidia-l4"))
        for number, name in enumerate(("a2-0", "g2-0", "g2-1")):
            self.renewed(name, NOW - 3 * number)
        plug_in = {"status": {"desiredNumberScheduled": 3, "numberReady": 3}}
        fake.put("daemonsets", "kube-system", "nvidia-gpu-device-plugin-large", plug_in)
        token = base64.b64encode(b"x" * 32).decode()
        secret = {"data": {"cluster-token": token, "admin-token": token}}
        fake.put("secrets", SPACE, "baton-tokens", secret)
        profiles = {"active": "demo\n", "demo.yaml": PROFILE}
        fake.put("configmaps", SPACE, "baton-profiles", {"data": profiles})
        for role, replicas in (("prefill", 1), ("decode", 2)):
            content = {
                "metadata": {"labels": OURS, "creationTimestamp": stamp(NOW - 3600)},
                "spec": {"replicas": replicas},
                "status": {
                    "readyReplicas": replicas,
                    "conditions": [{"type": "Available", "status": "True"}],
                },
            }
            fake.put("leaderworkersets", SPACE, f"baton-{role}", content)
            for index in range(replicas):
                fake.put("pods", SPACE, f"baton-{role}-{index}", pod())
        for index in range(2):
            fake.put("pods", SPACE, f"baton-router-5d8f-{index}", pod())

    def renewed(self, name: str, at: float) -> None:
        """A node's Lease."""
        spec = {
            "holderIdentity": name,
            "leaseDurationSeconds": 40,
            "renewTime": stamp(at),
        }
        self.fake.put("leases", "kube-node-lease", name, {"spec": spec})

    def event(self, name: str, reason: str, message: str, age_s: float = 60.0) -> None:
        """A Warning about an object of ours."""
        content = {
            "type": "Warning",
            "reason": reason,
            "message": message,
            "involvedObject": {"kind": "Pod", "name": name, "namespace": SPACE},
            "lastTimestamp": stamp(NOW - age_s),
        }
        self.fake.put("events", SPACE, f"{name}.{reason.lower()}", content)

    async def ask(self, path: str) -> Mapping[str, Any]:
        if self.router_error:
            raise NoRouter(self.router_error)
        return self.said[path]

    async def examined(self) -> list[Finding]:
        more = {"token": self.token} if self.token else {}
        api = KubeApi(Access(str(self.fake.kubeconfig(self.folder, **more)), SPACE))
        profile = resolve_profile("disaggregated")
        if self.profile == "rdma":
            transfer = TransferSpec(transport="rdma")  # type: ignore[arg-type]
            spec = profile.spec.model_copy(update={"transfer": transfer})
            profile = profile.model_copy(update={"spec": spec})
        site = locking_site() if self.profile == "rdma" else load_site("gke")
        try:
            cluster = Cluster(api, SPACE, profile, site, self.ask, lambda: NOW)
            return await examine_cluster(CLUSTER_CHECKS, cluster)
        finally:
            await api.close()


@pytest.fixture(name="patient")
async def _patient(tmp_path: Path) -> AsyncIterator[Patient]:
    async with FakeKubernetes() as fake:
        found = Patient(fake, tmp_path)
        found.build()
        yield found


def unwell(found: list[Finding]) -> list[Finding]:
    return [finding for finding in found if finding.level in (Level.WARNING, Level.PROBLEM)]


async def test_sound_cluster(patient: Patient) -> None:
    """Of a cluster that has everything, every check says something and none warns."""
    found = await patient.examined()
    assert unwell(found) == []
    assert {finding.check for finding in found} == {
        check.name for check in CLUSTER_CHECKS if check.name != "volumes"
    }
    writes = {verb for verb, what in patient.fake.calls if not what.endswith("accessreviews")}
    assert writes <= {"get", "list"}, "a doctor changed something"


async def test_before_the_first_deployment(patient: Patient) -> None:
    """A cluster that is ready for Baton, with its tokens made, is not blamed for having none."""
    fake = patient.fake
    for name in [found["metadata"]["name"] for found in fake.all("pods", SPACE)]:
        fake.delete("pods", SPACE, name)
    for name in ("baton-prefill", "baton-decode"):
        fake.delete("leaderworkersets", SPACE, name)
    fake.delete("deployments", SPACE, "baton-router")
    fake.delete("configmaps", SPACE, "baton-profiles")
    found = await patient.examined()
    assert unwell(found) == []
    assert {f.check for f in found if f.level is Level.NOTE} >= {"configs", "pods"}


async def test_passing_trouble_is_no_alarm(patient: Patient) -> None:
    """Probes that fail while models load, events that are over or old, others' events, a pod that
    starts: none of them is a warning."""
    patient.event("baton-decode-0", "Unhealthy", "Startup probe failed: HTTP 503")
    patient.event("baton-decode-1", "FailedScheduling", "0/3 nodes are available")
    patient.event("baton-decode-9", "FailedScheduling", "0/3 nodes are available", 3600)
    patient.event("other-0", "BackOff", "not ours")
    patient.fake.put("pods", SPACE, "baton-decode-2", not_ready())
    patient.event("baton-decode-2", "Unhealthy", "Startup probe failed: HTTP 503")
    progressing = {"type": "Progressing", "status": "True"}
    moved = {**progressing, "lastTransitionTime": stamp(NOW - 120)}
    content = {"spec": {"replicas": 3}, "status": {"readyReplicas": 2, "conditions": [moved]}}
    patient.fake.put("leaderworkersets", SPACE, "baton-decode", content)
    assert unwell(await patient.examined()) == []


def change(plural: str, name: str, content: dict[str, Any], space: str = SPACE) -> Any:
    return lambda patient: patient.fake.put(plural, space, name, content)


def tainted(patient: Patient) -> None:
    other = [{"key": "team", "value": "b", "effect": "NoSchedule"}]
    patient.fake.put("nodes", "", "a2-0", node(1, "nvidia-a100-80gb", taints=other))


def cordoned(patient: Patient) -> None:
    for name in ("g2-0", "g2-1"):
        patient.fake.put("nodes", "", name, node(1, "nvidia-l4", unschedulable=True))


def uninstalled(patient: Patient) -> None:
    rows = patient.fake.kinds.values()
    patient.fake.uninstall(next(row for row in rows if row.plural == "leaderworkersets"))


def older_kind(patient: Patient) -> None:
    uninstalled(patient)
    group = "leaderworkerset.x-k8s.io"
    patient.fake.install(custom(group, "v1alpha1", "leaderworkersets", "LeaderWorkerSet"))


def no_rights_yet(patient: Patient) -> None:
    patient.fake.delete("deployments", SPACE, "baton-router")
    patient.fake.deny("create", "networkpolicies")


def version(text: str) -> Any:
    return lambda patient: patient.fake.server_version.update(gitVersion=text)


def pairs(**fields: Any) -> Any:
    return lambda patient: patient.said.update({"/admin/pairs": {"pairs": [{**PAIR, **fields}]}})


def statuses(**fields: Any) -> Any:
    return lambda patient: patient.said.update({"/admin/status": {**STATUS, **fields}})


FAULTS: list[tuple[str, Callable[[Patient], Any], str, Level, str, str]] = [
    ("an old cluster", version("v1.27.3-gke.100"), "api", Level.PROBLEM, "v1.27.3", "upgrade"),
    (
        "no LeaderWorkerSet", uninstalled,
        "crds", Level.PROBLEM, "leaderworkersets.leaderworkerset.x-k8s.io", "kubectl apply",
    ),
    (
        "no PodMonitoring", lambda p: p.fake.uninstall(POD_MONITORING),
        "crds", Level.PROBLEM, "podmonitorings", "Managed Prometheus",
    ),
    (
        "an old LeaderWorkerSet", older_kind,
        "crds", Level.PROBLEM, "v1alpha1, not v1", "kubectl apply",
    ),
    (
        "no controller",
        lambda p: p.fake.delete("deployments", "lws-system", "lws-controller-manager"),
        "lws", Level.PROBLEM, "lws-controller-manager", "install",
    ),
    (
        "a controller that does not run",
        change("deployments", "lws-controller-manager", {"spec": {"replicas": 1}}, "lws-system"),
        "lws", Level.PROBLEM, "0 of 1 pods ready", "describe",
    ),
    (
        "rights that are missing before the first deployment", no_rights_yet,
        "rights", Level.WARNING, "may not create networkpolicies", "ClusterRole",
    ),
    (
        "a node pool that is missing", lambda p: p.fake.delete("nodes", "", "a2-0"),
        "nodes", Level.WARNING, "gke-accelerator=nvidia-a100-80gb", "node_selector",
    ),
    (
        "no device plug-in on a node",
        change("nodes", "a2-0", node(0, "nvidia-a100-80gb"), ""),
        "nodes", Level.PROBLEM, "of 1 node with", "device plug-in",
    ),
    (
        "too few nodes", lambda p: p.fake.delete("nodes", "", "g2-1"),
        "nodes", Level.WARNING, "on 1 node for 1", "add nodes",
    ),
    ("a taint", tainted, "nodes", Level.PROBLEM, "team=b:NoSchedule", "tolerations"),
    ("cordoned nodes", cordoned, "nodes", Level.PROBLEM, "unschedulable", "uncordon"),
    (
        "a plug-in that is down",
        change(
            "daemonsets", "nvidia-gpu-device-plugin-large",
            {"status": {"desiredNumberScheduled": 3, "numberReady": 2}}, "kube-system",
        ),
        "plugins", Level.WARNING, "2 of 3", "describe daemonset",
    ),
    (
        "a clock ahead of the others", lambda p: p.renewed("g2-1", NOW + 20),
        "clocks", Level.WARNING, "g2-1", "chronyc",
    ),
    (
        "a clock behind the others", lambda p: p.renewed("g2-1", NOW - 45),
        "clocks", Level.WARNING, "ahead of g2-1", "chronyc",
    ),
    (
        "no tokens", lambda p: p.fake.delete("secrets", SPACE, "baton-tokens"),
        "tokens", Level.PROBLEM, "no Secret baton-tokens", "kubectl -n baton create secret",
    ),
    (
        "a short token",
        change(
            "secrets", "baton-tokens", {"data": {"cluster-token": "YWI=", "admin-token": "eA=="}}
        ),
        "tokens", Level.PROBLEM, "cluster-token and admin-token", "openssl",
    ),
    (
        "no profiles", lambda p: p.fake.delete("configmaps", SPACE, "baton-profiles"),
        "configs", Level.PROBLEM, "routers have no profile", "apply",
    ),
    (
        "a wrong profile",
        change(
            "configmaps", "baton-profiles",
            {"data": {"active": "demo", "demo.yaml": PROFILE, "b.yaml": "kind: Other\n"}},
        ),
        "configs", Level.PROBLEM, "baton-profiles/b.yaml", "baton profile validate",
    ),
    (
        "an active profile that is not there",
        change("configmaps", "baton-profiles", {"data": {"active": "x", "demo.yaml": PROFILE}}),
        "configs", Level.PROBLEM, "active is 'x'; there are demo", "such as Git",
    ),
    (
        "a wrong site",
        change("configmaps", "baton-site", {"data": {"site.yaml": "kind: Site\n"}}),
        "configs", Level.PROBLEM, "baton-site", "correct it",
    ),
    (
        "an image that cannot be pulled",
        change(
            "pods", "baton-decode-1",
            not_ready(containerStatuses=[
                {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}}
            ]),
        ),
        "pods", Level.PROBLEM, "baton-decode-1: ImagePullBackOff", "pull_secret",
    ),
    (
        "a pod that keeps ending",
        change(
            "pods", "baton-decode-1",
            not_ready(containerStatuses=[
                {"restartCount": 4, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}
            ]),
        ),
        "pods", Level.PROBLEM, "CrashLoopBackOff", "logs --previous",
    ),
    (
        "too little memory",
        change(
            "pods", "baton-decode-1",
            not_ready(containerStatuses=[
                {"restartCount": 2, "lastState": {"terminated": {"reason": "OOMKilled"}}}
            ]),
        ),
        "pods", Level.PROBLEM, "memory was not enough (2 restarts)", "memory_gib",
    ),
    (
        "a pod without a node",
        change(
            "pods", "baton-decode-1",
            pod(phase="Pending", conditions=[
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                 "message": "0/3 nodes are available"}
            ]),
        ),
        "pods", Level.WARNING, "0/3 nodes", "check nodes",
    ),
    (
        "a warning of the scheduler",
        lambda p: p.event("baton-decode-7", "FailedMount", "MountVolume failed"),
        "events", Level.WARNING, "FailedMount: MountVolume failed", "get events",
    ),
    (
        "a set that nobody looks after",
        change("leaderworkersets", "baton-decode", {"spec": {"replicas": 2}}),
        "pools", Level.PROBLEM, "nobody has looked after it", "lws",
    ),
    (
        "groups that are not ready",
        change(
            "leaderworkersets", "baton-decode",
            {"spec": {"replicas": 2}, "status": {
                "readyReplicas": 1, "conditions": [{"type": "Progressing", "status": "True"}]}},
        ),
        "pools", Level.WARNING, "1 of 2 groups ready", "pods",
    ),
    (
        "no ready worker", statuses(workers=[{"record": {"id": "a", "state": "starting"}}]),
        "router", Level.PROBLEM, "1 starting; nothing can be answered", "pods",
    ),
    (
        "a suspect worker", statuses(workers=[*STATUS["workers"], {
            "record": {"id": "bad-1", "state": "ready"}, "suspect": True}]),
        "router", Level.WARNING, "bad-1 is suspect", "baton drain bad-1",
    ),
    (
        "a quarantined pair", pairs(state="quarantined", reason="first tokens differ"),
        "router", Level.PROBLEM, "first tokens differ", "release",
    ),
    (
        "a slow pair", pairs(state="slow", bandwidth_bytes_per_s=5.0e8, reason="below the floor"),
        "router", Level.WARNING, "0.47 GiB/s", "--peer",
    ),
    (
        "a router that does not answer", lambda p: setattr(p, "router_error", "nothing listens"),
        "router", Level.PROBLEM, "nothing listens", "port-forward",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("break_it", "check", "level", "seen", "todo"),
    [row[1:] for row in FAULTS],
    ids=[row[0] for row in FAULTS],
)
async def test_faults(
    patient: Patient, break_it: Any, check: str, level: Level, seen: str, todo: str
) -> None:
    """Each fault by itself is found, by one check, with what was seen and with what to do."""
    break_it(patient)
    found = unwell(await patient.examined())
    assert [(finding.check, finding.level) for finding in found] == [(check, level)], found
    assert seen in found[0].seen
    assert todo in found[0].todo


async def test_rdma(patient: Patient) -> None:
    """A profile over RDMA needs its resource on the nodes, and a namespace that allows IPC_LOCK."""
    fake = patient.fake
    patient.profile = "rdma"
    for row in ("podmonitors", "prometheusrules"):
        kind = "PodMonitor" if row == "podmonitors" else "PrometheusRule"
        fake.install(custom("monitoring.coreos.com", "v1", row, kind))
    for name, product, gpus in (("a", "NVIDIA-A100-SXM4-80GB", 8), ("b", "NVIDIA-L4", 8)):
        offered = {"cpu": "96", "memory": "1000Gi", "nvidia.com/gpu": str(gpus)}
        content: dict[str, Any] = {
            "metadata": {"labels": {"nvidia.com/gpu.product": product}},
            "status": {
                "allocatable": {**offered, "rdma/hca_shared_devices_a": "63"},
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }
        fake.put("nodes", "", name, content)
    assert unwell(await patient.examined()) == []
    content["status"]["allocatable"] = offered
    fake.put("nodes", "", "b", content)
    enforce = {"pod-security.kubernetes.io/enforce": "restricted"}
    fake.put("namespaces", "", SPACE, {"metadata": {"labels": enforce}})
    found = unwell(await patient.examined())
    assert [(f.check, f.level) for f in found] == [
        ("nodes", Level.PROBLEM),
        ("namespace", Level.PROBLEM),
    ]
    assert "rdma/hca_shared_devices_a" in found[0].seen
    assert "IPC_LOCK" in found[1].seen


async def test_what_we_may_not_see(patient: Patient) -> None:
    """Somebody who may read nothing gets notes of what was not checked, and one warning that he may
    not deploy; no fault is made up."""
    patient.token = NOBODY
    found = await patient.examined()
    assert [(f.check, f.level) for f in unwell(found)] == [("rights", Level.WARNING)]
    assert sum(f.seen.startswith("not checked: we may not read") for f in found) >= 8


async def test_cluster_away(patient: Patient) -> None:
    """A cluster that does not answer is one problem, not one for each check."""
    await patient.fake.down()
    found = await patient.examined()
    assert [(f.check, f.level) for f in found] == [("api", Level.PROBLEM)]
    assert "kubectl cluster-info" in found[0].todo


async def test_nobody_we_know(patient: Patient) -> None:
    """Credentials that have run out are one problem, and not a cluster without complaints."""
    patient.token = "expired"
    found = await patient.examined()
    assert [(f.check, f.level) for f in found] == [("api", Level.PROBLEM)]
    assert "401" in found[0].seen


async def test_large_cluster(patient: Patient) -> None:
    """Lists are read by pages: a fault on the last node of hundreds is seen."""
    for number in range(450):
        patient.fake.put("nodes", "", f"n-{number:03}", node(0, "none"))
    broken = node(0, "none")
    broken["status"]["conditions"] = [{"type": "Ready", "status": "Unknown"}]
    patient.fake.put("nodes", "", "zz-last", broken)
    found = unwell(await patient.examined())
    assert [(f.check, f.seen) for f in found] == [("nodes", "node zz-last is not ready")]


async def test_what_is_deployed_is_what_is_checked(
    patient: Patient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command without a profile takes the one that is active; problems make its status 1, and
    JSON holds them."""
    monkeypatch.setenv("KUBECONFIG", str(patient.fake.kubeconfig(patient.folder)))
    patient.fake.delete("secrets", SPACE, "baton-tokens")
    patient.fake.put("namespaces", "", SPACE, {})
    wanted = Wanted((), ("clocks", "events"), verbose=False, as_json=True)
    plan = Plan(SPACE, "kind-cpu", None, None)
    code = await asyncio.to_thread(run_cluster, wanted, plan, patient.folder)
    answer = json.loads(capsys.readouterr().out)
    assert (code, answer["worst"]) == (1, "problem")
    by_check = {finding["check"]: finding for finding in answer["findings"]}
    assert by_check["tokens"]["level"] == "problem"
    assert by_check["nodes"]["seen"].startswith("standard: 1 pod on cpu")
    code = await asyncio.to_thread(
        run_cluster, replace(wanted, only=("api",), as_json=False), plan, patient.folder
    )
    assert code == 0
    assert capsys.readouterr().out.startswith("ok  api  Kubernetes v1.36.0")

"""The cluster under test: the fake, or a real API server if ``BATON_TEST_CLUSTER=1`` says so.

That variable, and not ``KUBECONFIG`` alone, so that nobody's cluster is written to by accident. A
bare API server is enough. Nothing is assumed to act on objects: a test that needs a controller of
LeaderWorkerSets plays it. Each test has a namespace of its own, with a random name, and deletes it;
where nothing empties namespaces, which is so on a bare API server, it stays there as Terminating.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from baton.kube import Access, KubeApi, find_access
from tests.cluster.definitions import ensure_kinds
from tests.fakes.kubernetes import FakeKubernetes

Json = dict[str, Any]

REAL = "BATON_TEST_CLUSTER"
CALL_S = 30.0
"""For one call to a real server, which may be far away."""

LWS = "/apis/leaderworkerset.x-k8s.io/v1"
CONTROLLER = "lws-controller-manager"
"""The Deployment of LWS's own controller, where it is installed as its documents say."""

_SWEPT = (
    f"{LWS}/namespaces/%s/leaderworkersets",
    "/apis/disaggregatedset.x-k8s.io/v1/namespaces/%s/disaggregatedsets",
    "/apis/disaggregatedset.x-k8s.io/v1/namespaces/%s/disaggregatedsetrolescalers",
    "/apis/coordination.k8s.io/v1/namespaces/%s/leases",
    "/apis/apps/v1/namespaces/%s/deployments",
    "/api/v1/namespaces/%s/configmaps",
    "/api/v1/namespaces/%s/events",
)
"""Where nobody empties namespaces (a bare API server), they are emptied by hand."""


class Cluster:
    """One API server, and a namespace in it that is the test's own.

    Attributes:
        api: with all rights.
        namespace: its name.
        kubeconfig: a file for other clients of the same server.
        fake: None if the server is a real one.
    """

    def __init__(
        self, api: KubeApi, namespace: str, kubeconfig: Path, fake: FakeKubernetes | None
    ) -> None:
        self.api = api
        self.namespace = namespace
        self.kubeconfig = kubeconfig
        self.fake = fake

    def path(self, plural: str, name: str = "", *, group: str = "") -> str:
        """Of a kind in the namespace, or of one object (and what is below it). The group is one
        with its version, and nothing for core."""
        start = f"/apis/{group}" if group else "/api/v1"
        return f"{start}/namespaces/{self.namespace}/{plural}{'/' if name else ''}{name}"

    def lws(self, name: str = "") -> str:
        """The path of LeaderWorkerSets, or of one."""
        return self.path("leaderworkersets", name, group="leaderworkerset.x-k8s.io/v1")

    async def must(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: tuple[tuple[str, str], ...] = (),
        content_type: str = "application/json",
    ) -> Json:
        """A call that has to succeed."""
        status, found = await self.api.call(
            method, path, body=body, query=query, content_type=content_type
        )
        assert status in (200, 201), found
        return found

    async def play_lws(self, name: str, *, ready: int, updated: int | None = None) -> Json:
        """Does what LWS's controller does once ``ready`` groups are: writes the status. Skips the
        test where that controller is there itself.

        Args:
            name: of a LeaderWorkerSet.
            ready: groups that are.
            updated: groups of the newest template; all of them unless said otherwise.
        """
        await self._no_controller()
        found = await self.must("GET", self.lws(name))
        wanted = found["spec"].get("replicas", 1)
        updated = wanted if updated is None else updated
        whole = ready >= wanted and updated >= wanted
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        conditions = [
            {
                "type": kind,
                "status": "True" if true else "False",
                "reason": reason,
                "message": reason,
                "lastTransitionTime": now,
            }
            for kind, true, reason in (
                ("Available", whole, "AllGroupsReady"),
                ("Progressing", not whole, "GroupsAreProgressing"),
                ("UpdateInProgress", updated < wanted, "GroupsAreUpdating"),
            )
        ]
        status = {
            "observedGeneration": found["metadata"]["generation"],
            "replicas": wanted,
            "readyReplicas": ready,
            "updatedReplicas": updated,
            "hpaPodSelector": (
                f"leaderworkerset.sigs.k8s.io/name={name},"
                "leaderworkerset.sigs.k8s.io/worker-index=0"
            ),
            "conditions": conditions,
        }
        return await self.must(
            "PATCH",
            self.lws(f"{name}/status"),
            body={"status": status},
            content_type="application/merge-patch+json",
        )

    async def nobody(self, folder: Path) -> KubeApi:
        """A connection of somebody whom the server knows and who may do nothing; close it."""
        account = {"metadata": {"name": "nobody"}}
        await self.must("POST", self.path("serviceaccounts"), body=account)
        request = {"spec": {"expirationSeconds": 600}}
        path = self.path("serviceaccounts", "nobody/token")
        token = (await self.must("POST", path, body=request))["status"]["token"]
        return self.known_as(token, folder)

    def known_as(self, token: str, folder: Path) -> KubeApi:
        """A connection with another token; close it."""
        config = yaml.safe_load(self.kubeconfig.read_text("utf-8"))
        current = next(
            one["context"] for one in config["contexts"] if one["name"] == config["current-context"]
        )
        cluster = next(one for one in config["clusters"] if one["name"] == current["cluster"])
        config["clusters"] = [cluster]
        config["users"] = [{"name": "other", "user": {"token": token}}]
        config["contexts"] = [
            {"name": "other", "context": {"cluster": cluster["name"], "user": "other"}}
        ]
        config["current-context"] = "other"
        path = folder / "other-kubeconfig"
        path.write_text(yaml.safe_dump(config), "utf-8")
        return KubeApi(Access(str(path), self.namespace), call_s=CALL_S)

    async def _no_controller(self) -> None:
        if self.fake is not None:
            return
        query = (("fieldSelector", f"metadata.name={CONTROLLER}"),)
        found = await self.must("GET", "/apis/apps/v1/deployments", query=query)
        if found["items"]:
            pytest.skip("LWS's controller runs in this cluster, and cannot be played beside it")


@pytest.fixture
async def cluster(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Cluster]:
    """The cluster, with LWS's kinds, and a new namespace."""
    namespace = f"baton-test-{secrets.token_hex(4)}"
    if os.environ.get(REAL) != "1":
        # Clients read all authorities that the machine trusts, which takes longer than the tests
        # do; the fake speaks plain HTTP.
        monkeypatch.setenv("SSL_CERT_FILE", os.devnull)
        async with FakeKubernetes() as fake:
            kubeconfig = fake.kubeconfig(tmp_path, namespace=namespace)
            api = KubeApi(Access(str(kubeconfig), namespace))
            try:
                subject = Cluster(api, namespace, kubeconfig, fake)
                await _make_namespace(subject)
                yield subject
            finally:
                await api.close()
        return
    named = os.environ.get("KUBECONFIG", "")
    if not named or os.pathsep in named:
        pytest.fail(f"{REAL}=1 needs KUBECONFIG to name one file")
    access = find_access()
    api = KubeApi(access, call_s=CALL_S)
    subject = Cluster(api, namespace, Path(access.kubeconfig), None)
    try:
        await ensure_kinds(api, lambda line: _say(request, line))
        await _make_namespace(subject)
        try:
            yield subject
        finally:
            await asyncio.shield(_clean(subject))
    finally:
        await api.close()


async def _make_namespace(subject: Cluster) -> None:
    await subject.must("POST", "/api/v1/namespaces", body={"metadata": {"name": subject.namespace}})


async def _clean(subject: Cluster) -> None:
    for path in _SWEPT:
        await subject.api.call("DELETE", path % subject.namespace)
    await subject.api.call("DELETE", f"/api/v1/namespaces/{subject.namespace}")


def _say(request: pytest.FixtureRequest, line: str) -> None:
    """Past what pytest captures."""
    manager = request.config.pluginmanager.get_plugin("capturemanager")
    assert manager is not None
    with manager.global_and_fixture_disabled():
        print(f"\n{line}")

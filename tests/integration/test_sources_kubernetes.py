"""What a cluster does to whoever watches it, and what operators see in it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from baton.clock import VirtualClock
from baton.errors import SettingsError, SourceUnavailable
from baton.kube import Access, KubeApi, find_access
from profiles.sources import Told
from profiles.sources.kubernetes import WATCH_S, KubernetesSource
from tests.fakes.kubernetes_api import FakeKubernetes
from tests.fakes.waiting import until
from tests.integration.source_contract import reading, texts
from tests.integration.test_sources_contract import Hasty

NAMES = ("serving", "profiles")


@pytest.fixture(name="cluster")
async def _cluster() -> AsyncIterator[FakeKubernetes]:
    async with FakeKubernetes() as cluster:
        yield cluster


@pytest.fixture(name="clock")
def _clock() -> VirtualClock:
    return VirtualClock(1_700_000_000.0)


@pytest.fixture(name="source")
async def _source(
    cluster: FakeKubernetes, clock: VirtualClock, tmp_path: Path
) -> AsyncIterator[KubernetesSource]:
    source = opened(cluster, clock, tmp_path)
    yield source
    await source.close()


def opened(
    cluster: FakeKubernetes, clock: VirtualClock, folder: Path, *, watch_s: float = WATCH_S
) -> KubernetesSource:
    api = KubeApi(Access(str(cluster.kubeconfig(folder)), "serving"))
    return KubernetesSource(api, *NAMES, clock, rng=Hasty(), watch_s=watch_s)


def write(cluster: FakeKubernetes, text: str) -> None:
    cluster.put("configmaps", *NAMES, {"data": {"a.yaml": text}})


def count(cluster: FakeKubernetes, verb: str) -> int:
    return sum(called == verb for called, _ in cluster.calls)


async def test_other_objects(cluster: FakeKubernetes, source: KubernetesSource) -> None:
    """Neither of the namespace nor of the name's beginning are read."""
    write(cluster, "1")
    cluster.put("configmaps", "serving", "profiles-b", {"data": {"b.yaml": "other"}})
    cluster.put("configmaps", "elsewhere", "profiles", {"data": {"c.yaml": "other"}})
    async with reading(source) as reader:
        await reader.until(lambda bundle: texts(bundle) == {"1"})
        cluster.put("configmaps", "serving", "profiles-b", {"data": {"b.yaml": "again"}})
        write(cluster, "2")
        await reader.until(lambda bundle: texts(bundle) == {"2"})
        assert len(reader.bundles) == 2
        assert set(reader.bundles[0].texts) == {"configmap serving/profiles, key a.yaml"}


async def test_a_deleted_configmap(cluster: FakeKubernetes, source: KubernetesSource) -> None:
    """Is an empty bundle, and so is one that is not made yet."""
    async with reading(source) as reader:
        await reader.until(lambda bundle: not bundle.texts)
        write(cluster, "1")
        await reader.until(lambda bundle: texts(bundle) == {"1"})
        cluster.delete("configmaps", *NAMES)
        await reader.until(lambda bundle: not bundle.texts)
        write(cluster, "2")
        await reader.until(lambda bundle: texts(bundle) == {"2"})


async def test_a_watch_resumes(cluster: FakeKubernetes, source: KubernetesSource) -> None:
    """Where it was, without another list: a change in the gap is not missed."""
    write(cluster, "1")
    async with reading(source) as reader:
        await until(lambda: cluster.watches)
        cluster.drop_watches()
        write(cluster, "2")
        await reader.until(lambda bundle: texts(bundle) == {"2"})
        cluster.drop_watches()
        await until(lambda: count(cluster, "watch") >= 3)
        assert count(cluster, "list") == 1


async def test_a_watch_ends_by_itself(
    cluster: FakeKubernetes, clock: VirtualClock, tmp_path: Path
) -> None:
    """After its seconds, and the next one begins at once."""
    source = opened(cluster, clock, tmp_path, watch_s=1.0)
    write(cluster, "1")
    async with reading(source) as reader:
        await until(lambda: count(cluster, "watch") >= 2)
        write(cluster, "2")
        await reader.until(lambda bundle: texts(bundle) == {"2"})
    assert count(cluster, "list") == 1
    await source.close()


@pytest.mark.parametrize("bookmarked", [False, True])
async def test_a_compacted_history(
    bookmarked: bool, cluster: FakeKubernetes, source: KubernetesSource
) -> None:
    """410 has it list again; a bookmark in time spares that."""
    write(cluster, "1")
    async with reading(source) as reader:
        await until(lambda: cluster.watches)
        cluster.put("configmaps", "serving", "other", {"data": {}})
        if bookmarked:
            cluster.bookmark()
        cluster.compact()
        cluster.drop_watches()
        await until(lambda: count(cluster, "watch") >= 2)
        await until(lambda: cluster.watches)
        write(cluster, "2")
        await reader.until(lambda bundle: texts(bundle) == {"2"})
        assert count(cluster, "list") == (1 if bookmarked else 2)


async def test_an_old_object(cluster: FakeKubernetes, source: KubernetesSource) -> None:
    """A ConfigMap that was written before the history begins is watched all the same."""
    write(cluster, "1")
    cluster.put("configmaps", "serving", "other", {"data": {}})
    cluster.compact()
    async with reading(source) as reader:
        await until(lambda: cluster.watches)
        write(cluster, "2")
        await reader.until(lambda bundle: texts(bundle) == {"2"})
        assert count(cluster, "list") == 1


async def test_410_in_the_stream(cluster: FakeKubernetes, source: KubernetesSource) -> None:
    """Lists again, and says nothing twice."""
    write(cluster, "1")
    async with reading(source) as reader:
        await until(lambda: cluster.watches)
        cluster.expire_watches()
        await until(lambda: count(cluster, "list") == 2)
        await until(lambda: cluster.watches)
        write(cluster, "2")
        await reader.until(lambda bundle: texts(bundle) == {"2"})
        assert len(reader.bundles) == 2


@pytest.mark.parametrize("verb", ["list", "watch"])
async def test_a_missing_role(
    verb: str,
    cluster: FakeKubernetes,
    source: KubernetesSource,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Is told once, with the verb and the resource; once it is given, all goes on."""
    caplog.set_level(logging.INFO, "profiles.sources")
    write(cluster, "1")
    cluster.deny(verb, "configmaps")
    async with reading(source) as reader:
        await until(lambda: count(cluster, verb) >= 4)
        assert len(caplog.records) == 1
        assert f"not allowed to {verb} configmaps" in caplog.text
        assert "resourceNames [profiles]" in caplog.text
        cluster.allow(verb, "configmaps")
        await until(lambda: cluster.watches)
        write(cluster, "2")
        await reader.until(lambda bundle: texts(bundle) == {"2"})
        await until(lambda: len(caplog.records) == 2)


async def test_a_wrong_token(cluster: FakeKubernetes, source: KubernetesSource) -> None:
    """Says so."""
    cluster.known_token = "another"
    with pytest.raises(SourceUnavailable, match="does not know who asks") as caught:
        await source.read()
    assert "fake-token" not in caught.value.message


async def test_a_renewed_token(
    cluster: FakeKubernetes, source: KubernetesSource, tmp_path: Path
) -> None:
    """Is read from where the old one was."""
    write(cluster, "1")
    assert texts(await source.read()) == {"1"}
    cluster.known_token = "renewed"
    cluster.kubeconfig(tmp_path, token="renewed")
    assert texts(await source.read()) == {"1"}


async def test_binary_data(cluster: FakeKubernetes, source: KubernetesSource) -> None:
    """A profile there is refused with the reason; a picture is nobody's business."""
    content = {"data": {"a.yaml": "1"}, "binaryData": {"b.yaml": "//4=", "logo.png": "//4="}}
    cluster.put("configmaps", *NAMES, content)
    bundle = await source.read()
    assert texts(bundle) == {"1"}
    (line,) = bundle.problems.values()
    assert line.startswith("configmap serving/profiles, key b.yaml: stands under binaryData")


TOLD = Told(active="a", version="123", phase="canary", problems=("x:1: bad", "y: worse"))


async def test_status(
    cluster: FakeKubernetes, clock: VirtualClock, source: KubernetesSource
) -> None:
    """Is made, written when it differs, and left alone when it does not."""
    await source.tell(TOLD)
    first = cluster.get("configmaps", "serving", "profiles-status")
    assert first is not None
    assert first["data"] == {
        "active": "a",
        "version": "123",
        "phase": "canary",
        "problems": "x:1: bad\ny: worse",
        "updated": "2023-11-14T22:13:20Z",
    }
    clock.advance(5)
    await source.tell(TOLD)
    assert cluster.get("configmaps", "serving", "profiles-status") == first
    await source.tell(Told(active="b", version="456"))
    second = cluster.get("configmaps", "serving", "profiles-status")
    assert second is not None
    assert second["data"]["active"] == "b"
    assert second["data"]["problems"] == ""
    assert second["data"]["updated"] == "2023-11-14T22:13:25Z"


async def test_events(
    cluster: FakeKubernetes, clock: VirtualClock, source: KubernetesSource, tmp_path: Path
) -> None:
    """One for each thing that happened, whichever routers tell it, and again after ten minutes."""
    write(cluster, "1")
    await source.read()
    other = opened(cluster, clock, tmp_path)
    await other.read()
    refused = Told(event="a.yaml is refused.", warning=True)
    for _ in range(2):
        await source.tell(refused)
        await other.tell(refused)
    (event,) = cluster.all("events", "serving")
    assert (event["type"], event["reason"]) == ("Warning", "ProfileRefused")
    assert event["message"] == "a.yaml is refused."
    found = cluster.get("configmaps", *NAMES)
    assert found is not None
    assert event["involvedObject"]["uid"] == found["metadata"]["uid"]
    assert event["involvedObject"]["name"] == "profiles"
    await source.tell(Told(event="Now b."))
    await source.tell(Told(event="Back to a.", warning=True, reason="ProfileRolledBack"))
    reasons = {event["reason"] for event in cluster.all("events", "serving")}
    assert reasons == {"ProfileRefused", "ProfileSwitched", "ProfileRolledBack"}
    clock.advance(601)
    await source.tell(refused)
    assert len(cluster.all("events", "serving")) == 4
    await other.close()


async def test_telling_is_refused(
    cluster: FakeKubernetes,
    clock: VirtualClock,
    source: KubernetesSource,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Costs one line a minute and nothing else; the Event is sent when it may be."""
    cluster.deny("create", "configmaps")
    cluster.deny("create", "events")
    told = Told(active="a", event="Now a.")
    await source.tell(told)
    await source.tell(told)
    assert len(caplog.records) == 1
    assert "not allowed to create configmaps profiles-status" in caplog.text
    cluster.allow("create", "events")
    clock.advance(61)
    await source.tell(told)
    assert len(caplog.records) == 2
    assert len(cluster.all("events", "serving")) == 1


def test_access(tmp_path: Path) -> None:
    """KUBECONFIG, then a pod's account, then the home folder's; the context's namespace."""
    cluster = FakeKubernetes()
    named = cluster.kubeconfig(tmp_path, namespace="ours")
    assert find_access({"KUBECONFIG": str(named)}, tmp_path) == Access(str(named), "ours")
    folder = tmp_path / ".kube"
    folder.mkdir()
    cluster.kubeconfig(folder).rename(folder / "config")
    assert find_access({}, tmp_path) == Access(str(folder / "config"), "default")
    with pytest.raises(SettingsError, match="service account"):
        find_access({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, tmp_path)
    with pytest.raises(SettingsError, match="no Kubernetes cluster is known"):
        find_access({}, tmp_path / "nowhere")
    named.write_text("nonsense: [")
    with pytest.raises(SettingsError, match="cannot be used"):
        find_access({"KUBECONFIG": str(named)}, tmp_path)

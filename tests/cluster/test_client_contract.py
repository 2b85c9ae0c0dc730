"""The LWS client against an API server."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from baton.errors import KubernetesUnavailable
from deploy.lws.client import (
    RESTARTED,
    AlreadyExists,
    BadObject,
    Busy,
    Change,
    ChangeType,
    Conflict,
    FieldConflict,
    Forbidden,
    Invalid,
    KindMissing,
    LeaderWorkerSet,
    LeaderWorkerSets,
    LwsClient,
    NotFound,
    NotInTime,
    Retries,
    Unauthorized,
    exists,
    gone,
)
from tests.cluster.conftest import Cluster
from tests.fakes.kubernetes import LWS
from tests.fakes.waiting import until

Json = dict[str, Any]

SCALERS = "disaggregatedset.x-k8s.io/v1"
HASTY = Retries(first_s=0.01, most_s=0.02)


def lws(name: str = "a", labels: Json | None = None, size: int = 2, **spec: Any) -> Json:
    pod = {"spec": {"containers": [{"name": "worker", "image": "registry.example/worker:1"}]}}
    return {
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {"leaderWorkerTemplate": {"size": size, "workerTemplate": pod}, **spec},
    }


def pair(name: str = "pair", *, external: bool = True) -> Json:
    template = lws(size=1)["spec"]["leaderWorkerTemplate"]
    decode: Json = {"name": "decode", "spec": {"leaderWorkerTemplate": template}}
    if external:
        decode["scaling"] = {"mode": "External"}
    prefill = {"name": "prefill", "spec": {"replicas": 2, "leaderWorkerTemplate": template}}
    return {"metadata": {"name": name}, "spec": {"roles": [prefill, decode]}}


@pytest.fixture(name="client")
def _client(cluster: Cluster) -> LwsClient:
    rng = random.Random(1)
    return LwsClient(cluster.api, cluster.namespace, retries=HASTY, backoff=HASTY, rng=rng)


@pytest.fixture(name="sets")
def _sets(client: LwsClient) -> LeaderWorkerSets:
    return client.leader_worker_sets


async def test_create_get_list_delete(sets: LeaderWorkerSets) -> None:
    """An object is made, found by name and by label, and gone."""
    made = await sets.create(lws("a", {"app": "x"}, replicas=3))
    assert (made.name, made.replicas, made.size, made.meta.generation) == ("a", 3, 2, 1)
    assert made.meta.namespace == sets.namespace
    await sets.create(lws("b", {"app": "y"}))
    assert (await sets.get("a")).meta.uid == made.meta.uid
    assert [found.name for found in await sets.list()] == ["a", "b"]
    assert [found.name for found in await sets.list({"app": "y"})] == ["b"]
    assert [found.name for found in await sets.list("app!=y")] == ["a"]
    assert await sets.delete("a")
    await sets.wait("a", gone, timeout_s=30)
    with pytest.raises(NotFound, match='"a" not found'):
        await sets.get("a")
    assert not await sets.delete("a")


async def test_names_that_are_taken(sets: LeaderWorkerSets) -> None:
    """Are told apart from other conflicts."""
    await sets.create(lws())
    with pytest.raises(AlreadyExists, match="apply instead"):
        await sets.create(lws())


async def test_invalid_objects(sets: LeaderWorkerSets) -> None:
    """The causes say which field."""
    with pytest.raises(Invalid) as raised:
        await sets.create(lws(replicas=-1))
    assert [cause.field for cause in raised.value.causes] == ["spec.replicas"]
    with pytest.raises(Invalid):
        await sets.apply(lws(replicas="two"))
    assert await sets.list() == []


async def test_a_delete_of_one_object(sets: LeaderWorkerSets) -> None:
    """Spares another one that has its name by now."""
    first = await sets.create(lws())
    await sets.delete("a", uid=first.meta.uid)
    await sets.wait("a", gone, timeout_s=30)
    second = await sets.create(lws())
    with pytest.raises(Conflict):
        await sets.delete("a", uid=first.meta.uid)
    assert (await sets.get("a")).meta.uid == second.meta.uid


async def test_apply(sets: LeaderWorkerSets) -> None:
    """Makes and changes; nothing changes where nothing is new; fields have owners."""
    made = await sets.apply(lws(replicas=1), field_manager="one")
    assert made.meta.generation == 1
    same = await sets.apply(lws(replicas=1), field_manager="one")
    assert same.meta.resource_version == made.meta.resource_version
    changed = await sets.apply(lws(replicas=2), field_manager="one")
    assert (changed.replicas, changed.meta.generation) == (2, 2)
    mine = {"metadata": {"name": "a"}, "spec": {"replicas": 5}}
    with pytest.raises(FieldConflict, match="force=True") as raised:
        await sets.apply(mine, field_manager="two")
    assert [cause.field for cause in raised.value.causes] == [".spec.replicas"]
    assert "one" in raised.value.causes[0].message
    assert (await sets.get("a")).replicas == 2
    forced = await sets.apply(mine, field_manager="two", force=True)
    assert (forced.replicas, forced.size) == (5, 2)


async def test_dry_runs(sets: LeaderWorkerSets) -> None:
    """Check all and change nothing."""
    assert (await sets.create(lws(replicas=4), dry_run=True)).replicas == 4
    assert (await sets.apply(lws(replicas=4), dry_run=True)).replicas == 4
    assert await sets.list() == []
    await sets.create(lws(replicas=1))
    assert (await sets.apply(lws(replicas=4), force=True, dry_run=True)).replicas == 4
    assert (await sets.get("a")).replicas == 1
    await sets.delete("a", dry_run=True)
    await sets.get("a")


async def test_scale(sets: LeaderWorkerSets) -> None:
    """By ``/scale``, on what is wanted now if that is said."""
    await sets.create(lws(replicas=1))
    assert (await sets.get_scale("a")).replicas == 1
    assert (await sets.scale("a", 3)).replicas == 3
    found = await sets.get("a")
    assert (found.replicas, found.meta.generation) == (3, 2)
    assert (await sets.scale("a", 0, current=3)).replicas == 0
    with pytest.raises(Conflict, match="0 groups are wanted by now, not 3"):
        await sets.scale("a", 5, current=3)
    assert (await sets.get("a")).replicas == 0
    with pytest.raises(NotFound):
        await sets.scale("b", 1)


async def test_a_rollout(cluster: Cluster, sets: LeaderWorkerSets) -> None:
    """From an object that nobody has seen to groups that are all ready."""
    await sets.create(lws(replicas=2))
    rollout = await sets.rollout_status("a")
    assert rollout.missing == ("its controller has not seen it: is LWS running?",)
    await cluster.play_lws("a", ready=1)
    rollout = await sets.rollout_status("a")
    assert (rollout.ready, rollout.updated, rollout.wanted) == (1, 2, 2)
    assert rollout.missing[0] == "1 of 2 groups are ready"
    assert (await sets.status("a")).selector.endswith("worker-index=0")
    waiting = asyncio.create_task(sets.wait_rollout("a", timeout_s=30))
    await cluster.play_lws("a", ready=2)
    assert (await waiting).status.ready_replicas == 2
    assert (await sets.rollout_status("a")).done
    restarted = await sets.restart("a")
    template = restarted.raw["spec"]["leaderWorkerTemplate"]["workerTemplate"]
    assert RESTARTED in template["metadata"]["annotations"]
    assert template["spec"]["containers"][0]["name"] == "worker"
    rollout = await sets.rollout_status("a")
    assert rollout.missing == ("its controller has seen generation 1 of 2",)
    await cluster.play_lws("a", ready=2, updated=1)
    with pytest.raises(NotInTime, match="1 of 2 groups have the new template"):
        await sets.wait_rollout("a", timeout_s=0.2)


class Watching:
    """A watch in the background, and what it has told."""

    def __init__(self, sets: LeaderWorkerSets, **options: Any) -> None:
        self.told: list[Change[LeaderWorkerSet]] = []
        self.task = asyncio.create_task(self._run(sets, options))

    async def _run(self, sets: LeaderWorkerSets, options: Any) -> None:
        async with aclosing(sets.watch(**options)) as changes:
            async for change in changes:
                self.told.append(change)

    async def until(self, type_: ChangeType, name: str, replicas: int | None = None) -> None:
        def seen() -> bool:
            return any(
                change.type is type_
                and change.object.name == name
                and replicas in (None, change.object.replicas)
                for change in self.told
            )

        await until(seen, timeout_s=30, what=f"{type_} {name} {replicas}")

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@pytest.fixture(name="watching")
async def _watching(sets: LeaderWorkerSets) -> AsyncIterator[Watching]:
    await sets.create(lws("first", {"app": "x"}))
    watching = Watching(sets, labels={"app": "x"})
    await watching.until(ChangeType.ADDED, "first")
    yield watching
    await watching.close()


async def test_watch(sets: LeaderWorkerSets, watching: Watching) -> None:
    """What is there, what is made, changed and deleted; nothing of other labels."""
    await sets.create(lws("a", {"app": "x"}))
    await watching.until(ChangeType.ADDED, "a")
    await sets.create(lws("b", {"app": "y"}))
    await sets.scale("a", 4)
    await watching.until(ChangeType.MODIFIED, "a", 4)
    await sets.delete("a")
    await watching.until(ChangeType.DELETED, "a")
    assert {change.object.name for change in watching.told} == {"first", "a"}


async def test_watches_that_are_broken(
    cluster: Cluster, sets: LeaderWorkerSets, watching: Watching
) -> None:
    """Go on: after dropped connections, versions that are gone, and an outage."""
    fake = cluster.fake
    if fake is None:
        pytest.skip("only the fake breaks when it is told to")
    await until(lambda: fake.watches)
    fake.drop_watches()
    await sets.create(lws("dropped", {"app": "x"}))
    await watching.until(ChangeType.ADDED, "dropped")
    await until(lambda: fake.watches)
    fake.expire_watches()
    await sets.create(lws("expired", {"app": "x"}))
    await watching.until(ChangeType.ADDED, "expired")
    await until(lambda: fake.watches)
    await fake.down()
    fake.delete("leaderworkersets", cluster.namespace, "first")
    fake.compact()
    await fake.up()
    await watching.until(ChangeType.DELETED, "first")
    # Nothing was told twice.
    types = [change.type for change in watching.told]
    assert types.count(ChangeType.ADDED) == 3
    assert types.count(ChangeType.DELETED) == 1


async def test_a_watch_that_lost_its_role(cluster: Cluster, watching: Watching) -> None:
    """Ends with an error that names the rule."""
    fake = cluster.fake
    if fake is None:
        pytest.skip("only the fake takes rights away when it is told to")
    await until(lambda: fake.watches)
    fake.deny("watch", "leaderworkersets")
    fake.drop_watches()
    with pytest.raises(Forbidden) as raised:
        await watching.task
    assert raised.value.rule == {
        "apiGroups": ["leaderworkerset.x-k8s.io"],
        "resources": ["leaderworkersets"],
        "verbs": ["watch"],
    }


async def test_rights(cluster: Cluster, tmp_path: Path) -> None:
    """What is missing is named: the rule of a Role, or credentials."""
    api = await cluster.nobody(tmp_path)
    sets = LwsClient(api, cluster.namespace).leader_worker_sets
    try:
        with pytest.raises(Forbidden, match="allow verb patch on resource leaderworkersets/scale"):
            await sets.scale("a", 1)
    finally:
        await api.close()
    api = cluster.known_as("no-such-token", tmp_path)
    try:
        with pytest.raises(Unauthorized, match="renew"):
            await LwsClient(api, cluster.namespace).leader_worker_sets.list()
    finally:
        await api.close()


async def test_kinds_that_are_not_installed(cluster: Cluster, sets: LeaderWorkerSets) -> None:
    """Are told apart from objects that are not there."""
    if cluster.fake is None:
        pytest.skip("nobody's CRDs are taken away")
    cluster.fake.uninstall(LWS)
    for call in (sets.get("a"), sets.apply(lws()), sets.scale("a", 1), sets.list()):
        with pytest.raises(KindMissing, match="install its CRD"):
            await call


async def test_answers_that_fail(cluster: Cluster, sets: LeaderWorkerSets) -> None:
    """Are asked for again, and so are answers that were lost; not for ever."""
    fake = cluster.fake
    if fake is None:
        pytest.skip("only the fake fails when it is told to")
    await sets.create(lws(replicas=1))
    fake.fail_next(503, 2)
    assert (await sets.get("a")).replicas == 1
    fake.lose_next(1)
    assert (await sets.scale("a", 2)).replicas == 2
    fake.lose_next(1)
    await sets.delete("a")
    assert await sets.list() == []
    fake.fail_next(500, HASTY.tries)
    with pytest.raises(Busy, match="cannot get leaderworkersets"):
        await sets.get("a")
    await fake.down()
    with pytest.raises(KubernetesUnavailable):
        await sets.get("a")


async def test_disaggregated_sets(cluster: Cluster, client: LwsClient) -> None:
    """Roles are read and scaled, by the RoleScaler that a controller made; all is rolled out when
    every role is."""
    sets = client.disaggregated_sets
    made = await sets.create(pair())
    assert [(role.name, role.replicas, role.external) for role in made.roles] == [
        ("prefill", 2, False),
        ("decode", 1, True),
    ]
    with pytest.raises(NotFound):
        await sets.scale_role("pair", "decode", 3)
    with pytest.raises(BadObject, match="in the set itself"):
        await sets.scale_role("pair", "prefill", 3)
    with pytest.raises(BadObject, match="has no role judge, but prefill, decode"):
        await sets.get_role_scale("pair", "judge")
    if cluster.fake is None:
        pytest.skip("the rest plays LWS's controller")
    await client.role_scalers.create({"metadata": {"name": "pair-decode"}, "spec": {"replicas": 1}})
    assert (await sets.get_role_scale("pair", "decode")).replicas == 1
    assert (await sets.scale_role("pair", "decode", 3, current=1)).replicas == 3
    counts = {"replicas": 2, "readyReplicas": 2, "updatedReplicas": 2}
    status = {
        "observedGeneration": 1,
        "roleStatuses": [{"name": "prefill", **counts}, {"name": "decode", **counts}],
    }
    cluster.fake.set_status("disaggregatedsets", cluster.namespace, "pair", status)
    rollout = await sets.rollout_status("pair")
    assert (rollout.wanted, rollout.ready) == (5, 4)
    assert rollout.missing[0] == "role decode: 2 of 3 groups have the new template"
    await sets.scale_role("pair", "decode", 2)
    assert (await sets.wait_rollout("pair", timeout_s=30)).name == "pair"
    assert (await sets.status("pair")).roles["decode"].ready_replicas == 2


async def test_restarts_of_disaggregated_sets(client: LwsClient) -> None:
    """Stamp each role, and change nothing else."""
    sets = client.disaggregated_sets
    before = await sets.create(pair(external=False))
    after = await sets.restart("pair")
    assert after.meta.generation == 2
    assert after.roles == before.roles
    for role in after.raw["spec"]["roles"]:
        worker = role["spec"]["leaderWorkerTemplate"]["workerTemplate"]
        assert RESTARTED in worker["metadata"]["annotations"]
        del worker["metadata"]
    before_roles = before.raw["spec"]["roles"]
    for role in before_roles:
        role["spec"]["leaderWorkerTemplate"]["workerTemplate"].pop("metadata", None)
    assert after.raw["spec"]["roles"] == before_roles


async def test_waits_for_objects(sets: LeaderWorkerSets) -> None:
    """That are not made yet."""
    waiting = asyncio.create_task(sets.wait("a", exists, timeout_s=30))
    await asyncio.sleep(0)
    await sets.create(lws())
    found = await waiting
    assert found is not None
    assert found.name == "a"

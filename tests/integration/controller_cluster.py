"""A small cluster for the controller: the fake Kubernetes API, a played LeaderWorkerSet controller
whose groups are fake engines, a real router in front of them, and clients that never stop asking.

When groups are scaled away they are killed at once, without a drain of their own: whatever they
still held is a violation, and a request that was there fails. Nothing of the controller is faked.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from baton.kube import Access, KubeApi
from baton.types import Load, Role, WorkerId, WorkerState
from deploy.controller import ControllerSettings
from deploy.controller.settings import Rules
from deploy.lws import labels, names
from deploy.lws.render import pool_key, pool_objects
from deploy.lws.site import Site, load_site, site_text
from profiles import ServingProfile, parse_profile
from tests.fakes.engine import KEY, MODEL, FakeEngine, Leg
from tests.fakes.kubernetes_api import FakeKubernetes
from tests.integration.router_cluster import (
    ADMIN_KEY,
    LONG,
    SHORT,
    Answer,
    Cluster,
    cluster,
    right_text,
    tokens_of,
)

NAMESPACE = "serving"
PLURAL = "leaderworkersets"
SITE = "kind-cpu"

_PROFILE = f"""\
apiVersion: baton/v1
kind: ServingProfile
metadata:
  name: NAME
spec:
  mode: disaggregated
  model: {{source: demo, served_name: {MODEL}, max_model_len: 2048}}
  classify: {{threshold_tokens: 64}}
  pools:
    prefill: {{accelerator: cpu, max_num_seqs: SEQS}}
    decode: {{accelerator: cpu, replicas: 2, max_num_seqs: SEQS}}
  transfer: {{block_size: 32, lease_s: 30}}
  deadlines: {{connect_s: 5, prefill_s: 20, first_token_s: 20, idle_s: 20, total_s: 60}}
  limits: {{in_flight: 64, drain_s: 1}}
  flow: {{worker_wait_s: 5, slots_factor: 10}}
  routing: {{prefix: "off"}}
  switch: {{prepare_s: 20, canary_share: 0.4, hold_s: 0.3, canary_s: 1, min_requests: 3}}
"""


def profile_text(name: str, seqs: int) -> str:
    """A profile; ``seqs`` is an engine setting, so that another one means other pools."""
    return _PROFILE.replace("NAME", name).replace("SEQS", str(seqs))


ONE, TWO = profile_text("one", 8), profile_text("two", 16)


@functools.cache
def parsed(text: str) -> ServingProfile:
    """The profile of a text."""
    return parse_profile(text, source="test")


@functools.cache
def site() -> Site:
    """Of the cluster."""
    return load_site(SITE)


def keys_of(text: str) -> dict[str, str]:
    """By role, the keys of a profile's pools."""
    return dict(_keys_of(text))


@functools.cache
def _keys_of(text: str) -> dict[str, str]:
    profile = parsed(text)
    return {role.value: pool_key(profile, role, site()) for role in profile.spec.pools.by_role}


@dataclass
class Group:
    """One group of a pool: an engine, and what keeps it known."""

    engine: FakeEngine
    task: asyncio.Task[None]
    ready: bool = False


class PlayedLws:
    """Makes groups of LeaderWorkerSets, and kills those that are not asked for any more.

    Attributes:
        violations: what was killed although it held something.
        killed: ids of the workers that were killed, in order.
        start_s: how long a group takes until it serves.
        stuck: ids of workers that never get ready.
        silent: whether what is killed says nothing of it, so that its cordon stays in the store.
    """

    def __init__(self, api: FakeKubernetes, c: Cluster) -> None:
        self.violations: list[str] = []
        self.killed: list[str] = []
        self.start_s = 0.3
        self.stuck: set[str] = set()
        self.silent = False
        self._api = api
        self._c = c
        self._groups: dict[str, Group] = {}
        self._engines: dict[str, FakeEngine] = {}

    @contextlib.asynccontextmanager
    async def going(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._play(), name="lifespan-played-lws")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            tasks = [group.task for group in self._groups.values()]
            for one in tasks:
                one.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def stop_engines(self) -> None:
        """At the very end."""
        await asyncio.gather(*(group.engine.kill() for group in self._groups.values()))

    async def _play(self) -> None:
        while True:
            found = {lws["metadata"]["name"]: lws for lws in self._api.all(PLURAL, NAMESPACE)}
            wanted = {
                f"{name}-{index}": Role(lws["metadata"]["labels"][labels.ROLE])
                for name, lws in found.items()
                for index in range(lws["spec"].get("replicas", 1))
            }
            for worker in sorted(set(self._groups) - set(wanted), reverse=True):
                await self._kill(worker)
            for worker in sorted(set(wanted) - set(self._groups)):
                self._begin(worker, wanted[worker])
            for name, lws in found.items():
                self._tell(name, lws)
            # Each turn copies all pools, which is the dearest of what happens here.
            await asyncio.sleep(0.06)

    def _begin(self, worker: str, role: Role) -> None:
        engine = self._engines.get(worker)
        if engine is None:
            engine = FakeEngine(self._c.fleet, worker, role, tokenize=tokens_of)
            engine.token_s = 0.002
            self._engines[worker] = engine
            self._c.prefills.append(engine)
        task = asyncio.create_task(self._live(worker, engine), name=f"lifespan-{worker}")
        self._groups[worker] = Group(engine, task)

    async def _live(self, worker: str, engine: FakeEngine) -> None:
        """Starts, gets ready, and says so again and again."""
        await engine.start()
        state, ready_s = WorkerState.STARTING, time.monotonic() + self.start_s
        while True:
            if time.monotonic() >= ready_s and worker not in self.stuck:
                state = WorkerState.READY
                self._groups[worker].ready = True
            load = Load(running=engine.running, waiting=engine.waiting)
            await self._c.put(engine.record(state=state, load=load), ttl_s=3.0)
            await asyncio.sleep(0.15)

    async def _kill(self, worker: str) -> None:
        group = self._groups.pop(worker)
        held = self._held(worker, group.engine)
        if held:
            self.violations.append(f"{worker} was killed while {held}")
        group.task.cancel()
        await asyncio.gather(group.task, return_exceptions=True)
        await group.engine.kill()
        await self._c.remove(group.engine)
        if self.silent:
            await self._c.state.store.cordon(WorkerId(worker))
        self.killed.append(worker)

    def _held(self, worker: str, engine: FakeEngine) -> str:
        """What was there, by the router's books and by the engine's own."""
        state = self._c.state
        legs = {str(r.id): state.pool.legs(r.id) for r in state.pool.records()}.get(worker, 0)
        handoffs = [
            h.request_id for h in state.ledger.open_handoffs() if worker in (h.prefill, h.decode)
        ]
        said = {
            "the router had legs on it": legs,
            "handoffs were open": len(handoffs),
            "it was generating": engine.running + engine.waiting,
        }
        return ", ".join(f"{what} ({number})" for what, number in said.items() if number)

    def _tell(self, name: str, lws: dict[str, Any]) -> None:
        replicas = lws["spec"].get("replicas", 1)
        ready = sum(
            group.ready
            for worker, group in self._groups.items()
            if worker.rpartition("-")[0] == name
        )
        status = {"replicas": replicas, "readyReplicas": ready, "updatedReplicas": replicas}
        if lws.get("status") != status:
            self._api.set_status(PLURAL, NAMESPACE, name, status)

    def ready(self) -> set[str]:
        """Ids of the workers that serve."""
        return {worker for worker, group in self._groups.items() if group.ready}

    def seen_by(self, worker: str, leg: Leg | None = None) -> int:
        """How many requests a worker has had."""
        return len(self._groups[worker].engine.requests(leg))


class Clients:
    """Clients that ask without a pause, and keep what they were answered.

    Attributes:
        failed: answers that were not 200, or not right.
        answered: how many there were.
        versions: of the profiles that they were served under.
    """

    def __init__(self, c: Cluster, clients: int = 3) -> None:
        self.failed: list[str] = []
        self.answered = 0
        self.versions: set[str] = set()
        self._c = c
        self._clients = clients
        self._stop = False

    async def _client(self, number: int) -> None:
        turn = number
        while not self._stop:
            turn += self._clients
            prompt = (LONG if turn % 2 else SHORT) + str(turn)
            answer = await self._ask(prompt, stream=turn % 3 == 0)
            self.answered += 1
            if isinstance(answer, str) or answer.status != 200:
                self.failed.append(str(answer))
            elif answer.text != right_text(prompt):
                self.failed.append(f"wrong: {answer}")
            else:
                self.versions.add(answer.headers["x-baton-profile-version"])
            await asyncio.sleep(0.03)

    async def _ask(self, prompt: str, *, stream: bool) -> Answer | str:
        try:
            return await self._c.complete(prompt, stream=stream)
        except Exception as error:
            return repr(error)

    @contextlib.asynccontextmanager
    async def going(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            for number in range(self._clients):
                group.create_task(self._client(number))
            try:
                yield
            finally:
                self._stop = True


@dataclass
class World:
    """All of it."""

    api: FakeKubernetes
    c: Cluster
    lws: PlayedLws
    load: Clients
    kubeconfig: Path
    site_file: Path = field(default_factory=Path)

    def settings(self, **more: Any) -> ControllerSettings:
        """For a controller of this cluster, with short times."""
        assert self.c.server.admin is not None
        values: dict[str, Any] = {
            "namespace": NAMESPACE,
            "profiles": names.PROFILES,
            "site": "configmap:baton-site",
            "admin_url": self.c.server.admin.url,
            "admin_token": ADMIN_KEY,
            "lease_s": 15,
            "poll_s": 0.3,
            "busy_poll_s": 0.1,
            "rules": Rules(retire_s=0.3, settle_s=0.6, absent_s=0.2),
        }
        return ControllerSettings(**{**values, **more})

    def kube(self) -> KubeApi:
        """A connection to the API."""
        return KubeApi(Access(str(self.kubeconfig), NAMESPACE))

    def wish(self, text: str) -> None:
        """An operator edits the ConfigMap."""
        found = re.search(r"name: (\S+)", text)
        assert found is not None
        name = found[1]
        data = {"one.yaml": ONE, "two.yaml": TWO, f"{name}.yaml": text, "active": name}
        self.api.put("configmaps", NAMESPACE, names.PROFILES, {"data": data})

    def git(self, text: str) -> None:
        """Git's tree is applied: static pools of a profile."""
        profile = parsed(text)
        for role in profile.spec.pools.by_role:
            for obj in pool_objects(profile, role, site(), name=names.pool_name(role)):
                plural = {
                    "LeaderWorkerSet": PLURAL,
                    "ConfigMap": "configmaps",
                    "PodDisruptionBudget": "poddisruptionbudgets",
                }[obj["kind"]]
                self.api.put(plural, NAMESPACE, obj["metadata"]["name"], obj)

    def pools(self) -> dict[str, int]:
        """By name, how many groups each pool is asked to have."""
        found = self.api.all(PLURAL, NAMESPACE)
        return {lws["metadata"]["name"]: lws["spec"].get("replicas", 1) for lws in found}

    def status(self) -> dict[str, str]:
        """What the controller's status says."""
        found = self.api.get("configmaps", NAMESPACE, "baton-controller-status") or {}
        data: dict[str, str] = found.get("data") or {}
        return data

    def events(self, reason: str) -> list[str]:
        """What Events with a reason say."""
        found = self.api.all("events", NAMESPACE)
        return [event["message"] for event in found if event["reason"] == reason]

    def unfinished(self, text: str) -> str:
        """What is still missing until a profile is served by its own pools and by no others; empty
        for nothing."""
        profile, keys = parsed(text), keys_of(text)
        agreed = self.c.state.conductor.agreed
        if agreed.switch is not None or agreed.active.version != profile.version:
            return f"the routers serve by {agreed.active.name}, switch {agreed.switch}"
        for lws in self.api.all(PLURAL, NAMESPACE):
            name, has = lws["metadata"]["name"], lws["metadata"]["labels"]
            replicas = lws["spec"].get("replicas", 1)
            if has[labels.POOL] != keys.get(has[labels.ROLE]):
                if replicas or has.get(labels.MANAGED_BY):
                    return f"pool {name} is still there"
                continue
            keys.pop(has[labels.ROLE])
            role = Role(has[labels.ROLE])
            if replicas != profile.spec.pools.by_role[role].replicas:
                return f"pool {name} has {replicas}"
            for index in range(replicas):
                worker = f"{name}-{index}"
                record = self.c.state.pool.record(worker)  # type: ignore[arg-type]
                if record is None or record.state is not WorkerState.READY:
                    return f"{worker} is not ready"
                if self.c.state.pool.is_cordoned(record.id):
                    return f"{worker} is cordoned"
        return f"pools are missing: {keys}" if keys else ""

    async def settled(self, text: str, *, timeout_s: float = 40.0) -> None:
        """Waits until nothing is unfinished."""
        ends_s = time.monotonic() + timeout_s
        while why := self.unfinished(text):
            assert time.monotonic() < ends_s, f"{why}; {self.status()}; {self.lws.violations}"
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def world(
    tmp_path: Path,
    *,
    start: str = ONE,
    git: str | None = ONE,
    prepare: Callable[[World], Awaitable[None]] | None = None,
) -> AsyncIterator[World]:
    """A cluster; when the block ends nothing may have failed, and no group that held something been
    killed.

    Args:
        tmp_path: for files.
        start: the profile that the router is started with.
        git: the profile of the static pools; None for none.
        prepare: done before requests begin.
    """
    async with FakeKubernetes() as api, contextlib.AsyncExitStack() as stack:
        kubeconfig = api.kubeconfig(tmp_path, namespace=NAMESPACE)
        api.put("configmaps", NAMESPACE, names.SITE, {"data": {names.SITE_KEY: site_text(SITE)[0]}})
        with pytest.MonkeyPatch.context() as patch:
            # Routers start from what the controller writes down, as in a cluster.
            patch.setenv("KUBECONFIG", str(kubeconfig))
            source = f"configmap:{NAMESPACE}/{names.ACTIVE}"
            routers = cluster(
                profile=start,
                prefills=0,
                decodes=0,
                register=False,
                profiles=source,
                profiles_at_start=True,
            )
            c = await stack.enter_async_context(routers)
        lws = PlayedLws(api, c)
        made = World(api, c, lws, Clients(c), kubeconfig)
        made.wish(start)
        if git is not None:
            made.git(git)
        try:
            async with lws.going():
                if prepare is not None:
                    await prepare(made)
                yield made
        finally:
            await lws.stop_engines()
        assert lws.violations == []
        assert made.load.failed == []


TOKENS = {"BATON_CLUSTER_TOKEN": KEY, "BATON_ADMIN_TOKEN": ADMIN_KEY}

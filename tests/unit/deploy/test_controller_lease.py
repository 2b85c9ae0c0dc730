"""Which of two controllers acts, in virtual time: never both, and soon another one."""

from __future__ import annotations

import asyncio
import copy
import random
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from baton.clock import VirtualClock
from baton.errors import KubernetesUnavailable
from deploy.controller.cluster import Cluster, ClusterRefused
from deploy.controller.lease import Elector

LEASE_S = 15


@dataclass
class Leases:
    """The API's side of one Lease: versions, conflicts, outages.

    Attributes:
        away: whether nobody gets an answer.
        lost: whether the next write is done and its answer lost.
    """

    namespace: str = "serving"
    found: dict[str, Any] | None = None
    version: int = 0
    away: bool = False
    lost: bool = False
    writers: list[str] = field(default_factory=list)

    async def get(self, form: str, name: str) -> dict[str, Any] | None:
        self._check()
        return copy.deepcopy(self.found)

    async def create(self, form: str, body: dict[str, Any]) -> dict[str, Any]:
        self._check()
        if self.found is not None:
            raise ClusterRefused("taken", 409)
        return self._store(body)

    async def replace(self, form: str, name: str, body: dict[str, Any]) -> dict[str, Any]:
        self._check()
        assert self.found is not None
        if body["metadata"]["resourceVersion"] != self.found["metadata"]["resourceVersion"]:
            raise ClusterRefused("changed", 409)
        return self._store(body)

    def _store(self, body: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        self.found = copy.deepcopy(body)
        self.found["metadata"]["resourceVersion"] = str(self.version)
        self.writers.append(body["spec"]["holderIdentity"])
        if self.lost:
            self.lost = False
            raise KubernetesUnavailable("no answer in time")
        return self.found

    def _check(self) -> None:
        if self.away:
            raise KubernetesUnavailable("no answer in time")


def elector(leases: Leases, clock: VirtualClock, name: str) -> Elector:
    return Elector(cast(Cluster, leases), "baton-controller", name, LEASE_S, clock)


async def test_the_first_one_gets_it_and_the_second_one_waits() -> None:
    """For the whole duration after the last renewal that it has seen, by its own clock."""
    leases, clock = Leases(), VirtualClock()
    a, b = elector(leases, clock, "a"), elector(leases, clock, "b")
    assert await a.strive()
    assert not await b.strive()
    assert b.holder == "a"
    for _ in range(20):
        clock.advance(3)
        assert await a.strive()
        assert not await b.strive()
    for _ in range(4):
        clock.advance(3)
        assert not await b.strive(), "a was heard of less than 15 s ago"
    clock.advance(3)
    assert await b.strive()
    assert not a.is_held()
    assert leases.found is not None
    assert leases.found["spec"]["leaseTransitions"] == 1


async def test_a_holder_that_cannot_renew_stops_before_another_may_begin() -> None:
    """Ten seconds after it began its last renewal that went through."""
    leases, clock = Leases(), VirtualClock()
    a = elector(leases, clock, "a")
    assert await a.strive()
    leases.away = True
    clock.advance(9.9)
    assert await a.strive(), "it still is its own"
    clock.advance(0.2)
    assert not await a.strive()
    leases.away = False
    assert await a.strive(), "nobody else took it meanwhile"


async def test_a_renewal_whose_answer_is_lost() -> None:
    """Counts as none: the holder goes on until its time is up, and has it at the next try."""
    leases, clock = Leases(), VirtualClock()
    a = elector(leases, clock, "a")
    assert await a.strive()
    clock.advance(6)
    leases.lost = True
    assert await a.strive()
    clock.advance(4.1)
    assert not a.is_held()
    assert await a.strive()


async def test_it_is_given_back_at_the_end() -> None:
    """Another one has it at once; whoever does not hold it gives nothing back."""
    leases, clock = Leases(), VirtualClock()
    a, b = elector(leases, clock, "a"), elector(leases, clock, "b")
    assert await a.strive()
    await b.release()
    assert not await b.strive()
    await a.release()
    assert not a.is_held()
    assert await b.strive()
    leases.away = True
    await b.release()


async def test_a_container_that_restarts_takes_its_own_lease() -> None:
    """The pod's name is its identity, so that there is nobody to wait for."""
    leases, clock = Leases(), VirtualClock()
    assert await elector(leases, clock, "pod-0").strive()
    assert await elector(leases, clock, "pod-0").strive()
    assert leases.found is not None
    assert leases.found["spec"]["leaseTransitions"] == 0


async def test_of_two_that_are_equally_fast_one_loses() -> None:
    """By the version that both have read."""
    leases, clock = Leases(), VirtualClock()
    a, b = elector(leases, clock, "a"), elector(leases, clock, "b")
    gate = asyncio.Event()
    get = leases.get

    async def slow(form: str, name: str) -> dict[str, Any] | None:
        found = await get(form, name)
        await gate.wait()
        return found

    leases.get = slow  # type: ignore[method-assign]
    tasks = [asyncio.create_task(one.strive()) for one in (a, b)]
    await asyncio.sleep(0)
    gate.set()
    assert sorted(await asyncio.gather(*tasks)) == [False, True]


@pytest.mark.parametrize("seed", range(20))
async def test_never_two_at_a_time(seed: int) -> None:
    """Whatever is slow, away or paused, and with clocks that run apart."""
    rng = random.Random(seed)
    leases = Leases()
    clocks = [VirtualClock(rng.uniform(0, 1e6)) for _ in range(3)]
    electors = [elector(leases, clock, name) for clock, name in zip(clocks, "abc", strict=True)]
    held = 0
    for _ in range(400):
        step_s = rng.choice([0.5, 1, 3, 20])
        for number, clock in enumerate(clocks):
            # A tenth of a per cent fast or slow: far more than clocks of machines are.
            clock.advance(step_s * (1 + 0.001 * (number - 1)))
        leases.away = rng.random() < 0.2
        leases.lost = rng.random() < 0.1
        for one in rng.sample(electors, rng.randint(0, 3)):
            await one.strive()
        acting = [one.identity for one in electors if one.is_held()]
        assert len(acting) <= 1
        held += len(acting)
    assert held > 50

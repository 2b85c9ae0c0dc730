"""What the controller's plans come to, one after the other: a played cluster, and a controller that
is killed after any action, under wishes that change their mind and workers that die badly."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import pytest

from baton.types import RouterId
from deploy.controller.actions import (
    Action,
    BeginSwitch,
    CreatePool,
    DeletePool,
    DrainWorker,
    MarkPool,
    Mirror,
    NoteWish,
    ScalePool,
    ShrinkPool,
    UndrainWorker,
)
from deploy.controller.picture import Known, Member, Memory, Outcome, Picture, Pool, Routers
from deploy.controller.plan import Plan, plan
from profiles.switching import Phase, Ref, Report, Switch
from tests.unit.deploy.test_controller_plan import KA, KB, KC, RULES, wish

KNOWN = {known.ref.version: known for known in (KA, KB, KC)}
TURNS, QUIET = 60, 60


@dataclass
class Course:
    """A cluster with Git's pools for ``a``, whose routers serve by it.

    Attributes:
        pools: by name; their members are made when one looks.
        workers: those that are registered.
        cordons: in the store, of workers that are registered and of others.
        wrong: what must never happen.
    """

    rng: random.Random
    pools: dict[str, Pool] = field(default_factory=dict)
    workers: set[str] = field(default_factory=set)
    cordons: set[str] = field(default_factory=set)
    memory: Memory = field(default_factory=Memory)
    wished: Known = KA
    text: int = 0
    routers: Routers = field(default_factory=lambda: Routers(KA.ref))
    mirrored: Known | None = None
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for want in KA.wants:
            name = f"baton-{want.role}"
            self.pools[name] = Pool(name, name, "1", want.key, str(want.role), want.replicas)

    def look(self) -> Picture:
        pools = tuple(self._seen(pool) for pool in self.pools.values())
        return Picture(
            wish=wish(self.wished, f"{self.wished.ref.name}{self.text}"),
            profiles=KNOWN,
            pools=pools,
            routers=replace(self.routers, workers=len(self.workers)),
            memory=self.memory,
            mirrored=self.mirrored,
        )

    def _seen(self, pool: Pool) -> Pool:
        stem = f"{pool.name}-"
        tails = [w.removeprefix(stem) for w in self.workers if w.startswith(stem)]
        there = {int(tail) for tail in tails if tail.isdecimal()}
        made = []
        for index in sorted(there | set(range(pool.replicas))):
            name = f"{stem}{index}"
            if index not in there:
                made.append(Member(index, name, free_s=9.0))
                continue
            shut = name in self.cordons
            free_s = 9.0 if shut else None
            made.append(Member(index, name, "ready", ready=not shut, cordoned=shut, free_s=free_s))
        ready = len(there & set(range(pool.replicas)))
        return replace(pool, members=tuple(made), ready_groups=ready)

    def do(self, action: Action) -> None:
        match action:
            case NoteWish():
                self.memory = action.memory
            case CreatePool():
                name = f"baton-{action.role}-{action.key}"
                wants = KNOWN[action.profile.version].wants
                (count,) = [want.replicas for want in wants if want.key == action.key]
                self.pools[name] = Pool(
                    name, name, "1", action.key, action.role, count, owned=True, marked=0
                )
            case ShrinkPool():
                self._go(action.pool, action.replicas)
                self._put(action.pool, replicas=action.replicas)
            case ScalePool():
                self._put(action.pool, replicas=action.replicas)
            case DeletePool():
                self._go(action.pool, 0)
                del self.pools[action.pool.name]
            case MarkPool():
                self._put(action.pool, marked=action.first)
            case DrainWorker():
                self.cordons.add(action.worker)
            case UndrainWorker():
                self.cordons.discard(action.worker)
            case BeginSwitch():
                number, old = self.routers.number + 1, self.routers.active
                begun = Switch(number, old, action.profile, action.by, RouterId("r"))
                self.routers = replace(self.routers, switch=begun)
            case Mirror():
                self.mirrored = KNOWN[action.profile.version]

    def _put(self, pool: Pool, **more: int) -> None:
        """A write on the version that was looked at; another one since then refuses it."""
        there = self.pools.get(pool.name)
        if there is None or there.version != pool.version:
            return
        version = str(int(pool.version) + 1)
        self.pools[pool.name] = replace(there, version=version, **more)  # type: ignore[arg-type]

    def _go(self, pool: Pool, keep: int) -> None:
        key, active = pool.key, KNOWN[self.routers.active.version]
        if keep == 0 and key in {want.key for want in active.wants}:
            others = [p for p in self.pools.values() if p.key == key and p.name != pool.name]
            if not others:
                self.wrong.append(f"{pool.name} served and went")
        for member in pool.members:
            if member.index >= keep and member.id in self.workers - self.cordons:
                self.wrong.append(f"{member.id} took traffic and went")

    def live(self, chance: float) -> None:
        """Groups come and go, switches end."""
        wanted = {f"{p.name}-{i}" for p in self.pools.values() for i in range(p.replicas)}
        for name in sorted(wanted ^ self.workers):
            if self.rng.random() > chance:
                continue
            if name in wanted:
                self.workers.add(name)
                continue
            self.workers.remove(name)
            # Killed without a word, every other one: its cordon stays.
            if self.rng.random() < 0.5:
                self.cordons.discard(name)
        switch = self.routers.switch
        if switch is not None and self.rng.random() < chance:
            good = self.rng.random() < 0.7
            outcome = Phase.COMMITTED if good else Phase.ROLLED_BACK
            self._ended(switch.number, switch.new, switch.by, outcome)

    def _ended(self, number: int, new: Ref, by: str, outcome: Phase) -> None:
        old = self.routers.active
        report = Report(number, old, new, by, outcome, "so", 0.0, order=number)
        history = (*self.routers.history, report)[-20:]
        active = new if outcome is Phase.COMMITTED else old
        self.routers = Routers(active, old, history=history)

    def meddle(self) -> None:
        """An operator names another profile, or switches by hand."""
        lot = self.rng.random()
        if lot < 0.15:
            self.wished, self.text = self.rng.choice((KA, KB, KC)), self.text + 1
        elif lot < 0.2 and self.routers.switch is None:
            new = self.rng.choice((KA, KB, KC)).ref
            if new != self.routers.active:
                number = self.routers.number + 1
                self._ended(number, new, "operator", Phase.COMMITTED)

    def turn(self, *, killed: bool) -> Plan:
        """One pass; one that is killed gets no further than to some action."""
        made = plan(self.look(), RULES)
        last = self.rng.randint(0, len(made.actions)) if killed else len(made.actions)
        for action in made.actions[:last]:
            self.do(action)
        return made


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_all_comes_right(seed: int) -> None:
    """Killed anywhere, with wishes to and fro, an operator's switches, and workers that leave their
    cordons behind: nothing that takes traffic goes, and when it is quiet what routers serve by has
    its groups, all without a cordon, and nothing else is left."""
    course = Course(random.Random(seed))
    for _ in range(TURNS):
        course.meddle()
        course.turn(killed=course.rng.random() < 0.5)
        course.live(0.5)
    for _ in range(QUIET):
        made = course.turn(killed=False)
        course.live(1.0)
    assert course.wrong == []
    assert made.is_steady, (made.actions, made.waits)
    assert made.stands.outcome is not Outcome.OPEN
    active = KNOWN[course.routers.active.version]
    has = {pool.key: pool.replicas for pool in course.pools.values() if pool.replicas}
    assert has == {want.key: want.replicas for want in active.wants}
    assert not course.workers & course.cordons

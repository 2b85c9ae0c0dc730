"""From what was seen to what is to be done next: pure, and the same for the same picture.

Each action can be done on its own, in any order, at any time until the next look: what depends on
something else having happened is planned once that is seen. Three rules stand above all: nothing is
taken away while the routers do not answer or switch, and nothing that can serve while what they
serve by is not ready; no group goes before its worker was cordoned and seen to hold nothing for a
while; and a wish is acted on once.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

from baton.types import WorkerState
from deploy.controller.actions import (
    Action,
    BeginSwitch,
    CreatePool,
    DeletePool,
    DrainWorker,
    MarkPool,
    Mirror,
    RaiseMark,
    ScalePool,
    ShrinkPool,
    Sweep,
    UndrainWorker,
    Wait,
)
from deploy.controller.needs import Need, Needs, is_first_install, needs, waits_for
from deploy.controller.picture import Member, Outcome, Picture, Pool
from deploy.controller.settings import Rules
from deploy.controller.wishes import Standing, standing

_ROUTERS_S = 60.0
"""Without an answer of the routers, after which operators are told."""
_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done.

    Attributes:
        actions: in the order in which they are done.
        waits: what has to happen elsewhere first.
        phase: in a word or two, for people.
        needed: by pool, for whom it is kept.
        stands: where the wish stands.
    """

    actions: tuple[Action, ...] = ()
    waits: tuple[Wait, ...] = ()
    phase: str = "steady"
    needed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    stands: Standing = field(default_factory=Standing)

    @property
    def is_steady(self) -> bool:
        """Whether nothing goes on."""
        return not self.actions and not self.waits


@dataclass(slots=True)
class _Draft:
    """A plan in the making."""

    picture: Picture
    rules: Rules
    stands: Standing
    needs: Needs
    actions: list[Action] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)


def plan(picture: Picture, rules: Rules) -> Plan:
    """What to do next, by what was seen."""
    stands = standing(picture, rules.settle_s)
    draft = _Draft(picture, rules, stands, needs(picture, stands, rules))
    if stands.note is not None:
        draft.actions.append(stands.note)
    if picture.routers is None:
        draft.waits.append(_wait_for_routers(picture))
    _make(draft)
    _switch(draft)
    _mirror(draft)
    for need in draft.needs.pools.values():
        _fit(draft, need)
    for pool in picture.pools:
        if pool.name not in draft.needs.pools:
            _retire(draft, pool)
    _sweep(draft)
    return Plan(
        tuple(draft.actions),
        tuple(draft.waits),
        _phase(draft),
        {name: tuple(dict.fromkeys(need.why)) for name, need in draft.needs.pools.items()},
        stands,
    )


def _make(draft: _Draft) -> None:
    """Pools that are not there, and those that are too small."""
    absent_s = draft.rules.absent_s
    for want, profile, why in draft.needs.absent.values():
        key = f"absent {want.key}"
        sentence = f"there is no {want.role} pool with key {want.key}, for {why}"
        draft.waits.append(Wait(key=key, sentence=sentence))
        # What has only just come to be missing may be on its way.
        if not absent_s or draft.picture.waited.get(key, -1.0) >= absent_s:
            draft.actions.append(
                CreatePool(profile=profile, role=want.role.value, key=want.key, reason=why)
            )
    for need in draft.needs.pools.values():
        if need.grows and need.pool.replicas < need.target:
            draft.actions.append(
                ScalePool(pool=need.pool, replicas=need.target, reason=need.why[0])
            )


def _switch(draft: _Draft) -> None:
    """Asks for the switch once the wish's pools are ready."""
    stands, routers, rules = draft.stands, draft.picture.routers, draft.rules
    wish = stands.wish
    if wish is None or not stands.is_open:
        return
    limit_s = wish.prepare_s * rules.slow_factor
    waits = waits_for(wish.known, draft.picture.pools, rules, limit_s)
    draft.waits += waits
    if routers is None:
        return
    if routers.switch is not None:
        ours = routers.switch.by == wish.by
        whose = "" if ours else f", asked for by {routers.switch.by}"
        what = f"switch {routers.switch.number} to {routers.switch.new.name}"
        draft.waits.append(
            Wait(key="switch", sentence=f"{what} is in phase {routers.switch.phase}{whose}")
        )
    elif not _is_mirrored(draft):
        name = routers.active.name
        sentence = f"that {name} serves is not written down yet"
        draft.waits.append(Wait(key="mirror", sentence=sentence, limit_s=limit_s))
    elif stands.noted and not waits and routers.active.version != wish.known.ref.version:
        draft.actions.append(
            BeginSwitch(
                profile=wish.known.ref,
                digest=wish.digest,
                by=wish.by,
                hurried=is_first_install(draft.picture, stands),
                reason=f"it is wished for, and its pools are ready; {routers.active.name} serves",
            )
        )


def _is_mirrored(draft: _Draft) -> bool:
    """Whether what is written down is what routers serve by: one that starts from nothing in the
    middle of the switch begins with it."""
    picture, routers = draft.picture, draft.picture.routers
    if routers is None or picture.profiles.get(routers.active.version) is None:
        return True
    if is_first_install(picture, draft.stands):
        return True
    written = picture.mirrored
    return written is not None and written.ref.version == routers.active.version


def _wait_for_routers(picture: Picture) -> Wait:
    why = picture.routers_problem or "they were not asked"
    return Wait(key="routers", sentence=f"the routers do not answer: {why}", limit_s=_ROUTERS_S)


def _mirror(draft: _Draft) -> None:
    """Writes down what serves, once that is certain."""
    picture, routers = draft.picture, draft.picture.routers
    if routers is None or routers.switch is not None or routers.store_lost:
        return
    known = picture.profiles.get(routers.active.version)
    if known is None or is_first_install(picture, draft.stands):
        return
    if picture.mirrored is not None and picture.mirrored.ref == routers.active:
        return
    certain = routers.following == routers.routers and picture.memory.number <= routers.number
    if certain and routers.active_s >= draft.rules.settle_s:
        draft.actions.append(Mirror(profile=routers.active, reason="the routers serve by it"))


def _fit(draft: _Draft, need: Need) -> None:
    """A needed pool: groups beyond what is needed drain and go; others take traffic again."""
    pool = need.pool
    keep = need.target
    _open(draft, pool, keep, need.why[0])
    # What of an excess is drained stays so while something holds the rest up.
    held = draft.needs.holds or draft.needs.short
    if pool.replicas > keep and pool.least is None and not held:
        _drain(draft, pool, keep, f"{keep} groups are needed")


def _open(draft: _Draft, pool: Pool, keep: int, why: str) -> None:
    """Groups below ``keep`` take traffic: cordons that are the controller's are taken back.

    A cordon outlives a worker that was killed, in the store, under a name that the next one of the
    same group has again. So the mark rises only past groups that were seen without one; what has
    not registered yet may still turn out to have it.
    """
    if pool.marked is None:
        return
    state = {m.index: m for m in pool.members if m.state}
    marked = [state.get(index) for index in range(pool.marked, keep)]
    for member in marked:
        if member is not None and member.cordoned:
            draft.actions.append(UndrainWorker(worker=member.id, reason=why))
    seen = itertools.takewhile(lambda m: m is not None and not m.cordoned, marked)
    if rises := sum(1 for _ in seen):
        draft.actions.append(RaiseMark(pool=pool, first=pool.marked + rises, reason=why))


def _retire(draft: _Draft, pool: Pool) -> None:
    """A pool that is not needed: it drains, and goes."""
    if pool.deleting:
        draft.waits.append(Wait(key=f"gone {pool.name}", sentence=f"pool {pool.name} goes away"))
        return
    if pool.replicas == 0 and not pool.owned:
        return
    holds = draft.needs.holds
    if not holds and any(m.state == WorkerState.READY or m.legs for m in pool.members):
        # What can serve stays, for what is missing. What cannot may be in the place of just that.
        holds = draft.needs.short
    if holds:
        draft.waits.append(
            Wait(
                key=f"held {pool.name}",
                sentence=f"pool {pool.name} is not needed, but kept: {holds[0]}",
            )
        )
        return
    _drain(draft, pool, 0, "no profile in use needs it")


def _drain(draft: _Draft, pool: Pool, keep: int, why: str) -> None:
    """Has the groups from ``keep`` on drain, and go once all are free."""
    if pool.marked is None or pool.marked > keep:
        draft.actions.append(MarkPool(pool=pool, first=keep, reason=why))
        return
    going = [m for m in pool.members if keep <= m.index]
    open_ = [m for m in going if m.state and not m.cordoned]
    for member in open_:
        draft.actions.append(DrainWorker(worker=member.id, reason=why))
    busy = [m for m in going if m.free_s is None or m.free_s < draft.rules.settle_s]
    if open_ or busy:
        named = ", ".join(_busy(m) for m in busy[:_MOST_NAMED])
        draft.waits.append(
            Wait(key=f"drain {pool.name}", sentence=f"pool {pool.name} drains: {named}")
        )
        return
    if keep == 0 and pool.owned:
        draft.actions.append(DeletePool(pool=pool, reason=why))
    else:
        draft.actions.append(ShrinkPool(pool=pool, replicas=keep, reason=why))


def _busy(member: Member) -> str:
    if member.legs:
        return f"{member.id} has {member.legs} request{'' if member.legs == 1 else 's'}"
    if member.free_s is None:
        return f"{member.id} is not free"
    return f"{member.id} has been free for {member.free_s:.1f} s"


def _sweep(draft: _Draft) -> None:
    """What belongs to no pool any more."""
    if draft.picture.routers is None:
        return
    names = {pool.name for pool in draft.picture.pools}
    keys = {pool.key for pool in draft.picture.pools}
    for remnant in draft.picture.remnants:
        there = remnant.name in names if remnant.named else remnant.key in keys
        if not there and remnant.key not in draft.needs.absent:
            draft.actions.append(Sweep(remnant=remnant, reason="its pool is gone"))


def _phase(draft: _Draft) -> str:
    """What goes on, in a word or two."""
    kinds = {action.kind for action in draft.actions}
    stands, routers = draft.stands, draft.picture.routers
    if routers is None:
        return "routers away"
    if routers.switch is not None:
        return "switching"
    if stands.is_open:
        return "preparing"
    if draft.needs.absent or kinds & {"create", "grow"}:
        return "growing"
    keys = [wait.key for wait in draft.waits]
    if kinds & {"drain", "mark", "shrink", "delete"} or any(k.startswith("drain") for k in keys):
        return "draining"
    if stands.outcome in (Outcome.REFUSED, Outcome.ROLLED_BACK):
        return "wish not met"
    return "steady"

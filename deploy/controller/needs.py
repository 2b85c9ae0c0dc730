"""Which pools are needed, by whom, and with how many groups; and whether they are ready.

Needed are the pools of the profile that routers serve by, of the one that they are switching to, of
a wish that is still open, and for a while of the profile before. Only the first and the wish have
pools made for them: the others keep what is there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from deploy.controller.actions import Wait
from deploy.controller.picture import Known, Member, Picture, Pool, Want
from deploy.controller.settings import Rules
from deploy.controller.wishes import Standing
from profiles.switching import Ref

_MOST_NAMED = 5


@dataclass(slots=True)
class Need:
    """A pool that is needed.

    Attributes:
        pool: which.
        replicas: groups that the profiles ask for, the most of them.
        grows: whether it is made as large as that.
        why: for whom.
    """

    pool: Pool
    replicas: int = 0
    grows: bool = False
    why: list[str] = field(default_factory=list)

    @property
    def target(self) -> int:
        """Groups that it should have now."""
        if self.pool.least is not None:
            # Its autoscaler's business, but for waking it up.
            asleep = self.pool.replicas == 0 and self.grows
            return self.pool.least if asleep else self.pool.replicas
        return self.replicas


@dataclass(slots=True)
class Needs:
    """All that is needed.

    Attributes:
        pools: by name.
        absent: pools that have to be made, each with its profile and why.
        holds: why nothing may be taken away now, a sentence each.
        short: what the active profile lacks, a sentence each: nothing that can serve may be taken
            away now.
    """

    pools: dict[str, Need] = field(default_factory=dict)
    absent: dict[str, tuple[Want, Ref, str]] = field(default_factory=dict)
    holds: list[str] = field(default_factory=list)
    short: list[str] = field(default_factory=list)


def choose(pools: Iterable[Pool], want: Want) -> Pool | None:
    """The pool that is what a profile wants; None where it has to be made.

    Of several, Git's comes before the controller's own: once it is ready, the other one goes.
    """
    fitting = [
        pool
        for pool in pools
        if (pool.key, pool.role) == (want.key, want.role.value) and not pool.deleting
    ]
    return min(fitting, key=lambda pool: (pool.owned, pool.name), default=None)


def needs(picture: Picture, stands: Standing, rules: Rules) -> Needs:
    """What is needed, by all that the picture holds."""
    found = Needs()
    routers = picture.routers
    if picture.unread:
        found.holds.append(f"what is wished for is not known ({picture.unread})")
    if routers is None:
        why = picture.routers_problem or "they were not asked"
        found.holds.append(f"the routers do not answer ({why})")
        if picture.mirrored is not None:
            _add(found, picture, picture.mirrored, f"{_name(picture.mirrored)} served last")
    else:
        _add_agreed(found, picture, stands, rules)
    if stands.is_open and stands.wish is not None:
        _add(found, picture, stands.wish.known, f"{_name(stands.wish.known)} is wished for")
    return found


def _add_agreed(found: Needs, picture: Picture, stands: Standing, rules: Rules) -> None:
    """What the routers agree on."""
    routers = picture.routers
    assert routers is not None
    if routers.store_lost:
        found.holds.append("the routers' store is away")
    if picture.memory.number > routers.number:
        found.holds.append("the routers know of fewer switches than before")
    if routers.following < routers.routers:
        late = routers.routers - routers.following
        found.holds.append(f"{late} of {routers.routers} routers do not follow yet")
    active = _known(found, picture, routers.active, "is active")
    if active is not None:
        first_install = is_first_install(picture, stands)
        _add(found, picture, active, f"{_name(active)} is active", make=not first_install)
        missing = [
            sentence
            for want in active.wants
            for sentence in lacks(choose(picture.pools, want), want, rules)
        ]
        found.short += [f"what is active is not ready: {sentence}" for sentence in missing]
    if routers.switch is not None:
        number, new = routers.switch.number, routers.switch.new
        found.holds.append(f"switch {number} to {new.name} is on")
        if (known := _known(found, picture, new, f"is what switch {number} leads to")) is not None:
            _add(found, picture, known, f"switch {number} leads to {_name(known)}", make=False)
    if routers.previous is not None and routers.active_s < rules.retire_s:
        why = f"was active until {routers.active_s:.0f} s ago"
        if (known := _known(found, picture, routers.previous, why)) is not None:
            _add(found, picture, known, f"{_name(known)} {why}", make=False, rescue=False)


def is_first_install(picture: Picture, stands: Standing) -> bool:
    """Whether nothing serves but what the wish brings, and the wish is another profile than routers
    started with: then that one's pools are not made, only to be taken away again."""
    routers, wish = picture.routers, stands.wish
    if routers is None or wish is None or not stands.is_open:
        return False
    own = [choose(picture.pools, want) for want in wish.known.wants]
    workers = sum(bool(m.state) for pool in own if pool is not None for m in pool.members)
    if routers.workers > workers:
        return False
    known = picture.profiles.get(routers.active.version)
    wants = () if known is None else known.wants
    # A pool that both have in common is the wish's.
    return not wants or not all(choose(picture.pools, want) for want in wants)


def _known(found: Needs, picture: Picture, ref: Ref, why: str) -> Known | None:
    known = picture.profiles.get(ref.version)
    if known is None:
        found.holds.append(
            f"profile {ref.name} ({ref.version}) {why}, and its text is not known here: put it "
            "into the ConfigMap of profiles"
        )
    return known


def _add(
    found: Needs,
    picture: Picture,
    known: Known,
    why: str,
    *,
    make: bool = True,
    rescue: bool = True,
) -> None:
    """Adds a profile's pools.

    Args:
        found: added to.
        picture: what was seen.
        known: the profile.
        why: for people.
        make: whether pools are made and grow for it.
        rescue: whether a pool that is being drained as a whole is kept for it.
    """
    for want in known.wants:
        pool = choose(picture.pools, want)
        if pool is None:
            if make:
                found.absent.setdefault(want.key, (want, known.ref, why))
            continue
        if not rescue and pool.marked == 0 and pool.name not in found.pools:
            continue
        need = found.pools.setdefault(pool.name, Need(pool))
        need.replicas = max(need.replicas, want.replicas)
        need.grows = need.grows or make
        need.why.append(why)


def lacks(pool: Pool | None, want: Want, rules: Rules) -> list[str]:
    """What a wanted pool lacks until it can serve, a sentence at most; nothing for ready."""
    if pool is None:
        return [f"there is no {want.role} pool with key {want.key}"]
    asked = want.replicas if pool.least is None else min(pool.least, want.replicas)
    # One that an autoscaler may let sleep (least 0) lacks nothing while it does.
    enough = max(min(1, asked), math.ceil(rules.min_ready * asked))
    ready = min(pool.ready_members(), pool.ready_groups)
    if ready >= enough:
        return []
    absent = [m for m in pool.members if m.index < asked and not m.ready]
    named = ", ".join(f"{m.id} {_state(m)}" for m in absent[:_MOST_NAMED])
    if len(absent) > _MOST_NAMED:
        named += f" and {len(absent) - _MOST_NAMED} more"
    told = f": {named}" if named else ""
    if pool.ready_members() >= enough:
        told = f": Kubernetes holds {pool.ready_groups} ready"
    return [f"pool {pool.name}: {ready} of {asked} groups are ready{told}"]


def waits_for(
    known: Known, pools: Iterable[Pool], rules: Rules, limit_s: float | None
) -> list[Wait]:
    """A wait for each of a profile's pools that is not ready."""
    pools = tuple(pools)
    return [
        Wait(key=f"ready {want.key}", sentence=sentence, limit_s=limit_s)
        for want in known.wants
        for sentence in lacks(choose(pools, want), want, rules)
    ]


def _state(member: Member) -> str:
    if member.cordoned:
        return "is cordoned"
    return f"is {member.state}" if member.state else "is not registered"


def _name(known: Known) -> str:
    return f"{known.ref.name} ({known.ref.version})"

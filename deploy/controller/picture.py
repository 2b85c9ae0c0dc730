"""What the controller saw in one look: plain frozen data, so that what it decides can be tested.

Nothing here reads a clock. Where a decision depends on time, the picture holds how long something
has been so, measured by whoever looked, on its own monotonic clock.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from baton.types import Role
from profiles.switching import Ref, Report, Switch

ASKER = "baton-controller, wish "
"""Begins ``by`` of the switches that the controller asks for; the wish's digest follows, so that
the routers' own history says what became of it."""


@dataclass(frozen=True, slots=True)
class Want:
    """A pool that a profile needs: role, key (``deploy.lws.render.pool_key``) and groups."""

    role: Role
    key: str
    replicas: int


@dataclass(frozen=True, slots=True)
class Known:
    """A profile whose text is known here, and so the pools that it needs."""

    ref: Ref
    wants: tuple[Want, ...]


@dataclass(frozen=True, slots=True)
class Wish:
    """What the ConfigMap of profiles wants active.

    Attributes:
        known: the profile.
        digest: of its name and text; another one is another wish.
        prepare_s: the profile's ``switch.prepare_s``; a pool that takes several times as long is
            told of.
    """

    known: Known
    digest: str
    prepare_s: float

    @property
    def by(self) -> str:
        """Who asks for a switch to it, as routers note it."""
        return ASKER + self.digest


class Outcome(enum.StrEnum):
    """What became of a wish."""

    OPEN = ""
    """Nothing yet."""
    ACTIVE = "active"
    """It was active when it was first seen."""
    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Memory:
    """What the controller keeps of wishes from one process to the next.

    Attributes:
        digest: of the wish that was seen last; empty for none.
        outcome: what became of it.
        number: the routers' number of switches by then; reports up to it are about earlier wishes.
    """

    digest: str = ""
    outcome: Outcome = Outcome.OPEN
    number: int = 0


@dataclass(frozen=True, slots=True)
class Member:
    """One group of a pool, as routers know it: a worker called ``<pool>-<index>``.

    Attributes:
        index: of the group.
        id: of the worker.
        state: what it says; empty for one that is not registered.
        ready: whether it takes traffic: READY, and not cordoned.
        cordoned: whether routers send it nothing new.
        legs: requests on it.
        free_s: for how long it has been seen to hold nothing, cordoned or not registered, in
            seconds; None while it is not so.
    """

    index: int
    id: str
    state: str = ""
    ready: bool = False
    cordoned: bool = False
    legs: int = 0
    free_s: float | None = None


@dataclass(frozen=True, slots=True)
class Pool:
    """A LeaderWorkerSet of ours.

    Attributes:
        name, uid, version: of the object; ``version`` is its ``resourceVersion``.
        key, role: its labels.
        replicas: groups that it is asked to have.
        ready_groups: groups that Kubernetes holds ready.
        owned: whether the controller made it; else it is Git's and is never deleted.
        least: groups that its autoscaler has at least; None for a pool without one.
        marked: cordons of groups from this index on are the controller's: it has drained them, or
            may have, and has not seen them take traffic since. None for none.
        deleting: whether it is on its way out.
        members: groups by index, those that are asked for and others that are still registered.
    """

    name: str
    uid: str
    version: str
    key: str
    role: str
    replicas: int
    ready_groups: int = 0
    owned: bool = False
    least: int | None = None
    marked: int | None = None
    deleting: bool = False
    members: tuple[Member, ...] = ()

    def ready_members(self) -> int:
        """Groups that take traffic."""
        return sum(m.ready for m in self.members if m.index < self.replicas)


@dataclass(frozen=True, slots=True)
class Routers:
    """What routers agree on.

    Attributes:
        active, previous, switch, history: as in ``profiles.switching.State``.
        following: routers that there are and that serve by ``active``.
        routers: routers that there are.
        store_lost: whether the router that answered goes by an old picture.
        active_s: for how long ``active`` has been seen to be that.
        behind_s: for how long the number of switches has been below the one remembered; 0 for not.
        workers: registered workers, of whatever pool.
    """

    active: Ref
    previous: Ref | None = None
    switch: Switch | None = None
    history: tuple[Report, ...] = ()
    following: int = 1
    routers: int = 1
    store_lost: bool = False
    active_s: float = math.inf
    behind_s: float = 0.0
    workers: int = 0

    @property
    def number(self) -> int:
        """Of the last switch."""
        on = 0 if self.switch is None else self.switch.number
        return max([on, *(report.number for report in self.history)])


@dataclass(frozen=True, slots=True)
class Remnant:
    """An object that the controller made for a pool, beside the LeaderWorkerSet.

    Attributes:
        path, name, uid: of the object.
        key: of the pool.
        named: whether it is called as its pool is; else any pool with the key may need it.
    """

    path: str
    name: str
    uid: str
    key: str
    named: bool = True


@dataclass(frozen=True, slots=True)
class Picture:
    """Everything that a plan is made from.

    Attributes:
        wish: what should be active; None where nothing good is named.
        profiles: by version, those that are known.
        pools: LeaderWorkerSets with our labels.
        routers: None where they do not answer.
        routers_problem: why, then.
        memory: of wishes.
        mirrored: the profile in the ConfigMap that routers start from; None for none.
        remnants: what else the controller made.
        waited: how long each wait of the last plan has lasted, by its key, in seconds.
        unread: why nobody knows which pools the wish needs, which may be any of those that are
            there; empty where that is known, and where nothing is wished for.
        problems: what is wrong with profiles, site or permissions, a line each.
    """

    wish: Wish | None = None
    profiles: Mapping[str, Known] = field(default_factory=dict)
    pools: tuple[Pool, ...] = ()
    routers: Routers | None = None
    routers_problem: str = ""
    memory: Memory = Memory()
    mirrored: Known | None = None
    remnants: tuple[Remnant, ...] = ()
    waited: Mapping[str, float] = field(default_factory=dict)
    unread: str = ""
    problems: tuple[str, ...] = ()

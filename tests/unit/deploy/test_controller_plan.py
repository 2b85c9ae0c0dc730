"""What the controller decides, rule by rule: a picture in, actions with reasons out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from baton.types import Role, RouterId
from deploy.controller.actions import Action, BeginSwitch, CreatePool, NoteWish, Sweep
from deploy.controller.picture import (
    ASKER,
    Known,
    Member,
    Memory,
    Outcome,
    Picture,
    Pool,
    Remnant,
    Routers,
    Want,
    Wish,
)
from deploy.controller.plan import Plan, plan
from deploy.controller.settings import Rules
from profiles.switching import Phase, Ref, Report, Switch

RULES = Rules(retire_s=300, settle_s=3, absent_s=0, min_ready=1.0, slow_factor=10)
A, B, C = Ref("a", "va"), Ref("b", "vb"), Ref("c", "vc")


def known(ref: Ref, key: str, *, prefill: int = 1, decode: int = 2) -> Known:
    return Known(
        ref,
        (Want(Role.PREFILL, f"p{key}", prefill), Want(Role.DECODE, f"d{key}", decode)),
    )


KA, KB, KC = known(A, "a"), known(B, "b"), known(C, "c")


def members(name: str, count: int, **more: Any) -> tuple[Member, ...]:
    values: dict[str, Any] = {"state": "ready", "ready": True, **more}
    return tuple(Member(index, f"{name}-{index}", **values) for index in range(count))


def pool(role: str, key: str, replicas: int, *, owned: bool = True, **more: Any) -> Pool:
    name = f"baton-{role}-{key}" if owned else f"baton-{role}"
    values: dict[str, Any] = {
        "members": members(name, replicas),
        "ready_groups": replicas,
        **more,
    }
    return Pool(name, f"uid-{name}", "7", key, role, replicas, owned=owned, **values)


def pools(key: str, *, owned: bool = True, **more: Any) -> tuple[Pool, Pool]:
    return (
        pool("prefill", f"p{key}", 1, owned=owned, **more),
        pool("decode", f"d{key}", 2, owned=owned, **more),
    )


def wish(of: Known, digest: str = "w1") -> Wish:
    return Wish(of, digest, prepare_s=60)


def report(number: int, new: Ref, outcome: Phase, by: str = ASKER + "w1") -> Report:
    return Report(number, A, new, by, outcome, "so it was", 0.0, order=number)


def switch(number: int, new: Ref, by: str = ASKER + "w1") -> Switch:
    return Switch(number, A, new, by, RouterId("r"))


def picture(**more: Any) -> Picture:
    """A serves by its own pools, and is what is wished for; B and C are known."""
    values: dict[str, Any] = {
        "wish": wish(KA),
        "profiles": {"va": KA, "vb": KB, "vc": KC},
        "pools": pools("a", owned=False),
        "routers": Routers(A, workers=3),
        "memory": Memory("w1", Outcome.ACTIVE, 0),
        "mirrored": KA,
    }
    return Picture(**{**values, **more})


def wished(**more: Any) -> Picture:
    """A serves, and B is wished for and noted."""
    return picture(**{"wish": wish(KB), "memory": Memory("w1"), **more})


def committed(**more: Any) -> Picture:
    """B serves since long; A's pools are still there."""
    values: dict[str, Any] = {
        "wish": wish(KB),
        "memory": Memory("w1", Outcome.COMMITTED, 0),
        "pools": (*pools("a"), *pools("b")),
        "routers": Routers(B, previous=A, history=(report(1, B, Phase.COMMITTED),), workers=6),
        "mirrored": KB,
    }
    return picture(**{**values, **more})


def told(made: Plan) -> list[str]:
    """``kind target`` of the actions."""
    return [f"{action.kind} {action.target}" for action in made.actions]


def do(found: Picture) -> list[str]:
    return told(plan(found, RULES))


def only(made: Plan, kind: type[Action]) -> Any:
    found = [action for action in made.actions if isinstance(action, kind)]
    assert len(found) == 1, made.actions
    return found[0]


def sentences(found: Picture) -> str:
    return "\n".join(wait.sentence for wait in plan(found, RULES).waits)


def test_nothing_to_do() -> None:
    """What is active is what is wished for, and its pools are ready."""
    made = plan(picture(), RULES)
    assert made.is_steady
    assert made.phase == "steady"
    assert made.needed == {
        "baton-prefill": ("a (va) is active",),
        "baton-decode": ("a (va) is active",),
    }


# --- a wish ---


def test_a_new_wish_is_noted_and_its_pools_are_made() -> None:
    """Noted with the number of switches so far, and no switch is asked for before that is seen."""
    history = (report(4, C, Phase.COMMITTED, by="operator"),)
    made = plan(
        wished(memory=Memory("w0", Outcome.ACTIVE, 2), routers=Routers(A, history=history)), RULES
    )
    note = only(made, NoteWish)
    assert note.memory == Memory("w1", Outcome.OPEN, 4)
    assert told(made)[1:] == ["create pool prefill pb", "create pool decode db"]
    assert [a.reason for a in made.actions][1:] == ["b (vb) is wished for"] * 2
    assert made.phase == "preparing"


def test_a_switch_is_asked_for_once_the_new_pools_are_ready() -> None:
    """By a name that holds the wish's digest."""
    made = plan(wished(pools=(*pools("a"), *pools("b"))), RULES)
    begin = only(made, BeginSwitch)
    assert (begin.profile, begin.by, begin.hurried) == (B, "baton-controller, wish w1", False)
    assert "its pools are ready" in begin.reason


@pytest.mark.parametrize(
    ("b_decode", "why"),
    [
        (pool("decode", "db", 2, ready_groups=1), "Kubernetes holds 1 ready"),
        (
            pool("decode", "db", 2, members=members("baton-decode-db", 1)),
            "1 of 2 groups are ready",
        ),
        (
            pool(
                "decode",
                "db",
                2,
                members=(
                    *members("baton-decode-db", 1),
                    Member(1, "baton-decode-db-1", state="warming"),
                ),
            ),
            "baton-decode-db-1 is warming",
        ),
        (
            pool(
                "decode",
                "db",
                2,
                members=members("baton-decode-db", 2, ready=False, cordoned=True),
            ),
            "baton-decode-db-0 is cordoned, baton-decode-db-1 is cordoned",
        ),
        (pool("decode", "db", 2, deleting=True), "there is no decode pool with key db"),
    ],
)
def test_no_switch_before_the_new_pools_are_ready(b_decode: Pool, why: str) -> None:
    """It waits, and says for which groups."""
    found = wished(pools=(*pools("a"), pools("b")[0], b_decode))
    assert not [line for line in do(found) if line.startswith("switch")]
    assert why in sentences(found)
    wait = next(w for w in plan(found, RULES).waits if w.key == "ready db")
    assert wait.limit_s == 600, "ten times the profile's switch.prepare_s"


def test_a_share_of_the_groups_may_be_enough() -> None:
    """``min_ready`` of them, one at least."""
    half = pool("decode", "db", 2, members=members("baton-decode-db", 1), ready_groups=1)
    found = wished(pools=(*pools("a"), pools("b")[0], half))
    assert "switch routers to b (vb)" in told(plan(found, replace(RULES, min_ready=0.5)))
    none = replace(half, members=(), ready_groups=0)
    found = wished(pools=(*pools("a"), pools("b")[0], none))
    assert "switch routers to b (vb)" not in told(plan(found, replace(RULES, min_ready=0.0)))


def test_a_switch_that_is_on_is_waited_for() -> None:
    """Whoever asked for it; nothing else is asked for, and nothing is taken away."""
    for by, whose in ((ASKER + "w1", ""), ("operator", ", asked for by operator")):
        found = wished(
            pools=(*pools("a"), *pools("b"), *pools("c")),
            routers=Routers(A, switch=switch(1, B, by)),
        )
        assert do(found) == []
        assert f"switch 1 to b is in phase prepare{whose}" in sentences(found)
        assert plan(found, RULES).phase == "switching"


@pytest.mark.parametrize("outcome", [Phase.COMMITTED, Phase.ROLLED_BACK, Phase.REFUSED])
def test_what_became_of_a_wish_is_read_from_the_routers_history(outcome: Phase) -> None:
    """Also by a controller that did not hear the answer; it does not ask twice."""
    active = B if outcome is Phase.COMMITTED else A
    found = wished(
        pools=(*pools("a"), *pools("b")),
        routers=Routers(active, previous=None, history=(report(1, B, outcome),)),
    )
    made = plan(found, RULES)
    note = only(made, NoteWish)
    assert note.memory == Memory("w1", Outcome(outcome.value), 1)
    assert "so it was" in note.reason
    assert not [a for a in made.actions if isinstance(a, BeginSwitch)]


def test_the_same_wish_asked_for_earlier_counts_only_after_its_note() -> None:
    """A wish that comes back after another one is a wish again."""
    old = report(3, B, Phase.ROLLED_BACK)
    found = wished(
        pools=(*pools("a"), *pools("b")),
        memory=Memory("w1", Outcome.OPEN, 5),
        routers=Routers(A, history=(old, report(5, C, Phase.ROLLED_BACK, "operator"))),
    )
    assert "switch routers to b (vb)" in do(found)
    without = replace(found, memory=Memory("w1", Outcome.OPEN, 2))
    assert "switch routers to b (vb)" not in do(without)


def test_without_any_memory_the_whole_history_counts() -> None:
    """A status ConfigMap that was deleted does not bring a refused wish back."""
    found = wished(memory=Memory(), routers=Routers(A, history=(report(3, B, Phase.REFUSED),)))
    made = plan(found, RULES)
    assert only(made, NoteWish).memory == Memory("w1", Outcome.REFUSED, 3)
    assert told(made)[1:] == []


@pytest.mark.parametrize("outcome", [Outcome.ROLLED_BACK, Outcome.REFUSED])
def test_a_wish_that_failed_is_not_tried_again(outcome: Outcome) -> None:
    """Its pools are not needed any more, and go; until the text is another one."""
    found = wished(
        pools=(*pools("a"), *pools("b")),
        memory=Memory("w1", outcome, 1),
        routers=Routers(A, history=(report(1, B, Phase.ROLLED_BACK),), workers=6),
    )
    assert do(found) == [
        "mark pool baton-prefill-pb: groups from 0 on",
        "mark pool baton-decode-db: groups from 0 on",
    ]
    assert plan(found, RULES).phase == "draining"
    again = plan(replace(found, wish=wish(KB, "w2")), RULES)
    assert only(again, NoteWish).memory == Memory("w2", Outcome.OPEN, 1)
    assert "baton-decode-db" in again.needed


def test_an_operators_switch_elsewhere_is_left_alone() -> None:
    """The wish was met once; what routers serve by now decides which pools there are."""
    found = committed(
        routers=Routers(
            C, previous=B, history=(report(1, B, Phase.COMMITTED), report(2, C, Phase.COMMITTED))
        ),
        pools=(*pools("b"), *pools("c")),
        mirrored=KC,
    )
    assert do(found) == [
        "mark pool baton-prefill-pb: groups from 0 on",
        "mark pool baton-decode-db: groups from 0 on",
    ]


def test_what_an_operator_switched_to_gets_pools_of_its_own_before_others_go() -> None:
    """Under another engine setting the old workers serve it until then."""
    found = committed(routers=Routers(C, previous=B), mirrored=KC, pools=pools("b"))
    assert do(found)[:2] == ["create pool prefill pc", "create pool decode dc"]
    assert not [line for line in do(found) if line.startswith(("mark", "delete"))]
    assert "what is active is not ready: there is no prefill pool" in sentences(found)


def test_a_rollback_by_an_operator_is_respected() -> None:
    """The profile before is active again: its pools stay, the wish's go, and nobody asks again."""
    history = (report(1, B, Phase.COMMITTED), report(2, A, Phase.COMMITTED, "operator"))
    found = committed(routers=Routers(A, previous=B, history=history), mirrored=KA)
    assert do(found) == [
        "mark pool baton-prefill-pb: groups from 0 on",
        "mark pool baton-decode-db: groups from 0 on",
    ]


def test_a_wish_that_is_active_already_is_noted_as_met() -> None:
    """So that an operator's switch away from it is not taken back."""
    made = plan(picture(memory=Memory("w0", Outcome.ACTIVE, 0)), RULES)
    assert only(made, NoteWish).memory == Memory("w1", Outcome.ACTIVE, 0)


def test_routers_that_began_from_nothing() -> None:
    """Where they serve what served last, nothing is done; where they do not, the wish is a wish
    again; a router that is merely late is not believed."""
    memory = Memory("w1", Outcome.COMMITTED, 7)
    late = committed(memory=memory, routers=Routers(A, behind_s=1.0))
    assert do(late) == []
    kept = committed(memory=memory, routers=Routers(B, behind_s=4.0), pools=pools("b"))
    assert only(plan(kept, RULES), NoteWish).memory == Memory("w1", Outcome.COMMITTED, 0)
    lost = replace(late, routers=Routers(A, behind_s=4.0))
    assert only(plan(lost, RULES), NoteWish).memory == Memory("w1", Outcome.OPEN, 0)


def test_no_switch_before_what_serves_is_written_down() -> None:
    """A router that starts from nothing in the middle of it begins with that."""
    both = (*pools("a"), *pools("b"))
    for mirrored in (None, KB):
        found = wished(pools=both, mirrored=mirrored)
        assert "switch routers to b (vb)" not in do(found)
        assert "that a serves is not written down" in sentences(found)
    unknown = wished(pools=both, mirrored=None, profiles={"vb": KB})
    assert "switch routers to b (vb)" in do(unknown), "what cannot be written holds nothing up"


# --- the first install ---


def test_the_first_install() -> None:
    """Routers have begun with a profile that nobody wants: only the wish's pools are made, and the
    switch to it is not held against a canary."""
    empty = wished(
        pools=(), routers=Routers(A), memory=Memory(), mirrored=None, profiles={"va": KA, "vb": KB}
    )
    assert do(empty) == [
        "note wish w1 (b)",
        "create pool prefill pb",
        "create pool decode db",
    ]
    ready = replace(empty, pools=pools("b"), memory=Memory("w1"), routers=Routers(A, workers=3))
    assert only(plan(ready, RULES), BeginSwitch).hurried
    assert do(ready) == ["switch routers to b (vb)"], "a's pools are not made, nor is it mirrored"
    shared = Known(A, (KB.wants[0], KA.wants[1]))
    alike = replace(ready, profiles={"va": shared, "vb": KB})
    assert do(alike) == ["switch routers to b (vb)"], "a pool in common is the wish's"
    busy = replace(ready, routers=Routers(A, workers=4))
    assert "create pool prefill pa" in do(busy), "somebody serves already"


def test_the_first_install_of_what_routers_began_with() -> None:
    """Its pools are made, nothing is switched."""
    found = picture(pools=(), routers=Routers(A), memory=Memory(), mirrored=None)
    assert do(found) == [
        "note wish w1 (a)",
        "create pool prefill pa",
        "create pool decode da",
        "mirror a (va)",
    ]


def test_without_routers_only_what_is_missing_is_made() -> None:
    """Routers are not ready before there are workers: the wish's pools, and those of what served
    last. Nothing is switched, drained or deleted."""
    found = wished(
        pools=(*pools("c"), pool("decode", "da", 0, owned=False)),
        routers=None,
        routers_problem="nothing listens",
        remnants=(Remnant("/x", "baton-decode-dz", "u", "dz"),),
    )
    assert do(found) == [
        "create pool prefill pa",
        "create pool prefill pb",
        "create pool decode db",
        "grow pool baton-decode from 0 to 2",
    ]
    assert "the routers do not answer: nothing listens" in sentences(found)
    assert plan(found, RULES).phase == "routers away"


# --- pools that are needed ---


def test_a_pool_is_made_when_it_has_been_missing_for_a_while() -> None:
    """A tree that is being applied changes the site first, and the pools a moment later."""
    rules = replace(RULES, absent_s=5)
    found = picture(pools=pools("a")[:1])
    assert told(plan(found, rules)) == []
    assert [w.key for w in plan(found, rules).waits] == ["absent da"]
    assert told(plan(replace(found, waited={"absent da": 4.9}), rules)) == []
    assert told(plan(replace(found, waited={"absent da": 5.0}), rules)) == ["create pool decode da"]


def test_what_routers_serve_by_is_made_and_grows() -> None:
    """Missing pools are made; those with too few groups grow."""
    found = picture(pools=(pool("decode", "da", 1),))
    assert do(found) == [
        "create pool prefill pa",
        "grow pool baton-decode-da from 1 to 2",
    ]


def test_a_pool_that_profiles_share_has_as_many_groups_as_the_larger_wants() -> None:
    """A profile that differs in numbers only has the same pools."""
    larger = Known(B, known(B, "a", decode=5).wants)
    found = wished(wish=wish(larger), profiles={"va": KA, "vb": larger})
    assert do(found) == ["grow pool baton-decode from 2 to 5"]
    grown = replace(found, pools=(pools("a")[0], pool("decode", "da", 5)))
    assert do(grown) == ["switch routers to b (vb)"]


def test_another_site_means_other_pools_without_a_switch() -> None:
    """The same version, other keys: new ones come, and then the old ones go."""
    moved = known(A, "x")
    found = picture(profiles={"va": moved}, wish=wish(moved))
    assert do(found) == ["create pool prefill px", "create pool decode dx"]
    both = replace(found, pools=(*pools("a", owned=False), *pools("x")))
    assert do(both) == [
        "mark pool baton-prefill: groups from 0 on",
        "mark pool baton-decode: groups from 0 on",
    ]


def test_of_two_pools_with_one_key_gits_is_kept() -> None:
    """The controller's own goes once Git's is ready."""
    asleep = tuple(
        replace(p, replicas=0, members=(), ready_groups=0) for p in pools("a", owned=False)
    )
    found = picture(pools=(*asleep, *pools("a")))
    assert do(found) == [
        "grow pool baton-prefill from 0 to 1",
        "grow pool baton-decode from 0 to 2",
    ]
    awake = picture(pools=(*pools("a", owned=False), *pools("a")))
    assert do(awake) == [
        "mark pool baton-prefill-pa: groups from 0 on",
        "mark pool baton-decode-da: groups from 0 on",
    ]


@pytest.mark.parametrize(
    ("replicas", "least", "expected"),
    [
        (0, 1, ["grow pool baton-decode-da from 0 to 1"]),
        (0, 3, ["grow pool baton-decode-da from 0 to 3"]),
        (1, 1, []),
        (9, 1, []),
        (0, 0, []),
    ],
)
def test_an_autoscaled_pool_is_woken_and_otherwise_left_alone(
    replicas: int, least: int, expected: list[str]
) -> None:
    """Its replicas are its autoscaler's, above 0."""
    decode = pool("decode", "da", replicas, least=least)
    assert do(picture(pools=(pools("a")[0], decode))) == expected


def test_an_autoscaled_pool_that_is_not_needed_goes_as_any_other() -> None:
    """To 0, where autoscalers rest."""
    free = members("baton-decode", 4, ready=False, cordoned=True, free_s=5.0)
    decode = pool("decode", "da", 4, owned=False, least=2, marked=0, members=free)
    found = committed(pools=(*pools("b"), decode))
    assert do(found) == ["shrink pool baton-decode from 4 to 0"]


def test_cordons_are_taken_back_on_a_pool_that_is_needed_again() -> None:
    """Its own cordons only: those on a pool that is not marked, or on groups below the mark, are an
    operator's. The mark rises when a cordon is seen to be gone."""
    cordoned = members("baton-decode", 2, ready=False, cordoned=True)
    marked = pool("decode", "da", 2, owned=False, marked=0, members=cordoned)
    found = picture(pools=(pools("a", owned=False)[0], marked))
    assert do(found) == ["undrain worker baton-decode-0", "undrain worker baton-decode-1"]
    free = replace(marked, members=members("baton-decode", 2))
    assert do(picture(pools=(pools("a", owned=False)[0], free))) == [
        "open pool baton-decode: groups below 2"
    ]
    for mark in (None, 2):
        operators = replace(marked, marked=mark)
        assert do(picture(pools=(pools("a", owned=False)[0], operators))) == []


@pytest.mark.parametrize(
    ("states", "marked", "expected"),
    [
        ("..", 0, []),
        ("c.", 0, ["undrain worker baton-decode-0"]),
        (".c", 0, ["undrain worker baton-decode-1"]),
        ("oc", 0, ["undrain worker baton-decode-1", "open pool baton-decode: groups below 1"]),
        ("co", 0, ["undrain worker baton-decode-0"]),
        ("o.", 0, ["open pool baton-decode: groups below 1"]),
        ("cc", 1, ["undrain worker baton-decode-1"]),
        ("co", 1, ["open pool baton-decode: groups below 2"]),
        ("ooc", 2, []),
        ("oc", 2, []),
    ],
)
def test_cordons_that_outlived_their_workers(states: str, marked: int, expected: list[str]) -> None:
    """A worker that was drained and then killed leaves its cordon in the store, under the name that
    its successor has: the mark stays until each group that is wanted was seen without (o), however
    late it registers (.), and so does that of groups which went (the third, still registered)."""
    looks: dict[str, dict[str, Any]] = {
        "o": {"state": "ready", "ready": True},
        "c": {"state": "ready", "cordoned": True},
        ".": {},
    }
    made = tuple(Member(i, f"baton-decode-{i}", **looks[s]) for i, s in enumerate(states))
    decode = pool("decode", "da", 2, owned=False, marked=marked, members=made)
    assert do(picture(pools=(pools("a", owned=False)[0], decode))) == expected


def test_a_pool_that_comes_back_keeps_its_mark_until_its_groups_are_there() -> None:
    """Scaled to 0 after a drain, and wanted again: it grows, and nothing is said of its cordons
    before anybody has registered."""
    decode = pool("decode", "da", 0, owned=False, marked=0)
    assert do(picture(pools=(pools("a", owned=False)[0], decode))) == [
        "grow pool baton-decode from 0 to 2"
    ]


def test_the_groups_of_an_autoscaler_are_opened_as_they_come() -> None:
    """The mark follows them up, and is never taken off: the next one may have a cordon too."""
    three = members("baton-decode", 3)
    decode = pool("decode", "da", 3, owned=False, least=1, marked=1, members=three)
    assert do(picture(pools=(pools("a", owned=False)[0], decode))) == [
        "open pool baton-decode: groups below 3"
    ]


# --- pools that are not needed ---


def test_the_profile_before_keeps_its_pools_for_a_while() -> None:
    """So that a rollback is quick."""
    found = committed(routers=replace(committed().routers or Routers(B), active_s=10.0))
    made = plan(found, RULES)
    assert made.is_steady
    assert made.needed["baton-decode-da"] == ("a (va) was active until 10 s ago",)


def test_a_pool_that_drains_already_is_not_kept_for_the_profile_before() -> None:
    """A controller that was started anew counts anew, and does not turn back."""
    old = pools("a", marked=0)
    found = committed(
        pools=(*old, *pools("b")), routers=Routers(B, previous=A, active_s=1.0, workers=6)
    )
    assert {line.split()[0] for line in do(found)} == {"drain"}
    back = committed(pools=(*old, *pools("b")), routers=Routers(A, previous=B), mirrored=KA)
    assert "open pool baton-decode-da: groups below 2" in do(back), "but for an active one"


def draining(name_pool: Pool, **more: Any) -> Picture:
    return committed(pools=(*pools("b"), replace(name_pool, marked=0, **more)))


def test_a_pool_drains_step_by_step() -> None:
    """Marked, cordoned, free for a while, gone; each step is taken once the one before is seen."""
    decode = pool("decode", "da", 2)
    assert do(committed(pools=(*pools("b"), decode))) == [
        "mark pool baton-decode-da: groups from 0 on"
    ]
    assert do(draining(decode)) == [
        "drain worker baton-decode-da-0",
        "drain worker baton-decode-da-1",
    ]
    busy = members("baton-decode-da", 2, ready=False, cordoned=True, legs=1)
    assert do(draining(decode, members=busy)) == []
    assert "baton-decode-da-0 has 1 request, " in sentences(draining(decode, members=busy))
    fresh = members("baton-decode-da", 2, ready=False, cordoned=True, free_s=1.0)
    assert do(draining(decode, members=fresh)) == []
    free = members("baton-decode-da", 2, ready=False, cordoned=True, free_s=3.0)
    assert do(draining(decode, members=free)) == ["delete pool baton-decode-da"]
    static = replace(pool("decode", "da", 2, owned=False), members=free)
    assert do(draining(static)) == ["shrink pool baton-decode from 2 to 0"]


def test_one_group_that_is_not_free_holds_its_pool() -> None:
    """All of them, or none."""
    mixed = (
        Member(0, "baton-decode-da-0", state="ready", cordoned=True, free_s=60.0),
        Member(1, "baton-decode-da-1", state="ready", cordoned=True, free_s=None),
    )
    assert do(draining(pool("decode", "da", 2), members=mixed)) == []
    came = (mixed[0], Member(1, "baton-decode-da-1", state="ready", ready=True))
    assert do(draining(pool("decode", "da", 2), members=came)) == ["drain worker baton-decode-da-1"]


def test_groups_that_are_not_registered_are_free() -> None:
    """Those that never came, after the same while."""
    absent = tuple(Member(i, f"baton-decode-da-{i}", free_s=5.0) for i in range(2))
    assert do(draining(pool("decode", "da", 2), members=absent)) == ["delete pool baton-decode-da"]


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"routers": Routers(B, store_lost=True)}, "the routers' store is away"),
        ({"routers": Routers(B, following=1, routers=2)}, "1 of 2 routers do not follow yet"),
        ({"routers": Routers(B, switch=switch(2, C))}, "switch 2 to c is on"),
        ({"routers": Routers(Ref("z", "vz"))}, "its text is not known here"),
        (
            {"routers": Routers(B, previous=Ref("z", "vz"), active_s=1.0)},
            "its text is not known here",
        ),
        (
            {"pools": (*pools("a"), pools("b")[0], pool("decode", "db", 2, ready_groups=1))},
            "what is active is not ready",
        ),
        ({"memory": Memory("w1", Outcome.COMMITTED, 9)}, "fewer switches than before"),
        ({"unread": "no answer", "wish": None}, "what is wished for is not known (no answer)"),
    ],
)
def test_nothing_is_taken_away_while(more: dict[str, Any], why: str) -> None:
    """Each of these holds everything up: marks, cordons, scaling, deleting."""
    free = members("x", 2, ready=False, cordoned=True, free_s=60.0)
    gone = (*(replace(p, marked=0, members=free) for p in pools("a")), *pools("b"))
    found = replace(committed(pools=gone), **more)
    kinds = {line.split()[0] for line in do(found)}
    assert not kinds & {"mark", "drain", "shrink", "delete"}
    assert why in sentences(found)


def test_a_pool_that_cannot_serve_gives_way_to_what_is_active() -> None:
    """It may have what the active profile's missing group waits for. One that could serve stays,
    and so does one that drains and may be wanted back."""
    short = (pools("b")[0], pool("decode", "db", 2, members=members("baton-decode-db", 1)))
    absent = tuple(Member(i, f"baton-decode-da-{i}", free_s=5.0) for i in range(2))
    warming = (replace(absent[0], state="warming", free_s=None), absent[1])

    def done(found: tuple[Member, ...]) -> list[str]:
        return do(committed(pools=(*short, pool("decode", "da", 2, members=found, marked=0))))

    assert done(absent) == ["delete pool baton-decode-da"]
    assert done(warming) == ["drain worker baton-decode-da-0"]
    assert done(members("baton-decode-da", 1)) == []
    assert done(members("baton-decode-da", 2, ready=False, cordoned=True, free_s=9.0)) == []


def test_a_previous_profile_that_nobody_knows_holds_for_a_while_only() -> None:
    """Its pools could be any; after ``retire_s`` it has none."""
    found = committed(routers=Routers(B, previous=Ref("z", "vz"), active_s=301.0, workers=6))
    assert "mark pool baton-decode-da: groups from 0 on" in do(found)


def test_a_needed_pool_shrinks_from_its_end() -> None:
    """The groups above what is needed are marked, drained, and go; the others serve on."""
    decode = pool("decode", "da", 4, owned=False)

    def shrinking(**more: Any) -> list[str]:
        return do(picture(pools=(pools("a", owned=False)[0], replace(decode, **more))))

    assert shrinking() == ["mark pool baton-decode: groups from 2 on"]
    assert shrinking(marked=2) == [
        "drain worker baton-decode-2",
        "drain worker baton-decode-3",
    ]
    first, last = (
        members("baton-decode", 4)[:2],
        members("baton-decode", 4, ready=False, cordoned=True, free_s=9.0)[2:],
    )
    assert shrinking(marked=2, members=(*first, *last)) == ["shrink pool baton-decode from 4 to 2"]
    gone = {"marked": 2, "replicas": 2, "ready_groups": 2}
    assert shrinking(**gone, members=first) == []
    assert shrinking(**gone, members=(*first, *last)) == [], "those that go get nothing any more"
    late = (members("baton-decode", 1)[0], Member(1, "baton-decode-1"), *last)
    assert shrinking(marked=1, members=late, ready_groups=1) == [], "not while groups are missing"
    stale = (first[0], replace(last[0], index=1, id="baton-decode-1"), *last)
    assert shrinking(marked=0, members=stale, ready_groups=2) == [
        "undrain worker baton-decode-1",
        "open pool baton-decode: groups below 1",
    ]


def test_a_pool_that_drained_whole_and_is_needed_in_part() -> None:
    """The groups that are needed take traffic again first."""
    cordoned = members("baton-decode", 4, ready=False, cordoned=True)
    decode = pool("decode", "da", 4, owned=False, marked=0, members=cordoned)
    found = wished(wish=wish(KA), pools=(*pools("b"), pools("a", owned=False)[0], decode))
    found = replace(found, routers=Routers(B, workers=8), mirrored=KB)
    assert "undrain worker baton-decode-0" in do(found)
    assert "undrain worker baton-decode-1" in do(found)
    assert "undrain worker baton-decode-2" not in do(found)


def test_a_pool_on_its_way_out_is_waited_for() -> None:
    """Nothing more is done to it."""
    found = committed(pools=(*pools("b"), pool("decode", "da", 2, deleting=True)))
    assert do(found) == []
    assert "pool baton-decode-da goes away" in sentences(found)


# --- what is written down, what is swept ---


def test_what_serves_is_mirrored_once_it_is_certain() -> None:
    """Not during a switch, not from a router that is late, not before it has been so for a while:
    routers take what is written for a proposal."""
    stale = committed(mirrored=KA, pools=pools("b"))
    assert do(stale) == ["mirror b (vb)"]
    renamed = replace(stale, mirrored=Known(Ref("other", "vb"), KB.wants))
    assert do(renamed) == ["mirror b (vb)"]
    for routers in (
        Routers(B, switch=switch(2, C), history=(report(1, B, Phase.COMMITTED),)),
        Routers(B, following=1, routers=2),
        Routers(B, active_s=1.0),
        Routers(B, store_lost=True),
    ):
        assert "mirror b (vb)" not in do(replace(stale, routers=routers))


def test_what_is_left_of_pools_is_swept() -> None:
    """What is called like a pool, with that pool; a profile's text, with the last pool that may
    mount it. What a pool is about to be made of stays."""
    remnants = (
        Remnant("/pdb/baton-decode-dz", "baton-decode-dz", "u1", "dz"),
        Remnant("/cm/baton-decode-dz", "baton-decode-dz", "u2", "dz", named=False),
        Remnant("/pdb/baton-decode-da", "baton-decode-da", "u3", "da"),
        Remnant("/cm/baton-decode-da", "baton-decode-da", "u4", "da", named=False),
        Remnant("/cm/baton-prefill-pb", "baton-prefill-pb", "u5", "pb", named=False),
    )
    made = plan(wished(remnants=remnants), RULES)
    swept = [a.remnant.path for a in made.actions if isinstance(a, Sweep)]
    # Git's pool has the key da; the pool that was made for it, baton-decode-da, is gone.
    assert swept == ["/pdb/baton-decode-dz", "/cm/baton-decode-dz", "/pdb/baton-decode-da"]


def test_every_action_says_why() -> None:
    """In words."""
    for found in (wished(), committed(), draining(pool("decode", "da", 2))):
        for action in plan(found, RULES).actions:
            assert len(action.reason) > 10
            assert action.target
    created = [a for a in plan(wished(), RULES).actions if isinstance(a, CreatePool)]
    assert {a.profile for a in created} == {B}

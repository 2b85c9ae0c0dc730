"""Watches that never end in silence, and waits that do end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any

import pytest

from baton.errors import BatonError, KubernetesUnavailable
from deploy.lws.client import (
    ChangeType,
    Forbidden,
    LeaderWorkerSet,
    LwsClient,
    NotInTime,
    exists,
    gone,
    has_condition,
)
from tests.fakes.scripted_kube import Answer, ScriptedKube
from tests.fakes.virtual_loop import run_virtual

Json = dict[str, Any]
Events = list[tuple[str, Json]]

LOST = KubernetesUnavailable("no answer in time")
TOO_OLD = {"code": 410, "reason": "Expired", "message": "too old"}
FORBIDDEN = {"code": 403, "reason": "Forbidden", "message": "no"}


def lws(name: str, version: int, status: Json | None = None, *, uid: str = "") -> Json:
    return {
        "metadata": {"name": name, "uid": uid or name, "resourceVersion": str(version)},
        "spec": {},
        "status": status or {},
    }


def listed(version: int, *items: Json, token: str = "") -> Answer:
    metadata = {"resourceVersion": str(version), **({"continue": token} if token else {})}
    return 200, {"metadata": metadata, "items": list(items)}


def bookmark(version: int) -> tuple[str, Json]:
    return "BOOKMARK", {"metadata": {"resourceVersion": str(version)}}


def followed(api: ScriptedKube, count: int, **options: Any) -> list[tuple[str, str, str]]:
    """The first changes: type, name, version."""
    changes = []

    async def main() -> None:
        client = LwsClient(api, "n", rng=random.Random(1))
        async with aclosing(client.leader_worker_sets.watch(**options)) as events:
            async for change in events:
                meta = change.object.meta
                changes.append((change.type.value, meta.name, meta.resource_version))
                if len(changes) == count:
                    return

    run_virtual(main())
    return changes


async def watched_for(api: ScriptedKube, limit_s: float) -> None:
    client = LwsClient(api, "n", rng=random.Random(1))
    async with asyncio.timeout(limit_s), aclosing(client.leader_worker_sets.watch()) as events:
        async for _ in events:
            pass


def test_list_then_watch() -> None:
    """What is there first, then what happens; objects made by a watch are ADDED once."""
    api = ScriptedKube(
        [listed(5, lws("a", 3))],
        [[("ADDED", lws("b", 6)), ("MODIFIED", lws("b", 7)), ("DELETED", lws("a", 8))]],
    )
    assert followed(api, 4, labels={"x": "1", "y": "2"}) == [
        ("ADDED", "a", "3"),
        ("ADDED", "b", "6"),
        ("MODIFIED", "b", "7"),
        ("DELETED", "a", "8"),
    ]
    assert api.watched[0].query["resourceVersion"] == "5"
    assert api.watched[0].query["allowWatchBookmarks"] == "true"
    assert api.calls[0].query["labelSelector"] == "x=1,y=2"


def test_a_watch_resumes() -> None:
    """From the last event or bookmark, without another list."""
    api = ScriptedKube(
        [listed(5)],
        [
            [("ADDED", lws("a", 6)), ("BREAK", {})],
            [bookmark(9), ("BREAK", {})],
            [("MODIFIED", lws("a", 10))],
        ],
    )
    assert followed(api, 2) == [("ADDED", "a", "6"), ("MODIFIED", "a", "10")]
    assert [call.query["resourceVersion"] for call in api.watched] == ["5", "6", "9"]
    assert len(api.calls) == 1


@pytest.mark.parametrize("how", ["in the watch", "at its beginning"])
def test_a_version_that_is_gone(how: str) -> None:
    """All is listed again, and what the gap hid is told: ends, changes, and names used anew."""
    old: Events = [("ERROR" if how == "in the watch" else "REFUSED", TOO_OLD)]
    api = ScriptedKube(
        [
            listed(5, lws("a", 1), lws("b", 2), lws("c", 3), lws("d", 4)),
            listed(9, lws("b", 2), lws("c", 7), lws("d", 8, uid="other"), lws("e", 9)),
        ],
        [old, []],
    )
    assert followed(api, 9)[4:] == [
        ("DELETED", "a", "1"),
        ("DELETED", "d", "4"),
        ("MODIFIED", "c", "7"),
        ("ADDED", "d", "8"),
        ("ADDED", "e", "9"),
    ]


def test_pages() -> None:
    """Long lists come in pages; a page that is too old begins the list anew."""
    expired = (410, TOO_OLD)
    api = ScriptedKube(
        [
            listed(5, lws("a", 1), lws("gone", 1), token="t"),
            expired,
            listed(6, lws("a", 2), token="u"),
            listed(6, lws("b", 3)),
        ],
        [[]],
    )
    assert followed(api, 2) == [("ADDED", "a", "2"), ("ADDED", "b", "3")]
    assert [call.query.get("continue") for call in api.calls] == [None, "t", None, "u"]


def test_an_outage() -> None:
    """Is waited out in growing pauses, told when it begins and ends, and nothing is told twice."""
    told: list[str] = []
    api = ScriptedKube(
        [listed(5, lws("a", 1)), *[LOST] * 12, listed(5, lws("a", 1))],
        [LOST, LOST, [("ADDED", lws("b", 6))]],
    )
    assert followed(api, 2, trouble=told.append) == [("ADDED", "a", "1"), ("ADDED", "b", "6")]
    # Twice: the list after the first outage went well, and the watch after it did not.
    assert told == ["no answer in time", ""] * 2
    assert 10 < api.watched[-1].at_s < 200


def test_pauses_begin_anew() -> None:
    """After a watch that was sound, the next failure is not taken for the last one's going on."""
    broken: Events = [("BREAK", {})]
    api = ScriptedKube(
        [listed(5)],
        [*[broken] * 5, [("ADDED", lws("a", 6)), ("BREAK", {})], broken, [("ADDED", lws("b", 7))]],
    )
    assert followed(api, 2) == [("ADDED", "a", "6"), ("ADDED", "b", "7")]
    begun = [call.at_s for call in api.watched]
    assert begun[5] - begun[4] > 2
    assert begun[-1] - begun[-2] <= 0.5


def test_an_outage_is_not_a_storm() -> None:
    """However long it takes, the API is asked a few times a minute."""
    api = ScriptedKube([LOST])

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await watched_for(api, 600)

    run_virtual(main())
    assert 60 < len(api.calls) < 400
    late = [call.at_s for call in api.calls if call.at_s > 300]
    assert len(late) < 150


def test_a_watch_that_ends_at_once() -> None:
    """Again and again is begun anew in pauses, not in a circle."""
    api = ScriptedKube([listed(5)], [[("BREAK", {})]])

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await watched_for(api, 60)

    run_virtual(main())
    assert len(api.watched) < 15


@pytest.mark.parametrize("how", ["list", "watch", "event"])
def test_a_missing_role(how: str) -> None:
    """Ends it with an error: asking again would not help."""
    answers: list[Answer] = [(403, FORBIDDEN) if how == "list" else listed(5)]
    api = ScriptedKube(answers, [[("ERROR" if how == "event" else "REFUSED", FORBIDDEN)]])
    with pytest.raises(Forbidden) as raised:
        followed(api, 1)
    assert raised.value.rule["verbs"] == ["list" if how == "list" else "watch"]


def test_credentials_that_ran_out() -> None:
    """A list reads them anew, so a watch that is not accepted goes on with one."""
    api = ScriptedKube(
        [listed(5), listed(7)],
        [[("REFUSED", {"code": 401, "reason": "Unauthorized"})], [("ADDED", lws("a", 8))]],
    )
    assert followed(api, 1) == [("ADDED", "a", "8")]


def test_odd_events() -> None:
    """Types that nobody knows are passed over; objects that are none begin the watch anew."""
    api = ScriptedKube(
        [listed(5)],
        [[("NEWER", lws("a", 6)), ("ADDED", "text")], [("ADDED", lws("b", 7))]],  # type: ignore[list-item]
    )
    assert followed(api, 1) == [("ADDED", "b", "7")]


Until = Callable[[LeaderWorkerSet | None], Sequence[str]]
READY: Json = {"conditions": [{"type": "Available", "status": "True"}]}
STUCK: Json = {"conditions": [{"type": "Available", "status": "False"}]}


@pytest.mark.parametrize(
    ("until", "first", "events"),
    [
        (exists, [], [("ADDED", lws("a", 6))]),
        (gone, [lws("a", 1)], [("DELETED", lws("a", 6))]),
        (gone, [], []),
        (
            has_condition("Available"),
            [],
            [("ADDED", lws("a", 6)), ("MODIFIED", lws("a", 7, READY))],
        ),
        (has_condition("Available", "False"), [lws("a", 1, STUCK)], []),
    ],
)
def test_waits(until: Until, first: list[Json], events: Events) -> None:
    """End when nothing is missing, with the object as it is then."""
    api = ScriptedKube([listed(5, *first)], [events])

    async def main() -> None:
        sets = LwsClient(api, "n").leader_worker_sets
        found = await sets.wait("a", until, timeout_s=5)
        assert until(found) == ()

    run_virtual(main())
    assert api.calls[0].query["fieldSelector"] == "metadata.name=a"


@pytest.mark.parametrize(
    ("until", "first", "missing"),
    [
        (exists, [], "it does not exist"),
        (gone, [lws("a", 1)], "it still exists"),
        (has_condition("Available"), [lws("a", 1)], "condition Available is not there"),
        (has_condition("Available"), [lws("a", 1, STUCK)], "condition Available is False, not"),
    ],
)
def test_waits_that_run_out(until: Until, first: list[Json], missing: str) -> None:
    """Say what is missing; a TimeoutError for whoever knows no better."""
    api = ScriptedKube([listed(5, *first)], [[]])

    async def main() -> None:
        with pytest.raises(NotInTime) as raised:
            await LwsClient(api, "n").leader_worker_sets.wait("a", until, timeout_s=45)
        assert missing in raised.value.missing[0]
        assert f"LeaderWorkerSet n/a is not as wanted after 45 s: {missing}" in str(raised.value)
        assert isinstance(raised.value, TimeoutError)
        assert isinstance(raised.value, BatonError)

    run_virtual(main())


def test_waits_without_the_api() -> None:
    """Say that it cannot be reached."""
    api = ScriptedKube([LOST])

    async def main() -> None:
        with pytest.raises(NotInTime, match="after 20 s: no answer in time"):
            await LwsClient(api, "n").leader_worker_sets.wait_rollout("a", timeout_s=20)

    run_virtual(main())


def test_waits_look_again() -> None:
    """A RoleScaler's groups are no change of its set: they are read anew with each watch, and a
    wait outlives answers that do not come."""
    role = {"name": "decode", "scaling": {"mode": "External"}, "spec": {}}
    counts = {"name": "decode", "replicas": 2, "readyReplicas": 2, "updatedReplicas": 2}
    pair: Json = {
        "metadata": {"name": "pair", "generation": 1},
        "spec": {"roles": [role]},
        "status": {"observedGeneration": 1, "roleStatuses": [counts]},
    }

    def scaler(replicas: int) -> Answer:
        return 200, {"metadata": {"name": "pair-decode"}, "spec": {"replicas": replicas}}

    api = ScriptedKube(
        [listed(5, pair), scaler(3), scaler(3), scaler(3), *[LOST] * 4, scaler(2)], [[]]
    )

    async def main() -> None:
        sets = LwsClient(api, "n", rng=random.Random(1)).disaggregated_sets
        await sets.wait_rollout("pair", timeout_s=60)
        assert 20 <= asyncio.get_running_loop().time() < 40

    run_virtual(main())


def test_waits_of_others_are_left_alone() -> None:
    """A timeout around a wait is the caller's, and a cancelled wait stays cancelled."""
    api = ScriptedKube([listed(5)], [[]])

    async def main() -> None:
        with pytest.raises(TimeoutError) as raised:
            async with asyncio.timeout(3):
                await LwsClient(api, "n").leader_worker_sets.wait("a", exists, timeout_s=20)
        assert not isinstance(raised.value, NotInTime)

        def until(found: LeaderWorkerSet | None) -> Sequence[str]:
            raise TimeoutError("mine")

        with pytest.raises(TimeoutError, match="mine"):
            await LwsClient(api, "n").leader_worker_sets.wait("a", until, timeout_s=20)

    run_virtual(main())


def test_changes_have_types() -> None:
    """For whoever matches on them."""
    assert {kind.value for kind in ChangeType} == {"ADDED", "MODIFIED", "DELETED"}

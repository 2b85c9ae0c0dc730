"""What the controller makes of objects and answers, what it tells, and what its acts refuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from baton.cli.controller_run import Flags, as_json_text, run_controller, told
from baton.clock import VirtualClock
from baton.errors import SettingsError
from baton.types import WorkerId
from deploy.controller.act import Actor, Stale
from deploy.controller.actions import (
    CreatePool,
    DeletePool,
    MarkPool,
    NoteWish,
    RaiseMark,
    ShrinkPool,
)
from deploy.controller.cluster import Cluster
from deploy.controller.metrics import PHASES, Metrics
from deploy.controller.observe import (
    DRAINING,
    MEMORY,
    Seen,
    _least,
    _members,
    _memory,
    _mirrored,
    _pool,
    is_free,
    memory_text,
)
from deploy.controller.picture import Member, Memory, Outcome, Picture, Pool, Routers
from deploy.controller.plan import plan
from deploy.controller.rendering import Pools, SiteRenderer
from deploy.controller.routers import RoutersApi, WorkerRow
from deploy.controller.settings import ControllerSettings
from deploy.controller.status import status_of
from deploy.controller.telling import of_action, of_plan
from deploy.controller.timers import Timers
from deploy.lws.pools import profile_text
from deploy.lws.site import site_text
from profiles import builtin_names, parse_profile, resolve_profile
from profiles.switching import Ref, ref
from tests.fakes.worker_records import worker_record
from tests.unit.deploy.test_controller_plan import RULES, committed, pool, wished

SETTINGS = ControllerSettings("serving", "baton-profiles", "kind-cpu", "http://r:1", "token")


def row(name: str, **more: Any) -> WorkerRow:
    return WorkerRow(worker_record(WorkerId(name)), **more)


# --- looking ---


def test_a_leader_worker_set_as_it_is_seen() -> None:
    """Labels, numbers and the controller's mark; what is left out is at its default."""
    lws = {
        "metadata": {
            "name": "baton-decode",
            "uid": "u",
            "resourceVersion": "9",
            "labels": {"baton.serving/pool": "k", "baton.serving/role": "decode"},
            "annotations": {DRAINING: "2"},
        },
        "spec": {"replicas": 3},
        "status": {"readyReplicas": 2},
    }
    seen = _pool(lws, {"baton-decode": 2})
    assert seen == Pool("baton-decode", "u", "9", "k", "decode", 3, 2, least=2, marked=2)
    bare = _pool({"metadata": {"name": "x", "labels": {}}, "spec": {}}, {})
    assert (bare.replicas, bare.ready_groups, bare.least, bare.marked) == (1, 0, None, None)
    lws["metadata"]["labels"]["app.kubernetes.io/managed-by"] = "baton-controller"  # type: ignore[index]
    lws["metadata"]["deletionTimestamp"] = "now"  # type: ignore[index]
    assert _pool(lws, {}).owned
    assert _pool(lws, {}).deleting


def test_the_groups_of_a_pool_by_the_names_of_their_workers() -> None:
    """Those that are asked for, and those that are still registered; a pool whose name begins
    alike is another one."""
    rows = {
        name: row(name, cordoned=name.endswith("3"), drained=name.endswith("3"))
        for name in ("baton-decode-0", "baton-decode-3", "baton-decode-1a2b3c4d-0", "other-0")
    }
    found = _members(Pool("baton-decode", "u", "1", "k", "decode", 2), rows)
    assert [(m.id, m.state, m.ready, m.free_s) for m in found] == [
        ("baton-decode-0", "ready", True, None),
        ("baton-decode-1", "", False, 0.0),
        ("baton-decode-3", "ready", False, 0.0),
    ]


@pytest.mark.parametrize(
    ("found", "free"),
    [
        (row("w", cordoned=True, drained=True), True),
        (row("w", cordoned=True), False),
        (row("w", drained=True), False),
        (row("w", cordoned=True, drained=True, legs=1), False),
    ],
)
def test_what_counts_as_free(found: WorkerRow, free: bool) -> None:
    """Cordoned, and drained, and without a request."""
    assert is_free(found) is free


def test_autoscalers() -> None:
    """Kubernetes' and KEDA's, of LeaderWorkerSets only."""
    target = {"kind": "LeaderWorkerSet", "name": "p"}
    assert _least({"spec": {"scaleTargetRef": target, "minReplicas": 3}}) == {"p": 3}
    assert _least({"spec": {"scaleTargetRef": target, "minReplicaCount": 0}}) == {"p": 0}
    assert _least({"spec": {"scaleTargetRef": target}}) == {"p": 1}
    assert _least({"spec": {"scaleTargetRef": {"kind": "Deployment", "name": "p"}}}) == {}
    assert _least({"data": {}}) == {}


def test_what_is_remembered_is_read_back() -> None:
    """And counts as nothing where it cannot be read."""
    memory = Memory("d", Outcome.ROLLED_BACK, 7)
    kept = {"metadata": {"annotations": {MEMORY: memory_text(memory)}}}
    assert _memory(kept) == memory
    assert _memory(None) == Memory()
    for broken in ("{", "[]", '{"outcome": "strange"}', '{"number": "x"}'):
        assert _memory({"metadata": {"annotations": {MEMORY: broken}}}) == Memory()


def test_what_is_mirrored_is_read_back() -> None:
    """A profile keeps its version through the text that routers are given, each built-in one."""
    for name in builtin_names():
        profile = resolve_profile(name)
        text = profile_text(profile)
        assert parse_profile(text, source="t").version == profile.version
        found = _mirrored({"data": {"active": name, f"{name}.yaml": text}})
        assert found is not None
        assert (found.name, found.version) == (name, profile.version)
    assert _mirrored(None) is None
    assert _mirrored({"data": {"active": "x"}}) is None
    assert _mirrored({"data": {"active": "x", "x.yaml": "nonsense"}}) is None


def test_timers() -> None:
    """For how long something has held; anew after it has not."""
    clock = VirtualClock()
    timers = Timers(clock.monotonic_s)
    assert timers.keep("w ", ["a", "b"]) == {"a": 0, "b": 0}
    clock.advance(2)
    assert timers.keep("w ", ["b", "c"]) == {"b": 2, "c": 0}
    assert timers.keep("other ", ["b"]) == {"b": 0}
    assert timers.keep("w ", ["a"]) == {"a": 0}
    assert timers.held_s("x", True) == 0
    clock.advance(1)
    assert timers.held_s("x", True) == 1
    assert timers.held_s("x", False) is None


# --- acting ---


class Workers:
    """Of the routers' admin API, the workers."""

    def __init__(self, *rows: WorkerRow) -> None:
        self._rows = rows

    async def workers(self) -> tuple[WorkerRow, ...]:
        return self._rows


class Writes:
    """Of the cluster, what is written."""

    namespace = "serving"

    def __init__(self) -> None:
        self.done: list[Any] = []

    def path(self, form: str, name: str = "") -> str:
        return name

    async def patch(self, form: str, name: str, body: Any) -> None:
        self.done.append((name, body))

    async def apply(self, obj: Any) -> None:
        self.done.append((obj["kind"], obj["metadata"].get("annotations", {}).get(DRAINING)))

    async def delete(self, path: str, uid: str, version: str = "") -> None:
        self.done.append((path, uid, version))


OLD = Pool(
    "baton-decode",
    "u",
    "9",
    "k",
    "decode",
    2,
    members=tuple(Member(i, f"baton-decode-{i}", "ready", cordoned=True) for i in range(2)),
)


def actor(writes: Writes, *rows: WorkerRow, may: bool = True) -> Actor:
    routers = cast(RoutersApi, Workers(*rows))
    return Actor(cast(Cluster, writes), routers, SETTINGS, lambda: may)


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ((row("baton-decode-0", cordoned=True, drained=True, legs=1),), "baton-decode-0 is in use"),
        ((row("baton-decode-1"),), "baton-decode-1 is in use"),
        ((row("baton-decode-7"),), "baton-decode-7 has come meanwhile"),
    ],
)
async def test_groups_that_hold_something_after_all_are_not_scaled_away(
    rows: tuple[WorkerRow, ...], why: str
) -> None:
    """The routers are asked once more, whatever the plan was made by."""
    writes = Writes()
    for action in (
        ShrinkPool(pool=OLD, replicas=0, reason="test"),
        DeletePool(pool=OLD, reason="test"),
    ):
        with pytest.raises(Stale, match=why):
            await actor(writes, *rows).do(action, Seen(Picture()))
    assert writes.done == []


async def test_groups_that_are_free_go_on_the_version_that_was_seen() -> None:
    """A pool that has changed meanwhile is left alone by the API itself."""
    writes = Writes()
    free = row("baton-decode-1", cordoned=True, drained=True)
    busy = row("baton-decode-0", legs=3)
    await actor(writes, free, busy).do(
        ShrinkPool(pool=OLD, replicas=1, reason="test"), Seen(Picture())
    )
    await actor(writes, free).do(DeletePool(pool=OLD, reason="test"), Seen(Picture()))
    assert writes.done == [
        ("baton-decode", {"spec": {"replicas": 1}, "metadata": {"resourceVersion": "9"}}),
        ("baton-decode", "u", "9"),
    ]


async def test_a_pool_that_is_made_is_marked_from_its_first_group_on() -> None:
    """One of the same name may have left cordons in the store."""
    profile, writes = resolve_profile("cpu-disaggregated"), Writes()
    pools = Pools(SiteRenderer(site_text("kind-cpu")[0], "test"))
    action = CreatePool(profile=ref(profile), role="decode", key="k", reason="test")
    seen = Seen(Picture(), profiles={profile.version: profile}, pools=pools)
    await actor(writes).do(action, seen)
    assert sorted(writes.done, key=str) == [
        ("ConfigMap", None),
        ("LeaderWorkerSet", "0"),
        ("PodDisruptionBudget", None),
    ]


async def test_a_mark_is_written_on_the_version_that_was_seen() -> None:
    """Also where it rises."""
    writes = Writes()
    for action in (
        MarkPool(pool=OLD, first=0, reason="test"),
        RaiseMark(pool=OLD, first=2, reason="test"),
    ):
        await actor(writes).do(action, Seen(Picture()))
    assert writes.done == [
        ("baton-decode", {"metadata": {"annotations": {DRAINING: mark}, "resourceVersion": "9"}})
        for mark in ("0", "2")
    ]


async def test_nothing_is_done_without_the_lease() -> None:
    """Not even what takes nothing away."""
    writes = Writes()
    with pytest.raises(Stale, match="lease"):
        await actor(writes, may=False).do(
            ShrinkPool(pool=OLD, replicas=0, reason="test"), Seen(Picture())
        )
    assert writes.done == []


# --- telling ---


def test_what_became_of_a_wish_is_told() -> None:
    """Bad news with what to do."""
    memory = Memory("d", Outcome.ROLLED_BACK, 3)
    happened = of_action(
        NoteWish(memory=memory, profile=Ref("b", "vb"), reason="rolled_back: errors")
    )
    assert happened is not None
    assert (happened.reason, happened.warning) == ("WishRolledBack", True)
    assert "b (vb) rolled_back: errors; it is not tried again until" in happened.message
    assert of_action(NoteWish(memory=Memory("d"), profile=Ref("b", "vb"), reason="new")) is None


def test_a_wait_that_takes_too_long_is_told() -> None:
    """After ten times the profile's own patience, in words that stay the same."""
    late = wished(waited={"ready db": 601.0}, pools=(*wished().pools, pool("prefill", "pb", 1)))
    for picture, count in ((late, 1), (wished(), 0)):
        found = [h for h in of_plan(picture, plan(picture, RULES)) if h.reason == "StillWaiting"]
        assert len(found) == count
    assert "there is no decode pool with key db, for more than 600 s" in found_message(late)


def found_message(picture: Picture) -> str:
    return next(iter(of_plan(picture, plan(picture, RULES)))).message


def test_the_status_says_for_whom_each_pool_is_kept() -> None:
    """In lines, the same for the same things, so that it is written when something has changed."""
    picture = committed()
    data = status_of(picture, plan(picture, RULES), "me")
    assert data["active"] == "b (vb)"
    assert data["wish-outcome"] == "committed"
    lines = data["pools"].splitlines()
    assert "baton-decode-da: 2 of 2 ready: not needed" in lines
    assert "baton-decode-db: 2 of 2 ready: b (vb) is active" in lines
    for cordoned, going_too in ((False, ""), (True, ", draining from group 0 on")):
        going = tuple(replace(m, cordoned=cordoned) for m in pool("decode", "da", 2).members)
        found = Picture(pools=(pool("decode", "da", 2, marked=0, members=going),))
        line = status_of(found, plan(found, RULES), "me")["pools"]
        assert line == f"baton-decode-da: 2 of 2 ready{going_too}: not needed"
    assert (data["phase"], data["holder"]) == ("draining", "me")
    assert all(isinstance(value, str) for value in data.values())


def test_metrics() -> None:
    """One page with what there is, and one phase at a time."""
    metrics = Metrics()
    picture = committed()
    made = plan(picture, RULES)
    metrics.show(picture, made)
    metrics.note_pass("done", 0.1)
    metrics.note_action("drain", "done")
    page = metrics.page().decode()
    assert 'baton_controller_phase{phase="draining"} 1.0' in page
    assert page.count("baton_controller_phase{") == len(PHASES)
    assert 'baton_controller_groups{pool="baton-decode-da",state="needed"} 0.0' in page
    assert 'baton_controller_actions_total{kind="drain",result="done"} 1.0' in page
    assert "baton_controller_routers_up 1.0" in page
    metrics.show(Picture(), plan(Picture(), RULES))
    assert "baton_controller_routers_up 0.0" in metrics.page().decode()


# --- the command ---


def test_a_dry_run_in_words() -> None:
    """What it would do and why, what it waits for, what is wrong; for programs as JSON."""
    picture = wished(problems=("one.yaml:3: spec.mode: no",))
    made = plan(picture, RULES)
    lines = told(Seen(picture), made).splitlines()
    assert lines[:3] == ["phase   preparing", "wish    b (vb): not met yet", "active  a (va)"]
    assert "pool    baton-decode: 2 of 2 ready: a (va) is active" in lines
    assert "do      create pool decode db: b (vb) is wished for" in lines
    assert "wait    there is no decode pool with key db" in lines
    assert lines[-1] == "problem one.yaml:3: spec.mode: no"
    data = msgspec.json.decode(as_json_text(Seen(picture), made))
    assert data["active"] == {"name": "a", "version": "va"}
    assert [action["kind"] for action in data["actions"]] == ["create", "create"]
    steady = Picture(routers=Routers(Ref("a", "va")))
    assert told(Seen(steady), plan(steady, RULES)).endswith("nothing would be changed\n")


def flags(tmp_path: Path, **more: Any) -> Flags:
    values: dict[str, Any] = {
        "admin": "http://127.0.0.1:1",
        "namespace": None,
        "profiles": "baton-profiles",
        "site": "kind-cpu",
        "active": "baton-active",
        "lease_name": "baton-controller",
        "lease": "15s",
        "identity": None,
        "retire": "5m",
        "settle": "3s",
        "min_ready": 1.0,
        "poll": "10s",
        "busy_poll": "1s",
        "health": None,
        "home": tmp_path,
    }
    return Flags(**{**values, **more})


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"admin": "routers:8001"}, "is no URL of an admin API"),
        ({"lease": "1500ms"}, "--lease must be whole seconds, 2 at least"),
        ({"lease": "1s"}, "--lease must be whole seconds, 2 at least"),
        ({"retire": "60"}, "--retire must be a duration such as 60s"),
        ({"settle": "0s"}, "--settle must be more than nothing"),
    ],
)
def test_flags_that_are_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], said: str
) -> None:
    """Each is refused with what it should be."""
    _known_cluster(tmp_path, monkeypatch)
    monkeypatch.setenv("BATON_ADMIN_TOKEN", "0123456789abcdef")
    with pytest.raises(SettingsError, match=said):
        run_controller(flags(tmp_path, **more), once=False, dry_run=True, as_json=False)


def test_without_an_admin_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None is made: the routers would refuse it."""
    _known_cluster(tmp_path, monkeypatch)
    monkeypatch.delenv("BATON_ADMIN_TOKEN", raising=False)
    with pytest.raises(SettingsError, match="BATON_ADMIN_TOKEN_FILE to the routers' own"):
        run_controller(flags(tmp_path), once=True, dry_run=False, as_json=False)
    with pytest.raises(SettingsError, match="--json is for --dry-run"):
        run_controller(flags(tmp_path), once=True, dry_run=False, as_json=True)
    assert list(tmp_path.glob("admin*")) == []


def _known_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {}}],
    }
    path = tmp_path / "kubeconfig"
    path.write_bytes(msgspec.json.encode(config))
    monkeypatch.setenv("KUBECONFIG", str(path))

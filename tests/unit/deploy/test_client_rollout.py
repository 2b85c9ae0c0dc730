"""How far a rollout is, from an object alone."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.lws.client import RESTARTED, condition, rollout_of, rollout_of_roles
from deploy.lws.client.objects import (
    read_disaggregated_set,
    read_leader_worker_set,
    read_role_scaler,
    read_scale,
)
from deploy.lws.client.rollout import restarted

Json = dict[str, Any]

AVAILABLE = {"type": "Available", "status": "True", "reason": "AllGroupsReady"}
PROGRESSING = {"type": "Available", "status": "False", "reason": "GroupsProgressing"}
UPDATING = {
    "type": "UpdateInProgress",
    "status": "True",
    "reason": "GroupsUpdating",
    "message": "Rolling Upgrade is in progress",
}


def lws(status: Json | None = None, replicas: int = 2, partition: int = 0) -> Json:
    return {
        "metadata": {"name": "a", "namespace": "n", "generation": 3},
        "spec": {
            "replicas": replicas,
            "leaderWorkerTemplate": {"size": 2, "workerTemplate": {"spec": {}}},
            "rolloutStrategy": {"rollingUpdateConfiguration": {"partition": partition}},
        },
        **({"status": status} if status else {}),
    }


def counts(total: int, updated: int, ready: int, *conditions: Json, seen: int = 3) -> Json:
    return {
        "observedGeneration": seen,
        "replicas": total,
        "updatedReplicas": updated,
        "readyReplicas": ready,
        "conditions": list(conditions),
    }


CASES: dict[str, tuple[Json, list[str]]] = {
    "done": (lws(counts(2, 2, 2, AVAILABLE)), []),
    "no groups wanted": (lws(counts(0, 0, 0, AVAILABLE), 0), []),
    "nobody looked at it": (lws(), ["its controller has not seen it: is LWS running?"]),
    "an older generation": (
        lws(counts(2, 2, 2, AVAILABLE, seen=2)),
        ["its controller has seen generation 2 of 3"],
    ),
    "a controller that tells no generation": (
        lws({**counts(2, 2, 2, AVAILABLE), "observedGeneration": None}),
        [],
    ),
    "new groups start": (
        lws(counts(2, 1, 1, PROGRESSING, UPDATING)),
        [
            "1 of 2 groups have the new template",
            "1 of 2 groups are ready",
            "an update is in progress (GroupsUpdating: Rolling Upgrade is in progress)",
            "condition Available is False (GroupsProgressing)",
        ],
    ),
    "updated, not ready": (
        lws(counts(2, 2, 1, PROGRESSING)),
        ["1 of 2 groups are ready", "condition Available is False (GroupsProgressing)"],
    ),
    "a surge": (
        lws(counts(3, 2, 3, AVAILABLE)),
        ["1 groups too many are still there"],
    ),
    "scaled down, and groups still end": (
        lws(counts(2, 2, 2, AVAILABLE), 1),
        ["1 groups too many are still there"],
    ),
    "scaled up": (
        lws(counts(2, 2, 2, PROGRESSING), 3),
        [
            "2 of 3 groups have the new template",
            "2 of 3 groups are ready",
            "2 of 3 groups are there",
            "condition Available is False (GroupsProgressing)",
        ],
    ),
    "a partition keeps old groups": (lws(counts(3, 1, 3, AVAILABLE), 3, 2), []),
    "a partition, not there yet": (
        lws(counts(3, 1, 3, AVAILABLE), 3, 1),
        ["1 of 2 groups have the new template"],
    ),
    "a partition over all": (lws(counts(2, 0, 2, AVAILABLE), 2, 5), []),
    "counts before conditions": (
        lws(counts(2, 2, 2)),
        ["condition Available is not there"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_leader_worker_sets(case: str) -> None:
    """Done when generation, counts and conditions agree; else it says what is missing."""
    raw, missing = CASES[case]
    rollout = rollout_of(read_leader_worker_set(raw))
    assert list(rollout.missing) == missing
    assert rollout.done is (not missing)
    assert str(rollout) == f"LeaderWorkerSet a: {'; '.join(missing) or 'rolled out'}"


def test_numbers() -> None:
    """What a display would show."""
    rollout = rollout_of(read_leader_worker_set(lws(counts(4, 1, 2, UPDATING), 3, 1)))
    assert (rollout.wanted, rollout.total, rollout.updated, rollout.ready) == (3, 4, 1, 2)
    assert (rollout.generation, rollout.observed_generation) == (3, 3)
    assert (rollout.available, rollout.progressing, rollout.updating) == (None, None, True)
    assert rollout.groups[0].kept == 1


def test_deleted_objects() -> None:
    """Are never done: their groups are about to go."""
    raw = lws(counts(2, 2, 2, AVAILABLE))
    raw["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert rollout_of(read_leader_worker_set(raw)).missing == ("it is being deleted",)


def disaggregated(slices: int = 1, **status: Any) -> Json:
    template = {"size": 2, "workerTemplate": {"spec": {}}}
    return {
        "metadata": {"name": "d", "namespace": "n", "generation": 1, "resourceVersion": "7"},
        "spec": {
            "slices": slices,
            "roles": [
                {"name": "prefill", "spec": {"replicas": 2, "leaderWorkerTemplate": template}},
                {
                    "name": "decode",
                    "scaling": {"mode": "External"},
                    "spec": {"leaderWorkerTemplate": {**template, "leaderTemplate": {"spec": {}}}},
                },
            ],
        },
        **({"status": status} if status else {}),
    }


def role(name: str, total: int, updated: int, ready: int) -> Json:
    return {
        "name": name,
        "replicas": total,
        "updatedReplicas": updated,
        "readyReplicas": ready,
    }


def test_disaggregated_sets() -> None:
    """Each role counts over all slices; an external role wants what its RoleScaler says."""
    status = {
        "observedGeneration": 1,
        "roleStatuses": [role("prefill", 4, 4, 4), role("decode", 3, 3, 2)],
    }
    found = read_disaggregated_set(disaggregated(2, **status))
    assert rollout_of_roles(found, {"decode": 3}).missing == (
        "role decode: 2 of 3 groups are ready",
    )
    assert rollout_of_roles(found, {}).missing == (
        "role decode: 2 of 3 groups are ready",
        "role decode: its RoleScaler is not there yet",
    )
    assert rollout_of_roles(found, {"decode": 2}).missing == (
        "role decode: 1 groups too many are still there",
    )
    rollout = rollout_of_roles(found, {"decode": 3})
    assert (rollout.wanted, rollout.ready) == (7, 6)


def test_disaggregated_sets_without_conditions() -> None:
    """Are judged by their counts; a condition that is there has to agree."""
    status: Json = {
        "observedGeneration": 1,
        "roleStatuses": [role("prefill", 2, 2, 2), role("decode", 1, 1, 1)],
    }
    found = read_disaggregated_set(disaggregated(**status))
    assert rollout_of_roles(found, {"decode": 1}).done
    status["conditions"] = [PROGRESSING]
    found = read_disaggregated_set(disaggregated(**status))
    assert not rollout_of_roles(found, {"decode": 1}).done


def test_restarts() -> None:
    """Stamp the templates that are there, and only if the object is still the same."""
    raw = lws()
    raw["metadata"]["resourceVersion"] = "5"
    stamp = {"metadata": {"annotations": {RESTARTED: "now"}}}
    assert restarted(read_leader_worker_set(raw), "now") == {
        "metadata": {"resourceVersion": "5"},
        "spec": {"leaderWorkerTemplate": {"workerTemplate": stamp}},
    }
    raw["spec"]["leaderWorkerTemplate"]["leaderTemplate"] = {"spec": {}}
    patch = restarted(read_leader_worker_set(raw), "now")
    assert patch["spec"]["leaderWorkerTemplate"] == {
        "leaderTemplate": stamp,
        "workerTemplate": stamp,
    }


def test_restarts_of_roles() -> None:
    """Keep all else of the roles, since a merge patch replaces the list of them."""
    raw = disaggregated()
    raw["spec"]["roles"][0]["spec"]["leaderWorkerTemplate"]["workerTemplate"]["metadata"] = {
        "annotations": {"kept": "1"}
    }
    patch = restarted(read_disaggregated_set(raw), "now")
    assert patch["metadata"] == {"resourceVersion": "7"}
    roles = patch["spec"]["roles"]
    worker = roles[0]["spec"]["leaderWorkerTemplate"]["workerTemplate"]
    assert worker["metadata"]["annotations"] == {"kept": "1", RESTARTED: "now"}
    leader = roles[1]["spec"]["leaderWorkerTemplate"]["leaderTemplate"]
    assert leader["metadata"]["annotations"][RESTARTED] == "now"
    for entry in roles:
        for template in entry["spec"]["leaderWorkerTemplate"].values():
            if isinstance(template, dict):
                template.pop("metadata", None)
    original = disaggregated()["spec"]["roles"]
    assert roles == original


def test_odd_objects() -> None:
    """Fields that are missing or of other types read as the CRD's defaults, and raw keeps all."""
    odd: Json = {
        "metadata": None,
        "spec": {"replicas": "many", "leaderWorkerTemplate": [], "newer": 1},
        "status": {"conditions": [None, {"type": "Available"}], "observedGeneration": "x"},
    }
    found = read_leader_worker_set(odd)
    assert (found.replicas, found.size, found.partition, found.name) == (1, 1, 0, "")
    assert found.status.observed_generation is None
    entry = condition(found, "Available")
    assert entry is not None
    assert entry.status == ""
    assert found.raw["spec"]["newer"] == 1
    assert read_disaggregated_set({}).slices == 1
    assert read_role_scaler({}).replicas == 0


def test_scales() -> None:
    """Zero is left out by the server."""
    raw = {"metadata": {"name": "a", "resourceVersion": "4"}, "spec": {}, "status": {"replicas": 2}}
    scale = read_scale(raw)
    assert (scale.name, scale.replicas, scale.seen, scale.resource_version) == ("a", 0, 2, "4")

"""The place that a LeaderWorkerSet's variables give a process."""

from __future__ import annotations

import pytest

from baton.errors import SettingsError
from baton.worker.group import GroupPlace, group_place
from baton.worker.stops import Stops

FULL = {
    "LWS_LEADER_ADDRESS": "baton-decode-0.baton-decode.serving",
    "LWS_GROUP_SIZE": "2",
    "LWS_WORKER_INDEX": "1",
}


def place(env: dict[str, str]) -> GroupPlace | None:
    return group_place(env, leader_health_port=8180, rendezvous_port=29500)


def test_a_member() -> None:
    """Size, number and leader, with the ports that the process was told."""
    assert place(FULL) == GroupPlace(
        size=2,
        index=1,
        leader="baton-decode-0.baton-decode.serving",
        leader_health_port=8180,
        rendezvous_port=29500,
    )


@pytest.mark.parametrize(("index", "leads"), [("0", True), ("1", False)])
def test_the_leader_has_number_zero(index: str, leads: bool) -> None:
    """As in a LeaderWorkerSet."""
    found = place({**FULL, "LWS_WORKER_INDEX": index})
    assert found is not None
    assert found.leads is leads


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"LWS_GROUP_SIZE": ""},
        {"LWS_GROUP_SIZE": "1"},
        {"LWS_GROUP_SIZE": "1", "LWS_WORKER_INDEX": "0", "LWS_LEADER_ADDRESS": "x"},
        {"LWS_LEADER_ADDRESS": "x"},
    ],
)
def test_no_group(env: dict[str, str]) -> None:
    """A LeaderWorkerSet of single pods sets the variables too; its workers are plain ones."""
    assert place(env) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"LWS_GROUP_SIZE": "two"}, "LWS_GROUP_SIZE is 'two'; it has to be a whole number"),
        ({"LWS_GROUP_SIZE": "0"}, "a group has 1 to 64 members"),
        ({"LWS_GROUP_SIZE": "65"}, "a group has 1 to 64 members"),
        ({"LWS_WORKER_INDEX": ""}, "LWS_WORKER_INDEX is not set"),
        ({"LWS_WORKER_INDEX": "b"}, "LWS_WORKER_INDEX is 'b'"),
        ({"LWS_WORKER_INDEX": "2"}, "it has to be 0 to 1"),
        ({"LWS_WORKER_INDEX": "-1"}, "it has to be 0 to 1"),
        ({"LWS_GROUP_SIZE": "1"}, "with LWS_GROUP_SIZE=1 it has to be 0$"),
        ({"LWS_LEADER_ADDRESS": " "}, "LWS_LEADER_ADDRESS is not set"),
    ],
)
def test_contradictions(changes: dict[str, str], said: str) -> None:
    """Each names the variable and what it may be."""
    with pytest.raises(SettingsError, match=said):
        place({**FULL, **changes})


def wishes(stops: Stops) -> tuple[bool, bool, bool]:
    return stops.drain.is_set(), stops.leave.is_set(), stops.now.is_set()


def test_signals() -> None:
    """The first drains and leaves, the second does not wait. After a hook's drain the first signal
    is still the first."""
    stops = Stops()
    stops.on_signal()
    assert wishes(stops) == (True, True, False)
    stops.on_signal()
    assert wishes(stops) == (True, True, True)
    stops = Stops()
    stops.drain.set()
    stops.on_signal()
    assert wishes(stops) == (True, True, False)

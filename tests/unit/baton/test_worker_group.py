"""The place that a LeaderWorkerSet's variables give a process."""

from __future__ import annotations

import dataclasses
import signal
from pathlib import Path
from typing import Any

import pytest

from baton.engine import EngineSpec
from baton.errors import SettingsError
from baton.types import EngineId
from baton.worker.group import GroupPlace, group_place
from baton.worker.ranks import setup_digest
from baton.worker.stops import Stops
from tests.fakes.group_member import fake_plan
from tests.unit.baton.test_worker import OPTIONS

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


def test_what_tells_groups_apart() -> None:
    """The leader's address however it is written, and the port that two groups of one machine
    cannot share."""
    found, same = (
        place(FULL),
        place({**FULL, "LWS_LEADER_ADDRESS": "Baton-Decode-0.baton-decode.serving."}),
    )
    assert found is not None
    assert same is not None
    assert found.name == same.name == "baton-decode-0.baton-decode.serving:29500"


def setup_of(**changes: Any) -> str:
    options = dataclasses.replace(OPTIONS, **changes)
    return setup_digest(fake_plan(options, Path("/nowhere")))


def test_what_members_agree_on() -> None:
    """Not a node's own addresses; the engine's flags, though."""
    assert setup_of() == setup_of(host="10.0.0.7", port=9, side_channel_port=9, cpu_threads=4)
    plan = fake_plan(OPTIONS, Path("/nowhere"))

    def eager(engine_id: EngineId, run_dir: Path) -> EngineSpec:
        return dataclasses.replace(plan.make_spec(engine_id, run_dir), enforce_eager=True)

    assert setup_digest(dataclasses.replace(plan, make_spec=eager)) != setup_of()
    assert setup_digest(dataclasses.replace(plan, model_digest="other")) != setup_of()


async def test_signals_after_the_end() -> None:
    """A second one does not replace the exit status of a process that is on its way out."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    try:
        with Stops().on_signals():
            pass
        assert [signal.getsignal(number) for number in numbers] == [signal.SIG_IGN] * 2
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


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

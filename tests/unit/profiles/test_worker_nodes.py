"""A pool's nodes and the group that a worker process belongs to have to be the same."""

from __future__ import annotations

from pathlib import Path

import pytest

import decode
import prefill
from baton.errors import SettingsError
from baton.types import WorkerId
from baton.worker import GroupPlace, WorkerOptions


def options(profile: str, size: int) -> WorkerOptions:
    place = GroupPlace(
        size=size, index=0, leader="leader", leader_health_port=8180, rendezvous_port=29500
    )
    return WorkerOptions(
        profile=profile,
        # Not there: a worker that is refused for its group does not get as far as its model.
        model="/nowhere",
        served_name=None,
        host="127.0.0.1",
        port=8100,
        advertise_url="http://127.0.0.1:8100",
        side_channel_port=5600,
        registry="http://127.0.0.1:8000",
        token="cluster-token-0123456789",
        home=Path("/nowhere"),
        worker_id=WorkerId("w-1"),
        node="node-1",
        cpu_threads=1,
        group=place if size > 1 else None,
    )


@pytest.mark.parametrize(
    ("profile", "size", "said"),
    [
        ("multi-node", 1, "spans 2 nodes, but this one is of no group"),
        ("multi-node", 4, r"spans 2 nodes, but this one is of a group of 4 \(LWS_GROUP_SIZE\)"),
        ("disaggregated", 2, "spans 1 node, but this one is of a group of 2"),
    ],
)
def test_another_number_of_nodes(profile: str, size: int, said: str) -> None:
    """Refused at the start, with what to change."""
    with pytest.raises(SettingsError, match=said) as refused:
        decode.plan(options(profile, size))
    assert "size of the pool's field nodes" in refused.value.message


def test_each_pool_has_its_own_number() -> None:
    """Prefill of the same profile is one node: a plain worker passes, and looks for its model."""
    with pytest.raises(SettingsError, match="of a group of 2"):
        prefill.plan(options("multi-node", 2))
    with pytest.raises(Exception, match="/nowhere"):
        prefill.plan(options("multi-node", 1))

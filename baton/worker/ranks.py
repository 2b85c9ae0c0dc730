"""What leader and followers make of the role's plan, each for its own node."""

from __future__ import annotations

import dataclasses
import hashlib

from baton.engine import EngineSpec, GroupRank
from baton.engine.facts import stated_version
from baton.worker.addresses import interface_of
from baton.worker.group import GroupPlace
from baton.worker.options import WorkerPlan


def setup_digest(plan: WorkerPlan) -> str:
    """What all members of a group have to have the same of: role, profile, model, engine version.

    Ranks that differ in one of them compute nonsense together, or wait for each other for ever.
    """
    text = "\n".join((plan.role, plan.profile_version, plan.model_digest, stated_version(None)))
    return hashlib.sha256(text.encode()).hexdigest()


def ranked_spec(
    spec: EngineSpec, place: GroupPlace, master: str, master_port: int, own: str
) -> EngineSpec:
    """The engine that a plan wants, as one node of it runs it.

    Args:
        spec: the engine; the same on all nodes.
        place: this node's place.
        master: IP address where the ranks meet.
        master_port: port there.
        own: IP address of this node.
    """
    rank = GroupRank(
        nodes=place.size,
        rank=place.index,
        master_address=master,
        master_port=master_port,
        own_address=own,
        interface=interface_of(own),
    )
    return dataclasses.replace(spec, group=rank)

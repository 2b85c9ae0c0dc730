"""What leader and followers make of the role's plan, each for its own node."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from baton import __version__
from baton.engine import EngineSpec, GroupRank
from baton.engine.facts import stated_version
from baton.types import EngineId
from baton.worker.addresses import interface_of
from baton.worker.group import GroupPlace
from baton.worker.options import WorkerPlan

_OWN_FIELDS = frozenset(
    {
        *("name", "model", "host", "port", "api_key", "engine_id", "run_dir"),
        *("side_channel_host", "side_channel_port", "kv_events_url", "cpu_threads", "group"),
    }
)
"""Of an ``EngineSpec``: what is a node's own, or a secret. The model is in by its digest."""


def setup_digest(plan: WorkerPlan) -> str:
    """What all members of a group have to have the same of: role, profile, model, the versions of
    Baton and of the engine, and the engine's flags as they were resolved (whether it compiles may
    depend on a node's compiler).

    Ranks that differ in one of them compute nonsense together, or wait for each other for ever.
    """
    spec = plan.make_spec(EngineId(""), Path("/nowhere"))
    flags = sorted(
        (field.name, repr(getattr(spec, field.name)))
        for field in dataclasses.fields(spec)
        if field.name not in _OWN_FIELDS
    )
    versions = (__version__, stated_version(None))
    text = repr((plan.role, plan.profile_version, plan.model_digest, versions, flags))
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

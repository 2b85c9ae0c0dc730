"""What a worker process is told, and what its role makes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from baton.engine import EngineSpec
from baton.settings import KV_EVENTS_PORT
from baton.types import EngineId, KvGeometry, Load, Role, WorkerId
from baton.worker.group import GroupPlace


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """Flags of a worker process; the same for each role.

    Attributes:
        profile: name of a built-in profile, or path of a profile's file.
        model: folder or hub id that replaces the profile's model, or None.
        served_name: name that clients ask for, replacing the profile's, or None.
        host: address the engine listens on.
        port: HTTP port of the engine.
        advertise_url: where routers reach the engine.
        side_channel_port: NIXL handshake port.
        registry: URL of a router or of Redis.
        token: the cluster token.
        home: folder for digests.
        worker_id: id in the registry.
        node: the machine's name, for people.
        cpu_threads: OpenMP threads of a CPU engine.
        kv_events_port: where a worker that other machines reach publishes KV events, with the port
            above it; unused unless the profile asks for them.
        health_port: where the worker itself answers probes; 0 for nowhere.
        group: this process's place among those that are one worker, or None where it is the only
            one.
    """

    profile: str
    model: str | None
    served_name: str | None
    host: str
    port: int
    advertise_url: str
    side_channel_port: int
    registry: str
    token: str
    home: Path
    worker_id: WorkerId
    node: str
    cpu_threads: int
    kv_events_port: int = KV_EVENTS_PORT
    health_port: int = 0
    group: GroupPlace | None = None


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """A role's answer to the options.

    Attributes:
        role: prefill, decode or standard.
        make_spec: the engine to run, for a fresh engine id and a private folder.
        model: the name that clients ask for.
        model_folder: the model's files.
        model_digest: digest of the weights' content.
        geometry: shape of the KV cache.
        slots: sequences at a time.
        accelerator: the profile's label for the hardware.
        profile: the profile's name.
        profile_version: its content hash.
        drained: whether a worker with this load has nothing left that somebody waits for.
        drain_limit_s: how long a drain may take, in seconds.
        lease_s: how long the engine keeps blocks that it offers, in seconds.
    """

    role: Role
    make_spec: Callable[[EngineId, Path], EngineSpec]
    model: str
    model_folder: Path
    model_digest: str
    geometry: KvGeometry
    slots: int
    accelerator: str
    profile: str
    profile_version: str
    drained: Callable[[Load], bool]
    drain_limit_s: float
    lease_s: float = 0.0

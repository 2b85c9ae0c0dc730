"""Ids and wire types that cross a process boundary: the worker record and what it is made of.

msgspec structs, frozen: they are made on one machine, compared on another, and never changed
in between. New fields must have defaults, so that workers and routers of neighbouring versions
understand each other. Units stand at the end of names.
"""

from __future__ import annotations

import enum
from typing import NewType

import msgspec

WorkerId = NewType("WorkerId", str)
"""Stable for the life of a worker process; survives restarts of its engine."""

EngineId = NewType("EngineId", str)
"""NIXL's name for one engine run; a restarted engine has a new one."""

RouterId = NewType("RouterId", str)
"""One run of one router process."""

RequestId = NewType("RequestId", str)
"""One request of a client, over all its legs."""


class Role(enum.StrEnum):
    """What a worker is used for. Engines do not enforce it: the router does."""

    PREFILL = "prefill"
    DECODE = "decode"
    STANDARD = "standard"


class WorkerState(enum.StrEnum):
    """A worker takes traffic in READY only."""

    STARTING = "starting"
    WARMING = "warming"
    READY = "ready"
    DRAINING = "draining"


class KvGeometry(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """The shape of a model's KV cache on one worker. Two workers can hand over only if it is equal.

    ``block_size`` is in tokens; ``bytes_per_token`` is summed over all layers, K and V, and over
    all tensor-parallel ranks. ``layout`` is the engine's name for the order of axes in a block.
    """

    layers: int
    kv_heads: int
    head_size: int
    dtype: str
    block_size: int
    bytes_per_token: int
    tensor_parallel: int = 1
    layout: str = "HND"

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all layers."""
        return self.bytes_per_token * self.block_size


class Limits(msgspec.Struct, frozen=True):
    """What one worker can take: tokens of prompt plus answer, and sequences at a time."""

    max_model_len: int
    slots: int


class Load(msgspec.Struct, frozen=True):
    """Read from the engine's own metrics at each heartbeat. ``kv_usage`` is a share, 0 to 1."""

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0


class Tally(msgspec.Struct, frozen=True):
    """What became of requests under one profile. ``errors`` are those that ended with a status of
    500 or more, or broke off; ``missed`` those that ended well and outside of the service level;
    ``ttft_s`` is the sum over the ``streams`` among them."""

    requests: int = 0
    errors: int = 0
    missed: int = 0
    streams: int = 0
    ttft_s: float = 0.0


class TenantUse(msgspec.Struct, frozen=True):
    """What one router has given to a tenant: requests at a time now, and requests and tokens since
    the router's start, which only grow."""

    running: int = 0
    requests: int = 0
    tokens: float = 0.0


class RouterRecord(msgspec.Struct, frozen=True):
    """What a router tells the other routers, with every beat.

    ``prefilling`` and ``answering`` are its open legs by worker, prefill legs of handoffs apart
    from all others; ``stranded_bytes`` what it knows to be held there for nobody. ``seen`` is the
    revision of the shared state that it serves by. ``switch`` is the number of the switch that
    ``tallies`` are about, by profile version; ``before`` is the old profile's tally of the last
    minutes before that switch. ``handoffs`` are those open now.
    """

    id: RouterId
    node: str = ""
    profile: str = ""
    profile_version: str = ""
    seen: int = 0
    prefilling: dict[WorkerId, int] = {}
    answering: dict[WorkerId, int] = {}
    handoffs: int = 0
    stranded_bytes: dict[WorkerId, int] = {}
    switch: int = 0
    tallies: dict[str, Tally] = {}
    before: Tally = Tally()
    tenants: dict[str, TenantUse] = {}


class Adapter(msgspec.Struct, frozen=True):
    """A LoRA adapter that a worker has loaded. ``name`` is what clients ask for, ``digest`` a
    digest of its content: the same name with another content is another adapter."""

    name: str
    digest: str
    version: str = ""


class WorkerRecord(msgspec.Struct, frozen=True):
    """What a worker says of itself with every heartbeat; the registry forgets it when they stop.

    ``url`` is where routers reach the engine. ``model`` is the name clients ask for;
    ``model_digest`` is a digest of the weights' content, so that two folders of the same name
    and different weights are never paired. ``started_s`` and ``heartbeat_s`` are wall-clock
    seconds since the Unix epoch, on the worker's clock. ``profile_version`` is the content hash
    of the profile that the engine was started with. ``tokenizer_path`` is the model's folder on
    the worker's machine, for routers that share its file system. ``adapters`` are the LoRA adapters
    loaded. ``engine_version`` is vLLM's. ``transport`` is what the engine's KV moves over as far as
    the worker knows: ``rdma``, ``tcp``, or empty for whatever UCX finds. ``kv_events_url`` is where
    the engine publishes its KV events (ZeroMQ), empty when it does not. ``lease_s`` is how long the
    engine keeps blocks that it offers, in seconds; 0 where it does not say.
    """

    id: WorkerId
    role: Role
    url: str
    state: WorkerState
    model: str
    model_digest: str
    engine_id: EngineId
    geometry: KvGeometry
    limits: Limits
    accelerator: str
    node: str
    profile: str
    profile_version: str
    started_s: float
    heartbeat_s: float
    load: Load = Load()
    tokenizer_path: str = ""
    adapters: tuple[Adapter, ...] = ()
    engine_version: str = ""
    transport: str = ""
    kv_events_url: str = ""
    lease_s: float = 0.0

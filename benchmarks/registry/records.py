"""What the benchmark leaves, and the records that it fills a registry with."""

from __future__ import annotations

from typing import Any

import msgspec

from baton.types import (
    EngineId,
    KvGeometry,
    Limits,
    Load,
    Role,
    RouterId,
    RouterRecord,
    WorkerId,
    WorkerRecord,
    WorkerState,
)

READY = "ready"
"""What a child process prints when it is at work."""

BEAT = "beat "
"""Before a router's JSON line about one beat."""

_TOLD_WORKERS = 200
"""Workers on which a router has legs, at most: it tells of those and of no others."""

_GEOMETRY = KvGeometry(
    layers=32, kv_heads=8, head_size=128, dtype="bfloat16", block_size=16, bytes_per_token=131_072
)


class Beat(msgspec.Struct, frozen=True):
    """One beat of a router: how many workers it saw, the CPU that a look and a fleet took, and how
    long the look was waited for, all in milliseconds."""

    workers: int
    look_ms: float
    compile_ms: float
    took_ms: float


class Cell(msgspec.Struct, kw_only=True):
    """One measurement. What grows with time is per second; ``_ms`` per second is thousandths of a
    core.

    Attributes:
        workers, routers: how many beat.
        wall_s: how long it was measured.
        router_cpu_ms: of one router, on average.
        redis_cpu_ms: of the server.
        calls: scripts that were run.
        commands: what the scripts did inside, and the scripts themselves.
        sent_bytes, received_bytes: by the server, to and from everybody.
        look_ms, compile_ms: medians of the CPU of one look and of one fleet; None without routers.
        took_ms: median of the time from asking for a look to having it.
        problem: why the cell does not count, or "".
    """

    workers: int
    routers: int
    wall_s: float
    router_cpu_ms: float | None
    redis_cpu_ms: float
    calls: float
    commands: float
    sent_bytes: float
    received_bytes: float
    look_ms: float | None = None
    compile_ms: float | None = None
    took_ms: float | None = None
    problem: str = ""


class Report(msgspec.Struct, kw_only=True):
    """All cells of a run, and where it was made."""

    began: str
    command: str
    redis: str
    machine: dict[str, Any]
    versions: dict[str, str]
    commit: str | None
    cells: list[Cell]
    problems: list[str]


def worker(number: int, beat: int, now_s: float) -> WorkerRecord:
    """A worker's record at its beat; half of them prefill. About 800 bytes of JSON."""
    return WorkerRecord(
        id=WorkerId(f"worker-{number:04}.pool.example"),
        role=Role.PREFILL if number % 2 else Role.DECODE,
        url=f"http://10.0.{number // 256}.{number % 256}:8100",
        state=WorkerState.READY,
        model="example/model-8b-instruct",
        model_digest="sha256:" + "0" * 64,
        engine_id=EngineId(f"engine-{number:04}"),
        geometry=_GEOMETRY,
        limits=Limits(max_model_len=32_768, slots=64),
        accelerator="example-gpu",
        node=f"node-{number // 8:03}",
        profile="disaggregated",
        profile_version="sha256:" + "1" * 64,
        started_s=1_000_000.0,
        heartbeat_s=now_s,
        load=Load(running=beat % 7, waiting=beat % 3, kv_usage=(beat % 11) / 11),
        engine_version="0.32.0",
    )


def router(number: int, workers: int, beat: int) -> RouterRecord:
    """A router's record at its beat, with legs on many workers."""
    told = range(min(workers, _TOLD_WORKERS))
    legs = {WorkerId(f"worker-{worker:04}.pool.example"): (worker + beat) % 9 for worker in told}
    return RouterRecord(
        id=RouterId(f"router-{number}"),
        node="node-r",
        profile="disaggregated",
        profile_version="sha256:" + "1" * 64,
        seen=1,
        answering={name: count for name, count in legs.items() if count},
        handoffs=beat % 5,
    )

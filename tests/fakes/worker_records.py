"""Worker records with sensible contents, for tests that care about a field or two."""

from __future__ import annotations

from typing import Any

from baton.types import (
    EngineId,
    KvGeometry,
    Limits,
    Role,
    WorkerId,
    WorkerRecord,
    WorkerState,
)


def worker_record(worker_id: str = "w-1", **changes: Any) -> WorkerRecord:
    """A ready decode worker; ``changes`` name fields of the record."""
    fields: dict[str, Any] = {
        "id": WorkerId(worker_id),
        "role": Role.DECODE,
        "url": "http://127.0.0.1:8100",
        "state": WorkerState.READY,
        "model": "tiny",
        "model_digest": "sha256:00",
        "engine_id": EngineId(f"{worker_id}-engine"),
        "geometry": KvGeometry(
            layers=2, kv_heads=2, head_size=16, dtype="float32", block_size=32, bytes_per_token=512
        ),
        "limits": Limits(max_model_len=2048, slots=8),
        "accelerator": "cpu",
        "node": "node-1",
        "profile": "standard",
        "profile_version": "v1",
        "started_s": 1_000_000.0,
        "heartbeat_s": 1_000_000.0,
    }
    return WorkerRecord(**(fields | changes))

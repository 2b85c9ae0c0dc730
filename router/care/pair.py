"""What is known of one pair of workers, and what of it others get to see."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from baton.types import WorkerId, WorkerRecord


class PairState(enum.StrEnum):
    """READY pairs are used; UNCHECKED and CHECKING ones unless the rules want a check first."""

    UNCHECKED = "unchecked"
    CHECKING = "checking"
    READY = "ready"
    SLOW = "slow"
    REFUSED = "refused"
    QUARANTINED = "quarantined"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class PairRow:
    """One pair, for people. ``exact``: the bandwidth is that of a pull, from the engine's own
    figures, and not a lower bound. ``age_s`` is the time in ``state``."""

    prefill: WorkerId
    decode: WorkerId
    state: PairState
    reason: str
    bandwidth_bytes_per_s: float | None
    exact: bool
    setup_s: float | None
    age_s: float


@dataclass(slots=True, eq=False)
class Pair:
    """What is known of one pair; changed by ``Pairs`` only. ``moved_s``: when KV last moved between
    the two, so that each knows the other. ``checked_bytes_per_s``: what
    its last check measured exactly; handoffs of requests do not move it. ``trusted``: it was good
    under the rules before, and is used until a check under these says otherwise."""

    prefill: WorkerRecord
    decode: WorkerRecord
    since_s: float
    state: PairState = PairState.UNCHECKED
    reason: str = ""
    bandwidth_bytes_per_s: float | None = None
    exact: bool = False
    setup_s: float | None = None
    tries: int = 0
    moved_s: float | None = None
    trusted: bool = False
    checked_bytes_per_s: float | None = None

    @property
    def engines(self) -> tuple[str, str]:
        """The runs of both engines."""
        return (str(self.prefill.engine_id), str(self.decode.engine_id))


def identity(record: WorkerRecord | None) -> object:
    """What makes a worker another one, as an end of a pair; None for no worker."""
    if record is None:
        return None
    return (
        record.engine_id,
        record.role,
        record.url,
        record.model,
        record.model_digest,
        record.geometry,
        record.limits,
        record.engine_version,
        record.transport,
    )

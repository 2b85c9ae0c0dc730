"""The prefill role: runs the first leg of long prompts and holds their KV cache until it is pulled.

``python -m prefill`` starts one worker. What is particular to the role: it must not leave while
somebody may still come for blocks that it offered.
"""

from __future__ import annotations

from baton.types import Load, Role
from baton.worker import WorkerOptions, WorkerPlan
from profiles import ServingProfile, worker_plan

__all__ = ["drain_limit_s", "drained", "plan"]


def plan(options: WorkerOptions) -> WorkerPlan:
    """The worker that the options' profile wants of a prefill pool."""
    return worker_plan(options, Role.PREFILL, drained=drained, drain_limit_s=drain_limit_s)


def drained(load: Load) -> bool:
    """Nothing runs or waits, and no block is held: every offered handoff was pulled or expired.

    Blocks that are only cached do not count as used in the engine's figure.
    """
    return load.running == 0 and load.waiting == 0 and load.kv_usage == 0.0


def drain_limit_s(profile: ServingProfile) -> float:
    """Seconds: the profile's drain time for what runs, and one lease for what was offered last."""
    return profile.spec.limits.drain_s + profile.spec.transfer.lease_s

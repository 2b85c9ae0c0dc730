"""The decode role: pulls the KV cache of long prompts, serves short ones whole, streams answers.

``python -m decode`` starts one worker; with ``BATON_ROLE=standard`` a worker that serves whole
requests under a profile without disaggregation. What is particular to the role: a drain is over
when the last answer is.
"""

from __future__ import annotations

from baton.types import Load, Role
from baton.worker import WorkerOptions, WorkerPlan
from profiles import ServingProfile, worker_plan

__all__ = ["drain_limit_s", "drained", "plan", "standard_plan"]


def plan(options: WorkerOptions) -> WorkerPlan:
    """The worker that the options' profile wants of a decode pool."""
    return worker_plan(options, Role.DECODE, drained=drained, drain_limit_s=drain_limit_s)


def standard_plan(options: WorkerOptions) -> WorkerPlan:
    """The worker that the options' profile wants of a standard pool."""
    return worker_plan(options, Role.STANDARD, drained=drained, drain_limit_s=drain_limit_s)


def drained(load: Load) -> bool:
    """Nothing runs and nothing waits."""
    return load.running == 0 and load.waiting == 0


def drain_limit_s(profile: ServingProfile) -> float:
    """Seconds that running answers are given."""
    return profile.spec.limits.drain_s

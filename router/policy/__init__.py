"""Decisions about where a request runs: pure functions of a snapshot.

No I/O, no clock, no randomness of its own: what is needed comes in as arguments, so that the
simulator and the tests drive the very code that routes traffic.
"""

from router.policy.bounds import TokenBounds
from router.policy.plan import (
    Ask,
    Handoff,
    Local,
    Plan,
    Reason,
    Refusal,
    Refuse,
    Snapshot,
    WorkerView,
    plan,
    plan_local,
)

__all__ = [
    "Ask",
    "Handoff",
    "Local",
    "Plan",
    "Reason",
    "Refusal",
    "Refuse",
    "Snapshot",
    "TokenBounds",
    "WorkerView",
    "plan",
    "plan_local",
]

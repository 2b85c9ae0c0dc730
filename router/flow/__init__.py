"""Flow control: who goes to the engines next, who waits, who is turned away.

It knows nothing of workers, bodies or keys: a ticket goes in, a pass comes out. Limits per minute
belong to ``router.tenants``.
"""

from __future__ import annotations

from router.flow.gate import Gate, Pass
from router.flow.rules import (
    UNKNOWN,
    Capacity,
    FlowRules,
    GateSnapshot,
    Ticket,
    Turned,
    retry_after_s,
)

__all__ = [
    "UNKNOWN",
    "Capacity",
    "FlowRules",
    "Gate",
    "GateSnapshot",
    "Pass",
    "Ticket",
    "Turned",
    "retry_after_s",
]

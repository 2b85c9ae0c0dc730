"""Moving a KV cache from one worker to another: the protocol, the cost, the connector.

What is offered here is pure and imports nothing heavy. The connector that runs inside the engine
is not re-exported: engines load it by its module path.
"""

from __future__ import annotations

from kvtransfer.geometry import (
    DTYPE_BYTES,
    blocks,
    differences,
    geometry_from_config,
    kv_bytes,
)
from kvtransfer.protocol import (
    LEASE_MARGIN_SHARE,
    LEASE_RENEWAL_SHARE,
    TRANSITIONS,
    BlocksReleased,
    ClientGone,
    DecodeSent,
    Event,
    Finished,
    FirstContent,
    Handoff,
    HandoffState,
    LeaseExpired,
    LegFailed,
    PrefillAnswered,
    PrefillSent,
    Transition,
    advance,
    lease_left_s,
    mermaid,
    plan,
)

__all__ = [
    "DTYPE_BYTES",
    "LEASE_MARGIN_SHARE",
    "LEASE_RENEWAL_SHARE",
    "TRANSITIONS",
    "BlocksReleased",
    "ClientGone",
    "DecodeSent",
    "Event",
    "Finished",
    "FirstContent",
    "Handoff",
    "HandoffState",
    "LeaseExpired",
    "LegFailed",
    "PrefillAnswered",
    "PrefillSent",
    "Transition",
    "advance",
    "blocks",
    "differences",
    "geometry_from_config",
    "kv_bytes",
    "lease_left_s",
    "mermaid",
    "plan",
]

"""What an operator chooses about the care of handoffs; the profile is turned into this once."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CareRules:
    """How much is checked before, beside and after handoffs.

    Attributes:
        warm_pairs: each pair is warmed and measured by dummy handoffs when a worker joins.
            Default: on, since the first handshake of a pair costs up to seconds, and should not
            cost them on a client's request. Without it a pair that fits on paper is ready.
        require_checked: a pair takes no requests before its dummy handoffs have passed. Default:
            off, so that a new worker serves at once.
        floor_bytes_per_s: a pair measured below this is slow, and not used. Default: none,
            because it depends on the network.
        require_rdma: both ends of a pair must say that they transfer over RDMA. Default: off; set
            where the profile's transport is rdma.
        canary_rate: share of finished greedy handoffs that are replayed, 0 to 1. Default: 0, since
            each costs a prefill on decode.
        canary_prompt_tokens: longest prompt that is replayed. Default: 8192, a fraction of a second
            of a decode worker with a GPU.
        lease_s: how long prefill keeps blocks, in seconds.
    """

    warm_pairs: bool = True
    require_checked: bool = False
    floor_bytes_per_s: float | None = None
    require_rdma: bool = False
    canary_rate: float = 0.0
    canary_prompt_tokens: int = 8192
    lease_s: float = 30.0

    def __post_init__(self) -> None:
        floor = self.floor_bytes_per_s
        if floor is not None and not 0 < floor < math.inf:
            raise ValueError(f"floor_bytes_per_s must be positive: {floor}")
        if not 0 <= self.canary_rate <= 1:
            raise ValueError(f"canary_rate must be between 0 and 1: {self.canary_rate}")
        if self.canary_prompt_tokens < 1:
            raise ValueError(f"canary_prompt_tokens must be 1 or more: {self.canary_prompt_tokens}")
        if not 0 < self.lease_s < math.inf:
            raise ValueError(f"lease_s must be positive: {self.lease_s}")

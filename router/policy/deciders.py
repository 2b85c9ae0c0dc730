"""Whether a prompt is handed over: rules that compare the two ways a request can go.

Only certainty hands over: of a prompt whose length is known by bounds, the lower one counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import msgspec

from router.policy.terms import Prediction, Reason

if TYPE_CHECKING:
    from router.policy.rules import RoutingRules


class Case(Protocol):
    """What a decider may look at.

    Attributes:
        uncached_tokens: prompt tokens not cached on the best decode worker, at least.
        cached_tokens: the others.
        rules: the profile's.
    """

    uncached_tokens: int
    cached_tokens: int
    rules: RoutingRules

    def prediction(self) -> Prediction | None:
        """What both ways would take; looks for a pair, so it is asked only by who needs it."""
        ...

    def leaning(self, bucket: int) -> bool | None:
        """Which side such sizes were on (True: hand over), or None."""
        ...


class Verdict(msgspec.Struct, frozen=True):
    """Hand over or not, why, which decider said so, and the size bucket it remembers, if any."""

    hand_over: bool
    reason: Reason
    decider: str
    bucket: int | None = None


Decider = Callable[[Case], Verdict]


def threshold(case: Case) -> Verdict:
    """Uncached tokens against the rules' threshold."""
    limit = case.rules.threshold_tokens
    assert limit is not None, "without a threshold everything is local and nobody decides"
    if case.uncached_tokens >= limit:
        return Verdict(True, Reason.LONG_PROMPT, "threshold")
    long = case.uncached_tokens + case.cached_tokens >= limit
    return Verdict(False, Reason.CACHED_PROMPT if long else Reason.SHORT_PROMPT, "threshold")


def cost(case: Case) -> Verdict:
    """The shorter predicted time to the first token; by threshold until enough was measured.

    The side that prompts of about this size (a power of two) took last is left only for a gain of
    the rules' hysteresis: near break-even the prediction's noise would flip every request.
    """
    predicted = case.prediction()
    if predicted is None or predicted.local_s is None or predicted.remote_s is None:
        return threshold(case)
    local_s, remote_s = predicted.local_s, predicted.remote_s
    bucket = size_bucket(case.uncached_tokens)
    match case.leaning(bucket):
        case None:
            hand_over = remote_s < local_s
        case True:
            hand_over = local_s >= remote_s * (1.0 - case.rules.hysteresis)
        case False:
            hand_over = remote_s < local_s * (1.0 - case.rules.hysteresis)
    reason = Reason.REMOTE_FASTER if hand_over else Reason.LOCAL_FASTER
    return Verdict(hand_over, reason, "cost", bucket)


def size_bucket(tokens: int) -> int:
    """The bit length: 512 to 1,023 tokens are one bucket."""
    return tokens.bit_length()


DECIDERS: dict[str, Decider] = {"threshold": threshold, "cost": cost}

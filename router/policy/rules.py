"""What a profile says about routing, checked when it is made."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import isfinite

from router.policy.deciders import DECIDERS
from router.policy.pickers import PICKERS
from router.policy.scorers import SCORERS

DEGRADE_STEPS = ("other_prefill", "local", "queue")
"""What can be tried after a fault, before failing; ``fail`` itself may be named as the last."""

DEFAULT_SCORERS: Mapping[str, float] = {
    "prefix": 2.0,
    "load": 2.0,
    "pending": 1.0,
    "kv_load": 1.0,
    "adapter": 1.0,
    "session": 1.0,
}


@dataclass(frozen=True, slots=True)
class RoutingRules:
    """Which plug-ins decide, and their figures.

    Attributes:
        decider: ``threshold`` or ``cost``.
        threshold_tokens: uncached prompts of so many tokens are handed over (under ``cost``:
            until enough was measured); None hands over nothing, as under a standard profile.
        hysteresis: share of the predicted time that changing sides has to save, 0 to 1; 0.15
            is about the noise of a prefill's duration.
        decode_prefill_tokens: uncached prompt tokens that one decode worker may be prefilling at
            a time; None for any number.
        max_prefill_queue: requests that may wait at one prefill worker; None for any number.
        scorers: weight of each scorer, 0 or more; one that is not named has none.
        picker: ``best``, ``weighted_random`` or ``power_of_two``.
        degrade: what is tried after a fault, in this order: ``other_prefill`` (another handoff),
            ``local``, ``queue`` (wait and plan anew); after the last comes failing.
        local_tokens: prompts of at most so many tokens are served locally when a handoff cannot
            be (a fault, or prefill's queue is full); None for any length.
        attempts: how often a request is tried in all, the first time included.
        queue_wait_s: seconds of the first wait of ``queue``; later waits are twice the one before.
        require_checked_pairs: only pairs that the pair matrix has found good are used; otherwise
            a pair that it does not know is used too.

    Raises:
        ValueError: an unknown name, or a figure out of range.
    """

    decider: str = "threshold"
    threshold_tokens: int | None = None
    hysteresis: float = 0.15
    decode_prefill_tokens: int | None = None
    max_prefill_queue: int | None = None
    scorers: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_SCORERS))
    picker: str = "best"
    degrade: tuple[str, ...] = ("other_prefill", "local")
    local_tokens: int | None = None
    attempts: int = 3
    queue_wait_s: float = 0.5
    require_checked_pairs: bool = False

    def __post_init__(self) -> None:
        _known("decider", (self.decider,), DECIDERS)
        _known("picker", (self.picker,), PICKERS)
        _known("scorer", self.scorers, SCORERS)
        _known("degrade step", self.degrade, (*DEGRADE_STEPS, "fail"))
        if len(set(self.degrade)) < len(self.degrade):
            raise ValueError(f"degrade names a step twice: {', '.join(self.degrade)}")
        if "fail" in self.degrade[:-1]:
            raise ValueError("nothing can come after fail in degrade")
        for name, weight in self.scorers.items():
            if not (isfinite(weight) and weight >= 0):
                raise ValueError(f"the weight of scorer {name} must be 0 or more: {weight}")
        if not 0 <= self.hysteresis < 1:
            raise ValueError(f"hysteresis must be at least 0 and below 1: {self.hysteresis}")
        if not (isfinite(self.queue_wait_s) and self.queue_wait_s > 0):
            raise ValueError(f"queue_wait_s must be above 0: {self.queue_wait_s}")
        for name, least in (
            ("threshold_tokens", 0),
            ("decode_prefill_tokens", 1),
            ("max_prefill_queue", 1),
            ("local_tokens", 0),
            ("attempts", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be {least} or more: {value}")


def _known(what: str, names: Collection[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}; known: {', '.join(known)}")

"""What a profile may say, and that nonsense is named."""

from __future__ import annotations

from typing import Any

import pytest

from router.policy import DECIDERS, DEFAULT_SCORERS, PICKERS, SCORERS, RoutingRules


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"decider": "coin"}, "unknown decider 'coin'"),
        ({"picker": "worst"}, "unknown picker 'worst'"),
        ({"scorers": {"loads": 1}}, "unknown scorer 'loads'"),
        ({"scorers": {"load": -1}}, "weight of scorer load"),
        ({"scorers": {"load": float("nan")}}, "weight of scorer load"),
        ({"degrade": ("pray",)}, "unknown degrade step 'pray'"),
        ({"degrade": ("local", "local")}, "twice"),
        ({"degrade": ("fail", "local")}, "after fail"),
        ({"hysteresis": 1.0}, "hysteresis"),
        ({"hysteresis": -0.1}, "hysteresis"),
        ({"threshold_tokens": -1}, "threshold_tokens"),
        ({"decode_prefill_tokens": 0}, "decode_prefill_tokens"),
        ({"max_prefill_queue": 0}, "max_prefill_queue"),
        ({"local_tokens": -1}, "local_tokens"),
        ({"attempts": 0}, "attempts"),
        ({"queue_wait_s": 0}, "queue_wait_s"),
    ],
)
def test_nonsense(fields: dict[str, Any], words: str) -> None:
    """Raises, and says which field."""
    with pytest.raises(ValueError, match=words):
        RoutingRules(**fields)


def test_every_plug_in_can_be_named() -> None:
    """All of them, and the defaults weigh only what exists."""
    for decider in DECIDERS:
        for picker in PICKERS:
            RoutingRules(decider=decider, picker=picker, scorers=dict.fromkeys(SCORERS, 0.5))
    assert DEFAULT_SCORERS.keys() == SCORERS.keys()
    assert RoutingRules(degrade=("queue", "fail")).degrade == ("queue", "fail")

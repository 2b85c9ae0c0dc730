"""When periodic work is due."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from baton.clock import next_beat


@given(st.floats(0, 1e7), st.sampled_from([0.0125, 0.25, 0.5, 1.0, 60.0]), st.integers(0, 15))
def test_the_next_beat(now_s: float, every_s: float, process: int) -> None:
    """A multiple of the period, and never so near that a timer which fires early would do the same
    work twice."""
    phase_s = process / 64
    beat_s = next_beat(now_s, every_s, phase_s)
    beats = (beat_s - phase_s) / every_s
    assert abs(beats - round(beats)) < 1e-6
    assert every_s * 0.499 <= beat_s - now_s <= every_s * 1.501


def test_all_periods_meet() -> None:
    """What is done once a second falls on a beat of what is done four times."""
    assert next_beat(7.9, 0.25, 0.0) == 8.25
    assert next_beat(8.0, 1.0, 0.0) == next_beat(8.75, 0.25, 0.0) == next_beat(8.5, 0.5, 0.0) == 9.0
    assert next_beat(8.1, 1.0, 0.125) == next_beat(8.75, 0.25, 0.125) == 9.125

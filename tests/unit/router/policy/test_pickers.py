"""Who of the scored is taken."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.policy import PICKERS
from router.policy.pickers import best, power_of_two, weighted_random


def often(picker: str, scores: list[float], times: int = 3000) -> Counter[int]:
    rng = random.Random(5)
    return Counter(PICKERS[picker](scores, rng) for _ in range(times))


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([1.0], {0}), ([0.2, 0.9, 0.5], {1}), ([0.0, 0.0], {0, 1}), ([0.1 + 0.2, 0.3, 0.1], {0, 1})],
)
def test_best(scores: list[float], expected: set[int]) -> None:
    """The highest; lots among equals, be they equal but for rounding."""
    assert set(often("best", scores)) == expected


def test_weighted_random() -> None:
    """In proportion; nobody with a score of 0, unless all have."""
    counts = often("weighted_random", [1.0, 3.0, 0.0])
    assert counts[2] == 0
    assert 0.2 < counts[0] / 3000 < 0.3
    assert set(often("weighted_random", [0.0, 0.0])) == {0, 1}


def test_power_of_two() -> None:
    """The better of two different ones: never the worst, the best in two of three draws."""
    counts = often("power_of_two", [0.1, 0.9, 0.5])
    assert counts[0] == 0
    assert 0.6 < counts[1] / 3000 < 0.73
    assert set(often("power_of_two", [0.5, 0.5])) == {0, 1}
    assert power_of_two([0.3], random.Random(1)) == 0


class Edge:
    """The largest lot there is."""

    def random(self) -> float:
        return 1.0 - 2**-53


@given(st.lists(st.floats(0, 100), min_size=1, max_size=30), st.integers(0, 9))
def test_in_range_and_repeatable(scores: list[float], seed: int) -> None:
    """An index of the list, the same for the same lots, also for the largest lot."""
    for picker in (best, weighted_random, power_of_two):
        first = picker(scores, random.Random(seed))
        assert 0 <= first < len(scores)
        assert first == picker(scores, random.Random(seed))
        assert 0 <= picker(scores, Edge()) < len(scores)

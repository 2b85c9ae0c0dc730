"""Who of the scored gets the request: index into the scores, by lot where the picker draws.

The caller hands in the lots, so that a seed reproduces a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

from router.policy.terms import RandomSource

Picker = Callable[[Sequence[float], RandomSource], int]
"""Scores of one or more workers, none negative, to the index of the one picked."""

_EQUAL = 1e-9
"""Scores that differ by less are equal: sums of the same terms in another order."""


def best(scores: Sequence[float], rng: RandomSource) -> int:
    """The highest score; a lot among equals."""
    bar = max(scores) - _EQUAL
    equals = [index for index, score in enumerate(scores) if score >= bar]
    return equals[0] if len(equals) == 1 else equals[int(rng.random() * len(equals))]


def weighted_random(scores: Sequence[float], rng: RandomSource) -> int:
    """Anybody, in proportion to the score; routers that share stale figures then do not all
    choose the same worker. Zeros all round are equals."""
    sums = list(accumulate(scores))
    if sums[-1] <= 0.0:
        return int(rng.random() * len(scores))
    lot = rng.random() * sums[-1]
    return next((index for index, upto in enumerate(sums) if lot < upto), len(scores) - 1)


def power_of_two(scores: Sequence[float], rng: RandomSource) -> int:
    """The better of two different ones drawn by lot (M. Mitzenmacher, "The Power of Two Choices
    in Randomized Load Balancing", 2001); the first drawn when they are equal."""
    if len(scores) == 1:
        return 0
    first = int(rng.random() * len(scores))
    second = int(rng.random() * (len(scores) - 1))
    second += second >= first
    return second if scores[second] > scores[first] + _EQUAL else first


PICKERS: dict[str, Picker] = {
    "best": best,
    "weighted_random": weighted_random,
    "power_of_two": power_of_two,
}

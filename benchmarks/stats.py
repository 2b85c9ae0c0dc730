"""How sure a comparison may be: a paired block bootstrap with honest small-sample intervals.

Requests of one block share a queue, so they are no independent samples: thousands of them from
six blocks are six observations. What is resampled is therefore the pair: the blocks of all arms
that had the same schedule. The same pairs are drawn for both arms, their samples are pooled, and
the pooled figure is computed anew.

Percentiles of so few resampled pairs would give intervals that are too narrow. Following
T. Hesterberg, "What Teachers Should Know About the Bootstrap" (2015, sections on the narrowness
bias and on bootstrap t intervals), the bootstrap supplies a standard error only, widened by
``sqrt(n / (n - 1))``, and the interval is Student's t with ``n - 1`` degrees of freedom around
the pooled estimate, on the logarithm of a ratio where values are positive and on the difference
where they are not. Of a percentile in the tail even that is too sure when one block in seven is a
bad one; so the jackknife, which leaves out one pair at a time, gives a second standard error, and
the larger one counts.

Many verdicts at once are corrected after Bonferroni: wasteful where verdicts go together, but the
interval that is printed is then the interval that decided.

Pure: the caller gives the generator. Nothing here knows of requests, arms or charts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.special
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

MIN_PAIRS = 5
"""Fewer pairs give no verdict: with four, one odd block decides everything."""

MIN_INTERVAL_PAIRS = 3
"""Fewer pairs give no interval at all."""

_GRID = 768
"""Places at which a pooled distribution is looked at; see ``pooled_quantile``."""


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """Bootstrap draws of ``pairs`` pairs: ``rows`` says how often each pair is in a draw (draws
    by pairs), ``times`` how often that draw came up. Equal draws are kept once: five pairs have
    only 126 different ones. Behind them stand the jackknife's rows, each without one pair."""

    pairs: int
    rows: FloatArray
    times: FloatArray

    @classmethod
    def make(cls, pairs: int, resamples: int, rng: np.random.Generator) -> Draws:
        """Draw ``pairs`` pairs with replacement, ``resamples`` times."""
        if pairs < 1 or resamples < 1:
            raise ValueError(f"cannot draw {resamples} times from {pairs} pairs")
        counts = rng.multinomial(pairs, np.full(pairs, 1.0 / pairs), size=resamples)
        rows, times = np.unique(counts, axis=0, return_counts=True)
        without = 1 - np.eye(pairs) if pairs > 1 else np.empty((0, pairs))
        return cls(pairs, np.concatenate([rows, without]), times.astype(np.float64))


@dataclass(frozen=True, slots=True, eq=False)
class Pooled:
    """A figure over all pairs, and the same figure in every draw, in the order of the draws."""

    value: float
    draws: FloatArray


def pooled_ratio(numerator: FloatArray, denominator: FloatArray, draws: Draws) -> Pooled:
    """Sum by sum: a mean (sum by count), a share, or a rate (count by seconds), per pair.

    Every pair must have a positive denominator.
    """
    if numerator.shape != (draws.pairs,) or denominator.shape != (draws.pairs,):
        raise ValueError(f"want {draws.pairs} pairs, got {numerator.shape}, {denominator.shape}")
    if not (denominator > 0).all():
        raise ValueError("a pair has nothing to divide by")
    value = float(numerator.sum() / denominator.sum())
    return Pooled(value, (draws.rows @ numerator) / (draws.rows @ denominator))


def pooled_quantile(blocks: Sequence[FloatArray], q: float, draws: Draws) -> Pooled:
    """Quantile ``q`` (0 to 1, numpy's linear method) of the pooled samples.

    ``blocks`` are one sorted, not empty array per pair. The value is exact. The draws are not
    concatenated: the quantile of any mixture lies between the blocks' own quantiles, so counting
    each block's samples below ``_GRID`` places in that range once, and weighting the counts, finds
    it in every draw, to a place of the grid (exactly, if fewer samples lie in the range).
    """
    if len(blocks) != draws.pairs:
        raise ValueError(f"want {draws.pairs} blocks, got {len(blocks)}")
    if any(not block.size for block in blocks):
        raise ValueError("a pair has no samples")
    grid = _places(blocks, q)
    below = np.stack([np.searchsorted(block, grid, side="right") for block in blocks])
    counts = draws.rows @ below.astype(np.float64)
    sizes = draws.rows @ np.array([block.size for block in blocks], dtype=np.float64)
    rank = (sizes - 1.0) * q
    under = np.floor(rank)
    top = grid.size - 1
    lower = grid[np.minimum((counts < (under + 1.0)[:, None]).sum(axis=1), top)]
    upper = grid[np.minimum((counts < np.minimum(under + 2.0, sizes)[:, None]).sum(axis=1), top)]
    value = float(np.quantile(np.concatenate(blocks), q))
    return Pooled(value, lower + (upper - lower) * (rank - under))


def _places(blocks: Sequence[FloatArray], q: float) -> FloatArray:
    """At most ``_GRID`` sample values that enclose quantile ``q`` of every mixture of blocks."""
    low = min(float(b[max(0, int(q * b.size) - 1)]) for b in blocks)
    high = max(float(b[min(b.size - 1, int(np.ceil(q * b.size)) + 1)]) for b in blocks)
    inside = [
        b[np.searchsorted(b, low, side="left") : np.searchsorted(b, high, side="right")]
        for b in blocks
    ]
    values = np.unique(np.concatenate(inside))
    if values.size <= _GRID:
        return values
    return values[np.linspace(0, values.size - 1, _GRID).round().astype(np.int64)]


def _error(values: FloatArray, draws: Draws) -> float:
    """Standard error: the larger of the jackknife's and the bootstrap's, the latter widened by
    sqrt(n / (n - 1))."""
    n = draws.pairs
    drawn, without = values[: draws.times.size], values[draws.times.size :]
    mean = np.average(drawn, weights=draws.times)
    bootstrap = np.average(np.square(drawn - mean), weights=draws.times) * n / (n - 1)
    jackknife = np.square(without - without.mean()).sum() * (n - 1) / n
    error = float(np.sqrt(max(bootstrap, jackknife)))
    # Rounding leaves a trace where all draws are equal.
    return error if error > 1e-12 * abs(mean) + 1e-300 else 0.0


def _reach(confidence: float, pairs: int) -> float:
    """Student's t: how many standard errors the two-sided interval reaches."""
    return float(scipy.special.stdtrit(pairs - 1, 0.5 + confidence / 2.0))


def interval(
    figure: Pooled, draws: Draws, confidence: float = 0.95
) -> tuple[float, float] | tuple[None, None]:
    """Confidence interval of one arm's figure, on its logarithm where all of it is positive;
    ``(None, None)`` with fewer than ``MIN_INTERVAL_PAIRS`` pairs."""
    if draws.pairs < MIN_INTERVAL_PAIRS:
        return None, None
    reach = _reach(confidence, draws.pairs)
    if figure.value > 0 and (figure.draws > 0).all():
        factor = np.exp(min(reach * _error(np.log(figure.draws), draws), 700.0))
        return float(figure.value / factor), float(figure.value * factor)
    half = reach * _error(figure.draws, draws)
    return figure.value - half, figure.value + half


@dataclass(frozen=True, slots=True)
class Contrast:
    """An arm's figure against the base's, with the interval that decides.

    ``scale`` says on which scale ``low`` and ``high`` are: ``ratio`` (arm by base; 1 is no
    difference) or ``difference`` (arm minus base; 0 is no difference), which is used where a
    figure is zero in some draw. Both are None with fewer than ``MIN_PAIRS`` pairs.
    """

    base: float
    value: float
    ratio: float | None
    scale: Literal["ratio", "difference"]
    low: float | None
    high: float | None
    pairs: int

    @property
    def excludes_none(self) -> bool:
        """Whether the interval excludes that there is no difference."""
        if self.low is None or self.high is None:
            return False
        none = 1.0 if self.scale == "ratio" else 0.0
        return not self.low <= none <= self.high


def contrast(base: Pooled, arm: Pooled, draws: Draws, confidence: float) -> Contrast:
    """Compare two figures of the same pairs and draws.

    ``confidence`` is that of this one interval; see ``bonferroni``.
    """
    ratio = arm.value / base.value if base.value > 0 else None
    positive = (
        ratio is not None
        and arm.value > 0
        and bool((base.draws > 0).all())
        and bool((arm.draws > 0).all())
    )
    scale: Literal["ratio", "difference"] = "ratio" if positive else "difference"
    low: float | None = None
    high: float | None = None
    if draws.pairs >= MIN_PAIRS:
        reach = _reach(confidence, draws.pairs)
        if positive and ratio is not None:
            half = reach * _error(np.log(arm.draws) - np.log(base.draws), draws)
            factor = np.exp(min(half, 700.0))
            low, high = float(ratio / factor), float(ratio * factor)
        else:
            half = reach * _error(arm.draws - base.draws, draws)
            low, high = arm.value - base.value - half, arm.value - base.value + half
    return Contrast(base.value, arm.value, ratio, scale, low, high, draws.pairs)


def bonferroni(family: int, confidence: float = 0.95) -> float:
    """Confidence of each of ``family`` intervals so that all hold together at ``confidence``."""
    return 1.0 - (1.0 - confidence) / max(1, family)


Outcome = Literal["better", "worse", "tie", "unknown"]


def decide(
    found: Contrast,
    better: Literal["lower", "higher"],
    *,
    relative: float = 0.02,
    absolute: float = 0.0,
) -> Outcome:
    """What may be said of the arm.

    A winner needs an interval that excludes no difference, and a difference above what the
    instrument resolves: ``relative`` of the base's value and ``absolute`` in the figure's unit.
    Anything else is a tie; ``unknown`` with fewer than ``MIN_PAIRS`` pairs.
    """
    if found.low is None or found.high is None:
        return "unknown"
    difference = found.value - found.base
    if not found.excludes_none or abs(difference) <= max(relative * abs(found.base), absolute):
        return "tie"
    return "better" if (difference < 0) == (better == "lower") else "worse"

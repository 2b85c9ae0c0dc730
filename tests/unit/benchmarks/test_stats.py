"""The bootstrap against brute force, and the instrument against worlds whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import stats

Array = stats.FloatArray


def lognormal_blocks(
    rng: np.random.Generator, pairs: int, size: int, spread: float = 0.1
) -> list[Array]:
    return [
        np.sort(rng.lognormal(rng.normal(0, spread), 0.5, size + int(rng.integers(0, 9))))
        for _ in range(pairs)
    ]


def brute(blocks: list[Array], q: float, row: Array) -> float:
    """The quantile of a draw, by writing out its samples."""
    chosen = [np.repeat(b, int(w)) for b, w in zip(blocks, row, strict=True)]
    return float(np.quantile(np.concatenate(chosen), q))


@pytest.mark.parametrize("q", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("size", [1, 7, 60])
def test_small_blocks_are_resampled_exactly(q: float, size: int) -> None:
    """Without concatenating anything, each draw's quantile is that of its written-out samples."""
    rng = np.random.default_rng(1)
    blocks = lognormal_blocks(rng, 5, size)
    draws = stats.Draws.make(5, 500, rng)
    found = stats.pooled_quantile(blocks, q, draws)
    assert found.value == np.quantile(np.concatenate(blocks), q)
    expected = [brute(blocks, q, row) for row in draws.rows]
    assert found.draws == pytest.approx(expected, rel=1e-12)


def test_large_blocks_are_resampled_to_a_place_of_the_grid() -> None:
    """The error of the grid is far below the error that it is there to measure."""
    rng = np.random.default_rng(2)
    blocks = lognormal_blocks(rng, 8, 4000)
    draws = stats.Draws.make(8, 60, rng)
    found = stats.pooled_quantile(blocks, 0.99, draws)
    expected = np.array([brute(blocks, 0.99, row) for row in draws.rows])
    assert np.abs(found.draws - expected).max() < 0.1 * expected.std()


def test_a_pooled_percentile_is_not_the_average_of_percentiles() -> None:
    """One slow block of ten decides p95 of all; the average would hide it."""
    blocks = [np.linspace(1.0, 2.0, 100)] * 9 + [np.linspace(10.0, 20.0, 100)]
    draws = stats.Draws.make(10, 10, np.random.default_rng(0))
    found = stats.pooled_quantile(blocks, 0.95, draws)
    averaged = np.mean([np.quantile(block, 0.95) for block in blocks])
    assert found.value > 14.0
    assert averaged < 4.0


def test_draws_keep_equal_ones_once_and_add_the_jackknife() -> None:
    """Five pairs have 126 different draws; each row has as many pairs as it should."""
    draws = stats.Draws.make(5, 5000, np.random.default_rng(3))
    assert len(draws.times) <= 126
    assert draws.times.sum() == 5000
    assert set(draws.rows[: len(draws.times)].sum(axis=1)) == {5.0}
    assert (draws.rows[len(draws.times) :] == 1 - np.eye(5)).all()


def test_the_interval_of_a_mean_is_students() -> None:
    """Blocks of one sample each: the interval of the mean is the textbook's, to bootstrap error."""
    values = np.array([9.0, 10.0, 11.0, 10.5, 9.5, 12.0, 8.0])
    draws = stats.Draws.make(7, 20000, np.random.default_rng(4))
    zero_mean = stats.pooled_ratio(values - 10.0, np.ones(7), draws)
    low, high = stats.interval(zero_mean, draws)
    assert low is not None
    assert high is not None
    half = 2.446912 * values.std(ddof=1) / np.sqrt(7)  # t with 6 degrees of freedom, 97.5 %
    assert (high - low) / 2 == pytest.approx(half, rel=0.02)


def test_two_pairs_have_no_interval_and_four_no_verdict() -> None:
    """What is too little to say is not said."""
    rng = np.random.default_rng(5)
    two = stats.Draws.make(2, 50, rng)
    assert stats.interval(stats.pooled_ratio(np.ones(2), np.ones(2), two), two) == (None, None)
    four = stats.Draws.make(4, 50, rng)
    base = stats.pooled_ratio(np.ones(4), np.ones(4), four)
    arm = stats.pooled_ratio(np.full(4, 9.0), np.ones(4), four)
    found = stats.contrast(base, arm, four, 0.95)
    assert found.ratio == pytest.approx(9.0)
    assert (found.low, found.high) == (None, None)
    assert stats.decide(found, "lower") == "unknown"


@given(st.floats(0.2, 5.0), st.permutations(range(6)))
def test_scaled_data_give_the_ratio_in_any_order_of_pairs(factor: float, order: list[int]) -> None:
    """An arm that is the base times a factor has that ratio, exactly and without doubt; the
    estimate does not depend on which pair came first."""
    blocks = lognormal_blocks(np.random.default_rng(6), 6, 40, spread=0.5)
    draws = stats.Draws.make(6, 100, np.random.default_rng(7))
    base = stats.pooled_quantile(blocks, 0.9, draws)
    shuffled = stats.pooled_quantile([blocks[k] for k in order], 0.9, draws)
    assert shuffled.value == base.value
    arm = stats.pooled_quantile([block * factor for block in blocks], 0.9, draws)
    found = stats.contrast(base, arm, draws, 0.95)
    assert found.ratio == pytest.approx(factor)
    assert found.low == pytest.approx(factor)
    assert found.high == pytest.approx(factor)


def test_pairing_takes_out_what_both_arms_share() -> None:
    """Blocks that differ threefold hide no 10 % when both arms saw the same ones."""
    rng = np.random.default_rng(8)
    level = np.array([1.0, 3.0, 1.5, 2.0, 2.5, 1.2])
    draws = stats.Draws.make(6, 2000, rng)
    base = stats.pooled_ratio(level, np.ones(6), draws)
    arm = stats.pooled_ratio(level * 1.1 * rng.normal(1, 0.01, 6), np.ones(6), draws)
    found = stats.contrast(base, arm, draws, 0.99)
    assert stats.decide(found, "higher") == "better"
    low, high = stats.interval(arm, draws, 0.99)
    assert low is not None
    assert high is not None
    assert high / low > 2


def test_zeros_are_compared_by_their_difference() -> None:
    """A share that is zero in every block has no ratio, and still loses or wins."""
    draws = stats.Draws.make(5, 500, np.random.default_rng(9))
    none = stats.pooled_ratio(np.zeros(5), np.full(5, 100.0), draws)
    most = stats.pooled_ratio(np.array([90.0, 92, 88, 95, 91]), np.full(5, 100.0), draws)
    gained = stats.contrast(none, most, draws, 0.99)
    assert (gained.scale, gained.ratio) == ("difference", None)
    assert stats.decide(gained, "higher") == "better"
    lost = stats.contrast(most, none, draws, 0.99)
    assert lost.ratio == 0.0
    assert stats.decide(lost, "higher") == "worse"
    assert stats.decide(stats.contrast(none, none, draws, 0.99), "higher") == "tie"


@pytest.mark.parametrize(
    ("value", "absolute", "outcome"),
    [(0.979, 0.0, "better"), (0.981, 0.0, "tie"), (0.9, 0.11, "tie"), (1.3, 0.2, "worse")],
)
def test_no_winner_below_what_the_instrument_resolves(
    value: float, absolute: float, outcome: str
) -> None:
    """Even without any scatter, 2 % or the absolute resolution must be passed."""
    draws = stats.Draws.make(5, 50, np.random.default_rng(10))
    base = stats.pooled_ratio(np.ones(5), np.ones(5), draws)
    arm = stats.pooled_ratio(np.full(5, value), np.ones(5), draws)
    found = stats.contrast(base, arm, draws, 0.95)
    assert found.excludes_none
    assert stats.decide(found, "lower", absolute=absolute) == outcome


def test_more_verdicts_make_each_interval_wider() -> None:
    """Bonferroni: ten verdicts at 95 % together are 99.5 % each."""
    assert stats.bonferroni(10) == pytest.approx(0.995)
    assert stats.bonferroni(0) == pytest.approx(0.95)


def test_pairs_without_samples_are_refused() -> None:
    """The caller leaves them out; they are not guessed."""
    draws = stats.Draws.make(2, 10, np.random.default_rng(0))
    with pytest.raises(ValueError, match="no samples"):
        stats.pooled_quantile([np.ones(3), np.empty(0)], 0.5, draws)
    with pytest.raises(ValueError, match="divide"):
        stats.pooled_ratio(np.ones(2), np.array([1.0, 0.0]), draws)


class World:
    """Simulated comparisons: heavy-tailed, autocorrelated requests in blocks that differ."""

    family = 8

    def __init__(self, seed: int, pairs: int, spread: float, requests: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.pairs, self.spread, self.requests = pairs, spread, requests

    def blocks(self, shared: Array, effect: float) -> list[Array]:
        """One arm: the pair's own level, the block's, and a slow wave within the block."""
        rng, size = self.rng, self.requests
        offset = shared + rng.normal(0, self.spread, self.pairs)
        noise = rng.normal(0, 0.35, (self.pairs, size + 20))
        wave = np.stack([np.convolve(row, np.ones(20) / 4, "valid")[:size] for row in noise])
        values = effect * np.exp(offset[:, None] + wave)
        values *= np.where(rng.random(values.shape) < 0.02, 1 + 3 * rng.pareto(2, values.shape), 1)
        return [np.sort(row) for row in values]

    def compare(self, effect: float) -> list[stats.Outcome]:
        """All verdicts of one comparison, as the analysis asks for them."""
        draws = stats.Draws.make(self.pairs, 200, self.rng)
        confidence = stats.bonferroni(self.family, 0.96)
        outcomes: list[stats.Outcome] = []
        for q in (0.5, 0.9) * (self.family // 2):
            shared = self.rng.normal(0, 0.1, self.pairs)
            base = stats.pooled_quantile(self.blocks(shared, 1.0), q, draws)
            arm = stats.pooled_quantile(self.blocks(shared, effect), q, draws)
            outcomes.append(stats.decide(stats.contrast(base, arm, draws, confidence), "lower"))
        return outcomes


@pytest.mark.parametrize("pairs", [5, 8])
def test_equal_arms_rarely_have_a_winner(pairs: int) -> None:
    """In at most 5 % of whole comparisons of an arm with itself is any figure won or lost; with
    the plain percentile bootstrap it is several times that. The bound leaves room for the chance
    of 100 comparisons (mean below 5, so 10 is two and a half deviations)."""
    world = World(11, pairs, spread=0.2, requests=100)
    false = sum(
        any(outcome in ("better", "worse") for outcome in world.compare(1.0)) for _ in range(100)
    )
    assert false <= 10


@pytest.mark.parametrize(("effect", "found_at_least"), [(1.2, 0.2), (2.0, 0.9)])
def test_real_differences_are_found_and_never_turned_round(
    effect: float, found_at_least: float
) -> None:
    """Blocks that vary by 5 % and eight pairs: most verdicts see a doubling, many see 20 %."""
    world = World(12, 8, spread=0.05, requests=500)
    outcomes = [outcome for _ in range(10) for outcome in world.compare(effect)]
    assert outcomes.count("better") == 0
    assert outcomes.count("worse") >= found_at_least * len(outcomes)

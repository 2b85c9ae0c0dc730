"""What is learned from durations."""

from __future__ import annotations

import random

import pytest

from router.policy import Estimates
from router.policy.cost import ENOUGH, Line
from tests.fakes.worker_records import worker_record


def fed(samples: list[tuple[float, float]], every_s: float = 0.1) -> Line:
    line = Line()
    for n, (size, seconds) in enumerate(samples):
        line.observe(size, seconds, n * every_s)
    return line


def true_s(size: float) -> float:
    return 0.02 + 1e-4 * size


def noisy(count: int, noise: float = 0.0, seed: int = 1) -> list[tuple[float, float]]:
    rng = random.Random(seed)
    sizes = [rng.randrange(100, 8000) for _ in range(count)]
    return [(size, true_s(size) * (1 + noise * (rng.random() - 0.5))) for size in sizes]


def test_a_line_is_found() -> None:
    """Exactly without noise, within a few percent with it."""
    line = fed(noisy(40))
    assert line.fixed_s == pytest.approx(0.02, rel=1e-3)
    assert line.slope_s == pytest.approx(1e-4, rel=1e-3)
    rough = fed(noisy(200, noise=0.2))
    assert rough.at(5000) == pytest.approx(true_s(5000), rel=0.05)


def test_one_outlier_is_nothing() -> None:
    """A stall of a minute moves the prediction by a few percent only."""
    samples = noisy(60, noise=0.1)
    line = fed([*samples, (4000, 60.0)])
    assert line.at(4000) == pytest.approx(true_s(4000), rel=0.1)


def test_a_change_that_stays_is_followed() -> None:
    """An engine that is three times slower from now on is known as such a hundred prompts later."""
    samples = noisy(60, noise=0.1) + [(x, 3 * y) for x, y in noisy(100, noise=0.1, seed=2)]
    assert fed(samples).at(4000) == pytest.approx(3 * true_s(4000), rel=0.1)


def test_old_samples_fade() -> None:
    """Of much that was measured, little is left after some half-lives of five minutes."""
    line = fed(noisy(100))
    now_s = 100 * 0.1
    assert line.samples(now_s) > 30
    assert line.samples(now_s + 300) == pytest.approx(line.samples(now_s) / 2, rel=0.01)
    assert line.samples(now_s + 900) < ENOUGH
    assert line.samples(0.0) == line.samples(now_s - 1)


@pytest.mark.parametrize(
    "samples",
    [
        [(1000, 0.1)] * 20,
        [(1000 + n % 3, 0.1) for n in range(20)],
        [(0, 0.1)] * 20,
        [(100 * n, 1.0 - 0.04 * n) for n in range(1, 20)],
        [(100 * n, max(1e-6, 0.01 * n - 0.05)) for n in range(1, 20)],
    ],
)
def test_no_part_is_negative(samples: list[tuple[float, float]]) -> None:
    """Equal sizes, falling times, negative intercepts: a prediction is still a duration, and right
    where the samples are."""
    line = fed(samples)
    assert line.fixed_s >= 0
    assert line.slope_s >= 0
    if len({size for size, _ in samples}) <= 3:
        assert line.at(samples[-1][0]) == pytest.approx(0.1, rel=0.01)


def test_own_before_alike() -> None:
    """A worker's own line once there is enough of it, before that the line of its kind."""
    estimates = Estimates()
    fast = worker_record("d1")
    slow = worker_record("d2")
    other = worker_record("d3", accelerator="h100")
    for n in range(20):
        estimates.observe_prefill(fast, 100 + n, 0.1, n)
    line = estimates.prefill(slow, 20.0)
    assert line is not None
    assert line.at(110) == pytest.approx(0.1, rel=0.1)
    assert estimates.prefill(other, 20.0) is None
    for n in range(20, 40):
        estimates.observe_prefill(slow, 100 + n, 0.5, n)
    own = estimates.prefill(slow, 40.0)
    assert own is not None
    assert own.at(130) == pytest.approx(0.5, rel=0.1)
    still = estimates.prefill(fast, 40.0)
    assert still is not None
    assert still.at(110) == pytest.approx(0.1, rel=0.1)


def test_what_was_ahead_is_part_of_the_size() -> None:
    """A prompt that waited for others is no sign of a slow worker."""
    estimates = Estimates()
    worker = worker_record()
    for n in range(20):
        ahead = 1000 * (n % 4)
        estimates.observe_prefill(worker, 500 + n, true_s(500 + n + ahead), n, ahead_tokens=ahead)
    line = estimates.prefill(worker, 20.0)
    assert line is not None
    assert line.at(500) == pytest.approx(true_s(500), rel=0.01)


def test_pulls() -> None:
    """By pair, else by kinds of machines, told apart by whether the network is between them."""
    estimates = Estimates()
    p, d, far = worker_record("p"), worker_record("d"), worker_record("e", node="node-2")
    for n in range(20):
        estimates.observe_pull(p, d, 10**6 * (n + 1), 0.01 + 1e-9 * 10**6 * (n + 1), n)
    line, own = estimates.pull(p, d, 20.0)
    assert line is not None
    assert own
    assert line.fixed_s == pytest.approx(0.01, rel=1e-3)
    line, own = estimates.pull(p, worker_record("d2"), 20.0)
    assert line is not None
    assert not own
    assert estimates.pull(p, far, 20.0) == (None, False)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf"), 1e6])
def test_impossible_durations_are_dropped(seconds: float) -> None:
    """A clock that jumped teaches nothing."""
    estimates = Estimates()
    estimates.observe_prefill(worker_record(), 100, seconds, 0.0)
    estimates.observe_pull(worker_record("p"), worker_record("d"), 100, seconds, 0.0)
    assert estimates.views(0.0) == {"prefill": [], "pull": []}


def test_bounded() -> None:
    """Who was measured longest ago goes first."""
    estimates = Estimates(max_lines=3)
    for n in range(10):
        estimates.observe_prefill(worker_record(f"d{n}"), 100, 0.1, n)
    keys = {view.key for view in estimates.views(10.0)["prefill"]}
    assert len(keys) == 3
    assert "d9" in keys
    assert "decode/cpu/tiny" in keys

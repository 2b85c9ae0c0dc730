"""The judgement of a canary: the interval, the table of cases, the sentences, and how often it is
wrong when it is asked again and again."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.types import Tally
from profiles.switching import judge, total
from profiles.switching.verdict import LEAST_BAD, PRESUMED_GOOD, PRESUMED_NONE, wilson

NOTHING = Tally()


def errors(bad: int, requests: int) -> Tally:
    return Tally(requests=requests, errors=bad)


def worse(old: Tally, new: Tally, before: Tally = NOTHING, *, min_requests: int = 20) -> bool:
    return judge(old, new, before, min_requests).worse


@pytest.mark.parametrize(
    ("bad", "requests", "low", "high"),
    [
        # As scipy.stats.binomtest(...).proportion_ci(method="wilson") has them, at 95 %.
        (0, 10, 0.0, 0.277533),
        (1, 10, 0.017876, 0.404150),
        (5, 10, 0.236593, 0.763407),
        (10, 10, 0.722467, 1.0),
        (20, 1000, 0.012984, 0.030690),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson(bad: int, requests: int, low: float, high: float) -> None:
    """Known values."""
    assert wilson(bad, requests, 1.959964) == pytest.approx((low, high), abs=1e-6)


@given(st.integers(0, 10_000), st.integers(1, 10_000))
def test_wilson_holds_the_share(bad: int, requests: int) -> None:
    """The interval lies in 0 to 1, and the share in the interval."""
    bad = min(bad, requests)
    low, high = wilson(bad, requests)
    assert 0.0 <= low <= bad / requests <= high <= 1.0


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (errors(1, 380), errors(9, 41), True),
        (errors(1, 380), errors(1, 41), False),
        (errors(40, 380), errors(9, 41), False),  # bad on both sides
        (errors(9, 41), errors(1, 380), False),  # better
        (errors(0, 1000), errors(LEAST_BAD - 1, 2), False),  # an accident
        (errors(0, 1000), errors(LEAST_BAD, 3), True),
        (errors(0, 1000), errors(LEAST_BAD, 1000), False),
        (Tally(requests=380, missed=1), Tally(requests=41, missed=9), True),
        (Tally(requests=380, missed=40), Tally(requests=41, missed=9), False),
        (NOTHING, NOTHING, False),
        (errors(0, 1000), NOTHING, False),
        (NOTHING, errors(3, 200), False),  # nothing is known of the old side
        (NOTHING, errors(3, 6), True),
        (NOTHING, errors(60, 300), True),
        (errors(0, 1), errors(20, 20), True),  # little is known of it
        (errors(0, 1), errors(6, 20), False),
        (errors(1, 1), errors(20, 20), False),
    ],
)
def test_table(old: Tally, new: Tally, expected: bool) -> None:
    """Worse is a higher share beyond chance, of either kind, from three bad ones on."""
    assert worse(old, new) is expected


def test_the_minutes_before_help_out() -> None:
    """Only where the arm itself has seen too little."""
    bad_before, new = errors(300, 1000), errors(9, 30)
    assert worse(NOTHING, new)
    assert not worse(NOTHING, new, bad_before)
    assert not worse(errors(0, 19), new, bad_before)
    assert worse(errors(0, 200), new, bad_before)
    assert worse(NOTHING, new, errors(10, 1000))


def test_what_is_presumed_is_between_all_and_nothing() -> None:
    """A bar that nothing clears, or everything, would be none."""
    assert 0 < PRESUMED_NONE < PRESUMED_GOOD < 1


def test_sentence() -> None:
    """The figures of both sides, those of service level and times where there are any."""
    old = Tally(requests=380, errors=1, missed=4, streams=100, ttft_s=25.0)
    new = Tally(requests=41, errors=9, streams=10, ttft_s=4.0)
    verdict = judge(old, new, NOTHING, 20, old_name="disaggregated", new_name="standard")
    assert verdict.sentence == (
        "errors: 9 of 41 requests under standard (22.0 %), 1 of 380 under disaggregated (0.3 %); "
        "outside of the service level: 0 of 41 requests under standard (0.0 %), "
        "4 of 380 under disaggregated (1.1 %); "
        "mean time to the first token: 0.400 s under standard, 0.250 s under disaggregated"
    )


def test_sentence_without_much_to_say() -> None:
    """No share of nothing, and it is said where the old figures are from."""
    assert judge(NOTHING, NOTHING, NOTHING, 20, old_name="a", new_name="b").sentence == (
        "errors: no requests under b, no requests under a"
    )
    topped_up = judge(NOTHING, errors(0, 5), errors(1, 50), 20, old_name="a", new_name="b")
    assert topped_up.sentence == (
        "errors: 0 of 5 requests under b (0.0 %), "
        "1 of 50 under a (the minutes before included) (2.0 %)"
    )


def test_total() -> None:
    """Field by field; of nothing, nothing."""
    assert total([]) == NOTHING
    assert total([Tally(1, 2, 3, 4, 0.5), Tally(10, 20, 30, 40, 0.25)]) == Tally(
        11, 22, 33, 44, 0.75
    )


def canary(
    lots: random.Random, old_share: float, new_share: float, *, looks: int, canary_share: float
) -> int | None:
    """Requests of the new profile until it is called worse, at one request and one look at a time;
    None for never. Errors and misses are equally frequent."""
    counts = {True: [0, 0, 0], False: [0, 0, 0]}
    shares = {True: new_share, False: old_share}
    for _ in range(looks):
        new = lots.random() < canary_share
        arm = counts[new]
        arm[0] += 1
        arm[1] += lots.random() < shares[new]
        arm[2] += lots.random() < shares[new]
        if new and worse(Tally(*counts[False]), Tally(*counts[True])):
            return counts[True][0]
    return None


@pytest.mark.parametrize(("share", "canary_share"), [(0.02, 0.1), (0.02, 0.5), (0.1, 0.1)])
def test_equal_profiles_are_rarely_called_worse(share: float, canary_share: float) -> None:
    """In less than 2 % of canaries, however often one looks."""
    lots = random.Random(20)
    runs = [canary(lots, share, share, looks=1000, canary_share=canary_share) for _ in range(500)]
    assert sum(run is not None for run in runs) < 0.02 * len(runs)


def test_a_bad_profile_is_found_soon() -> None:
    """30 % against 1 %: within 60 of its requests, nearly always."""
    lots = random.Random(20)
    runs = [canary(lots, 0.01, 0.3, looks=3000, canary_share=0.1) for _ in range(300)]
    assert sum(run is not None and run <= 60 for run in runs) >= 0.99 * len(runs)

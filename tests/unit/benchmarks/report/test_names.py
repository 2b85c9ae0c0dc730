"""How figures, changes and intervals are written."""

from __future__ import annotations

import pytest

from benchmarks import metrics
from benchmarks.compare.analysis_pool import MAX_RATE, PER_ACCELERATOR, PRICES
from benchmarks.plan import Slo
from benchmarks.records import RequestRecord
from benchmarks.report.names import (
    DASH,
    Kind,
    change_text,
    figure,
    interval_text,
    kind_text,
    outcome_symbol,
    outcome_word,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0004, "0.400 ms"),
        (0.0412, "41.2 ms"),
        (0.022001, "22.0 ms"),
        (0.041, "41 ms"),
        (3.33, "3,330 ms"),
        (12.34, "12.3 s"),
    ],
)
def test_latencies_are_milliseconds_under_ten_seconds(seconds: float, text: str) -> None:
    """A reader never converts: ms below 10 s, s from there on."""
    assert kind_text(Kind.SECONDS, seconds) == text


def test_missing_numbers_are_dashes_and_never_zero() -> None:
    """What was not measured must not look like a measured zero."""
    assert kind_text(Kind.SECONDS, None) == DASH
    assert kind_text(Kind.RATE, float("nan")) == DASH
    assert kind_text(Kind.RATE, 0.0) == "0 /s"


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (1 / 12.3, "12.3x lower"),
        (2.4, "2.4x higher"),
        (1.24, "+24 %"),
        (0.82, "\u221218 %"),
        (1.0, "0 %"),
        (1.004, "+0.4 %"),
        (None, DASH),
        (0.0, "\u2212100 %"),
    ],
)
def test_changes_are_multiples_from_a_factor_of_two(ratio: float | None, text: str) -> None:
    """From 2x on in either direction a multiple is said, a percentage below."""
    assert change_text(ratio) == text


@pytest.mark.parametrize(
    ("ratio", "low", "high", "text"),
    [
        (0.1, 0.08, 0.125, "8.0x to 12.5x lower"),
        (3.0, 2.0, 4.0, "2.0x to 4.0x higher"),
        (1.1, 0.9, 1.3, "\u221210 % to +30 %"),
        (0.4, 0.2, 1.5, "\u221280 % to +50 %"),
        (0.4, None, None, DASH),
    ],
)
def test_an_interval_that_crosses_no_difference_is_in_percent(
    ratio: float, low: float | None, high: float | None, text: str
) -> None:
    """``a to b lower`` is said only where the whole interval is lower."""
    assert interval_text(ratio, low, high) == text


def test_every_figure_that_the_analysis_makes_has_a_name_of_its_own() -> None:
    """No key of ``metrics`` or of the verdicts falls back to its spelling."""
    record = RequestRecord(index=0, class_name="a", scheduled_s=0.0, sent_s=0.0, end_s=1.0)
    slos = {"a": Slo(ttft_s=1.0, tpot_s=1.0, e2e_s=1.0)}
    sums = metrics.parts([record], 10.0, slos)["a"].sums
    latencies = [f"{name}_p99" for name in metrics.LATENCIES]
    assert "attainment_e2e" in sums
    for key in [*latencies, *sums, *PRICES, *PER_ACCELERATOR, MAX_RATE, "cached_share"]:
        label = figure(key).label
        assert "_" not in label
        assert label[0].isupper() or label[0] == "$"


def test_unknown_keys_are_spelled_out_with_a_likely_unit() -> None:
    """A figure of a later version is still shown."""
    assert figure("spin_share").label == "spin share"
    assert figure("spin_share").kind is Kind.SHARE
    assert figure("wait_s").kind is Kind.SECONDS
    assert figure("ttft_p99").label == "TTFT p99"


def test_outcomes_differ_without_colour() -> None:
    """Word and symbol alone tell the four outcomes apart."""
    outcomes = ("better", "worse", "tie", "unknown")
    assert len({outcome_symbol(outcome) for outcome in outcomes}) == 4
    assert outcome_word("unknown") == "unknown: too few"

"""Which figures are judged, and what may be said of each.

The family is small and fixed before any value is looked at: every verdict more makes all
intervals wider. Per class (``all`` alone if there is one class only): TTFT at the highest
percentile that has samples enough in both arms, TTFT p50, ITL and the longest gap of an answer at
their highest such percentile, and TPOT p50. For all requests: output tokens per second, goodput,
goodput per accelerator where the arms have different numbers of them, and dollars per million good
output tokens where both have prices. Over several levels: the highest rate within the SLO. Other
figures are in the metrics, each with its own interval, and win nothing.

Some differences are true and still mean nothing, and are not called a win here: a latency of the
arm that failed more requests, and throughput in open loop where both arms served all that came.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np

from benchmarks.compare.analysis_pool import (
    MAX_RATE,
    PRICES,
    MaxRate,
    Pool,
    lower_is_better,
    max_rates,
    turned,
)
from benchmarks.comparison import Verdict
from benchmarks.metrics import ALL, latency_key
from benchmarks.stats import (
    MIN_PAIRS,
    Contrast,
    Outcome,
    bonferroni,
    contrast,
    decide,
    pooled_ratio,
)

Primary = Sequence[tuple[str, str]]

RESOLUTION = 0.02
"""Differences of up to 2 % are not told apart: two runs of one machine differ by as much."""

RESOLUTION_S = 0.001
"""Event loops wake to about a millisecond, so no latency is known better."""

RESOLUTION_TPOT_S = 0.0001
"""TPOT divides that millisecond by the tokens of an answer."""

FAMILY_CONFIDENCE = 0.96
"""With which all intervals of a comparison hold together, by formula. Simulated comparisons of
equal arms find a winner a little oftener than the formula says when blocks are skewed and figures
independent; asking for 4 % keeps what is printed, 95 %, true."""

ERRORS_TOLERATED = 0.01
"""A latency is not won by an arm that failed more requests than the other by this share of all."""

ALL_LEVELS = 0.0
"""Level of a verdict over all levels."""

_PERCENTILES = ("p99", "p95", "p90", "p50")


def family(pool: Pool, base: str, arm: str, level: float) -> list[tuple[str, str]]:
    """Class and key of the verdicts of one arm at one level; see the module's text."""
    classes = pool.classes(level)
    chosen: list[tuple[str, str]] = []
    for name in [ALL] if len(classes) <= 2 else classes[1:]:
        if not (pool.each(base, level, name) and pool.each(arm, level, name)):
            continue
        for latency in ("ttft", "itl", "longest_gap"):
            chosen.append((name, _highest(pool, (base, arm), level, name, latency)))
        chosen += [(name, "ttft_p50"), (name, "tpot_p50")]
    chosen.append((ALL, "output_tokens_per_s"))
    if pool.total(base, level, ALL, "attainment")[1]:
        counts = [pool.arms[name].accelerator_count for name in (base, arm)]
        chosen.append((ALL, "goodput_rps"))
        if all(counts) and counts[0] != counts[1]:
            chosen.append((ALL, "goodput_per_accelerator"))
        if all(pool.arms[name].price_per_hour for name in (base, arm)):
            chosen.append((ALL, "usd_per_million_good_tokens"))
    return list(dict.fromkeys(chosen))


def _highest(pool: Pool, arms: tuple[str, str], level: float, name: str, latency: str) -> str:
    """The key at the highest percentile with samples enough in both arms, else the median."""
    for key in (f"{latency}_{part}" for part in _PERCENTILES):
        if all(pool.enough(arm, level, name, key) for arm in arms):
            return key
    return f"{latency}_p50"


@dataclass(frozen=True, slots=True)
class _Question:
    arm: str
    level: float
    class_name: str
    key: str


def judge(pool: Pool, primary: Primary | None = None) -> list[Verdict]:
    """Every arm against the base at every level.

    ``primary`` replaces the family, with classes and keys of every level. All intervals together
    hold at 95 %: each is corrected for the number of verdicts that can be formed.
    """
    base, *others = pool.arms
    questions = [
        _Question(arm, level, class_name, key)
        for level in pool.levels
        for arm in others
        for class_name, key in (primary or family(pool, base, arm, level))
    ]
    rates = {name: max_rates(pool, name) for name in pool.arms} if primary is None else {}
    askable = [q for q in questions if _why_not(pool, base, q) is None]
    over_levels = [arm for arm in others if len(rates.get(arm, {})) >= MIN_PAIRS]
    confidence = bonferroni(len(askable) + len(over_levels), FAMILY_CONFIDENCE)
    found = [_verdict(pool, base, question, confidence) for question in questions]
    found += [
        _rate_verdict(pool, base, arm, rates, confidence)
        for arm in others
        if rates.get(arm) and rates.get(base)
    ]
    return found


def _shared(pool: Pool, base: str, question: _Question) -> tuple[int, ...]:
    level, class_name, key = question.level, question.class_name, question.key
    mine = set(pool.usable(question.arm, level, class_name, key))
    return tuple(p for p in pool.usable(base, level, class_name, key) if p in mine)


def _why_not(pool: Pool, base: str, question: _Question) -> str | None:
    """Why a verdict cannot be formed, or None."""
    level, class_name, key = question.level, question.class_name, question.key
    for name in (base, question.arm):
        if not pool.enough(name, level, class_name, key):
            n = pool.count(name, level, class_name, key)
            latency = latency_key(key)
            if not n or latency is None or latency[1] is None:
                return f"{name} has no samples of it"
            needed = round(10 / (1 - latency[1]))
            return f"{name} has {n} samples; this percentile needs {needed}"
    pairs = len(_shared(pool, base, question))
    if pairs < MIN_PAIRS:
        return f"{pairs} pairs; a verdict needs {MIN_PAIRS}: {MIN_PAIRS - pairs} missing"
    return None


def _verdict(pool: Pool, base: str, question: _Question, confidence: float) -> Verdict:
    arm, level, key = question.arm, question.level, question.key
    class_name = question.class_name
    pairs = _shared(pool, base, question)
    reason = _why_not(pool, base, question)
    blank = Verdict(
        arm=arm, base=base, level=level, class_name=class_name, key=key,
        base_value=None, value=None, ratio=None, low=None, high=None,
        better="lower" if lower_is_better(key) else "higher",
        outcome="unknown", pairs=len(pairs), note=reason or "",
    )  # fmt: skip
    if not pairs:
        return blank
    found = contrast(
        pool.pooled(base, level, class_name, key, pairs),
        pool.pooled(arm, level, class_name, key, pairs),
        pool.draws(len(pairs)),
        confidence,
    )
    verdict = _filled(blank, found)
    if reason is not None:
        return msgspec.structs.replace(verdict, low=None, high=None)
    # A price is compared as what a dollar buys, of which more is better.
    better: Literal["lower", "higher"]
    better = "lower" if lower_is_better(key) and key not in PRICES else "higher"
    outcome = decide(found, better, relative=RESOLUTION, absolute=_resolution_s(key))
    return _tempered(pool, msgspec.structs.replace(verdict, outcome=outcome), found)


def _resolution_s(key: str) -> float:
    latency = latency_key(key)
    if latency is None:
        return 0.0
    return RESOLUTION_TPOT_S if latency[0] == "tpot" else RESOLUTION_S


def _filled(blank: Verdict, found: Contrast) -> Verdict:
    """The values of a contrast; an interval of a difference is told as shares of the base."""
    value: float | None = found.value
    base: float | None = found.base
    ratio, low, high = found.ratio, found.low, found.high
    note = blank.note
    if found.scale == "difference" and low is not None and high is not None:
        if not note:
            note = f"judged by the difference, {low:.3g} to {high:.3g}, because of zeros"
        if found.base > 0:
            # No figure here can be negative.
            low, high = max(0.0, 1.0 + low / found.base), max(0.0, 1.0 + high / found.base)
        else:
            low = high = None
    if blank.key in PRICES:
        unit = PRICES[blank.key].unit
        value, base = turned(value, unit), turned(base, unit)
        ratio = turned(ratio, 1.0)
        low, high = turned(high, 1.0), turned(low, 1.0)
        if ratio is None:  # nothing good was made at any price
            low = high = None
    return msgspec.structs.replace(
        blank, value=value, base_value=base, ratio=ratio, low=low, high=high, note=note
    )


def _tempered(pool: Pool, verdict: Verdict, found: Contrast) -> Verdict:
    """The verdict, unless its difference means nothing."""
    level, names = verdict.level, (verdict.base, verdict.arm)
    if verdict.outcome == "tie" and found.excludes_none:
        note = "the difference is below what the instrument resolves"
        return msgspec.structs.replace(verdict, note=note)
    if verdict.outcome not in ("better", "worse"):
        return verdict
    throughput = verdict.key in ("output_tokens_per_s", "requests_per_s")
    calm = level in pool.open_loop and not any(pool.saturated(name, level) for name in names)
    if throughput and calm:
        note = "both kept up with the offered load, which sets this figure"
        return msgspec.structs.replace(verdict, outcome="tie", note=note)
    if latency_key(verdict.key) is None:
        return verdict
    failed = {}
    for name in names:
        errors, of = pool.total(name, level, verdict.class_name, "error_share")
        failed[name] = errors / of if of else 0.0
    winner, loser = verdict.arm, verdict.base
    if verdict.outcome == "worse":
        winner, loser = loser, winner
    if failed[winner] - failed[loser] > ERRORS_TOLERATED:
        note = (
            f"{failed[winner]:.1%} of {winner}'s requests failed and {failed[loser]:.1%} of "
            f"{loser}'s; failed requests have no latency, so lower says nothing"
        )
        return msgspec.structs.replace(verdict, outcome="unknown", note=note)
    return verdict


def _rate_verdict(
    pool: Pool, base: str, arm: str, rates: dict[str, dict[int, MaxRate]], confidence: float
) -> Verdict:
    """The highest rate within the SLO, as the mean of what it was in each pair."""
    pairs = sorted(set(rates[base]) & set(rates[arm]))
    draws = pool.draws(len(pairs))
    ones = np.ones(len(pairs))
    found = contrast(
        pooled_ratio(np.array([rates[base][p].rate for p in pairs]), ones, draws),
        pooled_ratio(np.array([rates[arm][p].rate for p in pairs]), ones, draws),
        draws,
        confidence,
    )
    missing = MIN_PAIRS - len(pairs)
    outcome = decide(found, "higher", relative=RESOLUTION)
    if missing > 0:
        note = f"{len(pairs)} pairs; a verdict needs {MIN_PAIRS}: {missing} missing"
    else:
        open_ended = [n for n in (base, arm) if any(rates[n][p].at_least for p in pairs)]
        outcome, note = _told_rate(outcome, found, open_ended, arm, base)
    return _filled(
        Verdict(
            arm=arm, base=base, level=ALL_LEVELS, class_name=ALL, key=MAX_RATE,
            base_value=None, value=None, ratio=None, low=None, high=None, better="higher",
            outcome=outcome, pairs=len(pairs), note=note,
        ),
        found,
    )  # fmt: skip


def _told_rate(
    outcome: Outcome, found: Contrast, open_ended: Sequence[str], arm: str, base: str
) -> tuple[Outcome, str]:
    """The outcome and its note, where the levels that were measured do not hold the answer.

    A rate that is only known to be at least something can win, and cannot lose or tie.
    """
    if not found.base and not found.value:
        return "unknown", "both miss the SLO at the lowest load; measure lower loads"
    if not open_ended:
        return outcome, ""
    loser = {"better": base, "worse": arm}.get(outcome)
    if loser is None or loser in open_ended:
        names = " and ".join(open_ended)
        return "unknown", f"{names} met the SLO at the highest load too; measure higher loads"
    return outcome, f"{open_ended[0]} met the SLO at the highest load too: it is at least this"

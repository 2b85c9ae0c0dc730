"""The first thing that a person reads: one to three sentences made from the verdicts.

Losses stand beside wins, the largest effect first; ties are called that; and where nothing can be
said, that is what is said. Nothing is computed here that a verdict does not hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.compare.analysis_pool import MAX_RATE, PRICES, Pool
from benchmarks.compare.verdicts import ALL_LEVELS, ERRORS_TOLERATED
from benchmarks.comparison import Verdict
from benchmarks.metrics import ALL, latency_key
from benchmarks.stats import MIN_PAIRS

_STATISTICS = {"p50": "median", "p90": "p90", "p95": "p95", "p99": "p99", "mean": "mean"}
_LATENCIES = {
    "ttft": "TTFT",
    "ttft_sched": "TTFT from schedule",
    "itl": "ITL",
    "longest_gap": "longest gap",
    "tpot": "TPOT",
    "e2e": "E2E",
    "e2e_sched": "E2E from schedule",
}
_NAMES = {
    "goodput_rps": "goodput",
    "goodput_per_accelerator": "goodput per accelerator",
    "output_tokens_per_s": "output tokens/s",
    "usd_per_million_good_tokens": "the price of a million good output tokens",
    MAX_RATE: "the highest rate within the SLO",
}
_UNITS = {
    MAX_RATE: " requests/s",
    "goodput_rps": " requests/s",
    "goodput_per_accelerator": " requests/s",
}
_ARMS = 3
_EFFECTS = 4
_TIES = 4


def headline(pool: Pool, verdicts: Sequence[Verdict]) -> list[str]:
    """At most three sentences, for the level that ``told_level`` chooses."""
    base, *others = pool.arms
    level = told_level(pool)
    if level is None:
        return ["Nothing can be said: no pair of blocks counted."]
    told = [v for v in verdicts if v.primary and v.level in (level, ALL_LEVELS)]
    where = _where(pool, level)
    sentences: list[str] = []
    for arm in others:
        mine = [v for v in told if v.arm == arm]
        sentences += _of_arm(pool, arm, base, level, mine, where, brief=len(others) > 1)
    failing = _errors(pool, level)
    if failing:
        return [*sentences[:2], failing]
    if len(others) > _ARMS:
        more = len(others) - _ARMS + 1
        return [*sentences[: _ARMS - 1], f"The verdicts on {more} more arms stand below."]
    return sentences[:3]


def told_level(pool: Pool) -> float | None:
    """The highest level at which every arm kept up, since a saturated arm's latencies say how
    long the run was; without one the lowest level. None if no pair was counted."""
    calm = [
        level for level in pool.levels if not any(pool.saturated(arm, level) for arm in pool.arms)
    ]
    if calm:
        return calm[-1]
    return pool.levels[0] if pool.levels else None


def _where(pool: Pool, level: float) -> str:
    if len(pool.levels) < 2:
        return ""
    rate = pool.offered.get(level)
    return f" at {rate:.3g} requests/s" if rate is not None else f" at load {level:g}"


def _of_arm(
    pool: Pool, arm: str, base: str, level: float, mine: list[Verdict], where: str, *, brief: bool
) -> list[str]:
    decided = _strongest([v for v in mine if v.outcome in ("better", "worse")])
    ties = [figure_name(v) for v in mine if v.outcome == "tie"]
    open_ = [v for v in mine if v.outcome == "unknown"]
    pairs = len(pool.pairs[level])
    if not decided and not ties:
        if pairs < MIN_PAIRS:
            return [
                f"Nothing can be said of {arm} yet: {pairs} of the {MIN_PAIRS} pairs that a "
                f"verdict needs were counted{where}."
            ]
        reason = f": {open_[0].note}" if open_ and open_[0].note else ""
        return [f"Nothing can be said of {arm} against {base}{where}{reason}."]
    if not decided:
        return [f"No difference found between {arm} and {base}{where} in {_list(ties)}."]
    intervals = [_interval(v) for v in decided]
    first = next((n for n, text in enumerate(intervals) if text), 0)
    intervals[first] = intervals[first] and f"95 % confidence {intervals[first]}"
    told = [
        _effect(v, interval, than=base if n == 0 else None)
        for n, (v, interval) in enumerate(zip(decided, intervals, strict=True))
    ]
    found = [f"{arm}{where}: {', '.join(told)}."]
    if ties and not brief:
        found.append(f"No difference found in {_list(ties)}.")
    if open_ and not brief:
        found.append(f"Nothing can be said of {_list([figure_name(v) for v in open_])}.")
    return found


def _strongest(decided: list[Verdict]) -> list[Verdict]:
    """The largest effects of either sign, largest first; of a class one for the wait up to the
    first token and one for the pace after it, which ITL, the longest gap and TPOT all measure."""
    best: dict[tuple[str, str, str], Verdict] = {}
    for verdict in sorted(decided, key=_size, reverse=True):
        latency = latency_key(verdict.key)
        what = latency[0] if latency else verdict.key
        what = "itl" if what in ("longest_gap", "tpot") else what
        best.setdefault((verdict.class_name, what, verdict.outcome), verdict)
    ordered = list(best.values())
    kept = ordered[:_EFFECTS]
    for outcome in ("better", "worse"):  # both sides are heard
        if not any(v.outcome == outcome for v in kept):
            kept = [*kept[: _EFFECTS - 1], *[v for v in ordered if v.outcome == outcome][:1]]
    return sorted(kept, key=_size, reverse=True)


def _size(verdict: Verdict) -> float:
    """How large an effect is, on a scale on which halving and doubling are equal."""
    return abs(math.log(verdict.ratio)) if verdict.ratio else math.inf


def figure_name(verdict: Verdict) -> str:
    """``p99 ITL of short requests``."""
    latency = latency_key(verdict.key)
    if latency is None:
        name = _NAMES.get(verdict.key, verdict.key.replace("_", " "))
    else:
        statistic = verdict.key.rpartition("_")[2]
        name = f"{_STATISTICS[statistic]} {_LATENCIES[latency[0]]}"
    return name if verdict.class_name == ALL else f"{name} of {verdict.class_name} requests"


def _effect(verdict: Verdict, interval: str, *, than: str | None) -> str:
    if not verdict.ratio:
        values = f"{_plain(verdict, verdict.value)} against {_plain(verdict, verdict.base_value)}"
        return f"{figure_name(verdict)} is {values}{f' with {than}' if than else ''}"
    said = _change(verdict.ratio) + (f" than with {than}" if than else "")
    return f"{figure_name(verdict)} is {said}{f' ({interval})' if interval else ''}"


def _plain(verdict: Verdict, value: float | None) -> str:
    if value is None:
        return "none"
    if verdict.key in PRICES:
        return f"${value:.3g}"
    return f"{value:.3g}{_UNITS.get(verdict.key, '')}"


def _change(ratio: float) -> str:
    if ratio >= 2:
        return f"{_times(ratio)} times higher"
    if ratio <= 0.5:
        return f"{_times(1 / ratio)} times lower"
    return f"{_percent(ratio)} {'higher' if ratio > 1 else 'lower'}"


def _interval(verdict: Verdict) -> str:
    """The interval in the words of the change, from the smaller to the larger effect."""
    ratio, low, high = verdict.ratio, verdict.low, verdict.high
    if not ratio or low is None or high is None or high <= 0:
        return ""
    if ratio >= 2:
        return f"{_times(max(low, 0.0))} to {_times(high)}"
    if ratio <= 0.5:
        return f"{_times(1 / high)} to {_times(1 / low) if low > 0 else 'any number'}"
    near, far = (low, high) if ratio > 1 else (high, low)
    return f"{_percent(near)} to {_percent(far)}"


def _times(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.1f}"


def _percent(ratio: float) -> str:
    change = abs(ratio - 1) * 100
    return f"{change:.0f} %" if change >= 9.5 else f"{change:.1f} %"


def _list(names: Sequence[str]) -> str:
    shown = list(dict.fromkeys(names))
    if len(shown) > _TIES:
        shown = [*shown[: _TIES - 1], f"{len(shown) - _TIES + 1} other figures"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _errors(pool: Pool, level: float) -> str:
    """Said whenever more than a hundredth of an arm's requests failed."""
    failed = []
    for arm in pool.arms:
        errors, of = pool.total(arm, level, ALL, "error_share")
        if of and errors / of > ERRORS_TOLERATED:
            failed.append(f"{errors / of * 100:.3g} % of {arm}'s requests")
    return f"Failed: {_list(failed)}; they are in no latency." if failed else ""

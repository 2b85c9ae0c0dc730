"""From records to what may be said of a comparison.

``analyse`` decides first which pairs of blocks count, and only then looks at values. A pair with
one invalid block is left out whole, or the arms would be compared under different loads. What it
finds is repeatable: the only lots drawn are the bootstrap's, from ``seed``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.compare.analysis_headline import headline
from benchmarks.compare.analysis_pool import MAX_RATE, Pool, Runs, max_rates
from benchmarks.compare.series import Stages, all_series
from benchmarks.compare.verdicts import ALL_LEVELS, Primary, judge
from benchmarks.comparison import Arm, Block, Estimate, Metric, Series, Verdict
from benchmarks.metrics import ALL
from benchmarks.plan import Slo
from benchmarks.records import Problem
from benchmarks.stats import MIN_PAIRS, interval, pooled_ratio

__all__ = ["Analysis", "analyse"]


@dataclass(frozen=True, slots=True)
class Analysis:
    """Everything that follows from the records of a comparison."""

    metrics: list[Metric]
    verdicts: list[Verdict]
    series: list[Series]
    headline: list[str]
    problems: list[Problem]


def analyse(
    arms: Sequence[Arm],
    blocks: Sequence[Block],
    runs: Runs,
    *,
    slos: Mapping[str, Slo],
    seed: int = 0,
    resamples: int = 2000,
    primary: Primary | None = None,
    stages: Stages | None = None,
) -> Analysis:
    """Compare all arms with the first one.

    Args:
        arms: the base first.
        blocks: what was measured; ``counted`` of each is set here.
        runs: records by arm name, level and pair.
        slos: by class; those of ``all`` hold for classes without their own.
        seed: of the bootstrap.
        resamples: bootstrap draws.
        primary: class and key of the verdicts, instead of those that ``verdicts`` chooses.
        stages: mean seconds of the stages up to the first token by arm, if servers said so.
    """
    pairs, problems = count_pairs(arms, blocks, runs)
    pool = Pool.make(arms, runs, pairs, slos, resamples=resamples, seed=seed)
    metrics = all_metrics(pool)
    verdicts = judge(pool, primary)
    return Analysis(
        metrics=metrics,
        verdicts=verdicts,
        series=all_series(pool, runs, metrics, stages),
        headline=headline(pool, verdicts),
        problems=[*problems, *_remarks(pool)],
    )


def count_pairs(
    arms: Sequence[Arm], blocks: Sequence[Block], runs: Runs
) -> tuple[dict[float, tuple[int, ...]], list[Problem]]:
    """The pairs that count, by level, and what is wrong with the others. Sets ``counted``.

    A pair counts if every arm has a block in it that was recorded, whole and valid, and all of
    them sent the same plan.
    """
    counted: dict[float, tuple[int, ...]] = {}
    problems: list[Problem] = []
    for level in sorted({block.level for block in blocks}):
        good: list[int] = []
        lost: list[str] = []
        for pair in sorted({block.pair for block in blocks if block.level == level}):
            mine = [block for block in blocks if (block.level, block.pair) == (level, pair)]
            reason = _wrong(arms, mine, runs, level, pair)
            for block in mine:
                block.counted = reason is None
            if reason is None:
                good.append(pair)
            else:
                lost.append(f"pair {pair + 1}: {reason}")
        counted[level] = tuple(good)
        if len(good) < MIN_PAIRS:
            left_out = f" Left out: {'; '.join(lost)}." if lost else ""
            text = (
                f"load {level:g}: {len(good)} counted pairs; a verdict needs {MIN_PAIRS}, so "
                f"{MIN_PAIRS - len(good)} are missing.{left_out} Run more pairs."
            )
            problems.append(Problem("too_few", text, fatal=False))
        elif lost:
            text = f"load {level:g}: {len(lost)} pairs were left out: {'; '.join(lost)}"
            problems.append(Problem("pairs_left_out", text, fatal=False))
    if blocks and not any(counted.values()):
        text = "Not one repetition counted, so nothing here is a figure of this comparison."
        problems.insert(0, Problem("no_pairs", text))
    return counted, problems


def _wrong(
    arms: Sequence[Arm], mine: Sequence[Block], runs: Runs, level: float, pair: int
) -> str | None:
    """Why a pair does not count, or None."""
    by_arm = {block.arm: block for block in mine}
    versions: set[str] = set()
    for arm in arms:
        block, run = by_arm.get(arm.name), runs.get((arm.name, level, pair))
        if block is None or run is None:
            return f"{arm.name} was not measured"
        fatal = _first_fatal(block.problems) or _first_fatal(run.meta.problems)
        if fatal is not None:
            return f"{arm.name} is invalid ({fatal.code})"
        if not run.meta.complete:
            return f"{arm.name} was interrupted"
        versions.add(str(run.meta.plan.get("version", "")))
    return "the arms were sent different plans" if len(versions) > 1 else None


def _first_fatal(problems: Iterable[Problem]) -> Problem | None:
    return next((problem for problem in problems if problem.fatal), None)


def all_metrics(pool: Pool) -> list[Metric]:
    """Every figure of every arm, level and class, and ``max_rate`` over all levels (level 0)."""
    found = [
        Metric(
            arm=arm, level=level, class_name=class_name, key=key,
            estimate=pool.estimate(arm, level, class_name, key),
        )
        for level in pool.levels
        for arm in pool.arms
        for class_name in pool.classes(level)
        for key in pool.keys(arm, level, class_name)
    ]  # fmt: skip
    for arm in pool.arms:
        rates = max_rates(pool, arm)
        if rates:
            found.append(
                Metric(
                    arm=arm, level=ALL_LEVELS, class_name=ALL, key=MAX_RATE,
                    estimate=_rate_estimate(pool, [found.rate for found in rates.values()]),
                )
            )  # fmt: skip
    return found


def _rate_estimate(pool: Pool, rates: list[float]) -> Estimate:
    draws = pool.draws(len(rates))
    figure = pooled_ratio(np.array(rates), np.ones(len(rates)), draws)
    low, high = interval(figure, draws)
    return Estimate(value=figure.value, low=low, high=high, n=len(rates))


def _remarks(pool: Pool) -> list[Problem]:
    """What a reader of the figures should know."""
    found: list[Problem] = []
    for level in pool.levels:
        for arm in pool.arms:
            mine = pool.each(arm, level, ALL).values()
            missing = sum(part.usage_missing for part in mine)
            if missing:
                text = (
                    f"{arm}, load {level:g}: {missing} whole answers came without a token count; "
                    "they have no TPOT and are in no figure of output tokens"
                )
                found.append(Problem("no_usage", text, fatal=False))
            if pool.saturated(arm, level):
                text = (
                    f"{arm}, load {level:g}: served less than fell due, so its queue grew: its "
                    "latencies say how long the block was"
                )
                found.append(Problem("saturated", text, fatal=False))
    return found

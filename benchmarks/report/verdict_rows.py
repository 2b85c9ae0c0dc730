"""Verdicts and figures of a comparison as rows of words, in reading order.

What a result does not hold is said to be missing, never filled in: an unknown outcome has no
mark, and a figure from too few samples says how few.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.comparison import CompareResult, Estimate, Metric, Verdict
from benchmarks.report.names import (
    DASH,
    change_text,
    figure,
    interval_text,
    outcome_symbol,
    outcome_word,
    value_text,
)
from benchmarks.report.words import class_order, class_title

ECONOMY = (
    "goodput_rps",
    "goodput_per_accelerator",
    "max_rate",
    "output_tokens_per_s",
    "output_tokens_per_s_per_accelerator",
    "usd_per_million_good_tokens",
    "usd_per_million_tokens",
)


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a ratio and its interval stand on a logarithmic axis, 0 to 100 with no difference
    at 50. ``low`` and ``high`` are None without an interval."""

    at: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class VerdictRow:
    """One verdict in words."""

    class_name: str
    level: float
    label: str
    better: str
    base: str
    value: str
    change: str
    interval: str
    outcome: str
    word: str
    symbol: str
    note: str
    mark: Mark | None


@dataclass(frozen=True, slots=True)
class VerdictGroup:
    """Rows of one class at one level."""

    title: str
    rows: tuple[VerdictRow, ...]


@dataclass(frozen=True, slots=True)
class ArmVerdicts:
    """All verdicts on one arm: those the headline rests on, and the others. ``glance`` shows the
    former over all levels, and is empty where there is one level."""

    arm: str
    base: str
    glance: tuple[GlanceRow, ...]
    primary: tuple[VerdictGroup, ...]
    others: tuple[VerdictGroup, ...]


@dataclass(frozen=True, slots=True)
class GlanceRow:
    """One figure of one arm over all levels: outcome, symbol and change per level, None where
    there is no verdict. A verdict over all levels has one cell, for all of them."""

    title: str
    cells: tuple[tuple[str, str, str] | None, ...]


@dataclass(frozen=True, slots=True)
class FigureRow:
    """One figure of all arms, a cell per arm: value, interval, remark."""

    label: str
    cells: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True)
class FigureGroup:
    """Figures of one class at one level."""

    title: str
    rows: tuple[FigureRow, ...]


def arm_verdicts(result: CompareResult) -> list[ArmVerdicts]:
    """Verdicts by arm, in the order of the arms."""
    scale = _scale(result.verdicts)
    known = [arm.name for arm in result.arms]
    names = [n for n in known if any(v.arm == n for v in result.verdicts)]
    names += sorted({v.arm for v in result.verdicts} - set(known))
    found = []
    for name in names:
        own = [v for v in result.verdicts if v.arm == name]
        found.append(
            ArmVerdicts(
                arm=name,
                base=own[0].base,
                glance=_glance([v for v in own if v.primary], result),
                primary=_groups((v for v in own if v.primary), result, scale),
                others=_groups((v for v in own if not v.primary), result, scale),
            )
        )
    return found


def economy_groups(result: CompareResult) -> list[FigureGroup]:
    """Goodput, goodput per accelerator and prices, where they are known."""
    return _figure_groups(
        result, [m for m in result.metrics if m.class_name == "all" and m.key in ECONOMY]
    )


def figure_groups(result: CompareResult) -> list[FigureGroup]:
    """Every figure of every arm."""
    return _figure_groups(result, result.metrics)


def _groups(
    verdicts: Iterable[Verdict], result: CompareResult, scale: float
) -> tuple[VerdictGroup, ...]:
    rows: dict[tuple[float, str], list[VerdictRow]] = {}
    for verdict in verdicts:
        key = (verdict.level, verdict.class_name)
        rows.setdefault(key, []).append(_verdict_row(verdict, scale))
    places = class_order(result)
    ordered = sorted(rows.items(), key=lambda item: (item[0][0], places.index(item[0][1])))
    return tuple(
        VerdictGroup(class_title(name, level, result.levels), tuple(found))
        for (level, name), found in ordered
    )


def _glance(verdicts: Sequence[Verdict], result: CompareResult) -> tuple[GlanceRow, ...]:
    if len(result.levels) < 2:
        return ()
    found: dict[tuple[str, str], dict[float, Verdict]] = {}
    for verdict in verdicts:
        found.setdefault((verdict.class_name, verdict.key), {})[verdict.level] = verdict
    places = class_order(result)
    rows = []
    for (name, key), by_level in sorted(found.items(), key=lambda item: places.index(item[0][0])):
        # Level zero stands for a verdict over all levels.
        levels = [0.0] if set(by_level) == {0.0} else result.levels
        cells = tuple(_glance_cell(by_level.get(level)) for level in levels)
        rows.append(GlanceRow(f"{class_title(name, 0, ())}: {figure(key).label}", cells))
    return tuple(rows)


def _glance_cell(verdict: Verdict | None) -> tuple[str, str, str] | None:
    if verdict is None:
        return None
    row = _verdict_row(verdict, 1.0)
    return row.outcome, row.symbol, row.word if row.outcome == "unknown" else row.change


def _verdict_row(verdict: Verdict, scale: float) -> VerdictRow:
    return VerdictRow(
        class_name=verdict.class_name,
        level=verdict.level,
        label=figure(verdict.key).label,
        better=f"{verdict.better} is better",
        base=value_text(verdict.key, verdict.base_value),
        value=value_text(verdict.key, verdict.value),
        change=change_text(verdict.ratio),
        interval=interval_text(verdict.ratio, verdict.low, verdict.high),
        outcome=verdict.outcome if verdict.outcome in ("better", "worse", "tie") else "unknown",
        word=outcome_word(verdict.outcome),
        symbol=outcome_symbol(verdict.outcome),
        note=verdict.note,
        mark=_mark(verdict, scale),
    )


def _scale(verdicts: Sequence[Verdict]) -> float:
    """The logarithm at either end of the marks' axis: 1.5x at least, 64x at most."""
    logs = [
        abs(math.log2(value))
        for verdict in verdicts
        for value in (verdict.ratio, verdict.low, verdict.high)
        if verdict.outcome in ("better", "worse", "tie")
        and value is not None
        and value > 0
        and math.isfinite(value)
    ]
    return min(6.0, max([math.log2(1.5), *logs]))


def _mark(verdict: Verdict, scale: float) -> Mark | None:
    def place(ratio: float) -> float:
        log = math.log2(ratio) if ratio > 0 else -scale
        return round(50 + 50 * max(-1.0, min(1.0, log / scale)), 1)

    if verdict.outcome not in ("better", "worse", "tie"):
        return None
    if verdict.ratio is None or verdict.ratio <= 0 or not math.isfinite(verdict.ratio):
        return None
    if verdict.low is None or verdict.high is None:
        return Mark(place(verdict.ratio), None, None)
    return Mark(place(verdict.ratio), place(verdict.low), place(verdict.high))


def _figure_groups(result: CompareResult, metrics: Sequence[Metric]) -> list[FigureGroup]:
    found: dict[tuple[float, str, str], dict[str, Estimate]] = {}
    for metric in metrics:
        key = (metric.level, metric.class_name, metric.key)
        found.setdefault(key, {})[metric.arm] = metric.estimate
    places = class_order(result)
    groups: dict[str, list[FigureRow]] = {}
    for (level, name, figure_key), by_arm in sorted(
        found.items(), key=lambda item: (item[0][0], places.index(item[0][1]))
    ):
        cells = tuple(_cell(figure_key, by_arm.get(arm.name)) for arm in result.arms)
        title = class_title(name, level, result.levels)
        groups.setdefault(title, []).append(FigureRow(figure(figure_key).label, cells))
    return [FigureGroup(title, tuple(rows)) for title, rows in groups.items()]


def _cell(key: str, estimate: Estimate | None) -> tuple[str, str, str]:
    if estimate is None or estimate.value is None:
        return DASH, "", ""
    interval = ""
    if estimate.low is not None and estimate.high is not None:
        interval = f"{value_text(key, estimate.low)} to {value_text(key, estimate.high)}"
    remark = "" if estimate.enough else f"too few: n = {estimate.n:,}"
    return value_text(key, estimate.value), interval, remark

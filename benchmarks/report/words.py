"""Titles and sentences about a whole comparison that the page, Markdown and terminal share.

It picks and words what the result holds, and works out nothing from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from benchmarks.comparison import CompareResult, Metric, Series, Verdict
from benchmarks.report.names import DEFINITIONS, figure


def class_order(result: CompareResult) -> list[str]:
    """All classes in the order in which the result names them; ``all`` last."""
    rows: list[Verdict | Metric | Series] = [*result.verdicts, *result.metrics, *result.series]
    names = dict.fromkeys(row.class_name for row in rows)
    return [*(name for name in names if name != "all"), "all"]


def calm_level(result: CompareResult, levels: Sequence[float]) -> float | None:
    """The highest of the levels at which no arm saturated, which tells most; the lowest if all
    saturated one, None if there are none."""
    # A rate series has a point per level, in the order of the levels.
    full = {
        level
        for series in result.series
        if series.chart.startswith("rate_") and len(series.x) == len(result.levels)
        for level, saturated in zip(sorted(result.levels), series.saturated, strict=False)
        if saturated
    }
    calm = [level for level in levels if level not in full]
    return max(calm) if calm else min(levels, default=None)


def class_title(class_name: str, level: float, levels: Sequence[float]) -> str:
    """How a class at a level is called."""
    name = "all requests" if class_name == "all" else class_name
    if len(levels) < 2:
        return name
    return f"{name}, {level_title(level)}" if level else f"{name}, over all loads"


def level_title(level: float) -> str:
    """How a level of load is called; levels are factors on the workload's own rates."""
    return f"{level:g}x load"


def workload_name(workload: Mapping[str, Any]) -> str:
    """The name in a workload as plain data: a document's metadata, or a plan's ``workload``."""
    metadata = workload.get("metadata")
    named = metadata.get("name") if isinstance(metadata, Mapping) else None
    return str(named or workload.get("workload") or workload.get("name") or "")


def subtitle(result: CompareResult) -> str:
    """One line under the headline: who was compared, on what, how often."""
    base, *others = [arm.name for arm in result.arms] or ["no arms"]
    counted = sum(block.counted for block in result.blocks)
    work = workload_name(result.workload) or "without a name"
    against = f"{', '.join(others)} against {base}" if others else base
    return f"{against}, workload {work}, {counted} of {len(result.blocks)} blocks counted"


def badge(result: CompareResult) -> tuple[str, str]:
    """The badge and what it means."""
    if result.badge == "real":
        return "REAL", "engines answered; nothing here is modelled"
    if result.badge == "simulated":
        return "SIMULATED", "a model of engines answered, not engines"
    return result.badge.upper(), "not a comparison of real engines"


def alarm(result: CompareResult) -> tuple[str, list[str]] | None:
    """What has to be said before anything else, with reasons; None if nothing has."""
    reasons = [problem.text for problem in result.problems if problem.fatal]
    if reasons:
        return "Do not rely on this comparison.", reasons
    if not result.complete:
        return "This comparison was interrupted.", [
            problem.text for problem in result.problems if problem.code == "interrupted"
        ]
    return None


def notes(result: CompareResult) -> list[str]:
    """What a reader should know without the comparison being invalid."""
    return [
        problem.text
        for problem in result.problems
        if not problem.fatal and (result.complete or problem.code != "interrupted")
    ]


def definitions(result: CompareResult) -> list[tuple[str, str]]:
    """Definitions of what this report shows, and of how to read its verdicts."""
    keys = {m.key for m in result.metrics} | {v.key for v in result.verdicts}
    used = {figure(key).definition for key in keys}
    names = {"cdf_itl": "ITL", "cdf_ttft": "TTFT", "cdf_tpot": "TPOT", "cdf_e2e": "E2E"}
    used |= {names[s.chart] for s in result.series if s.chart in names}
    if any(any(s.saturated) for s in result.series):
        used.add("Saturated")
    used |= {"Interval", "Tie", "Unknown", "Cache hits"}
    return [(name, text) for name, text in DEFINITIONS.items() if name in used]


def when(wall_s: float) -> str:
    """A moment in UTC."""
    return datetime.fromtimestamp(wall_s, UTC).strftime("%Y-%m-%d %H:%M UTC")


def took(seconds: float) -> str:
    """A duration as a person says it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"

"""Puts the parts of a comparison's result together: figures, server figures, differences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.compare.analysis import analyse
from benchmarks.comparison import CompareResult
from benchmarks.engine_side import agreements, combined_figures, stages
from benchmarks.records import Problem, Run

Runs = Mapping[tuple[str, float, int], Run]


def assemble(result: CompareResult, runs: Runs) -> None:
    """Fills in everything that follows from the records. Repeatable."""
    by_arm = {
        arm.name: [
            runs[block.arm, block.level, block.pair]
            for block in result.blocks
            if block.arm == arm.name and not _broken(block.problems)
        ]
        for arm in result.arms
    }
    result.agreements = [entry for name, mine in by_arm.items() for entry in agreements(name, mine)]
    result.servers = {name: combined_figures(mine) for name, mine in by_arm.items()}
    analysis = analyse(
        result.arms,
        result.blocks,
        runs,
        slos=result.slos,
        stages={name: stages(mine) for name, mine in by_arm.items()},
    )
    result.metrics = analysis.metrics
    result.verdicts = analysis.verdicts
    result.series = analysis.series
    result.headline = analysis.headline
    kept = [problem for problem in result.problems if problem.code == "failed"]
    result.problems = [*kept, *analysis.problems]
    if not result.complete:
        result.problems.insert(
            0,
            Problem(
                "interrupted",
                f"ended after {len(result.blocks)} of "
                f"{len(result.arms) * len(result.levels) * result.pairs} blocks",
                fatal=False,
            ),
        )
    for entry in result.agreements:
        if not entry.agrees:
            result.problems.append(
                Problem(
                    "disagreement",
                    f"{entry.arm}: {entry.what} is {entry.client:g} {entry.unit} for the client "
                    f"and {entry.server:g} for the server. {entry.note}".rstrip(),
                    fatal=False,
                )
            )
    result.config_differences = config_differences(result)


def _broken(problems: list[Problem]) -> bool:
    return any(problem.fatal for problem in problems)


def config_differences(result: CompareResult) -> list[dict[str, Any]]:
    """Every setting in which the arms' profiles differ: ``{"field": ..., ARM: value, ...}``."""
    flat = {
        arm.name: dict(_flat(arm.profile_spec))
        for arm in result.arms
        if arm.profile_spec is not None
    }
    fields = sorted({field for values in flat.values() for field in values})
    rows = []
    for field in fields:
        values = {name: mine.get(field) for name, mine in flat.items()}
        if len({repr(value) for value in values.values()}) > 1:
            rows.append({"field": field, **values})
    return rows


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value

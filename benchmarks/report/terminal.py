"""Results in a terminal: the headline first, then the verdicts, then what is wrong.

Everything that came from outside is written as plain text, never as rich's markup, and without
control characters: a server's error message must not be able to steer a terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.comparison import CompareResult
from benchmarks.engine_side import agreements, server_figures
from benchmarks.metrics import LATENCIES, PERCENTILES, enough
from benchmarks.records import Problem, Run
from benchmarks.report import words
from benchmarks.report.names import (
    DASH,
    SERVER_FIGURES,
    Kind,
    figure,
    kind_text,
    server_cells,
    server_columns,
)
from benchmarks.report.verdict_rows import arm_verdicts

_STYLES = {"better": "green", "worse": "red", "tie": "dim", "unknown": "dim yellow"}
_STATISTICS = ("mean", *PERCENTILES, "max")
_RATES = (
    "requests_per_s",
    "output_tokens_per_s",
    "goodput_rps",
    "attainment",
    "error_share",
    "chunks_per_token",
)


def show(result: CompareResult, console: Console) -> None:
    """Prints a comparison: headline, verdicts of each arm, problems."""
    word, meaning = words.badge(result)
    for place, line in enumerate(result.headline or ["No verdict: too little was measured"]):
        console.print(_text(line, "bold" if place == 0 else ""))
    console.print(_text(f"{word}: {meaning}. {words.subtitle(result)}.", "dim"))
    for entry in arm_verdicts(result):
        if not entry.primary:
            continue
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name in ("", "figure", entry.base, entry.arm, "change", "interval", "outcome"):
            right = name in (entry.base, entry.arm)
            table.add_column(_text(name), justify="right" if right else "left", overflow="fold")
        for group in entry.primary:
            for place, row in enumerate(group.rows):
                known = row.outcome != "unknown"
                table.add_row(
                    _text(group.title if place == 0 else ""),
                    _text(row.label),
                    _text(row.base),
                    _text(row.value),
                    _text(row.change, "bold" if known else "dim"),
                    _text(row.interval),
                    _text(f"{row.symbol} {row.word}", _STYLES[row.outcome]),
                )
        console.print()
        console.print(table)
    alarm = words.alarm(result)
    console.print()
    if alarm is not None:
        console.print(_text(alarm[0], "bold red"))
    _problems(result.problems, console)
    left_out = sum(not block.counted for block in result.blocks)
    if left_out:
        console.print(_text(f"{left_out} of {len(result.blocks)} blocks do not count.", "dim"))


def show_run(run: Run, summary: Mapping[str, Any], console: Console) -> None:
    """Prints a run.

    Args:
        run: what was measured.
        summary: ``metrics.summarise(run)``; figures that it lacks are left out.
        console: where to.
    """
    meta = run.meta
    where = f"{meta.target.get('model') or 'a model'} at {meta.target.get('url', DASH)}"
    workload = meta.plan.get("workload", DASH)
    console.print(_text(f"{workload} on {where}, {meta.duration_s:g} s", "bold"))
    console.print(_text(f"{len(run.records)} requests, {words.when(meta.started_wall_s)}", "dim"))
    classes = [name for name in summary if name != "all"]
    for name in ["all", *classes] if len(classes) > 1 else ["all"] if "all" in summary else classes:
        figures = summary.get(name)
        if isinstance(figures, Mapping):
            _class(words.class_title(name, 0, ()), figures, console)
    _servers(run, console)
    if not meta.complete:
        console.print(_text("The run was interrupted.", "bold red"))
    elif not meta.valid:
        console.print(_text("The run is not valid.", "bold red"))
    _problems(meta.problems, console)


def _class(title: str, figures: Mapping[str, Any], console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(_text(title, "bold"))
    for statistic in _STATISTICS:
        table.add_column(_text(statistic), justify="right")
    table.add_column(_text("n"), justify="right")
    for key in LATENCIES:
        found = figures.get(key)
        if not isinstance(found, Mapping) or not found.get("n"):
            continue
        samples = int(found["n"])
        cells = [_statistic(name, found.get(name), samples) for name in _STATISTICS]
        table.add_row(_text(figure(key).label), *cells, _text(f"{samples:,}"))
    console.print()
    console.print(table)
    parts = []
    for key in _RATES:
        found = figures.get(key)
        value = found.get("value") if isinstance(found, Mapping) else None
        if value is not None:
            known = figure(key)
            parts.append(f"{known.label} {kind_text(known.kind, float(value))}")
    if parts:
        console.print(_text(" · ".join(parts)))
    reasons = figures.get("errors_by_reason")
    if isinstance(reasons, Mapping) and reasons:
        listed = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        console.print(_text(f"Errors: {listed}", "red"))


def _servers(run: Run, console: Console) -> None:
    """What the servers say of themselves, and whether they agree."""
    known = server_figures(run.scrapes)
    columns = server_columns(known.values())
    if not columns:
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(_text("servers", "bold"))
    for key in columns:
        table.add_column(_text(SERVER_FIGURES[key].label), justify="right")
    for source, figures in known.items():
        table.add_row(_text(source), *map(_text, server_cells(figures, columns)))
    console.print()
    console.print(table)
    for entry in agreements("", [run]):
        word = "as the client" if entry.agrees else f"the client says {entry.client:g}"
        line = f"{entry.what}: {entry.server:g} {entry.unit}".rstrip()
        console.print(_text(f"{line}, {word}", "dim" if entry.agrees else "yellow"))


def _statistic(name: str, value: float | None, samples: int) -> Text:
    """A percentile from too few samples to be quoted is bracketed."""
    text = kind_text(Kind.SECONDS, value)
    if name in PERCENTILES and not enough(PERCENTILES[name], samples):
        return _text(f"({text})", "dim")
    return _text(text)


def _problems(problems: Iterable[Problem], console: Console) -> None:
    for problem in problems:
        line = _text("✗ " if problem.fatal else "! ", "red" if problem.fatal else "yellow")
        line.append_text(_text(problem.text))
        console.print(line)


def _text(value: str, style: str = "") -> Text:
    """Plain text without control characters."""
    clean = "".join(c if c.isprintable() else " " for c in value)
    return Text(clean, style=style)

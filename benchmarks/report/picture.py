"""One picture of a comparison, for a README: who wins by how much, and what a stream feels like.

A standalone SVG that follows the reader's theme by itself. It shows the verdicts that are decided
or tied, with their intervals, and the gaps between tokens of the class in which the arms differ
most. What is unknown is not drawn.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks.comparison import CompareResult, Series, Verdict
from benchmarks.report import plot
from benchmarks.report.names import change_text, figure, outcome_symbol
from benchmarks.report.palette import (
    INK,
    MUTED,
    OUTCOME,
    PAPER,
    arm_colour,
    arm_dashes,
    arm_marker,
    css_variables,
)
from benchmarks.report.svg import styled, to_svg
from benchmarks.report.words import badge, calm_level, class_title

KINDS = ("summary", "verdicts", "itl")
MAX_LANES = 14
"""Verdicts in the picture, rows times arms; more cannot be read at 800 pixels."""

WIDTH = 800 / 72
_TITLE_LINES = 4
_SPANS = {"verdicts": (0.2, 0.34), "itl": (0.705, 0.275)}
_FONT = "system-ui,-apple-system,Segoe UI,Roboto,Helvetica,Arial,sans-serif"


def render_picture(result: CompareResult, kind: str = "summary") -> str:
    """A standalone SVG, 800 pixels wide.

    Args:
        result: the comparison.
        kind: ``summary`` for both panels, ``verdicts`` or ``itl`` for one of them.

    Raises:
        ValueError: for another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is one of {', '.join(KINDS)}, not {kind!r}")
    rows = _rows(result)
    lines = _itl_lines(result)
    panels = [name for name in KINDS[1:] if kind in ("summary", name)]
    headline = (result.headline or ["No verdict: too little was measured"])[0]
    title = _title(headline)
    lanes = max(1, len(result.arms) - 1)
    body = max(2.6, len(rows) * (0.16 + 0.2 * lanes)) if "verdicts" in panels else 2.8
    above, below = (0.75 if lanes == 1 else 0.98) + 0.3 * len(title), 0.95
    height = above + body + below
    with styled():
        drawing = Figure(figsize=(WIDTH, height), facecolor=PAPER)
        spans = _SPANS if len(panels) == 2 else {"verdicts": (0.27, 0.56), "itl": (0.07, 0.88)}
        for panel in panels:
            left, width = spans[panel]
            axes = drawing.add_axes((left, below / height, width, body / height))
            axes.set_facecolor("none")
            if panel == "verdicts":
                _forest(axes, rows, result)
            else:
                _stream(axes, lines, legend=lanes == 1)
        for place, line in enumerate(title):
            at = 1 - (0.38 + 0.3 * place) / height
            drawing.text(0.02, at, line, fontsize=16, weight="bold", color=INK)
        if lanes > 1:
            _legend(drawing, [arm.name for arm in result.arms], 1 - (above - 0.56) / height)
        drawing.text(0.02, 0.16 / height, _foot(result), fontsize=10, color=MUTED)
        svg = to_svg(drawing, ident="picture", title=headline, description=_words(result, rows))
    style = (
        f"<style>:root{{{css_variables('light')}--font:{_FONT}}}"
        f"@media (prefers-color-scheme:dark){{:root{{{css_variables('dark')}}}}}</style>"
    )
    head, body_text = svg.split(">", 1)
    return f"{head}>{style}{body_text}\n"


def _rows(result: CompareResult) -> list[tuple[str, list[Verdict]]]:
    """Label and verdicts (one per arm) of each row, at the level that tells most."""
    level = calm_level(result, sorted({v.level for v in result.verdicts} - {0.0}))
    rows: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in result.verdicts:
        drawn = verdict.outcome in ("better", "worse", "tie") and verdict.primary
        if drawn and verdict.level in (level, 0.0) and verdict.ratio and verdict.ratio > 0:
            rows.setdefault((verdict.class_name, verdict.key), []).append(verdict)
    named = [
        (_wrapped(figure(key).label + (f", {name}" if name != "all" else "")), found)
        for (name, key), found in rows.items()
    ]
    return named[: max(4, min(9, MAX_LANES // max(1, len(result.arms) - 1)))]


def _itl_lines(result: CompareResult) -> list[tuple[int, Series]]:
    levels = sorted({s.level or 0.0 for s in result.series if s.chart == "cdf_itl"})
    level = calm_level(result, levels)
    found = [s for s in result.series if s.chart == "cdf_itl" and (s.level or 0.0) == level]
    apart = [
        (abs(math.log(v.ratio)), v.class_name)
        for v in result.verdicts
        if v.key.startswith("itl") and v.ratio and v.ratio > 0
    ]
    classes = [name for _, name in sorted(apart, reverse=True)] + [s.class_name for s in found]
    chosen = next((n for n in classes if any(s.class_name == n for s in found)), None)
    places = {arm.name: index for index, arm in enumerate(result.arms)}
    return [(places[s.arm], s) for s in found if s.class_name == chosen and s.arm in places]


def _forest(axes: Axes, rows: Sequence[tuple[str, list[Verdict]]], result: CompareResult) -> None:
    arms = [arm.name for arm in result.arms]
    several = len(arms) > 2
    low = high = 1.0
    for row, (_, verdicts) in enumerate(rows):
        for lane, verdict in enumerate(verdicts):
            assert verdict.ratio is not None
            place = arms.index(verdict.arm) if verdict.arm in arms else 1
            colour = arm_colour(place) if several else OUTCOME[verdict.outcome]
            at = row + (lane - (len(verdicts) - 1) / 2) * 0.76 / len(verdicts)
            bounds = [verdict.ratio]
            if verdict.low and verdict.high:
                axes.plot([verdict.low, verdict.high], [at, at], color=colour, linewidth=2.4)
                bounds += [verdict.low, verdict.high]
            marker = arm_marker(place) if several else "o"
            axes.plot([verdict.ratio], [at], marker=marker, color=colour, markersize=8)
            text = f"{outcome_symbol(verdict.outcome)} {change_text(verdict.ratio)}"
            axes.annotate(
                text,
                (1.015, at),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=9.5 if several else 11.5,
                color=colour if not several else INK,
            )
            low, high = min(low, *bounds), max(high, *bounds)
    axes.axvline(1, color=MUTED, linewidth=1.2)
    axes.set_xscale("log")
    low, high = min(low / 1.15, 0.8), max(high * 1.15, 1.25)
    axes.set_xlim(low, high)
    step = next((s for s in (2, 4, 16) if math.log(high / low, s) < 4.6), 64)
    marks = [step**n for n in range(-8, 9) if low <= step**n <= high]
    if len(marks) == 1:
        marks = [0.8, 1.0, 1.25]
    axes.xaxis.set_major_locator(FixedLocator([float(mark) for mark in marks]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _ratio_tick(x)))
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.tick_params(axis="y", labelsize=11.5, labelcolor=INK)
    axes.tick_params(axis="x", labelsize=11)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    base = arms[0] if arms else "the base"
    axes.set_xlabel(f"times the value of {_short(base)} (log scale)", fontsize=11)
    axes.set_title("Verdicts and intervals", loc="left", fontsize=12, color=INK)


def _legend(drawing: Figure, arms: Sequence[str], at: float) -> None:
    """All arms in one row under the title, for pictures of more than two."""
    limit = max(8, 110 // len(arms) - 5)
    handles = []
    for place, name in enumerate(arms):
        marker = arm_marker(place) if place else ""
        handle = Line2D([], [], color=arm_colour(place), marker=marker, label=_short(name, limit))
        handle.set_dashes(arm_dashes(place) or (None, None))
        handles.append(handle)
    drawing.legend(
        handles=handles,
        frameon=False,
        fontsize=10.5,
        ncols=len(handles),
        loc="center left",
        bbox_to_anchor=(0.012, at),
        borderaxespad=0,
        handlelength=2.2,
        columnspacing=1.2,
    )


def _stream(axes: Axes, lines: Sequence[tuple[int, Series]], *, legend: bool) -> None:
    plot.draw_cdf(axes, lines, "time between tokens")
    axes.xaxis.label.set_fontsize(11)
    axes.tick_params(labelsize=11)
    name = class_title(lines[0][1].class_name, 0, ()) if lines else "no streams"
    axes.set_title(f"Gaps in streams, {_short(name)}", loc="left", fontsize=12, color=INK)
    handles = [
        Line2D([], [], color=arm_colour(index), label=_short(series.arm)) for index, series in lines
    ]
    for (index, _), handle in zip(lines, handles, strict=True):
        handle.set_dashes(arm_dashes(index) or (None, None))
    if handles and legend:
        axes.legend(handles=handles, frameon=False, fontsize=10.5, loc="lower right")


def _foot(result: CompareResult) -> str:
    word, meaning = badge(result)
    counted = sum(block.counted for block in result.blocks)
    text = f"{word}: {meaning}. {counted} of {len(result.blocks)} blocks counted"
    return f"{text}, {result.confidence * 100:g} % intervals. {result.id}"


def _words(result: CompareResult, rows: Sequence[tuple[str, list[Verdict]]]) -> str:
    parts = [
        f"{v.arm} {label}: {change_text(v.ratio)} ({v.outcome})" for label, vs in rows for v in vs
    ]
    return f"{'; '.join(parts)}. {_foot(result)}."


def _ratio_tick(value: float) -> str:
    if abs(value - 1) < 1e-9:
        return "same"
    if value in (0.8, 1.25):
        return f"{value:g}x"
    return f"1/{1 / value:g}" if value < 1 else f"{value:g}x"


def _title(headline: str) -> list[str]:
    """The headline in four lines at most; whole clauses are left out, never half of one."""
    clauses = headline.rstrip(".").split(", ")
    while len(lines := textwrap.wrap(", ".join(clauses), 78)) > _TITLE_LINES and len(clauses) > 1:
        clauses.pop()
    return lines[:_TITLE_LINES]


def _wrapped(label: str) -> str:
    return "\n".join(textwrap.wrap(label, 24)[:2])


def _short(name: str, limit: int = 24) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"

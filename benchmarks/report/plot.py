"""Axes, lines and bands of the reports' charts, in one manner.

Every function here puts something onto axes that it is given. Arms are told apart by colour,
line style and marker; levels that saturated are hollow. Which charts there are is decided in
``charts``; nothing is computed from the data but where to draw it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from benchmarks.comparison import Series
from benchmarks.report.palette import MUTED, PAPER, SLO, arm_colour, arm_dashes, arm_marker

SIZE = (5.6, 3.5)
"""Inches of a chart; at 72 points per inch its text is readable from 330 pixels of width on."""

LOG_FROM = 30.0
"""Latencies that span more than this factor are drawn on a logarithmic axis."""

MAX_POINTS = 200
"""A line keeps this many points at most; more cannot be told apart on a page."""

FEW_POINTS = 60
"""Below this many points a CDF is drawn in steps; above, steps and slopes look the same."""


def one_axes(size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    """A figure of one chart. To be called inside ``svg.styled()``."""
    figure = Figure(figsize=size, facecolor="none", layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor("none")
    return figure, axes


def unit_of(values: Sequence[float]) -> tuple[float, str]:
    """Factor and name of the unit for these seconds: milliseconds while all are under 10 s."""
    return (1000.0, "ms") if max(values, default=0.0) < 10 else (1.0, "s")


def thinned(values: Sequence[float], keep: int = MAX_POINTS) -> list[float]:
    """At most ``keep`` of the values, evenly by place, the first and the last among them."""
    if len(values) <= keep:
        return list(values)
    step = (len(values) - 1) / (keep - 1)
    return [values[round(place * step)] for place in range(keep)]


def draw_cdf(axes: Axes, lines: Sequence[tuple[int, Series]], label: str) -> bool:
    """Cumulative shares of a latency, one line per arm; says whether the axis is logarithmic."""
    shown = [(index, *_rising(series)) for index, series in lines]
    # The fastest hundredth of the gaps would stretch a logarithmic axis by decades of nothing.
    lows = [
        next((x for x, y in zip(xs, ys, strict=True) if x > 0 and y >= 0.01), 0.0)
        for _, xs, ys in shown
    ]
    low = min((x for x in lows if x > 0), default=0.0)
    high = max((max(xs, default=0.0) for _, xs, _ in shown), default=0.0)
    factor, unit = unit_of([high])
    log = low > 0 and high / low > LOG_FROM
    for index, xs, ys in shown:
        points = [(x * factor, y) for x, y in zip(xs, ys, strict=True) if not log or x > 0]
        if log and len(points) < len(xs):
            # What has no logarithm comes in from the left edge, at the share that it has.
            zeros = max(y for x, y in zip(xs, ys, strict=True) if x <= 0)
            points.insert(0, (low * factor * 0.9, zeros))
        axes.plot(
            thinned([x for x, _ in points]),
            thinned([y for _, y in points]),
            drawstyle="steps-post" if len(points) < FEW_POINTS else "default",
            color=arm_colour(index),
            dashes=arm_dashes(index) or (None, None),
        )
    if log:
        axes.set_xscale("log")
        axes.set_xlim(low * factor * 0.9, high * factor * 1.1)
        plain_log(axes, "x")
    elif high > 0:
        axes.set_xlim(left=0)
        plain(axes, "x")
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 0.9, 0.99]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"p{y * 100:.0f}" if y else "0"))
    axes.set_xlabel(f"{label} ({unit}{', log scale' if log else ''})")
    return log


def draw_rate(
    axes: Axes, lines: Sequence[tuple[int, Series]], label: str, *, across: str, seconds: bool
) -> float:
    """A figure by load with its band; ``across`` is the label of x. Returns y's factor."""
    tops = [y for _, series in lines for y in (*series.y, *series.high)]
    factor, unit = unit_of(tops) if seconds else (1.0, "")
    for index, series in lines:
        colour, ys = arm_colour(index), [y * factor for y in series.y]
        if len(series.low) == len(series.high) == len(series.x):
            axes.fill_between(
                series.x,
                [y * factor for y in series.low],
                [y * factor for y in series.high],
                color=colour,
                alpha=0.16,
                linewidth=0,
            )
        axes.plot(series.x, ys, color=colour, dashes=arm_dashes(index) or (None, None))
        hollow = [*series.saturated, *([False] * len(ys))]
        for x, y, empty in zip(series.x, ys, hollow, strict=False):
            _marker(axes, x, y, index, hollow=empty)
    values = [y * factor for _, series in lines for y in series.y if y > 0]
    if seconds and values and max(values) / min(values) > LOG_FROM:
        axes.set_yscale("log")
        plain_log(axes, "y")
        unit = f"{unit}, log scale"
    else:
        axes.set_ylim(bottom=0)
        plain(axes, "y")
    axes.set_xlim(left=0)
    plain(axes, "x")
    axes.set_xlabel(across)
    axes.set_ylabel(f"{label} ({unit})" if unit else label)
    return factor


def draw_bound(axes: Axes, value: float, text: str) -> None:
    """A service level: a line across, with its name at the left, where lines have not begun."""
    axes.axhline(value, color=SLO, linewidth=1.2, dashes=(4, 2))
    low, high = axes.get_ylim()
    if axes.get_yscale() == "linear" and value > high:
        axes.set_ylim(low, value * 1.15)
    axes.annotate(
        text,
        (0.0, value),
        xycoords=("axes fraction", "data"),
        xytext=(4, 3),
        textcoords="offset points",
        color=SLO,
        fontsize=9.5,
    )


def draw_time(axes: Axes, lines: Sequence[tuple[int, Series]], label: str, *, share: bool) -> None:
    """A quantity by seconds since the block's start. A worker's own line is thinner."""
    for index, series in lines:
        axes.plot(
            thinned(series.x),
            thinned(series.y),
            color=arm_colour(index),
            dashes=arm_dashes(index) or (None, None),
            linewidth=1.1 if series.source else 1.8,
            drawstyle="steps-post",
        )
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    plain(axes, "x")
    if share:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y * 100:g} %"))
    else:
        plain(axes, "y")
    axes.set_xlabel("seconds since the block's start")
    axes.set_ylabel(label)


def draw_points(
    axes: Axes, lines: Sequence[tuple[int, Series]], label: str, *, more_is_better: bool
) -> None:
    """Interactivity against ``label``: one point per level, joined in the order of levels."""
    for index, series in lines:
        axes.plot(
            series.x,
            series.y,
            color=arm_colour(index),
            dashes=arm_dashes(index) or (None, None),
            linewidth=1.2,
        )
        for place, (x, y) in enumerate(zip(series.x, series.y, strict=True)):
            hollow = place < len(series.saturated) and series.saturated[place]
            _marker(axes, x, y, index, hollow=hollow)
            if len(series.labels) > 1 and place < len(series.labels):
                axes.annotate(
                    series.labels[place],
                    (x, y),
                    xytext=(7, 2),
                    textcoords="offset points",
                    fontsize=9.5,
                    color=MUTED,
                )
    axes.set_xlim(0, axes.get_xlim()[1] * 1.12)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.12)
    plain(axes, "x")
    plain(axes, "y")
    axes.set_xlabel("output tokens/s per user (1 / TPOT)")
    axes.set_ylabel(label)
    axes.annotate(
        "better ↗" if more_is_better else "better ↘",
        (1, 1) if more_is_better else (1, 0.02),
        xycoords="axes fraction",
        ha="right",
        va="top" if more_is_better else "bottom",
        color=MUTED,
        fontsize=9.5,
    )


def plain(axes: Axes, which: str) -> None:
    """Few ticks, written without exponents."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))


def plain_log(axes: Axes, which: str) -> None:
    """Ticks of a logarithmic axis as plain numbers, more of them where decades are few."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    decades = math.log10(max(high, 1e-12) / max(low, 1e-12))
    axis.set_major_locator(LogLocator(subs=(1.0,) if decades > 3 else (1.0, 3.0), numticks=12))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))


def _marker(axes: Axes, x: float, y: float, index: int, *, hollow: bool) -> None:
    colour = arm_colour(index)
    axes.plot(
        [x],
        [y],
        marker=arm_marker(index),
        color=colour,
        markerfacecolor=PAPER if hollow else colour,
        markeredgewidth=1.5,
        zorder=3,
    )


def _rising(series: Series) -> tuple[list[float], list[float]]:
    xs, ys = list(series.x), list(series.y)
    if xs and ys and ys[0] > 0:
        return [xs[0], *xs], [0.0, *ys]
    return xs, ys


def _tick(value: float) -> str:
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:g}"

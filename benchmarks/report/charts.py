"""Which charts a comparison gets, in which order, with which words.

A chart is made where its series are there, and left out otherwise. Arms keep their colour, line
style and marker in all of them. One chart shows one class, so that two to five lines are all it
holds.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.axes import Axes

from benchmarks.comparison import CompareResult, Series
from benchmarks.report import plot
from benchmarks.report.names import Kind, kind_text
from benchmarks.report.palette import INK, stage_colour, stage_variable
from benchmarks.report.svg import styled, to_svg
from benchmarks.report.words import calm_level, class_order, level_title

MAX_LINES = 40
"""Lines of one chart; workers beyond that are left out, and the caption says so."""

_LATENCIES = {"ttft": "TTFT", "itl": "ITL", "tpot": "TPOT", "e2e": "E2E"}
_TIMES = {
    "time_in_flight": ("Requests in flight", "requests"),
    "time_waiting": ("Requests waiting", "requests"),
    "time_kv_usage": ("KV cache in use", "share of the KV cache"),
    "time_rps": ("Requests sent", "requests per second"),
}
_TRADES = {
    "pareto": ("output per accelerator", "output tokens/s per accelerator", True),
    "price": ("price", "$ per million output tokens", False),
}


@dataclass(frozen=True, slots=True)
class Chart:
    """One drawing. ``arms`` are the places of the arms in it, ``stages`` names of a waterfall's
    parts with their colour variables; both become the legend."""

    title: str
    note: str
    svg: str
    arms: tuple[int, ...] = ()
    stages: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """Charts that belong together. ``folded`` ones are opened by the reader."""

    title: str
    lead: str
    charts: tuple[Chart, ...]
    folded: bool = False


def chart_groups(result: CompareResult) -> list[Group]:
    """All charts of a comparison, in reading order; groups without a chart are left out."""
    maker = _Maker(result)
    groups = [*maker.distributions(), maker.by_rate(), maker.economy(), *maker.times()]
    return [group for group in groups if group.charts]


class _Maker:
    """Draws one result's charts and numbers them."""

    def __init__(self, result: CompareResult) -> None:
        self._result = result
        self._place = {arm.name: index for index, arm in enumerate(result.arms)}
        self._count = 0

    def distributions(self) -> list[Group]:
        """CDFs, a group per level, the highest that nobody saturated at in sight."""
        levels = sorted({s.level or 0.0 for s in self._named("cdf_")})
        calm = calm_level(self._result, levels)
        groups = []
        for level in levels:
            charts = []
            for class_name in self._own_classes("cdf_"):
                for key, label in _LATENCIES.items():
                    lines = self._lines(f"cdf_{key}", class_name, level)
                    if lines:
                        charts.append(self._cdf(label, class_name, lines))
            groups.append(
                Group(
                    title="How latencies spread" + _at(level, levels),
                    lead="Further left is faster. Where a line is at p99, 99 of 100 are faster.",
                    charts=tuple(charts),
                    folded=level != calm,
                )
            )
        return sorted(groups, key=lambda group: group.folded)

    def by_rate(self) -> Group:
        """Figures by offered rate, where several rates were measured."""
        charts = []
        for class_name in self._own_classes("rate_"):
            for name in sorted({s.chart for s in self._named("rate_")}, key=_rate_order):
                if name in ("rate_goodput", "rate_attainment"):
                    continue
                for lines in self._by_source(name, class_name):
                    charts.append(self._rate(name, class_name, lines))
        for name in ("rate_goodput", "rate_attainment"):
            for class_name in self._classes(name):
                for lines in self._by_source(name, class_name):
                    charts.append(self._rate(name, class_name, lines))
        several = [chart for chart in charts if chart is not None]
        return Group(
            title="As load grows",
            lead="Bands are confidence intervals; a hollow point is one where the arm no longer "
            "served what was offered.",
            charts=tuple(several),
        )

    def economy(self) -> Group:
        """Pareto points and where the time to the first token goes."""
        charts = []
        for name, (title, label, more_is_better) in _TRADES.items():
            for class_name in self._classes(name):
                lines = self._lines(name, class_name, None)
                if lines:
                    charts.append(
                        self._chart(
                            f"Speed for one user against {title}{_of(class_name)}",
                            "One point per load, with its offered rate; hollow if saturated.",
                            lines,
                            partial(plot.draw_points, label=label, more_is_better=more_is_better),
                        )
                    )
        levels = sorted({s.level or 0.0 for s in self._named("waterfall")})
        for class_name, level in itertools.product(self._classes("waterfall"), levels):
            lines = self._lines("waterfall", class_name, level)
            if lines:
                charts.append(self._waterfall(class_name, _at(level, levels), lines))
        return Group(title="Where time and hardware go", lead="", charts=tuple(charts))

    def times(self) -> list[Group]:
        """Time series, a group per level."""
        levels = sorted({s.level or 0.0 for s in self._named("time_")})
        calm = calm_level(self._result, levels)
        groups = []
        for level in levels:
            charts = []
            for class_name in self._classes("time_"):
                for name, (title, label) in _TIMES.items():
                    lines = self._lines(name, class_name, level)
                    if lines:
                        suffix = "" if class_name == "all" else _of(class_name)
                        charts.append(self._time(name, title + suffix, label, lines))
            groups.append(
                Group(
                    title="During a block" + _at(level, levels),
                    lead="Means over the counted blocks of an arm.",
                    charts=tuple(charts),
                    folded=level != calm,
                )
            )
        return sorted(groups, key=lambda group: group.folded)

    def _cdf(self, label: str, class_name: str, lines: list[tuple[int, Series]]) -> Chart:
        def draw(axes: Axes, shown: Sequence[tuple[int, Series]]) -> None:
            plot.draw_cdf(axes, shown, label)

        note = "Share of the gaps" if label == "ITL" else "Share of the requests"
        return self._chart(f"{label}{_of(class_name)}", f"{note} by {label}.", lines, draw)

    def _rate(self, name: str, class_name: str, lines: list[tuple[int, Series]]) -> Chart | None:
        if max(len(series.x) for _, series in lines) < 2:
            return None
        seconds = name not in ("rate_goodput", "rate_attainment")
        source = lines[0][1].source
        label = _rate_label(name, source)

        def draw(axes: Axes, shown: Sequence[tuple[int, Series]]) -> None:
            # Without open-loop requests there is no offered rate, and x is the level itself.
            levels = set(self._result.levels)
            open_loop = not all(x in levels for _, series in shown for x in series.x)
            across = "offered requests per second" if open_loop else "load, times the workload's"
            factor = plot.draw_rate(axes, shown, label, across=across, seconds=seconds)
            bound = self._bound(name, class_name)
            if bound is not None:
                plot.draw_bound(axes, bound * factor, f"SLO {kind_text(Kind.SECONDS, bound)}")
            if name == "rate_attainment":
                axes.set_ylim(0, 1.05)
                axes.yaxis.set_major_formatter(lambda y, _: f"{y * 100:.0f} %")

        return self._chart(f"{label}{_of(class_name)}", "", lines, draw)

    def _time(self, name: str, title: str, label: str, lines: list[tuple[int, Series]]) -> Chart:
        def draw(axes: Axes, shown: Sequence[tuple[int, Series]]) -> None:
            plot.draw_time(axes, shown, label, share=name == "time_kv_usage")

        sources = sorted({series.source for _, series in lines if series.source})
        note = f"One line per worker: {', '.join(sources[:8])}." if sources else ""
        return self._chart(title, note, lines, draw)

    def _waterfall(self, class_name: str, at: str, lines: list[tuple[int, Series]]) -> Chart:
        stages: list[str] = []
        for _, series in lines:
            stages += [label for label in series.labels if label not in stages]

        def draw(axes: Axes, shown: Sequence[tuple[int, Series]]) -> None:
            totals = [sum(series.y) for _, series in shown]
            factor, unit = plot.unit_of(totals)
            for row, (_, series) in enumerate(shown):
                left = 0.0
                for label, value in zip(series.labels, series.y, strict=False):
                    colour = stage_colour(stages.index(label))
                    axes.barh(row, value * factor, left=left, color=colour, height=0.55)
                    left += value * factor
                axes.annotate(
                    kind_text(Kind.SECONDS, left / factor),
                    (left, row),
                    xytext=(5, 0),
                    textcoords="offset points",
                    va="center",
                    color=INK,
                )
            names = [_short(series.arm) for _, series in shown]
            axes.set_yticks(range(len(shown)), names)
            axes.invert_yaxis()
            axes.grid(visible=False, axis="y")
            axes.set_xlim(0, max(totals, default=0.0) * factor * 1.22 or 1.0)
            plot.plain(axes, "x")
            axes.set_xlabel(f"mean time ({unit})")

        legend = tuple(
            (label.replace("_", " "), stage_variable(place)) for place, label in enumerate(stages)
        )
        title = f"Way to the first token{_of(class_name)}{at}"
        size = (plot.SIZE[0], 1.2 + 0.55 * len(lines))
        return self._chart(title, "Mean time of each stage.", lines, draw, stages=legend, size=size)

    def _chart(
        self,
        title: str,
        note: str,
        lines: list[tuple[int, Series]],
        draw: Callable[[Axes, Sequence[tuple[int, Series]]], object],
        *,
        stages: tuple[tuple[str, str], ...] = (),
        size: tuple[float, float] = plot.SIZE,
    ) -> Chart:
        if len(lines) > MAX_LINES:
            note = f"{note} {len(lines) - MAX_LINES} lines are left out.".strip()
            lines = lines[:MAX_LINES]
        self._count += 1
        with styled():
            figure, axes = plot.one_axes(size)
            draw(axes, lines)
            arms = ", ".join(dict.fromkeys(series.arm for _, series in lines))
            axis = f"Across: {axes.get_xlabel()}."
            text = f"{note} {axis} Arms: {arms}.".strip()
            svg = to_svg(figure, ident=f"c{self._count}", title=title, description=text)
        places = () if stages else tuple(dict.fromkeys(index for index, _ in lines))
        return Chart(title=title, note=note, svg=svg, arms=places, stages=stages)

    def _named(self, prefix: str) -> list[Series]:
        return [s for s in self._result.series if s.chart.startswith(prefix) and s.y]

    def _classes(self, prefix: str) -> list[str]:
        """Classes with such a series, ``all`` last."""
        there = {s.class_name for s in self._named(prefix)}
        return [name for name in class_order(self._result) if name in there]

    def _own_classes(self, prefix: str) -> list[str]:
        """The same without ``all``, unless there is nothing else: latencies of several classes
        in one line say something of none of them."""
        names = self._classes(prefix)
        return [name for name in names if name != "all"] or names

    def _lines(self, chart: str, class_name: str, level: float | None) -> list[tuple[int, Series]]:
        found = [
            (self._place[s.arm], s)
            for s in self._result.series
            if s.chart == chart
            and s.class_name == class_name
            and s.y
            and s.arm in self._place
            and (level is None or (s.level or 0.0) == level)
        ]
        return sorted(found, key=lambda line: (line[0], line[1].source))

    def _by_source(self, chart: str, class_name: str) -> Iterable[list[tuple[int, Series]]]:
        lines = self._lines(chart, class_name, None)
        for source in dict.fromkeys(series.source for _, series in lines):
            yield [line for line in lines if line[1].source == source]

    def _bound(self, name: str, class_name: str) -> float | None:
        slo = self._result.slos.get(class_name, self._result.slos.get("all"))
        if slo is None:
            return None
        if name.startswith("rate_ttft"):
            return slo.ttft_s
        if name.startswith("rate_tpot"):
            return slo.tpot_s
        return slo.e2e_s if name.startswith("rate_e2e") else None


def _rate_order(name: str) -> tuple[int, str]:
    keys = list(_LATENCIES)
    stem = name.removeprefix("rate_").split("_")[0]
    return (keys.index(stem) if stem in keys else len(keys), name)


def _rate_label(name: str, source: str) -> str:
    if name == "rate_goodput":
        return "Goodput (requests/s)"
    if name == "rate_attainment":
        return f"SLO attainment, {source}" if source else "SLO attainment"
    match = re.fullmatch(r"rate_([a-z0-9]+)_(.+)", name)
    return f"{_LATENCIES.get(match[1], match[1])} {match[2]}" if match else name


def _of(class_name: str) -> str:
    return ", all requests" if class_name == "all" else f", {class_name}"


def _at(level: float, levels: Sequence[float]) -> str:
    return f" at {level_title(level)}" if len(levels) > 1 and level else ""


def _short(name: str, limit: int = 20) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"

"""Which charts are made, and what their SVG is like."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import matplotlib as mpl
import pytest

from benchmarks.comparison import CompareResult, Series
from benchmarks.report.charts import Chart, Group, chart_groups
from benchmarks.report.palette import ALL
from benchmarks.report.plot import thinned
from tests.unit.benchmarks.report import sample


@pytest.fixture(scope="module")
def groups(three: CompareResult) -> list[Group]:
    return chart_groups(three)


def _charts(groups: list[Group]) -> list[Chart]:
    return [chart for group in groups for chart in group.charts]


def _result(*series: Series, names: tuple[str, ...] = ("a", "b")) -> CompareResult:
    result = sample.build(arms=len(names), levels=[1.0], names=names)
    result.series = list(series)
    return result


def test_each_level_has_its_distributions_and_one_is_in_sight(groups: list[Group]) -> None:
    """The highest level that nobody saturated at is open; the others are folded away."""
    spread = [group for group in groups if group.title.startswith("How latencies spread")]
    assert [group.folded for group in spread] == [False, True, True]
    assert spread[0].title == "How latencies spread at 1x load"
    assert [chart.title for chart in spread[0].charts][:3] == [
        "TTFT, short",
        "ITL, short",
        "TPOT, short",
    ]


def test_charts_are_xml_with_themed_colours_alone(groups: list[Group]) -> None:
    """Every drawing parses, holds no stand-in colour, no metadata and no idle id."""
    for chart in _charts(groups):
        ElementTree.fromstring(chart.svg)
        assert not any(row[0] in chart.svg for row in ALL)
        assert not re.search(r"(?:fill|stroke): #", chart.svg)
        assert "<metadata" not in chart.svg
        assert "DejaVu" not in chart.svg
        assert "var(--arm-2)" in chart.svg or chart.stages


def test_arms_differ_in_more_than_colour(groups: list[Group]) -> None:
    """Dashes tell the lines apart in print; the legend names each arm."""
    chart = next(c for c in _charts(groups) if c.title == "TTFT p50, short")
    assert chart.arms == (0, 1, 2)
    dashes = set(re.findall(r"stroke-dasharray: [\d.,]+", chart.svg))
    assert len(dashes) >= 3  # base, third arm, SLO line; the second is whole


def test_a_saturated_point_is_hollow(groups: list[Group]) -> None:
    """Only the base saturated, at one level: one marker is filled with paper."""
    chart = next(c for c in _charts(groups) if c.title == "TTFT p50, short")
    assert chart.svg.count("fill: var(--paper)") == 1


def test_wide_latencies_get_a_logarithmic_axis_and_narrow_ones_do_not() -> None:
    """Over 30x from end to end is logarithmic, and the axis says so with its unit."""
    shares = [0.25, 0.5, 0.75, 1.0]
    wide = _result(Series(chart="cdf_itl", arm="a", x=[0.01, 0.02, 0.4, 2.0], y=shares))
    narrow = _result(Series(chart="cdf_itl", arm="a", x=[0.01, 0.02, 0.04, 0.1], y=shares))
    slow = _result(Series(chart="cdf_e2e", arm="a", x=[11, 12, 13, 14.0], y=shares))
    assert "ITL (ms, log scale)" in chart_groups(wide)[0].charts[0].svg
    assert ">ITL (ms)<" in chart_groups(narrow)[0].charts[0].svg
    assert ">E2E (s)<" in chart_groups(slow)[0].charts[0].svg


def test_a_zero_gap_does_not_break_a_logarithmic_axis() -> None:
    """Chunks that came together have a gap of zero, which has no logarithm."""
    result = _result(
        Series(chart="cdf_itl", arm="a", x=[0.0, 0.001, 0.2, 1.0], y=[0.1, 0.2, 0.9, 1])
    )
    assert "log scale" in chart_groups(result)[0].charts[0].svg


def test_the_waterfall_shows_stages_in_their_order(groups: list[Group]) -> None:
    """Stage names become the legend, without underscores, and each bar has its total."""
    chart = next(c for c in _charts(groups) if c.title.startswith("Way to the first token"))
    assert [label for label, _ in chart.stages] == ["queue", "prefill", "transfer", "first decode"]
    assert "1,900 ms" in chart.svg
    assert "2,150 ms" in chart.svg


def test_series_of_nobody_and_empty_series_make_no_chart() -> None:
    """An arm that is not in the comparison, and lines without points, are left out."""
    result = _result(
        Series(chart="cdf_ttft", arm="stranger", x=[1.0], y=[1.0]),
        Series(chart="cdf_ttft", arm="a"),
        Series(chart="rate_ttft_p50", arm="a", x=[1.0], y=[1.0]),
    )
    assert chart_groups(result) == []


def test_drawing_leaves_matplotlib_as_it_was(two: CompareResult) -> None:
    """The process that draws may use matplotlib for other things."""
    before = dict(mpl.rcParams)
    chart_groups(_result(Series(chart="cdf_ttft", arm="a", x=[1.0, 2.0], y=[0.5, 1.0])))
    assert dict(mpl.rcParams) == before


def test_thinning_keeps_both_ends_and_the_bound() -> None:
    """A long line keeps its first and last point and no more than asked."""
    kept = thinned([float(n) for n in range(10_000)], keep=50)
    assert len(kept) == 50
    assert kept[0] == 0
    assert kept[-1] == 9999
    assert thinned([1.0, 2.0], keep=50) == [1.0, 2.0]

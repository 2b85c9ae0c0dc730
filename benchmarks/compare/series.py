"""Lines of the charts, from the counted blocks: distributions, load, time, stages and trade-offs.

A line that cannot be drawn honestly is left out: no percentile from too few samples, no
trade-off without a known number of accelerators. Nothing is smoothed and nothing drawn here.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from benchmarks.compare.analysis_pool import Pool, Runs
from benchmarks.comparison import Metric, Series
from benchmarks.metrics import ALL, FloatArray
from benchmarks.records import Run, Scrape

Stages = Mapping[str, Mapping[str, float]]

CDF_POINTS = 101
_CDFS = ("ttft", "itl", "tpot", "e2e")
_BY_RATE = (
    ("rate_ttft_p50", "", "ttft_p50"),
    ("rate_ttft_p99", "", "ttft_p99"),
    ("rate_tpot_p99", "", "tpot_p99"),
    ("rate_itl_p99", "", "itl_p99"),
    ("rate_goodput", "", "goodput_rps"),
    ("rate_attainment", "", "attainment"),
    ("rate_attainment", "TTFT", "attainment_ttft"),
    ("rate_attainment", "TPOT", "attainment_tpot"),
)
"""Chart, which of several in it, and the figure."""
_TRADES = (("pareto", "output_tokens_per_s_per_accelerator"), ("price", "usd_per_million_tokens"))
_SCRAPED: Mapping[str, tuple[str, Callable[[Sequence[float]], float]]] = {
    "time_waiting": ("vllm:num_requests_waiting", math.fsum),
    "time_kv_usage": ("vllm:kv_cache_usage_perc", statistics.fmean),
}
_BINS = 100
_FULL_STAGES = 5
_CLIENT_STAGES = ("before sending", "to headers", "headers to first content")


def all_series(
    pool: Pool, runs: Runs, metrics: Sequence[Metric], stages: Stages | None = None
) -> list[Series]:
    """Every line that the counted blocks give. ``stages`` are mean seconds of the stages up to the
    first token, by arm, as servers measured them."""
    return [
        *cdfs(pool),
        *by_rate(pool, metrics),
        *pareto(pool, metrics),
        *waterfall(pool, runs, stages or {}),
        *over_time(pool, runs),
    ]


def cdfs(pool: Pool) -> Iterator[Series]:
    """Distributions of the pooled samples, at every hundredth."""
    shares = np.linspace(0.0, 1.0, CDF_POINTS)
    for level in pool.levels:
        for arm in pool.arms:
            for class_name in pool.classes(level):
                for latency in _CDFS:
                    blocks = pool.samples(arm, level, class_name, latency)
                    pooled = np.concatenate(blocks) if blocks else np.empty(0)
                    if pooled.size:
                        yield Series(
                            chart=f"cdf_{latency}", arm=arm, level=level, class_name=class_name,
                            x=np.quantile(pooled, shares).tolist(), y=shares.tolist(),
                        )  # fmt: skip


def by_rate(pool: Pool, metrics: Sequence[Metric]) -> Iterator[Series]:
    """A point per level: x is what the level offers in requests per second, or the level."""
    estimates = {(m.arm, m.level, m.class_name, m.key): m.estimate for m in metrics}
    classes = sorted({name for level in pool.levels for name in pool.classes(level)})
    for arm in pool.arms:
        for class_name in classes:
            for chart, source, key in _BY_RATE:
                line = Series(chart=chart, arm=arm, class_name=class_name, source=source)
                for level in pool.levels:
                    found = estimates.get((arm, level, class_name, key))
                    if found is None or found.value is None or not found.enough:
                        continue
                    line.x.append(pool.offered.get(level, level))
                    line.y.append(found.value)
                    line.saturated.append(pool.saturated(arm, level))
                    if found.low is not None and found.high is not None:
                        line.low.append(found.low)
                        line.high.append(found.high)
                if len(line.low) != len(line.y):  # a band has no holes
                    line.low.clear()
                    line.high.clear()
                if line.y:
                    yield line


def pareto(pool: Pool, metrics: Sequence[Metric]) -> Iterator[Series]:
    """Speed for one user (1 / median TPOT) against output per accelerator, and against the price of
    a million output tokens; a point per level."""
    values = {
        (m.arm, m.level, m.key): m.estimate.value
        for m in metrics
        if m.class_name == ALL and m.estimate.enough
    }
    for arm, (chart, key) in itertools.product(pool.arms, _TRADES):
        line = Series(chart=chart, arm=arm)
        for level in pool.levels:
            tpot = values.get((arm, level, "tpot_p50"))
            traded = values.get((arm, level, key))
            if tpot and traded is not None:
                line.x.append(1.0 / tpot)
                line.y.append(traded)
                line.labels.append(f"{pool.offered.get(level, level):.3g}")
                line.saturated.append(pool.saturated(arm, level))
        if line.y:
            yield line


def waterfall(pool: Pool, runs: Runs, stages: Stages) -> Iterator[Series]:
    """Mean seconds of each stage up to the first content.

    With an arm's ``stages`` those, over all its levels, and what the client saw beyond them as
    ``other`` if they name no more than four; else what the client alone can tell apart.
    """
    for arm in pool.arms:
        known = {name: value for name, value in stages.get(arm, {}).items() if value >= 0}
        if known:
            only = pool.levels[0] if len(pool.levels) == 1 else None
            seen = [pool.samples(arm, level, ALL, "ttft_sched") for level in pool.levels]
            waits = np.concatenate([block for blocks in seen for block in blocks] or [np.empty(0)])
            rest = float(waits.mean()) - sum(known.values()) if waits.size else 0.0
            if rest > 0 and len(known) < _FULL_STAGES:
                known["other"] = rest
            yield Series(
                chart="waterfall", arm=arm, level=only,
                labels=list(known), y=list(known.values()),
            )  # fmt: skip
            continue
        for level in pool.levels:
            means = _client_stages(_counted(pool, runs, arm, level))
            if means:
                yield Series(
                    chart="waterfall", arm=arm, level=level, labels=list(_CLIENT_STAGES), y=means
                )


def _client_stages(blocks: Sequence[Run]) -> list[float]:
    rows = [
        (r.sent_s - r.scheduled_s, r.headers_s - r.sent_s, r.first_content_s - r.headers_s)
        for run in blocks
        for r in run.records
        if r.error is None
        and r.sent_s is not None
        and r.headers_s is not None
        and r.first_content_s is not None
    ]
    return np.array(rows).mean(axis=0).tolist() if rows else []


def over_time(pool: Pool, runs: Runs) -> Iterator[Series]:
    """What went on within a block, averaged over the counted blocks of an arm and level."""
    for level in pool.levels:
        for arm in pool.arms:
            blocks = _counted(pool, runs, arm, level)
            duration_s = min(run.meta.duration_s for run in blocks)
            if duration_s <= 0:
                continue
            edges = np.linspace(0.0, duration_s, _bins(duration_s) + 1)
            middle = ((edges[1:] + edges[:-1]) / 2).tolist()
            lines = {
                "time_in_flight": np.mean([_in_flight(run, edges) for run in blocks], axis=0),
                "time_rps": np.mean([_sent(run, edges) for run in blocks], axis=0),
            }
            for chart, values in lines.items():
                yield Series(chart=chart, arm=arm, level=level, x=middle, y=values.tolist())
            yield from _scraped(arm, level, blocks, edges)


def _bins(duration_s: float) -> int:
    return min(_BINS, max(10, math.floor(duration_s)))


def _counted(pool: Pool, runs: Runs, arm: str, level: float) -> list[Run]:
    return [runs[arm, level, pair] for pair in pool.pairs[level]]


def _in_flight(run: Run, edges: FloatArray) -> FloatArray:
    """Mean number of requests in flight in each bin: the growth of request-seconds by width."""
    sent = [r for r in run.records if r.sent_s is not None]
    start = np.array([r.sent_s for r in sent], dtype=np.float64)
    end = np.array([np.inf if r.end_s is None else r.end_s for r in sent], dtype=np.float64)
    spent = _elapsed(start, edges) - _elapsed(end, edges)
    return np.asarray(np.diff(spent) / np.diff(edges), dtype=np.float64)


def _elapsed(moments: FloatArray, edges: FloatArray) -> FloatArray:
    """Sum of the seconds since each of ``moments``, at each edge."""
    ordered = np.sort(moments)
    before = np.searchsorted(ordered, edges, side="right")
    finite = np.where(np.isfinite(ordered), ordered, 0.0)
    sums = np.concatenate([[0.0], np.cumsum(finite)])
    return np.asarray(before * edges - sums[before], dtype=np.float64)


def _sent(run: Run, edges: FloatArray) -> FloatArray:
    """Requests sent per second."""
    moments = np.array([r.sent_s for r in run.records if r.sent_s is not None])
    counts, _ = np.histogram(moments, bins=edges)
    return np.asarray(counts / np.diff(edges), dtype=np.float64)


def _scraped(arm: str, level: float, blocks: Sequence[Run], edges: FloatArray) -> Iterator[Series]:
    """A line per server, or per role where servers had other names in other blocks."""
    for chart, (sample, over_labels) in _SCRAPED.items():
        by_block = []
        for run in blocks:
            looks: list[tuple[Scrape, float]] = []
            for scrape in run.scrapes:
                values = [v for k, v in scrape.values.items() if k.partition("{")[0] == sample]
                if values:
                    looks.append((scrape, over_labels(values)))
            by_block.append(looks)
        names = [{look.source for look, _ in looks} for looks in by_block if looks]
        if not names:
            continue
        steady = all(found == names[0] for found in names)
        lines: dict[str, list[FloatArray]] = {}
        for looks in by_block:
            grouped: dict[str, list[tuple[float, float]]] = {}
            for look, value in looks:
                source = look.source if steady else look.role
                grouped.setdefault(source, []).append((look.at_s, value))
            for source, points in grouped.items():
                lines.setdefault(source, []).append(_binned(points, edges))
        for source, values_by_block in sorted(lines.items()):
            yield from _mean_line(chart, arm, level, source, values_by_block, edges)


def _binned(points: Sequence[tuple[float, float]], edges: FloatArray) -> FloatArray:
    """Mean of the values in each bin, NaN where there are none."""
    at = np.array([point[0] for point in points])
    values = np.array([point[1] for point in points])
    counts, _ = np.histogram(at, bins=edges)
    sums, _ = np.histogram(at, bins=edges, weights=values)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _mean_line(
    chart: str, arm: str, level: float, source: str, rows: list[FloatArray], edges: FloatArray
) -> Iterator[Series]:
    stacked = np.stack(rows)
    seen = (~np.isnan(stacked)).sum(axis=0)
    filled = seen > 0
    means = np.nansum(stacked, axis=0)[filled] / seen[filled]
    middle = ((edges[1:] + edges[:-1]) / 2)[filled]
    if means.size:
        yield Series(
            chart=chart, arm=arm, level=level, source=source,
            x=middle.tolist(), y=means.tolist(),
        )  # fmt: skip

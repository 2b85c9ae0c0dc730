"""From instruments to the pages that Prometheus reads, and several pages to one.

A scrape runs in the router's event loop, where every millisecond is one that no request is served
in; so the text is written here, with each series' labels formatted once. The Python client's own
metrics (process, garbage collector) are few and come from its exposition. ``collect`` hands the
same numbers to whoever wants the client's objects; a test holds both against each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from router.observe.families import BY_NAME
from router.observe.hot import Counter, Family, Histogram, Instrument, Kind, Labels, Merge

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

Readings = Sequence[tuple[Instrument, Mapping[Labels, float]]]
"""Instruments with the values of those that are pulled (empty for the others)."""

_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
_MAX_TIME = frozenset({"process_start_time_seconds"})
"""Of the client's own: the youngest process, so that a restart of any of them shows."""


class Page:
    """Writes pages, and remembers how label tuples are written.

    What it remembers is bounded by the families' bounds, but for what is pulled, whose labels come
    and go and are written anew each time.
    """

    def __init__(self) -> None:
        self._heads: dict[tuple[str, Labels], tuple[str, ...]] = {}

    def write(self, readings: Readings, others: CollectorRegistry, *, openmetrics: bool) -> bytes:
        """The page in Prometheus's text format or in OpenMetrics."""
        lines: list[str] = []
        for instrument, pulled in readings:
            family = instrument.family
            name = family.name
            if openmetrics and family.kind is Kind.COUNTER:
                name = name.removesuffix("_total")
            lines.append(f"# HELP {name} {family.help}\n# TYPE {name} {family.kind}\n")
            if isinstance(instrument, Histogram):
                self._histogram(lines, instrument)
            elif isinstance(instrument, Counter):
                for labels, value in list(instrument.values.items()):
                    head = self._heads.get((family.name, labels)) or self._remember(family, labels)
                    lines.append(f"{head[0]}{_number(value)}\n")
            else:
                for labels, value in pulled.items():
                    inside = _label_text(family, labels)
                    lines.append(f"{_head(family.name, inside)}{_number(value)}\n")
        page = "".join(lines).encode()
        if openmetrics:
            rest: bytes = generate_openmetrics(others)  # type: ignore[no-untyped-call]
            return page + rest
        return page + generate_latest(others)

    def _histogram(self, lines: list[str], histogram: Histogram) -> None:
        family = histogram.family
        for labels, live in list(histogram.cells.items()):
            cell = list(live)
            heads = self._heads.get((family.name, labels)) or self._remember(family, labels)
            seen = 0.0
            for i, count in enumerate(cell[:-1]):
                seen += count
                lines.append(f"{heads[i]}{_number(seen)}\n")
            lines.append(f"{heads[-2]}{_number(seen)}\n")
            lines.append(f"{heads[-1]}{_number(cell[-1])}\n")

    def _remember(self, family: Family, labels: Labels) -> tuple[str, ...]:
        inside = _label_text(family, labels)
        if family.kind is Kind.HISTOGRAM:
            comma = "," if inside else ""
            heads = (
                *(
                    _head(f"{family.name}_bucket", f'{inside}{comma}le="{le}"')
                    for le in _les(family)
                ),
                _head(f"{family.name}_count", inside),
                _head(f"{family.name}_sum", inside),
            )
        else:
            heads = (_head(family.name, inside),)
        self._heads[family.name, labels] = heads
        return heads


def collect(readings: Readings) -> Iterable[Metric]:
    """The same numbers as the Python client's objects."""
    for instrument, pulled in readings:
        family = instrument.family
        if isinstance(instrument, Histogram):
            histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
            for labels, live in list(instrument.cells.items()):
                cell = list(live)
                seen, buckets = 0.0, []
                for le, count in zip(_les(family), cell[:-1], strict=True):
                    seen += count
                    buckets.append((le, seen))
                histogram.add_metric(labels, buckets, cell[-1])
            yield histogram
        elif family.kind is Kind.COUNTER:
            counter = CounterMetricFamily(family.name, family.help, labels=family.labels)
            values = instrument.values if isinstance(instrument, Counter) else pulled
            for labels, value in list(values.items()):
                counter.add_metric(labels, value)
            yield counter
        else:
            gauge = GaugeMetricFamily(family.name, family.help, labels=family.labels)
            for labels, value in pulled.items():
                gauge.add_metric(labels, value)
            yield gauge


def merge_pages(pages: Sequence[str]) -> str:
    """One page of several processes of one router, in Prometheus's text format.

    Numbers of equal name and labels are summed, but where the family says that the largest counts
    (what every process knows of the same fleet, the event loop's lag, infos). Pure; some ten
    microseconds a line, so that a busy router does it in a thread.

    Args:
        pages: text format, one of each process.

    Raises:
        ValueError: a page that is none.
    """
    merged = _Merged()
    for page in pages:
        for metric in text_string_to_metric_families(page):
            merged.take(metric)
    return generate_latest(merged).decode()


class _Merged:
    """Families in the order in which they were first seen; looks like a registry to the client."""

    def __init__(self) -> None:
        self._families: dict[str, Metric] = {}
        self._values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}

    def take(self, metric: Metric) -> None:
        self._families.setdefault(metric.name, metric)
        largest = _largest(metric)
        values = self._values.setdefault(metric.name, {})
        for sample in metric.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            if key not in values:
                values[key] = sample.value
            elif largest:
                values[key] = max(values[key], sample.value)
            else:
                values[key] += sample.value

    def collect(self) -> Iterable[Metric]:
        for name, first in self._families.items():
            metric = Metric(first.name, first.documentation, first.type)
            metric.samples = [
                Sample(sample, dict(labels), value)
                for (sample, labels), value in self._values[name].items()
            ]
            yield metric


def _largest(metric: Metric) -> bool:
    family = BY_NAME.get(metric.name) or BY_NAME.get(f"{metric.name}_total")
    if family is not None:
        return family.merge is Merge.MAX
    return metric.name.endswith("_info") or metric.name in _MAX_TIME


def _les(family: Family) -> tuple[str, ...]:
    return (*(_number(bound) for bound in family.buckets), "+Inf")


def _number(value: float) -> str:
    if value == math.inf:
        return "+Inf"
    if value == -math.inf:
        return "-Inf"
    return "NaN" if value != value else repr(float(value))


def _label_text(family: Family, labels: Labels) -> str:
    return ",".join(
        f'{name}="{value.translate(_ESCAPES)}"'
        for name, value in zip(family.labels, labels, strict=True)
    )


def _head(name: str, inside: str) -> str:
    return f"{name}{{{inside}}} " if inside else f"{name} "

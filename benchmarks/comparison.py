"""What a comparison found: everything that the reports show, and nothing that they must compute.

``compare.json`` is this structure. Times in seconds, rates per second, prices in US dollars.
"""

from __future__ import annotations

from typing import Any

import msgspec

from benchmarks.plan import Slo
from benchmarks.records import Problem

COMPARE_FORMAT = "baton/bench-compare/v1"
# Its name in the folder of a comparison.
COMPARE_FILE = "compare.json"


class Accelerators(msgspec.Struct, frozen=True, kw_only=True):
    """A number of equal accelerators of one arm; the price is None where the profile has none."""

    label: str
    count: int
    price_per_hour: float | None = None


class Arm(msgspec.Struct, kw_only=True):
    """One side of the comparison. The first arm is the base that the others are compared with."""

    name: str
    url: str = ""
    profile: str | None = None
    profile_version: str | None = None
    profile_spec: dict[str, Any] | None = None
    accelerators: list[Accelerators] = []
    model: str = ""
    versions: dict[str, str] = {}

    @property
    def accelerator_count(self) -> int:
        """All accelerators."""
        return sum(entry.count for entry in self.accelerators)

    @property
    def price_per_hour(self) -> float | None:
        """Of all accelerators, or None if one of them has no price."""
        prices = [(entry.count, entry.price_per_hour) for entry in self.accelerators]
        known = [count * price for count, price in prices if price is not None]
        return sum(known) if known and len(known) == len(prices) else None


class Block(msgspec.Struct, kw_only=True):
    """One measured block: one arm, one level of load.

    ``pair`` numbers the repetition: blocks of equal level and pair had the same schedule.
    ``order`` is the place in the whole sequence. ``counted`` is False if the block, or another
    one of its pair, was invalid: the figures leave out the whole pair.
    """

    arm: str
    level: float
    pair: int
    order: int
    salt: str
    folder: str
    counted: bool = True
    problems: list[Problem] = []
    summary: dict[str, Any] = {}


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A pooled figure with its 95 % confidence interval; ``n`` samples stand behind it.

    ``low`` and ``high`` are None where there are too few pairs for an interval; ``enough`` is
    False where a percentile has too few samples to be quoted.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    enough: bool = True


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of one arm at one level: ``key`` such as ``itl_p99``, see ``metrics``."""

    arm: str
    level: float
    class_name: str
    key: str
    estimate: Estimate


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """One arm against the base, in one figure.

    Attributes:
        base_value, value: pooled figures.
        ratio: value by base, with ``low`` and ``high`` after correction for the number of
            verdicts; None where it cannot be formed.
        better: ``lower`` or ``higher`` values are better.
        outcome: ``better``, ``worse``, ``tie`` (the interval spans no difference, or the
            difference is below what the instrument resolves), or ``unknown`` (too few samples or
            pairs); always said of ``arm``.
        primary: among those that the headline is made from.
        note: why, where the outcome needs a reason.
    """

    arm: str
    base: str
    level: float
    class_name: str
    key: str
    base_value: float | None
    value: float | None
    ratio: float | None
    low: float | None
    high: float | None
    better: str
    outcome: str
    primary: bool = True
    pairs: int = 0
    note: str = ""


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a chart: ``chart`` says which one, ``arm`` and ``class_name`` whose line.

    Charts: ``cdf_ttft``, ``cdf_itl``, ``cdf_tpot``, ``cdf_e2e`` (x seconds, y share);
    ``time_in_flight``, ``time_waiting``, ``time_kv_usage``, ``time_rps`` (x seconds since the
    block's start, y mean over blocks; source names the worker where it is one's own);
    ``rate_ttft_p50``, ``rate_ttft_p99``, ``rate_tpot_p99``, ``rate_itl_p99``, ``rate_goodput``,
    ``rate_attainment`` (x offered requests per second, y with ``low`` and ``high``,
    ``saturated`` per point); ``waterfall`` (x names of stages in ``labels``, y mean seconds);
    ``pareto`` (x output tokens/s per user, y output tokens/s per accelerator); ``price`` (the same
    x, y dollars per million output tokens). ``source`` of ``rate_attainment`` names the bound that
    it is about, if it is one alone.
    """

    chart: str
    arm: str
    level: float | None = None
    class_name: str = "all"
    source: str = ""
    x: list[float] = []
    y: list[float] = []
    low: list[float] = []
    high: list[float] = []
    saturated: list[bool] = []
    labels: list[str] = []


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """One figure as the client and as a server saw it, over the counted blocks of an arm."""

    arm: str
    what: str
    client: float
    server: float
    unit: str
    agrees: bool
    note: str = ""


class CompareResult(msgspec.Struct, kw_only=True):
    """A whole comparison.

    ``badge`` is ``real``: engines answered. ``headline`` is one to three plain sentences, the
    first thing that a person reads. ``command`` repeats the comparison. ``servers`` is what each
    arm's router and engines said of themselves over its counted blocks, by arm and server; keys
    as in ``engine_side.server_figures``.
    """

    format: str = COMPARE_FORMAT
    id: str
    created_wall_s: float
    took_s: float
    command: str
    badge: str = "real"
    complete: bool = True
    headline: list[str] = []
    arms: list[Arm] = []
    workload: dict[str, Any] = {}
    slos: dict[str, Slo] = {}
    levels: list[float] = []
    pairs: int = 0
    confidence: float = 0.95
    blocks: list[Block] = []
    metrics: list[Metric] = []
    verdicts: list[Verdict] = []
    series: list[Series] = []
    servers: dict[str, dict[str, dict[str, float]]] = {}
    agreements: list[Agreement] = []
    problems: list[Problem] = []
    config_differences: list[dict[str, Any]] = []
    versions: dict[str, str] = {}
    machine: dict[str, Any] = {}
    commit: str | None = None

    def base(self) -> Arm:
        """The arm that the others are compared with."""
        return self.arms[0]

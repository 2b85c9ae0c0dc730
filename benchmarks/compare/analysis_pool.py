"""The counted blocks of a comparison, as figures that pool.

It answers one question for the verdicts, the metrics and the charts: what is figure ``key`` of
class ``c`` of an arm at a level, over these pairs, and in every bootstrap draw of them. It leaves
out pairs with an invalid block; it never averages a percentile and never judges.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.comparison import Arm, Estimate
from benchmarks.metrics import ALL, LATENCIES, PERCENTILES, Parts, enough, latency_key, parts
from benchmarks.plan import Slo
from benchmarks.records import Run
from benchmarks.stats import Draws, FloatArray, Pooled, interval, pooled_quantile, pooled_ratio

Runs = Mapping[tuple[str, float, int], Run]

LATENCY_KEYS = tuple(f"{name}_{part}" for name in LATENCIES for part in ("mean", *PERCENTILES))

SATURATED_SHARE = 0.9
"""An arm that serves less than this share of what falls due in the second half of its blocks is
saturated: its queue grows as long as the load goes on."""


@dataclass(frozen=True, slots=True)
class Inverse:
    """A price: ``per`` is what a dollar buys, in ``unit`` pieces. Pooled and compared as what a
    dollar buys, which stays finite when nothing good was made, and turned round for print."""

    source: str
    unit: float


PRICES: Mapping[str, Inverse] = {
    "usd_per_million_good_tokens": Inverse("good_output_tokens_per_s", 1e6),
    "usd_per_million_tokens": Inverse("output_tokens_per_s", 1e6),
}
PER_ACCELERATOR: Mapping[str, str] = {
    "goodput_per_accelerator": "goodput_rps",
    "output_tokens_per_s_per_accelerator": "output_tokens_per_s",
}


def lower_is_better(key: str) -> bool:
    """Whether a smaller value of ``key`` is the better one."""
    return latency_key(key) is not None or key in PRICES or key == "error_share"


def turned(value: float | None, unit: float) -> float | None:
    """From pieces per dollar to dollars per ``unit`` pieces; None where nothing was bought."""
    return unit / value if value is not None and value > 0 else None


@dataclass(slots=True)
class Pool:
    """Counted blocks as parts.

    Attributes:
        arms: by name, the base first.
        pairs: counted pairs by level, sorted.
        parts: by arm, level, pair and then class.
        offered: requests per second that a level offers, where none of its requests come from
            closed loops, whose rate is the server's.
        open_loop: levels in which every request had a time of its own to be sent.
    """

    arms: Mapping[str, Arm]
    slos: Mapping[str, Slo]
    pairs: Mapping[float, tuple[int, ...]]
    parts: Mapping[tuple[str, float, int], Mapping[str, Parts]]
    offered: Mapping[float, float]
    open_loop: frozenset[float]
    resamples: int
    seed: int
    _draws: dict[int, Draws] = field(default_factory=dict)
    _sorted: dict[tuple[str, float, int, str, str], FloatArray] = field(default_factory=dict)

    @classmethod
    def make(
        cls,
        arms: Sequence[Arm],
        runs: Runs,
        pairs: Mapping[float, tuple[int, ...]],
        slos: Mapping[str, Slo],
        *,
        resamples: int,
        seed: int,
    ) -> Pool:
        """Measure every run of a counted pair once."""
        kept: dict[tuple[str, float, int], Mapping[str, Parts]] = {}
        offered: dict[float, list[float]] = {}
        closed: set[float] = set()
        for level, counted in pairs.items():
            for pair in counted:
                for arm in arms:
                    run = runs[arm.name, level, pair]
                    kept[arm.name, level, pair] = parts(run.records, run.meta.duration_s, slos)
                    rate = run.meta.plan.get("offered_rps")
                    lanes = any(r.lane is not None for r in run.records)
                    if isinstance(rate, int | float) and not lanes:
                        offered.setdefault(level, []).append(float(rate))
                    if lanes or any(r.session is not None for r in run.records):
                        closed.add(level)
        return cls(
            arms={arm.name: arm for arm in arms},
            slos=slos,
            pairs=pairs,
            parts=kept,
            offered={level: float(np.mean(rates)) for level, rates in offered.items()},
            open_loop=frozenset(level for level in offered if level not in closed),
            resamples=resamples,
            seed=seed,
        )

    @property
    def levels(self) -> list[float]:
        """Levels with a counted pair."""
        return sorted(level for level, pairs in self.pairs.items() if pairs)

    def classes(self, level: float) -> list[str]:
        """``all`` and every class that was measured at ``level``."""
        found = {
            name for (_, at, _), by_class in self.parts.items() if at == level for name in by_class
        }
        return [ALL, *sorted(found - {ALL})]

    def draws(self, pairs: int) -> Draws:
        """The bootstrap draws of so many pairs: the same ones for every figure and arm."""
        if pairs not in self._draws:
            rng = np.random.default_rng([self.seed, pairs])
            self._draws[pairs] = Draws.make(pairs, self.resamples, rng)
        return self._draws[pairs]

    def each(self, arm: str, level: float, class_name: str) -> dict[int, Parts]:
        """Parts by pair, where the class occurs."""
        found = {}
        for pair in self.pairs.get(level, ()):
            by_class = self.parts.get((arm, level, pair), {})
            if class_name in by_class:
                found[pair] = by_class[class_name]
        return found

    def samples(self, arm: str, level: float, class_name: str, latency: str) -> list[FloatArray]:
        """All samples of a latency, one sorted array per pair."""
        mine = self.each(arm, level, class_name)
        return [self._block(arm, level, pair, class_name, latency) for pair in mine]

    def total(self, arm: str, level: float, class_name: str, name: str) -> tuple[float, float]:
        """Pooled numerator and denominator of a figure that is a quotient; zeros if unknown."""
        mine = self.each(arm, level, class_name).values()
        found = [part.sums[name] for part in mine if name in part.sums]
        return sum(pair[0] for pair in found), sum(pair[1] for pair in found)

    def saturated(self, arm: str, level: float) -> bool:
        """Whether the arm's queue grew for as long as the load went on. A backlog within twice
        its chance variation is none. Closed loops wait for the server and never saturate, but the
        open classes beside them may."""
        served, due = self.total(arm, level, ALL, "served_share")
        return due - served > max((1.0 - SATURATED_SHARE) * due, 2.0 * math.sqrt(due))

    def keys(self, arm: str, level: float, class_name: str) -> list[str]:
        """Every figure that can be given for a class."""
        sums = {k for part in self.each(arm, level, class_name).values() for k in part.sums}
        found = [*LATENCY_KEYS, *sorted(sums)]
        if self.arms[arm].accelerator_count:
            found += [key for key, source in PER_ACCELERATOR.items() if source in sums]
        if self.arms[arm].price_per_hour:
            found += [key for key, inverse in PRICES.items() if inverse.source in sums]
        return found

    def usable(self, arm: str, level: float, class_name: str, key: str) -> tuple[int, ...]:
        """Counted pairs in which the figure can be formed for the arm."""
        latency = latency_key(key)
        if latency is not None:
            return tuple(
                pair
                for pair, part in self.each(arm, level, class_name).items()
                if part.samples[latency[0]].size
            )
        quotients = self._quotients(arm, level, class_name, key)
        return tuple(pair for pair, (_, below) in quotients.items() if below > 0)

    def count(self, arm: str, level: float, class_name: str, key: str) -> int:
        """Samples behind a figure: latencies, requests for a rate, the whole for a share."""
        latency = latency_key(key)
        mine = self.each(arm, level, class_name).values()
        if latency is not None:
            return sum(part.samples[latency[0]].size for part in mine)
        if key.startswith(("attainment", "served", "cached")):
            return int(self.total(arm, level, class_name, key)[1])
        return sum(part.requests for part in mine)

    def enough(self, arm: str, level: float, class_name: str, key: str) -> bool:
        """Whether there are samples enough to quote the figure."""
        latency = latency_key(key)
        n = self.count(arm, level, class_name, key)
        if latency is None or latency[1] is None:
            return n > 0
        return enough(latency[1], n)

    def pooled(
        self, arm: str, level: float, class_name: str, key: str, pairs: tuple[int, ...]
    ) -> Pooled:
        """The figure over ``pairs`` (all of them usable) and in every draw of them.

        Prices come as what a dollar buys; see ``Inverse``.
        """
        draws = self.draws(len(pairs))
        latency = latency_key(key)
        if latency is not None and latency[1] is not None:
            blocks = [self._block(arm, level, pair, class_name, latency[0]) for pair in pairs]
            return pooled_quantile(blocks, latency[1], draws)
        if latency is not None:
            blocks = [self._block(arm, level, pair, class_name, latency[0]) for pair in pairs]
            over = np.array([block.sum() for block in blocks])
            return pooled_ratio(over, np.array([float(b.size) for b in blocks]), draws)
        quotients = self._quotients(arm, level, class_name, key)
        over = np.array([quotients[pair][0] for pair in pairs])
        return pooled_ratio(over, np.array([quotients[pair][1] for pair in pairs]), draws)

    def estimate(self, arm: str, level: float, class_name: str, key: str) -> Estimate:
        """The figure with its own 95 % interval, as a report shows it."""
        pairs = self.usable(arm, level, class_name, key)
        n = self.count(arm, level, class_name, key)
        if not pairs:
            return Estimate(value=None, n=n, enough=False)
        figure = self.pooled(arm, level, class_name, key, pairs)
        low, high = interval(figure, self.draws(len(pairs)))
        value: float | None = figure.value
        if key in PRICES:
            unit = PRICES[key].unit
            value, low, high = turned(value, unit), turned(high, unit), turned(low, unit)
        if high is not None and key.startswith(("attainment", "error_share")):
            high = min(high, 1.0)
        known = self.enough(arm, level, class_name, key)
        return Estimate(value=value, low=low, high=high, n=n, enough=known)

    def _quotients(
        self, arm: str, level: float, class_name: str, key: str
    ) -> dict[int, tuple[float, float]]:
        """Numerator and denominator by pair."""
        scale = 1.0
        source = key
        if key in PER_ACCELERATOR:
            source, scale = PER_ACCELERATOR[key], float(self.arms[arm].accelerator_count)
        elif key in PRICES:
            price = self.arms[arm].price_per_hour or 0.0
            source, scale = PRICES[key].source, price / 3600.0
        mine = self.each(arm, level, class_name)
        return {
            pair: (part.sums[source][0], part.sums[source][1] * scale)
            for pair, part in mine.items()
            if source in part.sums
        }

    def _block(
        self, arm: str, level: float, pair: int, class_name: str, latency: str
    ) -> FloatArray:
        key = (arm, level, pair, class_name, latency)
        if key not in self._sorted:
            part = self.parts[arm, level, pair][class_name]
            self._sorted[key] = np.sort(part.samples[latency])
        return self._sorted[key]


MAX_RATE = "max_rate"
MET_SHARE = 0.9
"""A level meets the SLO in a pair if at least this share of its judged requests is good."""


@dataclass(frozen=True, slots=True)
class MaxRate:
    """The highest offered rate (requests per second) within the SLO, in one pair.

    ``at_least``: the highest level that was measured meets the SLO too, so the true rate is this
    or more. A rate of 0 says that the lowest level misses it already.
    """

    rate: float
    at_least: bool = False


def max_rates(pool: Pool, arm: str) -> dict[int, MaxRate]:
    """By pair counted at every level: the rate at which attainment, from the lowest level on,
    first falls below ``MET_SHARE``, on a straight line between the two levels around it. Taking the
    level below it instead would turn a percentage point of attainment into a factor of two.

    Empty if fewer than two levels were measured, or they offer no rate, or nothing is asked.
    """
    if len(pool.pairs) < 2 or any(level not in pool.offered for level in pool.pairs):
        return {}
    levels = sorted(pool.pairs, key=lambda at: pool.offered[at])
    both = set.intersection(*(set(pool.pairs[level]) for level in levels))
    found: dict[int, MaxRate] = {}
    for pair in sorted(both):
        line: list[tuple[float, float]] = []
        for level in levels:
            good, asked = pool.parts[arm, level, pair][ALL].sums.get("attainment", (0.0, 0.0))
            if asked <= 0:
                return {}
            line.append((pool.offered[level], good / asked))
        found[pair] = _crossing(line)
    return found


def _crossing(line: Sequence[tuple[float, float]]) -> MaxRate:
    """Where the attainment (second of each point) first falls below ``MET_SHARE``."""
    before: tuple[float, float] | None = None
    for rate, share in line:
        if share < MET_SHARE:
            if before is None:
                return MaxRate(0.0)
            part = (before[1] - MET_SHARE) / (before[1] - share)
            return MaxRate(before[0] + part * (rate - before[0]))
        before = rate, share
    return MaxRate(line[-1][0], at_least=True)

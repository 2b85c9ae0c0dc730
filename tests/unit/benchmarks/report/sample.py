"""Made-up comparisons with everything that a report can show, for the tests of the reports."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from benchmarks.comparison import (
    Accelerators,
    Agreement,
    Arm,
    Block,
    CompareResult,
    Estimate,
    Metric,
    Series,
    Verdict,
)
from benchmarks.plan import Slo
from benchmarks.records import Problem

# Median seconds and spread (of the logarithm) of each latency, by class, arm after arm.
_SHAPES: dict[str, dict[str, list[tuple[float, float]]]] = {
    "short": {
        "ttft": [(0.31, 0.9), (0.09, 0.35), (0.15, 0.5), (0.2, 0.4), (0.12, 0.6)],
        "itl": [(0.024, 0.9), (0.021, 0.15), (0.022, 0.4), (0.023, 0.3), (0.025, 0.2)],
        "tpot": [(0.036, 0.5), (0.022, 0.12), (0.026, 0.3), (0.028, 0.3), (0.026, 0.2)],
    },
    "long": {
        "ttft": [(1.9, 0.4), (2.2, 0.3), (2.0, 0.3), (2.1, 0.3), (2.4, 0.3)],
        "itl": [(0.026, 0.8), (0.022, 0.2), (0.024, 0.4), (0.025, 0.4), (0.026, 0.3)],
        "tpot": [(0.035, 0.4), (0.024, 0.15), (0.027, 0.3), (0.03, 0.3), (0.027, 0.2)],
    },
}
NAMES = ("standard", "disaggregated", "disagg-threshold-512", "chunked-4096", "two-prefill")


def two_arms() -> CompareResult:
    """Two arms, two classes, one level."""
    return build(arms=2, levels=[1.0])


def three_arms_three_levels() -> CompareResult:
    """Three arms, two classes, three levels of which the last saturates the base."""
    return build(arms=3, levels=[0.5, 1.0, 2.0])


def build(
    *,
    arms: int,
    levels: list[float],
    names: tuple[str, ...] = NAMES,
    classes: tuple[str, str] = ("short", "long"),
) -> CompareResult:
    """A comparison of the size asked for; equal arguments give equal results."""
    draws = np.random.default_rng(7)
    names = names[:arms]
    series: list[Series] = []
    metrics: list[Metric] = []
    verdicts: list[Verdict] = []
    shapes = dict(zip(classes, _SHAPES.values(), strict=True))
    samples: dict[tuple[str, str, str, float], Any] = {}
    for level in levels:
        load = 0.6 + 0.4 * level + max(0.0, level - 1.5) * 3.2
        for class_name, figures in shapes.items():
            for key, arm_shapes in figures.items():
                for name, (median, spread) in zip(names, arm_shapes, strict=False):
                    scale = load if name == names[0] else 1 + (load - 1) * 0.3
                    drawn = np.sort(draws.lognormal(math.log(median * scale), spread, 1500))
                    samples[class_name, key, name, level] = drawn
                    series.append(_cdf(key, name, level, class_name, drawn))
                    metrics += _estimates(key, name, level, class_name, drawn)
        verdicts += _verdicts(names, level, classes, samples)
        series += _times(names, level) + _waterfalls(names, level, classes, arms)
        metrics += _economy(names, level)
    if len(levels) > 1:
        verdicts += _max_rates(names)
        series += _rates(names, levels, classes, samples)
    series += [
        Series(
            chart="pareto",
            arm=name,
            x=[60 / (1 + 0.2 * level * (2 - place * 0.4)) for level in levels],
            y=[80 * level * (1 + 0.2 * place) for level in levels],
        )
        for place, name in enumerate(names)
    ]
    return CompareResult(
        id="20261120-221530-compare-ab12",
        created_wall_s=1_795_212_930.0,
        took_s=3725.0,
        command="baton bench compare standard disaggregated --workload mixed --pairs 5 --seed 7",
        headline=[
            f"{names[1]} keeps streams steady: ITL p99 of {classes[0]} requests is far lower.",
            f"Long prompts pay for it: TTFT p50 of {classes[1]} requests is higher.",
        ],
        arms=[_arm(name, place) for place, name in enumerate(names)],
        workload={
            "apiVersion": "baton/v1",
            "kind": "Workload",
            "metadata": {"name": "mixed", "description": "Short and long prompts."},
            "spec": {"seed": 7, "duration_s": 120, "classes": {name: {} for name in classes}},
            "trace_sha256": "9f2c" * 16,
        },
        slos={
            classes[0]: Slo(ttft_s=0.5, tpot_s=0.05),
            classes[1]: Slo(ttft_s=4.0, tpot_s=0.05),
        },
        levels=levels,
        pairs=5,
        blocks=_blocks(names, levels),
        metrics=metrics,
        verdicts=verdicts,
        series=series,
        agreements=[
            Agreement(
                arm=name,
                what="output tokens",
                client=48210,
                server=48210,
                unit="tokens",
                agrees=True,
            )
            for name in names
        ]
        + [
            Agreement(
                arm=names[-1],
                what="TTFT p50",
                client=0.092,
                server=0.061,
                unit="s",
                agrees=False,
                note="the server starts its clock after admission",
            ),
        ],
        problems=[
            Problem(
                code="warm_cache",
                text="One block found 3 % of its prompt tokens in a cache "
                "that should have been cold; its pair does not count.",
                fatal=False,
            ),
        ],
        config_differences=[
            {
                "field": "mode",
                **{n: "standard" if i == 0 else "disaggregated" for i, n in enumerate(names)},
            },
            {
                "field": "classify.threshold_tokens",
                **{n: None if i == 0 else 2048 // i for i, n in enumerate(names)},
            },
        ],
        versions={"baton": "0.1.0", "python": "3.11.2", "vllm": "0.32.0", "torch": "2.13.0"},
        machine={"cores": 2, "memory_bytes": 8 * 2**30, "cpu": "Example CPU", "kernel": "6.1"},
        commit="8a0a567ad6596c1551d4d39d933d280f59fd9cab",
    )


def _arm(name: str, place: int) -> Arm:
    return Arm(
        name=name,
        profile=name,
        profile_version=f"{place + 1}f3a9c",
        accelerators=[
            Accelerators(label="A100-80GB", count=1, price_per_hour=5.07),
            Accelerators(label="L4", count=2 + place, price_per_hour=0.71),
        ],
        model="demo",
        versions={"vllm": "0.32.0"},
    )


def _cdf(key: str, arm: str, level: float, class_name: str, drawn: Any) -> Series:
    shares = np.concatenate([np.linspace(0.005, 0.98, 150), np.linspace(0.981, 1, 40)])
    return Series(
        chart=f"cdf_{key}",
        arm=arm,
        level=level,
        class_name=class_name,
        x=np.quantile(drawn, shares).tolist(),
        y=shares.tolist(),
    )


def _estimates(key: str, arm: str, level: float, class_name: str, drawn: Any) -> list[Metric]:
    found = []
    for name, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        value = float(np.quantile(drawn, q))
        estimate = Estimate(
            value=value,
            low=value * 0.93,
            high=value * 1.09,
            n=1500 if key == "itl" else 700,
            enough=key == "itl" or name != "p99",
        )
        found.append(
            Metric(
                arm=arm, level=level, class_name=class_name, key=f"{key}_{name}", estimate=estimate
            )
        )
    return found


def _verdicts(
    names: tuple[str, ...], level: float, classes: tuple[str, str], samples: dict[Any, Any]
) -> list[Verdict]:
    found = []
    for arm in names[1:]:
        for class_name in classes:
            for key, q in (
                ("ttft_p50", 0.5),
                ("itl_p99", 0.99),
                ("tpot_p50", 0.5),
                ("tpot_p90", 0.9),
                ("ttft_p99", 0.99),
            ):
                figure = key.split("_")[0]
                base = float(np.quantile(samples[class_name, figure, names[0], level], q))
                value = float(np.quantile(samples[class_name, figure, arm, level], q))
                ratio = value / base
                low, high = ratio * 0.88, ratio * 1.13
                outcome = "better" if high < 1 else "worse" if low > 1 else "tie"
                if key == "ttft_p99":
                    outcome, low, high = "unknown", None, None  # type: ignore[assignment]
                found.append(
                    Verdict(
                        arm=arm,
                        base=names[0],
                        level=level,
                        class_name=class_name,
                        key=key,
                        base_value=base,
                        value=value,
                        ratio=ratio,
                        low=low,
                        high=high,
                        better="lower",
                        outcome=outcome,
                        primary=key != "tpot_p90",
                        pairs=5,
                        note="700 requests; a p99 takes 1000" if outcome == "unknown" else "",
                    )
                )
        found.append(
            Verdict(
                arm=arm,
                base=names[0],
                level=level,
                class_name="all",
                key="goodput_rps",
                base_value=level * 2.44,
                value=level * 3.72,
                ratio=3.72 / 2.44,
                low=1.31,
                high=1.77,
                better="higher",
                outcome="better",
                pairs=5,
            )
        )
        found.append(
            Verdict(
                arm=arm,
                base=names[0],
                level=level,
                class_name="all",
                key="usd_per_million_good_tokens",
                base_value=9.1,
                value=7.2,
                ratio=0.79,
                low=0.66,
                high=0.93,
                better="lower",
                outcome="better",
                pairs=5,
            )
        )
    return found


def _max_rates(names: tuple[str, ...]) -> list[Verdict]:
    return [
        Verdict(
            arm=arm,
            base=names[0],
            level=0.0,
            class_name="all",
            key="max_rate",
            base_value=4.0,
            value=7.1,
            ratio=1.78,
            low=1.4,
            high=2.1,
            better="higher",
            outcome="better",
            pairs=5,
        )
        for arm in names[1:]
    ]


def _economy(names: tuple[str, ...], level: float) -> list[Metric]:
    found = []
    for place, name in enumerate(names):
        for key, value in (
            ("goodput_rps", level * (2.44 + 0.6 * place)),
            ("goodput_per_accelerator", level * (2.44 + 0.6 * place) / (3 + place)),
            ("usd_per_million_good_tokens", 9.1 - 0.9 * place),
            ("attainment", 0.61 + 0.12 * place),
            ("chunks_per_token", 0.998),
        ):
            estimate = Estimate(value=value, low=value * 0.95, high=value * 1.05, n=1400)
            found.append(
                Metric(arm=name, level=level, class_name="all", key=key, estimate=estimate)
            )
    return found


def _times(names: tuple[str, ...], level: float) -> list[Series]:
    seconds = np.arange(0, 120, 2.0)
    found = []
    for place, name in enumerate(names):
        wave = level * (12 - place * 2) + np.sin(seconds / 9 + place) * level * 2.4
        for chart, values in (("time_in_flight", wave), ("time_waiting", np.maximum(wave - 6, 0))):
            found.append(
                Series(chart=chart, arm=name, level=level, x=seconds.tolist(), y=values.tolist())
            )
        for worker in ("decode-1", "decode-2")[: place + 1]:
            usage = np.clip(wave / 30 + (0.1 if worker.endswith("2") else 0), 0, 1)
            found.append(
                Series(
                    chart="time_kv_usage",
                    arm=name,
                    level=level,
                    source=worker,
                    x=seconds.tolist(),
                    y=usage.tolist(),
                )
            )
    return found


def _waterfalls(
    names: tuple[str, ...], level: float, classes: tuple[str, str], arms: int
) -> list[Series]:
    stages = ["queue", "prefill", "transfer", "first_decode"]
    parts = [[0.5, 1.3, 0.0, 0.1]] + [[0.2, 1.5, 0.3, 0.15]] * (arms - 1)
    return [
        Series(
            chart="waterfall",
            arm=name,
            level=level,
            class_name=classes[1],
            labels=stages,
            y=list(part),
        )
        for name, part in zip(names, parts, strict=False)
    ]


def _rates(
    names: tuple[str, ...], levels: list[float], classes: tuple[str, str], samples: dict[Any, Any]
) -> list[Series]:
    found = []
    for place, name in enumerate(names):
        rates = [4 * level for level in levels]
        hollow = [place == 0 and level == max(levels) for level in levels]
        for class_name in classes:
            for key, q in (
                ("ttft_p50", 0.5),
                ("ttft_p99", 0.99),
                ("itl_p99", 0.99),
                ("tpot_p99", 0.99),
            ):
                ys = [
                    float(np.quantile(samples[class_name, key.split("_")[0], name, level], q))
                    for level in levels
                ]
                found.append(_rate(f"rate_{key}", name, class_name, rates, ys, hollow))
        shares = [0.98 - 0.24 * level / (1 + place) for level in levels]
        goods = [rate * share for rate, share in zip(rates, shares, strict=True)]
        found.append(_rate("rate_goodput", name, "all", rates, goods, hollow))
        found.append(_rate("rate_attainment", name, "all", rates, shares, hollow))
    return found


def _rate(
    chart: str, arm: str, class_name: str, xs: list[float], ys: list[float], hollow: list[bool]
) -> Series:
    return Series(
        chart=chart,
        arm=arm,
        class_name=class_name,
        x=xs,
        y=ys,
        low=[y * 0.9 for y in ys],
        high=[y * 1.1 for y in ys],
        saturated=hollow,
    )


def _blocks(names: tuple[str, ...], levels: list[float]) -> list[Block]:
    found = []
    order = 0
    for level in levels:
        for pair in range(5):
            row = names if pair % 2 else tuple(reversed(names))
            for name in row:
                broken = pair == 2 and level == levels[0]
                problems = []
                if broken and name == names[0]:
                    text = "3 % of the prompt tokens came from a warm cache"
                    problems = [Problem(code="warm_cache", text=text)]
                found.append(
                    Block(
                        arm=name,
                        level=level,
                        pair=pair,
                        order=order,
                        salt=f"{order:08x}",
                        folder=f"blocks/{order:03d}",
                        counted=not broken,
                        problems=problems,
                        summary={
                            "all": {
                                "requests_per_s": {"value": level * 0.99, "sum": 475, "of": 120},
                                "error_share": {"value": 0.002, "sum": 1, "of": 480},
                                "chunks_per_token": {"value": 0.998, "sum": 998, "of": 1000},
                                "errors": {"value": 1, "n": 480},
                                "cached_share": {"value": 0.03 if problems else 0.0},
                            },
                            "client": {
                                "lag_p99_s": 0.0004,
                                "lag_max_s": 0.003,
                                "stall_p99_s": 0.001,
                                "cpu_share": 0.21,
                            },
                        },
                    )
                )
                order += 1
    return found

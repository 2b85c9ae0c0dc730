"""What a comparison says, for runs whose truth is known because they were made up here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest

from benchmarks.compare import series, verdicts
from benchmarks.compare.analysis import Analysis, analyse
from benchmarks.compare.analysis_pool import _crossing
from benchmarks.comparison import Accelerators, Arm, Block, Metric, Series, Verdict
from benchmarks.plan import Slo
from benchmarks.records import Problem, RequestRecord, Run, RunMeta, Scrape

DURATION_S = 20.0


def make_run(
    seed: int,
    *,
    requests: int = 120,
    ttft: float = 1.0,
    itl: float = 1.0,
    fail: float = 0.0,
    classes: tuple[str, ...] = ("long", "short"),
    lane: str | None = None,
    wait_growth: float = 0.0,
    **meta: Any,
) -> Run:
    """One block: equal seeds give the same schedule and luck; ``ttft`` and ``itl`` stretch the
    waits, ``wait_growth`` lets every request wait so much longer per second of the run."""
    rng = np.random.default_rng(seed)
    pace = float(rng.lognormal(0, 0.1))
    records = []
    for index in range(requests):
        name = classes[index % len(classes)]
        at = index * DURATION_S / requests
        first = at + 0.1 * ttft * pace * rng.lognormal(0, 0.2) + wait_growth * at
        gaps = 0.01 * itl * pace * rng.lognormal(0, 0.2, 9)
        chunks = (first + np.concatenate([[0.0], np.cumsum(gaps)])).tolist()
        failed = bool(rng.random() < fail)
        records.append(
            RequestRecord(
                index=index,
                class_name=name,
                scheduled_s=at,
                sent_s=at,
                headers_s=at + 0.001,
                first_content_s=None if failed else chunks[0],
                last_content_s=None if failed else chunks[-1],
                end_s=chunks[-1],
                error="http_503" if failed else None,
                output_tokens=None if failed else 10,
                prompt_tokens=None if failed else 100,
                chunks=0 if failed else 10,
                chunks_s=[] if failed else chunks,
                lane=lane,
            )
        )
    plan = {"version": f"v{seed}", "offered_rps": requests / DURATION_S if lane is None else None}
    fields = {"plan": plan, "complete": True, **meta}
    return Run(
        RunMeta(
            id="r",
            started_wall_s=0.0,
            duration_s=DURATION_S,
            ended_s=DURATION_S,
            salt="s",
            target={},
            **fields,
        ),
        records,
    )


class Comparison:
    """Arms ``base`` and ``new`` and their blocks; settings of ``make_run`` by arm."""

    def __init__(self, pairs: int = 6, levels: tuple[float, ...] = (1.0,)) -> None:
        self.arms = [Arm(name="base"), Arm(name="new")]
        self.pairs, self.levels = pairs, levels
        self.slos: dict[str, Slo] = {}
        self.blocks: list[Block] = []
        self.runs: dict[tuple[str, float, int], Run] = {}

    def measure(self, base: dict[str, Any], new: dict[str, Any], noise: bool = True) -> Comparison:
        for level in self.levels:
            for pair in range(self.pairs):
                for arm, settings in (("base", base), ("new", new)):
                    rng = np.random.default_rng([pair, int(level * 10), arm == "new"])
                    luck = {
                        key: value * (rng.lognormal(0, 0.03) if noise else 1.0)
                        for key, value in {"ttft": 1.0, "itl": 1.0, **settings}.items()
                        if key in ("ttft", "itl")
                    }
                    chosen = {"requests": int(120 * level), **settings, **luck}
                    self.runs[arm, level, pair] = make_run(pair, **chosen)
                    self.blocks.append(
                        Block(
                            arm=arm,
                            level=level,
                            pair=pair,
                            order=len(self.blocks),
                            salt="",
                            folder="",
                        )
                    )
        return self

    def analyse(self, **more: Any) -> Analysis:
        return analyse(self.arms, self.blocks, self.runs, slos=self.slos, resamples=300, **more)


def verdict(found: Analysis, class_name: str, key: str) -> Verdict:
    return next(v for v in found.verdicts if (v.class_name, v.key) == (class_name, key))


def figure(found: Analysis, arm: str, class_name: str, key: str) -> Metric:
    wanted = (arm, class_name, key)
    return next(m for m in found.metrics if (m.arm, m.class_name, m.key) == wanted)


def lines(found: Analysis, chart: str, arm: str = "new", class_name: str = "all") -> list[Series]:
    wanted = (chart, arm, class_name)
    return [s for s in found.series if (s.chart, s.arm, s.class_name) == wanted]


def test_an_arm_against_itself_is_a_tie_in_everything() -> None:
    """The very same records give ratios of one, ties, and a headline that says so."""
    found = Comparison().measure({}, {}, noise=False).analyse()
    assert {v.outcome for v in found.verdicts} == {"tie"}
    assert {v.ratio for v in found.verdicts} == {1.0}
    assert len(found.headline) == 1
    assert found.headline[0].startswith("No difference found between new and base in ")


def test_wins_and_losses_are_both_told_largest_first() -> None:
    """A sixfold lower ITL and a TTFT half as long again are found, quantified and said."""
    found = Comparison().measure({"itl": 6.0}, {"ttft": 1.5}).analyse()
    itl = verdict(found, "short", "itl_p99")
    assert itl.outcome == "better"
    assert itl.ratio == pytest.approx(1 / 6, rel=0.1)
    assert itl.low is not None
    assert itl.high is not None
    assert itl.low < 1 / 6 < itl.high
    assert verdict(found, "long", "ttft_p50").outcome == "worse"
    told = found.headline[0]
    assert told.startswith("new: ")
    assert "times lower than with base (95 % confidence " in told
    assert " % higher (" in told
    assert told.index("times lower") < told.index(" % higher")
    assert len(found.headline) <= 3


def test_the_family_is_small_and_takes_percentiles_with_samples_enough() -> None:
    """360 requests of a class allow p95 of TTFT; 3240 gaps allow p99 of ITL."""
    found = Comparison().measure({}, {}).analyse()
    assert [(v.class_name, v.key) for v in found.verdicts] == [
        ("long", "ttft_p95"),
        ("long", "itl_p99"),
        ("long", "longest_gap_p95"),
        ("long", "ttft_p50"),
        ("long", "tpot_p50"),
        ("short", "ttft_p95"),
        ("short", "itl_p99"),
        ("short", "longest_gap_p95"),
        ("short", "ttft_p50"),
        ("short", "tpot_p50"),
        ("all", "output_tokens_per_s"),
    ]


def test_one_class_is_judged_once() -> None:
    """With a single class, all requests are that class, and only ``all`` has verdicts."""
    found = Comparison().measure({"classes": ("chat",)}, {"classes": ("chat",)}).analyse()
    assert {v.class_name for v in found.verdicts} == {"all"}


def test_too_few_pairs_say_nothing_and_how_many_are_missing() -> None:
    """Four pairs of a sixfold difference: unknown, said in note, problem and headline."""
    found = Comparison(pairs=4).measure({"itl": 6.0}, {}).analyse()
    assert {v.outcome for v in found.verdicts} == {"unknown"}
    assert "1 missing" in verdict(found, "short", "itl_p99").note
    assert verdict(found, "short", "itl_p99").ratio == pytest.approx(1 / 6, rel=0.1)
    assert found.problems[0].code == "too_few"
    assert "1 are missing" in found.problems[0].text
    assert found.headline == [
        "Nothing can be said of new yet: 4 of the 5 pairs that a verdict needs were counted."
    ]


def test_a_pair_with_one_invalid_block_is_left_out_whole() -> None:
    """Both blocks of the pair lose their vote, and the report says which and why."""
    made = Comparison().measure({}, {})
    made.runs["new", 1.0, 2].meta.problems = [Problem("client_lagged", "late")]
    found = made.analyse()
    assert [b.counted for b in made.blocks if b.pair == 2] == [False, False]
    assert sum(b.counted for b in made.blocks) == 10
    assert {v.pairs for v in found.verdicts} == {5}
    assert found.problems[0].text.endswith("pair 3: new is invalid (client_lagged)")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda m: m.runs.pop(("new", 1.0, 0)), "new was not measured"),
        (lambda m: setattr(m.runs["new", 1.0, 0].meta, "complete", False), "interrupted"),
        (lambda m: m.runs["new", 1.0, 0].meta.plan.update(version="x"), "different plans"),
        (lambda m: setattr(m.blocks[1], "problems", [Problem("errors", "")]), "(errors)"),
    ],
)
def test_what_makes_a_pair_not_count(spoil: Any, reason: str) -> None:
    """Missing, interrupted, sent another plan, or found invalid by the block."""
    made = Comparison(pairs=5).measure({}, {})
    spoil(made)
    found = made.analyse()
    assert found.problems[0].code == "too_few"
    assert reason in found.problems[0].text
    assert {b.counted for b in made.blocks if b.pair == 0} == {False}


def test_no_counted_pair_at_all_still_gives_a_result() -> None:
    """Nothing can be said, and that is what is said."""
    made = Comparison(pairs=1).measure({}, {})
    made.runs.clear()
    found = made.analyse()
    assert found.headline == ["Nothing can be said: no pair of blocks counted."]
    assert (found.metrics, found.verdicts, found.series) == ([], [], [])


def test_the_order_of_pairs_changes_no_estimate() -> None:
    """Renumbering the pairs gives the same values and ratios."""
    made = Comparison().measure({}, {"ttft": 1.3})
    first = made.analyse()
    made.runs = {(arm, level, 5 - pair): run for (arm, level, pair), run in made.runs.items()}
    second = made.analyse()
    assert [v.ratio for v in first.verdicts] == pytest.approx([v.ratio for v in second.verdicts])
    assert [m.estimate.value for m in first.metrics] == pytest.approx(
        [m.estimate.value for m in second.metrics], nan_ok=True
    )


def test_the_same_seed_repeats_the_analysis_to_the_bit() -> None:
    """A result can be computed again from its records."""
    made = Comparison().measure({}, {"ttft": 1.3})
    assert msgspec.json.encode(made.analyse()) == msgspec.json.encode(made.analyse())


def test_percentiles_are_pooled_not_averaged() -> None:
    """A block that is all slow moves p95 of all samples to its own values."""
    made = Comparison(pairs=5).measure({}, {})
    made.runs["new", 1.0, 0] = make_run(0, ttft=50.0)
    value = figure(made.analyse(), "new", "all", "ttft_p95").estimate.value
    pooled = np.concatenate(
        [[r.first_content_s - r.sent_s for r in made.runs["new", 1.0, k].records] for k in range(5)]  # type: ignore[operator]
    )
    assert value == pytest.approx(np.quantile(pooled, 0.95))


def test_goodput_and_prices_are_judged_where_they_are_known() -> None:
    """Twice the accelerators at the same speed: equal goodput, half of it for each, twice the
    price of a good token."""
    made = Comparison().measure({}, {}, noise=False)
    made.slos = {"short": Slo(ttft_s=10.0), "long": Slo(ttft_s=10.0)}
    made.arms = [
        Arm(name="base", accelerators=[Accelerators(label="L4", count=1, price_per_hour=0.72)]),
        Arm(name="new", accelerators=[Accelerators(label="L4", count=2, price_per_hour=0.72)]),
    ]
    found = made.analyse()
    assert verdict(found, "all", "goodput_rps").outcome == "tie"
    per = verdict(found, "all", "goodput_per_accelerator")
    assert per.outcome == "worse"
    assert per.ratio == pytest.approx(0.5)
    price = verdict(found, "all", "usd_per_million_good_tokens")
    # 6 requests/s of 10 tokens: 216,000 good tokens an hour for 0.72 dollars.
    assert price.base_value == pytest.approx(0.72 / 0.216)
    assert (price.outcome, price.better) == ("worse", "lower")
    assert price.ratio == pytest.approx(2.0)
    assert price.low == pytest.approx(2.0)
    assert "the price of a million good output tokens is 2.0 times higher" in found.headline[0]


def test_an_arm_that_serves_nothing_good_has_no_price_and_loses() -> None:
    """No ratio can be formed, and still the verdict is plain."""
    made = Comparison().measure({}, {"ttft": 9.0})
    made.slos = {"all": Slo(ttft_s=0.3)}
    made.arms = [
        Arm(name=name, accelerators=[Accelerators(label="L4", count=1, price_per_hour=1.0)])
        for name in ("base", "new")
    ]
    found = made.analyse()
    price = verdict(found, "all", "usd_per_million_good_tokens")
    assert (price.value, price.ratio, price.low, price.outcome) == (None, None, None, "worse")
    assert verdict(found, "all", "goodput_rps").outcome == "worse"
    assert "the price of a million good output tokens is none against $4.6" in found.headline[0]


def test_latency_is_not_won_by_failing_requests() -> None:
    """An arm that drops a tenth of its requests answers the rest faster; that says nothing."""
    found = Comparison().measure({}, {"fail": 0.1, "ttft": 0.5}).analyse()
    told = verdict(found, "short", "ttft_p50")
    assert told.outcome == "unknown"
    assert "requests failed" in told.note
    assert any(line.startswith("Failed: ") and "new's requests" in line for line in found.headline)


def test_failing_does_not_excuse_a_slower_arm() -> None:
    """It lost in spite of the requests that it dropped."""
    found = Comparison().measure({}, {"fail": 0.1, "ttft": 2.0}).analyse()
    assert verdict(found, "short", "ttft_p50").outcome == "worse"


def test_throughput_of_arms_that_kept_up_is_a_tie() -> None:
    """Answers take three seconds longer, so fewer tokens arrive before the window ends: an effect
    of the window, not of the arm. In lanes the same would be a loss."""
    slow = {"ttft": 31.0}
    found = Comparison().measure({}, slow).analyse()
    told = verdict(found, "all", "output_tokens_per_s")
    assert told.ratio is not None
    assert told.ratio < 0.95
    assert (told.outcome, "kept up" in told.note) == ("tie", True)
    lanes = Comparison().measure({"lane": "a"}, {**slow, "lane": "a"}).analyse()
    assert verdict(lanes, "all", "output_tokens_per_s").outcome == "worse"


def test_an_arm_whose_queue_grows_is_called_saturated() -> None:
    """Every second of the run adds half a second of waiting: it loses throughput, and says so."""
    found = Comparison().measure({}, {"wait_growth": 0.5}).analyse()
    assert verdict(found, "all", "output_tokens_per_s").outcome == "worse"
    assert [p.code for p in found.problems] == ["saturated"]
    assert lines(found, "rate_ttft_p50")[0].saturated == [True]
    assert lines(found, "rate_ttft_p50", arm="base")[0].saturated == [False]


def test_the_highest_rate_within_the_slo_is_the_mean_over_pairs() -> None:
    """Three levels offer 3, 6 and 12 requests per second; the slower arm masters the lowest only,
    the other one two. A tenth of the way to the next level attainment falls below 90 %."""
    made = Comparison(pairs=5, levels=(0.5, 1.0, 2.0))
    made.slos = {"all": Slo(ttft_s=0.4)}
    made.measure({"requests": 60}, {"requests": 60})
    for level, base, new in ((0.5, 1.0, 1.0), (1.0, 1.0, 9.0), (2.0, 9.0, 1.0)):
        for pair in range(5):
            requests = int(120 * level)
            made.runs["base", level, pair] = make_run(pair, requests=requests, ttft=base)
            made.runs["new", level, pair] = make_run(pair, requests=requests, ttft=new)
    found = made.analyse()
    told = verdict(found, "all", "max_rate")
    assert told.base_value == pytest.approx(6.6)
    assert told.value == pytest.approx(3.3)
    assert told.outcome == "worse"
    assert told.level == verdicts.ALL_LEVELS
    assert figure(found, "base", "all", "max_rate").estimate.value == pytest.approx(6.6)
    assert any("the highest rate within the SLO is 2.0 times lower" in t for t in found.headline)
    assert " at 12 requests/s: " in found.headline[0]
    assert found.headline[0].count("95 % confidence") == 1


def test_open_requests_beside_closed_loops_can_saturate() -> None:
    """A machine that cannot keep up with the long prompts says so, though its streams never wait;
    what such a load offers in all is the server's choice and no rate."""
    made = Comparison().measure({}, {})
    for pair in range(6):
        for arm, growth in (("base", 0.0), ("new", 0.5)):
            run = made.runs[arm, 1.0, pair]
            for record in run.records:
                record.lane = "a"
            run.records += make_run(pair, requests=40, wait_growth=growth).records
    found = made.analyse()
    assert [p.text[:13] for p in found.problems if p.code == "saturated"] == ["new, load 1: "]
    assert lines(found, "rate_ttft_p50")[0].x == [1.0]


def test_a_comparison_without_a_counted_pair_is_no_comparison() -> None:
    """Every block is invalid: that is the first thing to be said, and it is fatal."""
    made = Comparison(pairs=2).measure({}, {})
    for block in made.blocks:
        block.problems = [Problem("client_lagged", "late")]
    found = made.analyse()
    assert [(p.code, p.fatal) for p in found.problems] == [("no_pairs", True), ("too_few", False)]
    assert found.verdicts == []


def rate_verdict(base: Sequence[float], new: Sequence[float]) -> Verdict:
    """Of the highest rate within an SLO of 0.4 s, with these factors on the TTFT by level."""
    made = Comparison(pairs=5, levels=(0.5, 1.0, 2.0))
    made.slos = {"all": Slo(ttft_s=0.4)}
    made.measure({}, {})
    for level, *factors in zip((0.5, 1.0, 2.0), base, new, strict=True):
        for arm, factor in zip(("base", "new"), factors, strict=True):
            for pair in range(5):
                run = make_run(pair, requests=int(120 * level), ttft=factor)
                made.runs[arm, level, pair] = run
    return verdict(made.analyse(), "all", "max_rate")


@pytest.mark.parametrize(
    ("base", "new", "outcome", "words"),
    [
        ((1, 1, 1), (1, 1, 1), "unknown", "base and new met the SLO at the highest load too"),
        ((9, 9, 9), (9, 9, 9), "unknown", "measure lower loads"),
        ((1, 9, 9), (1, 1, 1), "better", "new met the SLO at the highest load too: it is at least"),
        ((1, 1, 1), (1, 9, 9), "worse", "base met the SLO at the highest load too: it is at least"),
        ((1, 9, 9), (1, 9, 9), "tie", ""),
        ((9, 9, 9), (1, 9, 9), "better", ""),
    ],
)
def test_a_rate_beyond_what_was_measured_can_win_and_not_tie(
    base: tuple[int, ...], new: tuple[int, ...], outcome: str, words: str
) -> None:
    """Two arms that meet the SLO at the highest load may differ as much as they like above it."""
    told = rate_verdict(base, new)
    assert told.outcome == outcome
    assert words in told.note


def test_a_point_of_attainment_is_no_factor_of_two() -> None:
    """90.5 % against 89.5 % at the upper of two levels: nearly the same rate."""
    at_upper = [_crossing([(6.0, 1.0), (12.0, share)]).rate for share in (0.905, 0.895)]
    assert at_upper == [12.0, pytest.approx(6.0 + 6.0 * 0.1 / 0.105)]


def test_chosen_verdicts_replace_the_family() -> None:
    """And one that has too few samples is unknown with the number that it needs."""
    primary = [("all", "e2e_p50"), ("short", "ttft_p99")]
    found = Comparison().measure({}, {"ttft": 3.0}).analyse(primary=primary)
    assert [(v.class_name, v.key) for v in found.verdicts] == primary
    assert verdict(found, "all", "e2e_p50").outcome == "worse"
    told = verdict(found, "short", "ttft_p99")
    assert told.outcome == "unknown"
    assert told.note == "base has 360 samples; this percentile needs 1000"
    assert not figure(found, "new", "short", "ttft_p99").estimate.enough


def test_three_arms_get_a_sentence_each() -> None:
    """Every arm is compared with the first one only."""
    made = Comparison().measure({}, {"ttft": 3.0})
    made.arms.append(Arm(name="third"))
    for pair in range(6):
        made.runs["third", 1.0, pair] = make_run(pair, itl=4.0)
        made.blocks.append(Block(arm="third", level=1.0, pair=pair, order=0, salt="", folder=""))
    found = made.analyse()
    assert {(v.arm, v.base) for v in found.verdicts} == {("new", "base"), ("third", "base")}
    assert [line.split(":")[0] for line in found.headline] == ["new", "third"]


def test_cdfs_have_at_most_101_points_from_least_to_most() -> None:
    """They are monotone and end at one."""
    found = Comparison().measure({}, {}).analyse()
    for chart in ("cdf_ttft", "cdf_itl", "cdf_tpot", "cdf_e2e"):
        (line,) = lines(found, chart, class_name="short")
        assert len(line.x) == len(line.y) == 101
        assert line.x == sorted(line.x)
        assert (line.y[0], line.y[-1]) == (0.0, 1.0)


def test_rate_charts_have_a_point_per_level_with_its_band() -> None:
    """x is what a level offers; a percentile from too few samples is no point."""
    found = Comparison(pairs=5, levels=(0.5, 1.0)).measure({}, {}).analyse()
    (line,) = lines(found, "rate_ttft_p50")
    assert line.x == [3.0, 6.0]
    assert len(line.low) == len(line.high) == 2
    assert all(a < b < c for a, b, c in zip(line.low, line.y, line.high, strict=True))
    assert lines(found, "rate_ttft_p99") == []


def test_load_over_time_adds_up_to_the_requests() -> None:
    """The time series of requests sent integrates to their number; in flight to their time."""
    made = Comparison(pairs=2).measure({}, {}, noise=False)
    found = made.analyse()
    (sent,) = lines(found, "time_rps")
    (flight,) = lines(found, "time_in_flight")
    width = DURATION_S / len(sent.x)
    assert sum(sent.y) * width == pytest.approx(120)
    spent = [
        min(r.end_s or 0.0, DURATION_S) - (r.sent_s or 0.0)
        for pair in (0, 1)
        for r in made.runs["new", 1.0, pair].records
    ]
    assert sum(flight.y) * width == pytest.approx(sum(spent) / 2)


@pytest.mark.parametrize(("other", "sources"), [("w1", ["w1"]), ("w2", ["decode"])])
def test_scraped_lines_are_by_worker_or_by_role(other: str, sources: list[str]) -> None:
    """Workers of the same name in all blocks have a line each, others one per role. Labels of one
    look are added up for requests waiting."""
    made = Comparison(pairs=2).measure({}, {})
    for pair, worker in ((0, "w1"), (1, other)):
        values = {
            'vllm:num_requests_waiting{engine="0"}': 2.0 + pair,
            'vllm:num_requests_waiting{engine="1"}': 1.0,
            'vllm:num_requests_waiting_by_reason{reason="capacity"}': 50.0,
            'vllm:kv_cache_usage_perc{engine="0"}': 0.25,
        }
        made.runs["new", 1.0, pair].scrapes = [
            Scrape(at_s=3.5, source=worker, role="decode", values=values)
        ]
    found = made.analyse()
    waiting = lines(found, "time_waiting")
    assert [line.source for line in waiting] == sources
    assert waiting[0].y == [3.5]
    assert waiting[0].x == [3.5]
    assert lines(found, "time_kv_usage")[0].y == [0.25]


def test_the_waterfall_is_the_servers_where_it_is_known() -> None:
    """Stages keep their order, and what the client waited beyond them is ``other``; an arm
    without server figures shows what the client can tell apart."""
    made = Comparison(pairs=2).measure({}, {})
    found = made.analyse(stages={"new": {"queue": 0.01, "prefill": 0.02}, "base": {}})
    (line,) = lines(found, "waterfall")
    assert line.labels == ["queue", "prefill", "other"]
    mean = figure(found, "new", "all", "ttft_sched_mean").estimate.value
    assert sum(line.y) == pytest.approx(mean)
    (client,) = lines(found, "waterfall", arm="base")
    assert client.labels == list(series._CLIENT_STAGES)
    assert client.y[:2] == pytest.approx([0.0, 0.001])


def test_the_trade_off_needs_a_known_number_of_accelerators() -> None:
    """Tokens per user and per accelerator, or no line at all."""
    made = Comparison(pairs=3).measure({}, {})
    assert lines(made.analyse(), "pareto") == []
    made.arms[1].accelerators = [Accelerators(label="L4", count=2)]
    found = made.analyse()
    (line,) = lines(found, "pareto")
    tpot = figure(found, "new", "all", "tpot_p50").estimate.value
    output = figure(found, "new", "all", "output_tokens_per_s").estimate.value
    assert tpot is not None
    assert output is not None
    assert line.x == pytest.approx([1 / tpot])
    assert line.y == pytest.approx([output / 2])


def test_everything_found_is_finite_and_json() -> None:
    """No NaN and no infinity reach a report."""
    made = Comparison().measure({}, {"fail": 0.3, "ttft": 9.0})
    made.slos = {"short": Slo(ttft_s=0.3)}
    found = made.analyse()
    for metric in found.metrics:
        numbers = (metric.estimate.value, metric.estimate.low, metric.estimate.high)
        assert all(n is None or math.isfinite(n) for n in numbers), metric
    for line in found.series:
        assert all(math.isfinite(n) for n in (*line.x, *line.y, *line.low, *line.high)), line
    msgspec.json.encode(found)


def test_runs_without_requests_or_tokens_break_nothing() -> None:
    """An empty block and one whose server counts no tokens are said, not fallen over."""
    made = Comparison().measure({}, {})
    made.runs["new", 1.0, 0].records = []
    for record in made.runs["new", 1.0, 1].records:
        record.output_tokens = None
    found = made.analyse()
    assert verdict(found, "short", "ttft_p50").pairs == 5
    assert verdict(found, "short", "tpot_p50").outcome == "unknown"
    assert [p.code for p in found.problems] == ["no_usage"]

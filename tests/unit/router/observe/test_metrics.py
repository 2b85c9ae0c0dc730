"""The router's metrics: events, streams, bounds, pulled gauges."""

from __future__ import annotations

import logging
from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.observe import ItlRecorder, RouterMetrics
from router.observe import families as f
from router.observe.hot import Kind
from router.observe.render import OPENMETRICS
from tests.unit.router.observe.exercise import exercised

VERSION = "abc123"
PATH = {"path": "local", "profile_version": VERSION}


def value(metrics: RouterMetrics, name: str, **labels: str) -> float | None:
    found: float | None = metrics.registry.get_sample_value(name, labels)
    return found


def test_a_request_counts_once_in_everything_that_concerns_it() -> None:
    """Rate, duration, TTFT, attempts and tokens from one call."""
    metrics = RouterMetrics(process=False)
    metrics.request_began()
    assert value(metrics, "baton_requests_in_flight") == 1
    metrics.request_done(
        endpoint="/v1/completions",
        path="local",
        reason="short_prompt",
        profile_version=VERSION,
        status=200,
        duration_s=2.0,
        ttft_s=0.3,
        attempts=2,
        prompt_tokens=100,
        uncached_tokens=40,
        output_tokens=7,
    )
    labels = {"endpoint": "/v1/completions", **PATH}
    done = value(metrics, "baton_requests_total", **labels, reason="short_prompt", status="200")
    assert done == 1
    assert value(metrics, "baton_request_duration_seconds_sum", **labels) == 2.0
    assert value(metrics, "baton_time_to_first_content_seconds_sum", **PATH) == 0.3
    assert value(metrics, "baton_attempts_sum") == 2
    assert value(metrics, "baton_prompt_tokens_sum") == 100
    assert value(metrics, "baton_uncached_prompt_tokens_sum") == 40
    assert value(metrics, "baton_output_tokens_sum") == 7
    assert value(metrics, "baton_requests_in_flight") == 0


def test_a_request_turned_away_observes_only_what_it_had() -> None:
    """No attempt, no token and no TTFT where there was none."""
    metrics = RouterMetrics(process=False)
    metrics.request_began()
    metrics.request_done(
        endpoint="/v1/completions",
        path="",
        reason="queue_full",
        profile_version=VERSION,
        status=429,
        duration_s=0.001,
    )
    path = {"path": "", "profile_version": VERSION}
    labels = {"endpoint": "/v1/completions", **path}
    assert value(metrics, "baton_requests_total", **labels, reason="queue_full", status="429") == 1
    for name in ("attempts", "prompt_tokens", "uncached_prompt_tokens", "output_tokens"):
        assert value(metrics, f"baton_{name}_count") == 0
    assert value(metrics, "baton_time_to_first_content_seconds_count", **path) is None


def test_gaps_of_a_stream_are_those_between_its_contents() -> None:
    """Three contents make two gaps; their sum is the time from first to last."""
    metrics = RouterMetrics(process=False)
    itl = ItlRecorder()
    for now_s in (100.0, 100.015625, 100.09375):
        itl.tick(now_s)
    assert itl.first_s == 100.0
    assert itl.last_s == 100.09375
    metrics.stream_done("local", VERSION, itl, output_tokens=4)
    assert value(metrics, "baton_inter_token_seconds_count", **PATH) == 2
    assert value(metrics, "baton_inter_token_seconds_sum", **PATH) == 0.09375
    assert value(metrics, "baton_inter_token_seconds_bucket", **PATH, le="0.015") == 0
    assert value(metrics, "baton_inter_token_seconds_bucket", **PATH, le="0.02") == 1
    assert value(metrics, "baton_inter_token_seconds_bucket", **PATH, le="0.1") == 2
    assert value(metrics, "baton_time_per_output_token_seconds_sum", **PATH) == 0.03125


@given(
    st.lists(st.sampled_from([0.0, 0.001, *f.ITL_BOUNDS_S, 0.011, 0.0110001, 99.0]), max_size=40)
)
def test_each_gap_is_counted_in_its_bucket(gaps_s: list[float]) -> None:
    """However they follow each other, and whenever one looks."""
    itl = ItlRecorder()
    itl.tick(0.0)
    expected = [0] * (len(f.ITL_BOUNDS_S) + 1)
    now_s = 0.0
    for gap_s in gaps_s:
        seen_s = now_s + gap_s
        expected[bisect_left(f.ITL_BOUNDS_S, seen_s - now_s)] += 1
        now_s = seen_s
        itl.tick(now_s)
        if gap_s == 0.001:
            assert itl.gaps == expected
    assert itl.gaps == (expected if gaps_s else [])
    assert itl.span_s == now_s


@pytest.mark.parametrize("contents", [0, 1])
def test_a_stream_without_a_gap_observes_none(contents: int) -> None:
    """Neither ITL nor TPOT is made up."""
    metrics = RouterMetrics(process=False)
    itl = ItlRecorder()
    for now_s in range(contents):
        itl.tick(float(now_s))
    assert itl.span_s == 0
    metrics.stream_done("local", VERSION, itl, output_tokens=5)
    assert value(metrics, "baton_inter_token_seconds_count", **PATH) is None
    assert value(metrics, "baton_time_per_output_token_seconds_count", **PATH) is None


def test_a_stream_that_does_not_know_its_tokens_has_gaps_only() -> None:
    """Chunks are not tokens: without usage there is no TPOT."""
    metrics = RouterMetrics(process=False)
    itl = ItlRecorder()
    for now_s in (0.0, 1.0, 2.0):
        itl.tick(now_s)
    metrics.stream_done("local", VERSION, itl)
    assert value(metrics, "baton_inter_token_seconds_count", **PATH) == 2
    assert value(metrics, "baton_time_per_output_token_seconds_count", **PATH) is None


@pytest.mark.parametrize(
    ("predicted_s", "measured_s", "side", "error"),
    [(0.3, 0.2, "over", 0.5), (0.1, 0.2, "under", 0.5), (0.2, 0.2, "under", 0.0)],
)
def test_a_prediction_is_judged_by_what_came(
    predicted_s: float, measured_s: float, side: str, error: float
) -> None:
    """The error is a share of the measured time, and its side is kept."""
    metrics = RouterMetrics(process=False)
    metrics.predicted("local", predicted_s, measured_s)
    found = value(metrics, "baton_predicted_ttft_error_ratio_sum", path="local", side=side)
    assert found == pytest.approx(error)


@pytest.mark.parametrize(
    ("predicted_s", "measured_s"), [(1.0, 0.0), (float("inf"), 1.0), (float("nan"), 1.0)]
)
def test_a_prediction_or_measurement_that_is_no_time_is_left_out(
    predicted_s: float, measured_s: float
) -> None:
    """Nothing is divided by zero, and no sum becomes infinite."""
    metrics = RouterMetrics(process=False)
    metrics.predicted("local", predicted_s, measured_s)
    assert metrics.prediction_error.cells == {}


def test_profiles_are_told_apart() -> None:
    """What a canary's two sides do can be compared: each number says under which profile it came
    about."""
    metrics = RouterMetrics(process=False)
    for version, ttft_s in (("old", 0.5), ("new", 0.25), ("new", 0.25)):
        metrics.decided("threshold", "short_prompt", version)
        metrics.request_done(
            endpoint="/v1/completions",
            path="local",
            reason="short_prompt",
            profile_version=version,
            status=200,
            duration_s=1.0,
            ttft_s=ttft_s,
        )
    for version, number in (("old", 1), ("new", 2)):
        labels = {"path": "local", "profile_version": version}
        assert value(metrics, "baton_time_to_first_content_seconds_count", **labels) == number
        assert value(metrics, "baton_time_to_first_content_seconds_sum", **labels) == 0.5
        decided = {"decider": "threshold", "reason": "short_prompt", "profile_version": version}
        assert value(metrics, "baton_decisions_total", **decided) == number


def test_a_tenant_s_tokens_count_where_there_were_any() -> None:
    """Requests by outcome, tokens by kind."""
    metrics = RouterMetrics(process=False)
    metrics.tenant_done("acme", "ok", prompt_tokens=10, output_tokens=2)
    metrics.tenant_done("acme", "limited")
    assert value(metrics, "baton_tenant_requests_total", tenant="acme", outcome="limited") == 1
    assert value(metrics, "baton_tenant_tokens_total", tenant="acme", kind="prompt") == 10
    assert value(metrics, "baton_tenant_tokens_total", tenant="acme", kind="output") == 2


def test_a_flood_of_tenants_is_folded_and_told() -> None:
    """Cardinality is bounded, and a metric says that it was."""
    metrics = RouterMetrics(process=False)
    for number in range(f.TENANT_REQUESTS.most_series + 10):
        metrics.tenant_done(f"tenant-{number}", "ok")
    assert value(metrics, "baton_tenant_requests_total", tenant="other", outcome="ok") == 10
    folded = value(metrics, "baton_label_overflow_total", metric="baton_tenant_requests_total")
    assert folded == 10


def test_counters_with_known_values_start_at_zero() -> None:
    """The first mismatch of a canary must show as a growth, not as a new series."""
    metrics = RouterMetrics(process=False)
    assert value(metrics, "baton_canary_total", result="mismatched") == 0
    assert value(metrics, "baton_handoffs_total", state="failed") == 0
    assert value(metrics, "baton_shed_total", reason="full") == 0
    assert value(metrics, "baton_handoffs_reclaimed_total", how="released") == 0
    assert value(metrics, "baton_profile_switches_total", outcome="rolled_back") == 0


def test_gauges_are_read_when_they_are_asked_for() -> None:
    """Nothing is stored: a scrape sees the state of its moment."""
    metrics = RouterMetrics(process=False)
    depth: dict[tuple[str, ...], float] = {("normal",): 1.0}
    metrics.pull("baton_queue_depth", lambda: depth)
    assert value(metrics, "baton_queue_depth", band="normal") == 1
    depth["normal",] = 5
    assert value(metrics, "baton_queue_depth", band="normal") == 5
    depth.clear()
    assert value(metrics, "baton_queue_depth", band="normal") is None


def test_a_gauge_that_breaks_hides_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """A part's bug costs its own numbers and a line in the log."""

    def broken() -> dict[tuple[str, ...], float]:
        raise RuntimeError("broken")

    metrics = exercised()
    metrics.pull("baton_queue_depth", broken)
    with caplog.at_level(logging.ERROR):
        page = metrics.render()[0].decode()
    assert "\nbaton_queue_depth" not in page
    assert 'baton_workers{role="decode",state="ready"} 2.0' in page
    assert "baton_queue_depth cannot be read" in caplog.text


def test_a_counter_that_another_part_keeps_is_read_from_there() -> None:
    """It stays a counter, on every page."""
    metrics = RouterMetrics(process=False)
    metrics.pull("baton_canary_total", lambda: {("ok",): 7})
    assert value(metrics, "baton_canary_total", result="ok") == 7
    text, openmetrics = (metrics.render(a)[0].decode() for a in (None, OPENMETRICS))
    assert '# TYPE baton_canary_total counter\nbaton_canary_total{result="ok"} 7.0\n' in text
    assert '# TYPE baton_canary counter\nbaton_canary_total{result="ok"} 7.0\n' in openmetrics


@pytest.mark.parametrize("name", ["baton_nothing", "baton_attempts"])
def test_only_gauges_and_counters_of_the_table_are_pulled(name: str) -> None:
    """A name that is not in the table would be one that no document knows."""
    with pytest.raises(ValueError, match=name):
        RouterMetrics(process=False).pull(name, dict)


def test_every_metric_of_the_table_is_exported_once_exercised() -> None:
    """No family is declared and then forgotten: each has a sample."""
    found = {family.name for family in exercised().registry.collect() if family.samples}
    assert found == {family.name.removesuffix("_total") for family in f.ALL}


def test_names_follow_the_rules() -> None:
    """Prefix, base units, ``_total`` on counters only; buckets rise; labels are few."""
    for family in f.ALL:
        assert family.name.startswith("baton_")
        assert family.name.endswith("_total") == (family.kind is Kind.COUNTER)
        assert bool(family.buckets) == (family.kind is Kind.HISTOGRAM)
        assert list(family.buckets) == sorted(set(family.buckets))
        assert family.open_labels <= set(family.labels)
        assert family.help.endswith(".")
        assert "\\" not in family.help
        assert "\n" not in family.help
    assert len(f.BY_NAME) == len(f.ALL)

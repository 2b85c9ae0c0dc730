"""What is kept of a metrics page."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.engine_side import KEPT, parse_page
from benchmarks.engine_side.pages import is_counter, split_name


def _page() -> str:
    registry = CollectorRegistry()
    labels = ["engine", "model_name"]
    told = {"engine": "0", "model_name": 'odd "name} 1 \\ {'}
    for name in ("vllm:prompt_tokens", "vllm:nixl_num_failed_transfers", "vllm:not_wanted"):
        Counter(name, "x", labels, registry=registry).labels(**told).inc(3)
    Gauge("vllm:num_requests_running", "x", labels, registry=registry).labels(**told).set(7)
    for name in ("vllm:request_queue_time_seconds", "vllm:request_params_n"):
        Histogram(name, "x", labels, registry=registry).labels(**told).observe(0.25)
    Counter("baton_requests", "x", ["status"], registry=registry).labels("200").inc(4)
    Gauge("baton_requests_in_flight", "x", registry=registry).set(2)
    Histogram("baton_request_duration_seconds", "x", registry=registry).observe(1.5)
    return generate_latest(registry).decode()


def test_agrees_with_the_prometheus_parser() -> None:
    """Every kept sample has the name, labels and value that Prometheus' own parser finds, and
    nothing that is wanted is missing."""
    page = _page()
    expected = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            ours = sample.name.startswith("baton_") and not sample.name.endswith(
                ("_bucket", "_created")
            )
            if ours or sample.name in KEPT:
                expected[(sample.name, tuple(sorted(sample.labels)))] = sample.value
    found = {}
    for name, value in parse_page(page).items():
        base, labels = split_name(name)
        found[(base, tuple(sorted(labels)))] = value
    assert found == expected
    assert len(found) == 9


def test_buckets_and_other_families_are_left_out() -> None:
    """What is kept of a page is bounded by the list, however long the page is."""
    kept = parse_page(_page())
    assert not [name for name in kept if "bucket" in name or "created" in name]
    assert not [name for name in kept if "not_wanted" in name or "params_n" in name]


def test_broken_lines_are_left_out() -> None:
    """A page that is cut, or not one at all, gives what can be read, and no error."""
    page = "baton_a_total 1\nbaton_b_total x\nbaton_c_total NaN\nbaton_d_total +Inf\nbaton_e_tot"
    assert parse_page(page) == {"baton_a_total": 1.0}
    assert parse_page("<html>no page</html>") == {}


def test_timestamps_and_line_ends_do_not_matter() -> None:
    """A sample may carry a timestamp, and lines may end as on Windows."""
    assert parse_page('baton_a 1.5 1700000000000\r\nbaton_b{x="1"} 2\r\n') == {
        "baton_a": 1.5,
        'baton_b{x="1"}': 2.0,
    }


def test_counters_are_known_by_their_ends() -> None:
    """Gauges may fall; sums, counts and totals may not."""
    assert is_counter('vllm:prompt_tokens_total{engine="0"}')
    assert is_counter("vllm:nixl_bytes_transferred_sum")
    assert not is_counter("vllm:num_requests_running")

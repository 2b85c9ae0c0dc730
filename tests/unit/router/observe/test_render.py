"""Pages for Prometheus, and several pages as one."""

from __future__ import annotations

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from router.observe import RouterMetrics, merge_pages
from tests.unit.router.observe.exercise import exercised

Key = tuple[str, tuple[tuple[str, str], ...]]


def samples(families: list[Metric]) -> dict[Key, float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def of_page(page: str) -> dict[Key, float]:
    return samples(list(text_string_to_metric_families(page)))


def test_the_text_page_says_what_the_client_s_registry_says() -> None:
    """The fast writer and the Python client's objects are two views of the same numbers."""
    metrics = exercised()
    page, kind = metrics.render()
    assert kind.startswith("text/plain; version=0.0.4")
    assert of_page(page.decode()) == samples(list(metrics.registry.collect()))
    types = {m.name: m.type for m in text_string_to_metric_families(page.decode())}
    assert types == {m.name: m.type for m in metrics.registry.collect()}


def test_the_openmetrics_page_is_valid_and_says_the_same() -> None:
    """Prometheus asks for OpenMetrics by default; the strict parser takes the page."""
    metrics = exercised(process=True)
    accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2"
    page, kind = metrics.render(accept)
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    assert page.endswith(b"# EOF\n")
    found = samples(list(openmetrics_families(page.decode())))  # type: ignore[no-untyped-call]
    ours = {key: value for key, value in found.items() if key[0].startswith("baton_")}
    expected = samples(list(exercised().registry.collect()))
    assert ours == expected


@pytest.mark.parametrize("accept", [None, "*/*", "text/plain", "application/json"])
def test_whoever_does_not_ask_for_openmetrics_gets_text(accept: str | None) -> None:
    """Text is what everybody can read."""
    assert RouterMetrics(process=False).render(accept)[1].startswith("text/plain")


def test_the_page_of_a_process_has_the_client_s_own_metrics() -> None:
    """CPU, memory and garbage collector beside ours, on both formats."""
    metrics = RouterMetrics()
    for accept in (None, "application/openmetrics-text"):
        page = metrics.render(accept)[0].decode()
        assert "\nprocess_cpu_seconds_total " in page
        assert "\npython_gc_collections_total{" in page
        assert "\npython_info{" in page


def test_label_values_are_escaped() -> None:
    """A tenant's name with quotes, backslashes and line ends cannot forge a sample."""
    name = 'a"b\\c\nbaton_requests_total 1'
    metrics = RouterMetrics(process=False)
    metrics.tenant_done(name, "ok")
    metrics.pull("baton_queue_depth", lambda: {(name,): 1})
    for page in (metrics.render()[0].decode(), metrics.render()[0].decode()):
        found = of_page(page)
        key = ("baton_tenant_requests_total", (("outcome", "ok"), ("tenant", name)))
        assert found[key] == 1
        assert found["baton_queue_depth", (("band", name),)] == 1
        assert ("baton_requests_total", ()) not in found


def test_histograms_are_cumulative_and_agree_with_their_counts() -> None:
    """Buckets never fall, and +Inf equals the count."""
    found = of_page(exercised().render()[0].decode())
    series: dict[Key, list[tuple[float, float]]] = {}
    for (name, labels), value in found.items():
        if name.endswith("_bucket"):
            rest = tuple(pair for pair in labels if pair[0] != "le")
            key = (name.removesuffix("_bucket"), rest)
            series.setdefault(key, []).append((float(dict(labels)["le"]), value))
    assert len(series) > 10
    for (name, rest), buckets in series.items():
        values = [value for _, value in sorted(buckets)]
        assert values == sorted(values)
        assert values[-1] == found[f"{name}_count", rest]


def test_pages_of_several_processes_become_one() -> None:
    """Counters, histograms and gauges of work are summed; what all processes know of the same
    fleet, and the lag, is taken at its largest; infos stay one."""
    first, second = exercised(), exercised()
    second.pull("baton_event_loop_lag_seconds", lambda: {(): 0.5})
    second.pull("baton_workers", lambda: {("decode", "ready"): 1, ("prefill", "ready"): 4})
    second.tenant_done("only-here", "ok", output_tokens=9)
    merged = of_page(merge_pages([first.render()[0].decode(), second.render()[0].decode()]))

    def get(name: str, /, **labels: str) -> float:
        return merged[name, tuple(sorted(labels.items()))]

    path = {"endpoint": "/v1/completions", "path": "local", "profile_version": "abc123"}
    assert get("baton_requests_total", **path, reason="short_prompt", status="200") == 2
    assert get("baton_request_duration_seconds_count", **path) == 2
    assert get("baton_request_duration_seconds_sum", **path) == 3.0
    assert get("baton_request_duration_seconds_bucket", **path, le="2.5") == 2
    assert get("baton_requests_in_flight") == 4
    assert get("baton_queue_depth", band="normal") == 6
    assert get("baton_handoff_stranded_bytes", worker="p-0") == 16384
    assert get("baton_event_loop_lag_seconds") == 0.5
    assert get("baton_workers", role="decode", state="ready") == 2
    assert get("baton_workers", role="prefill", state="ready") == 4
    assert get("baton_pair_bandwidth_bytes_per_second", prefill="p-0", decode="d-0") == 2.5e9
    profile = {"name": "disaggregated", "version": "abc123", "state": "active"}
    assert get("baton_profile_info", **profile) == 1
    # Every process sees the same switch end.
    assert get("baton_profile_switches_total", outcome="committed") == 1
    assert get("baton_tenant_tokens_total", tenant="only-here", kind="output") == 9


def test_merging_one_page_changes_nothing() -> None:
    """The merged page is a page like any other: same samples, types and help."""
    page = exercised(process=True).render()[0].decode()
    merged = merge_pages([page])
    assert of_page(merged) == of_page(page)
    assert of_page(merge_pages([merged])) == of_page(page)
    kinds = [(m.name, m.type, m.documentation) for m in text_string_to_metric_families(page)]
    assert kinds == [
        (m.name, m.type, m.documentation) for m in text_string_to_metric_families(merged)
    ]
    assert merge_pages([]) == ""


def test_the_client_s_own_metrics_merge_as_they_should() -> None:
    """CPU seconds add up; the youngest start shows a restart of any process; infos stay 1."""
    pages = [
        "# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total 1.5\n"
        "# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds 100\n"
        '# TYPE python_info gauge\npython_info{version="3.11"} 1\n',
        "# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total 2\n"
        "# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds 200\n"
        '# TYPE python_info gauge\npython_info{version="3.11"} 1\n',
    ]
    merged = of_page(merge_pages(pages))
    assert merged == {
        ("process_cpu_seconds_total", ()): 3.5,
        ("process_start_time_seconds", ()): 200,
        ("python_info", (("version", "3.11"),)): 1,
    }


def test_a_page_that_is_none_is_refused() -> None:
    """A broken process must not silently make the sum smaller."""
    with pytest.raises(ValueError, match=r"."):
        merge_pages(["<html>502 Bad Gateway</html>\n"])

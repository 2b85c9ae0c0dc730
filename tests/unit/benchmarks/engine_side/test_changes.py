"""What counters did between looks."""

from __future__ import annotations

from benchmarks.engine_side import changes, interruptions
from benchmarks.records import Scrape
from tests.unit.benchmarks.engine_side.looks import engine, looks, router, together, vllm


def test_only_what_the_run_added_counts() -> None:
    """Counts from before the run are taken off, and a label set that appears later began at 0."""
    first = engine(5, prompt=100)
    last = engine(8, prompt=100) | {vllm("request_success_total", 'finished_reason="error"'): 2.0}
    (one,) = changes(looks("d", "decode", first, last))
    assert one.growth("vllm:prompt_tokens_total") == 300
    assert one.growth("vllm:request_success_total") == 5
    assert one.requests == 3, "failed requests are not finished as asked"


def test_gauges_keep_their_peak() -> None:
    """A gauge's largest value is kept, over engines as well."""
    other = 'vllm:num_requests_running{engine="1",model_name="m"}'
    pages = [{vllm("num_requests_running"): a, other: b} for a, b in ((1.0, 4.0), (9.0, 2.0))]
    (one,) = changes(looks("d", "decode", *pages, {}))
    assert one.peak("vllm:num_requests_running") == 9.0
    assert one.peak("vllm:kv_cache_usage_perc") is None


def test_the_router_comes_first_and_looks_are_ordered_by_time() -> None:
    """However the looks arrive, the result is the same."""
    seen = together(
        looks("a", "decode", engine(1), engine(4)), looks("router", "router", router(), router(3))
    )
    assert [one.source for one in changes(reversed(seen))] == ["router", "a"]
    assert changes(reversed(seen)) == changes(seen)


def test_a_restart_is_a_fatal_problem_and_loses_only_what_was_not_seen() -> None:
    """Counters that go back mean another process; its counts are added to those before."""
    seen = looks("d", "decode", engine(10), engine(14), engine(3), engine(5))
    assert [(p.code, p.fatal) for p in interruptions(seen)] == [("server_restarted", True)]
    assert changes(seen)[0].requests == 4 + 5


def test_a_restart_is_seen_by_the_start_time_too() -> None:
    """A new process that has already counted past the old one is known by when it started."""
    pages = [
        {"process_start_time_seconds": 100.0, **engine(1)},
        {"process_start_time_seconds": 170.5, **engine(9)},
    ]
    assert [p.code for p in interruptions(looks("d", "decode", *pages))] == ["server_restarted"]


def test_servers_that_come_and_go_are_noted() -> None:
    """A server that joined late or was not seen at the end is named, and the run stays valid."""
    steady = looks("a", "decode", *[engine(n) for n in range(10)])
    late = [Scrape(at_s=n, source="b", role="decode", values=engine(0)) for n in range(5, 10)]
    gone = looks("c", "prefill", *[engine(n) for n in range(4)])
    problems = interruptions(together(steady, late, gone))
    assert [(p.code, p.fatal) for p in problems] == [
        ("server_joined", False),
        ("server_left", False),
    ]
    assert "b " in problems[0].text
    assert "c " in problems[1].text


def test_a_quiet_run_has_no_problems() -> None:
    """Nothing is made up where nothing happened."""
    assert interruptions([]) == []
    assert interruptions(looks("a", "decode", engine(1), engine(1))) == []

"""Stages, figures per server, warm caches."""

from __future__ import annotations

import pytest

from benchmarks.engine_side import (
    combined_figures,
    lost_handoffs,
    server_figures,
    stages,
    warm_cache,
)
from benchmarks.records import Scrape
from tests.unit.benchmarks.engine_side.looks import (
    before_after,
    engine,
    histogram,
    router,
    run,
    together,
    vllm,
)


def _handed_over(count: float = 10, *, ranks: int = 1) -> dict[str, float]:
    """A decode worker that pulled the prompts of ``count`` requests, each 20 ms and 1 MB."""
    moved = histogram("nixl_xfer_time_seconds", count * ranks, 0.02)
    return moved | histogram("nixl_bytes_transferred", count * ranks, 1e6 / ranks)


def test_stages_of_a_plain_engine_are_its_own() -> None:
    """Without a handoff there is no transfer and no first decode step: queue and prefill only."""
    seen = before_after("s", "standard", engine(10, prompt=100, queue_s=0.3, prefill_s=0.5))
    assert stages([run([], seen)]) == pytest.approx(
        {"queue": 0.3, "prefill": 0.5, "transfer": 0.0, "first_decode": 0.0}
    )


@pytest.mark.parametrize("ranks", [1, 4])
def test_stages_of_handoffs_are_put_together_from_both_sides(ranks: int) -> None:
    """Decode's queue time contains the transfer and its prefill is one step; whatever the number
    of ranks that pull at the same time, the stages add up to the router's time."""
    seen = together(
        before_after("p", "prefill", engine(10, prompt=100, queue_s=0.2, prefill_s=0.4)),
        before_after(
            "d",
            "decode",
            engine(10, prompt=100, queue_s=0.05, prefill_s=0.01, more=_handed_over(ranks=ranks)),
        ),
        before_after("router", "router", router(10, ttft_s=0.7)),
    )
    found = stages([run([], seen)])
    assert found == pytest.approx(
        {"queue": 0.23, "prefill": 0.4, "transfer": 0.02, "first_decode": 0.01, "router": 0.04}
    )
    assert sum(found.values()) == pytest.approx(0.7)


def test_a_decode_worker_with_both_kinds_is_divided_by_its_step() -> None:
    """Of 20 requests half were handed over: theirs is one step of 10 ms each, the rest of the
    prefill time belongs to prompts that decode computed itself."""
    mixed = engine(20, prompt=100, answer=5, prefill_s=0.105, step_s=0.01, more=_handed_over())
    seen = together(
        before_after("p", "prefill", engine(10, prompt=100, prefill_s=0.4)),
        before_after("d", "decode", mixed),
    )
    found = stages([run([], seen)])
    assert found["first_decode"] == pytest.approx(10 * 0.01 / 20)
    assert found["prefill"] == pytest.approx((10 * 0.4 + 20 * 0.105 - 10 * 0.01) / 20)


def test_no_engine_no_stages() -> None:
    """A router alone does not say where the time went."""
    assert stages([]) == {}
    assert stages([run([], before_after("router", "router", router(10, ttft_s=0.7)))]) == {}


def test_figures_per_server() -> None:
    """Each server has what its page tells, and nothing else."""
    page = engine(
        4, prompt=100, answer=8, queue_s=0.1, ttft_s=0.2, hits=40, more=_handed_over(4)
    ) | {
        vllm("kv_cache_usage_perc"): 0.5,
        vllm("prompt_tokens_by_source_total", 'source="local_compute"'): 60.0,
        vllm("prompt_tokens_by_source_total", 'source="external_kv_transfer"'): 300.0,
        vllm("nixl_num_kv_expired_reqs_total"): 0.0,
    }
    seen = together(
        before_after("d", "decode", page),
        before_after("router", "router", router(4, ttft_s=0.3, failed=2)),
    )
    found = server_figures(seen)
    assert list(found) == ["router", "d"]
    worker = found["d"]
    assert worker["requests"] == 4
    assert (worker["prompt_tokens"], worker["generation_tokens"]) == (400, 32)
    assert worker["computed_prompt_tokens"] == 60
    assert worker["kv_usage_max"] == 0.5
    assert worker["prefix_hit_share"] == pytest.approx(0.1)
    assert worker["nixl_bytes"] == pytest.approx(4e6)
    assert worker["nixl_s"] == pytest.approx(0.08)
    assert worker["nixl_bytes_per_s"] == pytest.approx(5e7)
    assert worker["nixl_expired"] == 0
    assert "nixl_failures" not in worker
    assert "external_hit_share" not in worker
    assert (found["router"]["requests"], found["router"]["failed"]) == (6, 2)
    assert found["router"]["ttft_s"] == pytest.approx(0.3)


def _caches(prefill_hits: float, decode_hits: float) -> list[Scrape]:
    """100 prompts of 1000 tokens at decode, half of them handed over."""
    external = {
        vllm("external_prefix_cache_queries_total"): 50_000.0,
        vllm("external_prefix_cache_hits_total"): 50_000.0,
    }
    return together(
        before_after("p", "prefill", engine(50, prompt=1000, hits=prefill_hits)),
        before_after("d", "decode", engine(100, prompt=1000, hits=decode_hits, more=external)),
    )


def test_blocks_that_came_over_nixl_are_no_warm_cache() -> None:
    """All handed-over tokens are external hits on decode; that is the transfer, not a cache."""
    assert warm_cache(_caches(0, 0), 0.0) is None


def test_hits_that_the_plan_explains_are_fine() -> None:
    """Shared prefixes are found on both sides, and may all be among the handed-over prompts."""
    assert warm_cache(_caches(40_000, 40_000), 0.4) is None


@pytest.mark.parametrize(("prefill", "decode"), [(50_000, 0), (0, 50_000)])
def test_hits_beyond_the_plan_are_fatal(prefill: float, decode: float) -> None:
    """More than the plan shares, on either side: the prompts were sent before."""
    problem = warm_cache(_caches(prefill, decode), 0.4)
    assert problem is not None
    assert (problem.code, problem.fatal) == ("warm_cache", True)
    assert "50.0%" in problem.text
    assert "40.0%" in problem.text


def test_a_chat_template_is_no_warm_cache() -> None:
    """Some tokens at the beginning of each prompt are the same whatever the plan says."""
    assert warm_cache(_caches(50 * 64, 100 * 64), 0.0) is None
    assert warm_cache(_caches(50 * 64, 100 * 64), 0.0, template_tokens=0) is not None


def test_without_a_cache_there_is_nothing_to_say() -> None:
    """An engine without prefix caching looks nothing up."""
    assert warm_cache([], 0.0) is None
    assert warm_cache(before_after("d", "decode", engine(10)), 0.0) is None


def test_failed_transfers_are_noted_and_late_ones_fatal() -> None:
    """A transfer that ended after its lease may have read another request's blocks."""
    assert lost_handoffs(before_after("d", "decode", engine(1))) is None
    failed = {vllm("nixl_num_failed_transfers_total"): 2.0}
    late = {vllm("nixl_num_notifications_after_expiry_total"): 1.0}
    noted = lost_handoffs(before_after("d", "decode", engine(1, more=failed)))
    fatal = lost_handoffs(before_after("p", "prefill", engine(1, more=late)))
    assert noted is not None
    assert not noted.fatal
    assert fatal is not None
    assert fatal.fatal


def test_figures_of_several_runs_are_put_together_by_what_they_are() -> None:
    """Counts are summed, peaks are the highest, means are weighted by their run's requests."""
    first = before_after("s", "standard", engine(10, prompt=100, queue_s=0.3, prefill_s=0.5))
    second = before_after("s", "standard", engine(30, prompt=100, queue_s=0.7, prefill_s=0.5))
    found = combined_figures([run([], first), run([], second), run([])])
    assert set(found) == {"s"}
    assert found["s"]["requests"] == 40
    assert found["s"]["queue_s"] == pytest.approx(0.6)
    assert found["s"]["prefill_s"] == pytest.approx(0.5)
    peaks = [server_figures(scrapes)["s"]["running_max"] for scrapes in (first, second)]
    assert found["s"]["running_max"] == max(peaks)

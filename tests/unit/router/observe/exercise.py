"""Every event and every gauge of the router's metrics once or more: for tests of pages."""

from __future__ import annotations

from functools import partial

from router.observe import ItlRecorder, RouterMetrics
from router.observe import families as f
from router.observe.hot import Family, Labels


def exercised(*, process: bool = False) -> RouterMetrics:
    """Metrics of a router that has seen everything; two requests in flight."""
    metrics = RouterMetrics(process=process)
    for _ in range(4):
        metrics.request_began()
    for path, reason in (("disaggregated", "long_prompt"), ("local", "short_prompt")):
        metrics.request_done(
            endpoint="/v1/completions",
            path=path,
            reason=reason,
            profile_version="abc123",
            status=200,
            duration_s=1.5,
            ttft_s=0.2,
            attempts=1,
            prompt_tokens=1000,
            uncached_tokens=0,
            output_tokens=3,
        )
        itl = ItlRecorder()
        for now_s in (10.0, 10.02, 10.06):
            itl.tick(now_s)
        metrics.stream_done(path, "abc123", itl, 3)
        metrics.decode_first.observe((path,), 0.1)
        metrics.predicted(path, 0.3, 0.2)
    metrics.decided("cost", "cheaper_remote", "abc123")
    metrics.queue.observe(("normal",), 0.01)
    metrics.prefill_leg.observe((), 0.4)
    metrics.counting.observe(("bytes",), 0.00002)
    metrics.tenant_done("acme", "ok", prompt_tokens=1000, output_tokens=3)
    metrics.leg_failed("prefill_failed", "worker_failed")
    metrics.leg_failed("decode_failed", None)
    metrics.handoffs_open = 1
    metrics.handoff_ended("done")
    metrics.handoff_reclaimed("lease")
    metrics.kv_bytes.add((), 4096)
    metrics.canary.add(("ok",))
    metrics.shed.add(("full",))
    metrics._overflow.add(("baton_tenant_requests_total",))
    metrics.switches.add(("committed",))
    gauges: tuple[tuple[Family, Labels, float], ...] = (
        (f.STRANDED_BYTES, ("p-0",), 8192.0),
        (f.PAIR_STATE, ("p-0", "d-0", "ready"), 1),
        (f.PAIR_BANDWIDTH, ("p-0", "d-0"), 2.5e9),
        (f.BREAKER_STATE, ("p-0", "closed"), 1),
        (f.QUEUE_DEPTH, ("normal",), 3),
        (f.WORKERS, ("decode", "ready"), 2),
        (f.TURNING, (), 1),
        (f.PROFILE_INFO, ("disaggregated", "abc123", "active"), 1),
        (f.SWITCH_PHASE, ("canary",), 1),
        (f.PROFILE_PROBLEMS, (), 1),
        (f.ROUTERS, (), 2),
        (f.STORE_LOST, (), 0),
        (f.LOOP_LAG, (), 0.003),
    )
    for family, labels, number in gauges:
        metrics.pull(family.name, partial(dict, {labels: number}))
    return metrics

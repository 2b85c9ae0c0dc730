"""A request's trace through the whole router: the client's context, our spans, the workers'."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from router.observe import attributes as names
from tests.fakes.engine import MODEL, Leg, Trouble
from tests.integration.router_cluster import COMPLETIONS, LONG, SHORT, Cluster, cluster
from tests.unit.router.observe.test_tracing import recording

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "tracestate": "vendor=x"}


@pytest.fixture
async def traced() -> AsyncIterator[tuple[Cluster, InMemorySpanExporter]]:
    """A cluster whose router records every span."""
    async with cluster() as c:
        tracer, exporter = recording()
        c.state.tracer = tracer
        yield c, exporter


async def ask(c: Cluster, prompt: str, *, stream: bool = False) -> None:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 8, "stream": stream}
    answer = await c.call("POST", COMPLETIONS, json=body, headers=PARENT)
    assert answer.status == 200


def stages(exporter: InMemorySpanExporter) -> tuple[ReadableSpan, dict[str, ReadableSpan]]:
    """The request's own span, and its stages by name."""
    spans = exporter.get_finished_spans()
    (whole,) = [span for span in spans if span.kind.name == "SERVER"]
    return whole, {span.name.rpartition(" ")[2]: span for span in spans if span is not whole}


def ids(span: ReadableSpan) -> tuple[str, str]:
    """Trace and span id, in hex."""
    context = span.get_span_context()
    assert context is not None
    return format(context.trace_id, "032x"), format(context.span_id, "016x")


async def test_a_handoff_is_told_stage_by_stage(
    traced: tuple[Cluster, InMemorySpanExporter],
) -> None:
    """Each leg is a child of the request, which is a child of the client's span, and says who
    worked; the workers are told the span of their leg."""
    c, exporter = traced
    await ask(c, LONG, stream=True)
    await c.settled()
    whole, parts = stages(exporter)
    assert ids(whole)[0] == TRACE
    assert whole.attributes is not None
    assert whole.attributes[names.PATH] == "disaggregated"
    assert whole.attributes[names.REASON] == "long_prompt"
    assert whole.attributes[names.PREFILL_WORKER] == "p0"
    assert whole.attributes[names.DECODE_WORKER] == "d0"
    assert whole.attributes[names.TENANT] == "anonymous"
    assert set(parts) == {"plan", "prefill", "decode", "stream"}
    for leg, engine in (("prefill", c.p), ("decode", c.d)):
        span = parts[leg]
        assert span.parent is not None
        assert format(span.parent.span_id, "016x") == ids(whole)[1]
        assert span.attributes is not None
        assert span.attributes[names.WORKER] == engine.name
        (seen,) = engine.requests()
        _, trace_id, span_id, _ = seen.headers["traceparent"].split("-")
        assert (trace_id, span_id) == ids(span)
        assert seen.headers["tracestate"] == "vendor=x"


async def test_a_second_try_is_a_second_leg(traced: tuple[Cluster, InMemorySpanExporter]) -> None:
    """A leg that failed says so, and the next one counts up."""
    c, exporter = traced
    c.p.inject(Trouble.STATUS, Leg.PREFILL)
    await ask(c, LONG)
    await c.settled()
    whole, parts = stages(exporter)
    assert whole.attributes is not None
    assert whole.attributes[names.ATTEMPTS] == 2
    decode = parts["decode"]
    assert decode.attributes is not None
    assert decode.attributes[names.ATTEMPT] == 2


async def test_without_a_collector_the_context_passes_through() -> None:
    """A router that traces nothing does not tear the client's trace."""
    async with cluster() as c:
        await ask(c, SHORT)
        (seen,) = c.d.requests()
        assert {name: seen.headers[name] for name in PARENT} == PARENT

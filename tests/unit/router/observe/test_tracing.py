"""Trace context in and out, and the spans of a request."""

from __future__ import annotations

import asyncio
import threading

import pytest
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from baton.errors import SettingsError
from router.observe import NoTracer, Stage, Tracer, make_tracer, tracing_settings
from router.observe.otel import OtelTracer
from router.observe.tracing import NO_CONTEXT, client_context

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
SAMPLED = f"00-{TRACE}-{PARENT}-01"
NOT_SAMPLED = f"00-{TRACE}-{PARENT}-00"
HOST = (b"host", b"router")


def headers(*pairs: tuple[str, str]) -> list[tuple[bytes, bytes]]:
    return [HOST, *((name.encode(), value.encode()) for name, value in pairs)]


def recording(ratio: float = 1.0) -> tuple[OtelTracer, InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    return OtelTracer(SimpleSpanProcessor(exporter), ratio), exporter


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


# --- the client's context ---


@pytest.mark.parametrize(
    "parent",
    [
        SAMPLED,
        NOT_SAMPLED,
        f"00-{TRACE}-{PARENT}-ff",
        f"cc-{TRACE}-{PARENT}-01-what-the-future-will-be-like",
    ],
)
def test_a_sound_context_passes_through_unchanged(parent: str) -> None:
    """Without tracing the workers join the client's own trace, byte by byte."""
    sent = [("traceparent", parent), ("tracestate", "a=1,b=2"), ("baggage", "user=x")]
    span = NoTracer().begin(headers(*sent), "POST", "/v1/completions")
    assert span.headers_for_worker() == sent
    with span.stage(Stage.DECODE) as leg:
        assert leg.headers_for_worker() == sent
    assert span.trace_id == TRACE
    assert not span.recording


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "garbage",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01-more",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}",
        f"01-{TRACE}-{PARENT}-01-{'x' * 300}",
        f"00-{TRACE}-{PARENT}-01\n",
    ],
)
def test_an_unsound_parent_is_dropped_and_its_state_with_it(parent: str) -> None:
    """Nothing unchecked reaches a worker; baggage stands for itself."""
    sent = headers(("traceparent", parent), ("tracestate", "a=1"), ("baggage", "user=x"))
    for tracer in (NoTracer(), recording(0.0)[0]):
        found = dict(tracer.begin(sent, "POST", "/v1/completions").headers_for_worker())
        assert "tracestate" not in found
        assert found["baggage"] == "user=x"
        assert TRACE not in found.get("traceparent", "")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tracestate", "a=" + "x" * 600),
        ("tracestate", "a=\x01"),
        ("baggage", "a=" + "x" * 9000),
        ("baggage", "a=ü"),
    ],
)
def test_state_and_baggage_over_their_bounds_are_dropped(name: str, value: str) -> None:
    """As are those that are not printable ASCII."""
    context = client_context(headers(("traceparent", SAMPLED), (name, value)))
    assert context.forwarded() == [("traceparent", SAMPLED)]


def test_two_parents_are_none() -> None:
    """Whom to believe cannot be known."""
    sent = headers(("traceparent", SAMPLED), ("traceparent", NOT_SAMPLED))
    assert client_context(sent).forwarded() == []


def test_state_split_over_headers_is_joined_in_order() -> None:
    """As the specification asks."""
    sent = headers(("traceparent", SAMPLED), ("tracestate", "a=1"), ("tracestate", "b=2"))
    assert client_context(sent).tracestate == "a=1,b=2"


def test_a_request_without_context_costs_nothing() -> None:
    """No object is made for it, and nothing is sent on."""
    assert client_context([HOST]) is NO_CONTEXT
    first, second = (NoTracer().begin([HOST], "POST", "/v1/completions") for _ in range(2))
    assert first is second
    assert first.headers_for_worker() == []
    assert first.trace_id is None


def test_a_span_that_is_not_recorded_takes_everything() -> None:
    """Call sites need not know whether tracing is on."""
    for tracer in (NoTracer(), recording(0.0)[0]):
        assert_takes_everything(tracer)


def assert_takes_everything(tracer: Tracer) -> None:
    span = tracer.begin([HOST], "POST", "/v1/completions")
    span.set("baton.path", "local")
    span.set_all({"baton.reason": "short_prompt", "baton.prompt_tokens": None})
    span.event("retry", attempt=2)
    with span.stage(Stage.PREFILL) as leg:
        leg.set("baton.worker", "p-0")
        leg.event("sent")
        leg.end("worker_failed")
    span.end(200)
    assert not span.recording


# --- spans ---


def test_a_request_is_one_server_span_with_a_child_per_stage() -> None:
    """Stages hang below the request, the request below the client's span."""
    tracer, exporter = recording()
    sent = headers(("traceparent", SAMPLED), ("tracestate", "vendor=1"))
    span = tracer.begin(sent, "POST", "/v1/chat/completions")
    for stage in Stage:
        with span.stage(stage) as part:
            part.set("baton.worker", "w-0")
    span.set_all({"baton.path": "local", "gen_ai.usage.input_tokens": 12, "baton.band": None})
    span.event("retry", attempt=2)
    span.end(200)
    spans = by_name(exporter)
    server = spans.pop("POST /v1/chat/completions")
    assert server.kind is SpanKind.SERVER
    assert server.parent is not None
    assert (server.parent.span_id, server.parent.trace_id) == (int(PARENT, 16), int(TRACE, 16))
    assert server.parent.is_remote
    assert dict(server.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "url.path": "/v1/chat/completions",
        "http.response.status_code": 200,
        "baton.path": "local",
        "gen_ai.usage.input_tokens": 12,
    }
    assert [event.name for event in server.events] == ["retry"]
    assert server.status.status_code is StatusCode.UNSET
    assert set(spans) == {"queue", "plan", "prefill", "decode", "stream"}
    own = server.get_span_context()
    assert own is not None
    for child in spans.values():
        assert child.parent is not None
        assert child.parent.span_id == own.span_id
        assert dict(child.attributes or {}) == {"baton.worker": "w-0"}
    kinds = {name: child.kind for name, child in spans.items()}
    assert kinds["prefill"] is kinds["decode"] is SpanKind.CLIENT
    assert kinds["queue"] is kinds["stream"] is SpanKind.INTERNAL


def test_a_worker_is_told_the_span_of_its_leg() -> None:
    """Its own spans hang below the leg that asked it, with the client's state and baggage."""
    tracer, exporter = recording()
    sent = headers(("traceparent", SAMPLED), ("tracestate", "vendor=1"), ("baggage", "user=x"))
    span = tracer.begin(sent, "POST", "/v1/completions")
    with span.stage(Stage.PREFILL) as prefill, span.stage(Stage.DECODE) as decode:
        told = {"prefill": prefill.headers_for_worker(), "decode": decode.headers_for_worker()}
    outside = dict(span.headers_for_worker())
    span.end(200)
    spans = by_name(exporter)
    for name, found in told.items():
        context = spans[name].get_span_context()
        assert context is not None
        assert found == [
            ("traceparent", f"00-{TRACE}-{context.span_id:016x}-01"),
            ("tracestate", "vendor=1"),
            ("baggage", "user=x"),
        ]
    context = spans["POST /v1/completions"].get_span_context()
    assert context is not None
    assert outside["traceparent"] == f"00-{TRACE}-{context.span_id:016x}-01"
    assert span.trace_id == TRACE


@pytest.mark.parametrize(
    ("parent", "ratio", "sampled"),
    [(SAMPLED, 0.0, True), (NOT_SAMPLED, 1.0, False), (None, 1.0, True), (None, 0.0, False)],
)
def test_the_client_s_decision_wins_over_the_ratio(
    parent: str | None, ratio: float, sampled: bool
) -> None:
    """And workers hear the same decision in the flags."""
    tracer, exporter = recording(ratio)
    pairs = [] if parent is None else [("traceparent", parent)]
    span = tracer.begin(headers(*pairs), "POST", "/v1/completions")
    with span.stage(Stage.DECODE) as leg:
        told = dict(leg.headers_for_worker())["traceparent"]
    span.end(200)
    assert span.recording is sampled
    assert int(told.split("-")[3], 16) & 1 == sampled
    assert told.split("-")[1] == span.trace_id
    assert len(exporter.get_finished_spans()) == (2 if sampled else 0)


@pytest.mark.parametrize(
    ("status", "error", "code", "kind"),
    [
        (200, None, StatusCode.UNSET, None),
        (404, "model_not_found", StatusCode.UNSET, "model_not_found"),
        (499, None, StatusCode.UNSET, None),
        (503, None, StatusCode.ERROR, "503"),
        (502, "worker_failed", StatusCode.ERROR, "worker_failed"),
    ],
)
def test_a_span_is_an_error_where_the_router_is_at_fault(
    status: int, error: str | None, code: StatusCode, kind: str | None
) -> None:
    """A client's mistake is no error of the server's span."""
    tracer, exporter = recording()
    tracer.begin([HOST], "POST", "/v1/completions").end(status, error)
    (span,) = exporter.get_finished_spans()
    assert span.status.status_code is code
    assert (span.attributes or {}).get("error.type") == kind


def test_a_stage_left_by_an_exception_is_marked() -> None:
    """Also by a cancellation: a client that left in the middle of a leg."""
    tracer, exporter = recording()
    span = tracer.begin([HOST], "POST", "/v1/completions")
    with pytest.raises(asyncio.CancelledError), span.stage(Stage.DECODE):
        raise asyncio.CancelledError
    span.end(499)
    decode = by_name(exporter)["decode"]
    assert decode.status.status_code is StatusCode.ERROR
    assert (decode.attributes or {})["error.type"] == "CancelledError"


def test_stages_still_open_end_with_their_request_and_once() -> None:
    """No span is lost when a request ends in the middle, and none is sent twice."""
    tracer, exporter = recording()
    span = tracer.begin([HOST], "POST", "/v1/completions")
    stage = span.stage(Stage.STREAM)
    span.end(502, "stream_broken")
    stage.end()
    names = [span.name for span in exporter.get_finished_spans()]
    assert names == ["stream", "POST /v1/completions"]
    assert (by_name(exporter)["stream"].attributes or {})["error.type"] == "stream_broken"


def test_attributes_are_bounded() -> None:
    """A long text is cut, and many attributes are not kept."""
    tracer, exporter = recording()
    span = tracer.begin([HOST], "POST", "/v1/completions")
    for number in range(200):
        span.set(f"a{number}", "x" * 5000)
    span.end(200)
    found = exporter.get_finished_spans()[0].attributes or {}
    assert len(found) == 64
    assert max(len(str(value)) for value in found.values()) == 1024


# --- the end ---


async def test_closing_sends_what_is_finished() -> None:
    """The processor is shut down, and with it its exporter."""
    tracer, exporter = recording()
    tracer.begin([HOST], "POST", "/v1/completions").end(200)
    await tracer.aclose()
    assert exporter._stopped


async def test_closing_does_not_wait_for_a_collector_that_hangs() -> None:
    """The router's end is bounded whatever its collector does."""

    class Hanging(SpanProcessor):
        def __init__(self) -> None:
            self.release = threading.Event()

        def shutdown(self) -> None:
            self.release.wait()

    hanging = Hanging()
    try:
        await OtelTracer(hanging).aclose(timeout_s=0.01)
    finally:
        hanging.release.set()
    await NoTracer().aclose()


# --- settings ---


@pytest.mark.parametrize(
    ("env", "flag", "endpoint"),
    [
        ({}, None, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, None, None),
        ({}, "http://c:4318", "http://c:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318/"}, None, "http://c:4318/v1/traces"),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318",
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://t/x",
            },
            None,
            "https://t/x",
        ),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://t/x"}, "http://c", "http://c/v1/traces"),
    ],
)
def test_the_endpoint_comes_from_the_flag_or_opentelemetry_s_variables(
    env: dict[str, str], flag: str | None, endpoint: str | None
) -> None:
    """The traces' own variable is a full URL, the general one a base."""
    assert tracing_settings(env, flag).endpoint == endpoint


@pytest.mark.parametrize(("endpoint", "ratio"), [("c:4317", 1.0), (None, -0.1), (None, 1.1)])
def test_settings_without_a_meaning_are_refused(endpoint: str | None, ratio: float) -> None:
    """At the start, with a message, not at the first span."""
    with pytest.raises(SettingsError):
        tracing_settings({}, endpoint, ratio)


def test_without_an_endpoint_nothing_is_traced() -> None:
    """Off is the default, and OpenTelemetry's SDK is not even loaded for it."""
    assert isinstance(make_tracer(tracing_settings({})), NoTracer)

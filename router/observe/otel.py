"""Tracing with OpenTelemetry's SDK: loaded only where a collector is given.

One server span per request and a child for every stage. Finished spans wait in a bounded queue
and are sent by a thread of the SDK's; when the collector is slow or gone, spans are dropped and
requests do not notice. A request that is not sampled costs its ids and no more: its stages are
null objects, and the workers are told that it is not sampled.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Mapping
from typing import Self

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

import baton
from router.observe import attributes as a
from router.observe.tracing import (
    NO_CONTEXT,
    ClientContext,
    RawHeaders,
    RequestSpan,
    Stage,
    StageSpan,
    TracingSettings,
    Value,
    WorkerHeaders,
    client_context,
)

log = logging.getLogger("baton.router.tracing")

_LIMITS = SpanLimits(
    max_span_attributes=64,
    max_span_attribute_length=1024,
    max_events=32,
    max_links=0,
)
_ROOT = Context()
"""Empty: the parent is the client's or nobody, never what some other code left as current."""
_KNOWN_FLAGS = 0x03
"""Sampled, and whether the trace id is random."""
_KINDS = {Stage.PREFILL: SpanKind.CLIENT, Stage.DECODE: SpanKind.CLIENT}


def otlp_tracer(settings: TracingSettings) -> OtelTracer:
    """A tracer that sends its spans to ``settings.endpoint``.

    Headers, certificates and compression come from OpenTelemetry's own variables
    (``OTEL_EXPORTER_OTLP_HEADERS`` and the like), and so do the service's name and attributes
    where they are set.
    """
    exporter = OTLPSpanExporter(endpoint=settings.endpoint, timeout=settings.export_timeout_s)
    processor = BatchSpanProcessor(
        exporter,
        max_queue_size=settings.queue_spans,
        schedule_delay_millis=settings.schedule_s * 1000,
        max_export_batch_size=settings.batch_spans,
    )
    return OtelTracer(processor, settings.sample_ratio)


class OtelTracer:
    """Spans through OpenTelemetry's SDK.

    Args:
        processor: where finished spans go.
        sample_ratio: of the requests without a parent.
    """

    def __init__(self, processor: SpanProcessor, sample_ratio: float = 1.0) -> None:
        resource = Resource.create({SERVICE_VERSION: baton.__version__})
        if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "baton-router"}))
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(sample_ratio)),
            resource=resource,
            # The process's end waits for nobody; ``aclose`` does, within its bounds.
            shutdown_on_exit=False,
            span_limits=_LIMITS,
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("baton.router", baton.__version__)

    def begin(self, headers: RawHeaders, method: str, route: str) -> RequestSpan:
        """Begins a request's span, as a child of the client's if it sent a context."""
        client = client_context(headers)
        span = self._tracer.start_span(
            f"{method} {route}",
            context=_parent(client),
            kind=SpanKind.SERVER,
            # Known at the start, for whoever samples by them later.
            attributes={a.HTTP_METHOD: method, a.HTTP_ROUTE: route, a.URL_PATH: route},
        )
        return _Request(self, span, client.baggage)

    async def aclose(self, timeout_s: float = 5.0) -> None:
        """Sends what is finished, for at most so long, and leaves the rest."""
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def work() -> None:
            try:
                self._provider.shutdown()
            finally:
                with contextlib.suppress(RuntimeError):  # the loop may be closed by now
                    loop.call_soon_threadsafe(done.set)

        # A thread of its own that may be left behind: executors wait for theirs at exit.
        threading.Thread(target=work, name="baton-tracing-close", daemon=True).start()
        try:
            async with asyncio.timeout(timeout_s):
                await done.wait()
        except TimeoutError:
            log.warning("the trace collector did not take the last spans in %.1f s", timeout_s)

    def _child(self, name: str, parent: Context, kind: SpanKind) -> Span:
        return self._tracer.start_span(name, context=parent, kind=kind)


class _Request:
    """A request's server span."""

    __slots__ = ("_baggage", "_context", "_open", "_span", "_tracer", "recording", "trace_id")

    def __init__(self, tracer: OtelTracer, span: Span, baggage: str | None) -> None:
        self.recording = span.is_recording()
        self.trace_id: str | None = f"{span.get_span_context().trace_id:032x}"
        self._tracer = tracer
        self._span = span
        self._baggage = baggage
        self._context = set_span_in_context(span, _ROOT) if self.recording else _ROOT
        self._open: set[_Stage] = set()

    def set(self, name: str, value: Value | None) -> None:
        if value is not None:
            self._span.set_attribute(name, value)

    def set_all(self, attributes: Mapping[str, Value | None]) -> None:
        if self.recording:
            self._span.set_attributes({k: v for k, v in attributes.items() if v is not None})

    def event(self, name: str, **attributes: Value) -> None:
        self._span.add_event(name, attributes)

    def stage(self, stage: Stage) -> StageSpan:
        if not self.recording:
            return _Stage(self, self._span)
        kind = _KINDS.get(stage, SpanKind.INTERNAL)
        made = _Stage(self, self._tracer._child(stage.value, self._context, kind))
        self._open.add(made)
        return made

    def headers_for_worker(self) -> WorkerHeaders:
        return _headers(self._span.get_span_context(), self._baggage)

    def end(self, status: int, error: str | None = None) -> None:
        for stage in tuple(self._open):
            stage.end(error)
        if self.recording:
            self._span.set_attribute(a.HTTP_STATUS, status)
            if error is not None or status >= 500:
                self._span.set_attribute(a.ERROR_TYPE, error or str(status))
            if status >= 500:
                self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


class _Stage:
    """A child span; of a request that is not sampled, the request's own, which records nothing."""

    __slots__ = ("_request", "_span")

    def __init__(self, request: _Request, span: Span) -> None:
        self._request = request
        self._span = span

    def set(self, name: str, value: Value | None) -> None:
        if value is not None:
            self._span.set_attribute(name, value)

    def event(self, name: str, **attributes: Value) -> None:
        self._span.add_event(name, attributes)

    def headers_for_worker(self) -> WorkerHeaders:
        return _headers(self._span.get_span_context(), self._request._baggage)

    def end(self, error: str | None = None) -> None:
        if self not in self._request._open:
            return
        self._request._open.discard(self)
        if error is not None:
            self._span.set_attribute(a.ERROR_TYPE, error)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: object) -> None:
        self.end(None if kind is None else kind.__name__)


def _parent(client: ClientContext) -> Context:
    if client is NO_CONTEXT or client.trace_id is None or client.span_id is None:
        return _ROOT
    state = TraceState.from_header([client.tracestate]) if client.tracestate else TraceState()
    remote = SpanContext(
        trace_id=int(client.trace_id, 16),
        span_id=int(client.span_id, 16),
        is_remote=True,
        # Flags that are not known are not ours to pass on (W3C Trace Context, 3.2.2.5).
        trace_flags=TraceFlags(client.flags & _KNOWN_FLAGS),
        trace_state=state,
    )
    return set_span_in_context(NonRecordingSpan(remote), _ROOT)


def _headers(context: SpanContext, baggage: str | None) -> WorkerHeaders:
    traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    headers = [("traceparent", traceparent)]
    if context.trace_state:
        headers.append(("tracestate", context.trace_state.to_header()))
    if baggage is not None:
        headers.append(("baggage", baggage))
    return headers

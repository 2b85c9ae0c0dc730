"""Where a request's time went, as an OpenTelemetry trace; off unless a collector is given.

Off, a request pays for one look through its headers: the client's trace context is checked for
its form and passed on to the workers byte by byte, so that their spans join the client's trace
past a router that has none. On (``router.observe.otel``), the router's spans stand between.

The context is W3C Trace Context (``traceparent``, ``tracestate``) and W3C Baggage. What does not
have the form is not passed on. A span never holds a prompt, an answer or a key.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol, Self

from baton.errors import SettingsError

Value = str | int | float | bool
"""Of an attribute."""
RawHeaders = Iterable[tuple[bytes, bytes]]
"""As they came from the client; names in lower case."""
WorkerHeaders = list[tuple[str, str]]
"""To be sent with a leg."""

_STATE_MAX_BYTES = 512
_BAGGAGE_MAX_BYTES = 8192
"""As W3C Baggage asks everybody to pass on; more is dropped."""

_NAMES: Final = frozenset({b"traceparent", b"tracestate", b"baggage"})
_PARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[!-~]*)?")
_PRINTABLE = re.compile(rb"[ -~\t]+")


class Stage(enum.StrEnum):
    """The parts of a request that have a span of their own."""

    QUEUE = "queue"
    PLAN = "plan"
    PREFILL = "prefill"
    DECODE = "decode"
    """Until its first content."""
    STREAM = "stream"


class StageSpan(Protocol):
    """One stage of a request. Used with ``with``, or ended by ``end``; ended once, the rest is
    ignored. A stage left by an exception is marked with its class."""

    def set(self, name: str, value: Value | None) -> None:
        """An attribute; None is left out."""
        ...

    def event(self, name: str, **attributes: Value) -> None:
        """A point in time."""
        ...

    def headers_for_worker(self) -> WorkerHeaders:
        """The trace context for a leg sent in this stage."""
        ...

    def end(self, error: str | None = None) -> None:
        """Ends it, with a short name of what went wrong."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: object) -> None: ...


class RequestSpan(Protocol):
    """One request, from its head to its end.

    Attributes:
        recording: whether anything set here is kept; attributes that cost something to compute
            are worth it only then.
        trace_id: 32 hex digits for the log, None where there is no trace.
    """

    recording: bool
    trace_id: str | None

    def set(self, name: str, value: Value | None) -> None:
        """An attribute; None is left out."""
        ...

    def set_all(self, attributes: Mapping[str, Value | None]) -> None:
        """Several."""
        ...

    def event(self, name: str, **attributes: Value) -> None:
        """A point in time."""
        ...

    def stage(self, stage: Stage) -> StageSpan:
        """Begins a stage; stages of one request may overlap."""
        ...

    def headers_for_worker(self) -> WorkerHeaders:
        """The trace context for a call outside of any stage."""
        ...

    def end(self, status: int, error: str | None = None) -> None:
        """Ends the request; what is still open of its stages ends with it.

        Args:
            status: as sent; from 500 on the span is an error.
            error: short name of what went wrong, such as the error's code.
        """
        ...


class Tracer(Protocol):
    """Makes the spans of one router process."""

    def begin(self, headers: RawHeaders, method: str, route: str) -> RequestSpan:
        """Begins a request's span, as a child of the client's if it sent a context.

        Args:
            headers: the client's.
            method: of HTTP.
            route: the endpoint's path; never the client's own text.
        """
        ...

    async def aclose(self, timeout_s: float = 5.0) -> None:
        """Sends what is finished, for at most so long; spans begun later are lost."""
        ...


# --- the client's context ---


@dataclass(frozen=True, slots=True)
class ClientContext:
    """What a client sent of a trace, each part None where it is missing or unsound.

    Attributes:
        trace_id: hex.
        span_id: hex.
        flags: of the traceparent.
    """

    traceparent: str | None = None
    tracestate: str | None = None
    baggage: str | None = None
    trace_id: str | None = None
    span_id: str | None = None
    flags: int = 0

    def forwarded(self) -> WorkerHeaders:
        """As it came."""
        found = (
            ("traceparent", self.traceparent),
            ("tracestate", self.tracestate),
            ("baggage", self.baggage),
        )
        return [(name, value) for name, value in found if value is not None]


NO_CONTEXT = ClientContext()


def client_context(headers: RawHeaders) -> ClientContext:
    """The client's trace context, checked for its form.

    A request that repeats ``traceparent``, or whose one is unsound, has no context, and a
    ``tracestate`` without a ``traceparent`` means nothing (W3C Trace Context, 3.2 and 3.3).
    """
    found = [header for header in headers if header[0] in _NAMES]
    if not found:
        return NO_CONTEXT
    baggage = _joined(found, b"baggage", _BAGGAGE_MAX_BYTES)
    parents = [value for name, value in found if name == b"traceparent"]
    match = _PARENT.fullmatch(parents[0]) if len(parents) == 1 and len(parents[0]) <= 256 else None
    if match is None or not _sound(match):
        return ClientContext(baggage=baggage)
    return ClientContext(
        traceparent=parents[0].decode("ascii"),
        tracestate=_joined(found, b"tracestate", _STATE_MAX_BYTES),
        baggage=baggage,
        trace_id=match[2].decode("ascii"),
        span_id=match[3].decode("ascii"),
        flags=int(match[4], 16),
    )


def _sound(match: re.Match[bytes]) -> bool:
    version, trace_id, span_id, _, more = match.groups()
    if version == b"ff" or (version == b"00" and more is not None):
        return False
    return trace_id.strip(b"0") != b"" and span_id.strip(b"0") != b""


def _joined(found: list[tuple[bytes, bytes]], name: bytes, most: int) -> str | None:
    value = b",".join(value for key, value in found if key == name)
    if not value or len(value) > most or _PRINTABLE.fullmatch(value) is None:
        return None
    return value.decode("ascii")


# --- off ---


class _NoSpan:
    """A request, or a stage of one, that nobody records; passes the client's context on."""

    __slots__ = ("_forward", "_stage", "recording", "trace_id")

    def __init__(self, context: ClientContext) -> None:
        self.recording = False
        self.trace_id = context.trace_id
        self._forward = context.forwarded()
        self._stage = _NoStage(self._forward)

    def set(self, name: str, value: Value | None) -> None:
        pass

    def set_all(self, attributes: Mapping[str, Value | None]) -> None:
        pass

    def event(self, name: str, **attributes: Value) -> None:
        pass

    def stage(self, stage: Stage) -> StageSpan:
        return self._stage

    def headers_for_worker(self) -> WorkerHeaders:
        return self._forward

    def end(self, status: int, error: str | None = None) -> None:
        pass


class _NoStage:
    __slots__ = ("_forward",)

    def __init__(self, forward: WorkerHeaders) -> None:
        self._forward = forward

    def set(self, name: str, value: Value | None) -> None:
        pass

    def event(self, name: str, **attributes: Value) -> None:
        pass

    def headers_for_worker(self) -> WorkerHeaders:
        return self._forward

    def end(self, error: str | None = None) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: object) -> None:
        pass


class NoTracer:
    """The tracer of a router without a collector."""

    def begin(self, headers: RawHeaders, method: str, route: str) -> RequestSpan:
        """A span that records nothing."""
        context = client_context(headers)
        return _NO_SPAN if context is NO_CONTEXT else _NoSpan(context)

    async def aclose(self, timeout_s: float = 5.0) -> None:
        """Nothing to do."""


_NO_SPAN = _NoSpan(NO_CONTEXT)
NO_SPAN: RequestSpan = _NO_SPAN
"""Of a request that nobody traces."""


# --- on ---


@dataclass(frozen=True, slots=True)
class TracingSettings:
    """How spans leave the router.

    Attributes:
        endpoint: full URL of an OTLP/HTTP receiver's traces, such as
            ``http://collector:4318/v1/traces``; None is off.
        sample_ratio: share of the requests without a sampled parent that are traced; a client's
            own decision is followed either way.
        export_timeout_s: for one batch to be sent.
        queue_spans: finished spans that may wait; more are dropped, requests never wait for them.
        batch_spans: sent at once.
        schedule_s: between two batches.
    """

    endpoint: str | None = None
    sample_ratio: float = 1.0
    export_timeout_s: float = 5.0
    queue_spans: int = 4096
    batch_spans: int = 512
    schedule_s: float = 2.0


def tracing_settings(
    env: Mapping[str, str], endpoint: str | None = None, sample_ratio: float = 1.0
) -> TracingSettings:
    """From the flags, then OpenTelemetry's own variables.

    Args:
        env: the environment.
        endpoint: base URL of the collector, such as ``http://collector:4318``, as in
            ``OTEL_EXPORTER_OTLP_ENDPOINT``.
        sample_ratio: 0 to 1.

    Raises:
        SettingsError: no such ratio, or no URL.
    """
    if not 0 <= sample_ratio <= 1:
        raise SettingsError(f"the share of traced requests lies between 0 and 1: {sample_ratio}")
    full = None if endpoint else env.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    base = endpoint or env.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    url = full or (f"{base.rstrip('/')}/v1/traces" if base else None)
    if url is not None and not url.startswith(("http://", "https://")):
        raise SettingsError(f"an OTLP endpoint is an http:// or https:// URL, not {url!r}")
    return TracingSettings(url, sample_ratio)


def make_tracer(settings: TracingSettings) -> Tracer:
    """The tracer these settings ask for.

    Raises:
        SettingsError: tracing is on and OpenTelemetry's SDK is not installed.
    """
    if settings.endpoint is None:
        return NoTracer()
    try:
        from router.observe.otel import otlp_tracer
    except ImportError as error:
        raise SettingsError(
            "tracing needs opentelemetry-sdk and opentelemetry-exporter-otlp-proto-http;"
            " install them or leave the OTLP endpoint away"
        ) from error
    return otlp_tracer(settings)

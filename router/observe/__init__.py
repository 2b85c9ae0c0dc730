"""Seeing what the router does: metrics, traces, the access log.

Everything here is written to by requests and read by people; nothing of it changes what happens
to a request.
"""

from router.observe.access_log import access
from router.observe.lag import LoopLag
from router.observe.metrics import ItlRecorder, RouterMetrics
from router.observe.render import merge_pages
from router.observe.tracing import (
    NO_SPAN,
    NoTracer,
    RequestSpan,
    Stage,
    StageSpan,
    Tracer,
    TracingSettings,
    WorkerHeaders,
    make_tracer,
    tracing_settings,
)

__all__ = [
    "NO_SPAN",
    "ItlRecorder",
    "LoopLag",
    "NoTracer",
    "RequestSpan",
    "RouterMetrics",
    "Stage",
    "StageSpan",
    "Tracer",
    "TracingSettings",
    "WorkerHeaders",
    "access",
    "make_tracer",
    "merge_pages",
    "tracing_settings",
]

"""One line per request, for whoever has to find a single one again.

Off unless asked for (``configure_logging(access=True)``): a line costs about as much as a small
request. It holds no prompt, no answer and no key.
"""

from __future__ import annotations

import logging

from baton.telemetry import ACCESS_LOGGER

log = logging.getLogger(ACCESS_LOGGER)


def access(
    *,
    request_id: str,
    endpoint: str,
    path: str,
    reason: str,
    status: int,
    duration_s: float,
    ttft_s: float | None = None,
    prompt_tokens: int | None = None,
    output_tokens: int | None = None,
    attempts: int = 0,
    tenant: str | None = None,
    trace_id: str | None = None,
    profile_version: str | None = None,
    prefill: str | None = None,
    decode: str | None = None,
) -> None:
    """Writes the line, if anybody reads it; arguments as ``RouterMetrics.request_done`` has them.

    As text the same facts stand in the message; as JSON they are fields.
    """
    if not log.isEnabledFor(logging.INFO):
        return
    log.info(
        "%s %s %s %s %.4f s",
        endpoint,
        status,
        path or "-",
        reason or "-",
        duration_s,
        extra={
            "request_id": request_id,
            "tenant": tenant,
            "trace_id": trace_id,
            "profile_version": profile_version,
            "fields": {
                "endpoint": endpoint,
                "path": path or None,
                "reason": reason or None,
                "status": status,
                "duration_s": round(duration_s, 6),
                "ttft_s": None if ttft_s is None else round(ttft_s, 6),
                "prompt_tokens": prompt_tokens,
                "output_tokens": output_tokens,
                "attempts": attempts,
                "prefill": prefill,
                "decode": decode,
            },
        },
    )

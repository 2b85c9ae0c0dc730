"""The router's own question to a worker: can you generate a token?

``/health`` alone says little: it stays 200 when a rank of the group is dead, and when the engine's
core hangs. A slow answer alone says little as well: on a busy worker the probe's token waits in the
queue like any other. So a probe that got no token in time passes if the engine computed something
meanwhile, which a hung one does not.
"""

from __future__ import annotations

import msgspec

from baton.clock import Clock
from baton.errors import PeerFault, WorkerTimeout
from baton.types import RequestId, WorkerRecord
from router.care.metrics_page import EngineCounters, read_counters
from router.care.seams import Asker

_PAGE_S = 2.0
"""For a health or metrics page; a healthy engine takes milliseconds."""


async def probe(
    asker: Asker, worker: WorkerRecord, request_id: RequestId, *, timeout_s: float, clock: Clock
) -> str | None:
    """Asks for health and for one token, within ``timeout_s`` and two pages more.

    Returns:
        What is wrong, in words, or None if the worker is sound.
    """
    ends_s = clock.monotonic_s() + timeout_s
    page_s = min(_PAGE_S, timeout_s)
    try:
        health = await asker.ask(worker, "/health", b"", request_id, timeout_s=page_s, method="GET")
        if health.status != 200:
            return f"GET /health answered {health.status}"
        before = await counters(asker, worker, request_id, timeout_s=page_s)
        left_s = max(0.1, ends_s - clock.monotonic_s())
        try:
            return await _generate(asker, worker, request_id, timeout_s=left_s)
        except WorkerTimeout:
            after = await counters(asker, worker, request_id, timeout_s=page_s)
            if _moved(before, after):
                return None
            raise
    except PeerFault as fault:
        return fault.message


async def counters(
    asker: Asker, worker: WorkerRecord, request_id: RequestId, *, timeout_s: float
) -> EngineCounters:
    """The worker's totals; empty ones where it has no such page.

    Raises:
        PeerFault: it could not be asked.
    """
    page = await asker.ask(worker, "/metrics", b"", request_id, timeout_s=timeout_s, method="GET")
    return read_counters(page.body) if page.status == 200 else EngineCounters()


async def _generate(
    asker: Asker, worker: WorkerRecord, request_id: RequestId, *, timeout_s: float
) -> str | None:
    body = {"model": worker.model, "prompt": "Ready", "max_tokens": 1, "temperature": 0}
    answer = await asker.ask(
        worker, "/v1/completions", msgspec.json.encode(body), request_id, timeout_s=timeout_s
    )
    if answer.status == 429:
        return None  # full, which is not ill
    if answer.status != 200:
        return f"a generation answered {answer.status}"
    try:
        if msgspec.json.decode(answer.body)["usage"]["completion_tokens"] >= 1:
            return None
    except (msgspec.DecodeError, ValueError, KeyError, TypeError):
        pass
    return "a generation gave no token"


def _moved(before: EngineCounters, after: EngineCounters) -> bool:
    return before.steps is not None and after.steps is not None and after.steps > before.steps

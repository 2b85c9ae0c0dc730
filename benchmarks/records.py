"""What was measured: one flat record per request, and what belongs to a whole run.

All times are seconds of the machine's monotonic clock since the start of the run, so that
records of several processes of one machine compare. Nothing is computed here; ``metrics`` does.
"""

from __future__ import annotations

from typing import Any

import msgspec

from benchmarks.plan import Slo

RUN_FORMAT = "baton/bench-run/v1"
# Name of the file in a run's folder that holds ``RunMeta``.
RUN_FILE = "run.json"


class RequestRecord(msgspec.Struct, kw_only=True):
    """One request: what was planned, what was sent when, what came back when.

    Attributes:
        scheduled_s: when it should have been sent: ``at_s`` in open loop; in a closed loop and
            within a session the end of the one before plus the pause.
        sent_s: when its bytes were handed to the connection; None if it never was.
        connect_s: how long a new connection took to open before that; None on an open one.
        headers_s: when the response's status and headers were there.
        first_content_s: when the first chunk with content came: a role alone is no content.
        last_content_s: when the last chunk with content came.
        end_s: when the answer, or the attempt, was over.
        status: HTTP status, 0 if there was none.
        error: None if the answer is whole, else a short reason such as ``timeout``,
            ``http_503``, ``error_event``, ``stream_cut``, ``connect``, ``cancelled``.
        detail: what the server said about the error, at most 300 characters.
        prompt_tokens, output_tokens, cached_tokens: from the server's usage; None if it said
            none.
        chunks: content chunks; not the same as tokens.
        chunks_s: when each came.
        path, reason, worker: what Baton's ``x-baton-*`` headers said, if they were there.
        process: which process of the load generator sent it.
    """

    index: int
    class_name: str
    scheduled_s: float
    lane: str | None = None
    session: str | None = None
    turn: int = 0
    tenant: str | None = None
    priority: int | None = None
    model: str = ""
    process: int = 0
    sent_s: float | None = None
    connect_s: float | None = None
    headers_s: float | None = None
    first_content_s: float | None = None
    last_content_s: float | None = None
    end_s: float | None = None
    status: int = 0
    error: str | None = None
    detail: str | None = None
    finish_reason: str | None = None
    planned_prompt_tokens: int = 0
    planned_output_tokens: int | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    chunks: int = 0
    path: str | None = None
    reason: str | None = None
    worker: str | None = None
    chunks_s: list[float] = []


class Problem(msgspec.Struct, frozen=True):
    """Why a run cannot be trusted, or what a reader should know of it.

    ``code`` is stable (``client_lagged``, ``rate_not_reached``, ``errors``, ``warm_cache``,
    ``disagreement``, ``interrupted``, ``too_few``); ``fatal`` makes the run invalid;
    ``text`` is one sentence with the figures and what to do.
    """

    code: str
    text: str
    fatal: bool = True


class ClientHealth(msgspec.Struct, frozen=True, kw_only=True):
    """How the load generator itself was doing, over all its processes.

    ``lag_*`` is from schedule to send in open loop, in seconds; ``stall_*`` how late the event
    loop woke from short sleeps; ``cpu_share`` is the busiest process's CPU seconds by wall
    seconds (1.0 is a whole core).
    """

    lag_p50_s: float = 0.0
    lag_p99_s: float = 0.0
    lag_max_s: float = 0.0
    stall_p99_s: float = 0.0
    stall_max_s: float = 0.0
    cpu_share: float = 0.0
    processes: int = 1


class Scrape(msgspec.Struct, frozen=True, kw_only=True):
    """One look at one server's metrics page during a run: ``values`` by sample name with labels
    as on the page; ``source`` is ``router`` or a worker id, ``role`` its role."""

    at_s: float
    source: str
    role: str
    values: dict[str, float]


class RunMeta(msgspec.Struct, kw_only=True):
    """What a run was, beside its records; ``run.json`` in its folder.

    Attributes:
        started_wall_s: wall clock of second zero.
        duration_s: planned sending time. ``ended_s``: when the last request was over.
        complete: False if it was interrupted.
        plan: ``workload``, ``version``, ``seed``, ``trace_sha256``, ``dropped``, ``rate_scale``,
            ``offered_rps`` and the ``spec`` as plain data.
        target: ``url``, ``model``, ``api``; never a key.
        versions: of Baton, the client libraries, and of the servers where they say it.
        machine: cores, memory, processor, system.
    """

    format: str = RUN_FORMAT
    id: str
    started_wall_s: float
    duration_s: float
    ended_s: float
    complete: bool
    salt: str
    plan: dict[str, Any]
    target: dict[str, Any]
    slos: dict[str, Slo] = {}
    client: ClientHealth = ClientHealth()
    problems: list[Problem] = []
    versions: dict[str, str] = {}
    machine: dict[str, Any] = {}

    @property
    def valid(self) -> bool:
        """Whether nothing fatal was found."""
        return not any(problem.fatal for problem in self.problems)


class Run(msgspec.Struct):
    """A run with everything that was recorded."""

    meta: RunMeta
    records: list[RequestRecord]
    scrapes: list[Scrape] = []

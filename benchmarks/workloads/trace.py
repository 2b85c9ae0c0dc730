"""A recorded trace as requests on a schedule: its window, its ticks, its lengths, its classes.

Rows are independent requests at their recorded times, those of one conversation too: how long
people waited for the recorded system is already in them. Only Mooncake's rows say which of their
text is shared, and only theirs shares any.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from baton.errors import WorkloadError
from benchmarks.plan import Piece, PlannedRequest
from benchmarks.workloads.draws import Draws
from benchmarks.workloads.spec import TraceSpec
from benchmarks.workloads.synthetic import Scale
from benchmarks.workloads.trace_rows import BLOCK_TOKENS, Part, Row, Trace, read_trace
from profiles.document import show

_NS = 1_000_000_000
_TICKING = ("mooncake", "burstgpt")


@dataclass(frozen=True, slots=True)
class TracePlan:
    """What a trace gives to a plan; its fields as in ``Plan``. Requests have index 0 still."""

    requests: list[PlannedRequest]
    duration_s: float
    dropped: dict[str, int]
    sha256: str


@dataclass(slots=True)
class _Event:
    """A row in time order; ``row`` is a reason where it is no request."""

    time_ns: int
    line: int
    row: Row | str
    late_ns: float = 0.0


def plan_trace(spec: TraceSpec, *, seed: int, scale: Scale, duration_s: float | None) -> TracePlan:
    """Reads the trace and places its rows.

    ``duration_s`` is the longest sending time, scaled already; None takes all of the trace.

    Raises:
        WorkloadError: the file cannot be read or a line of it is broken.
    """
    trace = read_trace(
        path_of(spec),
        form=spec.format,
        unit=spec.time_unit,
        part=_part(spec, scale, duration_s),
        zero_at_first=spec.format != "requests",
    )
    events = _in_order(trace)
    jitter = spec.format in _TICKING if spec.jitter is None else spec.jitter
    tick_ns = _tick_ns(events) if jitter else 0
    _spread(events, tick_ns, Draws(seed, "trace", "jitter"))
    start_ns = round(spec.start_s * _NS)
    length_ns = float(_end_ns(events, tick_ns) - start_ns)
    if spec.duration_s is not None:
        length_ns = min(length_ns, spec.duration_s * _NS)
    # Divided before it is stretched, in every place alike, so that times and ends agree.
    end_s = length_ns / _NS / scale.rate * scale.time
    if duration_s is not None:
        end_s = min(end_s, duration_s)
    requests: list[PlannedRequest] = []
    dropped: Counter[str] = Counter()
    for event in events:
        since_ns = event.time_ns - start_ns
        if not 0 <= since_ns < length_ns:
            continue
        at_s = (since_ns + event.late_ns) / _NS / scale.rate * scale.time
        if at_s >= end_s:
            continue
        outcome = _request(event.row, spec, at_s) if isinstance(event.row, Row) else event.row
        if isinstance(outcome, str):
            dropped[outcome] += 1
        else:
            requests.append(outcome)
    requests.sort(key=lambda request: request.at_s or 0.0)
    return TracePlan(requests, max(end_s, 0.0), dict(sorted(dropped.items())), trace.sha256)


def path_of(spec: TraceSpec) -> Path:
    """Where the trace is."""
    try:
        return Path(spec.file).expanduser()
    except RuntimeError as error:
        raise WorkloadError(f"{show(spec.file)}: no such home folder") from error


def _part(spec: TraceSpec, scale: Scale, duration_s: float | None) -> Part:
    lengths = [spec.duration_s, duration_s and duration_s / scale.time * scale.rate]
    known = [length_s for length_s in lengths if length_s is not None]
    start_ns = round(spec.start_s * _NS)
    return Part(start_ns, start_ns + math.ceil(min(known) * _NS) if known else None)


def _in_order(trace: Trace) -> list[_Event]:
    events = [_Event(row.time_ns, row.line, row) for row in trace.rows]
    events += [_Event(time_ns, 0, reason) for time_ns, reason in trace.unusable]
    events.sort(key=lambda event: (event.time_ns, event.line))
    for event in events:
        event.time_ns -= trace.zero_ns
    return events


def _tick_ns(events: list[_Event]) -> int:
    gaps = (b.time_ns - a.time_ns for a, b in itertools.pairwise(events))
    return min((gap for gap in gaps if gap > 0), default=0)


def _spread(events: list[_Event], tick_ns: int, draws: Draws) -> None:
    """Moves the rows of one tick apart, in their order; one that is alone moves as well, because
    its moment is as little known."""
    if tick_ns == 0:
        return
    for _, group in itertools.groupby(events, key=lambda event: event.time_ns):
        members = [event for event in group if isinstance(event.row, Row)]
        shares = sorted(draws.at(event.line) for event in members)
        for event, share in zip(members, shares, strict=True):
            event.late_ns = share * tick_ns


def _end_ns(events: list[_Event], tick_ns: int) -> int:
    """Where the trace ends: after its last row by as much as one row follows another, so that
    rows by duration is its rate."""
    last = events[-1].time_ns
    span = last - events[0].time_ns
    gap = math.ceil(span / (len(events) - 1)) if span else _NS
    return last + max(gap, tick_ns, 1)


def _request(row: Row, spec: TraceSpec, at_s: float) -> PlannedRequest | str:
    """The row as a request, or why it is left out."""
    prompt, output = row.prompt_tokens, row.output_tokens
    most_prompt = spec.max_prompt_tokens or prompt
    most_output = spec.max_output_tokens or output
    if spec.too_long == "drop" and (prompt > most_prompt or (output or 0) > (most_output or 0)):
        return "too_long"
    prompt = min(prompt, most_prompt)
    if output is not None and most_output is not None:
        output = min(output, most_output)
    return PlannedRequest(
        index=0,
        class_name=_class_of(row, spec),
        pieces=tuple(_pieces(row, prompt)),
        at_s=at_s,
        output_tokens=output,
        model=row.model,
        tenant=row.tenant,
        priority=row.priority,
    )


def _class_of(row: Row, spec: TraceSpec) -> str:
    if spec.classes is None:
        return row.class_name or spec.class_name
    # By the recorded length: clipping a prompt does not make another kind of request of it.
    bounds = [
        (math.inf if entry.max_prompt_tokens is None else entry.max_prompt_tokens, name)
        for name, entry in spec.classes.items()
    ]
    return min((bound, name) for bound, name in bounds if row.prompt_tokens <= bound)[1]


def _pieces(row: Row, tokens: int) -> Iterator[Piece]:
    if not row.hashes:
        yield Piece(f"trace/{row.line}", tokens)
        return
    for number, block in enumerate(row.hashes):
        left = tokens - number * BLOCK_TOKENS
        if left <= 0:
            return
        yield Piece(f"block/{block}", min(left, BLOCK_TOKENS))

"""Figures from records: what each one means, exactly, and nothing that was not recorded.

Computed after a run and never during it. A figure that cannot be known is None, never zero.
Nothing is averaged that must be pooled: ``Parts`` holds samples and sums, and pooling blocks is
concatenating samples and adding sums. Nothing here sends, waits, draws lots or reads a clock.

Latencies, in seconds. A failed request is in none of them; ``errors`` says how many failed.

===============  ==================================================================================
``ttft``         sent to first content; a chunk with a role alone is no content
``ttft_sched``   scheduled to first content: what a user waits, and what the SLO is judged by
``itl``          raw gaps between neighbouring content chunks of an answer, pooled over answers
``longest_gap``  the longest of them in an answer: the pause that its reader saw; one per answer
``tpot``         (E2E - TTFT) / (n - 1), n from the server's usage; n <= 1 has none
``e2e``          sent to the end of the answer
``e2e_sched``    scheduled to the end of the answer
===============  ==================================================================================

The same names mean other things elsewhere (``alternates`` has theirs, for cross-checks):

- ``vllm bench serve``: TTFT, ITL and TPOT as here, but its E2E ends with the last content chunk,
  its clock starts at the send (behind a concurrency cap a queue is not seen), its rates divide
  by the time until the last answer, and a one-token answer passes a TPOT bound with zero.
- guidellm: its ITL is (last - first) / (n - 1) per request, our TPOT nearly; its TPOT is E2E / n.
- inference-perf: TPOT is (last - first) / (n - 1), NTPOT is E2E / n; its ITL retokenises chunks
  and calls the gaps inside a chunk zero.
- aiperf: its ITL is our TPOT; our ITL is its ICL.

Rates divide by the planned duration and count what happened within ``[0, duration]``; the time
in which the last answers are awaited is no part of it. Output tokens count when they arrived: an
answer's tokens are spread evenly over its content chunks. Prompt tokens count at first content.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.plan import Slo
from benchmarks.records import RequestRecord, Run

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

ALL = "all"
LATENCIES = ("ttft", "ttft_sched", "itl", "longest_gap", "tpot", "e2e", "e2e_sched")
PERCENTILES: Mapping[str, float] = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}

TAIL_SAMPLES = 10
"""A percentile wants at least this many samples beyond it: p99 from 1000, p95 from 200."""


def enough(q: float, n: int) -> bool:
    """Whether quantile ``q`` (0 to 1) of ``n`` samples may be quoted: ``n (1 - q) >= 10``."""
    return n * (1.0 - q) >= TAIL_SAMPLES - 1e-9


def slo_of(slos: Mapping[str, Slo], class_name: str) -> Slo | None:
    """The service level of a class: its own, else that of ``all``; None if nothing is asked."""
    slo = slos.get(class_name, slos.get(ALL))
    if slo is None or (slo.ttft_s is None and slo.tpot_s is None and slo.e2e_s is None):
        return None
    return slo


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """Records as columns of equal length; NaN stands where a record has nothing.

    ``chunk_at_s`` is every content chunk of every record in a row, ``chunk_row`` the record that
    it belongs to.
    """

    class_names: NDArray[np.str_]
    ok: BoolArray
    in_lane: BoolArray
    scheduled_s: FloatArray
    sent_s: FloatArray
    first_s: FloatArray
    last_s: FloatArray
    end_s: FloatArray
    prompt_tokens: FloatArray
    output_tokens: FloatArray
    cached_tokens: FloatArray
    chunks: FloatArray
    chunk_at_s: FloatArray
    chunk_row: NDArray[np.int64]
    errors: tuple[str | None, ...]

    @property
    def size(self) -> int:
        """Number of records."""
        return len(self.errors)


def _column(values: Iterable[float | None], size: int) -> FloatArray:
    numbers = (np.nan if value is None else value for value in values)
    return np.fromiter(numbers, dtype=np.float64, count=size)


def columns(records: Sequence[RequestRecord]) -> Columns:
    """Lay records out as columns. A request is ok if it has no error and came to its end."""
    size = len(records)
    lengths = np.fromiter((len(r.chunks_s) for r in records), dtype=np.int64, count=size)
    flat = itertools.chain.from_iterable(r.chunks_s for r in records)
    return Columns(
        class_names=np.array([r.class_name for r in records], dtype=np.str_),
        ok=np.array(
            [r.error is None and r.sent_s is not None and r.end_s is not None for r in records],
            dtype=np.bool_,
        ),
        in_lane=np.array([r.lane is not None for r in records], dtype=np.bool_),
        scheduled_s=_column((r.scheduled_s for r in records), size),
        sent_s=_column((r.sent_s for r in records), size),
        first_s=_column((r.first_content_s for r in records), size),
        last_s=_column((r.last_content_s for r in records), size),
        end_s=_column((r.end_s for r in records), size),
        prompt_tokens=_column((r.prompt_tokens for r in records), size),
        output_tokens=_column((r.output_tokens for r in records), size),
        cached_tokens=_column((r.cached_tokens for r in records), size),
        chunks=_column((r.chunks for r in records), size),
        chunk_at_s=np.fromiter(flat, dtype=np.float64, count=int(lengths.sum())),
        chunk_row=np.repeat(np.arange(size, dtype=np.int64), lengths),
        errors=tuple(None if r.error is None else (r.error or "unknown") for r in records),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """One class of one run in the form that pools.

    Attributes:
        samples: by latency, unsorted, in seconds.
        sums: by figure, numerator and denominator; the figure is their quotient.
        requests: how many there were, failed ones included.
        errors: how many failed, by reason.
        in_flight_max: the most at one time.
        usage_missing: whole answers of which the server said no token count.
    """

    samples: Mapping[str, FloatArray]
    sums: Mapping[str, tuple[float, float]]
    requests: int
    errors: Mapping[str, int]
    in_flight_max: int
    usage_missing: int


@dataclass(frozen=True, slots=True, eq=False)
class _Derived:
    """What is computed once per run and then cut into classes."""

    latencies: Mapping[str, FloatArray]
    gaps: FloatArray
    gap_row: NDArray[np.int64]
    share_in_window: FloatArray


def _latencies(table: Columns) -> dict[str, FloatArray]:
    """Per record, NaN where there is none; ITL has several per record and stands apart."""
    ttft = table.first_s - table.sent_s
    e2e = table.end_s - table.sent_s
    more = np.where(table.output_tokens > 1, table.output_tokens - 1, np.nan)
    return {
        "ttft": ttft,
        "ttft_sched": table.first_s - table.scheduled_s,
        "tpot": (e2e - ttft) / more,
        "e2e": e2e,
        "e2e_sched": table.end_s - table.scheduled_s,
    }


def _derive(table: Columns, duration_s: float) -> _Derived:
    same = table.chunk_row[1:] == table.chunk_row[:-1]
    gaps = np.diff(table.chunk_at_s)[same] if table.chunk_at_s.size else np.empty(0)
    rows = table.chunk_row[1:][same]
    within = table.chunk_at_s <= duration_s
    came = np.bincount(table.chunk_row[within], minlength=table.size).astype(np.float64)
    of = np.bincount(table.chunk_row, minlength=table.size).astype(np.float64)
    whole = (table.end_s <= duration_s).astype(np.float64)
    share = np.where(of > 0, came / np.maximum(of, 1.0), whole)
    longest = np.full(table.size, np.nan)
    np.fmax.at(longest, rows, gaps)
    return _Derived({**_latencies(table), "longest_gap": longest}, gaps, rows, share)


@dataclass(frozen=True, slots=True, eq=False)
class _Judged:
    """Per record: what the SLO of its class says. ``asked`` is False where it has none."""

    asked: BoolArray
    good: BoolArray
    bounds: Mapping[str, tuple[BoolArray, BoolArray]]  # applies, met


def _judge(table: Columns, slos: Mapping[str, Slo]) -> _Judged:
    """Judge every request from its schedule, because that is when its user began to wait.

    An answer that was not streamed is seen when it is over: its E2E is its TTFT, and it has no
    TPOT. Where the server says no token count, chunks stand in for tokens: there are never more
    of them, so such a TPOT is never too low and a pass is a pass.
    """
    bound: dict[str, FloatArray] = {
        name: np.full(table.size, np.nan) for name in ("ttft", "tpot", "e2e")
    }
    asked = np.zeros(table.size, dtype=np.bool_)
    for class_name in np.unique(table.class_names):
        slo = slo_of(slos, str(class_name))
        if slo is None:
            continue
        rows = table.class_names == class_name
        asked |= rows
        for name, value in (("ttft", slo.ttft_s), ("tpot", slo.tpot_s), ("e2e", slo.e2e_s)):
            bound[name][rows] = np.nan if value is None else value
    streamed = ~np.isnan(table.first_s)
    first = np.where(streamed, table.first_s, table.end_s)
    tokens = np.where(np.isnan(table.output_tokens), table.chunks, table.output_tokens)
    tpot = (table.end_s - table.first_s) / np.where(tokens > 1, tokens - 1, np.nan)
    seen = {
        "ttft": first - table.scheduled_s,
        "tpot": tpot,
        "e2e": table.end_s - table.scheduled_s,
    }
    good = asked & table.ok
    bounds: dict[str, tuple[BoolArray, BoolArray]] = {}
    for name, limit in bound.items():
        applies = ~np.isnan(limit)
        if name == "tpot":  # one token has no TPOT; a failed request has failed it
            applies &= ~np.isnan(tpot) | ~table.ok
        met = applies & table.ok & (seen[name] <= limit)
        good &= ~applies | met
        bounds[name] = (applies, met)
    return _Judged(asked, good, bounds)


def _in_flight(start: FloatArray, end: FloatArray, duration_s: float) -> tuple[float, int]:
    """Request-seconds in flight within the window, and the most at one time."""
    sent = ~np.isnan(start)
    start = np.clip(start[sent], 0.0, duration_s)
    end = np.clip(np.where(np.isnan(end[sent]), duration_s, end[sent]), 0.0, duration_s)
    inside = end > start
    start, end = start[inside], end[inside]
    if not start.size:
        return 0.0, 0
    at = np.concatenate([end, start])
    step = np.concatenate([np.full(end.size, -1), np.full(start.size, 1)])
    order = np.argsort(at, kind="stable")  # at the same instant ends come before starts
    return float((end - start).sum()), int(np.cumsum(step[order]).max())


def _class_parts(
    table: Columns, derived: _Derived, judged: _Judged, rows: BoolArray, duration_s: float
) -> Parts:
    ok = rows & table.ok
    samples: dict[str, FloatArray] = {}
    for name, values in derived.latencies.items():
        chosen = values[ok]
        samples[name] = chosen[~np.isnan(chosen)]
    samples["itl"] = derived.gaps[ok[derived.gap_row]] if derived.gaps.size else np.empty(0)

    known = ok & ~np.isnan(table.output_tokens)
    arrived = np.where(known, table.output_tokens * derived.share_in_window, 0.0)
    ended = ok & (table.end_s <= duration_s)
    seen = np.where(np.isnan(table.first_s), table.end_s, table.first_s) <= duration_s
    prompts = ok & seen & ~np.isnan(table.prompt_tokens)
    flight_s, flight_max = _in_flight(table.sent_s[rows], table.end_s[rows], duration_s)
    requests = int(rows.sum())
    failed = Counter(
        table.errors[row] or "no_end" for row in np.flatnonzero(rows & ~table.ok).tolist()
    )
    sums: dict[str, tuple[float, float]] = {
        "requests_per_s": (float(ended.sum()), duration_s),
        "output_tokens_per_s": (float(arrived.sum()), duration_s),
        "prompt_tokens_per_s": (float(table.prompt_tokens[prompts].sum()), duration_s),
        "error_share": (float(sum(failed.values())), float(requests)),
        "chunks_per_token": (
            float(table.chunks[known].sum()),
            float(table.output_tokens[known].sum()),
        ),
        "in_flight": (flight_s, duration_s),
    }
    cached = ok & ~np.isnan(table.cached_tokens) & ~np.isnan(table.prompt_tokens)
    if cached.any():  # only servers that say so: silence is not zero
        sums["cached_share"] = (
            float(table.cached_tokens[cached].sum()),
            float(table.prompt_tokens[cached].sum()),
        )
    # How much of what was due in the second half was also served in it: below 1 a queue grows.
    half = duration_s / 2
    due = rows & ~table.in_lane & (table.scheduled_s > half) & (table.scheduled_s <= duration_s)
    served = ended & ~table.in_lane & (table.end_s > half)
    sums["served_share"] = (float(served.sum()), float(due.sum()))
    asked = rows & judged.asked
    if asked.any():
        good = rows & judged.good
        # Open loop: a good request counts by its schedule, or answers in flight at the end would
        # be lost and a slower arm would lose more. A lane is full at the end whatever happens,
        # so there only what ended within the window counts.
        counted = good & (~table.in_lane | (table.end_s <= duration_s))
        tokens = np.where(np.isnan(table.output_tokens), 0.0, table.output_tokens)
        sums["goodput_rps"] = (float(counted.sum()), duration_s)
        sums["good_output_tokens_per_s"] = (float(tokens[counted].sum()), duration_s)
        sums["attainment"] = (float(good.sum()), float(asked.sum()))
        for name, (applies, met) in judged.bounds.items():
            if (rows & applies).any():
                share = (float((rows & met).sum()), float((rows & applies).sum()))
                sums[f"attainment_{name}"] = share
    return Parts(samples, sums, requests, dict(failed), flight_max, int((ok & ~known).sum()))


def parts(
    records: Sequence[RequestRecord], duration_s: float, slos: Mapping[str, Slo]
) -> dict[str, Parts]:
    """All figures of a run in the form that pools, by class and for ``all``.

    ``goodput_rps``, ``good_output_tokens_per_s`` and the attainments stand only where a class
    has an SLO; ``all`` judges the requests of the classes that have one.
    """
    table = columns(records)
    derived = _derive(table, duration_s)
    judged = _judge(table, slos)
    result = {
        ALL: _class_parts(table, derived, judged, np.ones(table.size, dtype=np.bool_), duration_s)
    }
    for name in sorted({record.class_name for record in records} - {ALL}):
        rows = table.class_names == name
        result[name] = _class_parts(table, derived, judged, rows, duration_s)
    return result


def quotient(pair: tuple[float, float]) -> float | None:
    """Numerator by denominator; None where there is nothing to divide by."""
    return pair[0] / pair[1] if pair[1] > 0 else None


def describe(samples: FloatArray) -> dict[str, float | None]:
    """mean, p50, p90, p95, p99, max (None without samples) and n; numpy's linear percentiles.

    ``enough`` says which percentiles may be quoted: this function gives them all.
    """
    names = ("mean", *PERCENTILES, "max")
    if not samples.size:
        return {**dict.fromkeys(names), "n": 0}
    points = np.quantile(samples, list(PERCENTILES.values()))
    values = (samples.mean(), *points, samples.max())
    return {**{k: float(v) for k, v in zip(names, values, strict=True)}, "n": int(samples.size)}


def figures(part: Parts) -> dict[str, dict[str, float | None]]:
    """One class as plain data: ``{figure: {...}}``.

    Latencies have mean, p50, p90, p95, p99, max and n. Other figures have ``value`` with ``sum``
    and ``of``, the numerator and denominator that pool. ``in_flight`` has mean and max;
    ``errors`` has ``value`` and ``n``, all requests; ``errors_by_reason`` has the reasons.
    """
    result = {name: describe(part.samples[name]) for name in LATENCIES}
    for name, pair in part.sums.items():
        if name != "in_flight":
            result[name] = {"value": quotient(pair), "sum": pair[0], "of": pair[1]}
    result["in_flight"] = {
        "mean": quotient(part.sums["in_flight"]),
        "max": part.in_flight_max,
    }
    result["errors"] = {"value": sum(part.errors.values()), "n": part.requests}
    result["errors_by_reason"] = {reason: n for reason, n in sorted(part.errors.items())}
    result["usage_missing"] = {"value": part.usage_missing, "n": part.requests}
    return result


def measure(
    records: Sequence[RequestRecord], duration_s: float, slos: Mapping[str, Slo]
) -> dict[str, dict[str, dict[str, float | None]]]:
    """``{class: {figure: {...}}}`` for every class and ``all``; see ``figures``."""
    return {name: figures(part) for name, part in parts(records, duration_s, slos).items()}


def summarise(run: Run, slos: Mapping[str, Slo] | None = None) -> dict[str, Any]:
    """A run's figures as plain data that JSON can hold; ``slos`` replace the run's own."""
    chosen = run.meta.slos if slos is None else slos
    return measure(run.records, run.meta.duration_s, chosen)


def alternates(records: Sequence[RequestRecord]) -> dict[str, FloatArray]:
    """Per-request latencies as other tools define them, of whole answers, to check against.

    ``tpot_to_last``: (last content - first) / (n - 1), vllm bench's TPOT, guidellm's ITL and
    inference-perf's TPOT. ``e2e_to_last``: sent to last content, vllm bench's E2E.
    ``e2e_per_token``: E2E / n, guidellm's TPOT and inference-perf's NTPOT. ``tpot_chunks``:
    (E2E - TTFT) / (chunks - 1), what a tool reports that takes a chunk for a token.
    """
    table = columns(records)
    more = np.where(table.output_tokens > 1, table.output_tokens - 1, np.nan)
    gaps = np.where(table.chunks > 1, table.chunks - 1, np.nan)
    some = np.where(table.output_tokens > 0, table.output_tokens, np.nan)
    values = {
        "tpot_to_last": (table.last_s - table.first_s) / more,
        "e2e_to_last": table.last_s - table.sent_s,
        "e2e_per_token": (table.end_s - table.sent_s) / some,
        "tpot_chunks": (table.end_s - table.first_s) / gaps,
    }
    return {name: v[table.ok & ~np.isnan(v)] for name, v in values.items()}


_LATENCY_KEY = re.compile(rf"({'|'.join(LATENCIES)})_(mean|{'|'.join(PERCENTILES)})")


def latency_key(key: str) -> tuple[str, float | None] | None:
    """``itl_p99`` -> (``itl``, 0.99); ``ttft_mean`` -> (``ttft``, None); None for other keys."""
    match = _LATENCY_KEY.fullmatch(key)
    return None if match is None else (match[1], PERCENTILES.get(match[2]))

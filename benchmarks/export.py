"""A run in the result format of inference-perf, so that its readers and scripts can be used.

Only the files whose every number follows from what was recorded. Definitions are converted, not
relabelled:

- its latencies start at the send, as ours do; times are seconds of a monotonic clock;
- its TPOT is (last content - first content) / (n - 1), its NTPOT is E2E / n; n is the server's
  count of output tokens, as under its own ``use_server_output_tokens``;
- its ITL gives every token the arrival time of its chunk, so that gaps inside a chunk are zero.
  Where the server counted n tokens and c chunks came, n - c zeros stand beside the c - 1 gaps
  between chunks: the same multiset, whichever chunk held the tokens. The gaps come first in a
  list of one request, the zeros after them;
- an answer whose content came at one moment only (one token) has no TTFT and no TPOT there;
- throughput divides by the time from the first send to the last end, not by the planned duration.

What was not recorded is null (sizes in bytes) or left out (prompts, answers, the text of chunks).

guidellm's report is not written: it is a dump of that tool's own state, and most of it (its
scheduler's delays between queueing, resolving and finalising, its constraints, its backend's and
its data pipeline's arguments) has no counterpart in a run of Baton's and would have to be made up.
"""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.records import RequestRecord, Run

_PERCENTILES = (0.1, 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9)
_MAX_MESSAGES = 100
_HTTP_LABELS = {
    429: "Rate Limit",
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}


def inference_perf(run: Run) -> dict[str, Any]:
    """The run as inference-perf's report files, by file name.

    ``summary_lifecycle_metrics.json`` for the whole run, ``stage_0_lifecycle_metrics.json`` for
    its only stage (with the rate, which its charts read), and
    ``per_request_lifecycle_metrics.json`` with an entry per request that was sent.
    """
    sent = [record for record in run.records if record.sent_s is not None]
    stage = _summary(sent)
    rate = run.meta.plan.get("offered_rps")
    if rate is not None and sent:
        starts = [_start(record) for record in sent]
        span_s = max(starts) - min(starts)
        stage = {
            **stage,
            "load_summary": {
                **stage["load_summary"],
                "send_duration": span_s,
                "requested_rate": float(rate),
                "achieved_rate": len(sent) / span_s if span_s > 0 else 0.0,
            },
        }
    return {
        "summary_lifecycle_metrics.json": _summary(sent),
        "stage_0_lifecycle_metrics.json": stage,
        "per_request_lifecycle_metrics.json": [_entry(record) for record in sent],
    }


def write_inference_perf(run: Run, folder: Path) -> list[Path]:
    """Writes the files of `inference_perf` into ``folder``, made if it is not there.

    Returns:
        Their paths.

    Raises:
        OSError: they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, content in inference_perf(run).items():
        path = folder / name
        scratch = path.with_name(f".{name}.{os.getpid()}")
        text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)
        scratch.write_text(text + "\n", encoding="utf-8")
        scratch.replace(path)
        paths.append(path)
    return paths


def _summary(records: Sequence[RequestRecord]) -> dict[str, Any]:
    good = [record for record in records if _succeeded(record)]
    bad = [record for record in records if not _succeeded(record)]
    starts = [_start(record) for record in records]
    ends = [_end(record) for record in records]
    total_s = max(ends) - min(starts) if records else 0.0
    delays = [_start(record) - record.scheduled_s for record in records]
    return {
        "benchmark_time_seconds": total_s,
        "load_summary": {"count": len(records), "schedule_delay": _distribution(delays)},
        "successes": _successes(good, total_s),
        "failures": {
            "count": len(bad),
            "request_latency": _distribution([_end(r) - _start(r) for r in bad]),
            "prompt_tokens": _prompt_tokens(bad),
            "by_label": _labels(bad),
        },
    }


def _successes(good: Sequence[RequestRecord], total_s: float) -> dict[str, Any]:
    latencies = [_latencies(record) for record in good]

    def known(name: str) -> list[float]:
        return [entry[name] for entry in latencies if entry[name] is not None]

    def per_second(amount: float) -> float:
        return amount / total_s if total_s > 0 else 0.0

    prompts = float(sum(_prompt(record) for record in good))
    outputs = float(sum(record.output_tokens or 0 for record in good))
    gaps = [gap for entry in latencies for gap in entry["inter_token_latencies"]]
    lengths = [float(record.output_tokens or 0) for record in good]
    return {
        "count": len(good),
        "latency": {
            "request_latency": _distribution(known("request_latency")),
            "normalized_time_per_output_token": _distribution(
                known("normalized_time_per_output_token")
            ),
            "time_per_output_token": _distribution(known("time_per_output_token")),
            "time_to_first_token": _distribution(known("time_to_first_token")),
            "inter_token_latency": _distribution(gaps),
        },
        "throughput": {
            "input_tokens_per_sec": per_second(prompts),
            "output_tokens_per_sec": per_second(outputs),
            "total_tokens_per_sec": per_second(prompts + outputs),
            "requests_per_sec": per_second(len(good)),
            "images_per_sec": 0.0,
            "videos_per_sec": 0.0,
            "audios_per_sec": 0.0,
        },
        "request_size_bytes": None,
        "prompt_tokens": _prompt_tokens(good),
        "output_len": _distribution(lengths),
        "output_tokens": {"total": outputs, **(_distribution(lengths) or {})},
        "token_count_mismatches": 0,
        "client_fallback_requests": {
            "prompt": sum(record.prompt_tokens is None for record in good),
            "output": sum(record.output_tokens is None for record in good),
        },
    }


def _entry(record: RequestRecord) -> dict[str, Any]:
    usage: dict[str, Any] | None = None
    if record.prompt_tokens is not None or record.output_tokens is not None:
        usage = {
            "prompt_tokens": record.prompt_tokens,
            "completion_tokens": record.output_tokens,
            "prompt_tokens_details": None
            if record.cached_tokens is None
            else {"cached_tokens": record.cached_tokens},
        }
    entry: dict[str, Any] = {"start_time": _start(record), "end_time": _end(record)}
    if record.session is not None:
        entry["session_id"] = record.session
    entry["info"] = {
        "request_metrics": {"text": {"input_tokens": _prompt(record)}},
        "response_metrics": {
            "output_tokens": record.output_tokens or 0,
            "server_usage": usage,
            "chunk_times": list(record.chunks_s),
            "output_token_times": _token_times(record),
        },
        "extra_info": {},
        "labels": {"class": record.class_name},
        "input_tokens": _prompt(record),
    }
    if _succeeded(record):
        entry["computed_metrics"] = {
            **_latencies(record),
            "input_tokens": _prompt(record),
            "output_tokens": record.output_tokens,
            "ttft_slo_sec": None,
            "tpot_slo_sec": None,
        }
        entry["error"] = None
    else:
        kind, message = _error(record)
        entry["error"] = {"error_type": kind, "error_msg": message}
    return entry


def _latencies(record: RequestRecord) -> dict[str, Any]:
    """One request by inference-perf's definitions; see the module's text."""
    latency = _end(record) - _start(record)
    tokens = record.output_tokens
    found: dict[str, Any] = {
        "request_latency": latency,
        "normalized_time_per_output_token": latency / tokens if tokens else 0.0,
        "time_to_first_token": None,
        "time_per_output_token": None,
        "inter_token_latency": None,
        "inter_token_latencies": [],
    }
    count = max(len(record.chunks_s), tokens or 0)
    if not record.chunks_s or count < 2:
        return found
    first, last = record.chunks_s[0], record.chunks_s[-1]
    found["time_to_first_token"] = first - _start(record)
    if tokens is not None and tokens > 1:
        found["time_per_output_token"] = (last - first) / (tokens - 1)
    times = record.chunks_s
    gaps = [after - before for before, after in itertools.pairwise(times)]
    gaps += [0.0] * (count - len(times))
    found["inter_token_latencies"] = gaps
    found["inter_token_latency"] = sum(gaps) / len(gaps)
    return found


def _token_times(record: RequestRecord) -> list[float]:
    """A time per token: tokens beyond one per chunk are given the last chunk's."""
    times = list(record.chunks_s)
    missing = (record.output_tokens or 0) - len(times)
    return times + [times[-1]] * missing if times and missing > 0 else times


def _prompt_tokens(records: Sequence[RequestRecord]) -> dict[str, float]:
    counts = [float(_prompt(record)) for record in records]
    cached = float(sum(record.cached_tokens or 0 for record in records))
    total = float(sum(counts))
    parts = {"total": total, "cached": cached, "uncached": max(0.0, total - cached)}
    return {**parts, **(_distribution(counts) or {})}


def _labels(bad: Sequence[RequestRecord]) -> dict[str, Any]:
    by_label: dict[str, Counter[str]] = {}
    sessions: dict[tuple[str, str], list[str]] = {}
    for record in bad:
        kind, message = _error(record)
        code = kind.removeprefix("HTTP Error ")
        label = kind if code == kind else f"{code} - {_HTTP_LABELS.get(int(code), 'other')}"
        by_label.setdefault(label, Counter())[message] += 1
        if record.session is not None:
            sessions.setdefault((label, message), []).append(record.session)
    found = {}
    for label, messages in sorted(by_label.items(), key=lambda item: -item[1].total()):
        listed = []
        for message in list(messages)[:_MAX_MESSAGES]:
            names = sessions.get((label, message))
            listed.append({"message": message, **({"session_ids": names} if names else {})})
        found[label] = {"count": messages.total(), "messages": listed}
    return found


def _distribution(values: Sequence[float]) -> dict[str, float] | None:
    """Mean, extremes and percentiles under inference-perf's names; None without values."""
    if not values:
        return None
    array = np.asarray(values, dtype=np.float64)
    found = {"mean": float(array.mean()), "min": float(array.min()), "max": float(array.max())}
    for percentile, value in zip(_PERCENTILES, np.percentile(array, _PERCENTILES), strict=True):
        found["median" if percentile == 50 else f"p{percentile:g}"] = float(value)
    return found


def _error(record: RequestRecord) -> tuple[str, str]:
    kind = record.error or "no_end"
    if record.status >= 400:
        kind = f"HTTP Error {record.status}"
    return kind, record.detail or record.error or "the answer did not end"


def _succeeded(record: RequestRecord) -> bool:
    return record.error is None and record.end_s is not None


def _prompt(record: RequestRecord) -> int:
    """The server's count, else the planned one, which its fallback counter then counts."""
    counted = record.prompt_tokens
    return record.planned_prompt_tokens if counted is None else counted


def _start(record: RequestRecord) -> float:
    assert record.sent_s is not None, "only requests that were sent are exported"
    return record.sent_s


def _end(record: RequestRecord) -> float:
    for moment in (record.end_s, record.last_content_s, record.headers_s):
        if moment is not None:
            return moment
    return _start(record)

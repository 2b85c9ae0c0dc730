"""A run as inference-perf's files: their layout, and its definitions rather than ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.export import inference_perf, write_inference_perf
from benchmarks.metrics import alternates
from benchmarks.records import RequestRecord, Run, RunMeta

SUMMARY = "summary_lifecycle_metrics.json"
STAGE = "stage_0_lifecycle_metrics.json"
REQUESTS = "per_request_lifecycle_metrics.json"


def _record(index: int = 0, **changes: Any) -> RequestRecord:
    fields: dict[str, Any] = {
        "index": index,
        "class_name": "short",
        "scheduled_s": float(index),
        "sent_s": index + 0.01,
        "first_content_s": index + 0.11,
        "last_content_s": index + 0.31,
        "end_s": index + 0.36,
        "status": 200,
        "prompt_tokens": 100,
        "cached_tokens": 40,
        "output_tokens": 5,
        "chunks": 3,
        "chunks_s": [index + at for at in (0.11, 0.21, 0.31)],
    }
    return RequestRecord(**{**fields, **changes})


def _run(*records: RequestRecord, rate: float | None = 1.0) -> Run:
    meta = RunMeta(
        id="r",
        started_wall_s=0.0,
        duration_s=10.0,
        ended_s=11.0,
        complete=True,
        salt="s",
        plan={"workload": "w", "offered_rps": rate},
        target={"url": "http://127.0.0.1:8000"},
    )
    return Run(meta, list(records))


def test_tpot_ends_with_the_last_content_and_ntpot_divides_the_whole() -> None:
    """Their TPOT is (last - first) / (n - 1); ours would also hold the end of the stream."""
    run = _run(_record())
    entry = inference_perf(run)[REQUESTS][0]["computed_metrics"]
    assert entry["time_to_first_token"] == pytest.approx(0.1)
    assert entry["time_per_output_token"] == pytest.approx(0.2 / 4)
    assert entry["normalized_time_per_output_token"] == pytest.approx(0.35 / 5)
    assert entry["request_latency"] == pytest.approx(0.35)
    theirs = alternates(run.records)
    assert entry["time_per_output_token"] == pytest.approx(float(theirs["tpot_to_last"][0]))
    assert entry["normalized_time_per_output_token"] == pytest.approx(
        float(theirs["e2e_per_token"][0])
    )


def test_gaps_inside_a_chunk_are_zero() -> None:
    """Five tokens in three chunks: two gaps between chunks and two zeros."""
    files = inference_perf(_run(_record()))
    gaps = files[REQUESTS][0]["computed_metrics"]["inter_token_latencies"]
    assert gaps == pytest.approx([0.1, 0.1, 0.0, 0.0])
    itl = files[SUMMARY]["successes"]["latency"]["inter_token_latency"]
    assert itl["mean"] == pytest.approx(0.05)
    assert itl["median"] == pytest.approx(0.05)
    assert itl["max"] == pytest.approx(0.1)


def test_one_token_has_no_ttft_there() -> None:
    """A reader of that format expects null for an answer with one moment of content."""
    short = _record(chunks_s=[0.11], chunks=1, output_tokens=1, last_content_s=0.11)
    entry = inference_perf(_run(short))[REQUESTS][0]["computed_metrics"]
    assert entry["time_to_first_token"] is None
    assert entry["time_per_output_token"] is None
    assert entry["normalized_time_per_output_token"] == pytest.approx(0.35)


def test_without_usage_only_raw_gaps_are_given() -> None:
    """No token count: no TPOT, no zeros, and the fallback is counted."""
    blind = _record(output_tokens=None, prompt_tokens=None, planned_prompt_tokens=90)
    files = inference_perf(_run(blind))
    entry = files[REQUESTS][0]
    assert entry["computed_metrics"]["time_per_output_token"] is None
    assert entry["computed_metrics"]["inter_token_latencies"] == pytest.approx([0.1, 0.1])
    assert entry["info"]["response_metrics"]["server_usage"] is None
    good = files[SUMMARY]["successes"]
    assert good["client_fallback_requests"] == {"prompt": 1, "output": 1}
    assert good["prompt_tokens"]["total"] == 90


def test_the_summary_has_the_layout_of_its_readers() -> None:
    """Sections and names; rates by the time from the first send to the last end."""
    failed = _record(2, error="http_503", status=503, detail="full", session="s1", chunks_s=[])
    unsent = _record(9, sent_s=None, end_s=None, error="cancelled")
    files = inference_perf(_run(_record(0), _record(1), failed, unsent))
    summary = files[SUMMARY]
    assert summary["benchmark_time_seconds"] == pytest.approx(2.35)
    assert summary["load_summary"]["count"] == 3
    assert summary["load_summary"]["schedule_delay"]["p99"] == pytest.approx(0.01)
    assert "requested_rate" not in summary["load_summary"]
    good, bad = summary["successes"], summary["failures"]
    assert good["count"] == 2
    assert good["throughput"]["requests_per_sec"] == pytest.approx(2 / 2.35)
    assert good["throughput"]["total_tokens_per_sec"] == pytest.approx(210 / 2.35)
    assert good["prompt_tokens"]["cached"] == 80
    assert good["prompt_tokens"]["uncached"] == 120
    assert set(good["latency"]["request_latency"]) == {
        *("mean", "min", "max", "p0.1", "p1", "p5", "p10", "p25", "median", "p75"),
        *("p90", "p95", "p99", "p99.9"),
    }
    assert bad["count"] == 1
    message = {"message": "full", "session_ids": ["s1"]}
    label = "503 - Service Unavailable"
    assert bad["by_label"] == {label: {"count": 1, "messages": [message]}}
    assert files[REQUESTS][2]["error"] == {"error_type": "HTTP Error 503", "error_msg": "full"}
    assert "computed_metrics" not in files[REQUESTS][2]


def test_the_stage_names_the_rate_that_its_charts_read() -> None:
    """Requested from the plan, achieved from the sends; a closed loop has no rate."""
    stage = inference_perf(_run(_record(0), _record(1), _record(2)))[STAGE]["load_summary"]
    assert stage["requested_rate"] == 1.0
    assert stage["send_duration"] == pytest.approx(2.0)
    assert stage["achieved_rate"] == pytest.approx(1.5)
    closed = inference_perf(_run(_record(0), rate=None))[STAGE]["load_summary"]
    assert "requested_rate" not in closed


def test_files_are_json_without_surprises(tmp_path: Path) -> None:
    """Written whole, readable by any JSON reader; an empty run has nulls and no NaN."""
    folder = tmp_path / "out"
    paths = write_inference_perf(_run(), folder)
    assert sorted(path.name for path in paths) == sorted([SUMMARY, STAGE, REQUESTS])
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in paths)
    summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    assert summary["successes"]["latency"]["time_to_first_token"] is None
    assert json.loads((folder / REQUESTS).read_text(encoding="utf-8")) == []

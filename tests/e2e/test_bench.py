"""``baton bench compare`` on real engines: two profiles started, measured in turn, and gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.engine_side import agreements, server_figures
from benchmarks.load import read_run

# Four engines are started, one after the other.
pytestmark = pytest.mark.timeout(600)

WORKLOAD = """\
apiVersion: baton/v1
kind: Workload
metadata: {name: tiny, description: One prompt in three is long enough for a handoff.}
spec:
  duration_s: 8
  classes:
    short:
      arrivals: {kind: closed, concurrency: 2}
      prompt_tokens: 60
      output_tokens: 16
    long:
      arrivals: {kind: constant, rate: 0.5}
      start_s: 0.5
      prompt_tokens: 900
      output_tokens: 8
"""


@pytest.fixture(scope="module")
def result(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """One pair of blocks: too few for a verdict, enough to see that all parts do their work."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "tiny.yaml").write_text(WORKLOAD)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "baton.cli", "bench", "compare"),
            *("cpu-standard", "cpu-disaggregated", "--model", str(model)),
            *("--workload", str(folder / "tiny.yaml"), "--pairs", "1", "--warmup", "2"),
            *("--cpu-threads", "1", "--output", str(folder / "out"), "--json"),
        ],
        env={**os.environ, "BATON_HOME": str(folder / "home"), "BATON_DEVICE": "cpu"},
        capture_output=True,
        text=True,
        timeout=550,
    )
    # 3: measured, and too little for a verdict.
    assert done.returncode == 3, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return folder / "out", found


def test_both_profiles_are_measured_with_the_same_schedule(
    result: tuple[Path, dict[str, Any]],
) -> None:
    """Two blocks, whole, with the same plan and with other text."""
    folder, found = result
    assert found["complete"]
    assert [block["arm"] for block in found["blocks"]] == ["cpu-standard", "cpu-disaggregated"]
    runs = [read_run(folder / block["folder"]) for block in found["blocks"]]
    assert len({run.meta.plan["version"] for run in runs}) == 1
    assert len({run.meta.salt for run in runs}) == 2
    for run in runs:
        assert run.records
        assert all(record.error is None for record in run.records)
        assert all(
            record.prompt_tokens == record.planned_prompt_tokens + 1  # the server's BOS token
            for record in run.records
        )


def test_long_prompts_were_handed_over_in_one_of_them_only(
    result: tuple[Path, dict[str, Any]],
) -> None:
    """By the router's own headers, and by what NIXL moved."""
    folder, found = result
    standard, split = (read_run(folder / block["folder"]) for block in found["blocks"])
    assert {record.path for record in standard.records} == {"local"}
    assert {record.path for record in split.records if record.class_name == "long"} == {
        "disaggregated"
    }
    assert {record.path for record in split.records if record.class_name == "short"} == {"local"}
    # From the block itself: a slow machine may call it invalid, and the comparison leave it out.
    servers = server_figures(split.scrapes)
    long = sum(record.class_name == "long" for record in split.records)
    assert servers["router"]["handoffs"] == long
    # The engine tells of a transfer with its next step, which the last one may not have had.
    assert long - 1 <= servers["decode-1"]["nixl_transfers"] <= long
    assert servers["decode-1"]["nixl_bytes"] > 0


def test_client_and_servers_tell_the_same_story(result: tuple[Path, dict[str, Any]]) -> None:
    """Requests, tokens and handoffs, counted on both sides."""
    folder, found = result
    rows = [
        row
        for block in found["blocks"]
        for row in agreements(block["arm"], [read_run(folder / block["folder"])])
    ]
    counted = "(engines that answer)"
    counts = [row for row in rows if row.unit != "s"]
    assert {f"prompt tokens {counted}", f"generated tokens {counted}"} <= {c.what for c in counts}
    assert "handed-over requests (prefill engines)" in {row.what for row in counts}
    assert [row for row in counts if not row.agrees] == []
    # Times are compared in one direction only, which does not depend on the machine's speed: the
    # client cannot see a first token before a server made it.
    times = [row for row in rows if row.unit == "s"]
    assert len(times) == 2 * 2
    assert [row for row in times if row.client < 0.98 * row.server - 0.001] == []


def test_the_reports_are_there_and_nothing_is_left(result: tuple[Path, dict[str, Any]]) -> None:
    """One page without a network; no process that was started in the result's folder."""
    folder, found = result
    page = (folder / "report.html").read_text()
    assert "cpu-disaggregated" in page
    assert "https://" not in page
    assert {verdict["outcome"] for verdict in found["verdicts"]} <= {"unknown"}
    left = [
        process.info["pid"]
        for process in psutil.process_iter(["pid", "cmdline"])
        if any(str(folder) in word for word in process.info["cmdline"] or ())
    ]
    assert left == []

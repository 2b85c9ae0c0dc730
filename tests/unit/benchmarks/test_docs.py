"""What the documentation shows works."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.workloads import build_plan, load_workload

ROOT = Path(__file__).resolve().parents[3]
GUIDE = ROOT / "docs" / "benchmarking.md"


def test_the_workload_of_the_guide_is_sound(tmp_path: Path) -> None:
    """The example can be copied into a file and sent."""
    (block,) = re.findall(r"```yaml\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    file = tmp_path / "mine.yaml"
    file.write_text(block)
    plan = build_plan(load_workload(file))
    assert plan.class_names == ("chat", "reports")
    assert plan.slos["reports"].ttft_s == 10
    assert any(request.after is not None for request in plan.requests)
    assert {request.model for request in plan.requests} == {None, "base", "legal-lora"}


def test_the_guide_names_every_command() -> None:
    """Each command under ``baton bench`` is mentioned."""
    from baton.cli.bench import bench_app

    text = GUIDE.read_text()
    names = {command.name for command in bench_app.registered_commands}
    assert names == {"run", "compare", "calibrate", "show", "report", "history", "export"}
    for name in names:
        assert f"baton bench {name}" in text

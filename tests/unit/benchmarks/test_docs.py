"""What the documentation shows works."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.compare import read_result
from benchmarks.workloads import build_plan, load_workload
from profiles import load_profile

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


def test_the_published_comparisons_can_be_read_and_hold_no_folder_of_a_machine() -> None:
    """Where there are any: each has its reports, figures and commands, but no paths of where
    they were made."""
    folders = sorted(path.parent for path in (ROOT / "docs" / "benchmarks").glob("*/compare.json"))
    for folder in folders:
        result = read_result(folder)
        assert result.complete
        assert sum(block.counted for block in result.blocks) >= 5 * len(result.arms)
        for name in ("report.html", "report.md", "report.svg", "compare.json"):
            text = (folder / name).read_text()
            assert not re.search(r"(?<![\w.])/(tmp|home|root|work|var)/", text), (folder, name)
        assert f"]({folder.name}/report.md)" in (folder.parent / "README.md").read_text()


def test_the_profile_of_a_published_comparison_is_sound() -> None:
    """It can be started as it stands."""
    profile = load_profile(ROOT / "docs" / "benchmarks" / "threshold-64.yaml")
    assert profile.spec.classify is not None
    assert profile.spec.classify.threshold_tokens == 64

"""The benchmark of decisions: its arithmetic, and that a small run measures what it says."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from benchmarks.decision import Figure, Result, Row, growth, main, measure, percentile, table


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1), (0.5, 50), (0.501, 51), (0.99, 99), (1.0, 100)]
)
def test_percentile(share: float, expected: int) -> None:
    """A sample that was taken, not one between two."""
    assert percentile([*range(100, 0, -1)], share) == expected


def row(workers: int, p50_us: float, p99_us: float = 90.0, target_us: float | None = 100.0) -> Row:
    figure = Figure(p50_us, p99_us, p99_us)
    return Row(workers, figure, figure, figure, 0.1, 0.5, target_us)


def test_growth() -> None:
    """A hundred times the workers and ten times the time is the square root."""
    assert growth([row(1000, 50.0), row(10, 5.0)]) == pytest.approx(0.5)
    assert growth([row(10, 5.0)]) is None


def test_targets() -> None:
    """Met below, not at; nothing to meet without one."""
    assert row(16, 1.0, 99.9).met is True
    assert row(16, 1.0, 100.0).met is False
    assert row(128, 1.0, target_us=None).met is None


def test_a_small_run(tmp_path: Path) -> None:
    """Every operation was measured in every fleet, and the table and the file say the same."""
    result = measure([2, 16], decisions=20, prompt_tokens=512, rounds=2)
    assert [r.workers for r in result.rows] == [2, 16]
    for r in result.rows:
        assert 0 < r.plan.p50_us <= r.plan.p99_us
        assert r.match.p50_us > 0
        assert r.record.p50_us > 0
        assert 0 <= r.handed_over <= 1
    out = io.StringIO()
    Console(file=out, width=200).print(table(result))
    assert f"{result.rows[1].plan.p99_us:.1f}" in out.getvalue()
    path = tmp_path / "decision.json"
    assert main(["--workers", "2", "--decisions", "5", "--json", str(path)]) == 0
    written = msgspec.json.decode(path.read_bytes(), type=Result)
    assert (written.rows[0].workers, written.decisions) == (2, 5)


def test_nonsense_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """One worker cannot hand over."""
    with pytest.raises(SystemExit):
        main(["--workers", "1"])
    assert "at least two workers" in capsys.readouterr().err

"""Markdown, the picture, the terminal, and the files of all of them."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.comparison import CompareResult
from benchmarks.metrics import summarise
from benchmarks.plan import Slo
from benchmarks.records import Problem, RequestRecord, Run, RunMeta
from benchmarks.report import render_markdown, render_picture, show, show_run, write_reports
from tests.unit.benchmarks.report import sample


def _printed(width: int = 120) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=width, color_system=None), out


def test_markdown_says_what_the_page_says(two: CompareResult) -> None:
    """Headline, a row per verdict, the block that does not count, the command."""
    text = render_markdown(two)
    assert text.startswith(f"# {two.headline[0]}\n")
    assert "| short | TTFT p50 | 292 ms | 89.2 ms | 3.3x lower | 2.9x to 3.7x lower |" in text
    assert "? unknown: too few (700 requests; a p99 takes 1000)" in text
    assert "block 6 (standard, pair 3) does not count: 3 % of the prompt tokens" in text
    assert f"```\n{two.command}\n```" in text
    assert "| Commit | 8a0a567ad6596c1551d4d39d933d280f59fd9cab |" in text


def test_markdown_tables_keep_their_columns() -> None:
    """Pipes, newlines and markup in names can neither split a cell nor become HTML."""
    result = sample.build(arms=2, levels=[1.0], names=("a|b\nc", "<b>*x*</b>"))
    result.command = "echo ```"
    text = render_markdown(result)
    assert "<b>" not in text
    assert "````\necho ```\n````" in text
    tables = [block for block in text.split("\n\n") if block.startswith("| ")]
    assert len(tables) >= 4
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table


@pytest.mark.parametrize("kind", ["summary", "verdicts", "itl"])
def test_the_picture_stands_alone_in_both_themes(two: CompareResult, kind: str) -> None:
    """Valid SVG of 800 wide with its own colours, light and dark, and no outside reference."""
    text = render_picture(two, kind=kind)
    root = ElementTree.fromstring(text)
    assert root.attrib["viewBox"].split()[2:3] == ["800"]
    assert "prefers-color-scheme:dark" in text
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) == {"http://www.w3.org/2000/svg"}
    declared = set(re.findall(r"(--[a-z0-9-]+):", text))
    assert set(re.findall(r"var\((--[a-z0-9-]+)", text)) <= declared
    assert (">TTFT p50, short<" in text) == (kind != "itl")
    assert ("time between tokens" in text) == (kind != "verdicts")


def test_the_picture_draws_nothing_that_is_unknown(two: CompareResult) -> None:
    """A verdict without samples enough is no point in a plot."""
    assert "TTFT p99" not in render_picture(two)


def test_a_picture_of_many_arms_names_them_all() -> None:
    """Five arms share one legend; rows give way so that it stays legible."""
    text = render_picture(sample.build(arms=5, levels=[1.0]))
    assert text.count(">TTFT p50, short<") == 1
    for name in ("standard", "two-prefill", "chunked-4096"):
        assert f">{name}<" in text


def test_a_picture_of_nothing_is_still_a_picture() -> None:
    """No verdicts and no series: the title says so."""
    empty = CompareResult(id="x", created_wall_s=0.0, took_s=0.0, command="")
    assert "No verdict: too little was measured" in render_picture(empty)


def test_an_unheard_of_kind_of_picture_is_refused(two: CompareResult) -> None:
    """The error names the kinds that there are."""
    with pytest.raises(ValueError, match="summary, verdicts, itl"):
        render_picture(two, kind="pie")


def test_a_terminal_shows_verdicts_and_problems(two: CompareResult) -> None:
    """Headline first, then a table of outcomes in words, then what is wrong."""
    console, out = _printed()
    show(two, console)
    lines = out.getvalue().splitlines()
    assert lines[0].strip() == two.headline[0]
    row = next(line for line in lines if line.startswith("short") and "TTFT p50" in line)
    assert row.split() == [
        *("short", "TTFT", "p50", "292", "ms", "89.2", "ms", "3.3x", "lower"),
        *("2.9x", "to", "3.7x", "lower", "\u2713", "better"),
    ]
    assert any("! One block found" in line for line in lines)
    assert any("2 of 10 blocks do not count." in line for line in lines)


def _run(records: list[RequestRecord], **changes: object) -> Run:
    meta = RunMeta(
        id="r",
        started_wall_s=0.0,
        duration_s=10.0,
        ended_s=11.0,
        complete=True,
        salt="s",
        plan={"workload": "mixed"},
        target={"url": "http://127.0.0.1:8000", "model": "demo"},
        slos={"short": Slo(ttft_s=1.0)},
    )
    for name, value in changes.items():
        setattr(meta, name, value)
    return Run(meta, records)


def _record(index: int, error: str | None = None) -> RequestRecord:
    return RequestRecord(
        index=index,
        class_name="short",
        scheduled_s=index * 0.1,
        sent_s=index * 0.1,
        first_content_s=index * 0.1 + 0.05,
        last_content_s=index * 0.1 + 0.25,
        end_s=index * 0.1 + 0.25,
        status=200,
        error=error,
        output_tokens=3,
        prompt_tokens=10,
        chunks=3,
        chunks_s=[index * 0.1 + at for at in (0.05, 0.15, 0.25)],
    )


def test_a_run_is_shown_by_class_with_weak_percentiles_bracketed() -> None:
    """Thirty requests have a median and no p99; errors are named."""
    run = _run([*(_record(n) for n in range(30)), _record(30, error="timeout")])
    console, out = _printed()
    show_run(run, summarise(run), console)
    text = out.getvalue()
    row = next(line for line in text.splitlines() if line.startswith("TTFT "))
    assert row.split() == [
        *("TTFT", "50.0", "ms", "50.0", "ms", "(50.0", "ms)", "(50.0", "ms)", "(50.0", "ms)"),
        *("50.0", "ms", "30"),
    ]
    assert "Errors: 1 timeout" in text
    assert "SLO attainment" in text


def test_a_run_with_a_poor_summary_is_still_shown() -> None:
    """Keys that are missing are left out; problems and markup-like text are printed as they are."""
    problem = Problem(code="errors", text="[red]50 %[/red] failed\x1b[31m")
    run = _run([], problems=[problem], complete=False)
    console, out = _printed()
    show_run(run, {"all": {"ttft": {"n": 3, "p50": None}}, "odd": 3}, console)
    assert "[red]50 %[/red] failed" in out.getvalue()
    assert "\x1b" not in out.getvalue()
    assert "The run was interrupted." in out.getvalue()


def test_reports_are_written_whole(tmp_path: Path, two: CompareResult) -> None:
    """Three files, and nothing half-written beside them."""
    paths = write_reports(two, tmp_path)
    assert [path.name for path in paths] == ["report.html", "report.md", "report.svg"]
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in paths}
    assert paths[0].read_text(encoding="utf-8").startswith("<!DOCTYPE html>")

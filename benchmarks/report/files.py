"""Writes a comparison's reports into its folder, each whole or not at all."""

from __future__ import annotations

from pathlib import Path

from benchmarks.comparison import CompareResult
from benchmarks.report.html import render_html
from benchmarks.report.markdown import render_markdown
from benchmarks.report.picture import render_picture
from benchmarks.whole import write_whole


def write_reports(result: CompareResult, folder: Path) -> list[Path]:
    """Writes ``report.html``, ``report.md`` and ``report.svg``; returns their paths.

    Raises:
        OSError: the folder cannot be written to.
    """
    texts = {
        "report.html": render_html(result),
        "report.md": render_markdown(result),
        "report.svg": render_picture(result),
    }
    paths = []
    for name, text in texts.items():
        path = folder / name
        write_whole(path, text.encode())
        paths.append(path)
    return paths

"""Reports of a comparison: a page, Markdown, a picture, and the terminal.

All of them show what ``CompareResult`` holds, and compute no statistics.
"""

from __future__ import annotations

from benchmarks.report.files import write_reports
from benchmarks.report.html import render_html
from benchmarks.report.markdown import render_markdown
from benchmarks.report.picture import render_picture
from benchmarks.report.terminal import show, show_run

__all__ = [
    "render_html",
    "render_markdown",
    "render_picture",
    "show",
    "show_run",
    "write_reports",
]

"""The page about metrics."""

from __future__ import annotations

from pathlib import Path

from router.observe import docs


def test_the_page_is_the_one_that_the_code_writes() -> None:
    """``python -m router.observe.docs > docs/metrics.md`` was run after the last change."""
    page = Path(__file__).parents[4] / "docs" / "metrics.md"
    assert page.read_text(encoding="utf-8") == docs.page()

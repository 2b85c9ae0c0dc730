"""The documentation's picture of the handoff is the table's."""

from __future__ import annotations

from pathlib import Path

from kvtransfer import mermaid

PAGE = Path(__file__).parents[3] / "docs" / "architecture.md"


def test_the_picture_in_the_architecture_page_is_the_table() -> None:
    """A changed transition has to be drawn anew: paste what ``kvtransfer.mermaid()`` returns."""
    assert mermaid().strip() in PAGE.read_text("utf-8")

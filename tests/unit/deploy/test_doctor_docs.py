"""The doctor's page: it explains every check, and none that is not there."""

from __future__ import annotations

import re
from pathlib import Path

from deploy.doctor import CLUSTER_CHECKS, MACHINE_CHECKS

PAGE = Path(__file__).parents[3] / "docs" / "kubernetes" / "doctor.md"


NAMES = [check.name for check in MACHINE_CHECKS] + [check.name for check in CLUSTER_CHECKS]


def test_every_check_is_explained() -> None:
    """In the order in which checks report, those of machines first."""
    rows = re.findall(r"^\| `([a-z]+)` \|", PAGE.read_text("utf-8"), re.MULTILINE)
    assert rows == NAMES


def test_examples_are_of_checks() -> None:
    """Lines of the page's examples begin with a level and the name of a check."""
    lines = re.findall(
        r"^(?:ok|note|warning|problem) +([a-z]+)  ", PAGE.read_text("utf-8"), re.MULTILINE
    )
    assert len(lines) > 20
    assert set(lines) <= set(NAMES)

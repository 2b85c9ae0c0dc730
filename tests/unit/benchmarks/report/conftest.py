"""Rendered once for all tests of the reports: drawing takes seconds."""

from __future__ import annotations

import pytest

from benchmarks.comparison import CompareResult
from benchmarks.report import render_html
from tests.unit.benchmarks.report import sample


@pytest.fixture(scope="session")
def two() -> CompareResult:
    return sample.two_arms()


@pytest.fixture(scope="session")
def three() -> CompareResult:
    return sample.three_arms_three_levels()


@pytest.fixture(scope="session")
def two_html(two: CompareResult) -> str:
    return render_html(two)


@pytest.fixture(scope="session")
def three_html(three: CompareResult) -> str:
    return render_html(three)
